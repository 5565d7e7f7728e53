"""Bootstrap intervals against cases that can be counted by hand."""

import math

import numpy as np
import pytest

from kauli.training.evaluation.intervals import Array, difference, interval, relative, resample


def mean(sums: Array) -> Array:
    """Sums (..., 2) of values and of counts."""
    return np.asarray(sums[..., 0] / sums[..., 1])


def column(*values: float) -> Array:
    return np.array([[value, 1.0] for value in values])


def test_resamples_draw_as_many_groups_as_there_are() -> None:
    counts = resample(7, seed=3)
    assert counts.shape == (1000, 7)
    assert (counts.sum(axis=1) == 7).all()
    assert counts.mean() == pytest.approx(1.0)
    assert (counts == resample(7, seed=3)).all()


def test_two_groups_give_both_ends() -> None:
    # the mean of a resample of {0, 1} is 0, 1/2 or 1 with chances 1/4, 1/2, 1/4: the 2.5 % points are 0 and 1
    found = interval(column(0.0, 1.0), mean)
    assert (found.value, found.low, found.high) == (0.5, 0.0, 1.0)


def test_interval_of_a_mean_has_its_standard_error(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("kauli.training.evaluation.intervals.DRAWS", 4000)
    values = np.random.default_rng(5).normal(10.0, 2.0, size=400)
    found = interval(column(*values), mean)
    error = values.std() / math.sqrt(len(values))
    assert found.value == pytest.approx(values.mean())
    assert found.low == pytest.approx(values.mean() - 1.96 * error, abs=0.1 * error)
    assert found.high == pytest.approx(values.mean() + 1.96 * error, abs=0.1 * error)


def test_rates_are_ratios_of_sums_not_means_of_rates() -> None:
    found = interval(np.array([[8.0, 4.0], [30.0, 10.0]]), mean)
    assert found.value == pytest.approx(38 / 14)
    assert [found.low, found.high] == pytest.approx([2.0, 3.0])


def test_a_group_is_drawn_whole() -> None:
    # 100 rows in 4 groups that agree inside: the interval is that of 4 values, not of 100
    groups = np.array([[0.0, 25.0], [25.0, 25.0], [0.0, 25.0], [25.0, 25.0]])
    found = interval(groups, mean)
    assert (found.low, found.high) == (0.0, 1.0)


def test_pairing_removes_what_is_hard_for_both() -> None:
    hard = np.random.default_rng(1).normal(5.0, 3.0, size=60)
    ours, theirs = column(*(hard - 0.2)), column(*hard)
    found = difference(ours, theirs, mean)
    assert [found.value, found.low, found.high] == pytest.approx([-0.2, -0.2, -0.2])
    alone = interval(ours, mean)
    assert alone.high - alone.low > 1.0


def test_the_same_system_differs_by_nothing() -> None:
    sums = column(*np.random.default_rng(2).normal(size=30))
    found = difference(sums, sums, mean)
    assert (found.value, found.low, found.high) == (0.0, 0.0, 0.0)


def test_seeds_that_agree_add_nothing() -> None:
    sums = column(*np.random.default_rng(3).normal(size=50))
    one, three = interval(sums, mean), interval(np.stack([sums] * 3), mean)
    assert [three.low, three.high] == pytest.approx([one.low, one.high])


def test_seeds_that_disagree_widen_the_interval() -> None:
    # every group has the same value, so only the seeds are left to vary: resamples of {0, 1} as above
    seeds = np.stack([column(0.0, 0.0, 0.0), column(1.0, 1.0, 1.0)])
    found = interval(seeds, mean)
    assert (found.value, found.low, found.high) == (0.5, 0.0, 1.0)


def test_noise_of_shared_groups_is_not_averaged_over_seeds() -> None:
    # the same groups stand behind every seed: ten seeds must not make the test set look ten times larger
    values = np.random.default_rng(4).normal(size=40)
    one = interval(column(*values), mean)
    ten = interval(np.stack([column(*values)] * 10), mean)
    assert ten.high - ten.low == pytest.approx(one.high - one.low)


def test_paired_seeds_cancel() -> None:
    lift = np.array([0.0, 3.0, -2.0])[:, None, None] * np.array([1.0, 0.0])
    theirs = np.stack([column(1.0, 2.0, 4.0)] * 3) + lift
    found = difference(theirs - np.array([0.5, 0.0]), theirs, mean)
    assert [found.low, found.high] == pytest.approx([-0.5, -0.5])


def test_one_group_has_no_interval() -> None:
    found = interval(column(2.0), mean)
    assert found.value == 2.0
    assert not found.known


def test_undefined_metric_has_no_interval() -> None:
    with np.errstate(divide="ignore", invalid="ignore"):
        found = interval(np.zeros((5, 2)), mean)
    assert math.isnan(found.value)
    assert not found.known


def test_different_groups_are_refused() -> None:
    with pytest.raises(ValueError, match="same seeds and groups"):
        difference(column(1.0, 2.0), column(1.0), mean)


def test_a_relative_change_is_a_quotient_of_the_totals() -> None:
    # 12 / 4 against 20 / 4: -40 %, not 12 * 20; the groups' own changes are -1/2 and -1/3, the ends of resamples of two
    ours, theirs = np.array([[4.0, 2.0], [8.0, 2.0]]), np.array([[8.0, 2.0], [12.0, 2.0]])
    found = relative(ours, theirs, mean)
    assert [found.value, found.low, found.high] == pytest.approx([12 / 20 - 1, 4 / 8 - 1, 8 / 12 - 1])
    swapped = relative(theirs, ours, mean)
    assert [swapped.value, swapped.low, swapped.high] == pytest.approx([20 / 12 - 1, 12 / 8 - 1, 8 / 4 - 1])


def test_a_relative_change_is_paired() -> None:
    hard = np.random.default_rng(6).uniform(1.0, 9.0, size=50)
    found = relative(column(*(0.8 * hard)), column(*hard), mean)
    assert [found.value, found.low, found.high] == pytest.approx([-0.2, -0.2, -0.2])


def test_a_relative_change_needs_the_same_groups_and_a_base() -> None:
    with pytest.raises(ValueError, match="same seeds and groups"):
        relative(column(1.0, 2.0), column(1.0), mean)
    nothing = relative(column(1.0, 2.0), column(0.0, 0.0), mean)
    assert math.isinf(nothing.value)
    assert not nothing.known
