"""Mistakes of known kinds, put into real rows for the benchmark of `kauli data doctor`."""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from kauli.models.media.decode import content_key
from kauli.training.data.dataset import Dataset, load_data
from kauli.training.data.schema import SCHEMA, write_parquet
from kauli.training.data.topics import TOPICS

Row = dict[str, Any]
Draw = np.random.Generator
LABELS_FROM = "sw"
"""The language whose names of topics are the labels."""


def written(rows: Sequence[Row], folder: Path, language: str) -> Dataset:
    """The rows as a data set."""
    path = folder / f"{language}.parquet"
    write_parquet([{name: row.get(name) for name in SCHEMA.names} for row in rows], path)
    return Dataset(f"bench-{language}", [path], [language])


def pair_rows(language: str, count: int) -> list[Row]:
    """Some pairs of the starter data, without images and audio."""
    rows = [row for row in load_data("starter", [language]).rows(languages=[language]) if row["input"] and row["text"]]
    chosen = np.random.default_rng(0).permutation(len(rows))[:count]
    return [rows[at] for at in sorted(chosen)]


def topic_images() -> list[Row]:
    """The images of the starter data with their topics."""
    return load_data(TOPICS, [LABELS_FROM]).rows(columns=SCHEMA.names)


def topic_captions(language: str) -> list[Row]:
    """The captions of these images in a language, with their topics."""
    labels = {content_key(row["image"]): row["text"] for row in topic_images()}
    found: dict[tuple[str, str], Row] = {}
    data = load_data("starter", [language])
    for row in data.iter_rows(languages=[language], columns=SCHEMA.names):
        label = labels.get(content_key(row["image"])) if row["image"] else None
        if label:
            made = {"prompt": row["text"], "text": label, "input": None, "input_language": None}
            found.setdefault((row["text"], label), {**row, **made, "image": None, "audio": None, "flags": None})
    return list(found.values())


def with_wrong_labels(rows: Sequence[Row], share: float, seed: int) -> tuple[list[Row], dict[str, str]]:
    """The rows with another label in a share of them, each label as likely as any; id -> kind of these."""
    draw = np.random.default_rng(seed)
    labels = sorted({row["text"] for row in rows})
    wrong = set(draw.choice(len(rows), round(share * len(rows)), replace=False).tolist())
    changed = [
        {**row, "text": str(draw.choice([one for one in labels if one != row["text"]]))} if at in wrong else row
        for at, row in enumerate(rows)
    ]
    return changed, {rows[at]["id"]: "label" for at in wrong}


def _swapped(rows: list[Row], places: Sequence[int], draw: Draw, other: dict[str, str]) -> None:
    for one, two in zip(places[::2], places[1::2], strict=False):
        rows[one]["text"], rows[two]["text"] = rows[two]["text"], rows[one]["text"]


def _shifted(rows: list[Row], places: Sequence[int], draw: Draw, other: dict[str, str]) -> None:
    """A run of rows whose texts are those of the row before, as after a lost line."""
    texts = [rows[place]["text"] for place in places]
    for place, text in zip(places, [texts[-1], *texts[:-1]], strict=True):
        rows[place]["text"] = text


def _truncated(rows: list[Row], places: Sequence[int], draw: Draw, other: dict[str, str]) -> None:
    for place in places:
        words = rows[place]["text"].split()
        rows[place]["text"] = " ".join(words[: max(1, len(words) // 3)])


def _foreign(rows: list[Row], places: Sequence[int], draw: Draw, other: dict[str, str]) -> None:
    """The same in another language."""
    for place in places:
        rows[place]["text"] = other[rows[place]["input"]]


def _untranslated(rows: list[Row], places: Sequence[int], draw: Draw, other: dict[str, str]) -> None:
    for place in places:
        rows[place]["text"] = rows[place]["input"]


KINDS: dict[str, Callable[[list[Row], Sequence[int], Draw, dict[str, str]], None]] = {
    "swapped": _swapped,
    "shifted": _shifted,
    "truncated": _truncated,
    "foreign": _foreign,
    "untranslated": _untranslated,
}
"""Kind -> how it is put into rows at some places."""


def with_errors(rows: Sequence[Row], other: str, share: float, seed: int) -> tuple[list[Row], dict[str, str]]:
    """The pairs with a share of each kind of mistake; id -> kind of these.

    Truncated are texts of six words or more, foreign those whose input is translated into the language `other` too.
    """
    draw = np.random.default_rng(seed)
    theirs = {row["input"]: row["text"] for row in load_data("starter", [other]).rows(languages=[other])}
    changed, kinds = [dict(row) for row in rows], dict[str, str]()
    count = round(share * len(rows))
    for kind, change in KINDS.items():
        able = [
            at for at, row in enumerate(rows)
            if row["id"] not in kinds
            and (kind != "truncated" or len(row["text"].split()) >= 6)
            and (kind != "foreign" or row["input"] in theirs)
        ]  # fmt: skip
        places = sorted(draw.choice(able, min(count, len(able)), replace=False).tolist())
        change(changed, places, draw, theirs)
        kinds |= {rows[at]["id"]: kind for at in places if changed[at]["text"] != rows[at]["text"]}
    return changed, kinds
