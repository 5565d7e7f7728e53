"""The task `align`: images and texts in one space, by an open_clip model with frozen towers and trained projections.

An adapter is a folder with `projection.safetensors`, in open_clip's own names (see `kauli.models.vision.projections`),
and the card. Training is in `kauli.models.vision.training`.
"""

import hashlib
import json
from collections.abc import Sequence
from functools import cached_property
from pathlib import Path
from typing import Any, Self

import torch
from PIL.Image import Image
from safetensors.torch import load_file
from torch import Tensor, nn
from torch.nn import functional

from kauli.models.bases.find import Base
from kauli.models.engine.precision import place
from kauli.models.errors import KauliError, UsageError
from kauli.models.files import check_safetensors
from kauli.models.languages import nfc
from kauli.models.vision.clip import ClipModel
from kauli.models.vision.projections import Projections

PROJECTION = "projection.safetensors"
IMAGES_AT_ONCE, TEXTS_AT_ONCE = 16, 64


class AlignedModel:
    """An open_clip model on one device, its projections taken out of it: what serving and training share."""

    def __init__(self, base: Base, clip: ClipModel, towers: Any, bare: Projections) -> None:
        self.base, self._clip, self._towers = base, clip, towers
        self.bare = bare
        """The base's own projections."""
        self.dim = clip.dim

    @classmethod
    def of(cls, base: Base, clip: ClipModel, device: torch.device, dtype: torch.dtype | None = None) -> Self:
        """Take the projections out of a loaded model, and move it; projections are float32 in any case."""
        own = Projections.take(clip.model)  # the towers alone are in the model from here on
        towers = clip.model.to(device=device, dtype=dtype or torch.float32).requires_grad_(False).eval()
        return cls(base, clip, towers, own.to(device).eval().requires_grad_(False))

    @classmethod
    def load(cls, base: Base, device: str | None = None, dtype: torch.dtype | None = None) -> Self:
        """The bare base on `device`, by default the GPU where there is one; its towers are float32 by default."""
        return cls.of(base, ClipModel(Path(base.folder)), place(device)[0], dtype)

    @property
    def device(self) -> torch.device:
        """Where the towers are."""
        device: torch.device = next(self._towers.parameters()).device
        return device

    @cached_property
    def sha256(self) -> str:
        """Of towers, tokenizer and preprocessing: what features depend on. Trained projections do not change it."""
        digest = hashlib.sha256(json.dumps([self._clip.preprocess_cfg, self._clip.vision_cfg], sort_keys=True).encode())
        tokens = self._clip.tokens(["Kauli ya 1: አማርኛ, беларуская"]).tolist()
        digest.update(json.dumps(tokens).encode())
        for name, value in sorted(self._towers.state_dict().items()):
            if not name.startswith("logit_"):
                digest.update(name.encode() + value.cpu().contiguous().float().numpy().tobytes())
        return digest.hexdigest()

    @property
    def logit_scale(self) -> float:
        """The factor of the bare base's cosines before a softmax."""
        return float(self.bare.logit_scale.exp())

    def image_features(self, images: Sequence[Image]) -> Tensor:
        """(N, W) float32 on the CPU: decoded images before the projection; the frozen part."""
        parts = []
        for start in range(0, len(images), IMAGES_AT_ONCE):
            pixels = torch.stack([self._clip.preprocess(one) for one in images[start : start + IMAGES_AT_ONCE]])
            with torch.inference_mode():
                parts.append(self._towers.visual(pixels.to(self.device, self._dtype)).float().cpu())
        return torch.cat(parts).clone()

    def text_features(self, texts: Sequence[str]) -> Tensor:
        """(N, W) float32 on the CPU: texts (NFC is made of them) before the projection; the frozen part."""
        cleaned = [nfc(text) for text in texts]
        # Texts of like length together, so that little is padded
        order = sorted(range(len(cleaned)), key=lambda place: len(cleaned[place].encode()))
        found: dict[int, Tensor] = {}
        for start in range(0, len(order), TEXTS_AT_ONCE):
            places = order[start : start + TEXTS_AT_ONCE]
            tokens = self._clip.tokens([cleaned[place] for place in places]).to(self.device)
            with torch.inference_mode():
                found |= dict(zip(places, self._towers.encode_text(tokens).float().cpu(), strict=True))
        return torch.stack([found[place] for place in range(len(cleaned))]).clone()

    def read_projections(self, folder: Path) -> Projections:
        """The projections in an adapter folder; KauliError where they are damaged or do not fit the base."""
        path = folder / PROJECTION
        if not path.is_file():
            raise KauliError(f"{folder} holds no {PROJECTION}: it is no adapter of the task 'align'.")
        check_safetensors(path)
        return self.bare.with_tensors(load_file(path), str(path)).to(self.device).eval()

    @property
    def _dtype(self) -> torch.dtype:
        dtype: torch.dtype = next(self._towers.parameters()).dtype
        return dtype


class AlignTask(AlignedModel):
    """Embeds images and texts, with any number of adapters."""

    def __init__(self, base: Base, clip: ClipModel, towers: Any, bare: Projections) -> None:
        super().__init__(base, clip, towers, bare)
        self._adapters: dict[str, Projections] = {}

    def project_images(self, features: Tensor, adapter: str | None = None) -> Tensor:
        """(N, dim) float32 on the CPU, of length 1: image features in the shared space."""
        return self._projected(self._projections(adapter).image, features)

    def project_texts(self, features: Tensor, adapter: str | None = None) -> Tensor:
        """(N, dim) float32 on the CPU, of length 1: text features in the shared space."""
        return self._projected(self._projections(adapter).text, features)

    def embed_images(self, images: Sequence[Image], adapter: str | None = None) -> Tensor:
        """(N, dim) float32 on the CPU, of length 1: decoded images (`media.decode_image`) in the shared space."""
        return self.project_images(self.image_features(images), adapter) if images else torch.zeros(0, self.dim)

    def embed_texts(self, texts: Sequence[str], adapter: str | None = None) -> Tensor:
        """(N, dim) float32 on the CPU, of length 1: texts in the shared space."""
        return self.project_texts(self.text_features(texts), adapter) if texts else torch.zeros(0, self.dim)

    def add_adapter(self, key: str, folder: Path) -> None:
        """Load an adapter's projections; KauliError where they are damaged or do not fit the base."""
        self._adapters[key] = self.read_projections(folder)

    def remove_adapter(self, key: str) -> None:
        """Forget an adapter; KeyError for one that is not loaded."""
        del self._adapters[key]

    def adapters(self) -> list[str]:
        """Keys of the loaded adapters."""
        return list(self._adapters)

    def _projections(self, adapter: str | None) -> Projections:
        if adapter is None:
            return self.bare
        if adapter not in self._adapters:
            raise UsageError(f"the adapter '{adapter}' is not loaded: there are {', '.join(self._adapters) or 'none'}.")
        return self._adapters[adapter]

    def _projected(self, projection: nn.Module, features: Tensor) -> Tensor:
        with torch.inference_mode():
            found: Tensor = projection(features.to(self.device))
            return functional.normalize(found, dim=-1).cpu().clone()
