"""Where kauli keeps what it fetched, built and trained on this machine."""

import os
from pathlib import Path


def kauli_home() -> Path:
    """The folder of fetched packages, bases and data: `$KAULI_HOME`, by default `~/.cache/kauli`."""
    return Path(os.environ.get("KAULI_HOME") or "~/.cache/kauli").expanduser().absolute()


def default_storage() -> str:
    """The URI of adapters and runs when no `--storage` is given: `$KAULI_STORAGE`, by default `<home>/store`."""
    return os.environ.get("KAULI_STORAGE") or str(kauli_home() / "store")
