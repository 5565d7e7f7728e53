"""wav2vec2 with a CTC head, over many clips at once: encoder, losses, best path, attention adapters by row.

The forward pass is transformers' own without its masks for training, whose random state no seed of a recipe sets;
`kauli.training.augment` has augmentations.

Shape letters: N clips, T frames of the longest, W width, V letters.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import groupby, pairwise
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.nn.utils.rnn import pad_sequence


def frame_count(config: Any, samples: int) -> int:
    """The frames of a clip of `samples` samples."""
    for kernel, stride in zip(config.conv_kernel, config.conv_stride, strict=True):
        samples = max(0, (samples - kernel) // stride + 1)
    return samples


def fewest_samples(config: Any) -> int:
    """The samples of one frame."""
    samples = 1
    for kernel, stride in reversed(list(zip(config.conv_kernel, config.conv_stride, strict=True))):
        samples = (samples - 1) * stride + kernel
    return samples


@dataclass(frozen=True)
class CtcBatch:
    """N clips and their transcripts."""

    waves: tuple[Tensor, ...]
    """N times (n_i,) float32."""
    letters: Tensor
    """(S,) int64: the letters of all transcripts, concatenated."""
    lengths: Tensor
    """(N,) int64: the letters of each clip."""

    def to(self, device: torch.device | str) -> "CtcBatch":
        """The same batch on another device."""
        waves = tuple(wave.to(device) for wave in self.waves)
        return CtcBatch(waves, self.letters.to(device), self.lengths.to(device))


def encode(model: Any, waves: Sequence[Tensor]) -> Tensor:
    """(N, T, W): the encoder's frames of waves (n_i,); those after a clip's own frames mean nothing."""
    inner = model.wav2vec2
    waves = [wave.to(inner.feature_projection.projection.weight.dtype) for wave in waves]
    if model.config.feat_extract_norm == "group":
        # This norm is taken over the whole time, so that the convolutions take each clip by itself
        found = [inner.feature_extractor(wave[None])[0].t() for wave in waves]
        features = pad_sequence(found, batch_first=True)
    else:
        features = inner.feature_extractor(pad_sequence(list(waves), batch_first=True)).transpose(1, 2)
    counts = torch.tensor([frame_count(model.config, len(wave)) for wave in waves], device=features.device)
    real = torch.arange(features.shape[1], device=features.device) < counts[:, None]
    hidden, _ = inner.feature_projection(features)
    out: Tensor = model.dropout(inner.encoder(hidden, attention_mask=real).last_hidden_state)
    return out


def losses(model: Any, batch: CtcBatch, blank: int) -> Tensor:
    """(N,): the negative log likelihood of each transcript in nats, as Graves et al. 2006 sum it over all paths.

    0, without a gradient, for a transcript that has no path: speech played faster may leave it too few frames.
    """
    logits = model.lm_head(encode(model, batch.waves))
    frames = torch.tensor([frame_count(model.config, len(wave)) for wave in batch.waves], device=logits.device)
    likely = logits.float().log_softmax(-1).transpose(0, 1)
    return functional.ctc_loss(
        likely, batch.letters, frames, batch.lengths, blank=blank, reduction="none", zero_infinity=True
    )


def bits(logits: Tensor, letters: Sequence[int], blank: int) -> float:
    """-log2 of a transcript's likelihood by logits (T, V); infinite where it has no path."""
    found = functional.ctc_loss(
        logits.double().log_softmax(-1), torch.tensor(letters, dtype=torch.long, device=logits.device),
        torch.tensor(len(logits)), torch.tensor(len(letters)), blank=blank, reduction="none",
    )  # fmt: skip
    return float(found) / math.log(2)


def frames_needed(letters: Sequence[int]) -> int:
    """The fewest frames that letters take: one each, and a blank between two equal ones."""
    return len(letters) + sum(one == other for one, other in pairwise(letters))


def best_path(logits: Tensor, blank: int) -> list[tuple[int, float]]:
    """The likeliest letter of each frame of logits (T, V), without repeats and blanks.

    Each has the highest natural log probability of its frames.
    """
    values, places = logits.float().log_softmax(-1).max(-1)
    frames = zip(places.tolist(), values.tolist(), strict=True)
    runs = [(place, max(value for _, value in run)) for place, run in groupby(frames, key=lambda frame: frame[0])]
    return [(place, value) for place, value in runs if place != blank]


class RowAdapters(nn.Module):
    """Takes the place of a layer's adapter, and applies to each row of a pass its own."""

    def __init__(self) -> None:
        super().__init__()
        self.runs: list[tuple[int, int, nn.Module | None]] = []
        """(start, end, the adapter of these rows); the runs cover all rows in their order."""

    def forward(self, hidden: Tensor) -> Tensor:
        """(N, T, W) -> the addend, of the same shape, or 0."""
        if all(module is None for _, _, module in self.runs):
            return hidden.new_zeros(())
        parts = [(hidden[start:end], module) for start, end, module in self.runs]
        return torch.cat([torch.zeros_like(part) if module is None else module(part) for part, module in parts])
