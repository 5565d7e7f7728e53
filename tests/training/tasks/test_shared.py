"""Each task of the table on its debug base and its dummy rows: learns, is loaded, batches, travels, refuses a base."""

import pickle
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pytest
import torch
from pydantic import BaseModel

from kauli.models.adapters.kinds.base import AdapterKind
from kauli.models.adapters.kinds.table import kinds_of
from kauli.models.bases.find import find_base
from kauli.models.errors import UsageError
from kauli.models.frozen import FrozenModel
from kauli.models.tasks import TASKS as MODEL_TASKS
from kauli.models.tasks import resolve
from kauli.training.data.dataset import Dataset
from kauli.training.data.schema import write_parquet
from kauli.training.evaluation.request import JUDGE, EvalRequest
from kauli.training.evaluation.results import EvalResult
from kauli.training.loop.loop import Loop
from kauli.training.loop.session import Job, LocalSession, Run
from kauli.training.recipe import Recipe
from kauli.training.recipe_file import parse_recipe
from kauli.training.tasks.base import Examples, Fitted, Learner, TrainingTask
from kauli.training.tasks.table import TASKS

SMALL = {"shots": 2, "encoder": "debug", "targets": "all-linear", "batch": 8, "hidden_dim": 32,
         "judges": ["debug-whisper"]}  # fmt: skip
"""Settings for eight rows and debug bases, of every section and adapter kind that has them."""

SHORT = {
    "translate": {"reverse": 0, "softmax": "all"},  # a sampled loss differs from pass to pass
    "prompting": {"instruction": "", "pair": "{source}\n{target}", "examples": 1},
}
FURTHER: dict[str, dict[str, Any]] = {
    "translate": SHORT, "prompt": {**SHORT, "method": {"kind": "prompt", "trials": 12}}
}  # fmt: skip
"""Keys of the recipes of some tasks: prompts that fit, figures of one direction, a prompt that is not the first."""


def small(model: type[BaseModel]) -> dict[str, Any]:
    return {key: value for key, value in SMALL.items() if key in model.model_fields}


def recipe_of(task: TrainingTask, **train: Any) -> Recipe:
    """A recipe of the task, with its first adapter kind and the sections that it requires."""
    kind = kinds_of(task.name)[0]
    sections = {
        key: small(field.annotation)
        for key, field in task.recipe.model_fields.items()
        if isinstance(field.annotation, type)
        and issubclass(field.annotation, FrozenModel)
        and not issubclass(field.annotation, AdapterKind)
        and field.is_required()
    }
    budget = {
        "steps": 60, "batch_tokens": 600, "max_length": 100, "validate_every": 20, "learning_rate": 0.01,
        "early_stop": None,
    }  # fmt: skip
    content = {
        "name": "dummy", "task": MODEL_TASKS[task.name].card_task, "base": "debug", "language": "be",
        "method": {"kind": kind.model_fields["kind"].default, **small(kind)}, "train": budget | train,
        "scale": {"precision": "fp32"},
    }  # fmt: skip
    return parse_recipe({**content, **sections, **FURTHER.get(task.name, {})})


@dataclass(frozen=True)
class Trained:
    """A task, the data that its dummy rows make, and an adapter that learned them."""

    task: TrainingTask
    recipe: Recipe
    dataset: Dataset
    examples: Examples
    folder: Path
    fitted: Fitted
    learners: list[Learner]
    """The one that the loop drove; none for a task that is fitted without it."""
    lines: list[Mapping[str, Any]]

    def learner(self, recipe: Recipe | None = None) -> Learner:
        return self.task.learner(recipe or self.recipe, self.base, self.examples, "cpu")

    @property
    def base(self) -> Any:
        return find_base("debug", task=self.recipe.task)


@pytest.fixture(scope="module", params=TASKS)
def trained(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Trained:
    folder = tmp_path_factory.mktemp(request.param)
    task: Any = resolve(TASKS[request.param])()
    recipe = recipe_of(task)
    rows = [
        {"licence": "CC0-1.0", "synthetic": False, **row, "id": f"{split}-{at}", "group": str(at), "split": split}
        for split in ("train", "validation")
        for at, row in enumerate(task.dummy_rows())
    ]
    assert len(rows) == 16
    write_parquet(rows, folder / "rows.parquet")
    dataset = Dataset("dummy", [folder / "rows.parquet"], ["be"])
    base = find_base("debug", task=recipe.task)
    examples, learners, lines = task.rows(recipe, dataset, base), list[Learner](), list[Mapping[str, Any]]()
    assert (len(examples.train), len(examples.validation)) == (8, 8)
    make = task.learner

    def kept(*arguments: Any) -> Learner:
        learners.append(make(*arguments))
        return learners[-1]

    task.learner = kept
    fitted = task.fit(Run(recipe, base, examples, dataset, LocalSession(folder), "cpu", None, lines.append), folder)
    task.learner = make
    return Trained(task, recipe, dataset, examples, folder, fitted, learners, lines)


def test_it_learns_its_dummy_rows(trained: Trained) -> None:
    state = trained.fitted.state
    assert state.base_validation is not None
    wanted = 1.0 if trained.task.name == "prompt" else 0.7  # a prompt tells random weights nothing
    assert state.best_validation < wanted * state.base_validation
    losses = [line["loss"] for line in trained.lines if "loss" in line]
    assert bool(losses) == bool(trained.learners)
    assert not losses or losses[-1] < 0.7 * losses[0]


def known(result: EvalResult) -> dict[str, float]:
    return {name: value for name, value in result.metrics.items() if value is not None and name != "rtf"}


def test_saved_and_loaded_it_answers_as_in_memory(trained: Trained) -> None:
    fields = {**trained.task.card_fields(trained.recipe, trained.examples.train), **trained.fitted.found}
    prompting = fields["translation"].prompting if "translation" in fields else None
    judges = fields["evaluation"].judges if "evaluation" in fields else ()
    request = EvalRequest(
        trained.folder, trained.base, trained.dataset, ("be",), "validation", limit=3, prompting=prompting,
        judges=judges or (JUDGE,),
    )  # fmt: skip

    def measured(served: Any) -> EvalResult:
        return trained.task.evaluate(replace(request, served=served))

    memory, loaded = measured(trained.fitted.served), measured(None)
    assert known(loaded) == pytest.approx(known(memory), rel=1e-5)
    assert loaded.metrics != loaded.base_metrics
    assert loaded.samples == memory.samples
    best, metric = trained.fitted.state.best_validation, trained.task.validation_metric
    assert loaded.metrics.get(metric, best) == pytest.approx(best, rel=1e-4)
    if trained.learners:  # and taken up by another training
        learner = trained.learner()
        learner.attach(trained.folder)
        above, below = learner.validate(0, 1, bare=False).tolist()
        assert above / below == pytest.approx(best, rel=1e-5)


def test_a_batch_gives_each_row_what_it_gets_alone(trained: Trained, tmp_path: Path) -> None:
    if not trained.learners:
        with pytest.raises(NotImplementedError):  # no batches: it is fitted in one go
            trained.learner()
        return
    steps = {}
    longest = max(32, *trained.learners[0].lengths)
    for micro_tokens in (10_000, longest):
        recipe = recipe_of(trained.task, micro_tokens=micro_tokens, max_length=min(100, longest))
        learner = trained.learner(recipe)
        loop = Loop(learner, recipe, "data", LocalSession(tmp_path / str(micro_tokens)), trained.folder)
        step = next(iter(loop.plan.steps()))
        packs = len(learner.batches(step, 0, 1))
        loss = loop.step(step)
        steps[micro_tokens] = packs, loss, {name: one.grad for name, one in loop.parameters.items()}
    (one, whole, gradients), (several, parts, others) = steps.values()
    assert one == 1
    assert several > 1 or set(trained.learners[0].lengths) == {1}
    assert parts == pytest.approx(whole, rel=1e-4)
    for name, gradient in gradients.items():
        torch.testing.assert_close(others[name], gradient, atol=1e-5, rtol=1e-3, msg=name)
    sums = [loop.learner.validate(rank, 8, bare=False) for rank in range(8)]
    torch.testing.assert_close(sum(sums), loop.learner.validate(0, 1, bare=False), rtol=1e-4, atol=1e-4)


def test_what_goes_to_workers_is_pickled(trained: Trained) -> None:
    recipe, examples = trained.recipe, trained.examples
    job = Job(recipe, trained.dataset.reference, examples.digest, "store", "dummy/1")
    assert pickle.loads(pickle.dumps(job)) == job
    assert pickle.loads(pickle.dumps(recipe)).sha256() == recipe.sha256()
    assert pickle.loads(pickle.dumps(examples)).digest == examples.digest


def test_a_base_of_another_task_is_refused(trained: Trained) -> None:
    takes = MODEL_TASKS[trained.task.name].takes
    other = next(row.debug for row in MODEL_TASKS.values() if row.takes != takes)
    with pytest.raises(UsageError, match=f"The base '{other}' is for the task .* not '{takes}'"):
        find_base(other, task=trained.recipe.task)
