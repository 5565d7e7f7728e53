"""What is no speech is told from speech: by its level, and by what a recogniser makes of it."""

import numpy as np
import pytest

from kauli.models.media.decode import RATE
from kauli.models.speech.guards import Guards, compression_ratio

GUARDS = Guards()
TIMES = np.arange(4 * RATE) / RATE
LOOP = "I'm not a man, " * 12


def noise(height: float) -> np.ndarray:
    return (height * np.random.default_rng(0).standard_normal(len(TIMES))).astype(np.float32)


def syllables(height: float) -> np.ndarray:
    """Four a second, as speech has them."""
    return (height * np.sin(2 * np.pi * 300 * TIMES) * (np.sin(2 * np.pi * 2 * TIMES) ** 2)).astype(np.float32)


@pytest.mark.parametrize(
    "samples",
    [
        noise(0.0015),
        (0.02 * np.sin(2 * np.pi * 50 * TIMES)).astype(np.float32) + noise(0.001),
        sum(0.05 / k * np.sin(2 * np.pi * 50 * k * TIMES) for k in range(1, 12)),
    ],
    ids=["noise", "hum", "harmonics"],
)
def test_steady_noise_near_silence_is_no_speech(samples: np.ndarray) -> None:
    assert GUARDS.silent(samples)
    assert not Guards(no_speech_threshold=1).silent(samples)
    assert not GUARDS.silent(samples[: RATE // 5])


@pytest.mark.parametrize("height", [0.3, 0.01, 0.002])
def test_quiet_speech_over_noise_is_no_silence(height: float) -> None:
    samples = syllables(height) + noise(height / 20)
    assert not GUARDS.silent(samples)
    samples[: 3 * RATE] = noise(height / 20)[: 3 * RATE]  # a second of speech behind three of noise
    assert not GUARDS.silent(samples)


def test_loud_noise_is_left_to_the_recogniser() -> None:
    assert not GUARDS.silent(noise(0.1))


@pytest.mark.parametrize(
    ("text", "no_speech", "logprob", "left_out", "fault"),
    [
        ("you", 0.7, -2.1, True, "is uncertain (avg_logprob -2.10): 'you'"),
        (LOOP, 0.7, -0.5, True, "repeats itself"),
        (LOOP, 0.2, -0.5, False, "repeats itself"),
        ("you", 0.2, -2.1, False, "is uncertain (avg_logprob -2.10)"),
        ("Акуляры.", 0.61, -0.45, False, ""),
        ("Акуляры.", None, -2.0, False, "is uncertain"),
        ("Акуляры.", 0.9, None, False, ""),
        ("...", 0.1, -0.2, False, "has no words"),
        ("", 0.9, -0.1, False, ""),
    ],
)
def test_a_text_is_left_out_where_nothing_seems_to_be_spoken_and_it_is_unlikely(
    text: str, no_speech: float | None, logprob: float | None, left_out: bool, fault: str
) -> None:
    found = GUARDS.judge(text, no_speech, logprob)
    assert found[0] is left_out
    assert fault in found[1]
    assert bool(fault) == bool(found[1])
    assert Guards(no_speech_threshold=1).judge(text, no_speech, logprob)[0] is False


def test_a_text_in_another_script_is_no_loop_though_its_bytes_repeat() -> None:
    text = (
        "ყველა ადამიანი იბადება თავისუფალი და თანასწორი თავისი ღირსებითა და უფლებებით. მათ მინიჭებული აქვთ გონება "
        "და სინდისი და ერთმანეთის მიმართ უნდა იქცეოდნენ ძმობის სულისკვეთებით."
    )
    assert compression_ratio(text) > 2.4
    assert GUARDS.judge(text, 0.9, -0.5) == (False, "")


@pytest.mark.weights
def test_a_real_base_writes_nothing_into_noise_without_a_word_and_speech_stays() -> None:
    from kauli.models.bases.find import fetch_base
    from kauli.models.media.decode import decode_audio
    from kauli.models.requests import TranscriptionRequest
    from kauli.models.speech.whisper import WhisperTask
    from kauli.training.data.dataset import load_data

    rows = load_data("starter", ["be"]).rows("test", ["be"], ["text", "audio"])
    clips = [next(decode_audio(row["audio"]).samples for row in rows if row["text"] == "Цацарка."), noise(0.1)]
    task = WhisperTask.load(fetch_base("whisper-base"), device="cpu")
    texts, logprobs, no_speech = [""] * len(clips), [list[float]() for _ in clips], [0.0] * len(clips)
    requests = [TranscriptionRequest(samples, "be", logprobs=0) for samples in clips]
    for chunks in task.generate(requests, [None] * len(clips)):
        for chunk in chunks:
            texts[chunk.row] += chunk.text
            logprobs[chunk.row] += [one.logprob for one in chunk.logprobs]
            no_speech[chunk.row] = chunk.no_speech_prob or 0.0
    speech, hiss = (
        GUARDS.judge(text, probability, float(np.mean(values)))
        for text, values, probability in zip(texts, logprobs, no_speech, strict=True)
    )
    assert (GUARDS.silent(clips[0]), speech) == (False, (False, ""))
    assert hiss[1], texts[1]
