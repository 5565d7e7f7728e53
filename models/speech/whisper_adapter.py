"""The files of a Whisper adapter: reading with all checks, writing.

An adapter folder has a PEFT adapter or, after full fine-tuning, `model.safetensors`; in `speech.json` the languages
that it was trained on, and in `languages.safetensors` the embeddings of those that the base has no token for.
"""

import json
import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from peft import PeftModel
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from transformers import WhisperForConditionalGeneration

from kauli.models.adapters.linear import read_deltas
from kauli.models.adapters.peft_weights import read_peft_weights
from kauli.models.errors import KauliError
from kauli.models.files import read_json
from kauli.models.speech.task import LoadedAdapter

SETTINGS, LANGUAGES = "speech.json", "languages.safetensors"


@dataclass(frozen=True, kw_only=True)
class LoadedWhisperAdapter(LoadedAdapter):
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


def start_from(folder: Path, model: nn.Module, embeddings: nn.ParameterDict, base: str) -> None:
    """Give the adapter in training the weights of an adapter folder; KauliError where kind or shape differ."""
    read_peft_weights(model, folder, base)
    if (folder / LANGUAGES).is_file():
        for tag, value in load_file(folder / LANGUAGES).items():
            if tag in embeddings:
                embeddings[tag].data.copy_(value)


def write_adapter(folder: Path, model: Any, embeddings: nn.ParameterDict, languages: Sequence[str]) -> None:
    """Write an adapter in training as a PEFT folder, or the whole model's weights after full fine-tuning."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / SETTINGS).write_text(json.dumps({"languages": list(languages)}) + "\n", encoding="utf-8")
    if len(embeddings):
        save_file({tag: value.detach().cpu().contiguous() for tag, value in embeddings.items()}, folder / LANGUAGES)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # transformers warns of generation settings in the configuration
        if isinstance(model, PeftModel):
            model.save_pretrained(str(folder), save_embedding_layers=False)
        else:
            model.save_pretrained(str(folder))
