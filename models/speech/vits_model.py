"""`VitsModel` of transformers for speaking: exported voices, and rows of their own noise."""

import json
from collections.abc import Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from transformers import VitsConfig, VitsModel
from transformers.utils.logging import disable_progress_bar

from kauli.models.bases.piper_import import VOICE
from kauli.models.speech.vits_adapter import VoiceMixer

disable_progress_bar()  # type: ignore[no-untyped-call]  # of loading: it is over before it is read


class ResidualBlock(nn.Module):
    """HiFi-GAN's residual block of type 2 (Kong et al. 2020), which transformers lacks."""

    def __init__(self, channels: int, kernel_size: int, dilations: Sequence[int], slope: float) -> None:
        super().__init__()
        self._slope = slope
        self.convs = nn.ModuleList(
            nn.Conv1d(channels, channels, kernel_size, dilation=one, padding=one * (kernel_size - 1) // 2)
            for one in dilations
        )

    def forward(self, states: Tensor) -> Tensor:
        """(N, channels, T) -> the same."""
        for conv in self.convs:
            states = states + conv(nn.functional.leaky_relu(states, self._slope))
        return states


class ExportedVits(VitsModel):  # type: ignore[no-untyped-call]
    """A voice without what only training needs, its weight norms folded in: as an ONNX file of Piper has it."""

    def __init__(self, config: VitsConfig) -> None:
        super().__init__(config)
        self.posterior_encoder: Any = nn.Identity()
        duration: Any = self.duration_predictor
        duration.flows[1] = nn.Identity()  # transformers skips it in inference
        for name in ("post_conv_pre", "post_conv_proj", "post_conv_dds", "post_flows"):
            delattr(duration, name)
        if config.resblock_type == 2:
            self.decoder.resblocks = nn.ModuleList(
                ResidualBlock(
                    config.upsample_initial_channel // 2 ** (stage + 1), size, dilations, config.leaky_relu_slope
                )
                for stage in range(len(config.upsample_rates))
                for size, dilations in zip(config.resblock_kernel_sizes, config.resblock_dilation_sizes, strict=True)
            )
        fold_weight_norms(self)


@dataclass(frozen=True)
class Utterance:
    """What to speak: the symbols of one sentence."""

    tokens: Sequence[int]
    speed: float = 1.0
    seed: int = 0
    speaker: int = 0
    noise: float | None = None
    """Spread of the sound; None: the voice's own. The same of `duration_noise`."""
    duration_noise: float | None = None
    adapter: str | None = None
    """The key of its adapter."""


@dataclass(frozen=True)
class Latent:
    """A sentence before it becomes sound."""

    frames: Tensor
    """(width, F)."""
    durations: Tensor
    """(tokens,) frames of each symbol."""
    speaker: Tensor | None = None
    """(size, 1)."""


def read_vits(folder: Path, device: torch.device) -> VitsModel:
    """The model of a folder, in fp32: its noise is too fine for 16 bits."""
    config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    cls = ExportedVits if config.get("exported") else VitsModel
    model: Any = cls.from_pretrained(folder, dtype=torch.float32, local_files_only=True)
    model = model.to(device).eval()
    fold_weight_norms(model)
    found: VitsModel = model.requires_grad_(False)
    return found


def fold_weight_norms(model: nn.Module) -> None:
    """Replace each pair of direction and length by the weight that they give."""
    for module in model.modules():
        if nn.utils.parametrize.is_parametrized(module, "weight"):
            nn.utils.parametrize.remove_parametrizations(module, "weight")


def voice_facts(folder: Path) -> dict[str, Any]:
    """What `convert_piper` wrote beside the weights; empty for a model of transformers."""
    path = folder / VOICE
    found: dict[str, Any] = json.loads(path.read_text(encoding="utf-8")) if path.is_file() else {}
    return found


@torch.inference_mode()
def latents(model: VitsModel, utterances: Sequence[Utterance], mixer: VoiceMixer | None = None) -> list[Latent]:
    """Sentences in one batch; each comes out as it would alone, by its own noise and its own adapter in `mixer`.

    The steps are those of `VitsModel.forward` (Kim et al. 2021, section 2).
    """
    config, device = model.config, model.device
    lengths = [len(one.tokens) for one in utterances]
    tokens = torch.zeros(len(utterances), max(lengths), dtype=torch.long)
    for row, one in enumerate(utterances):
        tokens[row, : lengths[row]] = torch.tensor(one.tokens)
    there = (torch.arange(tokens.shape[1])[None] < torch.tensor(lengths)[:, None]).long()
    tokens, there = tokens.to(device), there.to(device)
    mask = there[..., None].float()
    draws = [torch.Generator().manual_seed(one.seed) for one in utterances]
    speakers = None
    if config.num_speakers > 1:
        numbers = torch.tensor([one.speaker for one in utterances], device=device)
        speakers = model.embed_speaker(numbers)[..., None]

    adapters = [one.adapter for one in utterances]
    with mixer.batch(adapters) if mixer is not None else nullcontext():
        encoded = model.text_encoder(tokens, mask, there if len(utterances) > 1 else None)
    states, mask = encoded.last_hidden_state.transpose(1, 2), mask.transpose(1, 2)
    noise = _noise(draws, 2, lengths, [_or(one.duration_noise, config.noise_scale_duration) for one in utterances])
    logs = _log_durations(model, states, mask, speakers, noise.to(device))
    speeds = torch.tensor([one.speed * config.speaking_rate for one in utterances], device=device)[:, None]
    durations = (torch.ceil(torch.exp(logs[:, 0]) / speeds) * there).long()
    for key in sorted({key for key in adapters if key is not None}):
        assert mixer is not None
        rows = torch.tensor([row for row, one in enumerate(adapters) if one == key], device=device)
        own = mixer[key].durations(states[rows].transpose(1, 2), mask[rows].transpose(1, 2))
        # It learned lengths as they were recorded: the base's own pace is no part of them
        durations[rows] = _whole(torch.exp(own) * config.speaking_rate / speeds[rows] * there[rows])
    durations[:, 0] += (durations.sum(1) == 0).long()  # a sound of no length can't be decoded
    counts = durations.sum(1).tolist()
    means = _spread(encoded.prior_means, durations, max(counts))
    deviations = torch.exp(_spread(encoded.prior_log_variances, durations, max(counts)))
    noise = _noise(draws, means.shape[1], counts, [_or(one.noise, config.noise_scale) for one in utterances])
    out_mask = (torch.arange(max(counts), device=device)[None] < torch.tensor(counts, device=device)[:, None])[:, None]
    found = model.flow(means + noise.to(device) * deviations, out_mask.float(), speakers, reverse=True)
    return [
        Latent(
            found[row, :, : counts[row]], durations[row, : lengths[row]], None if speakers is None else speakers[row]
        )
        for row in range(len(utterances))
    ]


@torch.inference_mode()
def sound(model: VitsModel, latent: Latent) -> Tensor:
    """The samples (n,) of a sentence.

    Sentences are decoded one by one: together they would be padded to the longest, and on a CPU that is slower.
    """
    speaker = None if latent.speaker is None else latent.speaker[None]
    samples: Tensor = model.decoder(latent.frames[None], speaker)[0, 0]
    return samples


def samples_per_frame(model: VitsModel) -> int:
    """Samples that a frame becomes."""
    count = 1
    for rate in model.config.upsample_rates:
        count *= rate
    return count


def _log_durations(model: VitsModel, states: Tensor, mask: Tensor, speakers: Tensor | None, noise: Tensor) -> Tensor:
    """(N, 1, T): the logarithm of each symbol's frames, by the predictor's flows backwards from the noise."""
    predictor: Any = model.duration_predictor
    if not model.config.use_stochastic_duration_prediction:
        logs: Tensor = predictor(states, mask, speakers)
        return logs
    states = predictor.conv_pre(states)
    if speakers is not None:
        states = states + predictor.cond(speakers)
    states = predictor.conv_proj(predictor.conv_dds(states, mask)) * mask
    for flow in (*reversed(predictor.flows[2:]), predictor.flows[0]):
        noise, _ = flow(torch.flip(noise, [1]), mask, global_conditioning=states, reverse=True)
    return noise[:, :1]


def _whole(frames: Tensor) -> Tensor:
    """(N, T) frames as whole numbers: each where its sum with those before it is rounded, so that none add up."""
    ends = torch.round(torch.cumsum(frames, 1)).long()
    return torch.diff(ends, dim=1, prepend=torch.zeros_like(ends[:, :1]))


def _spread(values: Tensor, durations: Tensor, total: int) -> Tensor:
    """(N, T, W) values of symbols -> (N, W, F): each for its duration, zeros after the last."""
    rows = []
    for row in range(len(values)):
        repeated = torch.repeat_interleave(values[row], durations[row], dim=0)
        rows.append(nn.functional.pad(repeated, (0, 0, 0, total - len(repeated))))
    return torch.stack(rows).transpose(1, 2)


def _noise(draws: Sequence[torch.Generator], width: int, lengths: Sequence[int], scales: Sequence[float]) -> Tensor:
    """(N, width, longest): each row's own, of its own length."""
    noise = torch.zeros(len(draws), width, max(lengths))
    for row, draw in enumerate(draws):
        noise[row, :, : lengths[row]] = scales[row] * torch.randn(lengths[row], width, generator=draw).T
    return noise


def _or(value: float | None, default: float) -> float:
    return default if value is None else value
