"""`train` from recipe to registry on the debug base, without Ray: what is published, promoted, refused, left behind."""

import json
from pathlib import Path
from typing import Any

import pytest

from kauli.models.adapters.registry import Registry
from kauli.models.errors import KauliError, UsageError
from kauli.training.evaluation.run import evaluate
from kauli.training.recipe import Recipe
from kauli.training.recipe_file import parse_recipe
from kauli.training.train import TrainResult, train

WORDS = ("moto", "maji", "ndege", "samaki", "mti", "jua", "mwezi", "nyota", "mlima", "mto", "bahari", "upepo")


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> str:
    folder = tmp_path_factory.mktemp("data")
    rows = [
        {"prompt": f"say {number}", "text": f"{WORDS[number % 12]} {number} {WORDS[number * 5 % 12]}", "source": "mine",
         "language": "sw", "licence": "CC0-1.0"}
        for number in range(120)
    ]  # fmt: skip
    (folder / "rows.jsonl").write_text("\n".join(json.dumps(row) for row in rows))
    return str(folder / "rows.jsonl")


def recipe(data: str, **changes: Any) -> Recipe:
    content = {
        "name": "text-x", "base": "debug", "language": "sw", "data": data,
        "method": {"kind": "lora", "rank": 4, "targets": "all-linear"},
        "train": {"steps": 12, "batch_tokens": 600, "max_length": 128, "validate_every": 6, "learning_rate": 0.01},
    }  # fmt: skip
    for key, value in changes.items():
        content[key] = {**content[key], **value} if key == "train" else value  # type: ignore[dict-item]
    return parse_recipe(content)


def run(one: Recipe, storage: Path, **options: Any) -> TrainResult:
    return train(one, str(storage), use_ray=False, generated=2, **options)


def test_a_run_is_published_measured_and_promoted(data: str, tmp_path: Path) -> None:
    result = run(recipe(data), tmp_path)
    assert result.adapter == "text-x@1"
    assert list(result.aliases) == ["latest"]
    registry = Registry(str(tmp_path))
    card = registry.card("text-x")
    assert card.metrics["bits_per_byte"] == pytest.approx(result.metrics["bits_per_byte"])
    assert card.base_metrics is not None
    assert card.metrics["bits_per_byte"] < card.base_metrics["bits_per_byte"]  # type: ignore[operator]
    assert card.validation is not None
    assert card.validation.adapter < card.validation.base  # type: ignore[operator]
    assert [(one.source, one.licence) for one in card.attributions] == [("mine", "CC0-1.0")]
    config = json.loads((registry.fetch("text-x") / "adapter_config.json").read_text())
    assert config["base_model_name_or_path"] == "kauli/debug-text"
    (folder,) = (tmp_path / "runs" / "text-x").iterdir()
    assert {path.name for path in folder.iterdir()} == {"run.json", "metrics.jsonl", "published.json"}
    lines = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    assert [line["step"] for line in lines if "loss" in line] == list(range(1, 13))
    # what is measured again is what was measured
    again = evaluate("text-x", str(tmp_path), limit=2)
    assert again.metrics["bits_per_byte"] == pytest.approx(result.metrics["bits_per_byte"])
    # the same recipe once more is a new version
    assert run(recipe(data), tmp_path).adapter == "text-x@2"


def test_an_adapter_no_better_than_its_base_does_not_become_latest(
    data: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    result = run(recipe(data, train={"learning_rate": 1e-12}), tmp_path)
    assert list(result.aliases) == []
    assert Registry(str(tmp_path)).aliases("text-x") == {}
    assert "does not become 'latest'" in capsys.readouterr().err


def test_full_fine_tuning_is_published_and_used(data: str, tmp_path: Path) -> None:
    result = run(recipe(data, method={"kind": "full"}), tmp_path)
    folder = Registry(str(tmp_path)).fetch("text-x")
    assert (folder / "model.safetensors").exists()
    again = evaluate("text-x", str(tmp_path), limit=2)
    assert again.metrics["bits_per_byte"] == pytest.approx(result.metrics["bits_per_byte"])
    assert again.base_metrics is not None
    assert again.metrics["bits_per_byte"] < again.base_metrics["bits_per_byte"]  # type: ignore[operator]


def test_training_can_start_from_an_adapter(data: str, tmp_path: Path) -> None:
    run(recipe(data), tmp_path)
    result = run(recipe(data, name="text-y", start_from="text-x@1", train={"learning_rate": 1e-12}), tmp_path)
    first = Registry(str(tmp_path)).card("text-x").metrics["bits_per_byte"]
    assert result.metrics["bits_per_byte"] == pytest.approx(first, rel=1e-4)


def test_a_taken_name_is_refused_before_training(data: str, tmp_path: Path) -> None:
    run(recipe(data), tmp_path)
    with pytest.raises(UsageError, match="'text-x' is taken: its base is"):
        run(recipe(data, base="debug-qwen"), tmp_path)
    assert len(list((tmp_path / "runs" / "text-x").iterdir())) == 1


def test_an_unfinished_run_of_other_data_is_refused_or_started_over(data: str, tmp_path: Path) -> None:
    one = recipe(data)
    folder = tmp_path / "runs" / "text-x" / f"{one.sha256()[:12]}-1"
    folder.mkdir(parents=True)
    (folder / "run.json").write_text(json.dumps({"data": "of yesterday"}))
    with pytest.raises(UsageError, match="--restart"):
        run(one, tmp_path)
    assert run(one, tmp_path, restart=True).adapter == "text-x@1"


def test_a_run_killed_before_publishing_is_taken_up(
    data: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def full(self: Registry, folder: Path, card: Any) -> None:
        raise KauliError("no space left")

    with monkeypatch.context() as patch:
        patch.setattr(Registry, "publish", full)
        with pytest.raises(KauliError, match="no space left"):
            run(recipe(data), tmp_path)
    assert Registry(str(tmp_path)).names() == []
    assert run(recipe(data), tmp_path).adapter == "text-x@1"
    assert "Resuming the unfinished run" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ({"language": "am"}, "Amharic"),
        ({"train": {"steps": None}}, "an end"),
        ({"start_from": "text-nothing"}, "text-nothing"),
        ({"base": "no-such-base"}, "no-such-base"),
        ({"data": "nowhere.jsonl"}, "nowhere.jsonl"),
        ({"scale": {"workers": 2}}, "without Ray there is one worker"),
    ],
)
def test_a_recipe_that_cannot_run_is_one_clear_error(
    data: str, tmp_path: Path, changes: dict[str, Any], expected: str
) -> None:
    with pytest.raises(UsageError, match=expected):
        run(recipe(**{"data": data, **changes}), tmp_path)
    assert not (tmp_path / "adapters").exists()
