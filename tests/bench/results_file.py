"""The sections of RESULTS.md that benchmarks write."""

import re
from pathlib import Path

from kauli.models.errors import UsageError
from kauli.models.files import write_atomically


def update_section(path: Path, name: str, markdown: str) -> None:
    """Replace what is between `<!-- begin:NAME -->` and `<!-- end:NAME -->` in a file, or add both at its end.

    Raises:
        UsageError: the name has other than letters, digits, dots and dashes, or a marker lacks its partner.
    """
    if not re.fullmatch(r"[\w.-]+", name):
        raise UsageError(f"'{name}' is no name of a section: letters, digits, '.', '_' and '-' are allowed.")
    begin, end = f"<!-- begin:{name} -->", f"<!-- end:{name} -->"
    text = path.read_text(encoding="utf-8") if path.exists() else ""
    section = f"{begin}\n{markdown.strip()}\n{end}"
    start, stop = text.find(begin), text.find(end)
    if start < 0 and stop < 0:
        text = f"{text.rstrip()}\n\n{section}\n".lstrip()
    elif 0 <= start < stop:
        text = text[:start] + section + text[stop + len(end) :]
    else:
        raise UsageError(f"{path}: the section '{name}' has only one of its markers, or they are out of order.")
    write_atomically(path, text.encode())
