"""What must survive a translation: variables, tags, entities, ICU messages, accelerators, addresses.

They are found by their written form, whatever the format of the document: a text with a `%` that is no placeholder is
rare, a lost `%s` ends a program.
"""

from collections import Counter

import regex

_PRINTF = (
    r"%(?:\d+\$)?(?:\([\w.]+\))?[#+0\-]*(?:\d+|\*)?(?:\.(?:\d+|\*))?"
    r"(?:hh|h|ll|l|q|j|z|t|L)?(?:[dsuf@]|[ioxXeEFgGaAcrpn](?![\p{L}\p{M}]))"
)
_KINDS = {
    "code": r"`[^`\n]+`",
    "link": r"(?<=\])\([^()\s]+(?:\s\"[^\"]*\")?\)|(?<=\])\[[^\[\]\n]+\]",
    "tag": r"</?[A-Za-z][\w:.-]*(?:\s+[\w:.-]+(?:\s*=\s*"
    r"(?:\"[^\"]*\"|'[^']*'|[^\s\"'>]+))?)*\s*/?>",
    "entity": r"&(?:[A-Za-z][A-Za-z0-9]{1,30}|#\d{1,7}|#x[0-9A-Fa-f]{1,6});",
    "address": r"https?://[^\s<>\"')\]]+|(?<![\w.+-])[\w.+-]++@[\w-]+(?:\.[\w-]+)+",
    "named": r"\$\{[\w.]+\}|\{\{\s*[\w.]+\s*\}\}|%\{[\w.]+\}|%[A-Z][A-Z0-9_]{2,}%?|\$\([\w.]+\)|\$[A-Z][A-Z0-9_]+",
    "printf": _PRINTF,
    "numbered": r"%L?[1-9]\d?(?![\d.,%])",  # of Qt
    "brace": r"\{(?:\d+|[A-Za-z_][\w.\[\]]*)?(?:![rsa])?(?::[^{}]*)?\}"
    r"|\{\s*\w+\s*,[^{}]*\}|\{\s*\$[\w.-]+[^{}]*\}|\{\\[^{}]*\}|\{#[\w-]+\}",
}
_ANY = regex.compile("|".join(f"(?P<{kind}>{pattern})" for kind, pattern in _KINDS.items()))
_TAG = regex.compile(r"<(/?)([A-Za-z][\w:.-]*)[^<>]*?(/?)>")
_ICU = regex.compile(r"\{\s*(\w+)\s*,\s*(plural|select|selectordinal)\s*,")
_ACCELERATOR = regex.compile(r"(?<![\w&_~])([&_~])(?=\p{L})(?!\w+;)|(?<=\p{L})([_~]|&(?=\p{Ll}))(?=\p{L})")
_MARKED = regex.compile(r"([&_~])(?=[\p{L}\p{N}])")


def placeholders(text: str) -> Counter[str]:
    """The placeholders of a text and how often each occurs; of an ICU message its argument and kind."""
    found: Counter[str] = Counter()
    rest, at = "", 0
    for match in _ICU.finditer(text):
        if match.start() >= at:  # the branches' words are translated, and their number differs by language
            found[f"{{{match[1]}, {match[2]}}}"] += 1
            rest += text[at : match.start()] + " "
            at = _closing(text, match.start())
    for match in _ANY.finditer((rest + text[at:]).replace("%%", "")):
        found[match[0]] += 1
    return found


def without(text: str) -> str:
    """A text with a blank in the place of each placeholder."""
    return str(_ANY.sub(" ", text))


def _closing(text: str, at: int) -> int:
    """The end of the part in braces that begins at a place; that of the text where it never ends."""
    depth = 0
    for place in range(at, len(text)):
        depth += (text[place] == "{") - (text[place] == "}")
        if not depth:
            return place + 1
    return len(text)


def accelerator(text: str) -> str | None:
    """The sign that marks a menu's key: `&` in "&File", `_`, `~`; None where there is none."""
    plain = _ANY.sub("", text)
    found = _ACCELERATOR.findall(plain)
    signs = ["".join(one) for one in found]
    return signs[0] if len(signs) == 1 and " & " not in plain else None


def lost(source: str, target: str) -> list[str]:
    """What of a text does not survive in its translation, in words; empty where all does."""
    theirs, ours = placeholders(source), placeholders(target)
    faults = [f"{one} is missing" for one in (theirs - ours).elements()]
    faults += [f"{one} is not in the source" for one in (ours - theirs).elements()]
    if (sign := accelerator(source)) and len(_MARKED.findall(_ANY.sub("", target))) != 1:
        faults.append(f"the accelerator {sign} is missing")
    if source.endswith("\n") != target.endswith("\n"):
        faults.append("the line end at the end differs")
    if _nested(source) and not _nested(target):
        faults.append("its tags are not in order")
    if _icu_broken(source, target):
        faults.append("its braces do not match")
    return faults


def _nested(text: str) -> bool:
    """Whether each tag that begins an element has its end, in order."""
    open_ones = list[str]()
    for match in _TAG.finditer(text):
        if match[1] and (not open_ones or open_ones.pop() != match[2]):
            return False
        if not match[1] and not match[3]:
            open_ones.append(match[2])
    return not open_ones


def _icu_broken(source: str, target: str) -> bool:
    return bool(_ICU.search(source)) and target.count("{") != target.count("}")
