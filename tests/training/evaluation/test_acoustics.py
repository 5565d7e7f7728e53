"""Measures of sound against signals whose answers are known."""

import numpy as np
import pytest

from kauli.models.media.decode import RATE
from kauli.training.evaluation.acoustics import (
    aligned_frames,
    cepstra,
    decibels,
    distortion,
    melody_error,
    of_spectra,
    pitch,
)


def voice(hertz: float, seconds: float = 1.0, glide: float = 0.0) -> np.ndarray:
    """Harmonics under a falling spectrum; `glide` in semitones over the whole."""
    times = np.arange(round(RATE * seconds)) / RATE
    phase = 2 * np.pi * np.cumsum(hertz * 2 ** (glide * times / seconds / 12)) / RATE
    return sum(np.sin(order * phase) / order for order in range(1, 12)) * 0.05


@pytest.mark.parametrize("hertz", [80.0, 110.0, 160.0, 224.0, 350.0])
def test_the_pitch_of_a_voice_is_found(hertz: float) -> None:
    found = pitch(voice(hertz))
    assert np.isfinite(found).all()
    assert np.abs(found - 12 * np.log2(hertz)).max() < 0.6  # of a semitone: lags are whole samples


def test_noise_and_silence_have_no_pitch() -> None:
    noise = np.random.default_rng(0).standard_normal(RATE) * 0.05
    assert np.isfinite(pitch(noise)).mean() < 0.05
    assert not np.isfinite(pitch(np.zeros(RATE))).any()


def test_the_same_sound_is_at_no_distance_and_a_louder_one_nearly() -> None:
    samples = voice(160) + 0.002 * np.random.default_rng(1).standard_normal(RATE)
    total, frames = distortion(samples, samples)
    assert total == pytest.approx(0, abs=1e-4)
    assert frames == len(cepstra(samples))
    louder, frames = distortion(2 * samples, samples)
    assert louder / frames < 0.1
    other, frames = distortion(np.random.default_rng(2).standard_normal(RATE) * 0.05, samples)
    assert 5 < other / frames < 40


def test_the_distortion_is_that_of_the_spectra_in_decibels() -> None:
    places = np.arange(40) + 0.5
    ripple = 0.8 * np.cos(np.pi * 3 * places / 40) - 0.5 * np.cos(np.pi * 7 * places / 40)  # ln of power
    found = decibels(of_spectra(ripple[None]) - of_spectra(np.zeros((1, 40))))
    assert found[0] == pytest.approx(np.sqrt(np.mean((10 / np.log(10) * ripple) ** 2)))


def test_the_path_is_that_of_the_least_distance() -> None:
    draw = np.random.default_rng(3)
    one, other = draw.standard_normal((6, 3)), draw.standard_normal((5, 3))
    costs = np.linalg.norm(one[:, None] - other[None], axis=2)

    def least(at: int, to: int) -> float:
        if at == to == 0:
            return float(costs[0, 0])
        steps = [(at - 1, to - 1), (at - 1, to), (at, to - 1)]
        return float(costs[at, to]) + min(least(*step) for step in steps if min(step) >= 0)

    path = aligned_frames(one, other)
    assert costs[path[:, 0], path[:, 1]].sum() == pytest.approx(least(5, 4))
    stretched = np.repeat(one, [1, 3, 1, 2, 1, 1], axis=0)
    path = aligned_frames(one, stretched)
    assert np.linalg.norm(one[path[:, 0]] - stretched[path[:, 1]]) == pytest.approx(0, abs=1e-5)


def test_a_melody_counts_around_the_median_of_each_voice() -> None:
    flat, higher = voice(120), voice(180)
    total, frames = melody_error(flat, higher)
    assert frames > 90
    assert total / frames < 0.1  # another pitch, the same melody
    total, frames = melody_error(voice(120, glide=12), flat)
    assert 2 < (total / frames) ** 0.5 < 5  # 12 semitones over a second: 3.5 around the middle
    assert melody_error(np.zeros(RATE), flat) == (0.0, 0.0)
