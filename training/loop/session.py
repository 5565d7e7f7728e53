"""A training run without Ray: where its checkpoints and its log lie, and one worker's part in it."""

import json
import os
import shutil
import time
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch

from kauli.models.adapters.store import Store, open_store
from kauli.models.bases.find import find_base
from kauli.models.errors import UsageError
from kauli.models.tasks import load_task
from kauli.training.features.fusion import fuse
from kauli.training.features.pictures import load_tower, part_settings, with_media
from kauli.training.loop.loop import Loop, Session
from kauli.training.recipe import Recipe
from kauli.training.tasks.text import Examples, Learner, TextLearner

METRICS = "metrics.jsonl"
NOTES = "notes.txt"
_WRITE_EVERY = 1.0  # seconds between two writes of the log; a step may take milliseconds


@dataclass(frozen=True)
class Job:
    """One run, as it travels to the workers."""

    recipe: Recipe
    examples: Examples
    storage: str
    folder: str
    """The run's folder below `<storage>/runs/`."""
    start: Path | None = None
    """The folder of the adapter that training starts from."""


class MetricsLog:
    """`metrics.jsonl` of a run: a line for each step, written now and then as a whole."""

    def __init__(self, store: Store, path: str, step: int) -> None:
        """Takes up the lines that are there, but for those after `step`: a run that is taken up repeats them."""
        self._store, self._path = store, path
        lines = (store.read(path) or b"").decode().splitlines()
        self._lines = [line for line in lines if json.loads(line)["step"] <= step]
        self._written = 0.0

    def add(self, line: dict[str, Any], *, now: bool = False) -> None:
        """Keep a line, and write all of them where the last time is long enough ago or `now` is set."""
        rounded = {key: round(value, 6) if isinstance(value, float) else value for key, value in line.items()}
        self._lines.append(json.dumps(rounded))
        if now or time.monotonic() - self._written > _WRITE_EVERY:
            self._store.write(self._path, ("\n".join(self._lines) + "\n").encode())
            self._written = time.monotonic()


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


def work(job: Job, session: Session, threads: int | None = None) -> None:
    """One worker's part in a run: load the base, train, leave the adapter in the last checkpoint."""
    recipe = job.recipe
    on_gpu = recipe.scale.gpu
    check_precision(recipe)
    if threads and not on_gpu:
        torch.set_num_threads(threads)
    base = find_base(recipe.base, allow_noncommercial=recipe.allow_noncommercial, task=recipe.task)
    # Trained in fp32 weights: on a GPU the arithmetic is bf16, but small updates must not be rounded away.
    task = load_task(recipe.task, base, device="cuda" if on_gpu else "cpu", dtype=torch.float32)
    store = open_store(job.storage, "runs")
    examples, parts = job.examples, None
    if recipe.fusion is not None and recipe.fusion.hearing is not None:
        examples, parts = fuse(recipe, recipe.fusion.hearing, examples, "cuda" if on_gpu else "cpu")
    elif recipe.fusion is not None:
        tower = load_tower(recipe.fusion, "cuda" if on_gpu else "cpu")
        grid, views = recipe.fusion.grid, recipe.fusion.views
        parts = {"image": part_settings(recipe.fusion, tower)}
        examples = replace(
            examples,
            train=with_media(examples.train, tower, grid, recipe.picture_augment, views),
            validation=with_media(examples.validation, tower, grid),
            replay=with_media(examples.replay, tower, grid) if examples.replay else (),
        )
    log = _logger(store, f"{job.folder}/{METRICS}")
    learner: Learner
    if recipe.speech is not None:
        from kauli.training.tasks.transcribe import TranscribeLearner

        learner = TranscribeLearner(task, recipe, examples)
    elif recipe.pairs is not None:
        from kauli.training.tasks.align import AlignLearner  # with what open_clip needs, which text does not

        learner = AlignLearner(task, recipe, examples)
    else:
        learner = TextLearner(task, recipe, examples, parts)
    loop = Loop(learner, recipe, examples.sha256, session, start=job.start, log=log)
    if learner.cut and loop.rank == 0:
        done = "left out" if recipe.speech is not None else "cut"
        count = len(learner.lengths) + (learner.cut if recipe.speech is not None else 0)
        text = f"{learner.cut} of {count} examples are longer than train.max_length and were {done}"
        store.write(f"{job.folder}/{NOTES}", text.encode())
    loop.run()


def _logger(store: Store, path: str) -> Any:
    """A function for the loop's lines, which opens the log at the first of them."""
    log: list[MetricsLog] = []

    def write(line: dict[str, Any]) -> None:
        if not log:
            log.append(MetricsLog(store, path, line["step"] - 1))
        log[0].add(line, now="validation_bits_per_byte" in line)

    return write


def check_precision(recipe: Recipe) -> None:
    """Raises UsageError for bf16 on a CPU without instructions for it: it would be many times slower than fp32."""
    if recipe.scale.precision != "bf16" or recipe.scale.gpu:
        return
    try:
        flags = Path("/proc/cpuinfo").read_text(encoding="utf-8")
    except OSError:
        flags = ""
    if "amx_bf16" not in flags and "avx512_bf16" not in flags:
        raise UsageError(
            "scale.precision bf16: this CPU has neither amx_bf16 nor avx512_bf16, so bf16 would be many times slower. "
            "Use --set scale.precision=fp32 (or auto)."
        )


def train_here(job: Job, folder: Path) -> Path:
    """Run a job in this process; returns the folder of its last checkpoint."""
    session = LocalSession(folder)
    work(job, session, threads=len(os.sched_getaffinity(0)))
    checkpoint = session.restore()
    assert checkpoint is not None
    return checkpoint
