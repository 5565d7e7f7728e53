"""Long audio: cut at pauses, no speech lost; what two spans share is in the text once, with its words."""

import time
from itertools import pairwise
from typing import Any

import numpy as np
import pytest

from kauli.models.media.decode import RATE
from kauli.models.requests import Word
from kauli.models.speech.chunking import LONGEST, AudioSpan, Segment, as_text, cut, join, word_spans

Part = tuple[float, float]
"""Seconds, and the height of a tone; 0 is a pause."""


def tones_and_pauses(*parts: Part, noise: float = 1e-3, seed: int = 0) -> Any:
    """Tones and pauses, on noise."""
    tones = [height * np.sin(2 * np.pi * 300 / RATE * np.arange(round(seconds * RATE))) for seconds, height in parts]
    sound = np.concatenate(tones)
    return (sound + noise * np.random.default_rng(seed).standard_normal(len(sound))).astype(np.float32)


def syllables(seconds: float, height: float) -> list[Part]:
    """Speech rises and falls, six times a second here: no noise does that."""
    count = max(1, round(seconds * 6))
    return [
        part for _ in range(count) for part in ((seconds / count * 0.8, height), (seconds / count * 0.2, height / 30))
    ]


def edges(spans: list[AudioSpan]) -> list[tuple[float, float]]:
    return [(pytest.approx(span.start, abs=0.03), pytest.approx(span.end, abs=0.03)) for span in spans]


def test_a_short_clip_is_one_span() -> None:
    assert cut(tones_and_pauses((2, 0.3), (0.5, 0), (3, 0.3)), LONGEST) == [AudioSpan(0, 5.5)]
    assert cut(tones_and_pauses((4, 0.3)), 4.0) == [AudioSpan(0, 4)]
    assert cut(tones_and_pauses((4.01, 0.3)), 4.01) == [AudioSpan(0, 4.01)]
    assert cut(np.zeros(RATE, np.float32), 4.0) == [AudioSpan(0, 1)]
    assert cut(tones_and_pauses((10, 0)), 28.0) == [AudioSpan(0, 10)]  # noise alone


def test_a_long_clip_is_cut_in_its_pauses() -> None:
    sound = tones_and_pauses((10, 0.3), (0.8, 0), (9, 0.3), (0.4, 0), (5, 0.3), (0.6, 0), (9, 0.3))
    assert edges(cut(sound, 28.0)) == [(0, 25.5), (25.5, 34.8)]
    assert edges(cut(sound, 24.0)) == [(0, 20.0), (20.0, 34.8)]
    assert edges(cut(sound, 17.0)) == [(0, 10.4), (10.4, 25.5), (25.5, 34.8)]


def test_the_longest_pause_of_the_last_third_is_taken() -> None:
    sound = tones_and_pauses((8, 0.3), (0.9, 0), (11, 0.3), (0.7, 0), (4, 0.3), (0.4, 0), (8, 0.3))
    assert edges(cut(sound, 28.0)) == [(0, 20.25), (20.25, 33.0)]


def test_speech_without_a_pause_is_cut_hard_with_an_overlap() -> None:
    assert cut(tones_and_pauses((70, 0.3)), 28.0) == [AudioSpan(0, 28), AudioSpan(26, 54), AudioSpan(52, 70)]
    assert cut(tones_and_pauses((9, 0.3)), 4.0, overlap=1.0) == [AudioSpan(0, 4), AudioSpan(3, 7), AudioSpan(6, 9)]
    gaps = [part for _ in range(100) for part in ((0.3, 0.3), (0.2, 0))]  # too short for pauses
    assert cut(tones_and_pauses(*gaps), 28.0)[1].start == 26
    with pytest.raises(ValueError, match="overlap"):
        cut(tones_and_pauses((9, 0.3)), 2.0)


def test_long_silence_before_and_after_speech_is_left_out() -> None:
    assert edges(cut(tones_and_pauses((5, 0), (6, 0.3), (7, 0)), 28.0)) == [(4.5, 11.5)]
    assert edges(cut(tones_and_pauses((0.9, 0), (6, 0.3), (0.9, 0)), 28.0)) == [(0, 7.8)]
    sound = tones_and_pauses((20, 0.3), (30, 0), (20, 0.3), (40, 0))
    assert edges(cut(sound, 28.0)) == [(0, 20.5), (49.5, 70.5)]
    # The silence at the end begins just where a window does
    assert edges(cut(tones_and_pauses((27.8, 0.3), (40, 0)), 28.0)) == [(0, 28.0)]


@pytest.mark.parametrize("noise", [0.0, 1e-5, 1e-3, 0.02])
def test_pauses_are_found_in_quiet_and_in_noisy_audio(noise: float) -> None:
    sound = tones_and_pauses((10, 0.3), (0.8, 0), (10, 0.2), (0.8, 0), (10, 0.25), noise=noise)
    assert edges(cut(sound, 28.0)) == [(0, 21.2), (21.2, 31.6)]
    assert edges(cut(sound + np.float32(0.05), 28.0)) == [(0, 21.2), (21.2, 31.6)]  # with a constant offset


def test_digital_silence_does_not_hide_the_pauses_of_edited_audio() -> None:
    gap = np.zeros(RATE, np.float32)
    noisy = tones_and_pauses((5, 0.3), (0.7, 0), (5, 0.25), noise=0.01)
    sound = np.concatenate([noisy, gap, noisy, gap, noisy])
    assert edges(cut(sound, 20.0)) == [(0, 17.05), (17.05, 34.1)]


def test_no_sample_of_speech_is_lost_and_no_span_is_too_long() -> None:
    for seed in range(40):
        random = np.random.default_rng(seed)
        parts: list[Part] = []
        while sum(seconds for seconds, _ in parts) < random.uniform(1, 120):
            parts.append((float(random.exponential(4) + 0.1), float(10 ** random.uniform(-1.5, 0))))
            parts.append((float(random.exponential(random.choice([0.1, 1.0, 5.0]))), 0.0))
        parts = parts[int(random.integers(2)) :]
        pieces = [piece for part in parts for piece in (syllables(*part) if part[1] else [part])]
        sound = tones_and_pauses(*pieces, noise=float(10 ** random.uniform(-5, -3)), seed=seed)
        longest = float(random.choice([4.0, 10.0, 28.0]))
        spans = cut(sound, longest)
        covered = np.zeros(len(sound), bool)
        for span in spans:
            assert 0 < len(span.of(sound)) <= longest * RATE
            span.of(covered)[:] = True
        assert all(one.start < other.start and one.end < other.end for one, other in pairwise(spans))
        at = 0
        for seconds, height in pieces:
            assert not height or covered[at : at + round(seconds * RATE)].all(), (seed, at / RATE, spans)
            at += round(seconds * RATE)


def test_ten_minutes_are_cut_in_no_time() -> None:
    sound = tones_and_pauses(*[(3.1, 0.3), (0.4, 0)] * 171)
    begin = time.process_time()
    assert 22 <= len(cut(sound, 28.0)) <= 40
    assert time.process_time() - begin < 0.5


def spliced(before: str, after: str) -> str:
    return as_text(join([before, after], [AudioSpan(0, 28), AudioSpan(26, 54)]))


def test_words_that_both_spans_share_are_kept_once() -> None:
    assert spliced("раз два тры чатыры пяць", "тры чатыры пяць шэсць сем") == "раз два тры чатыры пяць шэсць сем"
    assert spliced("One, two three.", "Two three, four.") == "One, two three, four."
    assert spliced("habari", "habari") == "habari"
    assert spliced("ha ha ha ha", "ha ha ha yes") == "ha ha ha ha yes"


def test_a_word_cut_in_half_is_taken_from_the_span_that_has_it_whole() -> None:
    assert spliced("раз два тры чатыры пя", "ва тры чатыры пяць шэсць") == "раз два тры чатыры пяць шэсць"
    assert spliced("добры дз", "бры дзень, сябры") == "добры дзень, сябры"
    assert spliced("the quick brown fog", "quick brown fox jumps") == "the quick brown fox jumps"
    assert spliced("watoto wanacheza mpira", "tu wanacheza mpira uwanjani") == "watoto wanacheza mpira uwanjani"
    assert spliced("it was one two three four", "on to three four five") == "it was one two three four five"


def test_texts_that_share_nothing_stay_whole() -> None:
    assert spliced("мы пайшлі ў лес.", "Потым быў дождж") == "мы пайшлі ў лес. Потым быў дождж"
    assert spliced("a long day and", "I then went on") == "a long day and I then went on"
    apart = [AudioSpan(0, 26), AudioSpan(26, 54)]
    assert as_text(join(["one two", "one two"], apart)) == "one two one two"
    # The same words, but too early to lie in the overlap
    early = "one two three four five " + "six " * 30
    assert spliced(early, "one two three four five") == f"{early.strip()} one two three four five"


def test_scripts_without_spaces_are_joined_by_their_characters() -> None:
    assert spliced("今天天气很好我们去公园", "我们去公园散步。") == "今天天气很好我们去公园散步。"
    assert spliced("ວັນນີ້ອາກາດດີ", "ອາກາດດີຫຼາຍ") == "ວັນນີ້ອາກາດດີຫຼາຍ"


def test_segments_keep_their_times_and_empty_ones_are_left_out() -> None:
    spans = [AudioSpan(0, 10), AudioSpan(11, 20), AudioSpan(20, 48), AudioSpan(46, 60)]
    found = join([" so ", "", "it goes", "it goes on"], spans)
    assert found == [Segment(0, 10, "so"), Segment(20, 47, "it"), Segment(47, 60, "goes on")]
    assert join(["", ""], spans[:2]) == []
    assert as_text([]) == ""
    nested = join(["one two three", "three"], [AudioSpan(0, 4), AudioSpan(3, 5)])
    assert nested == [Segment(0, 3.5, "one two three")]


def test_words_are_found_in_any_script() -> None:
    def words(text: str) -> list[str]:
        return [text[start:end] for start, end in word_spans(text)]

    assert words(" Добры дзень,  сябры! ") == ["Добры", "дзень,", "сябры!"]
    assert words("мама — тата") == ["мама —", "тата"]
    assert words("— Так. — Не. ( so ) ?! x «") == ["— Так.", "— Не.", "( so ) ?!", "x «"]
    assert words("今天（好）。ok ไทย") == ["今", "天", "（好）。", "ok", "ไ", "ท", "ย"]
    assert words("...") == ["..."]
    assert words(" \n\x1c ") == []


def test_words_go_where_their_text_goes() -> None:
    texts = ["раз два тры чаты", "ва тры чатыры пяць"]
    words = [[Word(word, at, at + 0.5) for at, word in enumerate(text.split())] for text in texts]
    one, other = join(texts, [AudioSpan(10, 14), AudioSpan(13, 17)], words)
    assert (one.text, other.text) == ("раз два тры", "чатыры пяць")
    assert one.words == (Word("раз", 10, 10.5), Word("два", 11, 11.5), Word("тры", 12, 12.5))
    assert other.words == (Word("чатыры", 15, 15.5), Word("пяць", 16, 16.5))
    # A full stop that the next span's text doesn't have
    (alone, rest) = join(["好的。", "的再见"], [AudioSpan(0, 4), AudioSpan(3, 7)], [
        [Word("好", 0, 1), Word("的。", 1, 2)], [Word("的", 0, 1), Word("再", 1, 2), Word("见", 2, 3)],
    ])  # fmt: skip
    assert "".join(word.text for word in (*alone.words, *rest.words)) == alone.text + rest.text
