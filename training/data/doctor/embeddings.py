"""Embeddings of rows by the towers of a base for `align`, for signals that are better with them."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from kauli.models.bases.find import Base
from kauli.models.errors import MediaError
from kauli.models.media.decode import decode_image
from kauli.models.text.embedder import Embedder
from kauli.models.vision.align import AlignTask
from kauli.training.data.dataset import Dataset
from kauli.training.data.doctor.examined import Floats

_AT_ONCE = 64


def text_embeddings(base: Base, texts: Sequence[str]) -> Floats:
    """(N, D) of length 1; each different text is embedded once."""
    different = list(dict.fromkeys(texts))
    vectors = dict(zip(different, Embedder.load(base).embed(different), strict=True))
    return np.stack([vectors[text] for text in texts]).astype(np.float64)


def image_embeddings(base: Base, dataset: Dataset, rows: Sequence[Mapping[str, Any]]) -> Floats:
    """(N, D) of each row's image, zeros where it has none that can be read. Each different image is read once."""
    task = AlignTask.load(base)
    ids = {row["image"]: row["id"] for row in rows if row["image"]}
    vectors: dict[str, Any] = {}
    keys = list(ids)
    for start in range(0, len(keys), _AT_ONCE):
        part = keys[start : start + _AT_ONCE]
        content = dataset.read_media("image", [ids[key] for key in part])
        images = {}
        for key in part:
            try:
                images[key] = decode_image(content[ids[key]] or b"")
            except MediaError:
                continue  # `kauli data check` lists it
        if images:
            vectors |= dict(zip(images, task.image_features(list(images.values())).numpy(), strict=True))
    if not vectors:
        return np.zeros((len(rows), 1))
    width = len(next(iter(vectors.values())))
    nothing = np.zeros(width, dtype=np.float32)
    return np.stack([vectors.get(row["image"] or "", nothing) for row in rows]).astype(np.float64)
