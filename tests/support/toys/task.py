"""A toy task, `reverse`: a language model learns to write a row's text backwards; all that it is in one file."""

from collections.abc import Mapping
from typing import Annotated, Any, Literal

from kauli.models.adapters.card import Card
from kauli.models.adapters.kinds.base import AdapterKind
from kauli.models.adapters.kinds.lora import Lora
from kauli.models.bases.find import Base
from kauli.models.requests import TextRequest
from kauli.models.tasks import Task, load_trainable
from kauli.models.text.task import TextTask
from kauli.models.text.training import TrainableText
from kauli.serving.settings import ServeArgs
from kauli.serving.tasks import ServedTask
from kauli.serving.workers.text import TextGenerator
from kauli.serving.workers.worker import load_task
from kauli.training.data.dataset import Dataset
from kauli.training.evaluation.request import EvalRequest
from kauli.training.evaluation.results import EvalResult
from kauli.training.evaluation.systems import ADAPTER, BASE, Answering, System, Systems
from kauli.training.recipe import OneOf
from kauli.training.tasks.base import Examples, Learner, Row, TrainingTask
from kauli.training.tasks.text import AnswerRecipe, TextLearner

HERE = "support.toys.task:"


class ReverseTask(TextTask):
    """Served: a language model as it is."""


class TrainableReverse(TrainableText):
    """Trained: a language model as it is, which becomes a `ReverseTask`."""


def usage(card: Card) -> str:
    """The section "Use" of its model card."""
    return f"## Use\n\nAsk {card.spec} for anything backwards."


def backwards(row: Mapping[str, Any]) -> Row:
    """The row with its text as prompt, and the text backwards as answer."""
    return {**row, "prompt": row["text"], "text": row["text"][::-1]}


class ReverseRecipe(AnswerRecipe):
    """A recipe of the task `reverse`."""

    task: Literal["reverse"] = "reverse"
    method: Annotated[AdapterKind, OneOf({"lora": Lora})] = Lora()


class ReverseTraining(TrainingTask):
    """Texts backwards."""

    name = "reverse"
    recipe = ReverseRecipe

    def rows(self, recipe: ReverseRecipe, dataset: Dataset) -> Examples:
        sides = [[backwards(one) for one in dataset.iter_rows(split)] for split in ("train", "validation")]
        return Examples(sides[0], sides[1], (), dataset.sha256)

    def learner(self, recipe: ReverseRecipe, base: Base, examples: Examples, device: str) -> Learner:
        return TextLearner(load_trainable(self.name, base, device=device), recipe, examples)

    def evaluate(self, request: EvalRequest) -> EvalResult:
        rows = [backwards(one) for one in request.dataset.iter_rows(request.split)]
        systems = Systems(request, Answering("reverse", ("text",), lambda row: TextRequest.of_prompt(row["prompt"])))
        compared = [System(BASE, rows), System(ADAPTER, rows, ADAPTER)]
        texts = systems.compare(request.task(self.name), compared, rows, rows)
        systems.show(rows, texts, [row["prompt"] for row in rows])
        return systems.result(rows, len(rows))

    def dummy_rows(self, count: int = 12) -> list[Row]:
        return [backwards({"language": "sw", "text": f"namba {one}"}) for one in range(count)]


def build(args: ServeArgs, base: Base, answers: bool) -> TextGenerator:
    """The worker, were it another than that of text."""
    return TextGenerator(load_task("reverse", args, base), args)


MODELS = Task(
    "reverse", "reverse", takes="text", debug="debug-text", served=f"{HERE}ReverseTask",
    trainable=f"{HERE}TrainableReverse", usage=f"{HERE}usage", command="kauli generate Habari",
    headline=("exact",), validation="bits_per_byte", check="kauli.models.bases.folder:check_text",
)  # fmt: skip
TRAINING = f"{HERE}ReverseTraining"
SERVING = ServedTask(
    ("reverse",), "text", "kauli.serving.http.chat:add_chat", ("/v1/chat/completions",), "write backwards",
    advice="Train one",
)  # fmt: skip
