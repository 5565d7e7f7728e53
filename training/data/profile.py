"""What a data set holds, seen before training: sizes, scripts, repeats, leaks, licences; how a base cuts its text."""

import json
import statistics
from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, Protocol

import regex
from tokenizers import Tokenizer

from kauli.models.languages import display_name, script_share, scripts
from kauli.training.data.dataset import SPLITS, Dataset
from kauli.training.data.groups import media_key, normalise

_WORD = regex.compile(r"\p{L}[\p{L}\p{M}\p{N}'\u2019-]*")
_BYTE_TOKEN = regex.compile(r"<0x[0-9A-F]{2}>")
# Tokens per word of English lie near 1.2 for every base here; from these on a context holds and a second yields
# that many times less text
_HIGH_FERTILITY, _VERY_HIGH_FERTILITY = 3.0, 6.0
_NUM_TOKENIZED = 2000  # rows read for fertility: the figures do not move after some hundreds


class Encoder(Protocol):
    """What fertility needs of a tokenizer: the pieces of a text."""

    def pieces(self, text: str) -> list[str]:
        """The tokens of the text as they stand in the vocabulary."""


class _TokenizerFile:
    """A base's tokenizer.json."""

    def __init__(self, folder: Path) -> None:
        self._tokenizer = Tokenizer.from_file(str(folder / "tokenizer.json"))
        model = json.loads(self._tokenizer.to_str())
        self._alphabet = _byte_alphabet() if "ByteLevel" in json.dumps(model.get("pre_tokenizer")) else None

    def pieces(self, text: str) -> list[str]:
        tokens = self._tokenizer.encode(text, add_special_tokens=False).tokens
        if self._alphabet is None:
            return [str(token) for token in tokens]
        return [self._as_bytes(str(token)) for token in tokens]

    def _as_bytes(self, token: str) -> str:
        """A byte-level token that is less than a whole letter as `<0xE1>`, any other as it is."""
        assert self._alphabet is not None
        raw = bytes(self._alphabet[char] for char in token if char in self._alphabet)
        return f"<0x{raw[0]:02X}>" if len(raw) == 1 and raw[0] >= 0x80 else token


def _byte_alphabet() -> dict[str, int]:
    """The letters that byte-level BPE writes for bytes: printable Latin-1 for itself, others shifted past U+0100."""
    printable = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    others = [byte for byte in range(256) if byte not in printable]
    return {chr(byte): byte for byte in printable} | {chr(0x100 + rank): byte for rank, byte in enumerate(others)}


def profile(dataset: Dataset, base: Path | Encoder | None = None) -> dict[str, Any]:
    """Everything that render() shows, as plain data.

    `base` is the folder of a base (its tokenizer.json is read), for the fertility of each language, or None.
    """
    encoder = _TokenizerFile(base) if isinstance(base, Path) else base
    rows = dataset.rows()
    by_language: dict[str, list[dict[str, Any]]] = defaultdict(list)
    for row in rows:
        by_language[row["language"]].append(row)
    return {
        "name": dataset.name,
        "sha256": dataset.sha256,
        "rows": len(rows),
        "groups": len({row["group"] for row in rows}),
        "languages": {tag: _of_language(tag, members, encoder) for tag, members in sorted(by_language.items())},
        "leaks": leaks(dataset),
    }


def _of_language(tag: str, rows: list[dict[str, Any]], encoder: Encoder | None) -> dict[str, Any]:
    texts = [row["text"] for row in rows if row["text"]]
    lengths = sorted(len(text) for text in texts)
    repeats = Counter((normalise(row["text"]), normalise(row["prompt"] or "")) for row in rows if row["text"])
    return {
        "name": display_name(tag),
        "rows": len(rows),
        "groups": len({row["group"] for row in rows}),
        "splits": {split: sum(row["split"] == split for row in rows) for split in SPLITS},
        "groups_by_split": {split: len({row["group"] for row in rows if row["split"] == split}) for split in SPLITS},
        "sources": dict(Counter(row["source"] or "unknown" for row in rows).most_common()),
        "licences": dict(Counter(row["licence"] or "unknown" for row in rows).most_common()),
        "synthetic": sum(row["synthetic"] for row in rows),
        "flags": dict(Counter(row["flags"] for row in rows if row["flags"])),
        "scripts": sorted(scripts(tag)),
        "script_share": round(statistics.fmean(script_share(text, tag) for text in texts), 4) if texts else None,
        "other_script_rows": sum(script_share(text, tag) < 0.5 for text in texts),
        "characters": sum(lengths),
        "words": sum(len(_WORD.findall(text)) for text in texts),
        "lengths": {"median": lengths[len(lengths) // 2], "p95": lengths[len(lengths) * 95 // 100], "max": lengths[-1]}
        if lengths
        else None,
        "duplicates": sum(count - 1 for count in repeats.values()),
        "fertility": fertility(texts[:_NUM_TOKENIZED], encoder) if encoder and texts else None,
    }


def leaks(dataset: Dataset) -> dict[str, int]:
    """How many groups, captions (per language), pictures and recordings stand in more than one split. All must be 0."""
    sides: dict[str, dict[str, set[str]]] = {kind: defaultdict(set) for kind in ("group", "caption", "image", "audio")}
    for language in dataset.languages:  # one language's pictures in memory at a time
        for row in dataset.rows(languages=[language], columns=["group", "language", "text", "image", "audio", "split"]):
            sides["group"][row["group"]].add(row["split"])
            if row["text"]:
                sides["caption"][f"{row['language']} {normalise(row['text'])}"].add(row["split"])
            for kind in ("image", "audio"):
                if row[kind]:
                    sides[kind][media_key(kind, row[kind])].add(row["split"])
    return {kind: sum(len(splits) > 1 for splits in keys.values()) for kind, keys in sides.items()}


def fertility(texts: Iterable[str], encoder: Encoder) -> dict[str, Any]:
    """Tokens per word, bytes per token, the share of tokens that are single bytes of longer letters, and advice."""
    num_tokens = num_bytes = num_words = num_pieces = 0
    for text in texts:
        pieces = encoder.pieces(text)
        num_tokens += len(pieces)
        num_pieces += sum(bool(_BYTE_TOKEN.fullmatch(piece)) for piece in pieces)
        num_bytes += len(text.encode())
        num_words += len(_WORD.findall(text))
    per_word = num_tokens / max(1, num_words)
    single = num_pieces / max(1, num_tokens)
    return {
        "tokens_per_word": round(per_word, 2),
        "bytes_per_token": round(num_bytes / max(1, num_tokens), 2),
        "single_byte_share": round(single, 4),
        "advice": _advice(per_word, single),
    }


def _advice(per_word: float, single: float) -> str:
    if single > 0.5:
        return (
            f"this base's tokenizer falls to single bytes here ({single:.0%} of tokens): texts are several times "
            "longer than in English, so raise train.max_length, expect slow training and serving, and compare with a "
            "multilingual base such as gemma-3-270m-q4"
        )
    if per_word >= _VERY_HIGH_FERTILITY:
        return "words fall into very many tokens: raise train.max_length, and compare with a multilingual base"
    if per_word >= _HIGH_FERTILITY:
        return "words fall into two to three times as many tokens as English ones: usable, and slower by that much"
    return "the tokenizer suits this language"


def render(result: Mapping[str, Any]) -> str:
    """The profile as plain text, one block for each language."""
    lines = [
        f"{result['name']}: {result['rows']:,} rows in {result['groups']:,} groups, sha256 {result['sha256'][:12]}"
    ]
    found = {kind: count for kind, count in result["leaks"].items() if count}
    listed = ", ".join(f"{count:,} {kind}(s)" for kind, count in found.items())
    lines.append(f"leaks between splits: {listed or 'none'}")
    for tag, part in result["languages"].items():
        lines += ["", f"{tag} ({part['name']}): {part['rows']:,} rows, {part['groups']:,} groups"]
        table = [
            (
                "splits",
                ", ".join(
                    f"{split} {part['splits'][split]:,} rows / {part['groups_by_split'][split]:,} groups"
                    for split in SPLITS
                ),
            ),
            ("sources", _listed(part["sources"])),
            ("licences", _listed(part["licences"])),
            ("script", _script_line(part)),
            ("text", _length_line(part)),
            ("repeats", f"{part['duplicates']:,} rows"),
        ]
        if part["synthetic"]:
            table.append(("synthetic", f"{part['synthetic']:,} rows"))
        if part["flags"]:
            table.append(("doubtful", _listed(part["flags"])))
        if part["fertility"]:
            cut = part["fertility"]
            table.append(
                (
                    "base",
                    (
                        f"{cut['tokens_per_word']} tokens per word, {cut['bytes_per_token']} bytes per token, "
                        f"{cut['single_byte_share']:.0%} single bytes"
                    ),
                )
            )
            table.append(("advice", cut["advice"]))
        lines += [f"  {name:<10} {value}" for name, value in table]
    return "\n".join(lines)


def _listed(counts: Mapping[str, int]) -> str:
    return ", ".join(f"{name} {count:,}" for name, count in counts.items())


def _script_line(part: Mapping[str, Any]) -> str:
    if part["script_share"] is None:
        return "no text"
    line = f"{part['script_share']:.1%} {' or '.join(part['scripts'])}"
    return f"{line}; {part['other_script_rows']:,} rows mostly in another script" if part["other_script_rows"] else line


def _length_line(part: Mapping[str, Any]) -> str:
    if not part["lengths"]:
        return "none"
    lengths = part["lengths"]
    return (
        f"{part['characters']:,} characters, {part['words']:,} words; "
        f"a row has {lengths['median']} (median), {lengths['p95']} (95 %), {lengths['max']:,} (most) characters"
    )
