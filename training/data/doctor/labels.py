"""Label errors by confident learning: a classifier that never saw a row's group disagrees with its label.

Northcutt, Jiang and Chuang (2021), "Confident Learning: Estimating Uncertainty in Dataset Labels": out-of-fold
probabilities, rows ranked by the margin between their own label and the best other one. The features are character
n-grams of the prompt, or with a base embeddings of the image and the prompt as well.
"""

from collections import Counter, defaultdict
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
from scipy.optimize import minimize_scalar
from scipy.sparse import csr_matrix, hstack
from sklearn.feature_extraction.text import TfidfVectorizer
from sklearn.linear_model import LogisticRegression
from sklearn.preprocessing import StandardScaler, normalize

from kauli.models.progress import note
from kauli.training.data.doctor.embeddings import image_embeddings, text_embeddings
from kauli.training.data.doctor.examined import LEAST_TEXTS, Examined, Finding, Floats
from kauli.training.data.groups import normalise

_STRENGTH, _OTHERWISE = 0.95, 0.8
_GRAMS = (1, 5)
REGULARISATION = 3.0
"""C of the regression."""


def label_errors(examined: Examined) -> Iterator[Finding]:
    """Rows whose label is less probable than another, by a regression on the other folds."""
    by_language = defaultdict(list)
    for place in examined.labelled:
        by_language[examined.rows[place]["language"]].append(place)
    for places in by_language.values():
        rows = [examined.rows[place] for place in places]
        seen = [at for at, row in enumerate(rows) if row["prompt"] or (row["image"] and examined.base)]
        if len(seen) < len(rows) and not examined.base:
            note(f"{len(rows) - len(seen):,} labelled images are not examined for wrong labels: --base kauli-towers")
        places = [places[at] for at in seen]
        names, labels = np.unique([examined.labelled[place] for place in places], return_inverse=True)
        if len(places) < LEAST_TEXTS or len(names) < 2:
            continue
        probable = out_of_fold(examined, places, labels, len(names))
        own = probable[np.arange(len(labels)), labels]
        others = probable.copy()
        others[np.arange(len(labels)), labels] = -1
        best = others.argmax(axis=1)
        for at, place in enumerate(places):
            share = float(others[at, best[at]] / (others[at, best[at]] + own[at]))
            if share > 0.5:
                told = f"the label is '{names[labels[at]]}' and looks like '{names[best[at]]}': "
                yield Finding(place, _STRENGTH * share, f"{told}{others[at, best[at]]:.0%} against {own[at]:.0%}")


def out_of_fold(examined: Examined, places: Sequence[int], labels: Any, classes: int) -> Floats:
    """(N, C) calibrated probabilities of the classes, each row's by a model that saw no row of its group."""
    features = _features(examined, places)
    logits = np.full((len(labels), classes), -20.0)
    for learned, scored in examined.folds_of(places):
        if len(set(labels[learned].tolist())) < 2:
            continue
        model = LogisticRegression(C=REGULARISATION, max_iter=300).fit(features[learned], labels[learned])
        logits[np.ix_(scored, model.classes_)] = model.predict_log_proba(features[scored])
    return _calibrated(logits, labels)


def _calibrated(logits: Floats, labels: Any) -> Floats:
    """Softmax at the temperature that makes the given labels likeliest (Guo et al. 2017)."""

    def loss(temperature: float) -> float:
        return -float(np.log(_softmax(logits / temperature)[np.arange(len(labels)), labels] + 1e-12).mean())

    return _softmax(logits / minimize_scalar(loss, bounds=(0.2, 5.0), method="bounded").x)


def _softmax(logits: Floats) -> Floats:
    shifted = np.exp(logits - logits.max(axis=1, keepdims=True))
    return np.asarray(shifted / shifted.sum(axis=1, keepdims=True))


def _features(examined: Examined, places: Sequence[int]) -> Any:
    """(N, F) sparse."""
    rows = [examined.rows[place] for place in places]
    parts = []
    prompts = [normalise(row["prompt"] or "") for row in rows]
    if any(prompts):
        parts.append(prompt_features(prompts))
    if examined.base:
        if any(prompts):
            parts.append(_centred(text_embeddings(examined.base, prompts)))
        if any(row["image"] for row in rows):
            parts.append(_centred(image_embeddings(examined.base, examined.dataset, rows)))
    return hstack(parts).tocsr()


def prompt_features(texts: Sequence[str]) -> Any:
    """(N, F) sparse TF-IDF of character n-grams."""
    least = 2 if len(texts) > 50 else 1
    grams = TfidfVectorizer(analyzer="char_wb", ngram_range=_GRAMS, sublinear_tf=True, min_df=least)
    return grams.fit_transform(texts)


def _centred(values: Floats) -> Any:
    return csr_matrix(normalize(StandardScaler().fit_transform(values)))


def other_answers(examined: Examined) -> Iterator[Finding]:
    """Rows whose prompt, image or clip has a different text, or label, in other rows."""
    asked: dict[tuple[Any, ...], list[int]] = defaultdict(list)
    for place, row in enumerate(examined.rows):
        prompt = normalise(row["input"] or row["prompt"] or "")
        if row["text"] and (prompt or any(row["media"])):
            asked[row["language"], prompt, row["media"]].append(place)
    for places in asked.values():
        if len(places) < 2:
            continue
        answers = Counter(normalise(examined.rows[place]["text"]) for place in places)
        if len(answers) < 2 or len(places) > max(10, len(examined.rows) // 20):  # an instruction of many rows
            continue
        most = max(answers.values())
        for place in places:
            mine = answers[normalise(examined.rows[place]["text"])]
            labelled = place in examined.labelled
            share = 1 - mine / len(places)
            if mine < most or labelled:
                told = f"{len(places) - mine} of {len(places)} rows with the same prompt or media have another text"
                yield Finding(place, (_OTHERWISE if labelled else _OTHERWISE / 4) * share, told)
