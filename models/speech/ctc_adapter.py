"""The files of a CTC model and of its adapters: reading, with all checks.

An adapter folder has `speech.json` with the letters, and one of three: `attention_adapter.safetensors` (each layer's
adapter and the head, by the names of MMS's own `adapter.<language>.safetensors`), a PEFT adapter with
`lm_head.safetensors` beside it, or `model.safetensors` after full fine-tuning.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from pydantic import BaseModel, ConfigDict, Field, ValidationError
from safetensors.torch import load_file
from torch import Tensor, nn
from transformers import Wav2Vec2ForCTC
from transformers.utils import logging

from kauli.models.adapters.kinds.attention_adapter import ADAPTER_LAYER, adapter_layers, new_adapter
from kauli.models.adapters.linear import read_deltas
from kauli.models.errors import KauliError, UsageError
from kauli.models.files import check_safetensors, read_json
from kauli.models.speech.task import LoadedRecogniserAdapter
from kauli.models.speech.vocabulary import Vocabulary

SETTINGS, ADAPTER, HEAD = "speech.json", "attention_adapter.safetensors", "lm_head.safetensors"
# What decides frames and widths: a fully fine-tuned model shares these with its base.
_SHAPE = ("conv_dim", "conv_kernel", "conv_stride", "feat_extract_norm", "hidden_size", "num_hidden_layers")


class Settings(BaseModel):
    """speech.json."""

    model_config = ConfigDict(frozen=True)

    languages: tuple[str, ...]
    vocabulary: tuple[str, ...] = Field(min_length=2, max_length=100_000)
    """The letters by their index in the head."""
    blank: int = Field(ge=0)
    space: str
    dim: int | None = Field(default=None, ge=1, le=8192)
    """The inner width of the attention adapters."""
    init_from: str | None = Field(default=None, alias="begins")
    """For a LoRA: the language whose adapter of the base it was trained on; None: the one that is built in."""

    @property
    def letters(self) -> Vocabulary:
        """The vocabulary with its blank."""
        return Vocabulary(self.vocabulary, self.blank, self.space)


@dataclass(frozen=True, eq=False)
class CtcHead:
    """The part of a model that belongs to one adapter or language: letters, head and attention adapters.

    V letters, W the width.
    """

    letters: Vocabulary
    weight: Tensor
    """(V, W)"""
    bias: Tensor
    """(V,)"""
    attention: tuple[nn.Module | None, ...]
    """Each layer's adapter."""
    lora: str | None = None
    """The key of its deltas of the linear layers."""


@dataclass(frozen=True, kw_only=True)
class LoadedCtcAdapter(LoadedRecogniserAdapter):
    """With the head for its letters."""

    head: CtcHead


def load_model(folder: Path, dtype: torch.dtype) -> Any:
    """A `Wav2Vec2ForCTC`; a bare encoder (XLS-R) gets an untrained head of zeros.

    Raises KauliError where weights are missing, UsageError for a model with a convolution after its encoder.
    """
    verbosity = logging.get_verbosity()
    logging.set_verbosity_error()  # type: ignore[no-untyped-call]  # it lists unused weights of pretraining
    try:
        # Its own masks and dropped layers are for pretraining, and drawn from a random state that no seed here sets
        found: Any = Wav2Vec2ForCTC.from_pretrained(
            folder, dtype=dtype, attn_implementation="sdpa", local_files_only=True, use_safetensors=True,
            mask_time_prob=0.0, mask_feature_prob=0.0, layerdrop=0.0, output_loading_info=True,
        )  # fmt: skip
    finally:
        logging.set_verbosity(verbosity)
    model, info = found
    missing = {str(name) for name in info["missing_keys"]}
    if others := sorted(missing - {"lm_head.weight", "lm_head.bias"}):
        raise KauliError(f"the model in {folder} is incomplete: {others[0]} is missing.")
    if model.config.add_adapter:
        raise UsageError(
            f"the model in {folder} has a convolution after its encoder (add_adapter), which kauli does not support: "
            "take a wav2vec2 without one."
        )
    if missing:
        nn.init.zeros_(model.lm_head.weight)
        nn.init.zeros_(model.lm_head.bias)
    return model


def built_in(model: Any, letters: Vocabulary | None) -> CtcHead:
    """A model's own head and attention adapters; without a vocabulary, a head that writes nothing."""
    attention = tuple(layer.adapter_layer for layer in adapter_layers(model))
    head = model.lm_head
    if letters is None:
        letters, weight = Vocabulary(), head.weight.new_zeros(2, head.in_features)
        return CtcHead(letters, weight, head.bias.new_zeros(2), attention)
    if len(letters.tokens) > head.out_features:
        raise KauliError(
            f"the base's vocabulary has {len(letters.tokens)} letters, its head {head.out_features}: they do not fit."
        )
    tokens = (*letters.tokens, *["<>"] * (head.out_features - len(letters.tokens)))
    return CtcHead(Vocabulary(tokens, letters.blank, letters.space), head.weight, head.bias, attention)


def read_adapter(
    folder: Path, base: Any, linears: dict[str, nn.Linear], own: Callable[[str | None], CtcHead]
) -> LoadedCtcAdapter:
    """An adapter folder for `base`, whose adaptable layers are `linears`; `own` gives its own adapter of a language.

    Raises KauliError where the folder does not fit.
    """
    if (folder / "model.safetensors").exists():
        settings = read_settings(folder)
        model = load_model(folder, base.dtype).to(base.device)
        for name in _SHAPE:  # a configuration from a file has lists, one in memory may have tuples
            mine, wanted = (
                list(value) if isinstance(value, tuple) else value
                for value in (getattr(one.config, name) for one in (model, base))
            )
            if mine != wanted:
                raise KauliError(f"the model in {folder} does not fit the base: {name} is {mine}, the base's {wanted}.")
        model.train(False).requires_grad_(False)
        return LoadedCtcAdapter(head=built_in(model, settings.letters), languages=settings.languages, model=model)
    if (folder / ADAPTER).exists():
        settings = read_settings(folder)
        head = read_adapter_layers(folder / ADAPTER, base, settings.letters, settings.dim)
        return LoadedCtcAdapter(head=head, languages=settings.languages)
    deltas = read_deltas(folder, linears, torch.float32)
    if not (folder / SETTINGS).is_file():  # plain PEFT, with the base's own letters
        return LoadedCtcAdapter(head=own(None), deltas=deltas)
    settings = read_settings(folder)
    head = read_head(folder / HEAD, base, settings.letters)
    head = replace(head, attention=own(settings.init_from).attention)
    return LoadedCtcAdapter(head=head, languages=settings.languages, deltas=deltas)


def read_settings(folder: Path) -> Settings:
    """speech.json of an adapter; KauliError where it is missing, damaged or of another architecture."""
    path = folder / SETTINGS
    if not path.is_file():
        raise KauliError(f"{path} is missing, which lists the adapter's letters: the adapter is incomplete.")
    try:
        settings = Settings.model_validate(read_json(path))
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(map(str, first["loc"])) or "the file"
        raise KauliError(f"{path} is not that of a CTC adapter: {where}: {first['msg']}.") from error
    if settings.blank >= len(settings.vocabulary):
        raise KauliError(f"{path} has its blank at {settings.blank}, beyond its {len(settings.vocabulary)} letters.")
    return settings


def read_head(path: Path, model: Any, letters: Vocabulary) -> CtcHead:
    """A head for `letters`, without adapters. Raises KauliError where it does not fit."""
    tensors = _read(path, _head_shapes(model, letters), model)
    return CtcHead(letters, tensors["lm_head.weight"], tensors["lm_head.bias"], (None,) * len(adapter_layers(model)))


def read_adapter_layers(path: Path, model: Any, letters: Vocabulary, dim: int | None = None) -> CtcHead:
    """Attention adapters and the head for `letters` from ours or an MMS's file; `dim` None: the model's own.

    Raises KauliError where a tensor is missing, left over, of another shape or not finite.
    """
    dim = dim or model.config.adapter_attn_dim
    if dim is None or not adapter_layers(model):
        raise KauliError(f"{path} holds attention adapters, for which the base has no place or states no width.")
    shapes = _head_shapes(model, letters)
    modules = [new_adapter(model, dim) for _ in adapter_layers(model)]
    names = [f"wav2vec2.encoder.layers.{layer}{ADAPTER_LAYER}" for layer in range(len(modules))]
    for name, module in zip(names, modules, strict=True):
        shapes |= {name + key: tuple(value.shape) for key, value in module.state_dict().items()}
    tensors = _read(path, shapes, model)
    for name, module in zip(names, modules, strict=True):
        module.load_state_dict({key: tensors[name + key] for key in module.state_dict()})
        module.train(False).requires_grad_(False)
    return CtcHead(letters, tensors["lm_head.weight"], tensors["lm_head.bias"], tuple(modules))


def new_head(own: CtcHead, letters: Vocabulary) -> nn.Linear:
    """A frozen head for `letters`, of which the first are `own`'s with its weights; the others have zeros."""
    head = nn.Linear(own.weight.shape[1], len(letters.tokens)).to(own.weight).requires_grad_(False)
    for value, known in ((head.weight, own.weight), (head.bias, own.bias)):
        value.zero_()
        value[: len(known)] = known
    return head


def _head_shapes(model: Any, letters: Vocabulary) -> dict[str, tuple[int, ...]]:
    count, width = len(letters.tokens), model.config.hidden_size
    return {"lm_head.weight": (count, width), "lm_head.bias": (count,)}


def _read(path: Path, wanted: Mapping[str, tuple[int, ...]], model: Any) -> dict[str, Tensor]:
    if not path.is_file():
        raise KauliError(f"{path} is missing: the adapter is incomplete.")
    found = check_safetensors(path)
    if found != wanted:
        name = min(name for name in found.keys() | wanted.keys() if found.get(name) != wanted.get(name))
        here, there = found.get(name, "missing"), wanted.get(name, "unknown")
        raise KauliError(f"{path} does not fit the base: {name} is {here}, the place for it {there}.")
    tensors = {name: value.to(model.dtype) for name, value in load_file(path, device=str(model.device)).items()}
    for name, value in tensors.items():
        if not value.isfinite().all():
            raise KauliError(f"{path} is damaged: {name} holds numbers that are not finite.")
    return tensors
