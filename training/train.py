"""`kauli train`: from a recipe to a published, measured adapter."""

import json
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

from kauli.models.adapters.card import check_new_name
from kauli.models.adapters.folder import check_base, write_card
from kauli.models.adapters.registry import Registry
from kauli.models.adapters.store import Store, open_store
from kauli.models.bases.find import Base, find_base
from kauli.models.errors import UsageError
from kauli.models.progress import note
from kauli.training.card import draft_card
from kauli.training.data.dataset import load_data
from kauli.training.evaluation.request import GENERATED, request_of
from kauli.training.evaluation.results import EvalResult, Verdict
from kauli.training.loop.progress import NOTES, STAGE, watched
from kauli.training.loop.session import Job, Outcome, check_precision, train_here
from kauli.training.recipe import Recipe
from kauli.training.tasks.base import Examples
from kauli.training.tasks.table import task_of_recipe


@dataclass(frozen=True)
class TrainResult:
    """What a training run made."""

    adapter: str
    """`name@version`."""
    path: str
    metrics: Mapping[str, float | None]
    """On the untouched test split."""
    aliases: Sequence[str]
    evaluation: EvalResult = field(repr=False)

    @property
    def verdict(self) -> Verdict:
        """Whether it is better than its base, in words."""
        return self.evaluation.verdict


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

    A run that was killed resumes from its last checkpoint when it is called again with the same recipe and data;
    `restart` deletes that checkpoint. Without `use_ray` the one worker is this process, without `promote` no alias
    moves. `generated` test examples are answered for the metrics of answers, `scored` (None: all) are scored.

    Raises UsageError for a recipe that can't be run (base, data, workers, a name that is taken), KauliError where it
    fails.
    """
    check_precision(recipe)
    check_new_name(recipe.name)
    base = find_base(
        recipe.base, accept_terms=accept_terms, allow_noncommercial=recipe.allow_noncommercial, task=recipe.task
    )
    dataset = load_data(recipe.data, recipe.language, recipe.data_options)
    registry, runs = Registry(storage), open_store(storage, "runs")
    task, draft = task_of_recipe(recipe), draft_card(recipe, base)
    registry.check_free(draft)
    examples = task.rows(recipe, dataset, base)
    task.check_measurable(request_of(draft, Path(), base, dataset, registry))
    notes = [*examples.notes, *task.warnings(recipe, base, examples)]
    for text in notes:
        note(text)
    folder = _run_folder(runs, recipe, examples, restart)
    start = _start(registry, recipe, base)
    job = Job(recipe, dataset.reference, examples.digest, storage, folder, start, generated, scored)
    note(f"Training {recipe.name}: {len(examples.train)} examples, base {base.name}, run {folder}")
    with tempfile.TemporaryDirectory(prefix="kauli-run-") as scratch, watched(runs, folder):
        adapter, outcome = _fit(job, runs, use_ray, examples, Path(scratch))
        card = outcome.card.model_copy(update={"notes": [*notes, *outcome.notes]})
        published = registry.publish(adapter, write_card(adapter, card))
    aliases = []
    if promote and outcome.fault is None:
        registry.set_alias(recipe.name, published.version, "latest")
        aliases.append("latest")
    elif promote:
        note(f"{published.spec} is published, but does not become 'latest': {outcome.fault}.")
    runs.write(f"{folder}/published.json", json.dumps({"adapter": published.spec}).encode())
    for path in runs.find(folder):
        if path.removeprefix(f"{folder}/").startswith(("checkpoint", "adapter", STAGE, NOTES)):
            runs.delete(path)
    result = replace(outcome.result, adapter=published.spec)
    return TrainResult(published.spec, published.uri, result.metrics, tuple(aliases), result)


def _fit(job: Job, runs: Store, use_ray: bool, examples: Examples, scratch: Path) -> tuple[Path, Outcome]:
    if not task_of_recipe(job.recipe).distributed:
        return train_here(job, scratch, examples)
    if use_ray:
        from kauli.training.loop.ray import train_on_ray  # Ray takes seconds to import, and not every run uses it

        return train_on_ray(job)
    if job.recipe.scale.workers != 1:
        raise UsageError(f"scale.workers {job.recipe.scale.workers}: without Ray there is one worker, this process.")
    folder = runs.local(job.folder)
    if folder is None:
        raise UsageError(f"storage '{job.storage}': without Ray a run's checkpoints lie in a local folder.")
    return train_here(job, folder, examples)


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
                    f"the data of {recipe.name} changed since its unfinished run {folder}: restore the old data to "
                    "resume it, or start over with --restart."
                )
            note(f"Resuming the unfinished run {folder}")
            return folder
        number += 1
    content = {"data": examples.sha256, "recipe": recipe.model_dump(mode="json")}
    runs.write(f"{folder}/run.json", json.dumps(content, indent=2).encode())
    return folder
