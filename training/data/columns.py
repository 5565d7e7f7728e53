"""Which column of a user's file is taken as which of ours, and the rows that its values make."""

import re
from collections.abc import Iterable, Mapping
from pathlib import PurePath
from typing import Any

from kauli.models.errors import UsageError, nearest
from kauli.training.data.conversations import BREAK, answers, ends_open
from kauli.training.data.groups import short_hash
from kauli.training.data.schema import MEDIA, SCHEMA

# First our own names, then in the order of preference those of other people: Common Voice (sentence, path, locale),
# FLEURS (raw_transcription, file_name), NeMo (audio_filepath), Hugging Face's folders (file_name), Alpaca, TRL.
_NAMES: dict[str, tuple[str, ...]] = {
    "messages": ("messages", "conversations", "conversation"),
    "prompt": ("prompt", "instruction", "question", "query", "input"),
    "text": (
        *("text", "sentence", "raw_transcription", "transcription", "transcript", "caption", "completion", "output"),
        *("response", "answer", "target", "label"),
    ),
    "image": ("image", "image_path", "img", "picture", "photo"),
    "audio": ("audio", "audio_path", "audio_filepath", "audio_file", "wav", "speech"),
    "language": ("language", "lang", "locale"),
    "licence": ("licence", "license"),
    "system": ("system", "system_prompt"),
    "input": ("input", "context"),
    "file": ("file_name", "filename", "file", "path"),
}
"""`system` and `input` join the prompt; `file` is an image or audio by its suffix, where neither has a column."""
_KNOWN = {name for names in _NAMES.values() for name in names} | set(SCHEMA.names)
_OURS = (*_NAMES, *(name for name in SCHEMA.names if name not in _NAMES))
# Of Common Voice and FLEURS: about the speaker and the votes
_SILENT = frozenset(
    ("client_id", "sentence_id", "sentence_domain", "up_votes", "down_votes", "age", "gender", "accent", "accents")
) | frozenset(("audio_id", "duration_ms", "prompt_id", "votes", "char_per_sec", "quality_tags", "phonemes")) | {
    "variant", "segment", "num_samples",
}  # fmt: skip
_MOST_LISTED = 20
_INVISIBLE = re.compile("[\u200b-\u200f\u2060\ufeff]")
SUFFIXES = {
    "image": (".png", ".jpg", ".jpeg", ".webp", ".gif", ".bmp", ".tif", ".tiff", ".heic", ".avif"),
    "audio": (".wav", ".mp3", ".flac", ".ogg", ".oga", ".opus", ".m4a", ".mp4", ".webm", ".aac", ".aiff", ".aif", ".au",
              ".amr"),
}  # fmt: skip
"""Of files, in the order in which they are tried for a name without one."""


def check_map(given: Mapping[str, str]) -> None:
    """Raise UsageError for a name that is none of our columns."""
    for ours in given:
        if ours not in _OURS:
            raise UsageError(f"map: no column '{ours}'.{nearest(ours, _OURS)} Ours: {', '.join(_OURS)}.")


def columns_taken(names: Iterable[str], given: Mapping[str, str]) -> dict[str, str]:
    """Our column -> the file's, for a row with these columns; `given` goes before names that are known.

    Case, blanks and hyphens in names don't count. `given` may take nothing as a column ("").
    """
    names = list(names)
    normal = {_normal(name): name for name in reversed(names)} | {name: name for name in names}
    taken = {ours: normal[key] for ours, theirs in given.items() if (key := _key(theirs, normal))}
    if "input_language" in normal or "input_language" in taken:  # then `input` is what the text translates
        taken |= {"input": normal["input"]} if "input" in normal and "input" not in given else {}
    for ours in _OURS:
        free = (normal[one] for one in _NAMES.get(ours, (ours,)) if one in normal)
        column = None if ours in given else next((one for one in free if one not in taken.values()), None)
        if column is not None and not (ours == "file" and set(MEDIA) & set(taken)):
            taken[ours] = column
    if "messages" in taken:
        taken = {ours: name for ours, name in taken.items() if ours not in ("prompt", "text", "input")}
    return taken


def flat(raw: dict[str, Any]) -> dict[str, Any]:
    """The values of `{"translation": {"en": ..., "sw": ...}}` as columns `translation.en` and `translation.sw`."""
    found: dict[str, Any] = {}
    for name, value in raw.items():
        if isinstance(value, dict) and value and _normal(name) not in _KNOWN:
            found |= {f"{name}.{key}": one for key, one in value.items()}
        else:
            found[name] = value
    return found


def _normal(name: str) -> str:
    return "_".join(_INVISIBLE.sub("", str(name)).strip().casefold().replace("-", " ").split())


def _key(name: str, normal: Mapping[str, str]) -> str | None:
    return next((key for key in (name, _normal(name)) if key in normal), None)


def missing(given: Mapping[str, str], names: Iterable[str]) -> list[str]:
    """What is wrong with a map for a file that has these columns."""
    names = sorted(names)
    normal = {name: name for name in (*names, *map(_normal, names))}
    return [
        f"no column '{theirs}' for {ours}: it has {listed(names)}.{nearest(theirs, names)}"
        for ours, theirs in given.items()
        if theirs and _key(theirs, normal) is None
    ]


def listed(names: Iterable[str]) -> str:
    """Names of columns in order; of many, the first."""
    names = sorted(name or "(no name)" for name in names)
    return ", ".join(names[:_MOST_LISTED]) + f" and {len(names) - _MOST_LISTED:,} more" * (len(names) > _MOST_LISTED)


def told(taken: Mapping[str, str], names: Iterable[str], *, whole: bool = False) -> str:
    """In one line which columns are taken, with `whole` also those of our own names, and which are not used."""
    shown = {"image or audio" if ours == "file" else ours: theirs for ours, theirs in taken.items()}
    others = [
        ours if ours == theirs else f"{ours} is {theirs}" for ours, theirs in shown.items() if whole or ours != theirs
    ]
    unused = [name for name in {*names} - {*taken.values()} if whole or _normal(name) not in _SILENT]
    start = "columns taken: " if whole else ""
    return "; ".join(
        [start + ", ".join(others)] * bool(others) + [f"columns not used: {listed(unused)}"] * bool(unused)
    )


def rows_of(raw: Mapping[str, Any], taken: Mapping[str, str]) -> list[dict[str, Any]]:
    """The rows that a file's row makes, by our columns: one, or as many as a conversation has answers.

    `columns` tells which of the file's columns an image or audio is in, `left_out` what the rows don't hold. Raises
    ValueError for values that can't be.
    """
    values: dict[str, Any] = {ours: raw.get(theirs) for ours, theirs in taken.items()}
    columns = {name: taken[name] for name in MEDIA if name in taken}
    values |= {"columns": columns, "left_out": []}
    file = values.pop("file", None)
    if isinstance(file, str) and file.strip():
        kind = kind_of(file)
        if kind:
            values[kind], columns[kind] = file, taken["file"]
        elif _normal(taken["file"]) == "file_name":
            raise ValueError(f"{taken['file']} '{file}' is neither an image nor audio by its suffix")
        else:
            values["left_out"].append(f"a {taken['file']} that is neither an image nor audio by its suffix")
    system = values.pop("system", None)
    context = None if values.get("input_language") else values.pop("input", None)
    messages = values.pop("messages", None)
    if _is_conversation(values.get("prompt")) or _is_conversation(values.get("text")):
        messages = [*_messages(values.pop("prompt", None), "user"), *_messages(values.pop("text", None), "assistant")]
    if not messages:
        parts = [system, values.get("prompt"), context]
        if system or context:
            if not all(part is None or isinstance(part, str) for part in parts):
                raise ValueError(f"{taken.get('prompt')} or what joins it holds something else than text")
            values["prompt"] = BREAK.join(part.strip() for part in parts if part and part.strip())
        return [values]
    found = list(answers([*_messages(system, "system"), *messages]))
    if ends_open(messages):
        values["left_out"].append("what a conversation has after its last answer")
    if len(found) == 1:
        return [values | {"prompt": found[0][0], "text": found[0][1]}]
    group = values.get("group") or f"conversation-{short_hash(*(text for _prompt, text in found), found[-1][0] or '')}"
    rows = []
    for number, (prompt, text) in enumerate(found, start=1):
        left_out = values["left_out"] if number == len(found) else []
        own = None if values.get("id") is None else f"{values['id']}-{number}"
        rows.append(values | {"prompt": prompt, "text": text, "group": group, "id": own, "left_out": left_out})
    return rows


def _is_conversation(value: Any) -> bool:
    return isinstance(value, list) and any(isinstance(message, dict) for message in value)


def _messages(value: Any, role: str) -> list[Any]:
    if value is None or value == "":
        return []
    return list(value) if isinstance(value, list) else [{"role": role, "content": value}]


def kind_of(file: str) -> str | None:
    """Whether a file's name is that of an "image" or of "audio"; None for any other."""
    suffix = PurePath(file).suffix.lower()
    return next((kind for kind, suffixes in SUFFIXES.items() if suffix in suffixes), None)
