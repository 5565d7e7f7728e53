"""A score against the amount of data: a power law with an asymptote, and what it says of more data.

    score(n) = a + b n^-c

Hestness et al. (2017), "Deep Learning Scaling is Predictable, Empirically", find it over many tasks; Viering and Loog
(2022), "The Shape of Learning Curves: a Review", also where it fails. So that an interval tells the doubt about the
shape as well, a quarter of the bootstrap fits have another shape that the review finds often, a + b log n. A negative c
is a curve that still gets steeper in log n, as at its beginning; it has no asymptote.

Shapes: S sizes, D draws of nested subsets, B bootstrap fits.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]
FITS = 400
LEAST_SIZES = 4
COVERED = 0.9
"""Of the interval."""
_EXPONENTS = np.concatenate([np.linspace(-0.4, -0.05, 15), np.linspace(0.05, 1.5, 59)])


@dataclass(frozen=True)
class Curve:
    """A fitted power law."""

    a: float
    b: float
    c: float

    def __call__(self, size: float) -> float:
        """The score at a size."""
        return float(self.a + self.b * size**-self.c)


@dataclass(frozen=True)
class Expected:
    """The score that an amount of data would bring, with its interval."""

    size: float
    score: float
    low: float
    high: float


def fit_curve(sizes: Sequence[float] | Floats, scores: Sequence[float] | Floats, best: float) -> Curve:
    """The power law of least squares through some scores.

    `c` is in [-0.4, 1.5]; where it is positive, the asymptote `a` is no better than `best`, which nothing exceeds.
    """
    n, y = np.asarray(sizes, dtype=np.float64), np.asarray(scores, dtype=np.float64)
    x = n[None] ** -_EXPONENTS[:, None]
    dx, dy = x - x.mean(axis=1, keepdims=True), y - y.mean()
    b = dx @ dy / (dx**2).sum(axis=1)
    a = y.mean() - b * x.mean(axis=1)
    beyond = (_EXPONENTS > 0) & ((a - best) * (best - y[-1]) > 0)
    a = np.where(beyond, best, a)
    b = np.where(beyond, x @ (y - best) / (x**2).sum(axis=1), b)
    chosen = int(((y - a[:, None] - b[:, None] * x) ** 2).sum(axis=1).argmin())
    return Curve(float(a[chosen]), float(b[chosen]), float(_EXPONENTS[chosen]))


def forecast(
    sizes: Sequence[float], draws: Floats, wanted: Sequence[float], best: float, seed: int = 0
) -> list[Expected]:
    """The scores at the `wanted` sizes, with 90 % intervals by bootstrap.

    Args:
        sizes: (S,) rising, of the subsets.
        draws: (D, S) scores; a draw's subsets are nested, and the largest is the same in all.
        wanted: sizes to tell of.
        best: the score that nothing exceeds.
        seed: of the bootstrap.

    A fit is of draws that are drawn with replacement, less up to a third of the smallest sizes, with one of both
    shapes. Its forecast gets the noise of another sample: what subsets of the half differ by.
    """
    n = np.asarray(sizes, dtype=np.float64)
    random = np.random.default_rng(seed)
    noise = _noise(draws)
    found = np.zeros((FITS, len(wanted)))
    most = max(0, min(len(n) // 3, len(n) - LEAST_SIZES))
    for number in range(FITS):
        chosen = draws[random.integers(len(draws), size=len(draws))].mean(axis=0)
        first = int(random.integers(most + 1))
        own = chosen + random.normal(0, 1, len(n)) * noise / np.sqrt(len(draws))
        if number % 4:
            power = fit_curve(n[first:], own[first:], best)
            found[number] = [power(size) for size in wanted]
        else:
            b, a = np.polyfit(np.log(n[first:]), own[first:], 1)
            found[number] = a + b * np.log(wanted)
        found[number] += random.normal(0, noise[-1], len(wanted))
    found = np.maximum(found, best) if best < draws.mean() else np.minimum(found, best)
    tail = 100 * (1 - COVERED) / 2
    low, middle, high = np.percentile(found, [tail, 50, 100 - tail], axis=0)
    ends = zip(wanted, middle.tolist(), low.tolist(), high.tolist(), strict=True)
    return [Expected(size, *score) for size, *score in ends]


def _noise(draws: Floats) -> Floats:
    """(S,) standard deviation of a score between samples of a size; of the largest, which is one, that of the half."""
    spread = draws.std(axis=0, ddof=1) if len(draws) > 1 else np.zeros(draws.shape[1])
    # Subsets of more than half of the rows share most of them: their spread is too small
    last = max(0, len(spread) - 3)
    return np.concatenate([spread[: last + 1], np.full(len(spread) - last - 1, spread[last])])
