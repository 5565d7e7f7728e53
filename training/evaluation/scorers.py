"""The metrics, each kept as sums by group: a total, a breakdown and an interval are all sums of the same rows.

BLEU and chrF are sacrebleu's own. Text is NFC and stripped before it is compared or counted.
"""

from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from itertools import pairwise
from typing import Any

import numpy as np
import regex
from sacrebleu.metrics.bleu import BLEU
from sacrebleu.metrics.chrf import CHRF

from kauli.models.languages import nfc, scripts
from kauli.models.metrics import metric_of
from kauli.training.evaluation.error_rates import character_edits, loops, word_edits
from kauli.training.evaluation.intervals import Array, Finish

Row = Mapping[str, Any]
RowSums = Iterable[Sequence[float]]  # (rows, K)

CHRF_SCORER = CHRF()
_CHRF_PP = CHRF(word_order=2)
_BLEU = BLEU()
RANKS = 256
"""Ranks that `median_rank` tells apart: the last stands for all that are no better."""


@dataclass(frozen=True)
class Tally:
    """One metric's sums: `sums` is (groups, K), one row for each of `groups` (sorted, unique)."""

    metric: str
    groups: tuple[str, ...]
    sums: Array

    def value(self) -> float:
        """The metric over all groups; NaN where it is undefined."""
        return float(self.finish(self.sums.sum(axis=0)))

    @property
    def finish(self) -> Finish:
        """Makes the metric out of summed rows."""
        return finish_of(self.metric)

    def to_json(self) -> dict[str, Any]:
        """Plain lists."""
        return {"groups": list(self.groups), "sums": self.sums.tolist()}


def tally_from_json(metric: str, stored: Mapping[str, Any]) -> Tally:
    """The inverse of `Tally.to_json`."""
    return Tally(metric, tuple(stored["groups"]), np.asarray(stored["sums"], dtype=np.float64))


def tally(metric: str, groups: Sequence[str], values: Iterable[Sequence[float]]) -> Tally:
    """Sum per-row `values` (rows, K) by the rows' groups."""
    names, place = np.unique(np.asarray(groups, dtype=object).astype(str), return_inverse=True)
    stacked = np.asarray(list(values), dtype=np.float64)
    sums = np.zeros((len(names), stacked.shape[1]))
    np.add.at(sums, place, stacked)
    return Tally(metric, tuple(str(name) for name in names), sums)


def merge(tallies: Sequence[Tally]) -> Tally:
    """Add the sums of several tallies of one metric (of languages, say); a group they share becomes one."""
    groups = [group for one in tallies for group in one.groups]
    return tally(tallies[0].metric, groups, np.concatenate([one.sums for one in tallies]))


def score_bits(rows: Sequence[Row], bits: Sequence[tuple[float, int]]) -> Tally:
    """Bits per byte: sums of bits and of bytes, so that a long row weighs what it is long."""
    return tally("bits_per_byte", [row["group"] for row in rows], [[cost, size] for cost, size in bits])


def score_answers(
    predictions: Sequence[str], references: Sequence[str], rows: Sequence[Row], kinds: Sequence[str] = ("text",)
) -> dict[str, Tally]:
    """Every metric that `SCORERS` has for answers of these kinds, of one system on rows of one language.

    Args:
        predictions: one for each row.
        references: what should have been generated.
        rows: with `group` and `language`.
        kinds: "text", "translation", "description", "transcript".

    Returns:
        Metric name -> sums by group. distinct_2 and self_bleu compare each text with all the others given here; their
        intervals resample what each text contributes, since copies made by resampling would pass for repetition.
    """
    texts, targets = [clean(text) for text in predictions], [clean(text) for text in references]
    groups = [row["group"] for row in rows]
    chosen = {name: scorer for name, scorer in SCORERS.items() if scorer.kinds & set(kinds)}
    return {name: tally(name, groups, scorer.sums(texts, targets, rows)) for name, scorer in chosen.items()}


def sentence_chrf(prediction: str, reference: str) -> float:
    """chrF of one text, 0-100."""
    return float(CHRF_SCORER.sentence_score(clean(prediction), [clean(reference)]).score)


def chrf_signature() -> str:
    """How sacrebleu computed chrF, as it wants to be quoted."""
    CHRF_SCORER.num_refs = 1  # the signature is only complete once a score was computed
    return str(CHRF_SCORER.get_signature())


def clean(text: str) -> str:
    """NFC, without outer white space."""
    return nfc(text).strip()


def _chrf_counts(texts: Sequence[str], targets: Sequence[str], rows: Sequence[Row]) -> RowSums:
    """Per text its n-gram counts: summing and finishing them is what sacrebleu's corpus score does."""
    counts: RowSums = CHRF_SCORER._extract_corpus_statistics(texts, [targets])
    return counts


def _chrf_pp_counts(texts: Sequence[str], targets: Sequence[str], rows: Sequence[Row]) -> RowSums:
    counts: RowSums = _CHRF_PP._extract_corpus_statistics(texts, [targets])
    return counts


def _bleu_counts(texts: Sequence[str], targets: Sequence[str], rows: Sequence[Row]) -> RowSums:
    """Per text the two lengths, and the right and all n-grams of each order, as sacrebleu sums them."""
    counts: RowSums = _BLEU._extract_corpus_statistics(texts, [targets])
    return counts


def _exact(texts: Sequence[str], targets: Sequence[str], rows: Sequence[Row]) -> RowSums:
    return [[float(text == right), 1.0] for text, right in zip(texts, targets, strict=True)]


def _distinct(texts: Sequence[str], targets: Sequence[str], rows: Sequence[Row]) -> RowSums:
    """Per text: its share of the distinct word bigrams, and its bigrams.

    A bigram that occurs k times gives each of its places 1/k, so the shares add up to the number of distinct ones.
    """
    bigrams = [list(pairwise(words)) for words in (text.split() for text in texts)]
    counts = Counter(pair for one in bigrams for pair in one)
    return [[sum(1.0 / counts[pair] for pair in one), float(len(one))] for one in bigrams]


def _self_bleu(texts: Sequence[str], targets: Sequence[str], rows: Sequence[Row]) -> RowSums:
    """Per text: its BLEU (0-1) against all the others, and 1; nothing for a lone text."""
    if len(texts) < 2:
        return [[0.0, 0.0] for _ in texts]
    bleu = BLEU(effective_order=True)  # short answers have no 4-grams
    others = [[other for j, other in enumerate(texts) if j != i] for i in range(len(texts))]
    return [[bleu.sentence_score(text, rest).score / 100, 1.0] for text, rest in zip(texts, others, strict=True)]


@cache
def _letters(language: str) -> "regex.Pattern[str]":
    return regex.compile("|".join(rf"\p{{Script={script}}}" for script in sorted(scripts(language))) or r"\p{L}")


def _script(texts: Sequence[str], targets: Sequence[str], rows: Sequence[Row]) -> RowSums:
    """Per text: letters of the language's scripts, and letters; marks belong to their letters and are not counted."""
    found = []
    for text, row in zip(texts, rows, strict=True):
        letters, ours = regex.findall(r"\p{L}", text), _letters(row.get("to") or row["language"])
        found.append([float(sum(1 for letter in letters if ours.match(letter))), float(len(letters))])
    return found


@dataclass(frozen=True)
class Scorer:
    """How a metric is counted: (predictions, references, rows) of one language -> the sums of each row."""

    kinds: frozenset[str]
    """Of answers that it is for: "text" (of a language model), "translation", "description", "transcript"."""
    sums: Callable[[Sequence[str], Sequence[str], Sequence[Row]], RowSums]


SCORERS: dict[str, Scorer] = {
    "chrf": Scorer(frozenset({"text", "description"}), _chrf_counts),
    "chrf_pp": Scorer(frozenset({"translation"}), _chrf_pp_counts),
    "bleu": Scorer(frozenset({"translation"}), _bleu_counts),
    "exact": Scorer(frozenset({"text", "description"}), _exact),
    "distinct_2": Scorer(frozenset({"text"}), _distinct),
    "self_bleu": Scorer(frozenset({"text"}), _self_bleu),
    "script_share": Scorer(frozenset({"text"}), _script),
    "cer": Scorer(frozenset({"transcript"}), character_edits),
    "wer": Scorer(frozenset({"transcript"}), word_edits),
    "looped": Scorer(frozenset({"transcript"}), loops),
}
"""The metrics of generated answers; the others are counted where their figures arise."""


def _ratio(sums: Array) -> Array:
    with np.errstate(divide="ignore", invalid="ignore"):
        return np.asarray(np.where(sums[..., 1] > 0, sums[..., 0] / sums[..., 1], np.nan))


def _by_row(score: Callable[[Any], float]) -> Finish:
    """A score of sacrebleu's for each row of sums: one Python call for each resample, 15 ms for 1,000 of them."""

    def finish(sums: Array) -> Array:
        flat = sums.reshape(-1, sums.shape[-1])
        return np.asarray([score(row.tolist()) for row in flat]).reshape(sums.shape[:-1])

    return finish


def _median_rank(sums: Array) -> Array:
    """The least rank that half of the queries reach; sums count the queries at each rank from 1 up."""
    reached = np.cumsum(sums, axis=-1)
    median = 1.0 + np.argmax(2 * reached >= reached[..., -1:], axis=-1)
    return np.asarray(np.where(reached[..., -1] > 0, median, np.nan))


def _macro_f1(sums: Array) -> Array:
    """The mean F1 over classes from (..., C * C) counts of (class, guess); a class without either is left out."""
    classes = round(sums.shape[-1] ** 0.5)
    counts = sums.reshape(*sums.shape[:-1], classes, classes)
    right = np.diagonal(counts, axis1=-2, axis2=-1)
    both = counts.sum(axis=-1) + counts.sum(axis=-2)
    with np.errstate(divide="ignore", invalid="ignore"):
        return np.asarray(np.nanmean(np.where(both > 0, 2 * right / both, np.nan), axis=-1))


FINISH: dict[str, Finish] = {
    "ratio": _ratio,
    "root": lambda sums: np.sqrt(_ratio(sums)),
    "chrf": _by_row(CHRF_SCORER._compute_f_score),
    "chrf_pp": _by_row(_CHRF_PP._compute_f_score),
    "bleu": _by_row(lambda sums: float(_BLEU._compute_score_from_stats([round(one) for one in sums]).score)),
    "macro_f1": _macro_f1,
    "median_rank": _median_rank,
}
"""`Metric.finish` -> sums (..., K) to figures (...)."""


def finish_of(metric: str) -> Finish:
    """Makes the figure of a metric, with or without prefixes, out of its summed rows."""
    return FINISH[metric_of(metric).finish]
