"""A toy augmentation of text: one word of the prompt is left out."""

import random
from typing import Literal

from kauli.training.augment.text import TextAugmentation
from kauli.training.tasks.base import Row


class DropWord(TextAugmentation):
    """A word of the prompt left out."""

    kind: Literal["drop_word"] = "drop_word"

    def changed(self, row: Row, draw: random.Random) -> Row:
        words = (row["prompt"] or "").split()
        if len(words) > 1:
            words.pop(draw.randrange(len(words)))
        return {**row, "prompt": " ".join(words) or None}
