"""The task `align`: pictures and texts in one space, by an open_clip model with frozen towers and trained projections.

Applying it needs a base and adapters alone. An adapter is a folder with `projection.safetensors`, in open_clip's own
names (see `kauli.models.vision.projections`), and the card.
"""

import hashlib
import json
from collections.abc import Callable, Mapping, Sequence
from copy import deepcopy
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, Self

import torch
from PIL.Image import Image
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from torch.nn import functional

from kauli.models.bases.find import Base
from kauli.models.errors import KauliError, UsageError
from kauli.models.files import check_safetensors
from kauli.models.languages import nfc
from kauli.models.media.decode import decode_image
from kauli.models.vision.clip import ClipModel
from kauli.models.vision.projections import Projections

PROJECTION = "projection.safetensors"
PICTURES_AT_ONCE, TEXTS_AT_ONCE = 16, 64


@dataclass(frozen=True)
class Pair:
    """An encoded row: what the towers make of its picture (W_image,) and of its text (W_text,), and its group."""

    image: Tensor
    text: Tensor
    group: str


@dataclass(frozen=True)
class PairBatch:
    """Pairs as tensors: features (N, W_image) and (N, W_text), group numbers (N,) int64, alike for one group."""

    images: Tensor
    texts: Tensor
    groups: Tensor

    def to(self, device: torch.device | str) -> "PairBatch":
        """The same on another device."""
        return PairBatch(self.images.to(device), self.texts.to(device), self.groups.to(device))


class AlignTask:
    """An open_clip model whose adapters are projections. Rows have `image` (encoded bytes), `text` and `group`."""

    def __init__(self, base: Base, clip: ClipModel, device: str | torch.device, dtype: torch.dtype | None) -> None:
        self.base, self.device = base, torch.device(device)
        self._clip = clip
        own = Projections.take(clip.model)  # the towers alone are in the model from here on
        self._towers: Any = clip.model.to(device=self.device, dtype=dtype or torch.float32).requires_grad_(False).eval()
        self.model: nn.Module = deepcopy(own).to(self.device).eval()
        """The projections in training; the base's own until a method is attached."""
        self._bare = own.to(self.device).eval().requires_grad_(False)
        self._adapters: dict[str, Projections] = {}
        self.dim = clip.dim

    @classmethod
    def load(cls, base: Base, device: str | None = None, dtype: torch.dtype | None = None) -> Self:
        """The bare base on `device`, by default the GPU where there is one. Projections are float32 in any case."""
        return cls(
            base, ClipModel(Path(base.folder)), device or ("cuda" if torch.cuda.is_available() else "cpu"), dtype
        )

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
    def bare(self) -> Projections:
        """The base's own projections."""
        return self._bare

    @property
    def logit_scale(self) -> float:
        """What the cosines of the bare base are multiplied with before a softmax."""
        return float(self._bare.logit_scale.exp())

    def image_features(self, images: Sequence[Image]) -> Tensor:
        """(N, W) float32 on the CPU: decoded pictures before the projection; the frozen part."""
        parts = []
        for start in range(0, len(images), PICTURES_AT_ONCE):
            pixels = torch.stack([self._clip.preprocess(one) for one in images[start : start + PICTURES_AT_ONCE]])
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

    def project_images(self, features: Tensor, adapter: str | None = None) -> Tensor:
        """(N, dim) float32 on the CPU, of length 1: image features in the shared space."""
        return self._projected(self._projections(adapter).image, features)

    def project_texts(self, features: Tensor, adapter: str | None = None) -> Tensor:
        """(N, dim) float32 on the CPU, of length 1: text features in the shared space."""
        return self._projected(self._projections(adapter).text, features)

    def embed_images(self, images: Sequence[Image], adapter: str | None = None) -> Tensor:
        """(N, dim) float32 on the CPU, of length 1: decoded pictures (`media.decode_image`) in the shared space."""
        return self.project_images(self.image_features(images), adapter) if images else torch.zeros(0, self.dim)

    def embed_texts(self, texts: Sequence[str], adapter: str | None = None) -> Tensor:
        """(N, dim) float32 on the CPU, of length 1: texts in the shared space."""
        return self.project_texts(self.text_features(texts), adapter) if texts else torch.zeros(0, self.dim)

    def encode(self, rows: Sequence[Mapping[str, Any]], max_length: int | None = None) -> list[Pair]:
        """Features of each row's picture and text. Raises MediaError for a picture that can't be read."""
        images = self.image_features([decode_image(row["image"]) for row in rows])
        texts = self.text_features([row["text"] for row in rows])
        return [Pair(image, text, str(row["group"])) for image, text, row in zip(images, texts, rows, strict=True)]

    def collate(self, documents: Sequence[Pair]) -> PairBatch:
        """Encoded rows as one batch."""
        numbers = {group: number for number, group in enumerate(dict.fromkeys(one.group for one in documents))}
        return PairBatch(
            torch.stack([one.image for one in documents]),
            torch.stack([one.text for one in documents]),
            torch.tensor([numbers[one.group] for one in documents]),
        )

    def loss(self, batch: PairBatch) -> Tensor:
        """The mean contrastive loss over the batch's pairs, by the projections in training; see `pair_losses`."""
        batch = batch.to(self.device)
        losses = pair_losses(
            functional.normalize(self.model.image(batch.images), dim=-1),  # type: ignore[operator]
            functional.normalize(self.model.text(batch.texts), dim=-1),  # type: ignore[operator]
            batch.groups, self.model.logit_scale, self.model.logit_bias,  # type: ignore[arg-type]
        )  # fmt: skip
        return losses.mean()

    def add_adapter(self, key: str, folder: Path) -> None:
        """Load an adapter's projections; KauliError where they are damaged or do not fit the base."""
        path = folder / PROJECTION
        if not path.is_file():
            raise KauliError(f"{folder} holds no {PROJECTION}: it is no adapter of the task 'align'.")
        check_safetensors(path)
        self._adapters[key] = self._bare.with_tensors(load_file(path), str(path)).to(self.device).eval()

    def remove_adapter(self, key: str) -> None:
        """Forget an adapter; KeyError for one that is not loaded."""
        del self._adapters[key]

    def adapters(self) -> list[str]:
        """Keys of the loaded adapters."""
        return list(self._adapters)

    def start_from(self, folder: Path) -> None:
        """Give the projections in training the values of an adapter's."""
        self.add_adapter("start", folder)
        self.model = self._adapters.pop("start")

    def save(self, folder: Path) -> None:
        """Write the projections in training as an adapter."""
        folder.mkdir(parents=True, exist_ok=True)
        assert isinstance(self.model, Projections)
        save_file(self.model.tensors(), folder / PROJECTION)

    @property
    def _dtype(self) -> torch.dtype:
        dtype: torch.dtype = next(self._towers.parameters()).dtype
        return dtype

    def _projections(self, adapter: str | None) -> Projections:
        if adapter is None:
            return self._bare
        if adapter not in self._adapters:
            raise UsageError(f"the adapter '{adapter}' is not loaded: there are {', '.join(self._adapters) or 'none'}.")
        return self._adapters[adapter]

    def _projected(self, projection: nn.Module, features: Tensor) -> Tensor:
        with torch.inference_mode():
            found: Tensor = projection(features.to(self.device))
            return functional.normalize(found, dim=-1).cpu().clone()


def pair_losses(
    images: Tensor,
    texts: Tensor,
    groups: Tensor,
    scale: Tensor,
    bias: Tensor | None,
    gather: Callable[[Tensor], Tensor] | None = None,
    first: int = 0,
    smoothing: float = 0.0,
) -> Tensor:
    """The contrastive loss of each pair: (N,).

    Without a bias CLIP's (Radford et al. 2021, arXiv 2103.00020): the mean of two cross entropies, of the picture among
    all texts and of the text among all pictures. With one SigLIP's (Zhai et al. 2023, arXiv 2303.15343): the sum of the
    binary losses of the picture with every text. Two pairs of one group are never negatives of each other.

    Args:
        images: (N, dim) of length 1, this worker's.
        texts: (N, dim) of length 1, this worker's.
        groups: (M,) group numbers of the pairs of all workers; -1 is a pair that stands for nothing.
        scale: the logarithm of what cosines are multiplied with.
        bias: of the logits, for the sigmoid loss.
        gather: (N, dim) -> (M, dim), those of all workers, through which gradients flow; None with one worker.
        first: where this worker's pairs begin among the M.
        smoothing: for the softmax: the share of the target spread over all that are not masked.
    """
    all_images, all_texts = (gather(images), gather(texts)) if gather else (images, texts)
    count, every = len(images), len(all_images)
    mine = torch.arange(first, first + count, device=images.device)
    own = mine[:, None] == torch.arange(every, device=images.device)
    masked = ((groups[mine][:, None] == groups) | (groups < 0)) & ~own
    factor = scale.clamp(max=4.6052).exp()  # 100, as in CLIP
    to_texts, to_images = factor * images @ all_texts.T, factor * texts @ all_images.T
    if bias is not None:
        signs = torch.where(own, 1.0, -1.0)
        losses = -functional.logsigmoid(signs * (to_texts + bias)).masked_fill(masked, 0.0).sum(dim=1)
    else:
        both = [
            _cross_entropy(logits.masked_fill(masked, -1e4), mine, masked, smoothing)
            for logits in (to_texts, to_images)
        ]
        losses = (both[0] + both[1]) / 2
    return torch.where(groups[mine] < 0, torch.zeros_like(losses), losses)


def _cross_entropy(logits: Tensor, targets: Tensor, masked: Tensor, smoothing: float) -> Tensor:
    """(N,) with the target's share smoothed over what is not masked."""
    chances = functional.log_softmax(logits, dim=1)
    right = chances.gather(1, targets[:, None]).squeeze(1)
    if not smoothing:
        return -right
    spread = chances.masked_fill(masked, 0.0).sum(dim=1) / (~masked).sum(dim=1)
    return -(1 - smoothing) * right - smoothing * spread
