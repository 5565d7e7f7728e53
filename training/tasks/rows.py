"""What tasks share about rows: checks, weights of sources, a sample for validation, made-up rows."""

import io
from collections.abc import Mapping, Sequence
from typing import Literal

import numpy as np
import soundfile
from PIL import Image

from kauli.models.errors import UsageError
from kauli.models.media.decode import RATE
from kauli.training.data.dataset import Dataset
from kauli.training.features.images import image_rows
from kauli.training.features.left_out import LeftOut
from kauli.training.recipe import Recipe
from kauli.training.tasks.base import Examples, Row

VALIDATION_BYTES = 4_000
"""Text that the validations during training score: enough to choose by, small beside the training itself."""
CUT_BYTES = VALIDATION_BYTES // 4
"""What is scored of a row where all are too long to be scored whole."""

WORDS = ("moto", "maji", "mti", "jua", "mto", "bahari", "upepo", "mvua")


def made_up_rows(*media: Literal["image", "audio"], classes: int = len(WORDS)) -> list[Row]:
    """Eight rows for `TrainingTask.dummy_rows`: one of `classes` words, an image of one colour, audio of one tone."""
    rows = []
    for at, word in enumerate(WORDS):
        image, audio, times = io.BytesIO(), io.BytesIO(), np.arange(RATE // 2) / RATE
        Image.new("RGB", (32, 32), (at % 2 * 255, at // 2 % 2 * 255, at // 4 * 255)).save(image, "PNG")
        soundfile.write(audio, 0.3 * np.sin(2 * np.pi * 200 * (at + 1) * times), RATE, format="WAV")
        made = {"image": image.getvalue(), "audio": audio.getvalue()}
        row = {"language": "be", "source": "made-up", "prompt": f"say {word}", "text": WORDS[at % classes]}
        rows.append(row | {name: made[name] for name in media})
    return rows


def image_sides(recipe: Recipe, dataset: Dataset) -> Examples:
    """The rows with an image and a text, and notes on the images that cannot be read."""
    sides, left_out = [], [LeftOut(split, dataset.place) for split in ("train", "validation")]
    for one in left_out:
        sides.append(image_rows(dataset, one.split, recipe.language, left_out=one))
    notes = [told for one, rows in zip(left_out, sides, strict=True) for told in one.notes(len(rows))]
    return Examples(sides[0], sides[1], (), dataset.sha256, tuple(notes), left_out[0].count, dataset.place)


def check_rows(recipe: Recipe, sides: Sequence[Sequence[Row]], what: str, notes: Sequence[str] = ()) -> list[str]:
    """Raise UsageError where a split is empty; returns a note where a source of `train.source_weights` has no rows.

    `sides` are the training and the validation rows, `notes` tell why others were left out.
    """
    for split, rows in zip(("train", "validation"), sides, strict=True):
        if not rows:
            raise UsageError(
                f"data '{recipe.data}' has no {what} in its '{split}' split for {', '.join(recipe.language)}"
                + "".join(f"; {told}" for told in notes)
                + ": see `kauli data check`."
            )
    sources = sorted({row["source"] for row in sides[0] if row["source"]})
    if not (absent := [source for source in recipe.train.source_weights if source not in sources]):
        return []
    there = f"it has {', '.join(sources)}" if sources else "its rows name none"
    return [f"train.source_weights: no source {', '.join(absent)} in '{recipe.data}' ({there}): ignored"]


def weighted(rows: Sequence[Row], weights: Mapping[str, int]) -> list[Row]:
    """Each row as many times as an epoch repeats its source."""
    return [row for row in rows for _ in range(weights.get(row.get("source") or "", 1))]


def sample(rows: Sequence[Row]) -> list[Row]:
    """Validation rows of about VALIDATION_BYTES, each source with the same share of its bytes as in the whole.

    Where all rows are so long that none would be taken, their first CUT_BYTES are.
    """
    rows = sorted(rows, key=lambda row: str(row["id"]))
    total = sum(len(row["text"].encode()) for row in rows)
    if total <= VALIDATION_BYTES:
        return rows
    chosen, taken, passed = [], 0, 0
    for row in sorted(rows, key=lambda row: (row["language"], row["source"] or "", row["id"])):
        size = len(row["text"].encode())
        passed += size
        if taken + size / 2 <= passed * VALIDATION_BYTES / total:
            chosen.append(row)
            taken += size
    return chosen or sample([{**row, "text": row["text"].encode()[:CUT_BYTES].decode(errors="ignore")} for row in rows])
