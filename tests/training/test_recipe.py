"""Recipes: what ships loads, what is wrong is named."""

import re
from pathlib import Path

import pytest

from kauli.models.adapters.upgrade import RENAMED
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


OLD = {
    "describe-be-fused": {
        "fusion": "{}", "fusion.inner": "8", "fusion.alone": "0.1", "fusion.hearing": "{}", "fusion.hearing.inner": "8",
        "fusion.hearing.unseen": "0.1", "fusion.hearing.unheard": "0.1", "fusion.hearing.fastest": "9", "prompt": "x",
    },
    "align-starter": {"pairs": "{}", "pairs.start": "base", "pairs.smoothing": "0.1"},
    "transcribe-be": {
        "speech": "{}", "speech.related": "{}", "speech.fastest": "9", "speech.joined": "0", "train.repeat": "{a: 2}",
    },
}  # fmt: skip


@pytest.mark.parametrize(("name", "key"), [(name, key) for name, keys in OLD.items() for key in keys])
def test_an_old_key_is_an_error_that_names_the_new_one(name: str, key: str) -> None:
    with pytest.raises(UsageError, match=re.escape(f"'{key}' is now '{RENAMED[key]}'.")):
        load_recipe(name, [f"{key}={OLD[name][key]}"])


def test_all_renamed_keys_are_tested() -> None:
    assert set(RENAMED) == {key for keys in OLD.values() for key in keys}


@pytest.mark.parametrize(
    ("name", "overrides", "expected"),
    [
        ("text-sw", ["describe={}"], "unknown key 'describe'"),
        ("text-sw", ["align={}"], "unknown key 'align'"),
        ("text-sw", ["transcribe={}"], "unknown key 'transcribe'"),
        ("text-sw", ["prompt=x"], "unknown key 'prompt'"),
        ("text-sw", ["augment=[{kind: flip}]"], "augment"),
        ("text-sw", ["augment=[{kind: speed}]"], "augment"),
        ("text-sw", ["text={views: 2}"], "augment and the section 'text' go together"),
        ("text-sw", ["method={kind: projection}"], "no kind 'projection'"),
        ("text-sw", ["method={kind: attention_adapter}"], "no kind 'attention_adapter'"),
        ("text-sw", ["method={kind: head}"], "no kind 'head'"),
        ("text-sw", ["method={kind: ia3}"], "no kind 'ia3'"),
        ("text-sw", ["method={rank: 4}"], "'method' needs a kind"),
        ("text-sw", ["start_from=x", "method={kind: full}"], "start_from needs a method with adapter weights"),
        ("text-sw", ["train.source_weights={udhr: 0}"], "train.source_weights.udhr"),
        ("text-sw", ["task=describe"], "'describe' is missing"),
        ("text-sw", ["task=align"], "no kind 'lora' for this task. Allowed: projection"),
        ("text-sw", ["task=transcribe", "objective={}"], "'transcribe' is missing"),
        ("align-starter", ["method={kind: lora}"], "no kind 'lora'"),
        ("align-starter", ["objective={regulariser: replay, weight: 0.1}"], "unknown key 'objective'"),
        ("align-starter", ["describe={prompt: x}"], "unknown key 'describe'"),
        ("align-starter", ["augment=[{kind: noise}]", "align.views=2"], "no kind 'noise'"),
        ("head-topics", ["language=[sw, en]"], "a head has one language"),
        ("head-topics", ["augment=[{kind: flip}]"], "unknown key 'augment'"),
        ("head-topics", ["start_from=x"], "start_from"),
        ("head-topics", ["align={}"], "unknown key 'align'"),
        ("describe-be", ["method={kind: attention_adapter}"], "no kind 'attention_adapter'"),
        ("describe-be", ["augment=[{kind: noise}]"], "'noise' changes audio: it needs describe.audio"),
        ("describe-be", ["augment=[{kind: spec_augment}]"], "'spec_augment' changes audio"),
        ("describe-be", ["augment=[{kind: flip, turn: 3}]"], "unknown key 'augment.0.flip.turn'. Allowed: kind, p."),
        ("describe-be", ["describe.views=1"], "augment needs describe.views of 2 or more"),
        ("describe-be-fused", ["describe.audio.drop_image_prob=1"], "together at most 1"),
        ("transcribe-be", ["describe={}"], "unknown key 'describe'"),
        ("transcribe-be", ["objective={regulariser: replay, weight: 0.1}"], "unknown key 'objective'"),
        ("transcribe-be", ["augment=[{kind: flip}]"], "no kind 'flip'"),
        ("transcribe-be", ["method={kind: projection}"], "no kind 'projection'"),
        ("transcribe-be", ["transcribe.concat_prob=1"], "transcribe.concat_prob"),
    ],
)
def test_what_belongs_to_another_task_is_one_clear_error(name: str, overrides: list[str], expected: str) -> None:
    with pytest.raises(UsageError) as caught:
        load_recipe(name, overrides)
    assert expected in str(caught.value)


def test_every_override_of_a_section_is_taken() -> None:
    one = load_recipe("describe-be-fused", ["describe.audio.stack=2", "describe.prompt=Sema.", "augment=[]"])
    content = one.model_dump()
    assert (content["describe"]["audio"]["stack"], content["describe"]["prompt"]) == (2, "Sema.")
    assert content["augment"] == ()
