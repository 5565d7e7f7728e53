"""The files of an adapter of Whisper: what they hold, and whether it fits.

An adapter folder has a PEFT adapter or `model.safetensors`, every weight; in `speech.json` the languages that it was
trained on, and in `languages.safetensors` the embeddings of those that the base has no token for.
"""

import json
import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from peft import PeftModel
from peft.utils import load_peft_weights, set_peft_model_state_dict
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from transformers import WhisperForConditionalGeneration

from kauli.models.adapters.linear import read_deltas
from kauli.models.errors import KauliError
from kauli.models.files import read_json

SETTINGS, LANGUAGES = "speech.json", "languages.safetensors"


@dataclass(frozen=True)
class LoadedWhisperAdapter:
    """An adapter that was read."""

    weights: Any
    """Its terms by layer, or a fully fine-tuned model."""
    languages: dict[str, Tensor]
    """Embeddings (W,) of languages that the base has no token for."""
    speaks: tuple[str, ...]
    """The languages that it was trained on; empty for an adapter of plain PEFT, which heard the whole window."""


def load_model(folder: Path, dtype: torch.dtype) -> Any:
    """A `WhisperForConditionalGeneration`."""
    return WhisperForConditionalGeneration.from_pretrained(
        folder, dtype=dtype, attn_implementation="sdpa", local_files_only=True, use_safetensors=True
    )


def read_adapter(folder: Path, base: Any, linears: dict[str, nn.Linear]) -> LoadedWhisperAdapter:
    """An adapter folder for the model `base`, of which `linears` may be changed; KauliError where it doesn't fit."""
    speaks: tuple[str, ...] = ()
    languages: dict[str, Tensor] = {}
    if (folder / SETTINGS).is_file():
        speaks = tuple(read_json(folder / SETTINGS).get("languages", ()))
    if (folder / LANGUAGES).is_file():
        languages = load_file(folder / LANGUAGES, device=str(base.device))
        width = base.config.d_model
        for tag, value in languages.items():
            if value.shape != (width,) or not value.isfinite().all():
                raise KauliError(f"the embedding of '{tag}' in {folder} is not {width} finite numbers.")
    if (folder / "model.safetensors").exists():
        model = load_model(folder, base.dtype).to(base.device)
        model.train(False)
        return LoadedWhisperAdapter(model, languages, speaks)
    return LoadedWhisperAdapter(read_deltas(folder, linears, torch.float32), languages, speaks)


def begin_from(folder: Path, model: Any, languages: nn.ParameterDict) -> None:
    """Give the adapter in training the weights of an adapter folder; KauliError where its kind or shape is another."""
    weights = load_peft_weights(str(folder), device=str(model.device))
    try:
        result: Any = set_peft_model_state_dict(model, weights, adapter_name="default")
    except RuntimeError as error:
        raise KauliError(f"the adapter in {folder} does not fit the base: {error}") from error
    lost = [name for name in result.missing_keys if ".default." in name] + list(result.unexpected_keys)
    if lost:
        raise KauliError(f"the adapter in {folder} does not fit: {lost[0]} has no counterpart.")
    if (folder / LANGUAGES).is_file():
        for tag, value in load_file(folder / LANGUAGES).items():
            if tag in languages:
                languages[tag].data.copy_(value)


def write_adapter(folder: Path, model: Any, languages: nn.ParameterDict, speaks: Sequence[str]) -> None:
    """Write an adapter in training as a PEFT folder, or the whole model's weights after full fine-tuning."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / SETTINGS).write_text(json.dumps({"languages": list(speaks)}) + "\n", encoding="utf-8")
    if len(languages):
        save_file({tag: value.detach().cpu().contiguous() for tag, value in languages.items()}, folder / LANGUAGES)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # transformers on generation settings that stand in the configuration
        if isinstance(model, PeftModel):
            model.save_pretrained(str(folder), save_embedding_layers=False)
        else:
            model.save_pretrained(str(folder))
