"""A voice adapter: how one language sounds in the voice of a VITS. Reading its folder, and mixing many in a batch.

It changes the text encoder by LoRA on linear layers and convolutions, gives rows of the symbol table to sounds that the
base was not trained on, and has a head of its own for durations: flow and decoder, and with them the voice, stay those
of the base. A folder holds a PEFT adapter, `voice.safetensors` (rows and head) and `speak.json`.

Shape letters: N rows of a batch, T symbols, W width.
"""

import json
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from peft.utils.other import get_pattern_key
from pydantic import BaseModel, ConfigDict, Field, ValidationError
from safetensors.torch import load_file
from torch import Tensor, nn

from kauli.models.adapters.folder import ADAPTER_CONFIG, ADAPTER_WEIGHTS
from kauli.models.errors import KauliError
from kauli.models.files import check_safetensors, read_json

SETTINGS, VOICE = "speak.json", "voice.safetensors"
ROWS, HEAD = "symbols", "duration."
"""Tensors of `VOICE`: the rows of the symbol table, and the prefix of the head's."""
TEXT_ENCODER = "text_encoder."
_PREFIX = "base_model.model."
Layer = nn.Linear | nn.Conv1d


class Settings(BaseModel):
    """speak.json."""

    model_config = ConfigDict(frozen=True)

    languages: tuple[str, ...] = Field(min_length=1)
    symbols: tuple[str, ...]
    """The sounds whose rows the adapter has, in the order of the rows."""
    noise: float = Field(ge=0, le=2)
    """Spread of the sound."""
    voice: str
    """Whose voice it was trained for, a voice of the base."""
    synthetic: float = Field(ge=0, le=1)
    """The share of its training clips that no person spoke."""
    consent: str | None = None
    """By whose leave its recordings were used; None: by the licences in its card."""


class DurationHead(nn.Module):
    """The mean duration of each symbol in frames, from the text encoder's states."""

    def __init__(self, width: int, kernel: int = 3) -> None:
        super().__init__()
        self.convs = nn.ModuleList(nn.Conv1d(width, width, kernel, padding=kernel // 2) for _ in range(2))
        self.norms = nn.ModuleList(nn.LayerNorm(width) for _ in range(2))
        self.out = nn.Linear(width, 1)

    def forward(self, states: Tensor, mask: Tensor) -> Tensor:
        """(N, T, W) states and (N, T, 1) mask -> (N, T) natural logarithms."""
        x = states * mask
        for conv, norm in zip(self.convs, self.norms, strict=True):
            x = norm(torch.relu(conv(x.transpose(1, 2)).transpose(1, 2))) * mask
        found: Tensor = self.out(x)[..., 0]
        return found


@dataclass(frozen=True)
class Delta:
    """What an adapter adds to a layer's output, B A x; both are (out, in) or, of a convolution, (out, in, kernel)."""

    A: Tensor
    B: Tensor


@dataclass(frozen=True, eq=False)
class VoiceAdapter:
    """The contents of an adapter folder."""

    settings: Settings
    deltas: Mapping[str, Delta]
    """Of the text encoder's layers, by name."""
    rows: Mapping[int, Tensor]
    """Number of a symbol -> its row (W,)."""
    durations: DurationHead


def layers(model: nn.Module) -> dict[str, Layer]:
    """The layers of a VITS that an adapter may change, by name: those of the text encoder."""
    return {
        name: one for name, one in model.named_modules()
        if name.startswith(TEXT_ENCODER) and isinstance(one, nn.Linear | nn.Conv1d)
    }  # fmt: skip


def read_adapter(
    folder: Path, model: Any, symbols: Mapping[str, int], known: Mapping[str, Layer]
) -> VoiceAdapter:  # fmt: skip
    """An adapter folder for a VITS whose symbols have these numbers. Raises KauliError where it does not fit.

    `known` are its `layers`, as they were before a `VoiceMixer` took them.
    """
    settings = read_settings(folder)
    width = model.config.hidden_size
    if unknown := sorted(set(settings.symbols) - symbols.keys()):
        raise KauliError(f"the adapter in {folder} does not fit the base, which has no symbol '{unknown[0]}'.")
    head = DurationHead(width)
    shapes = {ROWS: (len(settings.symbols), width)}
    shapes |= {HEAD + name: tuple(value.shape) for name, value in head.state_dict().items()}
    found = check_safetensors(folder / VOICE) if (folder / VOICE).is_file() else {}
    if found != shapes:
        name = min(name for name in found.keys() | shapes.keys() if found.get(name) != shapes.get(name))
        here, there = found.get(name, "missing"), shapes.get(name, "unknown")
        raise KauliError(f"{folder / VOICE} does not fit the base: {name} is {here}, the place for it {there}.")
    tensors = {name: _sound(value, name, folder) for name, value in load_file(folder / VOICE).items()}
    rows = tensors.pop(ROWS)
    head.load_state_dict({name.removeprefix(HEAD): value for name, value in tensors.items()})
    head = head.to(model.device).eval().requires_grad_(False)
    numbers = [symbols[one] for one in settings.symbols]
    deltas = {name: Delta(one.A.to(model.device), one.B.to(model.device))
              for name, one in read_deltas(folder, known).items()}  # fmt: skip
    return VoiceAdapter(settings, deltas, dict(zip(numbers, rows.to(model.device), strict=True)), head)


def read_settings(folder: Path) -> Settings:
    """speak.json; KauliError where it is missing or damaged."""
    path = folder / SETTINGS
    if not path.is_file():
        raise KauliError(f"{path} is missing, which lists the adapter's sounds: it is no adapter for a voice.")
    try:
        return Settings.model_validate(read_json(path))
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(map(str, first["loc"])) or "the file"
        raise KauliError(f"{path} is damaged: {where}: {first['msg']}.") from error


def write_settings(folder: Path, settings: Settings) -> None:
    """Write speak.json."""
    text = json.dumps(settings.model_dump(), ensure_ascii=False, indent=1)
    (folder / SETTINGS).write_text(text + "\n", encoding="utf-8")


def read_deltas(folder: Path, known: Mapping[str, Layer]) -> dict[str, Delta]:
    """The LoRA of a PEFT folder by the module's name, in fp32, its scaling in B. Raises KauliError for what is none."""
    config = read_json(folder / ADAPTER_CONFIG)
    if config.get("peft_type") != "LORA" or config.get("use_dora") or config.get("bias", "none") != "none":
        raise KauliError(f"{folder}: adapters of voices are LoRA, without DoRA and biases.")
    tensors: dict[str, dict[str, Tensor]] = {}
    for key, value in load_file(folder / ADAPTER_WEIGHTS).items():
        name, _, part = key.removeprefix(_PREFIX).rpartition(".lora_")
        if name not in known or part not in ("A.weight", "B.weight"):
            raise KauliError(f"the adapter in {folder} does not fit the base: tensor {key} has no counterpart.")
        tensors.setdefault(name, {})[part[0]] = _sound(value.float(), key, folder)
    ranks, alphas = config.get("rank_pattern") or {}, config.get("alpha_pattern") or {}
    found = {}
    for name, parts in tensors.items():
        rank = ranks.get(get_pattern_key(list(ranks), name), config["r"])
        alpha = alphas.get(get_pattern_key(list(alphas), name), config["lora_alpha"])
        weight, missing = known[name].weight, {"A", "B"} - parts.keys()
        narrow = weight.shape[2:] and (1,) * (weight.ndim - 2)
        wanted = {"A": (rank, *weight.shape[1:]), "B": (weight.shape[0], rank, *narrow)}
        wrong = next((part for part in parts if tuple(parts[part].shape) != wanted[part]), None)
        if missing or wrong:
            what = f"lora_{min(missing)} is missing" if missing else f"lora_{wrong} has another shape"
            raise KauliError(f"the adapter in {folder} does not fit the base: {name}: {what}.")
        scaling = alpha / rank**0.5 if config.get("use_rslora") else alpha / rank
        found[name] = Delta(parts["A"], parts["B"] * scaling)
    return found


def _sound(value: Tensor, name: str, folder: Path) -> Tensor:
    if not value.isfinite().all():
        raise KauliError(f"the adapter in {folder} is damaged: {name} holds numbers that are not finite.")
    return value


@dataclass
class _Selection:
    """The rows of the present batch that have an adapter, by its key."""

    rows: dict[str, Tensor] = field(default_factory=dict)


class VoiceMixer:
    """Adapters in one model: each row of a batch is encoded with its own, or with none."""

    def __init__(self, model: Any) -> None:
        """`model` is a `VitsModel`; its text encoder is changed."""
        self._selection = _Selection()
        self._adapters: dict[str, VoiceAdapter] = {}
        self._mixed: dict[str, _Mixed] = {}
        for name, layer in layers(model).items():
            parent, _, last = name.rpartition(".")
            self._mixed[name] = _Mixed(layer, self._selection)
            setattr(model.get_submodule(parent), last, self._mixed[name])
        self._table = _MixedTable(model.text_encoder.embed_tokens, self._selection)
        model.text_encoder.embed_tokens = self._table

    def __contains__(self, key: object) -> bool:
        return key in self._adapters

    def __getitem__(self, key: str) -> VoiceAdapter:
        return self._adapters[key]

    def keys(self) -> list[str]:
        """Of the adapters."""
        return list(self._adapters)

    def add(self, key: str, adapter: VoiceAdapter) -> None:
        """Take an adapter in."""
        self._adapters[key] = adapter
        for name, delta in adapter.deltas.items():
            self._mixed[name].deltas[key] = delta
        self._table.replaced[key] = self._table.with_rows(adapter.rows)

    def remove(self, key: str) -> None:
        """Leave an adapter out."""
        for name in self._adapters.pop(key).deltas:
            del self._mixed[name].deltas[key]
        del self._table.replaced[key]

    @contextmanager
    def batch(self, adapters: Sequence[str | None]) -> Iterator[None]:
        """Encode the next batch with these adapters, one for each row."""
        keys = {key for key in adapters if key is not None}
        self._selection.rows = {
            key: torch.tensor([at for at, one in enumerate(adapters) if one == key]) for key in sorted(keys)
        }
        try:
            yield
        finally:
            self._selection.rows = {}


class _Mixed(nn.Module):
    """A layer whose output has each row's own delta added."""

    def __init__(self, layer: Layer, selection: _Selection) -> None:
        super().__init__()
        self.layer, self.deltas = layer, dict[str, Delta]()
        self._selection = selection

    def forward(self, x: Tensor) -> Tensor:
        """(N, ...) -> (N, ...)."""
        found: Tensor = self.layer(x)
        for key, rows in self._selection.rows.items():
            if (delta := self.deltas.get(key)) is not None:
                found = found.index_add(0, rows.to(x.device), self._change(x[rows], delta))
        return found

    def _change(self, x: Tensor, delta: Delta) -> Tensor:
        if isinstance(self.layer, nn.Linear):
            return x @ delta.A.T @ delta.B.T
        layer = self.layer
        inner = nn.functional.conv1d(x, delta.A, None, layer.stride, layer.padding, layer.dilation)
        return nn.functional.conv1d(inner, delta.B)


class _MixedTable(nn.Module):
    """The symbol table, with rows of each adapter's own."""

    def __init__(self, table: nn.Embedding, selection: _Selection) -> None:
        super().__init__()
        self.table, self.replaced = table, dict[str, Tensor]()
        self._selection = selection

    def with_rows(self, rows: Mapping[int, Tensor]) -> Tensor:
        """The whole table with these rows in place of its own."""
        found = self.table.weight.detach().clone()
        for number, row in rows.items():
            found[number] = row
        return found

    def forward(self, numbers: Tensor) -> Tensor:
        """(N, T) -> (N, T, W)."""
        found: Tensor = self.table(numbers)
        for key, rows in self._selection.rows.items():
            rows = rows.to(numbers.device)
            found = found.index_copy(0, rows, nn.functional.embedding(numbers[rows], self.replaced[key]))
        return found
