"""A head recipe from labelled images to a published adapter, on the debug base."""

import io
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from sklearn.metrics import f1_score

from kauli.models.adapters.registry import Registry
from kauli.models.errors import UsageError
from kauli.training.data.schema import write_parquet
from kauli.training.evaluation.run import evaluate
from kauli.training.evaluation.scorers import FINISH
from kauli.training.recipe import Recipe
from kauli.training.recipe_file import parse_recipe
from kauli.training.train import train

CLASSES = {"nyekundu": (230, 20, 20), "kijani": (20, 220, 40), "bluu": (30, 40, 230)}


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Three classes of plain colour with a little noise: 8 training, 2 validation and 3 test images each."""
    random, rows = np.random.default_rng(0), []
    for name, colour in CLASSES.items():
        for at in range(13):
            pixels = np.clip(np.array(colour) + random.normal(0, 12, (16, 16, 3)), 0, 255).astype(np.uint8)
            out = io.BytesIO()
            Image.fromarray(pixels).save(out, "PNG")
            split = "train" if at < 8 else "validation" if at < 10 else "test"
            rows.append(
                {
                    "id": f"{name}-{at}", "group": f"{name}-{at}", "language": "sw", "prompt": None, "text": name,
                    "image": out.getvalue(), "audio": None, "source": "painted", "licence": "CC0-1.0",
                    "synthetic": False, "split": split, "flags": None,
                }
            )  # fmt: skip
    folder = tmp_path_factory.mktemp("data")
    write_parquet(rows, folder / "colours.parquet")
    return folder


@pytest.fixture(autouse=True)
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("KAULI_HOME", str(tmp_path / "home"))


def recipe(data: Path, **method: Any) -> Recipe:
    content = {
        "name": "head-colours", "task": "align", "base": "debug", "language": "sw", "data": str(data),
        "method": {"kind": "head", "head": "prototype", "shots": 4, **method},
    }  # fmt: skip
    return parse_recipe(content, "test")


@pytest.mark.parametrize("head", ["prototype", "linear", "tip_f"])
def test_colours_are_told_apart_from_four_examples(data: Path, tmp_path: Path, head: str) -> None:
    storage = str(tmp_path / "store")
    result = train(recipe(data, head=head), storage, use_ray=False)
    assert result.metrics["macro_f1"] == 1.0
    card = Registry(storage).card(result.adapter)
    assert card.method["kind"] == "head"
    assert card.data is not None
    assert card.data.rows == 12
    assert evaluate(result.adapter, storage).to_json()["metrics"] == result.metrics
    assert result.evaluation.to_json()["base_metrics"]["macro_f1"] is not None


def test_more_shots_than_images_is_refused(data: Path, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=r"method.shots 9: too few images in the 'train' split of .* lower"):
        train(recipe(data, shots=9), str(tmp_path / "store"), use_ray=False)


def test_zero_shot_and_shots_go_together(data: Path) -> None:
    with pytest.raises(UsageError, match="head zero_shot goes with shots 0"):
        recipe(data, head="zero_shot")


def test_macro_f1_of_counts_is_scikit_learns() -> None:
    random = np.random.default_rng(1)
    labels, guesses = random.integers(0, 4, 60), random.integers(0, 4, 60)
    counts = np.zeros((4, 4))
    np.add.at(counts, (labels, guesses), 1)
    expected = f1_score(labels, guesses, average="macro")
    assert FINISH["macro_f1"](counts.reshape(-1)) == pytest.approx(expected)
