"""What tasks share about rows: checks, weights of sources, a sample for validation, made-up rows."""

import io
from collections.abc import Mapping, Sequence
from typing import Literal

import numpy as np
import soundfile
from PIL import Image

from kauli.models.errors import UsageError
from kauli.models.media.decode import RATE
from kauli.training.recipe import Recipe
from kauli.training.tasks.base import Row

VALIDATION_BYTES = 4_000
"""Text that the validations during training score: enough to choose by, small beside the training itself."""

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


def check_rows(recipe: Recipe, sides: Sequence[Sequence[Row]], what: str, notes: Sequence[str] = ()) -> None:
    """Raise UsageError where a split is empty, or a source of `train.source_weights` has no rows to learn from.

    `sides` are the training and the validation rows, `notes` tell why others were dropped.
    """
    for split, rows in zip(("train", "validation"), sides, strict=True):
        if not rows:
            raise UsageError(
                f"data '{recipe.data}' has no {what} in its '{split}' split for {', '.join(recipe.language)}"
                + "".join(f"; {told}" for told in notes)
                + ": see `kauli data check`."
            )
    sources = {row["source"] for row in sides[0]}
    for source in recipe.train.source_weights:
        if source not in sources:
            raise UsageError(
                f"train.source_weights: data '{recipe.data}' has no source '{source}'. "
                f"It has {', '.join(sorted(str(one) for one in sources))}."
            )


def weighted(rows: Sequence[Row], weights: Mapping[str, int]) -> list[Row]:
    """Each row as many times as an epoch repeats its source."""
    return [row for row in rows for _ in range(weights.get(row.get("source") or "", 1))]


def sample(rows: Sequence[Row]) -> list[Row]:
    """Validation rows of about VALIDATION_BYTES, each source with the same share of its bytes as in the whole."""
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
    return chosen
