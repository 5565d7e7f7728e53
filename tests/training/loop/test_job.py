"""A job's size and a driver's memory do not grow with the data, and base weights are read once."""

import json
import pickle
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import soundfile
from PIL import Image

from kauli.models.bases.find import find_base
from kauli.models.errors import KauliError, UsageError
from kauli.training.data.dataset import Dataset, load_data
from kauli.training.loop.session import Job, LocalSession, work
from kauli.training.recipe import Recipe
from kauli.training.recipe_file import parse_recipe
from kauli.training.tasks.table import task_of_recipe
from kauli.training.train import train


def clips(folder: Path, count: int, seconds: float, *, with_image: bool = False) -> str:
    """Noise, which no format makes small."""
    folder.mkdir()
    rows, draw = [], np.random.default_rng(0)
    for at in range(count):
        soundfile.write(folder / f"{at}.wav", draw.normal(0, 0.1, int(16_000 * seconds)), 16_000)
        rows.append({"audio": f"{at}.wav", "text": f"neno {at}", "language": "be", "source": "mine"})
        if with_image:
            Image.new("RGB", (16, 16), (at, 0, 0)).save(folder / f"{at}.png")
            rows[-1]["image"] = f"{at}.png"
    (folder / "rows.jsonl").write_text("\n".join(json.dumps(row) for row in rows))
    return str(folder / "rows.jsonl")


def recipe(data: str, **changes: Any) -> Recipe:
    content = {
        "name": "job-x", "task": "transcribe", "base": "debug", "language": "be", "data": data, "transcribe": {},
        "method": {"kind": "lora", "rank": 2},
        "train": {"steps": 2, "batch_tokens": 400, "max_length": 300, "validate_every": 1, "learning_rate": 0.005},
    }  # fmt: skip
    return parse_recipe({**content, **changes})


def job_of(one: Recipe, dataset: Dataset, storage: Path) -> Job:
    examples = task_of_recipe(one).rows(one, dataset, find_base("debug", task=one.task))
    return Job(one, dataset.reference, examples.digest, str(storage), "job-x/1")


def test_a_job_is_as_small_with_ten_times_the_data(tmp_path: Path) -> None:
    sizes = []
    for count in (40, 400):
        data = clips(tmp_path / f"{count:03d}", count, 0.5)
        job = job_of(recipe(data), load_data(data, ["be"]), tmp_path)
        sizes.append(len(pickle.dumps(job)))
    assert sizes[1] - sizes[0] < 50
    assert max(sizes) < 10_000


DRIVER = """
import sys, tracemalloc
from kauli.models.bases.find import find_base
from kauli.training.data.dataset import load_data
from kauli.training.recipe_file import load_recipe
from kauli.training.tasks.table import task_of_recipe
recipe = load_recipe(sys.argv[1])
task, dataset = task_of_recipe(recipe), load_data(recipe.data, recipe.language)
base = find_base("debug", task=recipe.task)
tracemalloc.start()
examples = task.rows(recipe, dataset, base)
print(tracemalloc.get_traced_memory()[1], len(examples.train))
"""


def peak_of_driver(tmp_path: Path, seconds: float) -> int:
    data = clips(tmp_path / f"{seconds}", 60, seconds)
    content = recipe(data).model_dump(mode="json")
    path = tmp_path / f"{seconds}.yaml"
    path.write_text(json.dumps(content))
    run = subprocess.run([sys.executable, "-c", DRIVER, str(path)], capture_output=True, text=True, check=True)
    peak, count = map(int, run.stdout.split())
    assert count > 30
    return peak


def test_a_drivers_memory_does_not_grow_with_the_length_of_the_audio(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("KAULI_HOME", str(tmp_path / "home"))
    short, long = peak_of_driver(tmp_path, 0.5), peak_of_driver(tmp_path, 8.0)
    # 7.5 seconds more of 60 clips are 29 MB of samples and 14 MB of files; a batch of 16 files is in memory at once
    assert long - short < 9 * 2**20


def test_a_worker_with_other_rows_says_so(tmp_path: Path) -> None:
    data = clips(tmp_path / "data", 40, 0.3)
    job = job_of(recipe(data), load_data(data, ["be"]), tmp_path)
    other = Job(job.recipe, job.data, "other", job.storage, job.folder)
    with pytest.raises(KauliError, match="gives other rows on this machine"):
        work(other, LocalSession(tmp_path / "run"), tmp_path / "adapter")


def test_a_worker_reads_rows_by_reference_and_hands_back_figures(tmp_path: Path) -> None:
    data = clips(tmp_path / "data", 40, 0.3)
    job = pickle.loads(pickle.dumps(job_of(recipe(data), load_data(data, ["be"]), tmp_path / "store")))
    outcome = work(job, LocalSession(tmp_path / "run"), tmp_path / "adapter")
    assert outcome is not None
    outcome = pickle.loads(pickle.dumps(outcome))
    assert "cer" in outcome.result.metrics
    assert outcome.card.metrics == outcome.result.metrics
    assert outcome.card.training is not None
    assert str(outcome.card.training.precision).startswith("fp32")
    assert (tmp_path / "adapter" / "adapter_model.safetensors").is_file()


SECTIONS: dict[str, Any] = {
    "text": {},
    "transcribe": {"transcribe": {}},
    "describe": {"describe": {"encoder": "debug-clip", "audio": {"encoder": "debug-whisper"}}},
}


@pytest.mark.parametrize(("task", "bases"), [("text", 1), ("transcribe", 1), ("describe", 3)])
def test_a_run_reads_the_weights_of_each_base_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, task: str, bases: int
) -> None:
    import open_clip
    from transformers import PreTrainedModel

    from kauli.training.features import fusion, images

    loads, real = [], PreTrainedModel.from_pretrained.__func__  # type: ignore[attr-defined]
    towers = open_clip.create_model_and_transforms

    def counted(cls: Any, *arguments: Any, **options: Any) -> Any:
        loads.append(cls.__name__)
        return real(cls, *arguments, **options)

    def counted_towers(*arguments: Any, **options: Any) -> Any:
        loads.append("towers")
        return towers(*arguments, **options)

    monkeypatch.setattr(PreTrainedModel, "from_pretrained", classmethod(counted))
    monkeypatch.setattr(open_clip, "create_model_and_transforms", counted_towers)
    images._tower.cache_clear()
    fusion._tower.cache_clear()
    content = recipe(clips(tmp_path / "data", 40, 0.3, with_image=True)).model_dump(mode="json")
    del content["transcribe"]
    train(
        parse_recipe({**content, "task": task, **SECTIONS[task]}), str(tmp_path / "store"), use_ray=False, generated=2
    )
    assert len(loads) == len(set(loads)) == bases, loads


def test_where_all_clips_are_dropped_the_error_says_why(tmp_path: Path) -> None:
    data = clips(tmp_path / "data", 40, 0.2)
    with pytest.raises(UsageError, match=r"no audio with a text .*; train: 3\d of 3\d clips left out .*25 characters"):
        train(recipe(data), str(tmp_path / "store"), use_ray=False)


def test_a_run_whose_clips_are_all_too_long_is_a_clear_error(tmp_path: Path) -> None:
    data = clips(tmp_path / "data", 40, 2.0)
    one = recipe(data, train={"steps": 2, "batch_tokens": 64, "micro_tokens": 64, "max_length": 64})
    with pytest.raises(UsageError, match=r"train.max_length 64: all \d+ examples are longer \(the shortest has \d+"):
        train(one, str(tmp_path / "store"), use_ray=False)
