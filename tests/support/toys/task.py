"""A toy task, `reverse`: a language model learns to write a row's text backwards; all that it is in one file."""

from collections.abc import Mapping
from dataclasses import replace
from typing import TYPE_CHECKING, Annotated, Any, Literal

from fastapi import FastAPI
from fastapi.responses import JSONResponse

from kauli.models.adapters.card import Card
from kauli.models.adapters.kinds.base import AdapterKind
from kauli.models.adapters.kinds.lora import Lora
from kauli.models.bases.find import Base
from kauli.models.requests import TextRequest
from kauli.models.tasks import Task, load_trainable
from kauli.models.text.task import TextTask
from kauli.models.text.training import TrainableText
from kauli.serving.events import Piece
from kauli.serving.settings import ServeArgs
from kauli.serving.tasks import ServedTask, WorkerKind
from kauli.serving.workers.text import TextGenerator
from kauli.serving.workers.worker import load_task
from kauli.training.data.dataset import Dataset
from kauli.training.evaluation.request import EvalRequest
from kauli.training.evaluation.results import EvalResult
from kauli.training.evaluation.systems import ADAPTER, BASE, Answering, System, Systems
from kauli.training.features.left_out import LeftOut
from kauli.training.recipe import OneOf
from kauli.training.tasks.base import Examples, Learner, Row, TrainingTask
from kauli.training.tasks.rows import made_up_rows
from kauli.training.tasks.text import AnswerRecipe, TextLearner

if TYPE_CHECKING:
    from kauli.serving.backends import Backends

HERE = "support.toys.task:"
MOST_TOKENS = 5


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

    def rows(self, recipe: ReverseRecipe, dataset: Dataset, base: Base) -> Examples:
        sides = [[backwards(one) for one in dataset.iter_rows(split)] for split in ("train", "validation")]
        return Examples(sides[0], sides[1], (), dataset.sha256)

    def learner(self, recipe: ReverseRecipe, base: Base, examples: Examples, device: str) -> Learner:
        return TextLearner(load_trainable(self.name, base, device=device), recipe, examples)

    def check_measurable(self, request: EvalRequest) -> None:
        if not request.dataset.rows(request.split):
            raise request.nothing("row", LeftOut(request.split))

    def evaluate(self, request: EvalRequest) -> EvalResult:
        rows = [backwards(one) for one in request.dataset.iter_rows(request.split)]
        how = Answering("reverse", ("text",), lambda row: TextRequest.of_prompt(row["prompt"]))
        systems = Systems(request, how, LeftOut(request.split))
        compared = [System(BASE, rows), System(ADAPTER, rows, ADAPTER)]
        texts = systems.compare(request.task(self.name), compared, rows, rows)
        systems.show(rows, texts, [row["prompt"] for row in rows])
        return systems.result(rows, len(rows))

    def dummy_rows(self) -> list[Row]:
        return made_up_rows()


class ReverseGenerator(TextGenerator):
    """The worker: a language model of its own, whose answers are short."""

    def _limited(self, request: TextRequest, tokens: list[int]) -> TextRequest:
        limited = super()._limited(request, tokens)
        return replace(limited, max_tokens=min(MOST_TOKENS, limited.max_tokens or MOST_TOKENS))


def build(args: ServeArgs, base: Base, answers: bool) -> ReverseGenerator:
    """The worker on a base for text."""
    task = load_task("reverse", args, base, slots=args.worker("reverse").batch, window=args.max_context)
    return ReverseGenerator(task, args)


def add_reverse(app: FastAPI, backends: "Backends") -> None:
    """Its endpoint: a text backwards."""
    # Imported here: they read the tables, which have this task's rows only once this file is imported.
    from kauli.serving.http.answers import route_headers
    from kauli.serving.http.schemas import CompletionRequest

    @app.post("/v1/reverse")
    async def reverse(body: CompletionRequest) -> JSONResponse:
        [request] = body.requests(backends.args)
        route = await backends.route("reverse", body.model, body.language)
        events = [event async for event in backends.of(route).stream(request, route.adapter, True)]
        pieces = [event for event in events if isinstance(event, Piece)]
        content = {"text": "".join(one.text for one in pieces), "tokens": sum(one.tokens for one in pieces)}
        return JSONResponse(content, headers=route_headers(route))


MODELS = Task(
    "reverse", "reverse", takes="text", debug="debug-text", served=f"{HERE}ReverseTask",
    trainable=f"{HERE}TrainableReverse", usage=f"{HERE}usage", command="kauli generate Habari",
    headline=("exact",), validation="bits_per_byte", check="kauli.models.bases.folder:check_text",
)  # fmt: skip
TRAINING = f"{HERE}ReverseTraining"
WORKER = WorkerKind(f"{HERE}build", "reverse", "a language model that writes backwards", several=True)
SERVING = ServedTask(
    ("reverse",), "reverse", f"{HERE}add_reverse", ("/v1/reverse",), "write backwards",
    advice="Train one",
)  # fmt: skip
