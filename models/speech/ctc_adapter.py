"""The files of a CTC model and of its adapters: what they hold, and whether it fits.

An adapter folder has `speech.json` with the letters, and one of `attention_adapter.safetensors` (each layer's adapter
and the head, by the names of MMS's own `adapter.<language>.safetensors`), a PEFT folder with `lm_head.safetensors`
beside it, or `model.safetensors`, every weight.
"""

import json
import warnings
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Self

import torch
from peft import PeftModel
from peft.utils import load_peft_weights, set_peft_model_state_dict
from pydantic import BaseModel, ConfigDict, Field, ValidationError
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from transformers import Wav2Vec2ForCTC
from transformers.utils import logging

from kauli.models.adapters.linear import LinearDelta, read_deltas
from kauli.models.errors import KauliError, UsageError
from kauli.models.files import check_safetensors, read_json
from kauli.models.speech.ctc_model import ADAPTER_LAYER, adapter_layers, adapter_parameters, new_adapter
from kauli.models.speech.vocabulary import Vocabulary

SETTINGS, ADAPTER, HEAD = "speech.json", "attention_adapter.safetensors", "lm_head.safetensors"
# What decides frames and widths: a model with every weight trained has these of its base.
_SHAPE = ("conv_dim", "conv_kernel", "conv_stride", "feat_extract_norm", "hidden_size", "num_hidden_layers")


class Settings(BaseModel):
    """speech.json."""

    model_config = ConfigDict(frozen=True)

    languages: tuple[str, ...]
    vocabulary: tuple[str, ...] = Field(min_length=2, max_length=100_000)
    """The letters by their place in the head."""
    blank: int = Field(ge=0)
    space: str
    dim: int | None = Field(default=None, ge=1, le=8192)
    """The inner width of the attention adapters."""
    begins: str | None = None
    """For a LoRA: the language whose adapter of the base it goes on from; None: the one that is built in."""

    @classmethod
    def of(cls, languages: tuple[str, ...], letters: Vocabulary, dim: int | None, begins: str | None) -> Self:
        """The settings of an adapter."""
        return cls(
            languages=languages, vocabulary=letters.tokens, blank=letters.blank, space=letters.space, dim=dim,
            begins=begins,
        )  # fmt: skip

    @property
    def letters(self) -> Vocabulary:
        """The vocabulary with its blank."""
        return Vocabulary(self.vocabulary, self.blank, self.space)


@dataclass(frozen=True, eq=False)
class CtcHead:
    """What some rows of a pass have of their own; V letters, W the width."""

    letters: Vocabulary
    weight: Tensor
    """(V, W) of the head."""
    bias: Tensor
    """(V,)"""
    attention: tuple[nn.Module | None, ...]
    """Each layer's adapter."""
    lora: str | None = None
    """The key of the change of the linear layers."""


@dataclass(frozen=True)
class LoadedCtcAdapter:
    """An adapter that was read."""

    speaker: CtcHead
    languages: tuple[str, ...]
    """Those that it was trained on; empty for one of plain PEFT."""
    terms: dict[str, LinearDelta] | None = None
    """The change of the linear layers, for a LoRA."""
    model: Any = None
    """For full fine-tuning, the model."""


def load_model(folder: Path, dtype: torch.dtype) -> Any:
    """A `Wav2Vec2ForCTC`; a bare encoder (XLS-R) has a head of zeros, which is yet to be trained.

    Raises KauliError where weights are missing, UsageError for a model with a convolution behind its encoder.
    """
    verbosity = logging.get_verbosity()
    logging.set_verbosity_error()  # type: ignore[no-untyped-call]  # it lists the weights of pretraining that go unused
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
        raise KauliError(f"the model in {folder} is not whole: {others[0]} is missing.")
    if model.config.add_adapter:
        raise UsageError(
            f"the model in {folder} has a convolution behind its encoder (add_adapter), which kauli does not compute: "
            "take a wav2vec2 without one."
        )
    if missing:
        nn.init.zeros_(model.lm_head.weight)
        nn.init.zeros_(model.lm_head.bias)
    return model


def _check_shape(model: Any, base: Any, folder: Path) -> None:
    """Raise KauliError unless a model with every weight trained has its base's shape."""
    for name in _SHAPE:
        mine, wanted = (getattr(one.config, name) for one in (model, base))
        if (list(mine) if isinstance(mine, tuple) else mine) != (list(wanted) if isinstance(wanted, tuple) else wanted):
            raise KauliError(f"the model in {folder} does not fit the base: {name} is {mine}, the base's {wanted}.")


def built_in(model: Any, letters: Vocabulary | None) -> CtcHead:
    """What a model speaks by itself; without a vocabulary, nothing."""
    attention = tuple(layer.adapter_layer for layer in adapter_layers(model))
    head = model.lm_head
    if letters is None:
        letters, weight = Vocabulary(), head.weight.new_zeros(2, head.in_features)
        return CtcHead(letters, weight, head.bias.new_zeros(2), attention)
    if len(letters.tokens) > head.out_features:
        raise KauliError(
            f"the vocabulary has {len(letters.tokens)} letters, the model's head {head.out_features}: they don't fit."
        )
    tokens = (*letters.tokens, *["<>"] * (head.out_features - len(letters.tokens)))
    return CtcHead(Vocabulary(tokens, letters.blank, letters.space), head.weight, head.bias, attention)


def read_adapter(
    folder: Path, base: Any, linears: dict[str, nn.Linear], own: Callable[[str | None], CtcHead]
) -> LoadedCtcAdapter:
    """An adapter folder for `base`, of which `linears` may be changed and `own` are its own adapters by language.

    Raises KauliError where it doesn't fit.
    """
    if (folder / "model.safetensors").exists():
        settings = read_settings(folder)
        model = load_model(folder, base.dtype).to(base.device)
        _check_shape(model, base, folder)
        model.train(False).requires_grad_(False)
        return LoadedCtcAdapter(built_in(model, settings.letters), settings.languages, model=model)
    if (folder / ADAPTER).exists():
        settings = read_settings(folder)
        speaker = read_adapter_layers(folder / ADAPTER, base, settings.letters, settings.dim)
        return LoadedCtcAdapter(speaker, settings.languages)
    terms = read_deltas(folder, linears, torch.float32)
    if not (folder / SETTINGS).is_file():  # plain PEFT, with the base's own letters
        return LoadedCtcAdapter(own(None), (), terms)
    settings = read_settings(folder)
    head = read_head(folder / HEAD, base, settings.letters)
    return LoadedCtcAdapter(replace(head, attention=own(settings.begins).attention), settings.languages, terms)


def read_settings(folder: Path) -> Settings:
    """speech.json of an adapter; KauliError where it is missing, damaged or of another architecture."""
    path = folder / SETTINGS
    if not path.is_file():
        raise KauliError(f"{path} is missing, which says the adapter's letters: the adapter is not whole.")
    try:
        settings = Settings.model_validate(read_json(path))
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(map(str, first["loc"])) or "the whole"
        raise KauliError(f"{path} is not that of a CTC adapter: {where}: {first['msg']}.") from error
    if settings.blank >= len(settings.vocabulary):
        raise KauliError(f"{path} has its blank at {settings.blank}, beyond its {len(settings.vocabulary)} letters.")
    return settings


def read_head(path: Path, model: Any, letters: Vocabulary) -> CtcHead:
    """A head for `letters`, without adapters. Raises KauliError where it doesn't fit."""
    tensors = _read(path, _head_shapes(model, letters), model)
    return CtcHead(letters, tensors["lm_head.weight"], tensors["lm_head.bias"], (None,) * len(adapter_layers(model)))


def read_adapter_layers(path: Path, model: Any, letters: Vocabulary, dim: int | None = None) -> CtcHead:
    """Attention adapters and the head for `letters` from ours or an MMS's file; `dim` None: the model's own.

    Raises KauliError where a tensor is missing, left over, of another shape or not finite.
    """
    dim = dim or model.config.adapter_attn_dim
    if dim is None or not adapter_layers(model):
        raise KauliError(f"{path} holds attention adapters, for which the base has no place, or of no stated width.")
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
    """A head for `own`'s letters and others behind them: the former at its weights, the latter at zero; frozen."""
    head = nn.Linear(own.weight.shape[1], len(letters.tokens)).to(own.weight).requires_grad_(False)
    for value, known in ((head.weight, own.weight), (head.bias, own.bias)):
        value.zero_()
        value[: len(known)] = known
    return head


def begin_from(folder: Path, model: Any, bare: Any, letters: Vocabulary) -> None:
    """Give what is trained of `bare`, around which `model` may be PEFT's, the weights of an adapter folder.

    A letter that both know gets its weights; other letters of `letters` keep what they begin with. Raises KauliError
    where the folder's kind or shape is another.
    """
    settings = read_settings(folder)
    if isinstance(model, PeftModel):
        given = read_head(folder / HEAD, bare, settings.letters)
        weights = load_peft_weights(str(folder), device=str(bare.device))
        try:
            result: Any = set_peft_model_state_dict(model, weights, adapter_name="default")
        except RuntimeError as error:
            raise KauliError(f"the adapter in {folder} does not fit the base: {error}") from error
        lost = [name for name in result.missing_keys if ".default." in name] + list(result.unexpected_keys)
        if lost:
            raise KauliError(f"the adapter in {folder} does not fit: {lost[0]} has no counterpart.")
    else:
        dim = adapter_layers(bare)[0].adapter_layer.linear_1.out_features
        given = read_adapter_layers(folder / ADAPTER, bare, settings.letters, dim)
        for layer, module in zip(adapter_layers(bare), given.attention, strict=True):
            layer.adapter_layer.load_state_dict(module.state_dict())  # type: ignore[union-attr]
    with torch.no_grad():
        for place, token in enumerate(letters.tokens):
            if token in given.letters.tokens:
                other = given.letters.tokens.index(token)
                bare.lm_head.weight[place], bare.lm_head.bias[place] = given.weight[other], given.bias[other]


def write_weights(folder: Path, model: Any, bare: Any) -> int | None:
    """Write what is trained of `bare`, around which `model` may be PEFT's; the inner width of attention adapters."""
    folder.mkdir(parents=True, exist_ok=True)
    own = {name: value.detach().cpu().contiguous() for name, value in adapter_parameters(bare).items()}
    if isinstance(model, PeftModel):
        model.save_pretrained(str(folder), save_embedding_layers=False)
        save_file({name: value for name, value in own.items() if ADAPTER_LAYER not in name}, folder / HEAD)
    elif {name for name, value in bare.named_parameters() if value.requires_grad} <= own.keys():
        save_file(own, folder / ADAPTER)
        return int(adapter_layers(bare)[0].adapter_layer.linear_1.out_features)
    else:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # transformers on settings that stand in the configuration
            model.save_pretrained(str(folder))
    return None


def write_settings(folder: Path, settings: Settings) -> None:
    """Write speech.json."""
    content = json.dumps(settings.model_dump(mode="json"), ensure_ascii=False, indent=1)
    (folder / SETTINGS).write_text(content + "\n", encoding="utf-8")


def _head_shapes(model: Any, letters: Vocabulary) -> dict[str, tuple[int, ...]]:
    count, width = len(letters.tokens), model.config.hidden_size
    return {"lm_head.weight": (count, width), "lm_head.bias": (count,)}


def _read(path: Path, wanted: Mapping[str, tuple[int, ...]], model: Any) -> dict[str, Tensor]:
    if not path.is_file():
        raise KauliError(f"{path} is missing: the adapter is not whole.")
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
