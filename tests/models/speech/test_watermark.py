"""The mark in speech: read after lossy formats, absent from recordings, and too faint to change the speech."""

import io

import numpy as np
import pytest
import soundfile

from kauli.models.media.decode import decode_audio
from kauli.models.media.encode import RATE, encoded
from kauli.models.speech.espeak import espeak
from kauli.models.speech.watermark import THRESHOLD, watermark
from kauli.training.data.dataset import load_data

pytestmark = pytest.mark.weights


def speech(text: str = "Watu wote wamezaliwa huru, hadhi na haki zao ni sawa.") -> tuple[np.ndarray, int]:
    found = espeak().speak(text, "sw")
    return found.samples, found.rate


def test_it_survives_other_rates_and_formats() -> None:
    samples, rate = speech()
    marked = watermark().mark(samples, rate)
    assert marked.shape == samples.shape
    assert watermark().score(samples, rate) < 0.1
    assert watermark().score(marked, rate) > 0.9
    for form in ("mp3", "opus", "flac", "wav"):
        clip = decode_audio(encoded(watermark().mark(speech()[0], RATE), form, "x"))
        assert watermark().score(clip.samples, 16_000) > THRESHOLD, form
    half = marked[len(marked) // 2 :]
    assert watermark().score(half, rate) > 0.8
    assert watermark().score(0.2 * marked, rate) > 0.8


def test_the_speech_stays_as_it_was() -> None:
    """Nothing above the marked bands changes, and below them little."""
    samples, rate = speech()
    change = np.abs(np.fft.rfft(watermark().mark(samples, rate) - samples)) ** 2
    own = np.abs(np.fft.rfft(samples)) ** 2
    high = np.fft.rfftfreq(len(samples), 1 / rate) > 2200
    assert change[high].sum() < 1e-4 * own[high].sum()
    assert change.sum() < 0.1 * own.sum()


def test_what_is_short_or_silent_is_left_alone() -> None:
    for samples in (np.zeros(RATE, np.float32), 0.1 * np.ones(100, np.float32), np.zeros(0, np.float32)):
        assert np.array_equal(watermark().mark(samples, RATE), samples)
        assert watermark().score(samples, RATE) == 0


def test_no_recording_of_a_person_is_taken_for_generated() -> None:
    rows = load_data("starter", ["be"]).rows(languages=["be"], columns=["id", "audio", "synthetic"])
    clips = [row["audio"] for row in rows if row["audio"] and not row["synthetic"]][:40]
    scores = []
    for clip in clips:
        samples, rate = soundfile.read(io.BytesIO(clip), dtype="float32", always_2d=True)
        scores.append(watermark().score(samples.mean(1), rate))
    assert len(scores) == 40
    assert max(scores) < THRESHOLD
