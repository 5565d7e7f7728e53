"""The card of an adapter that is trained: what is known before the training, and what is known after it."""

import os
import platform
from collections import Counter
from collections.abc import Sequence
from importlib.metadata import version
from pathlib import Path

import psutil

from kauli.models.adapters.card import Attribution, BaseReference, Card, DataReference, Training, Validation
from kauli.models.bases.find import Base
from kauli.training.evaluation.results import EvalResult
from kauli.training.recipe import Recipe
from kauli.training.tasks.base import Fitted, Row
from kauli.training.tasks.table import task_of_recipe

PACKAGES = ("kauli", "torch", "transformers", "peft", "ray", "accelerate")


def draft_card(recipe: Recipe, base: Base, rows: Sequence[Row] = ()) -> Card:
    """The card before the training, on these rows where they are known."""
    return Card(
        name=recipe.name, task=recipe.task, language=list(recipe.language), base=BaseReference.of(base),
        template=base.template, method=recipe.method.model_dump(mode="json"),
        licence=base.licence,  # an adapter is a derivative of its base
        recipe=recipe.model_dump(mode="json"), **task_of_recipe(recipe).card_fields(recipe, rows),
    )  # fmt: skip


def finished_card(draft: Card, recipe: Recipe, fitted: Fitted, result: EvalResult) -> Card:
    """The card with the data, the figures and the costs of the training, on the machine that trained."""
    state, rows = fitted.state, fitted.examples.train
    licences = Counter((row["source"] or "unnamed", row["licence"] or "unknown") for row in rows)
    metrics, base_metrics = dict(result.metrics), dict(result.base_metrics)
    if english := result.english():
        metrics["english_bits_per_byte"] = english["adapter"]
        base_metrics["english_bits_per_byte"] = english["base"]
    return draft.model_copy(
        update={
            "attributions": [
                Attribution(source=source, licence=licence, rows=count)
                for (source, licence), count in sorted(licences.items())
            ],
            "data": DataReference(
                options=recipe.data_options.model_dump(exclude_defaults=True),
                name=recipe.data, sha256=fitted.examples.sha256, rows=len(rows),
                groups=len({row["group"] for row in rows}), languages=list(recipe.language),
                synthetic_rows=sum(bool(row["synthetic"]) for row in rows), left_out=fitted.examples.left_out,
                sources=dict(Counter(row["source"] or "unnamed" for row in rows)),
            ),
            "metrics": metrics,
            "base_metrics": base_metrics,
            "intervals": result.intervals,
            "validation": Validation(
                base=state.base_validation, adapter=state.best_validation,
                metric=task_of_recipe(recipe).validation_metric,
            ),
            "training": Training(
                steps=state.step, seconds=round(state.seconds, 1), tokens=state.tokens, machine=machine(),
                seed=recipe.train.seed, precision=state.precision or None, curve=[list(one) for one in state.curve],
            ),
            "versions": {package: version(package) for package in PACKAGES},
        }
    )  # fmt: skip


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
