"""What a task is in training: its recipe, its rows, how it learns from them, how it is evaluated and promoted."""

import hashlib
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

import torch
from torch import Tensor, nn

from kauli.models.adapters.card import Decoding
from kauli.models.metrics import label
from kauli.models.tasks import TASKS
from kauli.training.tasks.merged_lora import merge_while_training
from kauli.training.tasks.sampler import Plan, micro_batches, share_out

if TYPE_CHECKING:
    from kauli.models.bases.find import Base
    from kauli.training.data.dataset import Dataset
    from kauli.training.evaluation.certify import Answered
    from kauli.training.evaluation.request import EvalRequest
    from kauli.training.evaluation.results import EvalResult
    from kauli.training.loop.checkpoint import TrainState
    from kauli.training.loop.session import Run
    from kauli.training.recipe import Recipe

Row = dict[str, Any]
"""An example: columns of a data set, with what a task adds. `image` and `samples` are read when they are asked for."""


@dataclass(frozen=True)
class Examples:
    """What a run learns from: rows of the data set, and the hash of it all."""

    train: Sequence[Row]
    validation: Sequence[Row]
    replay: Sequence[Row] = ()
    sha256: str = ""
    notes: tuple[str, ...] = ()
    """For the user: what was left out, and what may go wrong."""
    left_out: int = 0
    """Rows of the training split that cannot be used."""
    place: Callable[[str], str] = str
    """Where the row of an id was read: `Dataset.place`."""

    @cached_property
    def digest(self) -> str:
        """A hash of which rows were chosen, in their order."""
        parts = (str(row["id"]) for side in (self.train, self.validation, self.replay) for row in (*side, {"id": "|"}))
        return hashlib.sha256("\n".join(parts).encode()).hexdigest()


_FEW = 8  # validation rows that tell whether an adapter changes anything
_SAME = 0.05  # of bits per byte: the service may compute in another precision


class Learner(ABC):
    """One rank's part of a training: what is learned, its steps and its losses."""

    notes: tuple[str, ...] = ()
    """For the user: which examples are truncated or left out."""
    lengths: Sequence[int]
    """What each example weighs in a step: its tokens, or 1."""

    def __init__(self, task: Any, recipe: Any, examples: Examples) -> None:
        """`task` is an object of the task's trainable class (`kauli.models.tasks`) and holds the bare base."""
        self.task, self.recipe, self.examples = task, recipe, examples
        self.device: torch.device = task.device

    def attach(self, start: Path | None) -> None:
        """Add what is trained to the bare base, drawn from torch's random state, alike on every rank; with the weights
        of the adapter in `start`.
        """
        self.task.attach(self.recipe.method)
        if start is not None:
            self.task.start_from(start)
        merge_while_training(self.task.model)

    @property
    def trained(self) -> nn.Module:
        """The module whose trainable parameters are learned and saved."""
        trained: nn.Module = self.task.trained
        return trained

    def objective(self) -> nn.Module:
        """The module that DDP wraps: called with a batch it returns losses, whose sum over all batches and ranks
        divided by `num_targets` is what a step minimises.
        """
        return self.trained

    def plan(self) -> Plan:
        """The steps."""
        return Plan(self.lengths, self.recipe.train.batch_tokens, self.recipe.train.seed)

    def groups(self, parameters: Mapping[str, nn.Parameter]) -> list[dict[str, Any]]:
        """Parameter groups for the optimiser: `params`, their `peak` learning rate, and `start`, the share of the
        budget before which they are frozen.
        """
        return [{"params": list(parameters.values()), "peak": self.recipe.train.learning_rate, "start": 0.0}]

    @abstractmethod
    def num_targets(self, step: Sequence[int]) -> int:
        """The number of losses in the step on all ranks together."""

    @abstractmethod
    def batches(self, step: Sequence[int], rank: int, world: int) -> list[tuple[Any, float]]:
        """This rank's batches of the step, each with a weight of 1; weight 0 marks a dummy that keeps ranks in step."""

    def packs(
        self, items: Sequence[int], lengths: Sequence[int], rank: int, world: int
    ) -> list[tuple[list[int], float]]:
        """This rank's share of `items` in packs of `train.micro_tokens`, with the weights of `batches`."""
        packs = micro_batches(share_out(items, lengths, world)[rank], lengths, self.recipe.train.micro_tokens)
        # A rank that got none still has to take part in the exchange of gradients: with a weight of zero.
        return [(pack, 1.0) for pack in packs] or [([items[0]], 0.0)]

    def validate(self, rank: int, world: int, bare: bool) -> Tensor:
        """(2,) float64 of this rank's share: a sum and its divisor, here bits and bytes of the validation rows. The
        quotient is the validation figure, the lower the better. `bare` before anything was attached.
        """
        rows = self.examples.validation[rank::world]
        sums = torch.zeros(2, dtype=torch.float64)
        # A bare base has no connector: it gets no media
        for bits, count in self.task.current_bits([{**row, "media": ()} for row in rows] if bare else rows):
            sums += torch.tensor([bits, count], dtype=torch.float64)
        return sums

    def save(self, folder: Path) -> None:
        """Write the adapter."""
        self.task.save(folder)

    def decoding(self) -> Decoding:
        """Guards for the answers of the adapter."""
        return Decoding()

    def served(self) -> Any:
        """The served task on the same base weights, without the adapter; the learner is not used after it."""
        return self.task.served()


@dataclass(frozen=True)
class Fitted:
    """An adapter that was trained."""

    state: "TrainState"
    """How the training went."""
    served: Any
    """The served task on the same base weights, for the evaluation."""
    examples: Examples
    """What was trained on."""
    decoding: Decoding = field(default_factory=Decoding)
    """Guards for its answers."""
    found: Mapping[str, Any] = field(default_factory=dict)
    """Further fields of the card, which the training decided."""


def _not_applied(served: Any, trained: float, rows: Sequence[Row]) -> str | None:
    """What is wrong where a written adapter does not do what it did at the end of training, as the end of a sentence.

    Args:
        served: holds the adapter.
        trained: its bits per byte of `rows` at the end of training.
        rows: of validation.
    """
    from kauli.training.evaluation.request import ADAPTER

    costs = served.bits(rows, ADAPTER)
    few = [{**row, "media": ()} for row in rows[:_FEW]]  # the bare base takes none
    if [bits for bits, _ in served.bits(few, None)] == [bits for bits, _ in costs[: len(few)]]:
        return "it changes nothing: on validation the base alone gives the same probabilities"
    found = sum(bits for bits, _ in costs) / sum(size for _, size in costs)
    if abs(found - trained) <= _SAME * trained:
        return None
    return f"it costs {found:.3f} bits per byte on validation as it was written, at the end of training {trained:.3f}"


class TrainingTask(ABC):
    """One row of `kauli.training.tasks.table.TASKS`."""

    name: ClassVar[str]
    recipe: ClassVar[type["Recipe"]]
    proved: ClassVar[bool] = True
    """Whether `fault` compares what the written adapter costs with the end of training: where validation is in bits."""
    distributed: ClassVar[bool] = True
    """Whether a run is worth Ray: False for what is fitted in seconds, in the process that asks for it."""

    @property
    def validation_metric(self) -> str:
        """The name in `kauli.models.metrics` of the figure that validation minimises."""
        return TASKS[self.name].validation

    @abstractmethod
    def rows(self, recipe: Any, dataset: "Dataset", base: "Base") -> Examples:
        """The rows to learn from and those to validate on, without their media: the same on every machine.

        Rows that cannot be used on the base are left out, and named in the notes. Raises UsageError where the data has
        no rows for the recipe.
        """

    @abstractmethod
    def dummy_rows(self) -> list[Row]:
        """Eight rows of a data set that a debug base can learn, without `id`, `group` and `split`: for tests."""

    def learner(self, recipe: Any, base: "Base", examples: Examples, device: str) -> Learner:
        """The learner on the bare base, which is loaded here."""
        raise NotImplementedError

    def fit(self, run: "Run", folder: Path) -> Fitted | None:
        """Train by the loop, where a task has no other way, and write the adapter to `folder`; None on ranks over 0."""
        from kauli.training.loop.session import fit_by_loop  # the loop brings torch and accelerate

        return fit_by_loop(self, run, folder)

    def warnings(self, recipe: Any, base: "Base", examples: Examples) -> list[str]:
        """What the user should know before the training: that the base does not suit the data."""
        return []

    @abstractmethod
    def check_measurable(self, request: "EvalRequest") -> None:
        """Raise UsageError where `evaluate` would find no row to measure: asked before a training that ends with it."""

    @abstractmethod
    def evaluate(self, request: "EvalRequest") -> "EvalResult":
        """The adapter beside its base and the baselines of the task, on a split."""

    def answered(self, request: "EvalRequest") -> "list[Answered]":
        """Rows of a split answered and scored, for a certificate: about `request.limit`; of tasks that have one."""
        raise NotImplementedError

    def fault(self, request: "EvalRequest", state: "TrainState", examples: Examples) -> str | None:
        """Why a run must not become `latest`, as the end of a sentence; None where it may.

        `request.served` holds the adapter, as it was written, under the key
        `kauli.training.evaluation.request.ADAPTER`.
        """
        assert state.base_validation is not None
        if not state.best_validation < state.base_validation:
            return (
                f"it is not better than its base on validation ({state.best_validation:.3f} "
                f"{label(self.validation_metric)}, base {state.base_validation:.3f})"
            )
        return _not_applied(request.served, state.best_validation, examples.validation) if self.proved else None

    def card_fields(self, recipe: Any, rows: Sequence[Row] = ()) -> dict[str, Any]:
        """The typed fields of the card that serving and evaluation read: `encoders`, `prompt`, `evaluation`.

        `rows` are those of the training, once they are known.
        """
        return {}
