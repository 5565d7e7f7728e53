"""The train loop: same gradients however a step is cut, learns, resumes exactly, trains every target module."""

import itertools
import json
import os
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from kauli.models.bases.find import find_base
from kauli.models.errors import UsageError
from kauli.models.text.task import TextTask
from kauli.models.text.training import TrainableText
from kauli.training.loop.loop import Loop
from kauli.training.loop.session import LocalSession
from kauli.training.recipe_file import parse_recipe
from kauli.training.tasks.base import Examples
from kauli.training.tasks.text import TextLearner, TextRecipe
from support.ranks import Ranks

WORDS = [
    "moto",
    "maji",
    "ndege",
    "samaki",
    "mti",
    "jua",
    "mwezi",
    "nyota",
    "mlima",
    "mto",
    "bahari",
    "upepo",
    "mvua",
    "theluji",
]


def rows(count: int = 40) -> list[dict[str, Any]]:
    return [
        {
            "id": str(i),
            "prompt": f"say {i % 7}",
            "text": " ".join(WORDS[(i + k) % len(WORDS)] for k in range(1 + i % 9)),
        }
        for i in range(count)
    ]


def recipe(**train: Any) -> TextRecipe:
    method = train.pop("method", {"kind": "lora", "rank": 4, "targets": "all-linear"})
    budget = {"steps": 6, "batch_tokens": 700, "max_length": 128, "validate_every": 3, "learning_rate": 5e-3, **train}
    content = {"name": "t", "base": "debug", "language": "sw", "method": method, "train": budget}
    return TextRecipe.model_validate(content)


def loop_of(one: TextRecipe, folder: Path, examples: list[dict[str, Any]] | None = None, **options: Any) -> Loop:
    data = examples or rows()
    task = TrainableText.load(find_base(one.base), device="cpu")
    examples_of_it = Examples(data, data[:8], data[:3], options.pop("sha256", "d"))
    learner = TextLearner(task, one, examples_of_it)
    return Loop(learner, one, examples_of_it.sha256, LocalSession(folder), **options)


def gradients_after_a_step(folder: Path, micro_tokens: int) -> dict[str, torch.Tensor]:
    loop = loop_of(recipe(micro_tokens=micro_tokens), folder)
    loop.step(loop.plan.epoch(0)[0])  # B leaves zero, so that A has a gradient in the next
    loop.step(loop.plan.epoch(0)[1])
    return {name: p.grad.clone() for name, p in loop.parameters.items() if p.grad is not None}


def main_of_a_rank(out: str) -> None:
    """What each of two processes runs in the test below."""
    gradients = gradients_after_a_step(Path(out) / os.environ["RANK"], 700)
    if os.environ["RANK"] == "0":
        save_file({name: value.contiguous() for name, value in gradients.items()}, f"{out}/gradients.safetensors")


def test_one_worker_two_workers_and_accumulation_have_the_same_gradients(tmp_path: Path) -> None:
    ranks = Ranks(__file__, "main_of_a_rank", tmp_path)
    one = gradients_after_a_step(tmp_path / "one", 700)
    accumulated = gradients_after_a_step(tmp_path / "accumulated", 128)
    ranks.wait()
    two = load_file(tmp_path / "gradients.safetensors")
    assert one.keys() == two.keys() == accumulated.keys()
    assert any(float(value.abs().max()) > 1e-3 for value in one.values())
    # the wrapper for several workers renames nothing: names are the task model's own
    for name, value in one.items():
        torch.testing.assert_close(accumulated[name], value, atol=1e-6, rtol=1e-4, msg=name)
        torch.testing.assert_close(two[name], value, atol=1e-6, rtol=1e-4, msg=name)


@pytest.mark.parametrize("method", [{"kind": "lora", "rank": 4, "targets": "all-linear"}, {"kind": "full"}])
def test_loss_falls_and_every_target_is_trained(tmp_path: Path, method: dict[str, Any]) -> None:
    loop = loop_of(recipe(steps=40, validate_every=10, method=method, batch_tokens=400), tmp_path, rows(8))
    progress = loop.run()
    assert progress.base_validation is not None
    assert progress.best_validation < 0.8 * progress.base_validation
    assert progress.step == 40
    if method["kind"] == "lora":
        trained = {name: value for name, value in loop.parameters.items() if "lora_B" in name}
        assert len(trained) == 14  # seven linear modules in each of two layers
        for name, value in trained.items():
            assert float(value.detach().norm()) > 1e-3, f"{name} was never trained"


def test_saved_adapter_gives_the_validation_figure_of_training(tmp_path: Path) -> None:
    one = recipe()
    loop = loop_of(one, tmp_path)
    progress = loop.run()
    folder = sorted(tmp_path.glob("checkpoint-*"))[-1] / "adapter"
    task = TextTask.load(find_base("debug"), device="cpu")
    task.add_adapter("mine@1", folder)
    bits = task.bits(rows()[:8], "mine@1")
    assert sum(b for b, _ in bits) / sum(n for _, n in bits) == pytest.approx(progress.best_validation, rel=1e-5)


@pytest.mark.parametrize("stop", [3, 6, 9])
def test_a_run_taken_up_ends_with_the_same_bits(tmp_path: Path, stop: int) -> None:
    one = recipe(steps=12, method={"kind": "lora", "rank": 4, "dropout": 0.2}, batch_tokens=300)
    whole = loop_of(one, tmp_path / "whole")
    whole.run()

    class Killed(BaseException):
        pass

    class Session(LocalSession):
        def report(self, metrics: dict[str, Any], checkpoint: Path | None) -> None:
            super().report(metrics, checkpoint)
            if metrics["step"] == stop:
                raise Killed

    broken = loop_of(one, tmp_path / "broken")
    broken.session = Session(tmp_path / "broken")
    with pytest.raises(Killed):
        broken.run()
    resumed = loop_of(one, tmp_path / "broken")
    torch.rand(7)  # the state of the random numbers at the restart must not matter
    resumed.run()
    for name, value in whole.parameters.items():
        assert torch.equal(value, resumed.parameters[name]), name
    assert whole.progress.curve == resumed.progress.curve


def test_changed_data_or_recipe_is_refused_at_resume(tmp_path: Path) -> None:
    loop_of(recipe(), tmp_path).run()
    with pytest.raises(UsageError, match="data changed"):
        loop_of(recipe(), tmp_path, sha256="other").run()
    with pytest.raises(UsageError, match="recipe changed"):
        loop_of(recipe(learning_rate=1e-4), tmp_path).run()


def test_early_stop_keeps_the_best_weights(tmp_path: Path) -> None:
    data = rows(8)
    other = [{**row, "text": "zzzz qqqq xxxx"} for row in data]
    one = recipe(steps=200, validate_every=2, early_stop=2, learning_rate=0.02, batch_tokens=400)
    task = TrainableText.load(find_base("debug"), device="cpu")
    loop = Loop(TextLearner(task, one, Examples(data, other, (), "d")), one, "d", LocalSession(tmp_path))
    progress = loop.run()
    assert progress.step < 200
    assert progress.best_step < progress.step
    bits = task.current_bits(other)
    assert sum(b for b, _ in bits) / sum(n for _, n in bits) == pytest.approx(progress.best_validation, rel=1e-5)


def test_a_minutes_budget_ends_in_time(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    clock = SimpleNamespace(monotonic=map(float, itertools.count()).__next__)  # each look at it takes a second
    monkeypatch.setattr("kauli.training.loop.loop.time", clock)
    progress = loop_of(recipe(steps=100_000, minutes=0.15, validate_every=1000), tmp_path).run()
    # A step looks twice: before the fifth 9 seconds are gone, one more look is at the end
    assert (progress.step, progress.seconds, progress.finished) == (4, 10.0, True)


def test_minutes_alone_limit_a_run_which_can_be_taken_up(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    clock = SimpleNamespace(monotonic=map(float, itertools.count()).__next__)  # each look at it takes a second
    monkeypatch.setattr("kauli.training.loop.loop.time", clock)
    one, lines = recipe(steps=None, minutes=0.4, validate_every=2), list[dict[str, Any]]()
    broken = loop_of(one, tmp_path, log=lines.append)
    step = broken.step

    def killed(examples: list[int]) -> float:
        if broken.progress.step == 5:
            raise KeyboardInterrupt
        return step(examples)

    monkeypatch.setattr(broken, "step", killed)
    with pytest.raises(KeyboardInterrupt):
        broken.run()
    progress = loop_of(one, tmp_path, log=lines.append).run()
    assert (progress.restarts, progress.finished) == (1, True)
    assert progress.step > 5
    assert 24 <= progress.seconds < 28
    steps = [(line["step"], line["budget"]) for line in lines if "loss" in line]
    assert [number for number, _ in steps[:6]] == [1, 2, 3, 4, 5, 5]
    assert 0 < steps[0][1] < steps[-1][1] <= 1


def test_replayed_rows_are_learned_too(tmp_path: Path) -> None:
    content = recipe(steps=30, batch_tokens=300).model_dump()
    content["objective"] = {"regulariser": "replay", "weight": 0.3}
    one = TextRecipe.model_validate(content)
    data = rows(8)
    replayed = [{"id": "e", "prompt": None, "text": "the quick brown fox jumps over the lazy dog again"}]

    def english(task: TrainableText) -> float:
        return task.current_bits(replayed)[0][0]

    task = TrainableText.load(find_base("debug"), device="cpu")
    before = english(task)
    loop = Loop(TextLearner(task, one, Examples(data, data, replayed, "d")), one, "d", LocalSession(tmp_path))
    loop.run()
    assert english(task) < 0.8 * before


def test_start_from_an_adapter_begins_where_it_ended(tmp_path: Path) -> None:
    first = loop_of(recipe(steps=20), tmp_path / "first")
    first.run()
    folder = sorted((tmp_path / "first").glob("checkpoint-*"))[-1] / "adapter"
    second = loop_of(recipe(steps=20, seed=1), tmp_path / "second", start=folder)
    for name, value in first.parameters.items():
        assert torch.equal(value, second.parameters[name]), name


def test_bf16_on_a_cpu_without_it_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    from kauli.training.loop import session

    monkeypatch.setattr(session, "cpu_flags", lambda: frozenset({"avx2", "avx512f"}))
    content = recipe().model_dump() | {"scale": {"precision": "bf16"}}
    with pytest.raises(UsageError, match="avx512_bf16"):
        session.check_precision(parse_recipe(content))


def test_metrics_log_drops_what_a_restart_repeats(tmp_path: Path) -> None:
    from kauli.models.adapters.store import open_store
    from kauli.training.loop.progress import MetricsLog

    store = open_store(str(tmp_path), "runs")
    log = MetricsLog(store, "x/metrics.jsonl")
    for step in range(1, 6):
        log.add({"step": step, "loss": 1.0})
        log.add({"step": step, "validation": 1.0})
    MetricsLog(store, "x/metrics.jsonl").add({"step": 4, "loss": 2.0})
    lines = [json.loads(line) for line in (store.read("x/metrics.jsonl") or b"").splitlines()]
    found = [(line["step"], line["loss"]) for line in lines if "loss" in line]
    assert found == [(1, 1.0), (2, 1.0), (3, 1.0), (4, 2.0)]


def test_an_epoch_repeats_the_rows_of_a_source_by_its_weight(tmp_path: Path) -> None:
    data = [{**row, "source": "rare" if index < 2 else "common"} for index, row in enumerate(rows(10))]
    loop = loop_of(recipe(source_weights={"rare": 3}), tmp_path, data)
    taken = [tuple(loop.learner.documents[index].tokens) for step in loop.plan.epoch(0) for index in step]
    expected = [tuple(document.tokens) for document in loop.learner.task.encode(data)]
    assert sorted(taken) == sorted([*expected, *expected[:2] * 2])
