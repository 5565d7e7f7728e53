"""Features of images and texts before the projections of the task `align`, cached."""

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import torch
from PIL.Image import Image
from torch import Tensor

from kauli.models.languages import nfc
from kauli.training.augment.image import ImageAugmentation
from kauli.training.features.cache import cached_features
from kauli.training.features.images import view_features

if TYPE_CHECKING:
    from kauli.models.vision.align import AlignTask
    from kauli.models.vision.training import TrainableAlign

Row = Mapping[str, Any]
IMAGES_AT_ONCE, TEXTS_AT_ONCE = 256, 2048


def image_features(
    task: "AlignTask | TrainableAlign",
    rows: Sequence[Row],
    augmentations: Sequence[ImageAugmentation] = (),
    view: int = 0,
) -> Tensor:
    """(N, W) float32: of each row's image, as it is (view 0) or augmented. Rows have `image_key`, `image`, `id`."""

    def encode(images: list[Image]) -> Tensor:
        return task.image_features(images)[:, None]

    what, views = "images-of-pairs", [view]
    return torch.cat(view_features(what, task.sha256, rows, augmentations, views, encode, IMAGES_AT_ONCE))


def text_features(task: "AlignTask | TrainableAlign", rows: Sequence[Row]) -> Tensor:
    """(N, W) float32: of each row's `text`."""
    texts = [nfc(row["text"]).strip() for row in rows]

    def encode(part: list[str]) -> Tensor:
        return task.text_features(part)[:, None]

    # Texts of like length in one call, so that little is padded
    ordered = sorted(set(texts), key=lambda text: (len(text.encode()), text))
    found = cached_features("texts-of-pairs", task.sha256, ordered, encode, TEXTS_AT_ONCE)
    return torch.cat([found[text] for text in texts])
