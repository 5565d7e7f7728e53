"""An n-gram language model over a decoder's own tokens: estimated from token sequences, asked in batches.

Interpolated Kneser-Ney smoothing with one discount for each order (Kneser and Ney 1995; Chen and Goodman 1998,
"An Empirical Study of Smoothing Techniques for Language Modeling", equations 20 to 25):

    p(w | h) = max(c(h w) - D, 0) / c(h) + D N(h) / c(h) p(w | h'),   D = n1 / (n1 + 2 n2)

c counts occurrences for the highest order and for n-grams at the start of a text, else the distinct tokens before the
n-gram; N(h) are the distinct tokens after h, h' is h without its first token, n1 and n2 are the n-grams counted once
and twice. The lowest order is interpolated with the uniform distribution, so that every token has a probability.

An n-gram is kept as (place of its first n - 1 tokens, last token), one sorted integer: lookups are exact. Shape
letters: H histories, C candidates, N n-grams of an order.
"""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save_file

from kauli.models.errors import KauliError

Ints = NDArray[np.int64]
Floats = NDArray[np.float32]

NGRAMS = 2_000_000
"""N-grams that a model holds at most: about 32 MB."""
_DISCOUNT = 0.1, 0.9  # of data so small that the formula leaves them


@dataclass(frozen=True)
class TokenModel:
    """An n-gram model of one language for one tokenizer."""

    language: str
    tokenizer: str
    """The SHA-256 of the tokenizer whose tokens these are."""
    vocabulary: int
    """The number of tokens; the next number stands for the start of a text."""
    unigrams: Floats
    """(vocabulary + 1,) log probabilities; the last is that of the start, which never follows."""
    keys: tuple[Ints, ...]
    """For each order from 2 on (N,), sorted."""
    scores: tuple[Floats, ...]
    """The log probability of each."""
    backoffs: tuple[Floats, ...]
    """For each order but the last: what is added, after that n-gram, to the score of a token that is not kept."""

    @property
    def order(self) -> int:
        """The number of tokens in the longest n-grams."""
        return len(self.keys) + 1

    def history(self, tokens: Sequence[int]) -> list[int]:
        """The last tokens of a text, with its start, that the next one depends on; -1 before the start."""
        size = self.order - 1
        known = [self.vocabulary, *tokens][-size:] if size else []
        return [-1] * (size - len(known)) + known

    def log_probs(self, histories: Ints, candidates: Ints) -> Floats:
        """(H, C) natural log probabilities of candidates (H, C) after histories (H, order - 1)."""
        return self._log_probs(histories, candidates, self.order)

    def _log_probs(self, histories: Ints, candidates: Ints, order: int) -> Floats:
        found = self.unigrams[candidates]
        for size in range(1, order):
            context = self._places(histories[:, histories.shape[1] - size :])
            known = context >= 0
            backoff = np.where(known, self.backoffs[size - 1][context], np.float32(0))
            place = self._find(size - 1, np.where(known, context, -1)[:, None], candidates)
            found = np.where(place >= 0, self.scores[size - 1][place], found + backoff[:, None])
        return found

    def _places(self, ngrams: Ints) -> Ints:
        """(H,) place of each n-gram (H, n) among those of its order; -1: it is not kept."""
        place = ngrams[:, 0]
        for at in range(1, ngrams.shape[1]):
            place = self._find(at - 1, place, ngrams[:, at])
        return place

    def _find(self, level: int, context: Ints, token: Ints) -> Ints:
        keys = self.keys[level]
        wanted = np.where(context < 0, -1, context * (self.vocabulary + 1) + token)
        place = np.minimum(np.searchsorted(keys, wanted), len(keys) - 1)
        return np.where(keys[place] == wanted, place, -1)

    def save(self, path: Path, header: Mapping[str, str] | None = None) -> None:
        """Write it as safetensors, its language and tokenizer in the header, with what else is given."""
        arrays = {"unigrams": self.unigrams}
        for name in ("keys", "scores", "backoffs"):
            arrays |= {f"{name}.{level}": array for level, array in enumerate(getattr(self, name))}
        about = {"language": self.language, "tokenizer": self.tokenizer, "vocabulary": self.vocabulary}
        save_file(arrays, path, {"kauli_token_model": json.dumps(about | {"order": self.order}), **(header or {})})


def read(path: Path, tokenizer: str, language: str) -> TokenModel:
    """The model in a file; KauliError where it is of another tokenizer or language, or damaged."""
    try:
        with safe_open(path, "numpy") as file:
            about = json.loads((file.metadata() or {})["kauli_token_model"])
            levels = range(int(about["order"]) - 1)
            parts = {
                name: tuple(file.get_tensor(f"{name}.{level}") for level in levels)
                for name in ("keys", "scores", "backoffs")
            }
            found = TokenModel(
                about["language"], about["tokenizer"], int(about["vocabulary"]), file.get_tensor("unigrams"), **parts
            )
    except (SafetensorError, OSError, KeyError, ValueError, TypeError) as error:
        raise KauliError(f"{path} is no language model of Kauli ({error}): train the adapter again.") from error
    if found.tokenizer != tokenizer:
        raise KauliError(
            f"the language model {path} is of the tokenizer {found.tokenizer[:12]}, and the base has "
            f"{tokenizer[:12]}: use the base that it was made for, or train the adapter again."
        )
    if found.language != language:
        raise KauliError(f"the language model {path} is of the language '{found.language}', not of '{language}'.")
    _check(found, path)
    return found


def _check(model: TokenModel, path: Path) -> None:
    sizes = [model.vocabulary + 1, *map(len, model.keys)]
    arrays = (model.unigrams, *model.scores, *model.backoffs)
    sound = (
        [len(model.unigrams), *map(len, model.scores)] == sizes
        and list(map(len, model.backoffs)) == sizes[:-1]
        and all(array.dtype == np.float32 and bool(np.isfinite(array).all()) for array in arrays)
        and all(array.dtype == np.int64 and bool((np.diff(array) > 0).all()) for array in model.keys)
    )
    if not sound:
        raise KauliError(f"{path} is damaged: its arrays do not fit each other. Train the adapter again.")


def fit(
    texts: Sequence[Sequence[int]],
    *,
    vocabulary: int,
    end: int,
    order: int,
    language: str,
    tokenizer: str,
    limit: int = NGRAMS,
) -> TokenModel:
    """The model of these texts, each of tokens without the `end` token that closes it.

    Of more than `limit` n-grams those of low orders are kept, then the most frequent ones; where none is left for an
    order, the model's is lower. What is kept sums to 1.
    """
    if order < 1 or not texts:
        raise ValueError("a language model needs an order of 1 or more, and a text")
    start = vocabulary
    whole = [np.array([start, *text, end], dtype=np.int64) for text in texts]
    raw = [_counted(whole, size) for size in range(1, order + 1)]
    counts = [_kneser_ney(raw, level, start) for level in range(order)]
    unigrams = _unigrams(*counts[0], vocabulary)
    model = TokenModel(language, tokenizer, vocabulary, unigrams, (), (), ())
    for level in range(1, order):
        if limit <= 0 or not len(raw[level][0]):
            break
        model = _with_order(model, *counts[level], raw[level][1], limit)
        limit -= len(model.keys[-1])
    return model


def _counted(texts: Sequence[Ints], size: int) -> tuple[Ints, Ints]:
    """Distinct n-grams (N, size) and how often each occurs."""
    windows = [np.lib.stride_tricks.sliding_window_view(text, size) for text in texts if len(text) >= size]
    if not windows:
        return np.zeros((0, size), np.int64), np.zeros(0, np.int64)
    ngrams, counts = np.unique(np.concatenate(windows), axis=0, return_counts=True)
    return ngrams, counts


def _kneser_ney(raw: Sequence[tuple[Ints, Ints]], level: int, start: int) -> tuple[Ints, Ints]:
    ngrams, counts = raw[level]
    if level + 1 < len(raw):
        before = np.zeros_like(counts)
        _, inverse = np.unique(np.concatenate([ngrams, raw[level + 1][0][:, 1:]]), axis=0, return_inverse=True)
        np.add.at(before, inverse.ravel()[len(ngrams) :], 1)  # the distinct ones are `ngrams`
        counts = np.where(ngrams[:, 0] == start, counts, before)
    return ngrams, counts


def _discount(counts: Ints) -> float:
    once, twice = int((counts == 1).sum()), int((counts == 2).sum())
    return float(np.clip(once / max(1, once + 2 * twice), *_DISCOUNT))


def _unigrams(ngrams: Ints, counts: Ints, vocabulary: int) -> Floats:
    told = ngrams[:, 0] < vocabulary
    counts = counts[told]
    discount, total = _discount(counts), counts.sum()
    found = np.full(vocabulary + 1, discount * len(counts) / total / vocabulary)
    found[ngrams[told, 0]] += np.maximum(counts - discount, 0) / total
    logs: Any = np.log(found)
    logs[vocabulary] = -100.0
    return np.asarray(logs, dtype=np.float32)


def _with_order(model: TokenModel, ngrams: Ints, counts: Ints, frequency: Ints, limit: int) -> TokenModel:
    """The model with the next order: probabilities interpolated with it as it is."""
    context = model._places(ngrams[:, :-1])
    held = context >= 0
    ngrams, counts, frequency, context = ngrams[held], counts[held], frequency[held], context[held]
    width = len(model.scores[-1]) if model.scores else model.vocabulary + 1
    total = np.bincount(context, counts, width)
    discount = _discount(counts)
    lower = np.exp(model._log_probs(ngrams[:, :-1], ngrams[:, -1:], model.order)[:, 0].astype(np.float64))
    left = discount * np.bincount(context, minlength=width) / np.maximum(total, 1)
    scores = np.maximum(counts - discount, 0) / np.maximum(total[context], 1) + left[context] * lower
    if len(ngrams) > limit:
        chosen = np.sort(np.argsort(-frequency, kind="stable")[:limit])
        ngrams, context, scores, lower = ngrams[chosen], context[chosen], scores[chosen], lower[chosen]
    # What the kept ones leave, shared among all others
    rest = 1 - np.bincount(context, scores, width)
    others = 1 - np.bincount(context, lower, width)
    backoff = np.log(np.maximum(rest, 1e-9) / np.maximum(others, 1e-9))
    keys = context * (model.vocabulary + 1) + ngrams[:, -1]
    order = np.argsort(keys)
    return TokenModel(
        model.language,
        model.tokenizer,
        model.vocabulary,
        model.unigrams,
        (*model.keys, keys[order]),
        (*model.scores, np.log(scores[order]).astype(np.float32)),
        (*model.backoffs, backoff.astype(np.float32)),
    )
