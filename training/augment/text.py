"""Text changed at random for training. Each kind is a frozen pydantic model with `changed`, one file each."""

import random
from collections.abc import Sequence

from kauli.training.augment.base import Augmentation, view_seed
from kauli.training.tasks.base import Row


class TextAugmentation(Augmentation):
    """A random change of a row's prompt, of its text, or of both."""

    def changed(self, row: Row, draw: random.Random) -> Row:
        """A changed copy of the row, drawn from `draw`; `prompt` (or None), `text` and `language` are of interest."""
        raise NotImplementedError


def augmented_rows(rows: Sequence[Row], augmentations: Sequence[TextAugmentation], view: int) -> list[Row]:
    """View number `view` of each row: the same at every call. View 0 is the row itself."""
    views = []
    for row in rows:
        draw = random.Random(view_seed(str(row["id"]), view))
        for augmentation in augmentations if view else ():
            if draw.random() < augmentation.p:
                row = augmentation.changed(row, draw)
        views.append(row)
    return views
