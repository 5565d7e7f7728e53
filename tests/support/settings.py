"""Settings for workers that a test makes by itself."""

from pathlib import Path
from typing import Any

from kauli.serving.settings import ServeArgs


def worker_args(storage: Path | str, **settings: Any) -> ServeArgs:
    """Batches of one, so that any number of adapters is allowed; a task that is given has slots of its own."""
    return ServeArgs(storage=str(storage), **{"text": {"batch": 1}, "audio": {"batch": 1}, **settings})
