"""What the train loop needs to know of a task: its steps, its losses, its validation. Here for text."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol, cast

import torch
from torch import Tensor, nn

from kauli.models.engine.packing import Document, pack
from kauli.models.text.connector import PartSettings
from kauli.models.text.describe import DescribeTask
from kauli.models.text.task import TextTask, answer_losses
from kauli.training.methods import FewShot
from kauli.training.recipe import Recipe
from kauli.training.tasks.merged_lora import merge_while_training
from kauli.training.tasks.sampler import Plan, micro_batches, share_out

Row = dict[str, Any]
CONNECTOR = "connector."  # what its parameters' names begin with, in `TextTask.trained`


@dataclass(frozen=True)
class Examples:
    """What a run learns from: rows of the data set, and the hash of it all."""

    train: Sequence[Row]
    validation: Sequence[Row]
    replay: Sequence[Row]
    sha256: str


class Learner(Protocol):
    """A task in training, on one rank of several."""

    device: torch.device
    cut: int
    """How many examples were too long."""

    @property
    def lengths(self) -> Sequence[int]:
        """What each example weighs in a step: its tokens, or 1."""

    def attach(self, start: Path | None) -> None:
        """Add what is trained to the bare base, drawn from torch's random state, alike on every rank."""

    @property
    def trained(self) -> nn.Module:
        """The module whose trainable parameters are learned and saved."""

    def objective(self) -> nn.Module:
        """The module that DDP wraps: called with a batch it returns losses, whose sum over all batches and ranks
        divided by `terms` is what a step minimises.
        """

    def plan(self) -> Plan:
        """The steps."""

    def groups(self, parameters: Mapping[str, nn.Parameter]) -> list[dict[str, Any]]:
        """Parameter groups for the optimiser: `params`, `full` learning rate, and the share of the budget at which
        they begin to learn.
        """

    def terms(self, step: Sequence[int]) -> int:
        """How many losses the step has on all ranks together."""

    def batches(self, step: Sequence[int], rank: int, world: int) -> list[tuple[Any, float]]:
        """This rank's batches of the step, each with a weight of 1, or of 0 where it only keeps the others company."""

    def validate(self, rank: int, world: int, bare: bool) -> Tensor:
        """(2,) float64 of this rank's share: what is summed and by what its sum is divided; less is better.

        `bare` before anything was attached.
        """

    def save(self, folder: Path) -> None:
        """Write the adapter."""


class _Packed(nn.Module):
    """The model's packed forward as a module of its own."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, batch: Any) -> Tensor:
        return answer_losses(self.model, batch)


class TextLearner:
    """A language model that learns the tokens of answers, after prompts that may hold media."""

    def __init__(
        self, task: TextTask, recipe: Recipe, examples: Examples, parts: Mapping[str, PartSettings] | None = None
    ) -> None:
        """`task` holds the bare base. `parts` are the kinds of media for which a connector is trained along; the rows
        have their `media` then.
        """
        self.task, self._recipe, self._examples, self._parts = task, recipe, examples, parts
        self.device = task.device
        budget = recipe.train
        rows = [row for row in examples.train for _ in range(budget.repeat.get(row.get("source") or "", 1))]
        self.documents: list[Document] = task.encode([*rows, *examples.replay], budget.max_length)
        self.cut = sum(not document.ended for document in self.documents)
        self.lengths = [len(document.tokens) for document in self.documents]
        self._count = len(rows)

    def attach(self, start: Path | None) -> None:
        task = self.task
        if self._parts:
            assert isinstance(task, DescribeTask)
            task.add_connector(self._parts, [*self._examples.train, *self._examples.replay])
        bare, method = cast("Any", task.model), self._recipe.method
        assert not isinstance(method, FewShot)
        attached: Any = method.attach(bare, task.base.reference)
        task.model = attached
        if start is not None:
            task.start_from(start)
        merge_while_training(task.model)

    @property
    def trained(self) -> nn.Module:
        return self.task.trained

    def objective(self) -> nn.Module:
        return _Packed(self.task.trained)

    def plan(self) -> Plan:
        recipe, count = self._recipe, self._count
        share = recipe.objective.weight if recipe.objective.regulariser == "replay" else 0.0
        budget = recipe.train
        return Plan(self.lengths[:count], budget.batch_tokens, budget.seed, self.lengths[count:], share)

    def groups(self, parameters: Mapping[str, nn.Parameter]) -> list[dict[str, Any]]:
        fusion, rate = self._recipe.fusion, self._recipe.train.learning_rate
        if fusion is None:
            return [{"params": list(parameters.values()), "full": rate, "begins": 0.0}]
        connector = [value for name, value in parameters.items() if name.startswith(CONNECTOR)]
        adapter = [value for name, value in parameters.items() if not name.startswith(CONNECTOR)]
        return [
            {"params": adapter, "full": rate, "begins": fusion.alone},
            {"params": connector, "full": fusion.learning_rate, "begins": 0.0},
        ]

    def terms(self, step: Sequence[int]) -> int:
        return sum(len(self.documents[index].tokens) - self.documents[index].answer_start for index in step)

    def batches(self, step: Sequence[int], rank: int, world: int) -> list[tuple[Any, float]]:
        share = share_out(step, self.lengths, world)[rank]
        packs = micro_batches(share, self.lengths, self._recipe.train.micro_tokens)
        # A rank that got none still has to take part in the exchange of gradients: with a weight of zero.
        weighted = [(indices, 1.0) for indices in packs] or [([step[0]], 0.0)]
        return [
            (pack([self.documents[index] for index in indices]).to(self.device), weight) for indices, weight in weighted
        ]

    def validate(self, rank: int, world: int, bare: bool) -> Tensor:
        """Bits and bytes of the validation rows; a bare base is shown no picture, since it can't read one."""
        rows = self._examples.validation[rank::world]
        sums = torch.zeros(2, dtype=torch.float64)
        for bits, count in self.task.current_bits([{**row, "media": ()} for row in rows] if bare else rows):
            sums += torch.tensor([bits, count], dtype=torch.float64)
        return sums

    def save(self, folder: Path) -> None:
        self.task.save(folder)
