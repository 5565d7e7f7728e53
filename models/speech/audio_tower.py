"""The frozen encoder of a speech recogniser: audio clips -> features for a connector, computed once a clip."""

import hashlib
from collections.abc import Sequence
from typing import Any, Self

import torch
from torch import Tensor

from kauli.models.bases.find import Base
from kauli.models.errors import UsageError
from kauli.models.speech.task import Recogniser
from kauli.models.speech.whisper_model import frame_count

WINDOW = 2.0
"""Seconds: shorter clips are padded with silence. The encoder was made for 30, which take 15 times as long; the
connector is trained on what it gets."""


class AudioTower:
    """The encoder of a Whisper, without any adapter."""

    def __init__(self, task: Any) -> None:
        """`task` is a `Recogniser` that `encodes`."""
        self.task = task
        self.name = task.base.name
        # Not of the weights in memory, which have another precision on a GPU
        self.sha256 = hashlib.sha256(f"{task.base.sha256} {WINDOW}".encode()).hexdigest()
        """Of the base's files and of the padding: all that the features depend on."""

    @classmethod
    def load(cls, base: Base, device: str | None = None) -> Self:
        """The encoder of a base for `transcribe`, on the GPU where there is one; UsageError for a base without one."""
        task = Recogniser.load(base, device)
        if not task.encodes:
            raise UsageError(f"'{base.name}' has no encoder for a connector: use a Whisper such as whisper-base.")
        return cls(task)

    def width(self, stack: int) -> int:
        """The width of a feature of `stack` frames."""
        return int(self.task.model.config.d_model) * stack

    def features(self, clips: Sequence[Any], stack: int) -> list[Tensor]:
        """The features of each clip (n,) at 16 kHz, (F / stack, stack x W) float32 on the CPU: `stack` frames each.

        A clip is padded with silence to `WINDOW`; only its own frames are kept. Samples beyond the base's `seconds`
        are cut off.
        """
        spectrograms = [self.task.model_input(samples, WINDOW) for samples in clips]
        found = []
        for samples, mel, frames in zip(clips, spectrograms, self.task.frames(spectrograms), strict=True):
            count = max(1, min(frame_count(mel), -(-len(samples) // 320)))
            frames = frames[:count]
            frames = torch.nn.functional.pad(frames, (0, 0, 0, -count % stack))
            found.append(frames.view(-1, stack * frames.shape[1]))
        return found
