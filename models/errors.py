"""The errors that a user may see; the command prints their message without a traceback."""

from collections.abc import Iterable
from difflib import get_close_matches


class KauliError(Exception):
    """Something failed: a missing source, a corrupt file, a full disk. Exit code 1."""

    exit_code = 1


class UsageError(KauliError):
    """The user asked for something that cannot be: a wrong name, key or value. Exit code 2."""

    exit_code = 2


class MediaError(UsageError):
    """Invalid bytes of an image or audio, and what to send instead."""


def nearest(name: str, allowed: Iterable[str], cutoff: float = 0.5) -> str:
    """A hint `" Did you mean 'x'?"` for a mistyped `name`, or an empty string when nothing is close."""
    close = get_close_matches(name, list(allowed), n=1, cutoff=cutoff)
    return f" Did you mean '{close[0]}'?" if close else ""


def whole(text: str, what: str) -> str:
    """`text`; UsageError, which names `what`, where it holds half of a surrogate pair.

    Python reads a byte of a command line or of a file name that is not UTF-8 as such a half; tokenizers refuse it.
    """
    try:
        text.encode()
    except UnicodeEncodeError as error:
        raise UsageError(f"{what} is not valid Unicode (character {error.start + 1}): give it in UTF-8") from None
    return text
