"""Retrieval of the task `align`: images find their captions and captions their images among held-out groups.

A gallery is all that a split has in one language. What is found is a group, not a row: a query's rank is 1 + the number
of other groups with a candidate that scores at least as high as the best candidate of the query's own group. So a
concept with several images or captions counts once against others, the nearest of its own decides its rank, and a tie
counts against the model (embeddings that are all alike rank last, not first).
"""

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from kauli.training.evaluation.request import ADAPTER, EvalRequest
from kauli.training.evaluation.results import EvalResult
from kauli.training.evaluation.scorers import RANKS, Row, Tally, tally
from kauli.training.evaluation.systems import BASE, Answering, Systems
from kauli.training.features.images import image_rows
from kauli.training.features.left_out import LeftOut
from kauli.training.features.pairs import image_features, text_features

Ints = NDArray[np.int64]
CUTS = (1, 5, 10)


def evaluate_align(request: EvalRequest) -> EvalResult:
    """Evaluate projections beside those of the base.

    Raises:
        UsageError: the split holds no image with a text in these languages.
        KauliError: a damaged adapter, or one of another base.
    """
    rows, left_out = paired_rows(request)
    task = request.task("align")
    images, texts = image_features(task, rows), text_features(task, rows)
    systems = Systems(request, Answering("align"), left_out)
    for name, key in ((ADAPTER, ADAPTER), (BASE, None)):
        systems.add(name, retrieval(rows, task.project_images(images, key), task.project_texts(texts, key)))
    sizes = {tag: len({row["group"] for row in rows if row["language"] == tag}) for tag in request.tags}
    systems.notes.append("groups in the gallery: " + ", ".join(f"{tag} {size}" for tag, size in sizes.items()))
    return systems.result(rows)


def paired_rows(request: EvalRequest) -> tuple[list[dict[str, Any]], LeftOut]:
    """The rows that are measured: with an image and a text; UsageError where there is none."""
    left_out = LeftOut(request.split, request.dataset.place)
    rows = image_rows(request.dataset, request.split, request.tags, left_out=left_out)
    if not rows:
        raise request.nothing("image with a text", left_out)
    return rows, left_out


def retrieval(rows: Sequence[Row], images: Tensor, texts: Tensor) -> dict[str, dict[str, Tally]]:
    """Language -> `i2t_r1`, `i2t_r5`, `i2t_r10`, the same as `t2i_`, and `median_rank` (image -> text).

    Args:
        rows: with `image_key`, `text`, `group` and `language`.
        images: (N, dim) of length 1, each row's image.
        texts: (N, dim) of length 1, each row's text.

    An image asks once in each language, and so does a text of a group, however many rows hold them.
    """
    found = {}
    for language in sorted({row["language"] for row in rows}):
        places = [place for place, row in enumerate(rows) if row["language"] == language]
        asking = distinct(places, [rows[place]["image_key"] for place in places])
        captions = distinct(places, [(rows[place]["group"], rows[place]["text"]) for place in places])
        groups = [[str(rows[place]["group"]) for place in side] for side in (asking, captions)]
        similarity = images[asking] @ texts[captions].T
        ranks = retrieval_ranks(similarity, groups[0], groups[1])
        bins = np.eye(RANKS)[np.minimum(ranks, RANKS) - 1]
        found[language] = {
            **_tallies("i2t", ranks, groups[0]),
            **_tallies("t2i", retrieval_ranks(similarity.T, groups[1], groups[0]), groups[1]),
            "median_rank": tally("median_rank", groups[0], bins.tolist()),
        }
    return found


def retrieval_ranks(similarity: Tensor, queries: Sequence[Any], candidates: Sequence[Any]) -> Ints:
    """(Q,) ranks from 1 up, as the head of this file defines them.

    Args:
        similarity: (Q, C) of each query with each candidate; higher is nearer.
        queries: the group of each query, which some candidate has too.
        candidates: the group of each candidate.
    """
    names = sorted(set(candidates))
    column = {name: place for place, name in enumerate(names)}
    places = torch.tensor([column[name] for name in candidates])
    best = torch.full((len(queries), len(names)), -torch.inf, dtype=similarity.dtype)
    best = best.scatter_reduce(1, places.expand(len(queries), -1), similarity, "amax")
    own = torch.tensor([column[name] for name in queries])[:, None]
    at_least = (best >= best.gather(1, own)).sum(dim=1)  # with the own group: so the rank itself
    return np.asarray(at_least.numpy(), dtype=np.int64)


def distinct(places: Sequence[int], keys: Sequence[Any]) -> list[int]:
    """The first of `places` for each key."""
    firsts: dict[Any, int] = {}
    for place, key in zip(places, keys, strict=True):
        firsts.setdefault(key, place)
    return list(firsts.values())


def _tallies(direction: str, ranks: Ints, groups: Sequence[str]) -> dict[str, Tally]:
    return {
        f"{direction}_r{cut}": tally(f"{direction}_r{cut}", groups, [[float(rank <= cut), 1.0] for rank in ranks])
        for cut in CUTS
    }
