"""95 % bootstrap intervals of corpus metrics: over groups, paired between systems, nested with seeds.

A corpus metric is a function of sums: bits per byte is bits / bytes, chrF is an F score of n-gram counts. Each group of
examples therefore leaves a vector of K sums, a resample of groups adds them up again, and `finish` makes the metric.

Shapes: G groups, S seeds, K sums, R draws.
"""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.float64]
Finish = Callable[[Array], Array]  # sums (..., K) -> metric (...); NaN where it is undefined

DRAWS = 1000


@dataclass(frozen=True)
class Interval:
    """A metric with its 95 % interval; `low` and `high` are NaN where there is nothing to resample."""

    value: float
    low: float
    high: float

    @property
    def known(self) -> bool:
        """Whether the interval has ends."""
        return bool(np.isfinite(self.low) and np.isfinite(self.high))

    def pair(self) -> list[float]:
        """`[low, high]`."""
        return [self.low, self.high]


def resample(groups: int, draws: int = DRAWS, seed: int = 0) -> Array:
    """(R, G) counts: how often each group is drawn when `groups` of them are drawn with replacement."""
    chances = np.full(groups, 1.0 / groups)
    return np.random.default_rng(seed).multinomial(groups, chances, size=draws).astype(np.float64)


def interval(sums: Array, finish: Finish, *, draws: int = DRAWS, seed: int = 0) -> Interval:
    """The metric of one system with its percentile interval.

    Args:
        sums: (G, K), or (S, G, K) for the same recipe trained with S seeds; the metric is then the mean over seeds.
        finish: makes the metric out of summed rows.
        draws: resamples.
        seed: of the resampling, so that the same data gives the same interval.
    """
    stack = _stack(sums)
    return _percentiles(_point(stack, finish), _replicates(stack, finish, draws, seed))


def difference(ours: Array, theirs: Array, finish: Finish, *, draws: int = DRAWS, seed: int = 0) -> Interval:
    """`ours - theirs` on the same groups (and seeds), resampled together.

    Pairing matters: a hard paragraph is hard for both systems, and only what is left tells them apart.

    Args:
        ours: (G, K) or (S, G, K).
        theirs: the same shape.
        finish: makes the metric out of summed rows.
        draws: resamples.
        seed: of the resampling.
    """
    if ours.shape != theirs.shape:
        raise ValueError(f"a paired difference needs the same seeds and groups: {ours.shape} is not {theirs.shape}")
    left, right = _stack(ours), _stack(theirs)
    value = _point(left, finish) - _point(right, finish)
    return _percentiles(value, _replicates(left, finish, draws, seed) - _replicates(right, finish, draws, seed))


def relative(ours: Array, theirs: Array, finish: Finish, *, draws: int = DRAWS, seed: int = 0) -> Interval:
    """`ours / theirs - 1` on the same groups (and seeds), resampled together; shapes as in `difference`.

    Infinite or NaN where `theirs` is 0.
    """
    if ours.shape != theirs.shape:
        raise ValueError(f"a paired ratio needs the same seeds and groups: {ours.shape} is not {theirs.shape}")
    left, right = _stack(ours), _stack(theirs)
    with np.errstate(divide="ignore", invalid="ignore"):
        drawn = _replicates(left, finish, draws, seed) / _replicates(right, finish, draws, seed) - 1
        value = float(np.divide(_point(left, finish), _point(right, finish))) - 1
    return _percentiles(value, drawn)


def _stack(sums: Array) -> Array:
    return sums[None] if sums.ndim == 2 else sums


def _point(stack: Array, finish: Finish) -> float:
    return float(np.mean(finish(stack.sum(axis=1))))


def _replicates(stack: Array, finish: Finish, draws: int, seed: int) -> Array:
    """(R,) resampled values: seeds are drawn, then groups, and a draw's groups are the same under every seed.

    The test groups are common to all seeds, so drawing them anew for each seed would average their noise away.
    """
    seeds, groups, _ = stack.shape
    if groups < 2:
        return np.full(draws, np.nan)
    weights = resample(groups, draws, seed)
    values = np.stack([finish(weights @ of_seed) for of_seed in stack], axis=1)
    if seeds == 1:
        return values[:, 0]
    return np.asarray((values * resample(seeds, draws, seed + 1)).sum(axis=1) / seeds)


def _percentiles(value: float, replicates: Array) -> Interval:
    defined = replicates[np.isfinite(replicates)]
    # a metric that most resamples leave undefined (say, no letter in any answer) has no honest interval
    if len(defined) < 0.9 * len(replicates):
        return Interval(value, float("nan"), float("nan"))
    low, high = np.percentile(defined, [2.5, 97.5])
    return Interval(value, float(low), float(high))
