"""Certificates: bounds that hold as often as they say, and estimates that follow the score."""

import math

import numpy as np
import pytest
from sacrebleu.metrics.chrf import CHRF

from kauli.models.adapters.certificate import Certificate, Linear, figures_of
from kauli.training.evaluation.certify import FEWEST_ROWS, Answered, character_errors, chrf3, fit_certificate


def made(count: int, seed: int = 0, metric: str = "chrf3") -> list[Answered]:
    """Answers whose score falls with their cost, with noise that is wider for long ones; two rows a group."""
    draw = np.random.default_rng(seed)
    found = []
    for number in range(count):
        cost, length = float(draw.gamma(2.0, 0.4)), float(draw.uniform(1, 5))
        noise = float(draw.normal(0, 2 + 3 * length))
        score = min(100.0, max(0.0, 90 - 30 * cost + noise))
        score = (100 - score) / 100 if metric == "cer" else score
        found.append(Answered(f"g{number // 2}", "am", {"cost": cost, "length": length, "empty": 0.0}, score))
    return found


@pytest.mark.parametrize("metric", ["chrf3", "cer"])
def test_the_bound_holds_for_nine_of_ten_further_answers(metric: str) -> None:
    certificate = fit_certificate(made(240, 1, metric), metric)
    assert certificate is not None
    later = made(4000, 2, metric)
    estimates = [certificate.assess(one.figures) for one in later]
    sign = certificate.sign
    assert sign == (-1 if metric == "cer" else 1)
    held = np.mean([sign * (one.score - found.bound) >= 0 for one, found in zip(later, estimates, strict=True)])
    assert 0.86 < held < 0.95
    assert 0.85 < certificate.coverage < 0.95
    ranks = np.corrcoef([one.score for one in later], [one.expected for one in estimates])[0, 1]
    assert ranks > 0.7
    assert certificate.rank_correlation > 0.6
    assert all(sign * (one.expected - one.bound) >= 0 for one in estimates)
    expected = [one for one, _ in certificate.curve]
    assert expected == sorted(expected, reverse=sign < 0)
    assert (certificate.segments, certificate.groups) == (240, 120)


def test_too_few_rows_or_groups_give_none() -> None:
    assert fit_certificate(made(FEWEST_ROWS - 1), "chrf3") is None
    one_group = [Answered("g", "am", answer.figures, answer.score) for answer in made(200)]
    assert fit_certificate(one_group, "chrf3") is None


def test_thresholds_decide_the_colour_and_must_be_in_order() -> None:
    answers = made(120)
    certificate = fit_certificate(answers, "chrf3", (60.0, 30.0))
    assert certificate is not None
    colours = {certificate.assess({"cost": cost, "length": 3.0}).colour: cost for cost in (0.1, 1.2, 3.0)}
    assert list(colours) == ["green", "yellow", "red"]
    with pytest.raises(ValueError, match="green is at least yellow, got green 30 and yellow 60"):
        fit_certificate(answers, "chrf3", (30.0, 60.0))
    with pytest.raises(ValueError, match="green is at most yellow"):
        fit_certificate(made(120, metric="cer"), "cer", (0.3, 0.1))


def test_an_estimate_by_hand() -> None:
    certificate = Certificate(
        metric="chrf3", green=53, yellow=44.5, segments=100, groups=50,
        expected=Linear(intercept=80, weights={"cost": -20.0}), bound=Linear(intercept=60, weights={"cost": -20.0}),
        seen={"cost": (0.5, 2.0)}, coverage=0.9, rank_correlation=0.6, usual=(60.0, 10.0),
    )  # fmt: skip
    found = certificate.assess({"cost": 1.5})
    assert (found.expected, found.bound, found.colour, found.unusual) == (50.0, 30.0, "yellow", False)
    beyond = certificate.assess({"cost": 9.0})  # counts as 2.0
    assert (beyond.expected, beyond.bound, beyond.colour, beyond.unusual) == (40.0, 20.0, "red", True)
    assert certificate.doubt([found] * 7) is None  # too few
    assert "harder than what was learned" in (certificate.doubt([found] * 16) or "")  # 10 below: 4 standard errors
    usual = certificate.assess({"cost": 1.0})
    assert certificate.doubt([usual] * 100) is None
    assert certificate.doubt([usual] * 6 + [certificate.assess({"cost": 0.1})] * 6) is not None  # unlike what was seen


def test_the_figures_of_an_answer() -> None:
    found = figures_of("ab ab", [-0.5, -1.5], "en", source="abcd", similarity=50.0, seconds=2.0, cut=True)
    assert found["cost"] == pytest.approx(1.0)
    assert found["worst"] == pytest.approx(1.5)
    assert found["certainty"] == pytest.approx(math.exp(-1))
    assert found["length"] == pytest.approx(math.log(6))
    assert found["ratio"] == pytest.approx(math.log(6 / 5))
    assert (found["similarity"], found["speed"], found["cut"], found["foreign"]) == (0.5, 2.5, 1.0, 0.0)
    assert figures_of("ab", [], "am")["foreign"] == 1.0
    assert figures_of("", [], "am")["empty"] == 1.0


def test_scores_of_single_answers() -> None:
    assert chrf3("ቀይ መኪና", "ቀይ መኪና") == pytest.approx(100)
    assert chrf3("a red bus", "a red car") == pytest.approx(
        CHRF(beta=3).sentence_score("a red bus", ["a red car"]).score
    )
    assert character_errors("abxd", "abcd") == pytest.approx(0.25)
