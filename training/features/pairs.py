"""Features of images and texts before the projections of the task `align`, cached."""

import json
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from kauli.models.languages import nfc
from kauli.models.media.decode import decode_image
from kauli.training.augment.base import view_seed
from kauli.training.augment.image import ImageAugmentation, at_risk, augmented
from kauli.training.features.cache import cached_features

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
    if view == 0:
        augmentations = ()
    risky = set(at_risk(rows, augmentations)) if augmentations else set()
    held = {row["image_key"] for row in rows if row["id"] in risky}
    images = {row["image_key"]: row["image"] for row in rows}
    spec = json.dumps([one.model_dump(mode="json") for one in augmentations], sort_keys=True)
    keys = {one: f"{one} {view} {spec}{' held' if one in held else ''}" for one in sorted(images)}
    image_keys = {key: one for one, key in keys.items()}

    def encode(part: list[str]) -> Tensor:
        decoded = [decode_image(bytes(images[image_keys[key]])) for key in part]
        if view:
            decoded = [
                augmented(image, augmentations, view_seed(image_key, view), keep_direction=image_key in held)
                for image, image_key in zip(decoded, [image_keys[key] for key in part], strict=True)
            ]
        return task.image_features(decoded)[:, None]

    found = cached_features("images-of-pairs", task.sha256, list(image_keys), encode, IMAGES_AT_ONCE)
    return torch.cat([found[keys[row["image_key"]]] for row in rows])


def text_features(task: "AlignTask | TrainableAlign", rows: Sequence[Row]) -> Tensor:
    """(N, W) float32: of each row's `text`."""
    texts = [nfc(row["text"]).strip() for row in rows]

    def encode(part: list[str]) -> Tensor:
        return task.text_features(part)[:, None]

    # Texts of like length in one call, so that little is padded
    ordered = sorted(set(texts), key=lambda text: (len(text.encode()), text))
    found = cached_features("texts-of-pairs", task.sha256, ordered, encode, TEXTS_AT_ONCE)
    return torch.cat([found[text] for text in texts])
