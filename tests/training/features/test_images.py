"""Described images from data to figures: what is held out, what is cached, what is beaten; on debug bases."""

import io
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from kauli.models.adapters.registry import Registry
from kauli.models.bases.find import find_base
from kauli.models.errors import UsageError
from kauli.models.requests import TextRequest
from kauli.models.tasks import load_served
from kauli.models.text.picture_memory import read_pictures
from kauli.models.vision.image_tower import ImageTower
from kauli.training.augment.image import Flip
from kauli.training.data.dataset import Dataset, load_data
from kauli.training.data.schema import write_parquet
from kauli.training.evaluation.describe import NO_OTHER, request_for
from kauli.training.evaluation.run import evaluate
from kauli.training.features.images import image_rows, other_images, with_media
from kauli.training.recipe import Recipe
from kauli.training.recipe_file import parse_recipe
from kauli.training.tasks.table import task_of_recipe
from kauli.training.train import train

COLOURS = {
    "red": (220, 30, 30), "green": (30, 200, 60), "blue": (40, 60, 220), "yellow": (240, 220, 40),
    "black": (10, 10, 10), "brown": (120, 70, 20), "pink": (250, 150, 190), "grey": (128, 128, 128),
}  # fmt: skip


def painted(colour: tuple[int, int, int], shade: int) -> bytes:
    out = io.BytesIO()
    Image.new("RGB", (24, 24), tuple(max(0, value - 9 * shade) for value in colour)).save(out, "PNG")
    return out.getvalue()


def rows() -> list[dict[str, Any]]:
    """Eight concepts in two languages: six taught, four of these with two images; one validated; one tested."""
    found = []
    for place, (name, colour) in enumerate(COLOURS.items()):
        split = {6: "validation", 7: "test"}.get(place, "train")
        for shade in range(2 if place < 4 or place == 7 else 1):
            for language, text in (("en", name), ("sw", f"rangi {name}")):
                found.append(
                    {
                        "id": f"{language}-{name}-{shade}", "group": f"g{place}", "language": language,
                        "prompt": f"Translate: {name}", "text": text, "image": painted(colour, shade), "audio": None,
                        "source": "painted", "licence": "CC0-1.0", "synthetic": False, "split": split, "flags": None,
                    }
                )  # fmt: skip
    return found


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("data")
    write_parquet(rows(), folder / "images.parquet")
    return folder


@pytest.fixture
def dataset(data: Path) -> Dataset:
    return load_data(str(data), ["en", "sw"])


@pytest.fixture(autouse=True)
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("KAULI_HOME", str(tmp_path / "home"))


def recipe(data: Path, **changes: Any) -> Recipe:
    content = {
        "name": "describe-sw", "task": "describe", "base": "debug", "language": ["sw"], "data": str(data),
        "method": {"kind": "lora", "rank": 4, "alpha": 8, "targets": "all-linear"},
        "describe": {
            "encoder": "debug-clip", "grid": 1, "hidden_dim": 16, "connector_warmup": 0.2, "learning_rate": 3e-3,
            "prompt": "In {language}?",
        },
        "train": {"steps": 12, "batch_tokens": 256, "max_length": 128, "learning_rate": 3e-3, "validate_every": 4},
    }  # fmt: skip
    return parse_recipe({**content, **changes}, "test")


def test_one_image_of_each_concept_with_several_is_held_out_in_every_language(dataset: Dataset) -> None:
    taught = image_rows(dataset, "train", ["sw", "en"], None)
    held = image_rows(dataset, "new_pictures", ["sw"], None)
    assert len({row["group"] for row in held}) == len(held) == 4
    assert {row["image_key"] for row in held}.isdisjoint(row["image_key"] for row in taught)
    assert {row["group"] for row in held} <= {row["group"] for row in taught}
    english = image_rows(dataset, "new_pictures", ["en"], None)
    assert {row["image_key"] for row in english} == {row["image_key"] for row in held}


def test_the_instruction_names_the_language_and_never_the_answer(dataset: Dataset) -> None:
    assert {row["prompt"] for row in image_rows(dataset, "test", ["sw"], "In {language}?")} == {"In Swahili?"}
    assert {row["prompt"] for row in image_rows(dataset, "test", ["sw"], None)} == {"Translate: grey"}


def test_a_wrong_image_is_of_another_group(dataset: Dataset) -> None:
    taught = [{**row, "media": row["image_key"]} for row in image_rows(dataset, "train", ["sw", "en"], None)]
    groups = {row["image_key"]: row["group"] for row in taught}
    for row, wrong in zip(taught, other_images(taught), strict=True):
        assert groups[wrong["media"]] != row["group"]
        assert wrong["text"] == row["text"]


def test_features_are_computed_once_and_views_differ(dataset: Dataset, monkeypatch: pytest.MonkeyPatch) -> None:
    tower = ImageTower.load(find_base("debug", task="align"), "cpu")
    taught = image_rows(dataset, "train", ["sw", "en"], None)
    flips = (Flip(p=1.0),)
    first = with_media(taught, tower, 1, flips, views=2)
    assert len(first) == 2 * len(taught)
    assert first[0]["media"][0].features.shape == (2, tower.width)
    monkeypatch.setattr(tower, "features", lambda *_: pytest.fail("computed again"))
    again = with_media(taught, tower, 1, flips, views=2)
    assert all((a["media"][0].features == b["media"][0].features).all() for a, b in zip(first, again, strict=True))
    plain = with_media(taught, tower, 1)  # the image as it is serves recipes without augmentation too
    assert len(plain) == len(taught)


def test_a_sign_is_not_mirrored(dataset: Dataset) -> None:
    tower = ImageTower.load(find_base("debug", task="align"), "cpu")
    (row, *_) = image_rows(dataset, "train", ["sw"])
    out = io.BytesIO()
    halves = Image.new("RGB", (24, 24), "white")
    halves.paste((0, 0, 0), (0, 0, 12, 24))
    halves.save(out, "PNG")
    for prompt, differs in (("Translate: red", True), ("Translate: left arrow", False)):
        one = {**row, "image": out.getvalue(), "image_key": "0" * 64, "prompt": prompt}
        plain, flipped = (made["media"][0].features for made in with_media([one], tower, 1, (Flip(p=1.0),), views=2))
        assert (abs(plain - flipped).max() > 1e-3) == differs


def test_train_publish_measure_and_measure_again(data: Path, tmp_path: Path) -> None:
    storage = str(tmp_path / "store")
    result = train(recipe(data), storage, use_ray=False, generated=6)
    found = result.evaluation.to_json()
    assert set(found["baselines"]) == {"no_image", "wrong_image", "nearest", "most_frequent"}
    names = {"bits_per_byte", "chrf", "exact"}
    assert names | {f"new_pictures_{name}" for name in names} <= set(found["metrics"])
    assert found["metrics"].get("clip_similarity") is None  # no aligned base on this machine
    nearest, frequent = (found["baselines"][name]["new_pictures_chrf"] for name in ("nearest", "most_frequent"))
    assert nearest > frequent
    assert "bits_per_byte" not in found["baselines"]["nearest"]
    # The test split has one concept alone, whose images are not wrong for each other
    assert set(found["baselines"]["wrong_image"]) == {f"new_pictures_{name}" for name in (*names, "copied")}
    assert [text for text in found["notes"] if "wrong_image" in text] == [f"test: {NO_OTHER}"]
    assert found["wrong_image_gain"]["new_pictures_bits_per_byte"]["interval"] is not None
    folder = Registry(storage).fetch(result.adapter)
    files = {path.name for path in folder.iterdir()}
    assert files >= {"connector.safetensors", "connector.json", "adapter_config.json"}
    again = evaluate(result.adapter, storage, limit=6, out=tmp_path / "report.html").to_json()
    assert again["metrics"] == pytest.approx(found["metrics"])
    assert "data:image/png;base64," in (tmp_path / "report.html").read_text()


def test_a_run_with_views_and_two_languages_learns(data: Path, tmp_path: Path) -> None:
    section = {"encoder": "debug-clip", "grid": 0, "hidden_dim": 16, "learning_rate": 3e-3, "views": 2}
    one = recipe(data, language=["sw", "en"], augment=[{"kind": "flip", "p": 0.5}], describe=section)
    result = train(one, str(tmp_path / "store"), use_ray=False, generated=2)
    card = Registry(str(tmp_path / "store")).card(result.adapter)
    assert card.validation is not None
    assert card.validation.adapter < card.validation.base
    assert set(result.evaluation.to_json()["by_language"]) == {"sw", "en"}


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"describe": None}, "describe: Input should be a valid dictionary"),
        ({"augment": [{"kind": "flip", "p": 0.5}]}, "augment needs describe.views of 2 or more"),
        ({"augment": [{"kind": "noise"}], "describe": {"views": 2}}, "'noise' changes audio: it needs describe.audio"),
        ({"describe": {"gird": 2}}, "unknown key 'describe.gird'. Did you mean 'grid'?"),
        ({"fusion": {"inner": 2}}, "'fusion' is now 'describe'.\n  'fusion.inner' is now 'describe.hidden_dim'"),
        ({"prompt": "Describe."}, "'prompt' is now 'describe.prompt'"),
        ({"task": "text"}, "unknown key 'describe'"),
        ({"augment": [{"kind": "flop"}]}, "flop"),
    ],
)
def test_a_recipe_that_makes_no_sense_says_why(data: Path, changes: dict[str, Any], message: str) -> None:
    with pytest.raises(Exception, match=message.replace("?", r"\?").replace("'", ".")):
        recipe(data, **changes)


def test_a_memory_of_pictures_is_trained_kept_served_and_measured(data: Path, tmp_path: Path) -> None:
    storage, section = str(tmp_path / "store"), {**recipe(data).model_dump(mode="json")["describe"], "examples": 2}
    result = train(recipe(data, describe=section), storage, use_ray=False, generated=6)
    found = result.evaluation.to_json()
    assert set(found["baselines"]) == {
        "no_image", "wrong_image", "nearest", "most_frequent", "memory_alone", "no_memory",
    }  # fmt: skip
    assert {"copied", "new_pictures_copied"} <= set(found["metrics"])
    assert found["metrics"]["bits_per_byte"] != found["baselines"]["no_memory"]["bits_per_byte"]
    folder = Registry(storage).fetch("describe-sw@1")
    memory = read_pictures(folder, ImageTower.load(find_base("debug", task="align"), "cpu").sha256)
    assert memory is not None
    assert memory.languages == ("sw",)
    task = load_served("describe", find_base("debug"), "cpu")
    task.add_adapter("a@1", folder)
    tower = ImageTower.load(find_base("debug", task="align"), "cpu")
    (row, *_) = with_media(image_rows(load_data(str(data), ["sw"]), "test", ["sw"], "In {language}?"), tower, 1)
    captions = task.captions(row["media"], "sw", "a@1")
    assert len(captions) == 2
    own = {**row, "captions": captions}
    assert task.bits([row], "a@1") == task.bits([own], "a@1") != task.bits([{**row, "captions": ()}], "a@1")

    def answer(request: TextRequest) -> str:
        return "".join(one.text for some in task.generate([request], ["a@1"]) for one in some)

    asked = request_for(row)
    by_hand = TextRequest.of_prompt(
        f"Similar pictures: {'; '.join(captions)}.\nIn Swahili?", row["media"], max_tokens=48, captions=()
    )
    assert answer(asked) == answer(replace(asked, language=None)) == answer(by_hand)


def test_training_rows_are_never_shown_captions_of_their_own_group(data: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    section = {**recipe(data).model_dump(mode="json")["describe"], "examples": 3}
    one, base = recipe(data, describe=section), find_base("debug")
    task = task_of_recipe(one)
    examples = task.rows(one, load_data(str(data), ["en", "sw"]), base)
    learner = task.learner(one, base, examples, "cpu")
    texts = {row["group"]: {other["text"] for other in examples.train if other["group"] == row["group"]}
             for row in examples.train}  # fmt: skip
    shown = [row for row in learner.examples.train if row["captions"]]
    assert len(shown) > len(learner.examples.train) / 2
    assert all(not texts[row["group"]] & set(row["captions"]) for row in shown)
    assert all(len(row["captions"]) == 3 for row in learner.examples.validation)
    tight = parse_recipe(
        {**one.model_dump(mode="json"), "train": {**one.model_dump(mode="json")["train"], "max_length": 60}}, "test"
    )
    learner = task.learner(tight, base, task.rows(tight, load_data(str(data), ["en", "sw"]), base), "cpu")
    assert {len(row["captions"]) for row in learner.examples.validation} < {0, 1, 2}


def test_captions_of_pictures_and_audio_are_refused_together(data: Path) -> None:
    section = {**recipe(data).model_dump(mode="json")["describe"], "examples": 2, "audio": {}}
    with pytest.raises(UsageError, match=r"describe\.examples: captions of similar images are for rows without audio"):
        recipe(data, describe=section)
