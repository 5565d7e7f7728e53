"""Forecasts: the curve by hand, coverage of intervals, proxies against other libraries, what is uncovered."""

from itertools import pairwise

import numpy as np
import pytest
from sacrebleu.metrics.chrf import CHRF

from kauli.models.errors import UsageError
from kauli.models.metrics import METRICS
from kauli.training.data.dataset import Dataset
from kauli.training.data.doctor.characters import CharacterModel
from kauli.training.forecast.coverage import characters, sounds, uncovered, words
from kauli.training.forecast.curve import fit_curve, forecast
from kauli.training.forecast.forecast import check_enough, learn, subset_sizes
from kauli.training.forecast.proxies import LABELS, PAIRS, PROXIES, TEXT
from kauli.training.tasks.table import TASKS

NOTHING = Dataset("nothing", [], ["sw"])
SIZES = [64, 128, 256, 512, 1024]


@pytest.mark.parametrize(("a", "b", "c", "best"), [(1.2, 8.0, 0.55, 0.0), (60.0, -90.0, 0.3, 100.0)])
def test_a_power_law_is_found_again(a: float, b: float, c: float, best: float) -> None:
    curve = fit_curve(SIZES, [a + b * size**-c for size in SIZES], best)
    assert (curve.a, curve.b, curve.c) == pytest.approx((a, b, c), rel=1e-6)
    assert curve(4096) == pytest.approx(a + b * 4096**-c)


def test_the_asymptote_is_no_better_than_a_perfect_score() -> None:
    scores = [-0.5 + 4 * size**-0.2 for size in SIZES]
    assert fit_curve(SIZES, scores, -10.0).a == pytest.approx(-0.5)
    bounded = fit_curve(SIZES, scores, 0.0)
    assert 0 <= bounded.a < 0.1
    assert bounded(10**12) > 0
    assert [bounded(size) for size in SIZES] == pytest.approx(scores, abs=0.02)


def test_intervals_cover_what_they_say() -> None:
    """Of true curves with noise as between samples, at least 85 in 100 are inside at four times the data."""
    random = np.random.default_rng(4)
    inside = 0
    for number in range(60):
        a, b, c = random.uniform(0.5, 2), random.uniform(3, 9), random.uniform(0.2, 0.6)
        noise = 0.4 * np.array(SIZES) ** -0.5
        draws = np.array([[a + b * n**-c for n in SIZES] + noise * random.normal(0, 1, 5) for _ in range(8)])
        draws[:, -1] = draws[0, -1]
        [far] = forecast(SIZES, draws, [4 * SIZES[-1]], 0.0, seed=number)
        inside += far.low <= a + b * (4 * SIZES[-1]) ** -c + noise[-1] / 2 * random.normal() <= far.high
        assert far.low <= far.score <= far.high
    assert inside >= 51


def test_more_draws_narrow_the_interval() -> None:
    random = np.random.default_rng(1)
    draws = 1 + 5 * np.array(SIZES) ** -0.4 + random.normal(0, 0.02, (40, 5))
    wide, narrow = (forecast(SIZES, draws[:count], [4096], 0.0)[0] for count in (3, 40))
    assert narrow.high - narrow.low < wide.high - wide.low + 0.02


def test_subsets_are_nested_groups_and_the_last_is_all() -> None:
    groups = [f"g{at // 3}" for at in range(300)]
    asked: list[set[int]] = []

    def score(places: np.ndarray) -> float:
        asked.append(set(places.tolist()))
        return float(len(places))

    learned = learn(score, groups, draws=3)
    assert learned.groups == tuple(subset_sizes(100))
    assert learned.groups[-1] == 100
    np.testing.assert_array_equal(learned.draws, np.tile(3.0 * np.array(learned.groups), (3, 1)))
    whole, *subsets = asked
    assert len(whole) == 300
    for first in range(0, len(subsets), len(learned.groups) - 1):
        nested = subsets[first : first + len(learned.groups) - 1]
        assert all(one < other for one, other in pairwise(nested))
        assert all({3 * (at // 3) + step for at in one for step in range(3)} == one for one in nested)
    assert subsets[0] != subsets[len(learned.groups) - 1]


def test_the_text_proxy_is_bits_per_byte() -> None:
    train = [{"text": text} for text in ("mama", "maji", "moto", "mti")]
    asked = [{"text": "majo"}, {"text": "ño"}]
    score = TEXT.fit(NOTHING, None, train, asked)
    alphabet = "".join(sorted(set("mamamajimotomtimajoño")))
    bits = CharacterModel(["mama", "moto"], alphabet, 5).bits(["majo", "ño"])
    assert score(np.array([0, 2])) == pytest.approx(bits.sum() / 7)  # ñ has two bytes


def test_the_pair_proxy_is_the_chrf_of_the_nearest_text() -> None:
    train = [
        {"input": "the red car", "text": "gari jekundu"},
        {"input": "a blue house", "text": "nyumba ya bluu"},
        {"input": "the red house", "text": "nyumba nyekundu"},
    ]
    asked = [{"input": "the red cars", "text": "magari mekundu"}, {"input": "blue houses", "text": "nyumba za bluu"}]
    score = PAIRS.fit(NOTHING, None, train, asked)
    chrf = CHRF()
    truth = [[row["text"] for row in asked]]
    assert score(np.arange(3)) == pytest.approx(chrf.corpus_score(["gari jekundu", "nyumba ya bluu"], truth).score)
    assert score(np.array([2])) == pytest.approx(chrf.corpus_score(["nyumba nyekundu"] * 2, truth).score)


def test_the_label_proxy_is_macro_f1_and_one_class_is_always_guessed() -> None:
    train = [{"prompt": f"{word} {at}", "text": label, "image": None}
             for label, word in (("animal", "paka simba"), ("food", "wali nyama")) for at in range(10)]  # fmt: skip
    asked = [{"prompt": "paka", "text": "animal", "image": None}, {"prompt": "wali", "text": "food", "image": None}]
    score = LABELS.fit(NOTHING, None, train, asked)
    assert score(np.arange(20)) == 1.0
    assert score(np.arange(10)) == pytest.approx((2 / 3 + 0) / 2)  # "animal" twice: F1 of 2/3 and of 0


def test_every_task_has_a_proxy_with_a_known_metric() -> None:
    assert set(PROXIES) == set(TASKS)
    assert {one.metric for one in PROXIES.values()} <= set(METRICS)


def test_what_is_uncovered_is_counted() -> None:
    found = uncovered(["Mama moto"], ["mama ñoño, ñ", "moto zuri"], characters)
    assert found.counts == (("ñ", 3), (",", 1), ("z", 1), ("u", 1), ("r", 1), ("i", 1))
    assert (found.different, found.share) == (10, pytest.approx(8 / 18))
    assert uncovered(["Mama moto"], ["mama maji", "Maji"], words).counts == (("maji", 2),)
    assert sounds("ˈtʃaɪ ɐ̃ːno") == ["t", "ʃ", "a", "ɪ", "ɐ̃ː", "n", "o"]


def test_too_little_data_says_how_much_is_needed() -> None:
    train = [{"group": f"g{at}"} for at in range(20)]
    with pytest.raises(
        UsageError, match="20 usable training rows in 20 groups and 5 validation rows: a forecast needs 32"
    ):
        check_enough("mine", train, [{}] * 5)
