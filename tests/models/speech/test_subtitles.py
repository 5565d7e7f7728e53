"""Subtitles: cues that can be read, by the rules of broadcasters, that say what the text says, in files that parse."""

import html
import re
from itertools import pairwise

import numpy as np
import pytest
import regex

from kauli.models.requests import Word
from kauli.models.speech.chunking import AudioSpan, Segment, as_text, join, word_spans
from kauli.models.speech.subtitles import LINE, LONGEST_CUE, SHORTEST_CUE, Cue, as_srt, as_vtt, cues


def segment(text: str, seconds: float = 0.4, pauses: dict[str, float] | None = None, start: float = 0.0) -> Segment:
    """Each word takes so many seconds; behind those that are named is a pause."""
    found = []
    at = start
    for begin, end in word_spans(text):
        found.append(Word(text[begin:end], at, at + seconds))
        at += seconds + (pauses or {}).get(text[begin:end], 0.0)
    return Segment(start, at, text, tuple(found))


def texts(shown: list[Cue]) -> list[str]:
    return ["/".join(cue.lines) for cue in shown]


def test_a_short_sentence_is_one_line_from_its_first_word_to_its_last() -> None:
    assert cues([segment("Дзень добры, сябры.")]) == [Cue(0, pytest.approx(1.2), ("Дзень добры, сябры.",))]
    assert cues([]) == []


def test_cues_end_with_sentences() -> None:
    text = "Мы выйшлі з дому вельмі рана раніцай. Сонца яшчэ не ўзышло над лесам. Было холадна."
    assert texts(cues([segment(text)])) == [
        "Мы выйшлі з дому вельмі рана раніцай.", "Сонца яшчэ не ўзышло над лесам./Было холадна.",
    ]  # fmt: skip


def test_a_long_sentence_is_broken_at_a_comma_or_a_pause() -> None:
    comma = "Калі мы прыйшлі дадому позна ўвечары, маці ўжо даўно чакала нас каля самых дзвярэй нашага дома"
    assert texts(cues([segment(comma, 0.3)]))[0] == "Калі мы прыйшлі дадому позна ўвечары,"
    pause = comma.replace(",", "")
    found = cues([segment(pause, 0.3, {"чакала": 0.5})])
    assert found[0].lines[-1].endswith("чакала")
    assert len(found) == 2


def test_two_lines_are_about_as_long() -> None:
    (cue,) = cues([segment("the quick brown fox jumps over the lazy dog and runs away", 0.3)])
    assert cue.lines == ("the quick brown fox jumps over", "the lazy dog and runs away")


def test_short_sentences_share_a_cue_unless_silence_lies_between() -> None:
    assert texts(cues([segment("Так. Добра. Пайшлі.")])) == ["Так. Добра. Пайшлі."]
    found = cues([segment("Так. Добра. Пайшлі.", pauses={"Так.": 3.0})])
    assert texts(found) == ["Так.", "Добра. Пайшлі."]
    assert (found[0].start, found[0].end) == (0, 1.0)  # longer than the word, since there is room


def test_a_cue_without_room_ends_where_the_next_begins() -> None:
    found = cues([segment("Так.", 0.3), segment("Не.", 0.3, start=1.6)])
    assert [(cue.start, cue.end) for cue in found] == [(0, 1.0), (pytest.approx(1.6), pytest.approx(1.9))]


def test_words_without_end_are_cut() -> None:
    found = cues([segment("а" * 200, 6.0)])
    assert all(len(line) <= LINE for cue in found for line in cue.lines)
    assert "".join(line for cue in found for line in cue.lines) == "а" * 200
    assert cues([segment("слова", 20.0)]) == [Cue(0, LONGEST_CUE, ("слова",))]


def test_scripts_without_spaces_are_broken_between_characters() -> None:
    text = "今天天气很好我们去公园散步。" * 8
    found = cues([segment(text, 0.2), segment("明天。", 0.2, start=23.0)])
    assert "".join(line for cue in found for line in cue.lines) == text + "明天。"
    assert all(cue.lines[-1].endswith("。") for cue in found)


def random_text(random: np.random.Generator, count: int) -> str:
    words = [
        "Так",
        "вельмі",
        "«добра»",
        "дзень,",
        "сябры.",
        "—",
        "...",
        "e\u0301a",
        "ў",
        "今天",
        "好。",
        "ไทย",
        "-",
        "х" * 50,
    ]
    joints = [" ", " ", " ", "  ", "\n", ""]
    return "".join(str(random.choice(words)) + str(random.choice(joints)) for _ in range(count))


def timed(text: str, seconds: float, random: np.random.Generator) -> list[Word]:
    spans = word_spans(text)
    times = np.sort(random.uniform(0, seconds, 2 * len(spans)))
    return [
        Word(text[begin:end], float(times[2 * at]), float(times[2 * at + 1])) for at, (begin, end) in enumerate(spans)
    ]


def test_cues_have_the_whole_text_and_can_be_read() -> None:
    for seed in range(60):
        random = np.random.default_rng(seed)
        shared = random_text(random, int(random.integers(0, 6)))
        texts = [random_text(random, int(random.integers(0, 40))) for _ in range(3)]
        texts = [texts[0] + " " + shared, shared + " " + texts[1], texts[2]]
        spans = [AudioSpan(0, 28), AudioSpan(26, 54), AudioSpan(60, 80)]
        words = [timed(text, span.end - span.start, random) for text, span in zip(texts, spans, strict=True)]
        segments = join(texts, spans, words)
        assert [(one.start, one.end, one.text) for one in segments] == [
            (one.start, one.end, one.text) for one in join(texts, spans)
        ]
        for one in segments:
            assert "".join("".join(word.text for word in one.words).split()) == "".join(one.text.split())
        found = cues(segments)
        lines = [line for cue in found for line in cue.lines]
        assert "".join("".join(lines).split()) == "".join(as_text(segments).split()), seed
        for cue in found:
            assert 1 <= len(cue.lines) <= 2
            assert all(0 < len(regex.findall(r"\X", line)) <= LINE for line in cue.lines)
            assert 0 < cue.end - cue.start <= LONGEST_CUE + 1e-9
        for cue, other in pairwise(found):
            assert cue.end <= other.start
            assert cue.end - cue.start >= min(SHORTEST_CUE, other.start - cue.start) - 1e-9


NASTY = [
    Cue(0, 1.2345, ("Добры дзень, <b>сябры</b> & 'усе'",)),
    Cue(1.2345, 61.0, ("a b --> c ---> d", "e")),
    Cue(3599.9996, 3661.5, ("12",)),
]


def test_srt_is_written_as_players_read_it() -> None:
    two = [Cue(1, 2.5, ("Habari",)), Cue(3600.007, 3661.5, ("yako", "leo"))]
    assert as_srt(two) == (
        "1\n00:00:01,000 --> 00:00:02,500\nHabari\n\n2\n01:00:00,007 --> 01:01:01,500\nyako\nleo\n"
    )  # fmt: skip
    assert as_srt([]) == ""
    found = [cue.split("\n") for cue in as_srt(NASTY).rstrip("\n").split("\n\n")]
    assert [cue[0] for cue in found] == ["1", "2", "3"]
    assert [len(cue) for cue in found] == [3, 4, 3]
    assert [parsed(cue[1], ",") for cue in found] == [(0, 1.234), (1.234, 61), (3600, 3661.5)]
    assert [cue[2] for cue in found] == ["Добры дзень, <b>сябры</b> & 'усе'", "a b -> c -> d", "12"]
    assert as_srt(NASTY).count("-->") == 3


def test_vtt_is_written_as_browsers_read_it() -> None:
    assert as_vtt([Cue(1, 2.5, ("a < b",))]) == "WEBVTT\n\n00:00:01.000 --> 00:00:02.500\na &lt; b\n"
    assert as_vtt([]) == "WEBVTT\n"
    header, *blocks = as_vtt(NASTY).rstrip("\n").split("\n\n")
    assert header == "WEBVTT"
    found = [block.split("\n") for block in blocks]
    assert [parsed(cue[0], ".") for cue in found] == [(0, 1.234), (1.234, 61), (3600, 3661.5)]
    assert not any(re.search("[<>]|&(?!amp;|lt;|gt;)", line) for cue in found for line in cue[1:])
    assert [tuple(html.unescape(line) for line in cue[1:]) for cue in found] == [cue.lines for cue in NASTY]


def parsed(line: str, point: str) -> tuple[float, float]:
    """The times of a cue, in seconds."""
    clock = rf"(\d\d):(\d\d):(\d\d){re.escape(point)}(\d\d\d)"
    match = re.fullmatch(f"{clock} --> {clock}", line)
    assert match, line
    numbers = [int(number) for number in match.groups()]
    begin, end = (3600 * h + 60 * m + s + ms / 1000 for h, m, s, ms in (numbers[:4], numbers[4:]))
    return begin, end
