"""Cheap stand-ins for a training: what rows of a kind teach a model that is fitted in a second.

Each scores validation rows by what a subset of the training rows tells. What a proxy gains from more data shows what a
training would gain; its scores are not those of the training.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from sklearn.feature_extraction.text import TfidfVectorizer
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import f1_score

from kauli.models.bases.find import Base
from kauli.models.errors import UsageError
from kauli.training.data.dataset import Dataset
from kauli.training.data.doctor.characters import CharacterModel
from kauli.training.data.doctor.embeddings import image_embeddings
from kauli.training.data.doctor.labels import REGULARISATION, prompt_features
from kauli.training.data.groups import normalise
from kauli.training.evaluation.scorers import CHRF_SCORER

Row = dict[str, Any]
Score = Callable[[NDArray[np.int64]], float]
"""Places of training rows -> the score on validation of what they teach."""
_ORDER = 5
_GRAMS = (2, 4)


@dataclass(frozen=True)
class Proxy:
    """What stands for a training."""

    what: str
    """In words, for the reader."""
    metric: str
    """A name of `kauli.models.metrics`."""
    best: float
    """The score that nothing exceeds."""
    usable: Callable[[Row], bool]
    """Whether a row teaches or tests it."""
    fit: Callable[[Dataset, Base | None, Sequence[Row], Sequence[Row]], Score]
    """(data set, base, training rows, validation rows) -> its scores."""
    embeds: bool = False
    """Whether it needs a base for `align`, where rows have images."""


def _characters(_data: Dataset, _base: Base | None, train: Sequence[Row], validation: Sequence[Row]) -> Score:
    texts, asked = [row["text"] for row in train], [row["text"] for row in validation]
    # The same alphabet for all sizes: a larger one would cost each letter more
    alphabet = "".join(sorted(set().union(*texts, *asked)))
    size = sum(len(text.encode()) for text in asked)

    def score(places: NDArray[np.int64]) -> float:
        model = CharacterModel([texts[at] for at in places], alphabet, _ORDER)
        return float(model.bits(asked).sum()) / size

    return score


def _nearest_pair(_data: Dataset, _base: Base | None, train: Sequence[Row], validation: Sequence[Row]) -> Score:
    inputs = [normalise(row["input"]) for row in (*train, *validation)]
    grams = TfidfVectorizer(analyzer="char_wb", ngram_range=_GRAMS, dtype=np.float32).fit_transform(inputs)
    alike = (grams[len(train) :] @ grams[: len(train)].T).toarray()
    counts: dict[tuple[int, int], Any] = {}

    def score(places: NDArray[np.int64]) -> float:
        best = places[alike[:, places].argmax(axis=1)]
        for asked, near in enumerate(best.tolist()):
            if (asked, near) not in counts:
                found, truth = train[near]["text"], validation[asked]["text"]
                counts[asked, near] = np.array(CHRF_SCORER._extract_corpus_statistics([found], [[truth]])[0])
        total = np.sum([counts[one] for one in enumerate(best.tolist())], axis=0)
        return float(CHRF_SCORER._compute_f_score(total.tolist()))

    return score


def _classes(data: Dataset, base: Base | None, train: Sequence[Row], validation: Sequence[Row]) -> Score:
    rows = [*train, *validation]
    if any(row["image"] for row in rows):
        if base is None:
            raise UsageError("the labels are of images: name a base that embeds them, such as --base kauli-towers.")
        found = image_embeddings(base, data, rows)
        features = (found - found.mean(axis=0)) / np.maximum(found.std(axis=0), 1e-6) / np.sqrt(found.shape[1])
    else:
        features = prompt_features([normalise(row["prompt"] or "") for row in rows])
    labels = np.array([normalise(row["text"]) for row in rows])
    asked = np.arange(len(train), len(rows))

    def score(places: NDArray[np.int64]) -> float:
        known = np.unique(labels[places])
        if len(known) == 1:
            guesses = np.repeat(known, len(asked))
        else:
            model = LogisticRegression(C=REGULARISATION, max_iter=100).fit(features[places], labels[places])
            guesses = model.predict(features[asked])
        found = f1_score(labels[asked], guesses, labels=np.unique(labels[asked]), average="macro", zero_division=0.0)
        return float(found)

    return score


def _has(*columns: str) -> Callable[[Row], bool]:
    return lambda row: all(row[name] for name in columns)


def _labelled(row: Row) -> bool:
    return bool(row["text"] and (row["image"] or row["prompt"]))


_OF_TEXTS = "a character n-gram model"
TEXT = Proxy(f"{_OF_TEXTS} of the texts", "bits_per_byte", 0.0, _has("text"), _characters)
PAIRS = Proxy("the text of the nearest training pair", "chrf", 100.0, _has("text", "input"), _nearest_pair)
LABELS = Proxy("logistic regression on features", "macro_f1", 1.0, _labelled, _classes, embeds=True)
_CAPTIONS = Proxy(f"{_OF_TEXTS} of the captions alone", "bits_per_byte", 0.0, _has("text", "image"), _characters)
_SPOKEN = Proxy(f"{_OF_TEXTS} of the transcripts alone", "bits_per_byte", 0.0, _has("text", "audio"), _characters)
PROXIES: dict[str, Proxy] = {
    "text": TEXT,
    "translate": PAIRS,
    "prompt": TEXT,
    "describe": _CAPTIONS,
    "align": _CAPTIONS,
    "head": LABELS,
    "transcribe": _SPOKEN,
    "speak": _SPOKEN,
}
"""Task -> what stands for its training."""
