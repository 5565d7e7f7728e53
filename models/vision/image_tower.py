"""The image tower of an open_clip model, frozen: images -> features for a connector, computed once an image."""

import hashlib
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Self

import torch
from PIL import Image
from torch import Tensor
from torch.nn import functional

from kauli.models.bases.find import Base
from kauli.models.engine.precision import place
from kauli.models.vision.clip import ClipModel, spatial


class ImageTower:
    """The image side of a base of the task `align`, without its projection."""

    def __init__(self, clip: ClipModel, name: str, device: torch.device | str) -> None:
        self.name = name
        self._clip = clip
        self._visual = clip.model.visual.to(device)
        self._device = device
        digest = hashlib.sha256(json.dumps([clip.vision_cfg, clip.preprocess_cfg], sort_keys=True).encode())
        for key, value in sorted(self._visual.state_dict().items()):
            if not key.startswith(("head.", "proj")):  # the projection may be trained anew, the features stay
                digest.update(key.encode() + value.cpu().contiguous().float().numpy().tobytes())
        self.sha256 = digest.hexdigest()
        """Of the tower's weights and the preprocessing: what its features depend on."""

    @classmethod
    def load(cls, base: Base, device: str | None = None) -> Self:
        """The tower of a base for `align`, on the GPU where there is one."""
        return cls(ClipModel(Path(base.folder)), base.name, place(device)[0])

    @property
    def width(self) -> int:
        """W, the size of a feature."""
        return int(self.features([Image.new("RGB", (32, 32))], 1).shape[2])

    @torch.inference_mode()
    def features(self, images: Sequence[Image.Image], grid: int) -> Tensor:
        """(N, 1 + grid * grid, W) float32: the mean of each image's map, then the map averaged to grid x grid."""
        pixels = torch.stack([self._clip.preprocess(image) for image in images]).to(self._device)
        places = spatial(self._visual, pixels)
        mean = places.mean(dim=1, keepdim=True)
        if not grid:
            return mean.float().cpu()
        side = round(places.shape[1] ** 0.5)
        square = places.mT.reshape(len(places), -1, side, side)
        return torch.cat([mean, functional.adaptive_avg_pool2d(square, grid).flatten(2).mT], dim=1).float().cpu()
