"""gettext catalogues (.po, .pot): https://www.gnu.org/software/gettext/manual/html_node/PO-Files.html.

What is not filled in stays byte for byte: comments, order, wrapping, obsolete entries. A filled-in draft is `fuzzy`, so
that no program shows it before a person confirmed it.
"""

import re
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Self

from kauli.models.documents.document import Document, DocumentOptions, Segment, State
from kauli.models.documents.encoded import Encoding, decoded, lines_of
from kauli.models.errors import UsageError
from kauli.models.languages import check_tag

_STRING = re.compile(r'^\s*"((?:[^"\\]|\\.)*)"\s*$')
_KEYWORD = re.compile(r'^(msgctxt|msgid_plural|msgid|msgstr)(?:\[(\d{1,2})\])?\s*(".*)$')
_ESCAPES = {"n": "\n", "t": "\t", "r": "\r", "a": "\a", "b": "\b", "f": "\f", "v": "\v"}
_MOST_FORMS = 8


@dataclass
class _Entry:
    """One message: the places of its lines, [first, last + 1)."""

    begin: int
    texts: dict[str, str] = field(default_factory=dict)
    """"msgctxt", "msgid", "msgid_plural", "msgstr" or "msgstr[n]" -> its text."""
    spans: dict[str, tuple[int, int]] = field(default_factory=dict)
    flags: int | None = None
    """The line of its flags."""
    fuzzy: bool = False
    comments: list[str] = field(default_factory=list)
    previous: list[int] = field(default_factory=list)
    """The lines of its former message."""
    end: int = 0


class Catalogue(Document):
    """A catalogue of messages; each plural form is a segment."""

    format = "po"
    suffixes = (".po", ".pot")

    def __init__(
        self, lines: list[str], entries: list[_Entry], encoding: Encoding, name: str, target: str | None
    ) -> None:
        self._lines, self._entries, self._encoding, self._name = lines, entries, encoding, name
        self._tag = target
        header = next((one for one in entries if one.texts.get("msgid") == "" and "msgctxt" not in one.texts), None)
        self._header = header.texts.get("msgstr", "") if header else ""
        found = re.search(r"nplurals\s*=\s*(\d{1,2})", self._header)
        self._forms = min(int(found[1]), _MOST_FORMS) if found else None
        self._filled: dict[int, dict[str, str]] = {}
        self._drafts: dict[int, tuple[bool, list[str]]] = {}

    @classmethod
    def read(cls, data: bytes, name: str, options: DocumentOptions) -> Self:
        """Raises UsageError with the line of what is no PO."""
        charset = re.search(rb"charset=([\w.:-]+)", data[:20_000])
        declared = charset[1].decode() if charset and charset[1] != b"CHARSET" else None
        text, encoding = decoded(data, name, options.encoding or declared)
        lines = lines_of(text)
        return cls(lines, _entries(lines, name), encoding, name, options.target)

    @property
    def languages(self) -> tuple[str | None, str | None]:
        """The header's language is that of the translations."""
        found = re.search(r"^Language:\s*([\w@-]+)", self._header, re.MULTILINE)
        try:
            return None, check_tag(found[1].partition("@")[0].replace("_", "-")) if found else None
        except UsageError:
            return None, None

    @property
    def segments(self) -> Sequence[Segment]:
        """All messages but the header, in their order."""
        found, times = [], Counter(one.texts["msgid"] for one in self._entries)
        for number, entry in enumerate(self._entries):
            message = entry.texts["msgid"]
            if not message:
                continue
            context = " | ".join(part for part in (entry.texts.get("msgctxt", ""), *entry.comments) if part)
            for key in self._keys(entry):
                target = self._filled.get(number, {}).get(key, entry.texts.get(key, ""))
                fuzzy = self._draft(number, entry)
                state: State = "missing" if not target else "draft" if fuzzy else "confirmed"
                plural = entry.texts.get("msgid_plural")
                source = message if plural is None or (key == "msgstr[0]" and self._forms != 1) else plural
                several = plural is not None and key != "msgstr[0]" and (self._forms or 3) > 2
                ambiguous = several or times[message] > 1
                found.append(Segment(f"{number}:{key[6:]}", source, target, state, context, ambiguous=ambiguous))
        return found

    def fill(self, id: str, target: str, *, draft: bool, note: str = "") -> None:
        """A draft becomes fuzzy, its note a comment."""
        first, _, form = id.partition(":")
        number, key = int(first), f"msgstr{form}"
        known = 0 <= number < len(self._entries) and self._entries[number].texts["msgid"]
        if not known or key not in self._keys(self._entries[number]):
            raise KeyError(id)
        self._filled.setdefault(number, {})[key] = target
        was, notes = self._drafts.get(number, (False, []))
        self._drafts[number] = (was or draft, [*notes, *([note] if note else [])])

    def _draft(self, number: int, entry: _Entry) -> bool:
        """Whether a message is fuzzy: a form was filled with a draft, or was one and is not filled."""
        if number not in self._drafts:
            return entry.fuzzy
        left = any(entry.texts.get(key) and key not in self._filled[number] for key in self._keys(entry))
        return self._drafts[number][0] or (entry.fuzzy and left)

    def write(self) -> bytes:
        """As it was read, but for the entries that were filled in."""
        out: list[str] = []
        at = 0
        for number, entry in enumerate(self._entries):
            if self._filled and entry.texts["msgid"] == "" and "msgctxt" not in entry.texts:
                out += self._lines[at : entry.begin]
                out += [self._in_header(line) for line in self._lines[entry.begin : entry.end]]
                at = entry.end
            if number in self._filled:
                out += self._lines[at : entry.begin]
                out += self._rewritten(number, entry)
                at = entry.end
        out += self._lines[at:]
        return self._encoding.encode("".join(out), self._name)

    def _in_header(self, line: str) -> str:
        """A line of the header with what a template leaves open: the language and the encoding."""
        if self._tag and self.languages[1] is None:
            tag = self._tag.replace("-", "_")
            line = re.sub(r'"Language:\s*(?=\\n")', f'"Language: {tag}', line)
        return line.replace("charset=CHARSET", f"charset={self._encoding.name.upper()}")

    def _keys(self, entry: _Entry) -> list[str]:
        if "msgid_plural" not in entry.texts:
            return ["msgstr"]
        there = [key for key in entry.texts if key.startswith("msgstr[")]
        return sorted({*there, *(f"msgstr[{form}]" for form in range(self._forms or 0))}) or ["msgstr[0]", "msgstr[1]"]

    def _rewritten(self, number: int, entry: _Entry) -> list[str]:
        """The lines of an entry that was filled in."""
        end = "\r\n" if self._lines[0].endswith("\r\n") else "\n"
        draft, notes = self._draft(number, entry), self._drafts[number][1]
        keys = self._keys(entry)
        spans = [entry.spans[key] for key in keys if key in entry.spans]
        begin, stop = min(first for first, _ in spans), max(last for _, last in spans)
        first_keyword = min(first for first, _ in entry.spans.values())
        lines = [f"# {' '.join(note.split())}{end}" for note in notes]
        for place in range(entry.begin, begin):
            line = self._lines[place]
            if place == first_keyword and draft and entry.flags is None:
                lines.append(f"#, fuzzy{end}")
            if place == entry.flags and draft != entry.fuzzy:
                kept = [one.strip() for one in line.strip()[2:].split(",") if one.strip() not in ("", "fuzzy")]
                flags = ["fuzzy", *kept] if draft else kept
                line = f"#, {', '.join(flags)}{end}" if flags else ""
            if place in entry.previous and not draft:
                line = ""  # the former message of a translation that nobody has to look at any more
            lines.append(line)
        for key in keys:
            if self._differs(number, entry, key):
                text = self._filled[number].get(key, entry.texts.get(key, ""))
                lines += _written(key, text, end)
            else:
                lines += self._lines[slice(*entry.spans[key])]
        if stop == len(self._lines) and not self._lines[-1].endswith(("\n", "\r")):
            lines[-1] = lines[-1].rstrip("\r\n")
        return [*lines, *self._lines[stop : entry.end]]

    def _differs(self, number: int, entry: _Entry, key: str) -> bool:
        return key not in entry.spans or self._filled[number].get(key, entry.texts[key]) != entry.texts[key]


def _entries(lines: Sequence[str], name: str) -> list[_Entry]:
    found: list[_Entry] = []
    entry, key = _Entry(0), ""

    def close(at: int) -> None:
        nonlocal entry, key
        if "msgid" in entry.texts:
            if not any(one.startswith("msgstr") for one in entry.texts):
                raise UsageError(f"{name} line {at}: a message without msgstr: the file is cut off or broken")
            entry.end = at
            found.append(entry)
        elif entry.texts:
            raise UsageError(f"{name} line {at}: {next(iter(entry.texts))} without msgid")
        entry, key = _Entry(at), ""

    for at, line in enumerate(lines):
        text = line.strip()
        if not text:
            key = ""
            continue
        if text.startswith("#"):
            if any(one.startswith("msgstr") for one in entry.texts):
                close(at)
            if text.startswith("#~") and not entry.texts:
                entry, key = _Entry(at + 1), ""  # what was said before is said of the obsolete message
                continue
            if not entry.comments and entry.flags is None and not entry.previous and not entry.texts:
                entry.begin = at
            _comment(entry, text, at)
            continue
        keyword = _KEYWORD.match(text)
        if keyword is None:
            string = _STRING.match(text)
            if string is None or not key:
                raise UsageError(f"{name} line {at + 1}: this is no line of a PO file: {text[:60]}")
            entry.texts[key] += _unescaped(string[1])
            entry.spans[key] = (entry.spans[key][0], at + 1)
            continue
        word, form, quoted = keyword.groups()
        begins = (
            word == "msgctxt"
            or (word == "msgid" and "msgctxt" not in entry.texts)
            or (word == "msgid" and "msgid" in entry.texts)
        )
        if begins and entry.texts:
            close(at)
        key = f"{word}[{form}]" if form is not None else word
        string = _STRING.match(quoted)
        if string is None:
            raise UsageError(f"{name} line {at + 1}: the quotes of {key} do not match")
        if key in entry.texts:
            raise UsageError(f"{name} line {at + 1}: {key} twice in one message")
        if word.startswith("msgstr") and "msgid" not in entry.texts:
            raise UsageError(f"{name} line {at + 1}: msgstr without msgid")
        if word == "msgstr" and (form is None) == ("msgid_plural" in entry.texts):
            needed = "msgstr[0], as there is a msgid_plural" if form is None else "msgstr, as there is no msgid_plural"
            raise UsageError(f"{name} line {at + 1}: {key} in the place of {needed}")
        entry.texts[key], entry.spans[key] = _unescaped(string[1]), (at, at + 1)
    close(len(lines))
    if not found and any(line.strip() for line in lines):
        raise UsageError(f"{name}: it holds no message: it is no PO file")
    return found


def _comment(entry: _Entry, text: str, at: int) -> None:
    if text.startswith("#,"):
        entry.flags = at
        entry.fuzzy = "fuzzy" in [one.strip() for one in text[2:].split(",")]
    elif text.startswith("#|"):
        entry.previous.append(at)
    elif text.startswith("#."):
        entry.comments.append(text[2:].strip())


def _unescaped(text: str) -> str:
    def one(match: re.Match[str]) -> str:
        code = match[1]
        if code[0] in "01234567":
            return chr(int(code, 8))
        return chr(int(code[1:], 16)) if code[0] == "x" and len(code) > 1 else _ESCAPES.get(code, code)

    return re.sub(r"\\(x[0-9A-Fa-f]{1,2}|[0-7]{1,3}|.)", one, text)


def _written(key: str, text: str, end: str) -> list[str]:
    """The lines of a string: one, or one for each of its lines."""
    pieces = [_escaped(piece) for piece in re.findall(r"[^\n]*\n|[^\n]+", text)] or [""]
    if len(pieces) == 1:
        return [f'{key} "{pieces[0]}"{end}']
    return [f'{key} ""{end}', *(f'"{piece}"{end}' for piece in pieces)]


def _escaped(text: str) -> str:
    text = text.replace("\\", "\\\\").replace('"', '\\"')
    for letter, sign in _ESCAPES.items():
        text = text.replace(sign, f"\\{letter}")
    return text
