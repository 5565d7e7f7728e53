"""Profile of a data set before training: sizes, media, scripts, what is wrong, leaks, licences, tokenizer fertility."""

import json
import statistics
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import regex
from tokenizers import Tokenizer

from kauli.models.languages import display_name, script_share, scripts
from kauli.models.media.decode import content_key
from kauli.training.data.dataset import SPLITS, Dataset
from kauli.training.data.groups import LEAST_REPEATED, normalise, shared_keys
from kauli.training.data.media_check import MediaFacts, check_media
from kauli.training.data.problems import Problem, find_problems, told
from kauli.training.data.schema import MEDIA

_WORD = regex.compile(r"\p{L}[\p{L}\p{M}\p{N}'\u2019-]*")
_BYTE_TOKEN = regex.compile(r"<0x[0-9A-F]{2}>")
# English has about 1.2 tokens per word with every base here. With more, a context holds, and a second generates, as
# many times less text.
_HIGH_FERTILITY, _VERY_HIGH_FERTILITY = 3.0, 6.0
_MEDIA_NAMES = {"image": "images", "audio": "clips"}
_NUM_NAMED = 20  # unreadable files that are printed
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
    """Everything that `render` prints, as plain data. Opens every image and clip.

    `base` is the folder of a base, whose tokenizer.json gives the fertility of each language, or None.
    """
    tokenize = _tokenizer_of(base) if isinstance(base, Path) else base
    rows = sorted(dataset.rows(), key=lambda row: _in_order(dataset.place(row["id"])))
    media, problems, facts = check_media(dataset, rows)
    by_language: dict[str, list[dict[str, Any]]] = defaultdict(list)
    for row in rows:
        found = {column: facts[column].get(row["id"]) for column in MEDIA}
        row["media"] = tuple(one and one.key for one in found.values())
        row["use"] = _use(row, found)
        by_language[row["language"]].append(row)
    languages = {
        tag: _of_language(tag, members, tokenize) | {"media": media.get(tag, {})}
        for tag, members in sorted(by_language.items())
    }
    bytes_per_token = {
        tag: part["fertility"]["bytes_per_token"] for tag, part in languages.items() if part["fertility"]
    }
    return {
        "name": dataset.name,
        "sha256": dataset.sha256,
        "rows": len(rows),
        "groups": len({row["group"] for row in rows}),
        "languages": languages,
        "leaks": leaks(dataset),
        "problems": problems + find_problems(rows, dataset.place, bytes_per_token),
    }


def _in_order(place: str) -> list[Any]:
    """A key to sort by: line 9 is before line 10."""
    return [int(part) if number % 2 else part for number, part in enumerate(regex.split(r"(\d+)", place))]


def _use(row: Mapping[str, Any], media: Mapping[str, MediaFacts | None]) -> str | None:
    """What a row can teach: "audio" or "image" (with a text), "pair" (a text and what it translates) or "text".

    None where its media can't be used.
    """
    if not row["text"] or any(one and one.reason for one in media.values()):
        return None
    alone = "pair" if row["input"] else "text"
    return next((column for column in ("audio", "image") if media[column]), alone)


def _of_language(tag: str, rows: list[dict[str, Any]], tokenize: Tokenize | None) -> dict[str, Any]:
    texts = [row["text"] for row in rows if row["text"]]
    lengths = sorted(len(text) for text in texts)
    repeats = Counter(
        (normalise(row["text"]), normalise(row["prompt"] or ""), row["media"]) for row in rows if row["text"]
    )
    by_split = {split: [row for row in rows if row["split"] == split] for split in SPLITS}
    return {
        "name": display_name(tag),
        "rows": len(rows),
        "groups": len({row["group"] for row in rows}),
        "splits": {split: len(own) for split, own in by_split.items()},
        "groups_by_split": {split: len({row["group"] for row in own}) for split, own in by_split.items()},
        "characters_by_split": {split: sum(len(row["text"] or "") for row in own) for split, own in by_split.items()},
        "uses": {
            use: {split: sum(row["use"] == use for row in own) for split, own in by_split.items()}
            for use in sorted({row["use"] for row in rows if row["use"]})
        },
        "classes": _classes(by_split["train"]),
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


def _classes(rows: list[dict[str, Any]]) -> dict[str, int]:
    """Class name -> images to learn it from, where the texts of training images are few and repeated; else nothing."""
    images = [row for row in rows if row["use"] == "image"]
    # Training holds one image of each group with several back
    several = Counter((row["text"], row["group"]) for row in images)
    classes: Counter[str] = Counter()
    for (text, _group), count in several.items():
        classes[text] += max(1, count - 1)
    return dict(classes) if len(classes) >= 2 and LEAST_REPEATED * len(classes) <= len(images) else {}


def leaks(dataset: Dataset) -> dict[str, int]:
    """How many groups, texts (of a language: captions and prompts), images and clips are in more than one split.

    What counts as shared are the keys that tie rows together on an import, by the data set's option `leaks`.
    """
    rows = [
        {**row, **{kind: content_key(row[kind]) if row[kind] else None for kind in MEDIA}}
        for row in dataset.iter_rows(columns=["group", "language", "prompt", "text", *MEDIA, "split"])
    ]
    sides: dict[str, dict[str, set[str]]] = {kind: defaultdict(set) for kind in ("group", "caption", *MEDIA)}
    for row, keys in zip(rows, shared_keys(rows, dataset.options.leaks), strict=True):
        for key in keys:
            kind, _, content = key.partition(":")
            kind, content = ("caption", f"{row['language']} {content}") if kind in ("text", "pair") else (kind, content)
            sides[kind][content].add(row["split"])
    return {kind: sum(len(splits) > 1 for splits in shared.values()) for kind, shared in sides.items()}


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
    """The profile for a reader: a table for each language, then what is wrong, each with a row as an example."""
    lines = [
        f"{result['name']}: {result['rows']:,} rows in {result['groups']:,} groups, sha256 {result['sha256'][:12]}"
    ]
    for tag, part in result["languages"].items():
        cut = part["fertility"]
        about = {
            "text": _length_line(part),
            "script": _script_line(part),
            "images": _image_line(part["media"].get("image")),
            "audio": _audio_line(part["media"].get("audio")),
            "sources": _listed(part["sources"]),
            "licences": _listed(part["licences"]),
            "synthetic": part["synthetic"] and f"{part['synthetic']:,} rows",
            "doubtful": _listed(part["flags"]),
            "base": cut
            and f"{cut['tokens_per_word']} tokens per word, {cut['bytes_per_token']} bytes per token, "
            f"{cut['single_byte_share']:.0%} single bytes",
            "advice": cut and cut["advice"],
        }
        heading = f"{tag} ({part['name']}): {part['rows']:,} rows, {part['groups']:,} groups"
        lines += ["", heading, *_split_table(part)]
        lines += [f"  {name:<10} {value}" for name, value in about.items() if value]
    leaking = ", ".join(f"{count:,} {kind}(s)" for kind, count in result["leaks"].items() if count)
    lines += ["", f"leaks between splits: {leaking or 'none'}"]
    return "\n".join([*lines, *_problem_lines(result["problems"])])


def _split_table(part: Mapping[str, Any]) -> list[str]:
    """A line a split: rows, groups, characters, and images and clips where there are some."""
    columns = {"rows": part["splits"], "groups": part["groups_by_split"], "characters": part["characters_by_split"]}
    columns |= {name: part["media"][kind]["rows"] for kind, name in _MEDIA_NAMES.items() if kind in part["media"]}
    lines = [("", *columns), *((split, *(f"{one.get(split, 0):,}" for one in columns.values())) for split in SPLITS)]
    return [f"  {name:<10}" + "".join(f"{cell:>12}" for cell in cells) for name, *cells in lines]


def _problem_lines(problems: Sequence[Problem]) -> list[str]:
    if not problems:
        return ["nothing looks wrong"]
    lines = ["", "look at these:"]
    for problem in problems:
        lines += told(problem, _NUM_NAMED if problem["kind"] in MEDIA else 1)
    return lines


def _listed(counts: Mapping[str, int]) -> str:
    return ", ".join(f"{name} {count:,}" for name, count in counts.items())


def _script_line(part: Mapping[str, Any]) -> str:
    return f"{part['script_share']:.1%} {' or '.join(part['scripts'])}" if part["script_share"] is not None else ""


def _length_line(part: Mapping[str, Any]) -> str:
    if not part["lengths"]:
        return "none"
    lengths = part["lengths"]
    return (
        f"{part['words']:,} words; a row has {lengths['median']} (median), {lengths['p95']} (95 %), "
        f"{lengths['max']:,} (most) characters"
    )


def _image_line(found: Mapping[str, Any] | None) -> str:
    if not found:
        return ""
    line = f"{found['files']:,} different files, {found['unreadable'] or 'none'} unreadable"
    sizes = {name: f"{width} x {height} ({name})" for name, (width, height) in found.get("sizes", {}).items()}
    return "; ".join([line, *([", ".join(sizes.values())] if sizes else [])])


def _audio_line(found: Mapping[str, Any] | None) -> str:
    if not found:
        return ""
    line = f"{found['files']:,} different files, {found['unreadable'] or 'none'} unreadable"
    if "hours" not in found:
        return line
    hours, seconds = found["hours"], found["seconds"]
    length = f"{hours:.1f} hours" if hours >= 1 else f"{60 * hours:.1f} minutes"
    rates = [f"{count:,} at {rate} Hz" for rate, count in found["rates"].items()]
    channels = [f"{count:,} of {number} channel{'s' * (number != '1')}" for number, count in found["channels"].items()]
    times = f"{length}, {seconds['median']} s (median), {seconds['longest']} s (longest)"
    return f"{line}; {times}; {', '.join(rates)}; {', '.join(channels)}"
