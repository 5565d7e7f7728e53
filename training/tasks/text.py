"""The task `text` in training: a language model learns the tokens of answers, and of running text."""

from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Annotated, Any, Literal, Self

import torch
from pydantic import Field, model_validator
from torch import Tensor, nn

from kauli.models.adapters.card import Decoding
from kauli.models.adapters.kinds.base import AdapterKind
from kauli.models.adapters.kinds.lora import Lora
from kauli.models.bases.find import Base
from kauli.models.engine.packing import Document, pack
from kauli.models.frozen import FrozenModel
from kauli.models.tasks import load_trainable
from kauli.models.text.language_model import answer_losses
from kauli.models.text.training import TrainableText
from kauli.training.augment.table import augmentations
from kauli.training.augment.text import TextAugmentation, augmented_rows
from kauli.training.data.dataset import Dataset
from kauli.training.evaluation.certify import Answered
from kauli.training.evaluation.request import EvalRequest
from kauli.training.evaluation.results import EvalResult
from kauli.training.evaluation.rows import english_rows
from kauli.training.evaluation.text import answered_texts, evaluate_text, text_rows
from kauli.training.features.left_out import LeftOut
from kauli.training.features.room import Room
from kauli.training.recipe import Objective, Recipe, method_of
from kauli.training.tasks.base import Examples, Learner, Row, TrainingTask
from kauli.training.tasks.decoding import decoding_of
from kauli.training.tasks.rows import check_rows, made_up_rows, sample, weighted
from kauli.training.tasks.sampler import Plan
from kauli.training.tasks.spelling import spelling_warnings


class TextSection(FrozenModel):
    """How text is augmented, for the task `text`."""

    views: int = Field(default=2, ge=2, le=32)
    """Views of each row in an epoch: the row itself, and augmented ones."""


class AnswerRecipe(Recipe):
    """What recipes share whose adapters answer with the tokens of a language model."""

    objective: Objective = Objective()


class TextRecipe(AnswerRecipe):
    """A recipe of the task `text`."""

    task: Literal["text"] = "text"
    method: Annotated[AdapterKind, method_of("text")] = Lora()
    augment: tuple[Annotated[TextAugmentation, augmentations("text")], ...] = ()
    """Augmentations of prompts and texts, applied in this order."""
    text: TextSection | None = None
    """The number of views, with `augment`."""

    @model_validator(mode="after")
    def _views(self) -> Self:
        if bool(self.augment) != (self.text is not None):
            raise ValueError("augment and the section 'text' go together: the first view of a row is the row as it is")
        return self


class _Packed(nn.Module):
    """The model's packed forward as a module of its own."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, batch: Any) -> Tensor:
        return answer_losses(self.model, batch)


class TextLearner(Learner):
    """A language model that learns the tokens of answers, after prompts that may hold media."""

    def __init__(self, task: TrainableText, recipe: AnswerRecipe, examples: Examples) -> None:
        super().__init__(task, recipe, examples)
        budget = recipe.train
        rows = weighted(examples.train, budget.source_weights)
        self.documents: list[Document] = task.encode([*rows, *examples.replay], budget.max_length)
        self.lengths = [len(document.tokens) for document in self.documents]
        self._count = len(rows)
        if cut := sum(not document.ended for document in self.documents):
            text = f"{cut} of {len(self.documents)} examples are longer than train.max_length and were truncated"
            self.notes = (text,)

    def decoding(self) -> Decoding:
        return decoding_of(self.documents[: self._count])

    def objective(self) -> nn.Module:
        return _Packed(self.task.trained)

    def plan(self) -> Plan:
        budget, count, share = self.recipe.train, self._count, self.recipe.objective.weight
        return Plan(self.lengths[:count], budget.batch_tokens, budget.seed, self.lengths[count:], share)

    def num_targets(self, step: Sequence[int]) -> int:
        return sum(len(self.documents[index].targets) for index in step)

    def batches(self, step: Sequence[int], rank: int, world: int) -> list[tuple[Any, float]]:
        return [
            (pack([self.documents[index] for index in indices]).to(self.device), weight)
            for indices, weight in self.packs(step, self.lengths, rank, world)
        ]


def replayed(recipe: AnswerRecipe, english: Callable[[], list[Row]]) -> tuple[list[Row], list[str]]:
    """The English rows for the regulariser `replay`, none without it; and a note where the data has none."""
    if recipe.objective.regulariser != "replay":
        return [], []
    rows = english()
    told = f"objective.regulariser: no English rows in '{recipe.data}' to replay: trained without"
    return rows, [] if rows else [told]


class TextTraining(TrainingTask):
    """Text answers and running text."""

    name = "text"
    recipe = TextRecipe

    def rows(self, recipe: TextRecipe, dataset: Dataset, base: Base) -> Examples:
        """All rows with a text whose prompt leaves room for it; English ones for replay."""
        room, sides, notes = Room(base, recipe.train.max_length), list[list[Row]](), list[str]()
        left_out = [LeftOut(split, dataset.place) for split in ("train", "validation")]
        for one in left_out:
            sides.append(room.fitting(_texts(dataset.iter_rows(one.split, recipe.language)), one))
            notes += one.notes(len(sides[-1]))
        notes += check_rows(recipe, sides, "text", notes)
        replay, told = replayed(recipe, lambda: english_rows(dataset, "train"))
        beside = LeftOut("train", dataset.place)
        replay = room.fitting(replay, beside)
        notes += [*told, *beside.notes(len(replay), "English rows for replay")]
        return Examples(
            sides[0], sample(sides[1]), replay, dataset.sha256, tuple(notes), left_out[0].count, dataset.place
        )

    def dummy_rows(self) -> list[Row]:
        """Prompts and answers."""
        return made_up_rows()

    def learner(self, recipe: TextRecipe, base: Base, examples: Examples, device: str) -> Learner:
        """A language model and the views of each row."""
        # Trained in fp32 weights: on a GPU the arithmetic is bf16, but small updates must not be rounded away.
        task = load_trainable(self.name, base, device=device, dtype=torch.float32)
        views = recipe.text.views if recipe.text else 1
        rows = [row for view in range(views) for row in augmented_rows(examples.train, recipe.augment, view)]
        return TextLearner(task, recipe, replace(examples, train=rows))

    def warnings(self, recipe: TextRecipe, base: Base, examples: Examples) -> list[str]:
        """Where the base cannot spell a language."""
        return spelling_warnings(base, examples.train)

    def check_measurable(self, request: EvalRequest) -> None:
        """Texts whose prompt fits the context."""
        text_rows(request)

    def evaluate(self, request: EvalRequest) -> EvalResult:
        """Bits per byte on the split and on English rows, chrF of generated answers."""
        return evaluate_text(request)

    def answered(self, request: EvalRequest) -> list[Answered]:
        """Answers to prompts, and continuations."""
        return answered_texts(request)


def _texts(rows: Any) -> list[Row]:
    keys = ("id", "group", "language", "prompt", "text", "source", "synthetic", "licence")
    return [{key: row[key] for key in keys} for row in rows if (row["text"] or "").strip()]
