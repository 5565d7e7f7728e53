"""`starter-topics`: the images of the starter data, labelled by topic (animal, food, plant, ...) in several languages.

Labels come from the packages: Tux Paint has folders of stamps, the emoji data has subcategories, and topics.yaml maps
them to topics. An image keeps its group and split of the starter data, so that no test image is a training image there.
"""

import json
from collections.abc import Sequence
from functools import cache
from importlib.resources import files
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import yaml

from kauli.models.bases.packages import fetch_package
from kauli.models.errors import KauliError, UsageError, nearest
from kauli.models.frozen import FrozenModel
from kauli.models.languages import display_name
from kauli.training.data import starter
from kauli.training.data.groups import media_key, short_hash
from kauli.training.data.starter import PIVOT, Fetch, source_cards

TOPICS = "starter-topics"
FORMAT = 1
"""Increase it when the same table gives other rows."""


class Topic(FrozenModel):
    """One topic of topics.yaml."""

    stamps: tuple[str, ...]
    emoji: tuple[str, ...]
    without: tuple[str, ...] = ()
    names: dict[str, str]


@cache
def topics() -> dict[str, Topic]:
    """The topics of topics.yaml by their keys, in order."""
    return {key: Topic.model_validate(topic) for key, topic in yaml.safe_load(_table()).items()}


def topic_languages() -> tuple[str, ...]:
    """The languages in which every topic has a name."""
    return tuple(next(iter(topics().values())).names)


def topic_names(language: str) -> tuple[str, ...]:
    """The names of all topics in a language, in the order of the table; raises `UsageError` if it has none."""
    if language not in topic_languages():
        raise UsageError(
            f"{TOPICS} has no names in {display_name(language)} ({language}): it has {', '.join(topic_languages())}."
            f"{nearest(language, topic_languages())} Add them to training/data/topics.yaml."
        )
    return tuple(topic.names[language] for topic in topics().values())


def topic_rows(language: str, *, fetch: Fetch = fetch_package) -> list[dict[str, Any]]:
    """Rows of SCHEMA, one for each image: its `text` is the topic's name in the language, its `prompt` None.

    Builds the English starter data if it is missing. Raises `UsageError` for a language without names, and
    `KauliError` if the packages of the images are unavailable.
    """
    names = dict(zip(topics(), topic_names(language), strict=True))
    (file,), _ = starter.starter_files([PIVOT])
    images = [row for row in pq.read_table(file).to_pylist() if row["image"]]
    by_key = _topics_of_images({row["source"] for row in images}, fetch)
    rows: dict[str, dict[str, Any]] = {}
    for row in images:
        key = media_key("image", row["image"])
        topic = by_key.get(key)
        if topic and key not in rows:  # a few have two captions
            own = {"id": f"{language}-topics-{short_hash(key)}", "language": language, "text": names[topic]}
            rows[key] = row | own | {"prompt": None, "audio": None, "flags": None}
    return list(rows.values())


def topic_files(languages: Sequence[str] | None) -> tuple[list[Path], Sequence[str]]:
    """The Parquet files of the data set and their languages (None: all that have names).

    Missing files are made, and those of older starter data or an older table of topics are made again.
    """
    wanted = tuple(languages if languages is not None else topic_languages())
    for language in wanted:
        topic_names(language)  # raises for an unknown one before any work
    made_by = f"format {FORMAT}", _table()
    return starter.derived_files(TOPICS, wanted, made_by, lambda language, _file: topic_rows(language), PIVOT)


def _table() -> str:
    return (files("kauli.training.data") / "topics.yaml").read_text(encoding="utf-8")


def _topics_of_images(sources: set[str], fetch: Fetch) -> dict[str, str]:
    """Topic by media key of an image, from the packages of the sources that gave the starter data images."""
    labels: dict[str, str] = {}
    if "tuxpaint" in sources:
        labels |= _labels_of_stamps(fetch(source_cards()["tuxpaint"].packages["stamps"]))
    if "cldr" in sources:
        labels |= _labels_of_emoji(fetch(source_cards()["cldr"].packages["pictures"]))
    if not labels:
        raise KauliError(
            "the starter data has no images: the packages of Tux Paint and of the emoji were unavailable when it was "
            "built. Build it again with `kauli data build --languages en` when they can be downloaded."
        )
    return labels


def _labels_of_stamps(package: Path) -> dict[str, str]:
    folder = package / "usr" / "share" / "tuxpaint" / "stamps"
    labels: dict[str, str] = {}
    for path in sorted(folder.rglob("*.png")):
        places = {place.as_posix() for place in (path.relative_to(folder), *path.relative_to(folder).parents)}
        for key, topic in reversed(topics().items()):  # the first topic wins
            if places.intersection(topic.stamps) and not places.intersection(topic.without):
                labels[media_key("image", path.read_bytes())] = key
    return labels


def _labels_of_emoji(package: Path) -> dict[str, str]:
    folder = package / "package"
    by_category = {category: key for key, topic in topics().items() for category in topic.emoji}
    labels = {}
    for emoji in json.loads((folder / "emoji.json").read_text(encoding="utf-8")):
        topic = by_category.get(emoji["subcategory"])
        path = folder / "img" / "twitter" / "64" / emoji["image"]
        if topic and emoji["short_name"] not in topics()[topic].without and path.is_file():
            labels[media_key("image", path.read_bytes())] = topic
    return labels
