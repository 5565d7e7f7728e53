"""A worker's part in a run, with or without Ray around it: load, train, evaluate; and where its checkpoints lie."""

import os
import shutil
from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import distributed

from kauli.models.adapters.card import Card
from kauli.models.adapters.folder import write_card
from kauli.models.adapters.registry import Registry
from kauli.models.adapters.store import open_store
from kauli.models.bases.find import Base, find_base
from kauli.models.engine.generative import Generative
from kauli.models.engine.precision import choose_precision, cpu_flags
from kauli.models.errors import KauliError, UsageError
from kauli.models.tasks import load_served
from kauli.training.card import draft_card, finished_card
from kauli.training.data.dataset import Dataset, DatasetReference, load_reference
from kauli.training.evaluation.request import GENERATED, request_of
from kauli.training.evaluation.results import EvalResult
from kauli.training.loop.checkpoint import Checkpoint
from kauli.training.loop.loop import Loop, Session
from kauli.training.loop.progress import METRICS, NOTES, MetricsLog, NoteLog, stages_written
from kauli.training.recipe import Recipe
from kauli.training.tasks.base import Examples, Fitted, TrainingTask
from kauli.training.tasks.table import task_of_recipe


@dataclass(frozen=True)
class Job:
    """One run, as it travels to the workers: the data by reference, so that its size does not grow with them."""

    recipe: Recipe
    data: DatasetReference
    digest: str
    """Of the chosen rows: `Examples.digest`."""
    storage: str
    folder: str
    """The run's folder below `<storage>/runs/`."""
    start: Path | None = None
    """The folder of the adapter that training starts from."""
    generated: int = GENERATED
    """Test examples that are answered for the metrics of answers."""
    scored: int | None = None
    """Cut the test split to about this many rows; None: all."""


@dataclass(frozen=True)
class Run:
    """A job on a worker: what `TrainingTask.fit` needs."""

    recipe: Recipe
    base: Base
    examples: Examples
    dataset: Dataset
    session: Session
    device: str
    start: Path | None
    log: Callable[[dict[str, Any]], None]
    tell: Callable[[str], None] = lambda text: None
    """Tells the user a sentence at once; on rank 0 alone."""
    registry: Registry | None = None
    """Where the adapter will be published."""


@dataclass(frozen=True)
class Outcome:
    """What rank 0 hands back beside the adapter."""

    card: Card
    result: EvalResult
    fault: str | None
    """Why the adapter must not become `latest`, as the end of a sentence."""
    notes: tuple[str, ...]
    """What the worker told while it worked."""


class LocalSession:
    """Checkpoints in a local folder, the newest alone."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder

    def restore(self) -> Path | None:
        """The newest whole checkpoint."""
        found = sorted(self._folder.glob("checkpoint-*"))
        return found[-1] if found else None

    def report(self, metrics: dict[str, Any], checkpoint: Path | None) -> None:
        """Move the checkpoint here under its step, then drop older ones."""
        assert checkpoint is not None
        older = list(self._folder.glob("checkpoint-*"))
        target = self._folder / f"checkpoint-{metrics['step']:08d}"
        partial = target.with_name("partial")
        shutil.rmtree(partial, ignore_errors=True)
        self._folder.mkdir(parents=True, exist_ok=True)
        shutil.move(checkpoint, partial)
        if target.exists():
            shutil.rmtree(target)
            older.remove(target)
        partial.rename(target)
        for folder in older:
            shutil.rmtree(folder)


def work(
    job: Job, session: Session, adapter: Path, threads: int | None = None, examples: Examples | None = None
) -> Outcome | None:
    """One worker's part in a run: load the data and the base, train, evaluate; None on other ranks than 0.

    The adapter is written to the folder `adapter`, on rank 0. `examples` are the chosen rows where they are known; else
    they are chosen here, and KauliError is raised where they are not those of the job.
    """
    recipe, task = job.recipe, task_of_recipe(job.recipe)
    check_precision(recipe)
    if threads and not recipe.scale.gpu:
        torch.set_num_threads(threads)
    dataset = load_reference(job.data)
    base = find_base(recipe.base, allow_noncommercial=recipe.allow_noncommercial, task=recipe.task)
    if examples is None:
        examples = task.rows(recipe, dataset, base)
        if examples.digest != job.digest:
            raise KauliError(
                f"data '{recipe.data}' gives other rows on this machine than where the run was started: "
                "the same version of kauli has to run on all machines."
            )
    store, device = open_store(job.storage, "runs"), "cuda" if recipe.scale.gpu else "cpu"
    log = MetricsLog(store, f"{job.folder}/{METRICS}")
    first = not distributed.is_initialized() or distributed.get_rank() == 0
    notes = NoteLog(store, f"{job.folder}/{NOTES}")
    registry = Registry(job.storage)
    run = Run(
        recipe,
        base,
        examples,
        dataset,
        session,
        device,
        job.start,
        log.add,
        notes.add if first else lambda text: None,
        registry,
    )
    with stages_written(store, job.folder) if first else nullcontext():
        adapter.mkdir(parents=True)
        fitted = task.fit(run, adapter)
        if fitted is None:
            return None
        draft = draft_card(recipe, base, examples.train)
        draft = draft.model_copy(update={"decoding": fitted.decoding, **fitted.found})
        write_card(adapter, draft)  # the evaluation asks as a user would: with what the card says of decoding
        served = _as_in_service(task, base, device, fitted)
        request = request_of(draft, adapter, base, dataset, registry)
        request = replace(request, limit=job.generated, scored=job.scored, served=served)
        result = task.evaluate(request)
        fault = task.fault(request, fitted.state, fitted.examples)
    return Outcome(finished_card(draft, recipe, fitted, result), result, fault, tuple(notes.told))


def _as_in_service(task: TrainingTask, base: Base, device: str, fitted: Fitted) -> Any:
    """What was trained, loaded anew where the service would choose another precision: what is served is measured."""
    served = fitted.served
    if not isinstance(served, Generative):
        return served
    dtype = choose_precision(base, device).dtype
    return served if dtype == served.model.dtype else load_served(task.name, base, device, dtype)


def fit_by_loop(task: TrainingTask, run: Run, folder: Path) -> Fitted | None:
    """Train by the loop, then write the adapter with the best weights to `folder`; None on other ranks than 0."""
    learner = task.learner(run.recipe, run.base, run.examples, run.device)
    precision = _precision(run)
    for text in (*learner.notes, f"Precision: {precision}"):
        run.tell(text)
    loop = Loop(learner, run.recipe, run.examples.sha256, run.session, run.start, run.log, precision, run.tell)
    state = loop.run()
    if loop.rank != 0:
        return None
    learner.save(folder)
    return Fitted(state, learner.served(), learner.examples, learner.decoding())


def _precision(run: Run) -> str:
    """The name of the precision, and why: of the run's first life, chosen by rank 0 for all ranks."""
    checkpoint = run.session.restore()
    if checkpoint is not None:
        return Checkpoint(checkpoint).progress().precision or ("bf16" if run.device == "cuda" else "fp32")
    agreed = [str(choose_precision(run.base, run.device, run.recipe.scale.precision))]
    if distributed.is_initialized():
        distributed.broadcast_object_list(agreed)
    return agreed[0]


def check_precision(recipe: Recipe) -> None:
    """Raises UsageError for bf16 on a CPU without instructions for it: it would be many times slower than fp32."""
    wanted = recipe.scale.precision == "bf16" and not recipe.scale.gpu
    if wanted and not cpu_flags() & {"amx_bf16", "avx512_bf16"}:
        raise UsageError(
            "scale.precision bf16: this CPU has neither amx_bf16 nor avx512_bf16, so bf16 would be many times slower. "
            "Use --set scale.precision=fp32 (or auto)."
        )


def train_here(job: Job, folder: Path, examples: Examples) -> tuple[Path, Outcome]:
    """Run a job in this process, with its checkpoints in `folder`; returns the adapter's folder and the outcome."""
    adapter = folder / "adapter"
    shutil.rmtree(adapter, ignore_errors=True)
    threads = int(os.environ.get("OMP_NUM_THREADS") or len(os.sched_getaffinity(0)))
    outcome = work(job, LocalSession(folder), adapter, threads, examples)
    assert outcome is not None
    return adapter, outcome
