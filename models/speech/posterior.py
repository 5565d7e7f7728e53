"""Recorded speech of any reader as the latent frames that a VITS voice would have: what a voice adapter learns from.

A voice of Piper comes without its posterior encoder. In its place a network reads the states of a Whisper encoder,
which say little about the speaker, and gives the mean and the spread of each latent frame, as if the voice of the base
had read the text (recognition as the content encoder of a voice conversion: Sun et al. 2016, "Phonetic posteriorgrams
for many-to-one voice conversion"). It is taught by the base's own speech (`kauli.training.posterior`).

Shape letters: F latent frames of a clip, W their width, S the width of the states.
"""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from kauli.models.errors import KauliError
from kauli.models.files import read_json
from kauli.models.media.decode import RATE
from kauli.models.speech.whisper_model import FRAMES_PER_SECOND, encode, frame_count

WEIGHTS, SETTINGS = "posterior.safetensors", "posterior.json"
WINDOW = 2.0
"""Seconds to which shorter clips are padded with silence for the encoder, which was made for 30."""
_DILATIONS = (1, 2, 4, 1, 2, 4, 1, 1)


class Posterior(nn.Module):
    """Encoder states at the rate of the latent frames -> their mean and the logarithm of their deviation."""

    mean: Tensor
    deviation: Tensor

    def __init__(self, states: int, frames: int, width: int, hearing: str) -> None:
        """`states` is S, `frames` is W, `width` that of the layers inside: gated convolutions, as in WaveNet.

        `hearing` names the base whose encoder gives the states.
        """
        super().__init__()
        self.hearing = hearing
        self.settings = {"states": states, "frames": frames, "width": width, "hearing": hearing}
        self.register_buffer("mean", torch.zeros(states, 1))
        self.register_buffer("deviation", torch.ones(states, 1))
        self.first = nn.Conv1d(states, width, 1)
        self.norms = nn.ModuleList(nn.GroupNorm(1, width) for _ in _DILATIONS)
        self.gates = nn.ModuleList(nn.Conv1d(width, 2 * width, 3, padding=one, dilation=one) for one in _DILATIONS)
        self.outs = nn.ModuleList(nn.Conv1d(width, width, 1) for _ in _DILATIONS)
        self.last = nn.Conv1d(width, 2 * frames, 1)

    def forward(self, states: Tensor) -> tuple[Tensor, Tensor]:
        """(N, S, F) -> twice (N, W, F)."""
        x = self.first((states - self.mean) / self.deviation)
        for norm, gate, out in zip(self.norms, self.gates, self.outs, strict=True):
            value, opened = gate(norm(x)).chunk(2, 1)
            x = x + out(torch.tanh(value) * torch.sigmoid(opened))
        means, logs = self.last(x).chunk(2, 1)
        return means, logs

    def save(self, folder: Path) -> None:
        """Write weights and sizes."""
        save_file({name: value.contiguous() for name, value in self.state_dict().items()}, folder / WEIGHTS)
        (folder / SETTINGS).write_text(json.dumps(self.settings) + "\n", encoding="utf-8")

    @classmethod
    def read(cls, folder: Path, device: torch.device) -> "Posterior":
        """What `save` wrote, frozen. Raises KauliError where it is damaged."""
        try:
            found = cls(**read_json(folder / SETTINGS))
            found.load_state_dict(load_file(folder / WEIGHTS))
        except (OSError, TypeError, RuntimeError) as error:
            raise KauliError(f"the posterior encoder in {folder} is damaged: {error}.") from None
        return found.to(device).eval().requires_grad_(False)


@torch.inference_mode()
def encoder_states(whisper: Any, clips: Sequence[Any]) -> list[Tensor]:
    """The states (50 a second, S) of each clip (n,) at 16 kHz, from every second layer of a Whisper's encoder.

    `whisper` is the served task; S is the sum of those layers' widths. fp32 on the CPU.
    """
    encoder = whisper.model.get_encoder()
    inputs = [whisper.model_input(clip, WINDOW) for clip in clips]
    layers: list[Tensor] = []
    last = encode(encoder, [one.to(whisper.device) for one in inputs], layers)
    count = len(layers)
    kept = [layers[at] for at in range(count - 3, 0, -2)][::-1] or [layers[0]]
    states = torch.cat([one[0] for one in (*kept, last)], 1).float().cpu()
    found = torch.split(states, [frame_count(one) for one in inputs])
    return [one[: max(1, -(-len(clip) * FRAMES_PER_SECOND // RATE))] for one, clip in zip(found, clips, strict=True)]


def at_frames(states: Tensor, frames: int, frame_rate: float, speed: float = 1.0) -> Tensor:
    """States (50 a second, S) -> (S, frames): between the two nearest at the middle of each latent frame.

    `speed` is that at which the clip was played to the encoder.
    """
    times = (torch.arange(frames) + 0.5) / frame_rate / speed * FRAMES_PER_SECOND - 0.5
    times = times.clamp(0, len(states) - 1)
    below = times.floor().long()
    above, share = (below + 1).clamp(max=len(states) - 1), (times - below)[:, None]
    return (states[below] * (1 - share) + states[above] * share).T
