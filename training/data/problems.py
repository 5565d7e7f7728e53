"""Rows of a data set that look wrong, by kind: garbled letters, words for an empty cell, copies, a foreign script."""

import html
from collections.abc import Callable, Iterable, Mapping
from typing import Any

import regex

from kauli.models.languages import script_share, scripts
from kauli.training.data.groups import normalise

Problem = dict[str, Any]
"""`kind`, `what` (reads on from "3 rows"), `rows` (a number), `examples`, each with its `place` and what is `shown`."""

LONG_TOKENS = 512  # the default of train.max_length
_USUAL_BYTES = 4.0  # of a token, where no tokenizer is at hand
_SHOWN = 60  # characters of a value
_NUM_EXAMPLES = 1000  # of a kind; the number of rows is that of all
_FOLLOWING = "".join(bytes([one]).decode("cp1252", "ignore") for one in range(0x80, 0xC0)) + "\x80-\x9f"
# UTF-8 characters of two, three and four bytes, as Latin-1 or Windows-1252 shows them
_GARBLED = regex.compile(
    rf"(?:[\xc2-\xdf][{_FOLLOWING}]|[\xe0-\xef][{_FOLLOWING}]{{2}}|[\xf0-\xf4][{_FOLLOWING}]{{3}})+"
)
_CLOSING = "…”’»›“–—™"  # may well follow a word in capitals: `CAFÉ…` is no garbled letter
_CONTROL = regex.compile(r"[\p{Cc}\ufeff--[\t\n\r]]", regex.V1)
_NOTHING = frozenset(("none", "nan", "null", "n/a", "#n/a", "<na>", "undefined"))
_HTML = regex.compile(r"&(?:[a-zA-Z]{2,8}|#\d{2,7}|#x[0-9a-fA-F]{2,6});|</?(?:p|br|div|span|b|i|a|li|td)\b[^<>]*>")
_ALIKE = ("Latin", "Cyrillic", "Greek")  # have letters that look the same
_MIXED = regex.compile(
    "|".join(
        rf"\p{{Script={one}}}\p{{Script={other}}}" for one in _ALIKE for other in _ALIKE if one != other
    )
)  # fmt: skip


def repaired(text: str, tag: str) -> str:
    """A text whose UTF-8 was read as Latin-1, Windows-1252 or Windows-1251, as it was meant; any other as it is.

    `CoraÃ§Ã£o` -> `Coração`, `â€™` -> `’`. A single letter counts only in a script of the language.
    """

    def undo(match: "regex.Match[str]") -> str:
        raw = b"".join(bytes([ord(one)]) if ord(one) < 0x100 else one.encode("cp1252") for one in match[0])
        try:
            meant = raw.decode()
        except UnicodeDecodeError:
            return match[0]
        before, after = match.string[: match.start()][-1:], match.string[match.end() :][:1]
        doubtful = len(match[0]) == 2 and match[0][1] in _CLOSING and not (before.islower() or after.isalpha())
        return match[0] if len(meant) == 1 and (doubtful or script_share(meant, tag) < 1) else meant

    try:  # no text of more than a few letters is so by chance: it would have no `а` to `п`
        meant = text.encode("cp1251").decode()
        if sum(char.isalpha() and not char.isascii() for char in meant) >= 3 and script_share(meant, tag) == 1:
            return meant
    except UnicodeError:
        pass
    for _ in range(3):  # what went wrong once may have gone wrong twice
        text, before = _GARBLED.sub(undo, text), text
        if text == before:
            break
    return text


def excerpt(value: str, at: int = 0) -> str:
    """Some characters around a place of a text, in quotes, control characters as their codes."""
    start = max(0, at - _SHOWN // 3) if len(value) > _SHOWN else 0
    end = start + _SHOWN
    return repr(f"{'…' * (start > 0)}{value[start:end]}{'…' * (end < len(value))}")


def _garbled(value: str, meant: str) -> str:
    at = next((place for place, pair in enumerate(zip(value, meant, strict=False)) if pair[0] != pair[1]), 0)
    return f"{excerpt(value, at)}, meant is {excerpt(meant, at)}"


def _matched(pattern: "regex.Pattern[str]") -> Callable[[str], str | None]:
    def shown(value: str) -> str | None:
        found = pattern.search(value)
        return excerpt(value, found.start()) if found else None

    return shown


def _markup(value: str) -> str | None:
    found = _HTML.search(value)
    return (
        excerpt(value, found.start()) if found and (found[0][0] == "<" or html.unescape(found[0]) != found[0]) else None
    )


def _foreign(value: str, tag: str) -> str | None:
    return excerpt(value) if script_share(value, tag) < 0.5 else None


_KINDS: dict[str, tuple[str, Callable[[str], str | None]]] = {
    "control": ("with control characters", _matched(_CONTROL)),
    "nothing": (
        "where a whole cell is a word for an empty one, and would be learned",
        lambda value: excerpt(value) if value.lower() in _NOTHING else None,
    ),
    "html": ("with HTML", _markup),
    "mixed_script": ("with words that mix letters of two scripts, which look alike", _matched(_MIXED)),
}
"""Kind -> what, and what to show of a prompt or text that has it (None: it has not)."""


def find_problems(
    rows: Iterable[Mapping[str, Any]], place: Callable[[str], str], bytes_per_token: Mapping[str, float]
) -> list[Problem]:
    """The problems of prompts and texts, the most frequent first.

    Rows have the plain columns and `media`, the hash of each row's image and audio. `bytes_per_token` is by language.
    """
    found: dict[str, Problem] = {}

    def add(kind: str, what: str, row: Mapping[str, Any], shown: str) -> None:
        problem = found.setdefault(kind, {"kind": kind, "what": what, "rows": 0, "examples": []})
        problem["rows"] += 1
        if len(problem["examples"]) < _NUM_EXAMPLES:
            problem["examples"].append({"place": place(row["id"]), "shown": shown})

    rows = list(rows)
    first: dict[Any, str] = {}
    for row in rows:
        tag, values = row["language"], [row["text"] or "", row["prompt"] or ""]
        meant = [repaired(value, tag) for value in values]
        if garbled := [pair for pair in zip(values, meant, strict=True) if pair[0] != pair[1]]:
            what = "with garbled letters: their UTF-8 was once read in another encoding"
            add("garbled", what, row, _garbled(*garbled[0]))
        for kind, (what, check) in _KINDS.items():
            if shown := next((shown for value in meant if (shown := check(value))), None):
                add(kind, what, row, shown)
        text = meant[0]
        if text and (shown := _foreign(text, tag)):
            names = " or ".join(sorted(scripts(tag)))
            add(f"script_{tag}", f"of {tag}, mostly in another script than {names}", row, shown)
        if sum(len(one.encode()) for one in values) > LONG_TOKENS * bytes_per_token.get(tag, _USUAL_BYTES):
            what = f"longer than about {LONG_TOKENS} tokens (train.max_length): training truncates them"
            add("long", what, row, f"{len(text):,} characters, {excerpt(text)}")
        same = (tag, normalise(text), normalise(row["prompt"] or ""), row["media"])
        if any(same[1:]) and first.setdefault(same, row["id"]) != row["id"]:
            add("copy", "repeating an earlier row", row, f"{excerpt(text)}, as {place(first[same])}")
    for name in ("text", "prompt"):
        blank = [row for row in rows if not row[name]]
        for row in blank if len(blank) < len(rows) / 2 else ():
            add(
                f"blank_{name}",
                f"without a {name}, which most rows have",
                row,
                excerpt(row["prompt"] or row["text"] or ""),
            )
    return sorted(found.values(), key=lambda problem: -problem["rows"])


def told(problem: Problem, most: int) -> list[str]:
    """A problem as a line with one example, or where it has `most` of more than one, with a line for each."""
    count, shown = problem["rows"], [f"{one['place']}: {one['shown']}" for one in problem["examples"][:most]]
    head = f"  {count:,} row{'s' * (count != 1)} {problem['what']}"
    if most == 1:
        return [f"{head}, e.g. {shown[0]}"]
    more = [f"    and {count - most:,} more, which --json lists"] * (count > most)
    return [f"{head}:", *(f"    {one}" for one in shown), *more]
