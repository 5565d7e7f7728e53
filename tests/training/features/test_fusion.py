"""Images with audio: which rows, what each view shows, what is cached, which medium helps; on debug bases."""

import io
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import soundfile
import torch
from PIL import Image

from kauli.models.adapters.registry import Registry
from kauli.models.bases.find import find_base
from kauli.models.errors import UsageError
from kauli.models.metrics import plain_name
from kauli.models.text.connector import Connector
from kauli.training.data.dataset import Dataset, load_data
from kauli.training.data.schema import write_parquet
from kauli.training.evaluation.describe import NO_OTHER
from kauli.training.evaluation.fusion import evaluate_fusion
from kauli.training.evaluation.request import MAX_CHARS_PER_SECOND, EvalRequest
from kauli.training.evaluation.results import EvalResult
from kauli.training.evaluation.run import evaluate
from kauli.training.features.fusion import audio_features, fused_rows, load_audio_encoder
from kauli.training.recipe_file import parse_recipe
from kauli.training.tasks.base import Examples
from kauli.training.tasks.describe import DescribeLearner, DescribeRecipe, DescribeTraining
from kauli.training.train import train
from support.speech_adapters import publish_hearing

NAMES = ("red", "green", "blue", "white", "black", "brown", "pink", "grey", "tan", "teal")


def encoded(place: int) -> tuple[bytes, bytes]:
    """An image and audio of a concept."""
    image, audio = io.BytesIO(), io.BytesIO()
    Image.new("RGB", (24, 24), (20 * place, 255 - 20 * place, 90)).save(image, "PNG")
    times = np.arange(6400 + 320 * place) / 16_000
    soundfile.write(audio, 0.3 * np.sin(2 * np.pi * 150 * (place + 1) * times), 16_000, format="WAV")
    return image.getvalue(), audio.getvalue()


def row(place: int, **changes: Any) -> dict[str, Any]:
    image, audio = encoded(place)
    return {
        "id": NAMES[place], "group": NAMES[place], "language": "en", "prompt": None, "text": NAMES[place],
        "image": image, "audio": audio,
        "source": "made", "licence": "CC0-1.0", "synthetic": False, "flags": None, "split": "test", **changes,
    }  # fmt: skip


def written(rows: list[dict[str, Any]], folder: Path) -> Dataset:
    write_parquet(rows, folder / "both.parquet")
    return load_data(str(folder), ["en"])


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("data")
    splits = ["train"] * 6 + ["test"] * 2 + ["validation", "train"]
    rows = [row(place, split=split) for place, split in enumerate(splits)]
    rows[0]["audio"], rows[1]["image"] = None, None  # no audio, no image
    write_parquet(rows, folder / "both.parquet")
    return folder


@pytest.fixture(autouse=True)
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("KAULI_HOME", str(tmp_path / "home"))


def recipe(data: Path, **section: Any) -> DescribeRecipe:
    audio = {
        "encoder": "debug-whisper", "stack": 2, "hidden_dim": 16, "drop_image_prob": 0.5, "drop_audio_prob": 0.3,
    }  # fmt: skip
    content = {
        "name": "fused", "task": "describe", "base": "debug", "language": ["en"], "data": str(data),
        "method": {"kind": "lora", "rank": 4, "alpha": 8, "targets": "all-linear"},
        "augment": [{"kind": "colour"}, {"kind": "noise", "p": 1.0}],
        "describe": {
            "encoder": "debug-clip", "grid": 1, "hidden_dim": 16, "views": 3, "audio": audio,
            "prompt": "In {language}?", **section,
        },
        "train": {"steps": 6, "batch_tokens": 300, "max_length": 200, "learning_rate": 3e-3, "validate_every": 3},
    }  # fmt: skip
    parsed = parse_recipe(content, "test")
    assert isinstance(parsed, DescribeRecipe)
    return parsed


def learner_of(one: DescribeRecipe, examples: Examples) -> DescribeLearner:
    learner = DescribeTraining().learner(one, find_base(one.base), examples, "cpu")
    assert isinstance(learner, DescribeLearner)
    return learner


def test_rows_have_both_and_views_show_either(data: Path) -> None:
    found = fused_rows(load_data(str(data), ["en"]), "train", ["en"], "In {language}?", 25).rows
    assert {row["id"] for row in found} == {"blue", "white", "black", "brown", "teal"}
    one = recipe(data)
    first = learner_of(one, Examples(found, found[:1], (), "x"))
    examples, parts = first.examples, first.parts
    assert set(parts) == {"image", "audio"}
    assert parts["audio"].width == 2 * 64
    assert {row["prompt"] for row in examples.train} == {"In English?"}
    assert len(examples.train) == 3 * len(found)
    kinds = [tuple(media.kind for media in row["media"]) for row in examples.train]
    assert set(kinds[: len(found)]) == {("image", "audio")}
    assert {("audio",), ("image",)} <= set(kinds[len(found) :])
    again = learner_of(one, Examples(found, found[:1], (), "x")).examples
    for row, other in zip(examples.train, again.train, strict=True):
        for media, same in zip(row["media"], other["media"], strict=True):
            assert np.array_equal(media.features, same.features)


def test_only_rows_with_an_image_are_read_and_counted(tmp_path: Path) -> None:
    rows = [row(place, image=None, audio=b"RIFF and no more") for place in range(4)]
    rows += [row(place) for place in range(4, 8)] + [row(8, text="far too long for so short a clip")]
    found = fused_rows(written(rows, tmp_path), "test", ["en"], None, 25)
    assert {one["id"] for one in found.rows} == set(NAMES[4:8])
    assert dict(found.left_out.counts) == {"with more than 25 characters a second": 1}


def test_features_are_those_of_the_bare_encoder_and_noise_changes_them(data: Path) -> None:
    rows = fused_rows(load_data(str(data), ["en"]), "test", ["en"], None, 25).rows
    tower = load_audio_encoder("debug-whisper", "cpu")
    clean, noisy, other = (audio_features(rows, tower, 2, *how) for how in ((), (0.0, 0), (0.0, 1)))
    expected = tower.features([np.asarray(row["samples"]) for row in rows], 2)
    for one, features in zip(clean, expected, strict=True):
        assert np.allclose(one.features, features.numpy(), atol=2e-3)
    assert not np.allclose(clean[0].features, noisy[0].features, atol=0.1)
    assert not np.allclose(other[0].features, noisy[0].features, atol=0.01)


def test_a_run_from_recipe_to_figures(data: Path, tmp_path: Path) -> None:
    result = train(recipe(data), str(tmp_path), use_ray=False)
    folder = Registry(str(tmp_path)).fetch(result.adapter)
    connector = Connector.load(folder)
    assert connector is not None
    assert set(connector.settings) == {"image", "audio"}
    evaluation = result.evaluation
    assert set(evaluation.baselines) == {"no_image", "no_audio", "wrong_image"}
    wanted = {"bits_per_byte", "chrf", "exact", "cer", "wer", "looped"}
    assert {plain_name(name) for name in evaluation.metrics} == wanted
    assert {f"noise_{level}db_cer" for level in (0, 10)} <= evaluation.metrics.keys()
    against = evaluation.against_baselines()["no_image"]
    assert {"cer", "noise_10db_cer", "noise_0db_cer"} <= against.keys()
    both, alone = evaluation.metrics["noise_0db_cer"], evaluation.baselines["no_image"].total()["noise_0db_cer"].value()
    assert against["noise_0db_cer"].value == pytest.approx(both - alone)  # type: ignore[operator]
    again = evaluate(result.adapter, str(tmp_path), out=tmp_path / "report.html")
    assert again.metrics == pytest.approx(result.metrics)
    page, readme = (tmp_path / "report.html").read_text(), (folder / "README.md").read_text()
    assert all(f"Character error rate (speech in noise at {level} dB)" in page for level in (0, 10))
    assert all(f"Character error rate (speech in noise at {level} dB)" in readme for level in (0, 10))


def measured(rows: list[dict[str, Any]], tmp_path: Path, fastest: float = MAX_CHARS_PER_SECOND) -> EvalResult:
    """What an adapter of random weights is found to do."""
    storage = tmp_path / "store"
    folder = Registry(str(storage)).fetch(publish_hearing(storage, "fused-en", "en", 1))
    data = written(rows, tmp_path)
    return evaluate_fusion(
        EvalRequest(folder, find_base("debug"), data, ("en",), instruction="Say it:", max_chars_per_second=fastest)
    )


def test_noise_changes_nothing_for_who_hears_nothing(tmp_path: Path) -> None:
    rows = [row(place, synthetic=place > 1) for place in range(3)]
    found = measured(rows, tmp_path)
    assert found.base_scores is not None
    for deaf in (found.base_scores, found.baselines["no_audio"]):
        figures = deaf.total()
        assert figures.keys() == found.metrics.keys()
        for name in ("cer", "synthetic_cer", "bits_per_byte", "synthetic_bits_per_byte"):
            assert figures[f"noise_0db_{name}"].value() == figures[name].value()
    assert "noise_10db_synthetic_cer" in found.differences
    clean, noisy = found.samples[: len(rows)], found.samples[len(rows) :]
    assert [one.id for one in clean] == [one.id for one in noisy] == sorted(NAMES[:3])
    assert {one.source for one in clean} == {"made"}
    assert {one.source for one in noisy} == {"made, 0 dB"}
    assert any(one.base for one in clean)
    assert [one.base for one in clean] == [one.base for one in noisy]


def test_images_of_one_group_are_not_wrong_for_each_other(tmp_path: Path) -> None:
    found = measured([row(place, group="one") for place in range(2)], tmp_path)
    assert set(found.baselines) == {"no_image", "no_audio"}
    assert found.notes.count(NO_OTHER) == 1


def test_where_all_were_dropped_the_error_says_why(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=r"no images with audio in en.*2 of 2 rows left out: .* than 1 "):
        measured([row(0), row(1)], tmp_path, fastest=1)


def test_an_adapter_for_images_is_taken_over_and_the_audio_part_is_new(data: Path, tmp_path: Path) -> None:
    content = recipe(data).model_dump(mode="json")
    images = {
        **content,
        "name": "seeing",
        "augment": [],
        "describe": {**content["describe"], "audio": None, "views": 1},
    }
    train(parse_recipe(images, "test"), str(tmp_path), use_ray=False)
    seeing = Connector.load(Registry(str(tmp_path)).fetch("seeing"))
    one = recipe(data)
    found = fused_rows(load_data(str(data), ["en"]), "train", ["en"], "In {language}?", 25).rows
    learner = learner_of(one, Examples(found, found[:1], (), "x"))
    torch.manual_seed(0)
    learner.attach(None)
    task: Any = learner.task
    ear = task.connector.parts["audio"].straight.weight.clone()
    task.start_from(Registry(str(tmp_path)).fetch("seeing"))
    assert seeing is not None
    for name, value in seeing.parts["image"].state_dict().items():
        assert torch.equal(task.connector.parts["image"].state_dict()[name], value)
    assert torch.equal(task.connector.parts["audio"].straight.weight, ear)


def test_shares_over_one_are_refused(data: Path) -> None:
    with pytest.raises(Exception, match="together at most 1"):
        recipe(data, audio={"encoder": "debug-whisper", "drop_image_prob": 0.8, "drop_audio_prob": 0.5})
