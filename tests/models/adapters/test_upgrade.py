"""Cards of schema 1 are read as schema 2: their typed fields come from the recipe of their time."""

import json
from pathlib import Path
from typing import Any

import pytest

from kauli.models.adapters.card import Card, parse_card
from kauli.models.adapters.upgrade import RENAMED, rename_keys, upgrade_card
from kauli.models.errors import KauliError

FIXTURES = Path(__file__).parents[2] / "fixtures" / "adapters"
AUDIO = {"encoder": "whisper-base", "stack": 4, "inner": 1024, "unseen": 0.5, "unheard": 0.1, "fastest": 21.0}
FUSION = {"encoder": "kauli-towers", "grid": 2, "inner": 64, "learning_rate": 1e-3, "alone": 0.25, "views": 1}
SPEECH = {"related": {"ky": ["kk", "tt"], "be": []}, "fastest": 18.0, "joined": 0.5}


def old(task: str, kind: str = "lora", **recipe: Any) -> dict[str, Any]:
    """A card as the first schema had it."""
    sections = {"fusion": None, "pairs": None, "speech": None, "prompt": None}
    return {
        "schema": 1,
        "name": "x",
        "task": task,
        "language": ["sw"],
        "base": {"name": "debug", "reference": "kauli/debug", "sha256": "0", "licence": "MIT"},
        "method": {"kind": kind},
        "licence": "MIT",
        "validation": {"base": 3.0, "adapter": 2.0},
        "recipe": {"name": "x", "task": task, "train": {"steps": 5, "repeat": {"a": 2}}, **sections, **recipe},
    }


def read(card: dict[str, Any]) -> Card:
    return parse_card(json.dumps(card), "here")


def test_a_text_card_has_no_encoders_and_a_recipe_of_its_own_task_alone() -> None:
    card = read(old("text"))
    assert card.schema_version == 2
    assert card.recipe == {"name": "x", "task": "text", "train": {"steps": 5, "source_weights": {"a": 2}}}
    assert (card.encoders, card.prompt.instruction, card.evaluation.max_chars_per_second) == ({}, None, None)
    assert card.validation is not None
    assert card.validation.metric == "bits_per_byte"


def test_the_fields_of_describe() -> None:
    card = read(old("describe", fusion={**FUSION, "hearing": AUDIO}, prompt="Describe it in {language}."))
    assert {media: one.base for media, one in card.encoders.items()} == {
        "image": "kauli-towers",
        "audio": "whisper-base",
    }
    assert all(one.sha256 is None for one in card.encoders.values())
    assert card.prompt.instruction == "Describe it in {language}."
    assert card.evaluation.max_chars_per_second == 21.0
    assert card.recipe is not None
    describe = card.recipe["describe"]
    assert describe["hidden_dim"] == 64
    assert describe["connector_warmup"] == 0.25
    assert describe["prompt"] == "Describe it in {language}."
    assert describe["audio"] == {
        "encoder": "whisper-base", "stack": 4, "hidden_dim": 1024, "drop_image_prob": 0.5, "drop_audio_prob": 0.1,
        "max_chars_per_second": 21.0,
    }  # fmt: skip
    images = read(old("describe", fusion={**FUSION, "hearing": None}))
    assert set(images.encoders) == {"image"}


def test_the_fields_of_transcribe_and_the_language_that_a_base_is_asked_for() -> None:
    card = read(old("transcribe", speech=SPEECH))
    assert card.evaluation.max_chars_per_second == 18.0
    assert card.evaluation.base_languages == {"ky": "kk"}
    assert card.recipe is not None
    assert card.recipe["transcribe"] == {
        "init_from_languages": {"ky": ["kk", "tt"], "be": []}, "max_chars_per_second": 18.0, "concat_prob": 0.5,
    }  # fmt: skip


@pytest.mark.parametrize(
    ("kind", "metric"), [("projection", "one_minus_mrr"), ("head", "one_minus_macro_f1"), ("lora", "bits_per_byte")]
)
def test_the_validation_figure_is_named_by_the_kind(kind: str, metric: str) -> None:
    validation = read(old("align", kind, pairs={"loss": "clip", "start": "base", "smoothing": 0.1})).validation
    assert validation is not None
    assert validation.metric == metric


def test_renaming_there_and_back_gives_the_same_recipe() -> None:
    recipe = old("describe", fusion={**FUSION, "hearing": AUDIO}, prompt="x", speech=SPEECH, pairs={"start": "base"})
    there = rename_keys(recipe["recipe"])
    assert "fusion" not in there
    back = rename_keys(there, {new: key for key, new in RENAMED.items()})
    assert back == recipe["recipe"]


def test_a_card_of_today_and_one_of_tomorrow_are_left_as_they_are() -> None:
    today = json.loads(read(old("text")).to_json())
    assert upgrade_card(today) == today
    with pytest.raises(KauliError, match="schema"):
        read({**today, "schema": 3})
    with pytest.raises(KauliError, match="fusion"):
        read({**old("text"), "fusion": {}})  # an upgrade lets no unknown key pass


@pytest.mark.parametrize(
    "damage",
    [
        '{"schema": 1',
        "[1]",
        '{"schema": 1, "recipe": 3}',
        '{"schema": 1, "method": 3}',
        '{"schema": 1, "recipe": {"fusion": 3, "speech": {"related": 4}}}',
    ],
)
def test_a_damaged_old_card_is_one_clear_error(damage: str) -> None:
    with pytest.raises(KauliError, match="here is not a readable card"):
        parse_card(damage, "here")


@pytest.mark.parametrize("folder", sorted(FIXTURES.glob("*/card.json")), ids=lambda path: path.parent.name)
def test_published_cards_of_schema_1_are_read_and_stay_on_the_disk(folder: Path) -> None:
    before = folder.read_bytes()
    assert json.loads(before)["schema"] == 1
    card = parse_card(before, "here")
    assert card.recipe is not None
    assert not {"fusion", "pairs", "speech"} & card.recipe.keys()
    assert folder.read_bytes() == before
