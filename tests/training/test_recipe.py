"""Recipes: what ships loads, what is wrong is named."""

from pathlib import Path

import pytest

from kauli.models.bases.find import known_bases
from kauli.models.errors import UsageError
from kauli.training.recipe_file import load_recipe, recipe_names

DESIGN = """
name: text-sw
task: text
base: smollm2-135m-q4
language: sw
data: starter
method: {kind: lora, rank: 8, alpha: 16, targets: attention}
augment: []
objective: {regulariser: none, weight: 0.0}
start_from: null
train: {steps: 300, minutes: null, batch_tokens: 1024, learning_rate: 5.0e-4, warmup: 0.05, early_stop: 3, seed: 0}
scale: {workers: 1, gpu: false, precision: auto}
"""


@pytest.mark.parametrize("name", recipe_names())
def test_every_shipped_recipe_loads(name: str) -> None:
    recipe = load_recipe(name)
    assert recipe.name == name
    assert recipe.base in known_bases()


def test_the_shipped_recipes_are_those_promised() -> None:
    assert {"text-sw", "text-am", "text-be", "text-ky", "text-multi", "text-sw-gemma"} <= set(recipe_names())


def test_the_recipe_of_the_design_loads(tmp_path: Path) -> None:
    path = tmp_path / "mine.yaml"
    path.write_text(DESIGN)
    recipe = load_recipe(str(path))
    assert recipe.language == ("sw",)
    assert recipe.train.learning_rate == 5e-4


def test_overrides_are_read_as_yaml_and_change_the_hash() -> None:
    plain = load_recipe("text-sw")
    changed = load_recipe("text-sw", ["language=[ka, be]", "name=text-ka", "train.learning_rate=1e-3", "method.rank=4"])
    assert changed.language == ("ka", "be")
    assert changed.train.learning_rate == 1e-3
    assert changed.method.model_dump()["rank"] == 4
    assert changed.sha256() != plain.sha256()


def test_the_hash_knows_the_seed_but_not_the_scale() -> None:
    one, two = load_recipe("text-sw"), load_recipe("text-sw", ["train.seed=5"])
    assert one.sha256() != two.sha256()
    assert one.sha256(with_seed=False) == two.sha256(with_seed=False)
    assert load_recipe("text-sw", ["scale.workers=2"]).sha256() == one.sha256()


@pytest.mark.parametrize(
    ("overrides", "expected"),
    [
        (["trian.steps=3"], "Did you mean 'train'?"),
        (["train.step=3"], "Did you mean 'steps'?"),
        (["method.rnak=3"], "Did you mean 'rank'?"),
        (["method.kind=loar"], "lora"),
        (["language=swahilli"], "swahilli"),
        (["train.steps=0"], "train.steps"),
        (["train.learning_rate=fast"], "fast"),
        (["name=../x"], "name"),
        (["task=txet"], "text"),
        (["augment=[{kind: word_substitute, p: 0.1}]"], "augment"),
        (["objective.regulariser=replay"], "go together"),
        (["scale.workers=[3, 2]"], "min <= max"),
        (["scale.workers=0"], "workers"),
        (["train.max_length=4096"], "max_length"),
        (["nonsense"], "key=value"),
        (["name.x=1"], "not a section"),
    ],
)
def test_a_mistake_is_one_clear_error(overrides: list[str], expected: str) -> None:
    if "objective.regulariser=replay" in overrides:
        overrides = [*overrides, "objective.weight=0"]
    with pytest.raises(UsageError) as caught:
        load_recipe("text-sw", overrides)
    assert expected in str(caught.value)


def test_an_unknown_recipe_names_the_nearest() -> None:
    with pytest.raises(UsageError, match="Did you mean 'text-sw'"):
        load_recipe("text-swa")


def test_a_file_that_is_no_recipe_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "x.yaml"
    for content in ("- 1\n", "a: [\n", ""):
        path.write_text(content)
        with pytest.raises(UsageError):
            load_recipe(str(path))
