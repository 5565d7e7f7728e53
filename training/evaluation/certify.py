"""Certificates: what the figures of an answer say of its score, learned on validation rows.

The expected score is a ridge regression on the figures. The bound is the 10 % quantile by linear quantile regression,
moved by what was missing on held-out rows: conformalised quantile regression (Romano, Patterson and Candes 2019, arXiv
1905.03222), cross-conformal over five folds of whole groups (Vovk 2015, "Cross-conformal predictors").
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import numpy as np
from sacrebleu.metrics.chrf import CHRF
from scipy.stats import spearmanr
from sklearn.linear_model import QuantileRegressor, RidgeCV
from sklearn.model_selection import GroupKFold

from kauli.models.adapters.certificate import Certificate, Linear, figures_of
from kauli.models.metrics import METRICS
from kauli.models.progress import bar
from kauli.training.evaluation.error_rates import character_edits
from kauli.training.evaluation.scorers import Row, clean

FEWEST_ROWS, FEWEST_GROUPS = 60, 30
"""Fewer say too little of a bound that fails for one answer in ten."""
LEVEL = 0.9
THRESHOLDS = {"chrf3": (53.0, 44.5), "cer": (0.10, 0.25)}
"""Metric -> (green, yellow) where nobody asks for others; those of chrF3 are in use for drafts of translations."""
_FOLDS, _PARTS = 5, 10
_SPARSE = 0.02  # of the quantile's L1 penalty, for figures and scores of standard deviation 1
_RIDGES = np.logspace(-1, 3, 9)
_CHRF3 = CHRF(beta=3)


@dataclass(frozen=True)
class Answered:
    """A validation row that was answered: the figures of the answer, and its score in the certificate's metric."""

    group: str
    language: str
    """Of the answer."""
    figures: dict[str, float]
    score: float
    source: str = ""
    """Of the row."""


def chrf3(text: str, reference: str) -> float:
    """chrF of one text with beta 3, 0 to 100."""
    return float(_CHRF3.sentence_score(clean(text), [clean(reference)]).score)


def character_errors(text: str, reference: str) -> float:
    """The character error rate of one transcript."""
    [[edits, size]] = character_edits([text], [reference])
    return edits / max(size, 1.0)


SCORES: dict[str, Callable[[str, str], float]] = {"chrf3": chrf3, "cer": character_errors}
"""Metric of certificates -> (answer, reference) to the score."""


def answered(
    served: Any, adapter: str, metric: str, rows: Sequence[Row], ask: Callable[[Row], Any],
    reference: Callable[[Row], str], known: Callable[[Row], dict[str, Any]],
) -> list[Answered]:  # fmt: skip
    """Answer rows with an adapter, and score each answer.

    Args:
        served: the served task with the adapter.
        adapter: its key.
        metric: of `SCORES`.
        rows: with `group` and, as the language of the answer, `to` or `language`.
        ask: a row -> its request, with `logprobs` 0.
        reference: what a row should be answered with.
        known: a row -> the named arguments of `figures_of` that do not come from the answer.
    """
    texts, costs, ends = [""] * len(rows), [list[float]() for _ in rows], [""] * len(rows)
    with bar("Answering validation rows", len(rows)) as advance:
        for chunks in served.generate([ask(row) for row in rows], [adapter] * len(rows)):
            for chunk in chunks:
                texts[chunk.row] += chunk.text
                costs[chunk.row] += [one.logprob for one in chunk.logprobs]
                if chunk.finish:
                    ends[chunk.row] = chunk.finish
                    advance()
    found = []
    for row, text, logprobs, end in zip(rows, texts, costs, ends, strict=True):
        language = row.get("to") or row["language"]
        figures = figures_of(text, logprobs, language, cut=end == "length", **known(row))
        score = SCORES[metric](text, reference(row))
        found.append(Answered(str(row["group"]), language, figures, score, str(row.get("source") or "")))
    return found


def fit_certificate(
    answers: Sequence[Answered], metric: str, thresholds: tuple[float, float] | None = None
) -> Certificate | None:
    """The certificate of answers in one language; None where there are too few.

    Raises ValueError for thresholds out of order.
    """
    groups = np.asarray([one.group for one in answers], dtype=object).astype(str)
    if len(answers) < FEWEST_ROWS or len(set(groups)) < FEWEST_GROUPS:
        return None
    sign = -1.0 if METRICS[metric].better == "lower" else 1.0
    truth = sign * np.asarray([one.score for one in answers])
    names = sorted({name for one in answers for name in one.figures})
    raw = np.asarray([[one.figures.get(name, 0.0) for name in names] for one in answers])
    low, high = np.quantile(raw, 0.01, axis=0), np.quantile(raw, 0.99, axis=0)
    figures = raw.clip(low, high)
    mean, spread = figures.mean(axis=0), figures.std(axis=0)
    used = spread > 1e-9
    inputs = (figures[:, used] - mean[used]) / spread[used]
    unit = max(float(truth.std()), 1e-9)

    held_out, missing = np.zeros(len(truth)), np.zeros(len(truth))
    fold = np.zeros(len(truth), dtype=int)
    for number, (learned, tested) in enumerate(GroupKFold(_FOLDS).split(inputs, groups=groups)):
        expected, quantile = _fit(inputs[learned], truth[learned] / unit)
        held_out[tested] = expected.predict(inputs[tested]) * unit
        missing[tested] = quantile.predict(inputs[tested]) * unit - truth[tested]
        fold[tested] = number
    held = [missing[fold == one] <= _needed(missing[fold != one]) for one in range(_FOLDS)]

    expected, quantile = _fit(inputs, truth / unit)
    kept = [name for name, one in zip(names, used, strict=True) if one]

    def linear(model: Any, shift: float = 0.0) -> Linear:
        weights = sign * unit * model.coef_ / spread[used]
        intercept = sign * (unit * float(model.intercept_) - shift) - float(weights @ mean[used])
        return Linear(intercept=intercept, weights=dict(zip(kept, map(float, weights), strict=True)))

    green, yellow = thresholds or THRESHOLDS[metric]
    order = np.argsort(held_out)
    parts = [order[start:end] for start, end in pairwise(np.linspace(0, len(order), _PARTS + 1).astype(int))]
    correlation = float(spearmanr(held_out, truth).statistic) if held_out.std() > 0 and truth.std() > 0 else math.nan
    return Certificate(
        metric=metric, level=LEVEL, green=green, yellow=yellow, segments=len(answers), groups=len(set(groups)),
        expected=linear(expected), bound=linear(quantile, _needed(missing)),
        seen={name: (float(low[at]), float(high[at])) for at, name in enumerate(names)},
        coverage=float(np.concatenate(held).mean()),
        rank_correlation=0.0 if math.isnan(correlation) else correlation,
        usual=(sign * float(held_out.mean()), float(held_out.std())),
        curve=[(sign * float(held_out[part].mean()), sign * float(truth[part].mean())) for part in parts],
    )  # fmt: skip


def _fit(inputs: Any, truth: Any) -> tuple[Any, Any]:
    quantile = QuantileRegressor(quantile=1 - LEVEL, alpha=_SPARSE, solver="highs")
    return RidgeCV(_RIDGES).fit(inputs, truth), quantile.fit(inputs, truth)


def _needed(missing: Any) -> float:
    """By how much a quantile has to be lowered so that it holds for `LEVEL` of further rows."""
    rank = math.ceil((len(missing) + 1) * LEVEL)
    return float(np.sort(missing)[min(rank, len(missing)) - 1])
