"""`kauli train`: from a recipe to a published, measured adapter."""

import json
import os
import platform
import tempfile
import threading
import time
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from importlib.metadata import version
from pathlib import Path
from typing import Any

import psutil

from kauli.models.adapters.card import Attribution, BaseReference, Card, DataReference, Training, Validation, write_card
from kauli.models.adapters.folder import check_base
from kauli.models.adapters.registry import Registry
from kauli.models.adapters.store import Store, open_store
from kauli.models.bases.find import Base, find_base
from kauli.models.errors import KauliError, UsageError
from kauli.models.progress import bar, note
from kauli.training.augment.image import warn_of_risk
from kauli.training.data.dataset import Dataset, load_data
from kauli.training.evaluation.results import EvalResult
from kauli.training.evaluation.run import GENERATED, english_rows, evaluate_adapter
from kauli.training.evaluation.speech import check_transcripts
from kauli.training.features.fusion import fused_rows
from kauli.training.features.pictures import picture_rows, with_own_prompts
from kauli.training.features.recordings import recording_rows
from kauli.training.loop.checkpoint import TrainState
from kauli.training.loop.session import METRICS, NOTES, Job, check_precision, train_here
from kauli.training.methods import FewShot
from kauli.training.recipe import Recipe
from kauli.training.tasks.text import Examples

VALIDATION_BYTES = 4_000
"""How much text the validations during training score: enough to choose by, small beside the training itself."""
PACKAGES = ("kauli", "torch", "transformers", "peft", "ray", "accelerate")


@dataclass(frozen=True)
class TrainResult:
    """What a training run made."""

    adapter: str
    """`name@version`."""
    path: str
    metrics: Mapping[str, float | None]
    """On the untouched test split."""
    aliases: Sequence[str]
    evaluation: EvalResult


def train(
    recipe: Recipe,
    storage: str,
    *,
    accept_terms: bool = False,
    restart: bool = False,
    use_ray: bool = True,
    promote: bool = True,
    generated: int = GENERATED,
    scored: int | None = None,
) -> TrainResult:
    """Train, evaluate on the test split beside the base, and publish; `latest` moves if validation beats the base.

    A run that was killed goes on from its last checkpoint when it is called again with the same recipe and data;
    `restart` throws that checkpoint away. Without `use_ray` the one worker is this process, without `promote` no alias
    moves. `generated` test examples are answered for the metrics of answers, `scored` (None: all) are scored.

    Raises UsageError for a recipe that can't be run (base, data, workers, a name that is taken), KauliError where it
    fails.
    """
    check_precision(recipe)
    base = find_base(
        recipe.base, accept_terms=accept_terms, allow_noncommercial=recipe.allow_noncommercial, task=recipe.task
    )
    dataset = load_data(recipe.data, recipe.language)
    registry, runs = Registry(storage), open_store(storage, "runs")
    draft = _draft(recipe, base)
    registry.check_free(draft)
    if isinstance(recipe.method, FewShot):
        return _train_head(recipe, base, dataset, registry, draft, promote)
    examples = _examples(recipe, dataset)
    folder = _run_folder(runs, recipe, examples, restart)
    job = Job(recipe, examples, storage, folder, _start(registry, recipe, base))
    changes = recipe.picture_augment
    if changes and (warning := warn_of_risk(with_own_prompts(examples.train), changes)):
        note(warning)
    note(f"Training {recipe.name}: {len(examples.train)} examples, base {base.name}, run {folder}")
    with _progress(runs, f"{folder}/{METRICS}"):
        checkpoint = _fit(job, use_ray)
    if (told := runs.read(f"{folder}/{NOTES}")) is not None:
        note(told.decode())
    progress = TrainState(**json.loads((checkpoint / "state.json").read_text(encoding="utf-8"))["progress"])
    adapter = checkpoint / "adapter"
    result = evaluate_adapter(draft, adapter, base, dataset, limit=generated, scored=scored)
    card = write_card(adapter, _card(draft, recipe, examples, progress, result))
    published = registry.publish(adapter, card)
    aliases = []
    assert progress.base_validation is not None
    fault = check_transcripts(adapter, base, examples.validation) if recipe.speech is not None else None
    if not promote:
        pass
    elif fault is not None:
        note(f"{published.spec} is published, but does not become 'latest': on validation {fault}.")
    elif progress.best_validation < progress.base_validation:
        registry.set_alias(recipe.name, published.version, "latest")
        aliases.append("latest")
    else:
        figure = "bits per byte" if recipe.pairs is None else "1 - mean reciprocal rank"
        note(
            f"{published.spec} is not better than its base on validation ({progress.best_validation:.3f} {figure}, "
            f"base {progress.base_validation:.3f}): it is published, but does not become 'latest'."
        )
    runs.write(f"{folder}/published.json", json.dumps({"adapter": published.spec}).encode())
    for path in runs.find(folder):
        if "/checkpoint" in path:
            runs.delete(path)
    return TrainResult(
        published.spec, published.uri, result.metrics, tuple(aliases), replace(result, adapter=published.spec)
    )


def _train_head(
    recipe: Recipe, base: Base, dataset: Dataset, registry: Registry, draft: Card, promote: bool
) -> TrainResult:
    """A head is fitted in seconds, here, once the pictures' features are there: without Ray, without checkpoints."""
    from kauli.training.tasks.head import fit_head

    note(f"Fitting {recipe.name} on {base.name}")
    began = time.monotonic()
    fitted = fit_head(recipe, base, dataset)
    progress = TrainState(base_validation=fitted.base_validation, best_validation=fitted.validation, finished=True)
    progress.seconds = time.monotonic() - began
    with tempfile.TemporaryDirectory(prefix="kauli-head-") as scratch:
        adapter = Path(scratch) / "adapter"
        adapter.mkdir()
        fitted.head.save(adapter)
        result = evaluate_adapter(draft, adapter, base, dataset)
        examples = Examples(fitted.rows, (), (), dataset.sha256)
        published = registry.publish(adapter, write_card(adapter, _card(draft, recipe, examples, progress, result)))
    aliases = []
    if promote and fitted.validation < fitted.base_validation:
        registry.set_alias(recipe.name, published.version, "latest")
        aliases.append("latest")
    elif promote:
        note(
            f"{published.spec} is not better than zero-shot on validation (1 - macro-F1 {fitted.validation:.3f}, "
            f"zero-shot {fitted.base_validation:.3f}): it is published, but does not become 'latest'."
        )
    found = replace(result, adapter=published.spec)
    return TrainResult(published.spec, published.uri, result.metrics, tuple(aliases), found)


def _fit(job: Job, use_ray: bool) -> Path:
    if use_ray:
        from kauli.training.loop.ray import (
            train_on_ray,  # Ray takes seconds to import, and not every caller trains on it
        )

        return train_on_ray(job)
    if job.recipe.scale.workers != 1:
        raise UsageError(f"scale.workers {job.recipe.scale.workers}: without Ray there is one worker, this process.")
    runs = open_store(job.storage, "runs").local(job.folder)
    if runs is None:
        raise UsageError(f"storage '{job.storage}': without Ray a run's checkpoints lie in a local folder.")
    return train_here(job, runs)


def _examples(recipe: Recipe, dataset: Dataset) -> Examples:
    """The rows to learn from and those to validate on, and a hash of the data."""
    if recipe.speech is not None:
        return _recordings(recipe, recipe.speech.fastest, dataset)
    pictures = recipe.fusion is not None or recipe.pairs is not None
    if recipe.fusion is not None and recipe.fusion.hearing is not None:
        sides = _heard(recipe, dataset, recipe.fusion.hearing.fastest, pictured=True)
    elif pictures:
        sides = [picture_rows(dataset, split, recipe.language, recipe.prompt) for split in ("train", "validation")]
    else:
        sides = [_texts(dataset.rows(split=split)) for split in ("train", "validation")]
    train, validation = sides[0], sorted(sides[1], key=lambda row: row["id"])
    for split, rows in (("train", train), ("validation", validation)):
        if not rows:
            raise UsageError(
                f"data '{recipe.data}' has no {'picture with a ' if pictures else ''}text in its '{split}' split "
                f"for {', '.join(recipe.language)}: "
                "see `kauli data check`."
            )
    sources = {row["source"] for row in train}
    for source in recipe.train.repeat:
        if source not in sources:
            raise UsageError(
                f"train.repeat: data '{recipe.data}' has no source '{source}'. It has {', '.join(sorted(sources))}."
            )
    replay: list[dict[str, Any]] = []
    if recipe.objective.regulariser == "replay":
        replay = picture_rows(dataset, "train", ["en"], recipe.prompt) if pictures else english_rows(dataset, "train")
        if not replay:
            raise UsageError(f"objective.regulariser replay: data '{recipe.data}' has no English rows to replay.")
    images: dict[str, bytes] = {}
    for row in train if pictures else ():  # one object for a picture in twelve languages, here and in the workers' copy
        row["image"] = images.setdefault(row["picture"], row["image"])
    return Examples(train, validation if recipe.pairs is not None else _sample(validation), replay, dataset.sha256)


def _recordings(recipe: Recipe, fastest: float, dataset: Dataset) -> Examples:
    train, validation = _heard(recipe, dataset, fastest, pictured=False)
    return Examples(train, sorted(validation, key=lambda row: row["id"]), (), dataset.sha256)


def _heard(recipe: Recipe, dataset: Dataset, fastest: float, pictured: bool) -> list[list[dict[str, Any]]]:
    """The recordings of the training and the validation split; the user is told what was dropped."""
    sides = []
    for split in ("train", "validation"):
        if pictured:
            found = fused_rows(dataset, split, recipe.language, recipe.prompt, fastest)
        else:
            found = recording_rows(dataset, split, recipe.language, fastest)
        if (said := found.said()) is not None:
            note(f"{split}: {said}")
        if not found.rows:
            raise UsageError(
                f"data '{recipe.data}' has no recording with a {'picture and a ' if pictured else ''}text in its "
                f"'{split}' split for {', '.join(recipe.language)}: see `kauli data check`."
            )
        sides.append(found.rows)
    return sides


def _texts(rows: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    keys = ("id", "group", "language", "prompt", "text", "source", "synthetic", "licence")
    return [{key: row[key] for key in keys} for row in rows if (row["text"] or "").strip()]


def _sample(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Validation rows of about VALIDATION_BYTES, each source with the same share of its bytes as in the whole."""
    total = sum(len(row["text"].encode()) for row in rows)
    if total <= VALIDATION_BYTES:
        return rows
    chosen, taken, passed = [], 0, 0
    for row in sorted(rows, key=lambda row: (row["language"], row["source"] or "", row["id"])):
        size = len(row["text"].encode())
        passed += size
        if taken + size / 2 <= passed * VALIDATION_BYTES / total:
            chosen.append(row)
            taken += size
    return chosen


def _start(registry: Registry, recipe: Recipe, base: Base) -> Path | None:
    if recipe.start_from is None:
        return None
    check_base(registry.card(recipe.start_from), base)
    return registry.fetch(recipe.start_from)


def _run_folder(runs: Store, recipe: Recipe, examples: Examples, restart: bool) -> str:
    """The unfinished run of this recipe, or a new one; its data must still be the same."""
    number = 1
    while True:
        folder = f"{recipe.name}/{recipe.sha256()[:12]}-{number}"
        state = runs.read(f"{folder}/run.json")
        if state is None:
            break
        if runs.read(f"{folder}/published.json") is None:
            if restart:
                runs.delete(folder)
                break
            if json.loads(state)["data"] != examples.sha256:
                raise UsageError(
                    f"the data of {recipe.name} changed since its unfinished run {folder}: bring the old data back to "
                    "go on with it, or start over with --restart."
                )
            note(f"Taking up the unfinished run {folder}")
            return folder
        number += 1
    content = {"data": examples.sha256, "recipe": recipe.model_dump(mode="json")}
    runs.write(f"{folder}/run.json", json.dumps(content, indent=2).encode())
    return folder


@contextmanager
def _progress(runs: Store, path: str) -> Iterator[None]:
    """A bar for a run whose workers may be anywhere: it reads their log."""
    stop = threading.Event()

    def watch() -> None:
        shown = 0.0
        with bar("Training", 100) as advance:
            while not stop.wait(1):
                try:
                    lines = (runs.read(path) or b"").decode().splitlines()
                except KauliError:
                    continue  # a log that can't be read now is no reason to disturb the training
                steps = [line for line in map(json.loads, lines[-50:]) if "loss" in line]
                if not steps:
                    continue
                last = steps[-1]
                text = f"step {last['step']}  loss {last['loss']:.3f}  {last['tokens_per_second']:.0f} tokens/s"
                advance(max(0.0, round(100 * min(1, last["budget"])) - shown), text)
                shown = max(shown, round(100 * min(1, last["budget"])))

    thread = threading.Thread(target=watch, daemon=True)
    thread.start()
    try:
        yield
    finally:
        stop.set()
        thread.join()


def _draft(recipe: Recipe, base: Base) -> Card:
    """What a card says before the training."""
    return Card(
        name=recipe.name,
        task=recipe.task,
        language=list(recipe.language),
        base=BaseReference(
            name=base.name,
            reference=base.reference,
            sha256=base.sha256,
            licence=base.licence,
            derived_from=base.derived_from,
        ),
        template=base.template,
        method=recipe.method.model_dump(mode="json"),
        licence=base.licence,  # an adapter is a derivative of its base
        recipe=recipe.model_dump(mode="json"),
    )


def _card(draft: Card, recipe: Recipe, examples: Examples, progress: TrainState, result: EvalResult) -> Card:
    licences = Counter((row["source"] or "unnamed", row["licence"] or "unknown") for row in examples.train)
    metrics, base_metrics = dict(result.metrics), dict(result.base_metrics or {})
    if english := result.english():
        metrics["english_bits_per_byte"] = english["adapter"]
        base_metrics["english_bits_per_byte"] = english["base"]
    return draft.model_copy(
        update={
            "attributions": [
                Attribution(source=source, licence=licence, rows=rows)
                for (source, licence), rows in sorted(licences.items())
            ],
            "data": DataReference(
                name=recipe.data,
                sha256=examples.sha256,
                rows=len(examples.train),
                groups=len({row["group"] for row in examples.train}),
                languages=list(recipe.language),
                synthetic_rows=sum(bool(row["synthetic"]) for row in examples.train),
                sources=dict(Counter(row["source"] or "unnamed" for row in examples.train)),
            ),
            "metrics": metrics,
            "base_metrics": base_metrics,
            "intervals": result.intervals,
            "validation": Validation(base=progress.base_validation, adapter=progress.best_validation),
            "training": Training(
                steps=progress.step,
                seconds=round(progress.seconds, 1),
                tokens=progress.tokens,
                machine=machine(),
                seed=recipe.train.seed,
                curve=[list(point) for point in progress.curve],
            ),
            "versions": {package: version(package) for package in PACKAGES},
        }
    )


def machine() -> str:
    """This machine in words: cores, processor, memory, GPUs."""
    import torch

    model = platform.processor() or platform.machine()
    cpuinfo = Path("/proc/cpuinfo")
    if cpuinfo.exists():
        names = [
            line.partition(":")[2].strip() for line in cpuinfo.read_text().splitlines() if line.startswith("model name")
        ]
        model = names[0] if names else model
    gpus = Counter(torch.cuda.get_device_name(index) for index in range(torch.cuda.device_count()))
    cards = ", ".join(f"{count} x {name}" for name, count in gpus.items()) or "no GPU"
    return f"{os.cpu_count()} cores {model}, {psutil.virtual_memory().total / 2**30:.0f} GiB, {cards}"
