"""Audio changed at random: by seed alone, by the chances asked for, and as loud a noise as was stated."""

import math
import random
from typing import Annotated, Any

import pytest
import torch
from pydantic import TypeAdapter, ValidationError
from torch import Tensor

from kauli.training.augment.audio import (
    RATE,
    AudioAugmentation,
    Colour,
    Gain,
    Noise,
    SpecAugment,
    Speed,
    augmented_mel,
    augmented_wave,
    with_noise,
)
from kauli.training.augment.table import augmentations

ALL: list[AudioAugmentation] = [Speed(), Noise(), Gain(), SpecAugment()]
OF_WAVES = ALL[:3]


def parsed(**content: Any) -> AudioAugmentation:
    adapter: TypeAdapter[AudioAugmentation] = TypeAdapter(Annotated[AudioAugmentation, augmentations("audio")])
    return adapter.validate_python(content)


def tone(hertz: float = 1000, seconds: float = 1.0, loudness: float = 0.1) -> Tensor:
    return loudness * torch.sin(2 * math.pi * hertz * torch.arange(int(RATE * seconds)) / RATE)


def mel(bins: int = 80, frames: int = 200) -> Tensor:
    return torch.randn(bins, frames, generator=torch.Generator().manual_seed(0))


def always(augmentation: AudioAugmentation) -> AudioAugmentation:
    return augmentation.model_copy(update={"p": 1.0})


def power(signal: Tensor) -> float:
    return float(signal.double().square().mean())


def loudest(samples: Tensor) -> float:
    """The frequency with the most power, in Hz."""
    return int(torch.fft.rfft(samples).abs().argmax()) * RATE / len(samples)


def test_kinds_are_told_apart_and_wrong_keys_refused() -> None:
    for augmentation in ALL:
        assert parsed(kind=augmentation.kind) == augmentation
    assert parsed(kind="noise", snr_db=[0, 10]) == Noise(snr_db=(0, 10))
    for wrong in (
        {"kind": "reverb"},
        {"kind": "speed", "snr_db": [1, 2]},
        {"kind": "speed", "p": 1.5},
        {"kind": "speed", "factors": []},
        {"kind": "speed", "factors": [0.0]},
        {"kind": "noise", "colour": "brown"},
        {"kind": "noise", "snr_db": [20, 5]},
        {"kind": "gain", "db": [0, math.inf]},
        {"kind": "spec_augment", "time": 1.5},
        {"kind": "spec_augment", "band": 0},
    ):
        with pytest.raises(ValidationError):
            parsed(**wrong)


@pytest.mark.parametrize("augmentation", OF_WAVES, ids=lambda one: one.kind)
def test_a_seed_decides_the_wave(augmentation: AudioAugmentation) -> None:
    plain = tone()
    first = augmented_wave(plain, [always(augmentation)], seed=3)
    torch.rand(7)
    assert torch.equal(augmented_wave(plain, [always(augmentation)], seed=3), first)
    others = {augmented_wave(plain, [always(augmentation)], seed).numpy().tobytes() for seed in range(6)}
    assert len(others) == (2 if isinstance(augmentation, Speed) else 6)
    assert first.dtype == torch.float32
    assert torch.equal(plain, tone())  # not changed in place
    assert augmented_wave(plain, [augmentation.model_copy(update={"p": 0.0})], 3) is plain


def test_a_seed_decides_the_mel() -> None:
    plain, masks = mel(), SpecAugment(p=1)
    first = augmented_mel(plain, [masks], seed=3)
    torch.rand(7)
    assert torch.equal(augmented_mel(plain, [masks], seed=3), first)
    assert len({augmented_mel(plain, [masks], seed).numpy().tobytes() for seed in range(6)}) == 6
    assert first.dtype == torch.float32
    assert torch.equal(plain, mel())
    assert augmented_mel(plain, [SpecAugment(p=0)], 3) is plain


def test_waves_and_mels_each_take_what_is_theirs() -> None:
    assert augmented_wave(tone(), [SpecAugment(p=1)], 0).equal(tone())
    assert augmented_mel(mel(), [always(one) for one in OF_WAVES], 0).equal(mel())


def test_random_states_of_the_caller_are_left_alone() -> None:
    torch.manual_seed(11)
    random.seed(11)
    states = torch.get_rng_state(), random.getstate()
    augmented_wave(tone(), [always(one) for one in ALL], 5)
    augmented_mel(mel(), [always(one) for one in ALL], 5)
    with_noise(tone(), 10, 5)
    assert torch.equal(torch.get_rng_state(), states[0])
    assert random.getstate() == states[1]


def test_probabilities_are_met_independently_and_a_wave_does_not_decide_on_its_mel() -> None:
    kinds: list[AudioAugmentation] = [Speed(p=0.5, factors=(1.1,)), Gain(p=0.3, db=(-6, -6)), SpecAugment(p=0.5)]
    plain, spectrum, count = tone(seconds=0.05), mel(20, 30), 600
    faster, quieter, masked = [], [], []
    for seed in range(count):
        wave = augmented_wave(plain, kinds, seed)
        faster.append(len(wave) < len(plain))
        quieter.append(float(wave.max()) < 0.07)
        masked.append(augmented_mel(spectrum, kinds, seed) is not spectrum)
    assert sum(faster) / count == pytest.approx(0.5, abs=0.07)
    assert sum(quieter) / count == pytest.approx(0.3, abs=0.06)
    assert sum(map(min, faster, quieter)) / count == pytest.approx(0.15, abs=0.05)
    assert sum(map(min, faster, masked)) / count == pytest.approx(0.25, abs=0.06)


@pytest.mark.parametrize("factor", [0.9, 1.0, 1.1, 1.15, 1.0333])
def test_speed_changes_length_and_pitch_together(factor: float) -> None:
    nearest = round(factor, 2)
    found = augmented_wave(tone(1000), [Speed(p=1, factors=(factor,))], 0)
    assert len(found) == math.ceil(RATE / nearest)
    assert loudest(found) == pytest.approx(1000 * nearest, abs=2)
    assert power(found) == pytest.approx(power(tone(1000)), rel=0.02)


def test_each_factor_of_speed_is_as_likely() -> None:
    plain = tone(seconds=0.02)
    sizes = [len(augmented_wave(plain, [Speed(p=1, factors=(0.8, 1.0, 1.25))], seed)) for seed in range(300)]
    counts = [sizes.count(size) for size in (400, 320, 256)]
    assert sum(counts) == 300
    assert min(counts) > 70


@pytest.mark.parametrize("colour", ["white", "pink"])
@pytest.mark.parametrize("snr_db", [20.0, 10.0, 0.0, -5.0])
@pytest.mark.parametrize("seconds", [0.3, 2.7])
def test_noise_has_the_stated_level_over_the_clip(seconds: float, snr_db: float, colour: Colour) -> None:
    speech = tone(300, seconds) * torch.linspace(0, 1, int(RATE * seconds))
    noisy = with_noise(speech, snr_db, seed=4, colour=colour)
    assert 10 * math.log10(power(speech) / power(noisy - speech)) == pytest.approx(snr_db, abs=0.1)
    assert noisy.dtype == torch.float32
    assert torch.equal(noisy, with_noise(speech, snr_db, seed=4, colour=colour))
    assert not torch.equal(noisy, with_noise(speech, snr_db, seed=5, colour=colour))


def test_levels_of_noise_are_drawn_evenly_from_their_range() -> None:
    speech = tone(seconds=0.2)
    found = []
    for seed in range(300):
        noisy = augmented_wave(speech, [Noise(p=1, snr_db=(0, 20), colour="white")], seed)
        found.append(10 * math.log10(power(speech) / power(noisy - speech)))
    assert -0.1 < min(found) < 1
    assert 19 < max(found) < 20.1
    assert sum(found) / 300 == pytest.approx(10, abs=1.2)


def band_power(noise: Tensor, low: float, high: float) -> float:
    spectrum = torch.fft.rfft(noise).abs().square()
    frequencies = torch.fft.rfftfreq(len(noise), 1 / RATE)
    return float(spectrum[(frequencies >= low) & (frequencies < high)].sum())


def test_pink_noise_has_the_same_power_in_each_octave_and_white_at_each_frequency() -> None:
    speech = tone(seconds=8)
    octaves = [(62.5 * 2**place, 125.0 * 2**place) for place in range(7)]
    pink = with_noise(speech, 0, 1) - speech
    powers = [band_power(pink, *octave) for octave in octaves]
    assert max(powers) / min(powers) < 1.3
    assert band_power(pink, 0, 40) < 0.01 * powers[0]
    white = with_noise(speech, 0, 1, "white") - speech
    powers = [band_power(white, low, high) / (high - low) for low, high in octaves]
    assert max(powers) / min(powers) < 1.3


def test_silence_stays_silent_and_the_shortest_clip_is_changed_too() -> None:
    assert not with_noise(torch.zeros(500), 10, 0).any()
    for size in (1, 2, 3):
        found = augmented_wave(torch.full((size,), 0.5), [always(one) for one in OF_WAVES], 1)
        assert found.isfinite().all()
        assert len(found) >= 1


def test_gain_is_in_decibels_and_cut_off_at_full_scale() -> None:
    plain = tone(loudness=0.1)
    assert torch.allclose(augmented_wave(plain, [Gain(p=1, db=(-20, -20))], 0), plain / 10, atol=1e-6)
    found = [20 * math.log10(float(augmented_wave(plain, [Gain(p=1)], seed).max()) / 0.1) for seed in range(200)]
    assert -10 <= min(found) < -9
    assert 9 < max(found) <= 10
    loud = augmented_wave(plain, [Gain(p=1, db=(40, 40))], 0)
    assert float(loud.max()) == 1.0
    assert float(loud.min()) == -1.0


def test_augmentations_are_applied_in_the_order_given() -> None:
    loud, noise = Gain(p=1, db=(30, 30)), Noise(p=1, snr_db=(0, 0))
    assert float(augmented_wave(tone(), [noise, loud], 0).abs().max()) == 1.0
    assert float(augmented_wave(tone(), [loud, noise], 0).abs().max()) > 1.0


def hidden(masks: SpecAugment, spectrum: Tensor, seed: int) -> tuple[list[int], list[int]]:
    """Frames and bins that are hidden as a whole; whatever else was changed fails."""
    found = augmented_mel(spectrum, [masks], seed)
    assert found.shape == spectrum.shape
    changed = found != spectrum
    assert torch.allclose(found[changed], spectrum.mean())
    frames, bins = changed.all(dim=0), changed.all(dim=1)
    assert torch.equal(changed, frames[None, :] | bins[:, None])
    return frames.nonzero().flatten().tolist(), bins.nonzero().flatten().tolist()


def runs(places: list[int]) -> list[int]:
    """Lengths of the stretches without a gap."""
    starts = [place for place in places if place - 1 not in places]
    ends = [place for place in places if place + 1 not in places]
    return [end - start + 1 for start, end in zip(starts, ends, strict=True)]


def test_masks_hide_stretches_and_bands_behind_the_mean() -> None:
    one_each = SpecAugment(p=1, times=1, time=0.1, bands=1, band=10)
    found = [hidden(one_each, mel(80, 205), seed) for seed in range(150)]
    stretches, bands = [runs(frames) for frames, _ in found], [runs(bins) for _, bins in found]
    assert max(map(len, stretches)) == max(map(len, bands)) == 1
    assert max(map(sum, stretches)) == 20  # a tenth of 205, rounded down
    assert max(map(sum, bands)) == 10
    assert {place for frames, _ in found for place in frames} >= set(range(5, 200))
    assert {place for _, bins in found for place in bins} >= set(range(2, 78))
    several = [hidden(SpecAugment(p=1, times=3, bands=0), mel(), seed) for seed in range(60)]
    assert max(len(runs(frames)) for frames, _ in several) == 3
    assert not any(bins for _, bins in several)


@pytest.mark.parametrize("size", [(80, 1), (80, 9), (5, 40), (1, 1)])
def test_masks_may_be_larger_than_the_mel(size: tuple[int, int]) -> None:
    for seed in range(10):
        assert augmented_mel(mel(*size), [SpecAugment(p=1, time=1, band=200)], seed).shape == size
        frames, _ = hidden(SpecAugment(p=1, bands=0), mel(*size), seed)
        assert len(frames) <= 2 * (size[1] // 10)
