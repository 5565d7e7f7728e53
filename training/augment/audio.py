"""Audio changed at random for training, on torchaudio.

Each kind is a frozen pydantic model (its YAML keys) with `changed`, named in `kauli.training.augment.table`. A wave is
float32 (n,) at 16 kHz, full scale 1; a log-mel is float32 (bins, frames).
"""

from collections.abc import Sequence
from functools import cache
from typing import Annotated, Literal

import torch
from pydantic import AfterValidator, Field, FiniteFloat
from torch import Tensor
from torchaudio import functional, transforms

from kauli.models.media.decode import RATE
from kauli.training.augment.base import Augmentation, random_state

LOWEST = 50
"""Hz; where pink noise begins. Without a bound half of it would lie below what is audible, more in a longer clip."""
_MEL_STREAM = 0x6D656C
# A clip's wave and mel have one seed. Drawn from one stream, a mask would come exactly where the speed was changed too.

Colour = Literal["white", "pink"]


def _ordered(pair: tuple[float, float]) -> tuple[float, float]:
    if pair[0] > pair[1]:
        raise ValueError(f"[{pair[0]:g}, {pair[1]:g}] is no range: the smaller number comes first")
    return pair


Decibels = Annotated[tuple[FiniteFloat, FiniteFloat], AfterValidator(_ordered)]


class AudioAugmentation(Augmentation):
    """A random change of an audio clip."""

    def changed(self, signal: Tensor) -> Tensor:
        """A changed copy of the wave (of the log-mel, for `SpecAugment`), drawn from torch's random state."""
        raise NotImplementedError


class Speed(AudioAugmentation):
    """Played faster or slower, the pitch with it (Ko et al. 2015, "Audio augmentation for speech recognition")."""

    kind: Literal["speed"] = "speed"
    factors: tuple[Annotated[float, Field(ge=0.5, le=2)], ...] = Field(default=(0.9, 1.1), min_length=1)
    """One is drawn, each as likely; above 1 is faster. Taken to the nearest hundredth."""

    def changed(self, signal: Tensor) -> Tensor:
        factor = self.factors[int(torch.randint(len(self.factors), ()))]
        faster: Tensor = _resampler(round(100 * factor))(signal)
        return faster


class Noise(AudioAugmentation):
    """Noise added at a signal-to-noise ratio over the whole clip; not clamped, which would change the ratio."""

    kind: Literal["noise"] = "noise"
    snr_db: Decibels = (5.0, 20.0)
    """The ratio is drawn from this range."""
    colour: Colour = "pink"
    """`white` has as much power at all frequencies, `pink` in all octaves from 50 Hz up, closer to rooms and crowds."""

    def changed(self, signal: Tensor) -> Tensor:
        return _noisy(signal, _between(self.snr_db), self.colour)


class Gain(AudioAugmentation):
    """Made louder or quieter; what passes full scale is cut off."""

    kind: Literal["gain"] = "gain"
    db: Decibels = (-10.0, 10.0)
    """The change is drawn from this range."""

    def changed(self, signal: Tensor) -> Tensor:
        louder: Tensor = transforms.Vol(_between(self.db), gain_type="db")(signal)
        return louder


class SpecAugment(AudioAugmentation):
    """Stretches of time and bands of frequencies hidden (Park et al. 2019, arXiv 1904.08779; no warping).

    What is hidden gets the clip's mean, as in the paper, whose log-mels have a mean of 0. The minimum would be silence,
    which Whisper takes for the end of speech.
    """

    kind: Literal["spec_augment"] = "spec_augment"
    times: int = Field(default=2, ge=0, le=20)
    """Stretches of time."""
    time: float = Field(default=0.1, gt=0, le=1)
    """The largest share of the frames that one of them hides."""
    bands: int = Field(default=2, ge=0, le=20)
    """Bands of frequencies."""
    band: int = Field(default=10, ge=1)
    """The most mel bins that one of them hides."""

    def changed(self, signal: Tensor) -> Tensor:
        bins, frames = signal.shape
        mean = float(signal.mean())
        # torchaudio's parameter is one more than the longest mask
        stretch = transforms.TimeMasking(int(self.time * frames) + 1)
        band = transforms.FrequencyMasking(min(self.band, bins) + 1)
        for mask in [stretch] * self.times + [band] * self.bands:
            signal = mask(signal, mean)
        return signal


def augmented_wave(samples: Tensor, augmentations: Sequence[AudioAugmentation], seed: int) -> Tensor:
    """The wave (n,), n > 0, changed by each augmentation in turn, each with its own probability: (m,).

    A function of samples, augmentations and seed: torch's random state is set for it and put back, so it is not for
    several threads at once. `SpecAugment` is left to `augmented_mel`.
    """
    return _changed(samples, [one for one in augmentations if not isinstance(one, SpecAugment)], seed)


def augmented_mel(mel: Tensor, augmentations: Sequence[AudioAugmentation], seed: int) -> Tensor:
    """The log-mel (bins, frames) changed by each `SpecAugment`, of the same shape; otherwise as `augmented_wave`."""
    return _changed(mel, [one for one in augmentations if isinstance(one, SpecAugment)], seed ^ _MEL_STREAM)


def with_noise(samples: Tensor, snr_db: float, seed: int, colour: Colour = "pink") -> Tensor:
    """The wave (n,) with noise at this signal-to-noise ratio over the whole clip; for tests at a stated level."""
    with random_state(seed):
        return _noisy(samples, snr_db, colour)


def _changed(signal: Tensor, augmentations: Sequence[AudioAugmentation], seed: int) -> Tensor:
    with random_state(seed):
        for augmentation in augmentations:
            if torch.rand(()) < augmentation.p:
                signal = augmentation.changed(signal)
    return signal


def _between(pair: tuple[float, float]) -> float:
    return pair[0] + (pair[1] - pair[0]) * float(torch.rand(()))


@cache
def _resampler(hundredths: int) -> transforms.Resample:
    # In hundredths: the filter grows with both numbers of the ratio, to a gigabyte at 16001 to 16000.
    return transforms.Resample(hundredths, 100)


def _noisy(samples: Tensor, snr_db: float, colour: Colour) -> Tensor:
    count = len(samples)
    noise = _pink(count) if colour == "pink" else torch.randn(count)
    mixed: Tensor = functional.add_noise(samples, noise, torch.tensor(snr_db))
    return mixed


def _pink(count: int) -> Tensor:
    """(count,) noise whose power falls with 1 / frequency, cut from a second or more of it."""
    weights = _pink_weights((max(count, RATE) - 1).bit_length())
    noise: Tensor = torch.fft.irfft(weights * torch.randn(len(weights), dtype=torch.complex64))
    return noise[:count]


@cache
def _pink_weights(octaves: int) -> Tensor:
    """Amplitudes at the frequencies of a spectrum of 2 ** octaves samples."""
    frequencies = torch.fft.rfftfreq(2**octaves, 1 / RATE)
    return torch.where(frequencies < LOWEST, 0.0, frequencies.clamp(min=LOWEST).rsqrt())
