"""A speech recogniser's encoder, frozen: recordings -> features for a connector, computed once a recording."""

import hashlib
from collections.abc import Sequence
from typing import Any, Self

import torch
from torch import Tensor

from kauli.models.bases.find import Base
from kauli.models.speech.whisper import WhisperTask
from kauli.models.speech.whisper_model import frame_count

WINDOW = 2.0
"""Seconds: shorter recordings are filled up with silence. The encoder was made for 30, which cost 15 times as much;
the connector learns from what it gets."""


class AudioTower:
    """The encoder of a Whisper, without any adapter."""

    def __init__(self, task: WhisperTask) -> None:
        self.task = task
        self.name = task.base.name
        # Of the base's files, not of the weights in memory: on a GPU these are of another precision
        self.sha256 = hashlib.sha256(f"{task.base.sha256} {WINDOW}".encode()).hexdigest()
        """Of the encoder's weights and of how it is given sound: what its features depend on."""

    @classmethod
    def load(cls, base: Base, device: str | None = None) -> Self:
        """The encoder of a base for `transcribe`, on the GPU where there is one."""
        return cls(WhisperTask.load(base, device))

    def width(self, stack: int) -> int:
        """The size of a feature of `stack` frames."""
        return int(self.task.model.config.d_model) * stack

    def features(self, recordings: Sequence[Any], stack: int) -> list[Tensor]:
        """Of each recording (n,) at 16 kHz (F / stack, stack x W) float32 on the CPU: `stack` frames side by side.

        A recording is heard with silence behind it, up to `WINDOW`; the frames of the recording itself are kept. One
        longer than the base hears at once is cut.
        """
        mels = [self.task.mel(samples, WINDOW) for samples in recordings]
        found = []
        for samples, mel, frames in zip(recordings, mels, self.task.frames(mels), strict=True):
            count = max(1, min(frame_count(mel), -(-len(samples) // 320)))
            frames = frames[:count]
            frames = torch.nn.functional.pad(frames, (0, 0, 0, -count % stack))
            found.append(frames.view(-1, stack * frames.shape[1]))
        return found
