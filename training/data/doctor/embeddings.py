"""Embeddings of rows by the towers of a base for `align`, for signals that are better with them; cached on disk."""

from collections.abc import Mapping, Sequence
from functools import lru_cache
from typing import Any

import numpy as np

from kauli.models.bases.find import Base
from kauli.models.languages import nfc
from kauli.models.vision.align import AlignTask
from kauli.training.data.dataset import Dataset
from kauli.training.data.doctor.examined import Floats
from kauli.training.data.media_check import media_faults
from kauli.training.features.pairs import image_features, text_features
from kauli.training.features.stored import StoredImage


def text_embeddings(base: Base, texts: Sequence[str]) -> Floats:
    """(N, D) of length 1, so that a product is a cosine; zeros for an empty text."""
    full = [place for place, text in enumerate(texts) if nfc(text).strip()]
    found = text_features(_towers(base), [{"text": texts[place]} for place in full]).numpy().astype(np.float64)
    vectors = np.zeros((len(texts), found.shape[1]))
    vectors[full] = found / np.maximum(np.linalg.norm(found, axis=1, keepdims=True), 1e-9)
    return vectors


def image_embeddings(base: Base, dataset: Dataset, rows: Sequence[Mapping[str, Any]]) -> Floats:
    """(N, D) of each row's image, zeros where it has none that can be read. `image` is the hash of its bytes."""
    faults = media_faults(dataset, "image")
    ids = {row["image"]: row["id"] for row in rows if row["image"] and row["id"] not in faults}
    keys = list(ids)
    stored = [{"id": ids[key], "image_key": key, "image": StoredImage(dataset, ids[key])} for key in keys]
    if not stored:
        return np.zeros((len(rows), 1))
    found = image_features(_towers(base), stored).numpy().astype(np.float64)
    places = {key: place for place, key in enumerate(keys)}
    nothing = np.zeros(found.shape[1])
    return np.stack([found[places[row["image"]]] if row["image"] in places else nothing for row in rows])


@lru_cache(1)
def _towers(base: Base) -> AlignTask:
    return AlignTask.load(base)
