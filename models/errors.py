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


def nearest(name: str, allowed: Iterable[str]) -> str:
    """A hint `" Did you mean 'x'?"` for a mistyped `name`, or an empty string when nothing is close."""
    close = get_close_matches(name, list(allowed), n=1, cutoff=0.5)
    return f" Did you mean '{close[0]}'?" if close else ""
