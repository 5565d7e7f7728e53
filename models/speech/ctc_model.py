"""wav2vec2 with a CTC head, over many clips at once: encoder, losses, best path, attention adapters by row.

The forward pass is transformers' own without its masks for training, whose random state no seed of a recipe sets;
`kauli.training.augment` has augmentations.

Shape letters: N clips, T frames of the longest, W width, V letters.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import groupby, pairwise
from types import SimpleNamespace
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.nn.utils.rnn import pad_sequence
from transformers import Wav2Vec2ForCTC
from transformers.models.wav2vec2.modeling_wav2vec2 import Wav2Vec2AttnAdapterLayer

from kauli.models.errors import UsageError

ADAPTER_LAYER = ".adapter_layer."


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


# Attention adapters (section 4.2 of Pratap et al. 2023, "Scaling speech technology to 1,000+ languages", 2305.13516)


def adapter_layers(model: Any) -> list[Any]:
    """The encoder's layers if they have a place for an adapter: only where the norm comes before attention."""
    return list(model.wav2vec2.encoder.layers) if model.config.do_stable_layer_norm else []


def new_adapter(model: Any, dim: int) -> nn.Module:
    """A layer's adapter that changes nothing yet: its second matrix is zero."""
    shape = SimpleNamespace(adapter_attn_dim=dim, hidden_size=model.config.hidden_size)
    module: Any = Wav2Vec2AttnAdapterLayer(shape)  # type: ignore[no-untyped-call]
    nn.init.normal_(module.linear_1.weight, std=model.config.initializer_range)
    for value in (module.linear_1.bias, module.linear_2.weight, module.linear_2.bias):
        nn.init.zeros_(value)
    out: nn.Module = module.to(model.device, model.dtype)
    return out


def adapter_parameters(model: nn.Module) -> dict[str, nn.Parameter]:
    """The weights that attention adapters train, by MMS's names: each layer's adapter, and the head."""
    return {
        name: value for name, value in model.named_parameters() if ADAPTER_LAYER in name or name.startswith("lm_head.")
    }


def attach_adapters(model: Any, dim: int) -> None:
    """Make attention adapters of `dim` and the head trainable, all else frozen; a base's own adapters are kept.

    Raises UsageError for any other model than a wav2vec2 with the norm before attention, and for another `dim` than
    the base's own.
    """
    if not isinstance(model, Wav2Vec2ForCTC) or not adapter_layers(model):
        kind = type(model).__name__
        more = " with the norm after attention" if isinstance(model, Wav2Vec2ForCTC) else ""
        raise UsageError(
            f"method attention_adapter: the base is a {kind}{more}, which has no place for attention adapters. Take a "
            "wav2vec2 of the kind of MMS or XLS-R for the task 'transcribe', or method: {kind: lora}."
        )
    model.requires_grad_(False)
    for layer in adapter_layers(model):
        if layer.adapter_layer is None:
            layer.adapter_layer = new_adapter(model, dim).train(model.training)
        elif (own := layer.adapter_layer.linear_1.out_features) != dim:
            raise UsageError(
                f"method.dim {dim}: the base's own attention adapters have {own}, so set method.dim={own}."
            )
    for value in adapter_parameters(model).values():
        value.requires_grad_(True)


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
