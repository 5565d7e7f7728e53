"""Training of the task `align`: the projections of an open_clip model, and their contrastive loss."""

from collections.abc import Callable
from copy import deepcopy
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import Tensor, nn
from torch.nn import functional

from kauli.models.adapters.kinds.base import AdapterKind
from kauli.models.bases.find import Base
from kauli.models.vision.align import PROJECTION, AlignedModel, AlignTask
from kauli.models.vision.clip import ClipModel
from kauli.models.vision.projections import Projections


class TrainableAlign(AlignedModel):
    """An open_clip model that learns new projections."""

    def __init__(self, base: Base, clip: ClipModel, towers: Any, bare: Projections) -> None:
        super().__init__(base, clip, towers, bare)
        self.model: Projections = deepcopy(bare).requires_grad_(True)
        """The projections in training; a copy of the base's own at first."""

    @property
    def trained(self) -> nn.Module:
        """The module that training computes with."""
        return self.model

    def attach(self, kind: AdapterKind) -> None:
        """Make the projections trainable."""
        self.model = kind.attach(self.model, self.base.reference)

    def start_from(self, folder: Path) -> None:
        """Give the projections in training the values of an adapter's; raises as `read_projections`."""
        self.model = self.read_projections(folder).requires_grad_(True)

    def save(self, folder: Path) -> None:
        """Write the projections in training as an adapter."""
        folder.mkdir(parents=True, exist_ok=True)
        save_file(self.model.tensors(), folder / PROJECTION)

    def served(self) -> AlignTask:
        """The base ready to embed, on the same weights: training leaves them alone."""
        return AlignTask(self.base, self._clip, self._towers, self.bare)


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

    Without a bias CLIP's (Radford et al. 2021, arXiv 2103.00020): the mean of two cross entropies, of the image among
    all texts and of the text among all images. With one SigLIP's (Zhai et al. 2023, arXiv 2303.15343): the sum of the
    binary losses of the image with every text. Two pairs of one group are never negatives of each other.

    Args:
        images: (N, dim) of length 1, this worker's.
        texts: (N, dim) of length 1, this worker's.
        groups: (M,) group numbers of the pairs of all workers; -1 marks padding.
        scale: the logarithm of the factor of the cosines.
        bias: of the logits, for the sigmoid loss.
        gather: (N, dim) -> (M, dim), those of all workers, through which gradients flow; None with one worker.
        first: the place of this worker's first pair among the M.
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
