"""Other people's data through whole runs: what does not fit is left out and named, and no run fails at its end."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import soundfile
from PIL import Image

from kauli.models.adapters.card import Card
from kauli.models.adapters.registry import Registry
from kauli.models.errors import UsageError
from kauli.training.recipe_file import load_recipe
from kauli.training.train import TrainResult, train

QUICK = ["base=debug", "train.steps=2", "train.minutes=null", "train.validate_every=2"]


@pytest.fixture(autouse=True)
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("KAULI_HOME", str(tmp_path / "home"))
    monkeypatch.chdir(tmp_path)


def run(recipe: str, *sets: str) -> TrainResult:
    return train(load_recipe(recipe, [*QUICK, "name=mine", *sets]), "store", use_ray=False, generated=2)


def card() -> Card:
    return Registry("store").card("mine@1")


def written(name: str, rows: list[dict[str, Any]]) -> str:
    Path(name).write_text("\n".join(json.dumps(row) for row in rows))
    return f"data={name}"


def talk(split: str, count: int, first: int = 0) -> list[dict[str, Any]]:
    return [
        {"language": "sw", "split": split, "prompt": f"swali fupi {at}", "text": f"jibu namba {at}"}
        for at in range(first, first + count)
    ]


def test_the_readme_s_line_trains_on_data_without_sources_and_english(
    capfd: pytest.CaptureFixture[str],
) -> None:
    Path("mine.csv").write_text("text\n" + "\n".join(f"დედა {at} წყალი {at * 7}" for at in range(40)))
    result = run("text-sw", "data=mine.csv", "language=ka")
    told = capfd.readouterr().err
    assert result.adapter == "mine@1"
    assert "train.source_weights: no source udhr in 'mine.csv' (its rows name none): ignored" in told
    assert "no English rows in 'mine.csv' to replay: trained without" in told
    assert "debug-text cannot spell Georgian: its vocabulary has 0% of the letters" in told
    assert "kauli fetch gemma-3-270m-q4 --accept-terms" in told
    assert "train.steps 2 is too few to learn from this data" in told
    assert told.index("cannot spell") < told.index("Training mine") < told.index("train.steps 2")
    found = card()
    assert found.recipe == load_recipe("text-sw", [*QUICK, "name=mine", "data=mine.csv", "language=ka"]).model_dump(
        mode="json"
    )
    assert any("cannot spell Georgian" in note for note in found.notes)
    assert any("train.steps 2" in note for note in found.notes)


def test_rows_with_prompts_over_the_limit_are_left_out_of_each_split_and_named(
    capfd: pytest.CaptureFixture[str],
) -> None:
    long = "makala ndefu " * 1500
    rows = talk("train", 12) + talk("validation", 3, 12) + talk("test", 3, 15)
    rows += [{"language": "sw", "split": split, "prompt": f"{split} {long}", "text": split} for split in
             ("train", "validation", "test")]  # fmt: skip
    result = run("text-sw", written("mine.jsonl", rows), "objective={}", "train.source_weights={}")
    told = capfd.readouterr().err
    for split, line, total in (("train", 19, 13), ("validation", 20, 4)):
        assert f"{split}: 1 of {total} rows left out: 1 whose prompt leaves no room" in told
        assert f"(mine.jsonl line {line}: " in told
    [note] = [one for one in result.evaluation.notes if "left out" in one]
    assert note.startswith(
        "test: 1 of 4 rows left out: 1 whose prompt leaves no room for an answer in the 2,048 tokens"
    )
    assert "mine.jsonl line 21: 19," in note
    assert (result.evaluation.left_out, result.evaluation.examples) == (1, 3)
    data = card().data
    assert data is not None
    assert (data.rows, data.left_out) == (12, 1)
    assert "Token indices" not in told


def test_rows_that_are_all_longer_than_everything_are_cut(capfd: pytest.CaptureFixture[str]) -> None:
    rows = [{"language": "sw", "text": f"makala {at} " + "maneno mengi " * 2000} for at in range(6)]
    result = run("text-sw", written("mine.jsonl", rows), "objective={}", "train.source_weights={}")
    assert result.metrics["chrf"] is not None
    assert "examples are longer than train.max_length and were truncated" in capfd.readouterr().err


def test_a_test_split_without_a_row_to_measure_ends_the_run_before_it_begins() -> None:
    rows = talk("train", 12) + talk("validation", 3, 12)
    rows.append({"language": "sw", "split": "test", "prompt": "makala ndefu " * 1500, "text": "muhtasari"})
    with pytest.raises(UsageError, match=r"no text in sw in its 'test' split: .* 1 of 1 rows left out: .* line 16: 19"):
        run("text-sw", written("mine.jsonl", rows))
    assert not Path("store").exists()


@pytest.mark.parametrize(
    ("recipe", "sets"),
    [
        ("describe-multi", ["describe.prompt=null", "describe.encoder=debug", "describe.hidden_dim=8"]),
        ("align-starter", ["align.batch=4"]),
        ("head-topics", ["method.shots=2"]),
    ],
)
def test_a_picture_that_cannot_be_read_is_left_out_and_named(
    recipe: str, sets: list[str], capfd: pytest.CaptureFixture[str]
) -> None:
    rows = []
    for at in range(18):
        Image.new("RGB", (16, 16), (14 * at, 200 - 9 * at, at * at % 255)).save(f"{at}.png")
        split = "train" if at < 8 else "validation" if at < 13 else "test"
        rows.append({"image": f"{at}.png", "text": f"picha {at % 4}", "language": "sw", "split": split})
    frames = [Image.new("RGB", (16, 16), (at, 0, 0)) for at in (0, 255)]
    for at, split in ((8, "train"), (17, "test")):
        frames[0].save(f"{at}.gif", save_all=True, append_images=frames[1:])
        rows.append({"image": f"{at}.gif", "text": f"picha {at}", "language": "sw", "split": split})
        frames.reverse()
    result = run(recipe, written("mine.jsonl", rows), "language=sw", "data_options.leaks=group", *sets)
    told = capfd.readouterr().err
    assert "train: 1 of 9 rows left out: 1 that can't be read (mine.jsonl line 19 (8.gif): " in told
    assert "animated (2 frames)" in told
    assert any(
        note.startswith("test: 1 of 6 rows left out: 1 that can't be read (") for note in result.evaluation.notes
    )
    data = card().data
    assert data is not None
    assert data.left_out == 1


def test_clips_that_cannot_be_used_are_named(capfd: pytest.CaptureFixture[str]) -> None:
    draw, rows = np.random.default_rng(0), []
    for at in range(9):
        split = "train" if at < 5 else "validation" if at < 7 else "test"
        soundfile.write(f"{at}.wav", draw.normal(0, 0.1, 9600), 16_000)
        rows.append({"audio": f"{at}.wav", "text": f"neno {at}", "language": "be", "split": split})
    soundfile.write("silent.wav", np.zeros(9600), 16_000)
    Path("page.wav").write_text("<html>")
    for name in ("silent", "page"):
        rows.append({"audio": f"{name}.wav", "text": f"neno {name}", "language": "be", "split": "train"})
    soundfile.write("long.wav", draw.normal(0, 0.1, 160_000), 16_000)
    rows.append({"audio": "long.wav", "text": "neno refu", "language": "be", "split": "train"})
    run("transcribe-be", written("mine.jsonl", rows), "train.max_length=400", "augment=[]")
    told = capfd.readouterr().err
    assert "train: 2 of 8 clips left out" in told
    assert "mine.jsonl line 10 (silent.wav): the audio is silent" in told
    assert "mine.jsonl line 11 (page.wav): " in told
    assert "train: 1 of 6 clips left out: 1 longer than train.max_length (mine.jsonl line 12 (long.wav): " in told


@pytest.mark.parametrize("name", ["text", "debug-text"])
def test_the_name_of_a_task_or_a_base_is_refused_at_once(name: str) -> None:
    with pytest.raises(UsageError, match=f"can't be called '{name}'"):
        run("text-sw", "data=nowhere.csv", f"name={name}")
