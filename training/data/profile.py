"""Profile of a data set before training: sizes, scripts, duplicates, leaks, licences, and tokenizer fertility."""

import json
import statistics
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any

import regex
from tokenizers import Tokenizer

from kauli.models.languages import display_name, script_share, scripts
from kauli.training.data.dataset import SPLITS, Dataset
from kauli.training.data.groups import media_key, normalise
from kauli.training.data.schema import MEDIA

_WORD = regex.compile(r"\p{L}[\p{L}\p{M}\p{N}'\u2019-]*")
_BYTE_TOKEN = regex.compile(r"<0x[0-9A-F]{2}>")
# English has about 1.2 tokens per word with every base here. With more, a context holds, and a second generates, as
# many times less text.
_HIGH_FERTILITY, _VERY_HIGH_FERTILITY = 3.0, 6.0
_MOST_CAPTIONED = 10  # rows that a caption describes; a text of more is a class label
_NUM_TOKENIZED = 2000  # texts measured for fertility, which is stable after some hundreds


Tokenize = Callable[[str], list[str]]
"""The tokens of a text as written in the vocabulary; a token of one byte of a longer character is `<0xE1>`."""


def _tokenizer_of(base: Path) -> Tokenize:
    """The tokenizer of a base's tokenizer.json."""
    from kauli.models.engine.detokenize import byte_alphabet  # transformers takes seconds to import

    tokenizer = Tokenizer.from_file(str(base / "tokenizer.json"))
    byte_level = "ByteLevel" in json.dumps(json.loads(tokenizer.to_str()).get("pre_tokenizer"))

    def piece(token: str) -> str:
        raw = bytes(byte_alphabet()[char] for char in token if char in byte_alphabet())
        return f"<0x{raw[0]:02X}>" if byte_level and len(raw) == 1 and raw[0] >= 0x80 else token

    return lambda text: [piece(token) for token in tokenizer.encode(text, add_special_tokens=False).tokens]


def profile(dataset: Dataset, base: Path | Tokenize | None = None) -> dict[str, Any]:
    """Everything that `render` prints, as plain data.

    `base` is the folder of a base, whose tokenizer.json gives the fertility of each language, or None.
    """
    tokenize = _tokenizer_of(base) if isinstance(base, Path) else base
    rows = dataset.rows()
    by_language: dict[str, list[dict[str, Any]]] = defaultdict(list)
    for row in rows:
        by_language[row["language"]].append(row)
    return {
        "name": dataset.name,
        "sha256": dataset.sha256,
        "rows": len(rows),
        "groups": len({row["group"] for row in rows}),
        "languages": {tag: _of_language(tag, members, tokenize) for tag, members in sorted(by_language.items())},
        "leaks": leaks(dataset),
    }


def _of_language(tag: str, rows: list[dict[str, Any]], tokenize: Tokenize | None) -> dict[str, Any]:
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
        "fertility": fertility(texts[:_NUM_TOKENIZED], tokenize) if tokenize and texts else None,
    }


def leaks(dataset: Dataset) -> dict[str, int]:
    """How many groups, captions (per language), images and audio clips are in more than one split. All must be 0.

    A text beside more than ten images or clips, a different one in each row, is a class label: it is in every split
    by design, and not counted.
    """
    sides: dict[str, dict[str, set[str]]] = {kind: defaultdict(set) for kind in ("group", "caption", *MEDIA)}
    rows_of: Counter[str] = Counter()
    media_of: dict[str, set[str]] = defaultdict(set)
    for row in dataset.iter_rows(columns=["group", "language", "text", *MEDIA, "split"]):
        sides["group"][row["group"]].add(row["split"])
        media = {kind: media_key(kind, row[kind]) for kind in MEDIA if row[kind]}
        for kind, key in media.items():
            sides[kind][key].add(row["split"])
        if row["text"]:
            caption = f"{row['language']} {normalise(row['text'])}"
            sides["caption"][caption].add(row["split"])
            rows_of[caption] += 1
            media_of[caption].update(media.values())
    for caption, count in rows_of.items():
        if count > _MOST_CAPTIONED and len(media_of[caption]) >= count:
            del sides["caption"][caption]
    return {kind: sum(len(splits) > 1 for splits in keys.values()) for kind, keys in sides.items()}


def fertility(texts: Iterable[str], tokenize: Tokenize) -> dict[str, Any]:
    """Tokens per word, bytes per token, the share of tokens that are single bytes of longer letters, and advice."""
    num_tokens = num_bytes = num_words = num_pieces = 0
    for text in texts:
        pieces = tokenize(text)
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
            f"this base's tokenizer splits words into single bytes ({single:.0%} of tokens): texts are several times "
            "longer than in English. Increase train.max_length, expect slow training and serving, and compare with a "
            "multilingual base such as gemma-3-270m-q4"
        )
    if per_word >= _VERY_HIGH_FERTILITY:
        return "words have very many tokens: increase train.max_length, and compare with a multilingual base"
    if per_word >= _HIGH_FERTILITY:
        return "words have two to three times as many tokens as in English: usable, but slower by that factor"
    return "the tokenizer suits this language"


def render(result: Mapping[str, Any]) -> str:
    """The profile as plain text, a block for each language."""
    lines = [
        f"{result['name']}: {result['rows']:,} rows in {result['groups']:,} groups, sha256 {result['sha256'][:12]}"
    ]
    found = {kind: count for kind, count in result["leaks"].items() if count}
    listed = ", ".join(f"{count:,} {kind}(s)" for kind, count in found.items())
    lines.append(f"leaks between splits: {listed or 'none'}")
    for tag, part in result["languages"].items():
        lines += ["", f"{tag} ({part['name']}): {part['rows']:,} rows, {part['groups']:,} groups"]
        splits, groups, cut = part["splits"], part["groups_by_split"], part["fertility"]
        table = {
            "splits": ", ".join(f"{split} {splits[split]:,} rows / {groups[split]:,} groups" for split in SPLITS),
            "sources": _listed(part["sources"]),
            "licences": _listed(part["licences"]),
            "script": _script_line(part),
            "text": _length_line(part),
            "duplicates": f"{part['duplicates']:,} rows",
            "synthetic": part["synthetic"] and f"{part['synthetic']:,} rows",
            "doubtful": _listed(part["flags"]),
            "base": cut
            and f"{cut['tokens_per_word']} tokens per word, {cut['bytes_per_token']} bytes per token, "
            f"{cut['single_byte_share']:.0%} single bytes",
            "advice": cut and cut["advice"],
        }
        lines += [f"  {name:<10} {value}" for name, value in table.items() if value]
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
