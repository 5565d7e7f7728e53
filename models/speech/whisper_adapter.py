"""The files of a Whisper adapter: reading, with all checks.

An adapter folder has a PEFT adapter or, after full fine-tuning, `model.safetensors`; in `speech.json` the languages
that it was trained on and the window that its clips are padded to, and in `languages.safetensors` the
embeddings of those languages that the base has no token for; language models are side files of
`kauli.models.speech.language_model`.
"""

import json
import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file
from torch import Tensor, nn
from transformers import WhisperForConditionalGeneration

from kauli.models.adapters.linear import read_deltas
from kauli.models.errors import KauliError
from kauli.models.files import read_json
from kauli.models.speech.language_model import LanguageModel, read_language_models
from kauli.models.speech.task import LoadedRecogniserAdapter

SETTINGS, LANGUAGES = "speech.json", "languages.safetensors"


@dataclass(frozen=True, kw_only=True)
class LoadedWhisperAdapter(LoadedRecogniserAdapter):
    """With the embeddings (W,) of its languages that the base has no token for."""

    language_embeddings: dict[str, Tensor]
    language_models: Mapping[str, LanguageModel]
    """Language -> what its transcripts are searched with."""
    window: float
    """Seconds that shorter clips are padded to; infinite for plain PEFT's, which learned with the whole window."""


def set_window(folder: Path, seconds: float) -> None:
    """Write the window into the folder of an adapter that was trained here."""
    settings = read_json(folder / SETTINGS) | {"window": seconds}
    (folder / SETTINGS).write_text(json.dumps(settings) + "\n", encoding="utf-8")


def load_model(folder: Path, dtype: torch.dtype) -> Any:
    """A `WhisperForConditionalGeneration`."""
    return WhisperForConditionalGeneration.from_pretrained(
        folder, dtype=dtype, attn_implementation="sdpa", local_files_only=True, use_safetensors=True
    )


def read_adapter(folder: Path, base: Any, linears: dict[str, nn.Linear], tokenizer: str) -> LoadedWhisperAdapter:
    """An adapter folder for the model `base`, with adaptable layers `linears`; KauliError where it does not fit.

    `tokenizer` is the SHA-256 of the base's tokens, which language models must be of.
    """
    embeddings: dict[str, Tensor] = {}
    settings = read_json(folder / SETTINGS) if (folder / SETTINGS).is_file() else {}
    languages = tuple(settings.get("languages", ()))
    window = float(settings.get("window", 0.0 if languages else math.inf))
    if not window >= 0:
        raise KauliError(f"the window in {folder / SETTINGS} is {window}: seconds of 0 or more are allowed.")
    if (folder / LANGUAGES).is_file():
        embeddings = load_file(folder / LANGUAGES, device=str(base.device))
        width = base.config.d_model
        for tag, value in embeddings.items():
            if value.shape != (width,) or not value.isfinite().all():
                raise KauliError(f"the embedding of '{tag}' in {folder} is not {width} finite numbers.")
    if (folder / "model.safetensors").exists():
        model = load_model(folder, base.dtype).to(base.device)
        model.train(False)
        deltas = None
    else:
        model, deltas = None, read_deltas(folder, linears, torch.float32)
    return LoadedWhisperAdapter(
        languages=languages, deltas=deltas, model=model, language_embeddings=embeddings, window=window,
        language_models=read_language_models(folder, tokenizer),
    )  # fmt: skip
