"""Rows with images: which teach and which test, and the encoder's features of each view, cached.

There are two test sets. New concepts are the data's own test split: nothing of their group was trained on. New images
of known concepts are taken out of the training split: of each group with two images or more, one, in every language.
"""

import json
from collections import defaultdict
from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import lru_cache
from typing import TYPE_CHECKING, Any

from PIL.Image import Image
from torch import Tensor

from kauli.models.bases.find import find_base
from kauli.models.engine.precision import place
from kauli.models.languages import display_name
from kauli.models.media.decode import content_key, decode_image
from kauli.models.metrics import NEW_PICTURES
from kauli.models.requests import Media
from kauli.models.text.connector import PartSettings
from kauli.models.vision.image_tower import ImageTower
from kauli.training.augment.base import view_seed
from kauli.training.augment.image import ImageAugmentation, at_risk, augmented
from kauli.training.data.dataset import Dataset
from kauli.training.data.groups import short_hash
from kauli.training.data.media_check import media_faults
from kauli.training.data.schema import PLAIN_COLUMNS
from kauli.training.features.cache import cached_features
from kauli.training.features.left_out import LeftOut
from kauli.training.features.stored import StoredImage

if TYPE_CHECKING:
    from kauli.training.tasks.describe import DescribeSection

Row = dict[str, Any]
ENCODED_AT_ONCE = 16
AUGMENTED_SIDE = 320


def image_rows(
    dataset: Dataset, split: str, languages: Sequence[str], prompt: str | None = None, left_out: LeftOut | None = None
) -> list[Row]:
    """The rows with an image and a text of `train`, `validation`, `test` or `new_pictures`.

    Their `image` is read when it is used (`StoredImage`), their `image_key` is the SHA-256 of its bytes. `prompt` is
    that of `instructed`. Rows whose image cannot be decoded go to `left_out`.
    """
    within, rows = "train" if split == NEW_PICTURES else split, []
    # With English, so that the same images are held out in whatever languages a recipe has
    read = list({*languages, "en"})
    faults = media_faults(dataset, "image", within, read)
    for row in dataset.iter_rows(within, read, [*PLAIN_COLUMNS, "image"]):
        if not row["image"] or not (row["text"] or "").strip():
            continue
        if row["id"] not in faults:
            rows.append({**row, "image_key": content_key(row["image"]), "image": StoredImage(dataset, row["id"])})
        elif left_out is not None and row["language"] in languages:
            left_out.add(row["id"], "that can't be read", faults[row["id"]])
    if within == "train":
        held_out = _held_out(rows)
        rows = [row for row in rows if (row["image_key"] in held_out) == (split == NEW_PICTURES)]
    return instructed([row for row in rows if row["language"] in languages], prompt)


def instructed(rows: Sequence[Row], prompt: str | None) -> list[Row]:
    """The rows with an instruction as their prompt, where `{language}` is the language's English name; None: as is."""
    if prompt is None:
        return list(rows)
    return [{**row, "prompt": prompt.replace("{language}", display_name(row["language"])) or None} for row in rows]


def _held_out(rows: Sequence[Row]) -> set[str]:
    """Of each group with several images the one whose hash is first, salted."""
    keys: dict[str, set[str]] = defaultdict(set)
    for row in rows:
        keys[row["group"]].add(row["image_key"])
    several = [sorted(found, key=lambda key: short_hash("held out", key)) for found in keys.values()]
    return {found[0] for found in several if len(found) > 1}


def other_images(rows: Sequence[Mapping[str, Any]]) -> list[Row]:
    """The same rows with the image of another group: the test of whether a model looks at its image.

    Rows in the order of a hash of their image are shifted until none keeps its group; the same for every system.
    """
    by_key = {row["image_key"]: row for row in rows}
    order = sorted(by_key, key=lambda key: short_hash("wrong picture", key))
    wrong = {}
    for at, key in enumerate(order):
        others = (order[(at + step) % len(order)] for step in range(1, len(order) + 1))
        wrong[key] = next((one for one in others if by_key[one]["group"] != by_key[key]["group"]), key)
    others_of = [by_key[wrong[row["image_key"]]] for row in rows]
    return [{**row, "image": one["image"], "media": one["media"]} for row, one in zip(rows, others_of, strict=True)]


def part_settings(section: "DescribeSection", tower: ImageTower) -> PartSettings:
    """The part of the connector for the images of an encoder."""
    places = 1 + section.grid**2
    return PartSettings(
        encoder=section.encoder, sha256=tower.sha256, width=tower.width, places=places, grid=section.grid,
        inner=section.hidden_dim,
    )  # fmt: skip


def load_tower(encoder: str, device: str | None = None) -> ImageTower:
    """The image encoder of a base that a recipe or a connector names; its weights are read once a process."""
    return _tower(find_base(encoder, task="align", allow_noncommercial=True), str(place(device)[0]))


_tower = lru_cache(maxsize=2)(ImageTower.load)


def with_media(
    rows: Sequence[Mapping[str, Any]],
    tower: ImageTower,
    grid: int,
    augmentations: Sequence[ImageAugmentation] = (),
    views: int = 1,
) -> list[Row]:
    """Each row `views` times, with the `media` of its image: as it is, then augmented anew. Features are cached."""

    def encode(images: list[Image]) -> list[Tensor]:
        return list(tower.features(images, grid).half())

    settings, side = f"{tower.sha256} {grid}", AUGMENTED_SIDE
    found = view_features("images", settings, rows, augmentations, range(views), encode, ENCODED_AT_ONCE, side)
    media = [(Media("image", features.numpy()),) for features in found]
    return [{**row, "media": one} for row, one in zip([*rows] * views, media, strict=True)]


def view_features(
    what: str,
    settings: str,
    rows: Sequence[Mapping[str, Any]],
    augmentations: Sequence[ImageAugmentation],
    views: Sequence[int],
    encode: Callable[[list[Image]], Iterable[Tensor]],
    batch: int,
    side: int | None = None,
) -> list[Tensor]:
    """The features (n, W) of the rows' images in the first of `views`, then in the next; view 0 is the image as it is.

    `what`, `settings` and `batch` are those of `cached_features`. Images are augmented at no more than `side` pixels a
    side. The prompts must be the data's own: they tell what must not be flipped or turned.
    """
    spec = json.dumps([one.model_dump(mode="json") for one in augmentations], sort_keys=True)
    risky = set(at_risk(rows, augmentations))
    images = {row["image_key"]: row["image"] for row in rows}
    held = {row["image_key"] for row in rows if row["id"] in risky}

    def feature_key(image_key: str, view: int) -> str:
        return f"{image_key} {view} {spec if view else '[]'}{' held' if view and image_key in held else ''}"

    def shown(image_key: str, view: int) -> Image:
        image = decode_image(bytes(images[image_key]))
        if view == 0:
            return image
        if side is not None:
            image.thumbnail((side, side))  # an elastic deformation of a large image takes a second
        return augmented(image, augmentations, view_seed(image_key, view), keep_direction=image_key in held)

    wanted = {feature_key(one, view): (one, view) for view in views for one in sorted(images)}
    found = cached_features(
        what, settings, list(wanted), lambda keys: encode([shown(*wanted[key]) for key in keys]), batch
    )
    return [found[feature_key(row["image_key"], view)] for view in views for row in rows]


def without_media(rows: Sequence[Mapping[str, Any]]) -> list[Row]:
    """The same rows without their image."""
    return [{**row, "media": ()} for row in rows]
