"""Few-shot heads in training: a classifier on the frozen embeddings of an `align` base.

A row's text is the name of its class, in the row's language. `shots` images of each class are drawn from the training
split; the rest of it is not used. The base beside it is zero-shot: the nearest class name.
"""

import time
from collections import Counter
from dataclasses import replace
from pathlib import Path
from typing import Annotated, Literal

import torch
from pydantic import field_validator

from kauli.models.adapters.kinds.base import AdapterKind
from kauli.models.adapters.kinds.head import FewShot
from kauli.models.bases.find import Base, is_aligned
from kauli.models.errors import UsageError
from kauli.models.tasks import load_served
from kauli.models.vision.heads import Head, needs_text
from kauli.training.data.dataset import Dataset
from kauli.training.evaluation.head import (
    draw_shots,
    embedded,
    evaluate_head,
    label_of,
    labelled_rows,
    score,
    zero_shot,
)
from kauli.training.evaluation.request import EvalRequest
from kauli.training.evaluation.results import EvalResult
from kauli.training.features.images import image_rows
from kauli.training.loop.checkpoint import TrainState
from kauli.training.loop.session import Run
from kauli.training.recipe import Recipe, method_of
from kauli.training.tasks.base import Examples, Fitted, Row, TrainingTask
from kauli.training.tasks.rows import check_rows, image_sides, made_up_rows


class HeadRecipe(Recipe):
    """A recipe of the task `align` with the method `head`: one language, that of the class names."""

    task: Literal["align"] = "align"
    method: Annotated[AdapterKind, method_of("head")]
    start_from: None = None
    """A head is fitted in one go."""

    @field_validator("language")
    @classmethod
    def _one(cls, language: tuple[str, ...]) -> tuple[str, ...]:
        if len(language) > 1:
            raise ValueError(f"a head has one language, that of its class names, not {len(language)}")
        return language


class HeadTraining(TrainingTask):
    """A classifier from a few images of each class; it is fitted in seconds, once the images' features are there."""

    name = "head"
    proved = False
    recipe = HeadRecipe
    distributed = False

    def rows(self, recipe: HeadRecipe, dataset: Dataset, base: Base) -> Examples:
        """Labelled images: of training all, of which some are drawn; of validation those of known classes."""
        found = image_sides(recipe, dataset)
        classes = {label_of(row) for row in found.train}
        validation = [row for row in found.validation if label_of(row) in classes]
        notes = check_rows(recipe, (found.train, validation), "image with a class name", found.notes)
        method, counts = recipe.method, Counter(label_of(row) for row in found.train)
        assert isinstance(method, FewShot)
        if needs_text(method.head) and not is_aligned(base):
            raise UsageError(
                f"method.head {method.head} compares images with class names, and {base.name} has no trained space for "
                "both: use --set base=kauli-clip, or --set method.head=linear."
            )
        if few := [f"{name} ({count})" for name, count in counts.items() if count < method.shots]:
            raise UsageError(
                f"method.shots {method.shots}: too few images in the 'train' split of {', '.join(few[:5])}"
                f"{f' and {len(few) - 5} more classes' if len(few) > 5 else ''}: set --set method.shots=N lower."
            )
        return replace(found, validation=validation, notes=(*found.notes, *notes))

    def dummy_rows(self) -> list[Row]:
        """Two images of each of four classes."""
        return made_up_rows("image", classes=4)

    def fit(self, run: Run, folder: Path) -> Fitted:
        """Draw the shots, embed them, fit the head. Raises UsageError where a class has too few images to train on."""
        recipe, began = run.recipe, time.monotonic()
        method = recipe.method
        assert isinstance(method, FewShot)
        task = load_served(self.name, run.base, device=run.device)
        classes = tuple(sorted({label_of(row) for row in run.examples.train}))
        text, scale, seed = task.embed_texts(list(classes)), task.logit_scale, recipe.train.seed
        labels = torch.tensor([classes.index(label_of(row)) for row in run.examples.train])
        drawn = [run.examples.train[at] for at in draw_shots(labels, len(classes), method.shots, seed).tolist()]
        train, validation = (embedded(task, rows, classes) for rows in (drawn, run.examples.validation))
        head = Head.fit(method.head, train.features, train.labels, classes, text, seed, scale)
        errors = [1 - score(one, validation)["macro_f1"].value() for one in (head, zero_shot(classes, text, scale))]
        head.save(folder)
        state = TrainState(base_validation=errors[1], best_validation=errors[0], finished=True)
        state.seconds = time.monotonic() - began
        return Fitted(state, task, replace(run.examples, train=drawn))

    def check_measurable(self, request: EvalRequest) -> None:
        """Images of the classes that the training split has."""
        known = image_rows(request.dataset, "train", request.tags)
        labelled_rows(request, {label_of(row) for row in known})

    def evaluate(self, request: EvalRequest) -> EvalResult:
        """Macro-F1 and accuracy beside zero-shot."""
        return evaluate_head(request)
