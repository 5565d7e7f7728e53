"""Which architecture a base of the task `transcribe` has."""

from importlib import import_module
from typing import Any

import torch

from kauli.models.bases.find import Base
from kauli.models.errors import UsageError
from kauli.models.files import read_json

ARCHITECTURES = {"whisper": "kauli.models.speech.whisper:WhisperTask", "wav2vec2": "kauli.models.speech.ctc:CtcTask"}
"""A configuration's `model_type` -> module and class, imported when it is asked for."""


class Recogniser:
    """A speech recogniser of either architecture: both have the same surface."""

    @classmethod
    def load(cls, base: Base, device: str | None = None, dtype: torch.dtype | None = None, **options: Any) -> Any:
        """The base as a `WhisperTask` or a `CtcTask`; `options` are their `load`'s. UsageError for any other model."""
        kind = read_json(base.folder / "config.json").get("model_type")
        if kind not in ARCHITECTURES:
            raise UsageError(
                f"'{base.name}' is a model of the kind '{kind}'; the task 'transcribe' takes "
                f"{', '.join(ARCHITECTURES)}."
            )
        module, _, attribute = ARCHITECTURES[kind].partition(":")
        return getattr(import_module(module), attribute).load(base, device=device, dtype=dtype, **options)
