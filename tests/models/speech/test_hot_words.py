"""Hot words: what tokens earn, by hand; that a beam finds a word that is far from the likeliest; what is refused."""

from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from kauli.models.requests import TranscriptionRequest
from kauli.models.speech.hot_words import BONUS, HotWords, check_hot_words, hot_words_of
from support.whisper import sound, whisper


def earned(words: HotWords, history: list[int], token: int) -> float:
    found = words.log_probs(np.array([words.history(history)]), np.array([[token]]))
    return float(found[0, 0]) / BONUS


def test_a_word_earns_its_tokens_and_what_is_left_is_taken_back() -> None:
    words = HotWords([[1, 2, 3], [4]])
    assert [earned(words, history, token) for history, token in (([], 1), ([1], 2), ([1, 2], 3))] == [1, 1, 1]
    assert earned(words, [1, 2], 9) == -2
    assert earned(words, [1, 2], 1) == -1  # the old word is given up, and a new one begins
    assert earned(words, [1, 2, 3], 9) == 0  # a whole word keeps what it earned
    assert earned(words, [9], 4) == 1
    assert earned(words, [1, 2], 4) == -1  # two are lost, one is won
    assert words.wanted([1, 2]) == [1, 3, 4]


@pytest.mark.parametrize("tokens", [[1, 2, 3, 9, 4, 1, 2], [1, 1, 2, 3, 4, 4], [4, 1, 2, 9, 1, 2, 3]])
def test_a_sum_over_tokens_is_that_of_the_whole_words(tokens: list[int]) -> None:
    words = HotWords([[1, 2, 3], [4]])
    total = sum(earned(words, tokens[:at], token) for at, token in enumerate([*tokens, 9][: len(tokens) + 1]))
    whole = 3 * sum(tokens[at : at + 3] == [1, 2, 3] for at in range(len(tokens))) + tokens.count(4)
    assert sum(earned(words, tokens[:at], token) for at, token in enumerate(tokens)) + earned(words, tokens, 9) == whole
    assert total == whole


def test_the_search_is_drawn_to_them(monkeypatch: pytest.MonkeyPatch) -> None:
    task = whisper()
    request = TranscriptionRequest(sound(0.6, 2), "be", max_tokens=12)

    def text(**changes: Any) -> str:
        return "".join(c.text for some in task.generate([replace(request, **changes)], [None]) for c in some)

    assert "жаба" not in text()
    monkeypatch.setattr("kauli.models.speech.hot_words.BONUS", 30.0)  # of random weights, which want nothing
    assert "жаба" in text(hot_words=("жаба",)).lower()
    assert text(hot_words=("жаба",), temperature=0.5, seed=1) == text(temperature=0.5, seed=1)


def test_lists_of_words() -> None:
    assert hot_words_of(" Абебе,  Бат-Цэцэг\nАбебе ,") == ("Абебе", "Бат-Цэцэг")
    with pytest.raises(ValueError, match="51 words: at most 50"):
        check_hot_words([str(number) for number in range(51)])
    with pytest.raises(ValueError, match="has 65 characters"):
        check_hot_words(["a" * 65])
