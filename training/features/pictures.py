"""Pictures for the task `describe`: which rows teach and which test, and the encoder's features of each, cached.

There are two test sets. New concepts are the data's own test split: nothing of their group was trained on. New pictures
of known concepts are taken out of the training split: of each group with two pictures or more, one, in every language.
"""

import hashlib
import io
import json
import os
from collections import defaultdict
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from PIL.Image import Image

from kauli.models.bases.find import find_base
from kauli.models.files import file_lock
from kauli.models.languages import display_name
from kauli.models.media.decode import content_key, decode_image
from kauli.models.paths import kauli_home
from kauli.models.progress import bar
from kauli.models.requests import Media
from kauli.models.text.connector import PartSettings
from kauli.models.vision.image_tower import ImageTower
from kauli.training.augment.image import ImageAugmentation, at_risk, augmented, view_seed
from kauli.training.data.dataset import Dataset
from kauli.training.data.groups import short_hash
from kauli.training.data.schema import SCHEMA
from kauli.training.evaluation.scorers import NEW_PICTURES
from kauli.training.recipe import DescribeSection

Row = dict[str, Any]
ENCODED_AT_ONCE = 16
AUGMENTED_SIDE = 320
COLUMNS = [name for name in SCHEMA.names if name != "audio"]


def picture_rows(dataset: Dataset, split: str, languages: Sequence[str], prompt: str | None) -> list[Row]:
    """The rows with a picture and a text of `train`, `validation`, `test` or `new_pictures`.

    `prompt` is the instruction, with `{language}` for the language's English name; None: each row's own prompt. Rows
    get a `picture`, the SHA-256 of its bytes.
    """
    within = "train" if split == NEW_PICTURES else split
    # With English, so that the same pictures are held out in whatever languages a recipe has
    every = dataset.rows(split=within, languages=list({*languages, "en"}), columns=COLUMNS)
    rows = [row for row in every if row["image"] and (row["text"] or "").strip()]
    for row in rows:
        row["picture"] = content_key(row["image"])
        row["own_prompt"] = row["prompt"]  # it may say in English what the picture shows
        if prompt is not None:
            row["prompt"] = prompt.replace("{language}", display_name(row["language"])) or None
    if within == "train":
        held_out = _held_out(rows)
        rows = [row for row in rows if (row["picture"] in held_out) == (split == NEW_PICTURES)]
    return [row for row in rows if row["language"] in languages]


def _held_out(rows: Sequence[Row]) -> set[str]:
    """Of each group with several pictures the one whose hash is first, salted."""
    pictures: dict[str, set[str]] = defaultdict(set)
    for row in rows:
        pictures[row["group"]].add(row["picture"])
    several = [sorted(found, key=lambda key: short_hash("held out", key)) for found in pictures.values()]
    return {found[0] for found in several if len(found) > 1}


def other_pictures(rows: Sequence[Mapping[str, Any]]) -> list[Row]:
    """The same rows with the picture of another group: the test of whether a model looks at its picture.

    Rows in the order of a hash of their picture are shifted until none keeps its group; the same for every system.
    """
    pictures = {row["picture"]: row for row in rows}
    order = sorted(pictures, key=lambda key: short_hash("wrong picture", key))
    wrong = {}
    for place, key in enumerate(order):
        others = (order[(place + step) % len(order)] for step in range(1, len(order) + 1))
        wrong[key] = next((one for one in others if pictures[one]["group"] != pictures[key]["group"]), key)
    return [
        {**row, "image": pictures[wrong[row["picture"]]]["image"], "media": pictures[wrong[row["picture"]]]["media"]}
        for row in rows
    ]


def part_settings(fusion: DescribeSection, tower: ImageTower) -> PartSettings:
    """What a recipe's fusion makes of a tower."""
    places = 1 + fusion.grid**2
    return PartSettings(
        encoder=fusion.encoder, sha256=tower.sha256, width=tower.width, places=places, grid=fusion.grid,
        inner=fusion.inner,
    )  # fmt: skip


def load_tower(fusion: DescribeSection, device: str | None = None) -> ImageTower:
    """The image tower that a recipe names."""
    return ImageTower.load(find_base(fusion.encoder, task="align", allow_noncommercial=True), device)


def with_media(
    rows: Sequence[Row],
    tower: ImageTower,
    grid: int,
    augmentations: Sequence[ImageAugmentation] = (),
    views: int = 1,
) -> list[Row]:
    """Each row `views` times, with the `media` of its picture: as it is, then augmented anew.

    Features are computed once and kept under `<home>/cache/features`, by tower, grid, augmentations and picture.
    """
    spec = json.dumps([one.model_dump(mode="json") for one in augmentations], sort_keys=True)
    keys = {spec: hashlib.sha256(f"{tower.sha256} {grid} {spec}".encode()).hexdigest()[:24] for spec in ("[]", spec)}
    folders = {spec: kauli_home() / "cache" / "features" / key for spec, key in keys.items()}

    def place(picture: str, view: int) -> Path:
        kept = ".kept" if view and pictures[picture][1] else ""  # its direction
        return folders[spec if view else "[]"] / f"{picture}.{view}{kept}.npy"  # view 0 serves all recipes

    risky = set(at_risk(with_own_prompts(rows), augmentations)) if augmentations else set()
    pictures: dict[str, tuple[bytes, bool]] = {}
    for row in rows:
        held = pictures.get(row["picture"], (b"", False))[1]
        pictures[row["picture"]] = (row["image"], held or row["id"] in risky)
    features = {}
    with file_lock(kauli_home() / "locks" / f"features-{keys[spec]}.lock"):  # of several workers here, one computes
        wanted = [(key, view) for view in range(views) for key in sorted(pictures)]
        missing = [(key, view) for key, view in wanted if not place(key, view).is_file()]
        for folder in folders.values():
            folder.mkdir(parents=True, exist_ok=True)
        with bar("Encoding pictures", len(missing)) as advance:
            for start in range(0, len(missing), ENCODED_AT_ONCE):
                part = missing[start : start + ENCODED_AT_ONCE]
                images = [_view(*pictures[key], augmentations, key, view) for key, view in part]
                for (key, view), found in zip(part, tower.features(images, grid), strict=True):
                    store_features(place(key, view), found.numpy().astype(np.float16))
                advance(len(part))
    for key in pictures:
        for view in range(views):
            features[key, view] = (Media("image", np.load(place(key, view), allow_pickle=False)),)
    return [{**row, "media": features[row["picture"], view]} for view in range(views) for row in rows]


def with_own_prompts(rows: Sequence[Mapping[str, Any]]) -> list[Row]:
    """The same rows with the prompts of the data, before a recipe's instruction took their place."""
    return [{**row, "prompt": row.get("own_prompt", row.get("prompt"))} for row in rows]


def _view(image: bytes, keep: bool, augmentations: Sequence[ImageAugmentation], key: str, view: int) -> Image:
    decoded = decode_image(image)
    if view == 0:
        return decoded
    decoded.thumbnail((AUGMENTED_SIDE, AUGMENTED_SIDE))  # bending a large picture takes a second
    return augmented(decoded, augmentations, view_seed(key, view), keep_direction=keep)


def store_features(path: Path, features: Any) -> None:
    """Write an array so that a reader sees the whole file or none."""
    content = io.BytesIO()
    np.save(content, features, allow_pickle=False)
    partial = path.with_suffix(f".{os.getpid()}.partial")
    partial.write_bytes(content.getvalue())
    partial.replace(path)


def without_media(rows: Sequence[Mapping[str, Any]]) -> list[Row]:
    """The same rows as a model sees them that is shown no picture."""
    return [{**row, "media": ()} for row in rows]
