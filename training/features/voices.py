"""Recorded clips as the latent frames of a voice before its flow: computed once for each clip, voice and encoder."""

import hashlib
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from kauli.models.bases.find import find_base
from kauli.models.media.decode import RATE
from kauli.models.speech.posterior import WEIGHTS, Posterior, at_frames, encoder_states
from kauli.models.speech.task import Recogniser
from kauli.training.features.cache import cached_features
from kauli.training.posterior import frame_rate, leveled

VIEWS = 3
"""Draws from the posterior of each clip."""
TEMPERATURE = 0.7
"""Spread of those draws, of the posterior's own."""
_EDGE = 0.05  # seconds of silence that are left before and after the speech
_SPEECH = 0.03  # of the loudest 25 ms: what is louder is speech
_BATCH = 16


def trimmed(samples: Any) -> Any:
    """Samples (n,) at 16 kHz without the silence before and after the speech, at a common level."""
    samples = np.asarray(samples, np.float32)
    width = RATE // 40
    loud = np.convolve(np.abs(samples), np.ones(width, np.float32) / width, "same")
    speech = np.flatnonzero(loud > max(_SPEECH * loud.max(initial=0.0), 1e-4))
    if not len(speech):
        return samples
    edge = round(_EDGE * RATE)
    return leveled(samples[max(0, speech[0] - edge) : speech[-1] + edge + 1])


class Listener:
    """A Whisper and a posterior encoder: clips as the latent frames of a voice."""

    def __init__(self, model: Any, folder: Path) -> None:
        """`model` is the voice's `VitsModel`, `folder` that of its posterior encoder."""
        self.model, self._folder = model, folder
        self._network = Posterior.read(folder, model.device)
        self._whisper: Any = None

    @property
    def sha256(self) -> str:
        """Of all that the frames depend on beside clip and voice."""
        content = (self._folder / WEIGHTS).read_bytes()
        return hashlib.sha256(content + f"{VIEWS} {TEMPERATURE} {_EDGE} {_SPEECH}".encode()).hexdigest()

    @torch.inference_mode()
    def latents(self, clips: Sequence[Any]) -> list[tuple[Tensor, Tensor]]:
        """Mean and logarithm of the deviation of the frames of each trimmed clip, (W, F) both."""
        if self._whisper is None:  # not where all frames are in the cache
            self._whisper = Recogniser.load(find_base(self._network.hearing, task="transcribe"))
        found = []
        for clip, states in zip(clips, encoder_states(self._whisper, clips), strict=True):
            frames = max(1, int(len(clip) / RATE * frame_rate(self.model)))
            means, logs = self._network(at_frames(states, frames, frame_rate(self.model))[None].to(self.model.device))
            found.append((means[0], logs[0]))
        return found

    @torch.inference_mode()
    def drawn(self, clips: Sequence[Any], seeds: Sequence[int]) -> list[Tensor]:
        """(F, VIEWS x W): draws of each clip's frames, before the flow."""
        found = []
        for (means, logs), seed in zip(self.latents(clips), seeds, strict=True):
            noise = torch.Generator().manual_seed(seed)
            views = [means + TEMPERATURE * torch.exp(logs) * torch.randn(means.shape, generator=noise).to(means)
                     for _ in range(VIEWS)]  # fmt: skip
            mask = torch.ones(VIEWS, 1, means.shape[1], device=means.device)
            found.append(self.model.flow(torch.stack(views), mask, None).flatten(0, 1).T.cpu())
        return found


def voice_frames(listener: Listener, voice: str, rows: Sequence[Any]) -> dict[str, Tensor]:
    """`audio_key` of each row -> (VIEWS, F, W) of its clip, from the cache where they are there.

    `voice` is the hash of the voice's base.
    """
    samples = {row["audio_key"]: row["samples"] for row in rows}

    def encode(keys: list[str]) -> list[Tensor]:
        clips = [trimmed(np.asarray(samples[key])) for key in keys]
        return listener.drawn(clips, [int(key[:12], 16) for key in keys])

    found = cached_features("voices", f"{voice} {listener.sha256}", list(samples), encode, _BATCH)
    return {key: one.view(len(one), VIEWS, -1).transpose(0, 1) for key, one in found.items()}
