"""Fusion: an encoder's features of images or audio as embeddings in a language model's prompt.

The encoder is frozen and its features are computed once; only a connector, a small network for each kind of media, is
trained between it and the language model (LLaVA, Liu et al. 2023, arXiv 2304.08485; ClipCap, Mokady et al.
2021, arXiv 2111.09734). Each place of the encoder's features becomes one place of the prompt.

Shape letters: F features, W the encoder's width, H the language model's.
"""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Self

import torch
from pydantic import Field, ValidationError
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from kauli.models.engine.packing import MediaFeatures
from kauli.models.errors import KauliError
from kauli.models.frozen import FrozenModel

WEIGHTS, SETTINGS = "connector.safetensors", "connector.json"


class PartSettings(FrozenModel):
    """One kind of media: which encoder makes its features, and their shape."""

    encoder: str
    """The name of the base whose tower it is."""
    sha256: str
    """What the tower and its preprocessing are (`sha256` of `ImageTower` or `AudioTower`)."""
    width: int = Field(ge=1)
    places: int = Field(ge=1)
    """Features of one image; of audio the number of learned place embeddings, the last of which the rest share."""
    grid: int = Field(default=0, ge=0)
    """Of images: the encoder's map is averaged to `grid` x `grid` features, behind the mean of all."""
    stack: int = Field(default=0, ge=0)
    """Of audio: the number of encoder frames that are concatenated to one feature."""
    inner: int = Field(ge=1)


class _Part(nn.Module):
    """Features of one kind: standardised, then a linear map and, beside it, a two-layer one that is zero at first."""

    mean: Tensor
    std: Tensor

    def __init__(self, settings: PartSettings, hidden: int) -> None:
        super().__init__()
        self.register_buffer("mean", torch.zeros(settings.width))
        self.register_buffer("std", torch.ones(settings.width))
        self.straight = nn.Linear(settings.width, hidden)
        self.up = nn.Linear(settings.width, settings.inner)
        self.down = nn.Linear(settings.inner, hidden)
        nn.init.zeros_(self.down.weight)
        nn.init.zeros_(self.down.bias)
        self.place = nn.Parameter(torch.zeros(settings.places, hidden))

    def forward(self, features: MediaFeatures) -> Tensor:
        x = (features.values - self.mean) / self.std
        # A clamp, not an error: features beyond the last place share it.
        place = self.place[features.places.clamp(max=len(self.place) - 1)]
        out: Tensor = self.straight(x) + self.down(nn.functional.gelu(self.up(x))) + place
        return out


class Connector(nn.Module):
    """Kinds of media -> embeddings (F, H) for a language model whose hidden size is H."""

    def __init__(self, parts: Mapping[str, PartSettings], hidden: int) -> None:
        super().__init__()
        self.settings, self.hidden = dict(parts), hidden
        self.parts = nn.ModuleDict({kind: _Part(settings, hidden) for kind, settings in parts.items()})

    def forward(self, kind: str, features: MediaFeatures) -> Tensor:
        """(F, H). Raises KeyError for a kind that this connector was not made for."""
        out: Tensor = self.parts[kind](features)
        return out

    @torch.no_grad()
    def initialise(self, kind: str, features: Tensor, targets: Tensor, penalty: float = 0.5) -> None:
        """Initialise the straight path of a part by ridge regression, instead of at random.

        Args:
            kind: the part.
            features: (N, W), one for each example, say the mean of its image.
            targets: (N, H): what each should become, the mean embedding of its caption's tokens.
            penalty: of the regression, in units of N: features are standardised, so 0.5 shrinks the weaker directions.
        """
        part = self.parts[kind]
        assert isinstance(part, _Part)
        part.mean.copy_(features.mean(0))
        part.std.copy_(features.std(0) + 1e-3)
        x, middle = (features - part.mean) / part.std, targets.mean(0)
        gram = x.T @ x + penalty * len(x) * torch.eye(x.shape[1], device=x.device)
        part.straight.weight.copy_(torch.linalg.solve(gram, x.T @ (targets - middle)).T)
        part.straight.bias.copy_(middle)

    def save(self, folder: Path) -> None:
        """Write `connector.safetensors` and `connector.json` into an adapter's folder."""
        folder.mkdir(parents=True, exist_ok=True)
        tensors = {name: value.detach().cpu().contiguous() for name, value in self.state_dict().items()}
        save_file(tensors, folder / WEIGHTS)
        parts = {kind: settings.model_dump() for kind, settings in self.settings.items()}
        text = json.dumps({"hidden": self.hidden, "parts": parts}, indent=2) + "\n"
        (folder / SETTINGS).write_text(text, encoding="utf-8")

    @classmethod
    def load(cls, folder: Path) -> Self | None:
        """The connector in an adapter's folder, None where there is none; KauliError where it is damaged."""
        if not (folder / WEIGHTS).exists() and not (folder / SETTINGS).exists():
            return None
        try:
            content: dict[str, Any] = json.loads((folder / SETTINGS).read_text(encoding="utf-8"))
            parts = {kind: PartSettings.model_validate(part) for kind, part in content["parts"].items()}
            connector = cls(parts, int(content["hidden"]))
            connector.load_state_dict(load_file(folder / WEIGHTS))
        except (OSError, ValueError, KeyError, TypeError, ValidationError, SafetensorError, RuntimeError) as error:
            raise KauliError(f"the connector in {folder} is damaged: {' '.join(str(error).split())[:300]}") from error
        if not all(value.isfinite().all() for value in connector.state_dict().values()):
            raise KauliError(f"the connector in {folder} is damaged: it holds numbers that are not finite")
        return connector.eval().requires_grad_(False)


class Fused(nn.Module):
    """A language model whose prompt embeddings come in part from a connector."""

    def __init__(self, lm: nn.Module, connector: Connector) -> None:
        super().__init__()
        self.lm = lm
        self.connector = connector

    def forward(self, input_ids: Tensor, media: Mapping[str, MediaFeatures] | None = None, **inputs: Any) -> Any:
        """As the language model's forward, for one row of tokens (1, T)."""
        lm: Any = self.lm
        embedded: Tensor = lm.get_input_embeddings()(input_ids)
        for kind, features in (media or {}).items():
            found = self.connector(kind, features).to(embedded.dtype)
            embedded = embedded.index_copy(1, features.positions, found[None])
        return lm(inputs_embeds=embedded, **inputs)
