"""An inaudible mark in speech that a program made, and a test for it: the network of resemble-perth (MIT).

Perth (Resemble AI, https://github.com/resemble-ai/perth) adds to the magnitudes below 2 kHz what the ear does not hear
beside the speech, and reads it after mp3 and Opus. The package is pinned; nothing of it is run: its weights are read,
and the layers are written here. The mark tells no more than that it is there.
"""

from functools import cache
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn
from torch.nn import functional

from kauli.models.bases.packages import Package, fetch_package
from kauli.models.media.resample import resampled

PACKAGE = Package(
    kind="pypi", name="resemble-perth", version="1.0.1",
    sha256="65e9c37531b1a128a4a56226b75dece4521683cf3611b0b2a5ffe234f00c9342",
)  # fmt: skip
_FILE = "perth/perth_net/pretrained/implicit/perth_net_250000.pth.tar"
THRESHOLD = 0.95
"""A score above it means that speech is marked; no recording of a person had one (`tests/bench/speech.py`)."""
UNCERTAIN = 0.5
"""From here to the threshold are a few recordings of single words, and marked speech after strong compression."""
SHORTEST = 0.3
"""Seconds; less is not marked, and can't be checked."""
_RATE, _FFT, _HOP = 32_000, 2048, 320
_BANDS = round((_FFT // 2 + 1) * 2000 / (_RATE / 2))  # those below 2 kHz
_HIDDEN = 256
_LEAST = 1e-9  # magnitude
_HEADROOM = 15.0  # dB
_SPEECH = 0.05  # of the loudest frame: quieter ones hold no mark

Samples = npt.NDArray[np.float32]


class Watermark:
    """The network that marks speech and reads the mark."""

    def __init__(self, weights: dict[str, Tensor]) -> None:
        """`weights` are those of Perth's checkpoint."""
        self._marking = _layers(_BANDS)
        self._reading = nn.ModuleDict({speed: _layers(2) for speed in ("slow", "normal", "fast")})
        own = {name.removeprefix("encoder.layers."): value for name, value in weights.items() if "encoder." in name}
        self._marking.load_state_dict({_short(name): value for name, value in own.items()})
        for speed, layers in self._reading.items():
            start = f"decoder.{speed}_layers."
            found = {name.removeprefix(start): value for name, value in weights.items() if name.startswith(start)}
            layers.load_state_dict({_short(name): value for name, value in found.items()})
        self._window = torch.hann_window(_FFT)

    @torch.inference_mode()
    def mark(self, samples: Samples, rate: int) -> Samples:
        """The samples (n,) with the mark, at their own rate; what is shorter than SHORTEST comes back as it was.

        Only the mark passes through another rate: the speech keeps what is above.
        """
        if len(samples) < SHORTEST * rate or not samples.any():
            return samples
        wave = torch.from_numpy(resampled([samples], rate, _RATE))
        spectrum = self._spectrum(wave)
        levels, phases = _levels(spectrum), torch.angle(spectrum)
        change = self._marking(levels[None, :_BANDS])[0] * _spoken(levels)
        marked = levels.clone()
        marked[:_BANDS] += change
        difference = torch.polar(_magnitudes(marked), phases) - torch.polar(_magnitudes(levels), phases)
        added = torch.istft(difference, _FFT, _HOP, window=self._window, length=len(wave))
        found = resampled([added.numpy()], _RATE, rate)[: len(samples)]
        result: Samples = samples + np.pad(found, (0, len(samples) - len(found)))
        return np.clip(result, -1, 1)

    @torch.inference_mode()
    def score(self, samples: Samples, rate: int) -> float:
        """From 0 (no mark) to 1 (marked), of samples (n,)."""
        wave = torch.from_numpy(resampled([samples], rate, _RATE))
        if len(wave) < _FFT or not wave.any():
            return 0.0
        levels = _levels(self._spectrum(wave))
        spoken = _spoken(levels)[None, None]
        marks, weights = [], []
        for speed, stretch in (("slow", 1.25), ("normal", 1.0), ("fast", 0.75)):
            bands = levels[None, :_BANDS]
            length = int(bands.shape[2] * stretch)
            if stretch != 1:
                bands = functional.interpolate(bands, size=length, mode="linear", align_corners=True)
            found = self._reading[speed](bands)
            mask = functional.interpolate(spoken, size=length, mode="nearest")
            mean = (found * mask).sum(2) / mask.sum(2)
            weights.append(mean[0, 0])
            marks.append(mean[0, 1])
        return float((torch.stack(marks) * torch.stack(weights).softmax(0)).sum().clamp(0, 1))

    def _spectrum(self, wave: Tensor) -> Tensor:
        return torch.stft(wave, _FFT, _HOP, window=self._window, return_complex=True)


@cache
def watermark() -> Watermark:
    """The network, loaded once; its package is fetched where it is not on this machine. Raises KauliError."""
    path = fetch_package(PACKAGE) / _FILE
    # Tensors alone: nothing else in a pickle is read
    found: dict[str, Any] = torch.load(path, map_location="cpu", weights_only=True)
    return Watermark(found["model"])


def _layers(out: int) -> nn.Sequential:
    steps: list[nn.Module] = [nn.Conv1d(_BANDS, _HIDDEN, 1), nn.LeakyReLU()]
    for _ in range(5):
        steps += [nn.Conv1d(_HIDDEN, _HIDDEN, 7, padding=3), nn.LeakyReLU()]
    return nn.Sequential(*steps, nn.Conv1d(_HIDDEN, out, 1)).eval().requires_grad_(False)


def _short(name: str) -> str:
    """ "3.conv.weight" of Perth's layers, each with its activation, as a name of `_layers`."""
    number, _, rest = name.partition(".conv.")
    return f"{2 * int(number)}.{rest}"


def _levels(spectrum: Tensor) -> Tensor:
    """Magnitudes as Perth's network takes them: decibels from the least to the headroom as 0 to 1."""
    least = 20 * np.log10(_LEAST)
    decibels = 20 * torch.log10(spectrum.abs().clamp(_LEAST))
    found: Tensor = (decibels - least) / (_HEADROOM - least)
    return found


def _magnitudes(levels: Tensor) -> Tensor:
    least = 20 * np.log10(_LEAST)
    found: Tensor = 10.0 ** ((levels * (_HEADROOM - least) + least) / 20).clamp(max=10)
    return found


def _spoken(levels: Tensor) -> Tensor:
    """1 for each frame that is not much quieter than the loudest."""
    sums = levels.sum(0)
    return (sums > _SPEECH * sums.max()).float()
