"""Whether a clip is long enough, or too long, for what it is said to say."""

from collections.abc import Iterator

import numpy as np

from kauli.training.data.doctor.examined import LEAST_TEXTS, Examined, Finding
from kauli.training.data.doctor.outliers import SUSPICIOUS, deviations, strengths

_STRENGTH = 0.95
_LEAST_SPREAD, _HALF = 0.05, 1.0  # speeds of reading have no long tail, unlike lengths


def speed(examined: Examined) -> Iterator[Finding]:
    """Characters a second against the other clips of the language, by the logarithm: both ends are suspicious."""
    by_language: dict[str, list[int]] = {}
    for place in examined.seconds:
        by_language.setdefault(examined.rows[place]["language"], []).append(place)
    for tag, places in by_language.items():
        if len(places) < LEAST_TEXTS:
            continue
        rates = np.array([len(examined.rows[place]["text"]) / examined.seconds[place] for place in places])
        z = deviations(np.log(rates), _LEAST_SPREAD)
        usual = float(np.median(rates))
        for at, strength in enumerate(strengths(np.abs(z), _STRENGTH, _HALF)):
            if abs(z[at]) >= SUSPICIOUS / 2:
                way = "longer than what is said" if z[at] > 0 else "shorter than what is said"
                told = f"{rates[at]:.0f} characters a second, usual in {tag} are {usual:.0f}: the text may be {way}"
                yield Finding(places[at], float(strength), told)
