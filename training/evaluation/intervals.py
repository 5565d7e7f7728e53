"""95 % bootstrap intervals of corpus metrics: over groups, paired between systems, nested with seeds.

A corpus metric is a function of sums: bits per byte is bits / bytes, chrF is an F score of n-gram counts. Each group of
examples therefore leaves a vector of K sums, a resample of groups adds them up again, and `finish` makes the metric.

Shapes: G groups, S seeds, K sums, R draws.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

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


def resample(groups: int, seed: int = 0) -> Array:
    """(R, G) counts: how often each group is drawn when `groups` of them are drawn with replacement."""
    chances = np.full(groups, 1.0 / groups)
    return np.random.default_rng(seed).multinomial(groups, chances, size=DRAWS).astype(np.float64)


def interval(sums: Array, finish: Finish, *, seed: int = 0) -> Interval:
    """The metric of one system with its percentile interval.

    Args:
        sums: (G, K), or (S, G, K) for the same recipe trained with S seeds; the metric is then the mean over seeds.
        finish: makes the metric out of summed rows.
        seed: of the resampling, so that the same data gives the same interval.
    """
    stack = _stack(sums)
    return _percentiles(_point(stack, finish), _replicates(stack, finish, seed))


def difference(ours: Array, theirs: Array, finish: Finish, *, seed: int = 0) -> Interval:
    """`ours - theirs` on the same groups (and seeds), resampled together; shapes as in `interval`.

    Pairing matters: a hard paragraph is hard for both systems, and only what is left tells them apart.
    """
    return _paired(ours, theirs, finish, seed, np.subtract)


def relative(ours: Array, theirs: Array, finish: Finish, *, seed: int = 0) -> Interval:
    """`ours / theirs - 1`, otherwise as `difference`. Infinite or NaN where `theirs` is 0."""
    with np.errstate(divide="ignore", invalid="ignore"):
        return _paired(ours, theirs, finish, seed, lambda one, other: np.divide(one, other) - 1)


def _paired(ours: Array, theirs: Array, finish: Finish, seed: int, contrast: Callable[[Any, Any], Any]) -> Interval:
    if ours.shape != theirs.shape:
        raise ValueError(f"a paired comparison needs the same seeds and groups: {ours.shape} is not {theirs.shape}")
    left, right = _stack(ours), _stack(theirs)
    value = float(contrast(_point(left, finish), _point(right, finish)))
    return _percentiles(value, contrast(_replicates(left, finish, seed), _replicates(right, finish, seed)))


def _stack(sums: Array) -> Array:
    return sums[None] if sums.ndim == 2 else sums


def _point(stack: Array, finish: Finish) -> float:
    return float(np.mean(finish(stack.sum(axis=1))))


def _replicates(stack: Array, finish: Finish, seed: int) -> Array:
    """(R,) resampled values: seeds are drawn, then groups, and a draw's groups are the same under every seed.

    The test groups are common to all seeds, so drawing them anew for each seed would average their noise away.
    """
    seeds, groups, _ = stack.shape
    if groups < 2:
        return np.full(DRAWS, np.nan)
    weights = resample(groups, seed)
    values = np.stack([finish(weights @ of_seed) for of_seed in stack], axis=1)
    if seeds == 1:
        return values[:, 0]
    return np.asarray((values * resample(seeds, seed + 1)).sum(axis=1) / seeds)


def _percentiles(value: float, replicates: Array) -> Interval:
    defined = replicates[np.isfinite(replicates)]
    # a metric that most resamples leave undefined (say, no letter in any answer) has no honest interval
    if len(defined) < 0.9 * len(replicates):
        return Interval(value, float("nan"), float("nan"))
    low, high = np.percentile(defined, [2.5, 97.5])
    return Interval(value, float(low), float(high))
