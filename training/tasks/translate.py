"""The task `translate` in training: a language model learns to translate with similar pairs in its prompt.

The prompt of each row shows the pairs of other groups that a memory would find for it. The model learns their
translations too, each after those before it: so it learns to translate with any number of examples, none included.
"""

import hashlib
from collections.abc import Sequence
from dataclasses import replace
from typing import Annotated, Any, ClassVar, Literal

import torch
from pydantic import Field
from torch import nn

from kauli.models.adapters.card import Decoding, Prompting, TranslationReference
from kauli.models.adapters.kinds.base import AdapterKind
from kauli.models.adapters.kinds.lora import Lora
from kauli.models.bases.find import Base
from kauli.models.frozen import FrozenModel
from kauli.models.tasks import load_trainable
from kauli.models.text.seen_softmax import SeenSoftmax
from kauli.training.data.dataset import Dataset
from kauli.training.evaluation.certify import Answered
from kauli.training.evaluation.request import EvalRequest
from kauli.training.evaluation.results import EvalResult
from kauli.training.evaluation.translate import (
    PAIR_ROWS,
    answered_translations,
    evaluate_translate,
    translated_rows,
)
from kauli.training.features.left_out import LeftOut
from kauli.training.features.room import Room
from kauli.training.features.translations import Prompter, directed, pair_rows
from kauli.training.recipe import method_of
from kauli.training.tasks.base import Examples, Learner, Row, TrainingTask
from kauli.training.tasks.rows import WORDS, check_rows, sample
from kauli.training.tasks.spelling import spelling_warnings
from kauli.training.tasks.text import AnswerRecipe, TextLearner


class TranslateSection(FrozenModel):
    """What is translated, for the task `translate`."""

    reverse: float = Field(default=0.3, ge=0, le=1)
    """The share of the pairs that are translated out of their language, such as into English."""
    softmax: Literal["seen", "all"] = "seen"
    """What the loss compares a token with: the tokens of the training rows, which is twice as fast on a base with a
    large vocabulary, or all tokens. Validation always compares with all."""


class TranslateRecipe(AnswerRecipe):
    """A recipe of the task `translate`."""

    task: Literal["translate"] = "translate"
    method: Annotated[AdapterKind, method_of("translate")] = Lora()
    translate: TranslateSection = TranslateSection()
    prompting: Prompting = Prompting()
    """The prompt, and the examples in it."""


class TranslateLearner(TextLearner):
    """Learns answers and the translations of the examples before them."""

    def objective(self) -> nn.Module:
        if self.recipe.translate.softmax == "all":
            return super().objective()
        seen = SeenSoftmax(self.task.trained, (token for document in self.documents for token in document.tokens))
        return seen if seen.fits(self.documents[0]) else super().objective()

    def decoding(self) -> Decoding:
        """Guards whose limit does not depend on the prompt, which is longer the more examples it has."""
        return super().decoding().model_copy(update={"tokens_per_prompt_token": None})


class TranslateTraining(TrainingTask):
    """Texts and their translations, in both directions."""

    name = "translate"
    recipe: ClassVar[type[TranslateRecipe]] = TranslateRecipe

    def card_fields(self, recipe: TranslateRecipe, rows: Sequence[Row] = ()) -> dict[str, Any]:
        """What the adapter translates, and how it is asked."""
        pairs = sorted({(row["from"], row["to"]) for row in rows})
        return {"translation": TranslationReference(pairs=pairs, prompting=recipe.prompting)}

    def rows(self, recipe: TranslateRecipe, dataset: Dataset, base: Base) -> Examples:
        """A row for each pair, in a direction that its id decides; examples come from the training split alone."""
        memory = pair_rows(dataset, "train", recipe.language)
        prompter = Prompter(base, recipe.prompting, memory)
        room, sides, notes, counts = Room(base, recipe.train.max_length), list[list[Row]](), list[str](), list[int]()
        for split, found in (("train", memory), ("validation", pair_rows(dataset, "validation", recipe.language))):
            rows = [chosen_direction(row, recipe.translate.reverse) for row in found]
            left_out = LeftOut(split, dataset.place)
            chosen = rows if split == "train" else sample(rows)
            sides.append(room.fitting(prompter.prompted(chosen), left_out))
            notes += left_out.notes(len(sides[-1]))
            counts.append(left_out.count)
        notes += check_rows(recipe, sides, PAIR_ROWS, notes)
        return Examples(sides[0], sides[1], (), dataset.sha256, tuple(notes), counts[0], dataset.place)

    def dummy_rows(self) -> list[Row]:
        """Words and their translations."""
        return [
            {"language": "be", "source": "made-up", "prompt": None, "input": f"word {at}", "input_language": "en",
             "text": word}
            for at, word in enumerate(WORDS)
        ]  # fmt: skip

    def learner(self, recipe: TranslateRecipe, base: Base, examples: Examples, device: str) -> Learner:
        """A language model and its documents."""
        task = load_trainable(self.name, base, device=device, dtype=torch.float32)
        return TranslateLearner(task, recipe, replace(examples, replay=()))

    def warnings(self, recipe: TranslateRecipe, base: Base, examples: Examples) -> list[str]:
        """Where the base cannot spell a language."""
        return spelling_warnings(base, examples.train)

    def check_measurable(self, request: EvalRequest) -> None:
        """Pairs whose prompt fits the context."""
        translated_rows(request)

    def evaluate(self, request: EvalRequest) -> EvalResult:
        """Bits per byte, chrF++, BLEU in both directions, beside the base, the nearest pair and the text itself."""
        return evaluate_translate(request)

    def answered(self, request: EvalRequest) -> list[Answered]:
        """Translations in both directions."""
        return answered_translations(request)


def chosen_direction(row: Row, reverse: float) -> Row:
    """A pair in the direction that its id decides; `reverse` is the share of those out of their language."""
    chance = int(hashlib.sha256(row["id"].encode()).hexdigest()[:8], 16) / 0x1_0000_0000
    return directed(row, reverse=chance < reverse)
