"""The files of a Whisper adapter: reading, with all checks.

An adapter folder has a PEFT adapter or, after full fine-tuning, `model.safetensors`; in `speech.json` the languages
that it was trained on, and in `languages.safetensors` the embeddings of those that the base has no token for.
"""

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
from kauli.models.speech.task import LoadedRecogniserAdapter

SETTINGS, LANGUAGES = "speech.json", "languages.safetensors"


@dataclass(frozen=True, kw_only=True)
class LoadedWhisperAdapter(LoadedRecogniserAdapter):
    """With the embeddings (W,) of its languages that the base has no token for."""

    language_embeddings: dict[str, Tensor]


def load_model(folder: Path, dtype: torch.dtype) -> Any:
    """A `WhisperForConditionalGeneration`."""
    return WhisperForConditionalGeneration.from_pretrained(
        folder, dtype=dtype, attn_implementation="sdpa", local_files_only=True, use_safetensors=True
    )


def read_adapter(folder: Path, base: Any, linears: dict[str, nn.Linear]) -> LoadedWhisperAdapter:
    """An adapter folder for the model `base`, with adaptable layers `linears`; KauliError where it does not fit."""
    languages: tuple[str, ...] = ()
    embeddings: dict[str, Tensor] = {}
    if (folder / SETTINGS).is_file():
        languages = tuple(read_json(folder / SETTINGS).get("languages", ()))
    if (folder / LANGUAGES).is_file():
        embeddings = load_file(folder / LANGUAGES, device=str(base.device))
        width = base.config.d_model
        for tag, value in embeddings.items():
            if value.shape != (width,) or not value.isfinite().all():
                raise KauliError(f"the embedding of '{tag}' in {folder} is not {width} finite numbers.")
    if (folder / "model.safetensors").exists():
        model = load_model(folder, base.dtype).to(base.device)
        model.train(False)
        return LoadedWhisperAdapter(languages=languages, model=model, language_embeddings=embeddings)
    deltas = read_deltas(folder, linears, torch.float32)
    return LoadedWhisperAdapter(languages=languages, deltas=deltas, language_embeddings=embeddings)
