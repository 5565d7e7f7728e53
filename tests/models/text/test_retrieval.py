"""Which pairs are chosen for a text: known answers."""

import numpy as np
import pytest

from kauli.models.text.retrieval import Candidate, choose, similarity


@pytest.mark.parametrize(
    ("a", "b", "score"),
    [
        ("Open file", "Open file", 100),
        ("Open  file ", "Open file", 100),  # white space is no difference
        ("Open file", "open file", 99),  # but another text is never 100
        ("abcd", "abce", 75),
        ("abcd", "wxyz", 0),
        ("e\u0301", "\u00e9", 100),
    ],
)
def test_the_fuzzy_match_score(a: str, b: str, score: float) -> None:
    assert similarity(a, b) == pytest.approx(score)


def sources(text: str, candidates: list[Candidate], count: int, vector: np.ndarray | None = None) -> list[str]:
    return [one.source for one in choose(text, vector, candidates, count)]


def test_the_most_similar_is_first_and_a_repetition_gives_way() -> None:
    found = [
        Candidate("open the file", "x", 3.0),
        Candidate("open the files", "x", 3.1),
        Candidate("the lid", "x", 1.9),
    ]
    assert sources("open the file now", found, 2) == ["open the files", "the lid"]
    assert set(sources("open the file now", found, 5)) == {one.source for one in found}
    assert sources("open", [], 3) == sources("open", found, 0) == []


def test_embeddings_find_what_shares_no_letters() -> None:
    near, far = np.array([1.0, 0.0], np.float32), np.array([0.0, 1.0], np.float32)
    found = [Candidate("qqqq", "x", 0.0, far), Candidate("zzzz", "y", 0.0, near)]
    assert sources("car", found, 1, near) == ["zzzz"]
    assert sources("car", found, 1, far) == ["qqqq"]


def test_the_order_of_the_candidates_does_not_matter_but_for_equals() -> None:
    found = [Candidate("a b c", "x", 1.0), Candidate("a b d", "x", 2.0), Candidate("q", "x", 0.5)]
    assert sources("a b", found, 3) == sources("a b", found[::-1], 3)
