"""How unusual a figure is among those of the other rows: robust deviations, and what part of them is chance.

A deviation is (x - median) / (1.4826 median |x - median|), which a fifth of wrong rows hardly moves (Iglewicz and
Hoaglin 1993, "How to Detect and Handle Outliers"; they call 3.5 suspicious). How many such deviations chance alone
would make is the false discovery rate of Benjamini and Hochberg (1995, "Controlling the False Discovery Rate").
"""

import numpy as np
from scipy.stats import norm

from kauli.training.data.doctor.examined import Floats

SUSPICIOUS = 3.5
_SCALE = 1.4826  # of a normal distribution's median deviation, in standard deviations
_LEAST_BIN, _BINS = 40, 8


def deviations(values: Floats, floor: float = 1e-6) -> Floats:
    """(N,) robust deviations; `floor` is the least spread that is believed, in the unit of the values."""
    centre = np.median(values)
    spread = _SCALE * np.median(np.abs(values - centre))
    return np.asarray((values - centre) / max(float(spread), floor))


def deviations_by_size(values: Floats, sizes: Floats, floor: float = 1e-6) -> Floats:
    """(N,) robust deviations among rows of like size: figures of short texts spread more than those of long ones."""
    bins = max(1, min(_BINS, len(values) // _LEAST_BIN))
    found = np.zeros(len(values))
    for places in np.array_split(np.argsort(sizes, kind="stable"), bins):
        found[places] = deviations(values[places], floor)
    return found


def strengths(z: Floats, ceiling: float, half: float = SUSPICIOUS) -> Floats:
    """(N,) in [0, ceiling]: the part of rows this far out that is not chance, less for small deviations.

    `z / (z + half)` keeps the order of rows that chance can't explain.
    """
    order = np.argsort(-z, kind="stable")
    ranks = np.arange(1, len(z) + 1)
    rates = norm.sf(z[order]) * len(z) / ranks
    rates = np.minimum.accumulate(rates[::-1])[::-1]
    chance = np.empty(len(z))
    chance[order] = np.minimum(rates, 1)
    above = np.maximum(z, 0)
    return np.asarray(ceiling * (1 - chance) * above / (above + half))
