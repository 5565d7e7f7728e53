"""Retrieval of the task `align`: pictures find their captions and captions their pictures among held-out groups.

A gallery is all that a split has in one language. What is found is a group, not a row: a query's rank is 1 + the number
of other groups with a candidate that scores at least as high as the best candidate of the query's own group. So a
concept with several pictures or captions counts once against others, whichever of its own is nearest answers for it,
and a tie counts against the model (embeddings that are all alike rank last, not first).
"""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from kauli.models.bases.find import Base
from kauli.models.errors import UsageError
from kauli.models.languages import check_tag
from kauli.models.vision.align import AlignTask
from kauli.training.data.dataset import Dataset
from kauli.training.evaluation.results import EvalResult, Scores
from kauli.training.evaluation.scorers import RANKS, Tally, tally
from kauli.training.features.pairs import picture_features, text_features
from kauli.training.features.pictures import picture_rows

Row = Mapping[str, Any]
Ints = NDArray[np.int64]
CUTS = (1, 5, 10)
ADAPTER = "evaluated"


def evaluate_align(
    folder: Path | None,
    base: Base,
    dataset: Dataset,
    languages: Sequence[str],
    split: str = "test",
    seed: int = 0,
) -> EvalResult:
    """Evaluate the projections in `folder` beside those of `base`, or the base alone where `folder` is None.

    Raises:
        UsageError: the split holds no picture with a text in these languages.
        KauliError: a damaged adapter, or one of another base.
    """
    task = AlignTask.load(base)
    if folder is not None:
        task.add_adapter(ADAPTER, folder)
    result = measure_align(task, None if folder is None else ADAPTER, dataset, languages, split, seed)
    return replace(result, base=base.name, adapter=None if folder is None else folder.name)


def measure_align(
    task: AlignTask, adapter: str | None, dataset: Dataset, languages: Sequence[str], split: str = "test", seed: int = 0
) -> EvalResult:
    """The same of a loaded adapter (a key of `task`; None: the base alone)."""
    tags = tuple(check_tag(tag) for tag in languages)
    rows = picture_rows(dataset, split, tags, None)
    if not rows:
        raise UsageError(
            f"the data has no picture with a text in {', '.join(tags)} in its '{split}' split: nothing can be measured."
        )
    features = picture_features(task, rows), text_features(task, rows)
    systems = [None] if adapter is None else [adapter, None]
    scores = []
    for system in systems:
        images, texts = task.project_images(features[0], system), task.project_texts(features[1], system)
        scores.append(Scores(retrieval(rows, images, texts)))
    sizes = {tag: len({row["group"] for row in rows if row["language"] == tag}) for tag in tags}
    return EvalResult(
        adapter=adapter,
        base="base",
        languages=tags,
        split=split,
        seed=seed,
        examples=len(rows),
        groups=len({row["group"] for row in rows}),
        generated=0,
        scores=scores[0],
        base_scores=scores[1] if len(scores) > 1 else None,
        data={"name": dataset.name, "sha256": dataset.sha256},
        notes=("groups in the gallery: " + ", ".join(f"{tag} {size}" for tag, size in sizes.items()),),
        task="align",
    )


def retrieval(rows: Sequence[Row], images: Tensor, texts: Tensor) -> dict[str, dict[str, Tally]]:
    """Language -> `i2t_r1`, `i2t_r5`, `i2t_r10`, the same as `t2i_`, and `median_rank` (picture -> text).

    Args:
        rows: with `picture`, `text`, `group` and `language`.
        images: (N, dim) of length 1, each row's picture.
        texts: (N, dim) of length 1, each row's text.

    A picture asks once in each language, and so does a text of a group, however many rows hold them.
    """
    found = {}
    for language in sorted({row["language"] for row in rows}):
        places = [place for place, row in enumerate(rows) if row["language"] == language]
        pictures = distinct(places, [rows[place]["picture"] for place in places])
        captions = distinct(places, [(rows[place]["group"], rows[place]["text"]) for place in places])
        groups = [[str(rows[place]["group"]) for place in side] for side in (pictures, captions)]
        similarity = images[pictures] @ texts[captions].T
        found[language] = {
            **_tallies("i2t", retrieval_ranks(similarity, groups[0], groups[1]), groups[0]),
            **_tallies("t2i", retrieval_ranks(similarity.T, groups[1], groups[0]), groups[1]),
        }
        ranks = retrieval_ranks(similarity, groups[0], groups[1])
        bins = np.eye(RANKS)[np.minimum(ranks, RANKS) - 1]
        found[language]["median_rank"] = tally("median_rank", groups[0], bins.tolist())
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
