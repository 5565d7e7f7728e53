"""Views of text: the row itself first, then changes that are the same at every call."""

import random
from typing import Any, Literal

import pytest

from kauli.models.bases.find import find_base
from kauli.models.errors import UsageError
from kauli.training.augment.table import AUGMENTATIONS, augmentations
from kauli.training.augment.text import TextAugmentation, augmented_rows
from kauli.training.recipe import OneOf
from kauli.training.recipe_file import parse_recipe
from kauli.training.tasks.base import Examples, Row
from kauli.training.tasks.text import TextLearner, TextSection, TextTraining


class Drop(TextAugmentation):
    """A word left out of the prompt."""

    kind: Literal["drop"] = "drop"

    def changed(self, row: Row, draw: random.Random) -> Row:
        words = row["prompt"].split()
        del words[draw.randrange(len(words))]
        return {**row, "prompt": " ".join(words)}


ROWS: list[Row] = [
    {"id": str(at), "prompt": "moja mbili tatu nne tano", "text": f"jibu {at}", "language": "sw", "source": "mine"}
    for at in range(20)
]


def test_view_0_is_the_row_and_others_are_the_same_at_every_call() -> None:
    assert augmented_rows(ROWS, [Drop(p=1.0)], 0) == ROWS
    first, again, other = (augmented_rows(ROWS, [Drop(p=1.0)], view) for view in (1, 1, 2))
    assert first == again != other
    assert all(len(row["prompt"].split()) == 4 for row in first)
    assert len({row["prompt"] for row in first}) > 1


def test_a_view_is_changed_with_its_probability() -> None:
    changed = [row for view in range(1, 51) for row in augmented_rows(ROWS, [Drop(p=0.3)], view)]
    share = sum(len(row["prompt"].split()) == 4 for row in changed) / len(changed)
    assert 0.25 < share < 0.35


@pytest.fixture
def learner() -> TextLearner:
    content = {
        "name": "t", "base": "debug", "language": "sw", "method": {"kind": "lora", "rank": 2},
        "train": {"batch_tokens": 600, "max_length": 128, "source_weights": {"mine": 2}},
    }  # fmt: skip
    recipe: Any = parse_recipe(content).model_copy(update={"augment": (Drop(p=1.0),), "text": TextSection(views=3)})
    made = TextTraining().learner(recipe, find_base("debug"), Examples(ROWS, ROWS[:2], ROWS[:1]), "cpu")
    assert isinstance(made, TextLearner)
    return made


def test_an_epoch_has_all_views_of_each_row_and_replay_has_none(learner: TextLearner) -> None:
    assert len(learner.documents) == 3 * 2 * len(ROWS) + 1
    plain = len(learner.task.encode(ROWS[:1])[0].tokens)
    whole = [len(document.tokens) == plain for document in learner.documents]
    assert sum(whole[: 2 * len(ROWS)]) > 0
    assert not any(whole[2 * len(ROWS) : -1])


def test_a_table_without_kinds_refuses_all() -> None:
    assert isinstance(augmentations("text"), OneOf)
    assert set(augmentations("image", "audio").kinds) == set(AUGMENTATIONS["image"]) | set(AUGMENTATIONS["audio"])
    if not AUGMENTATIONS["text"]:
        with pytest.raises(UsageError, match="there is no kind for this task yet"):
            parse_recipe({"name": "t", "base": "debug", "language": "sw", "augment": [{"kind": "drop"}], "text": {}})
