"""The one train loop for all tasks: ordinary torch and accelerate, with or without Ray around it.

What it computes does not depend on how a step is cut: one worker or several, one pack or many, each gradient is that
of the mean of the step's losses.
"""

import math
import tempfile
import time
from collections.abc import Callable
from contextlib import nullcontext
from pathlib import Path
from typing import Any, Protocol

import torch
from accelerate import Accelerator
from accelerate.utils import broadcast
from torch import Tensor

from kauli.models.errors import UsageError
from kauli.training.loop.checkpoint import Checkpoint, TrainState, copy_of, trainable, write
from kauli.training.loop.pace import Pace
from kauli.training.recipe import Recipe
from kauli.training.tasks.base import Learner


class Session(Protocol):
    """What the loop needs from its caller: a place for checkpoints, and reports."""

    def restore(self) -> Path | None:
        """The folder of the newest checkpoint, if there is one."""

    def report(self, metrics: dict[str, Any], checkpoint: Path | None) -> None:
        """Called by every rank after each validation; rank 0 hands over a checkpoint folder, which may be moved."""


class Loop:
    """A run of one recipe on one rank."""

    def __init__(
        self,
        learner: Learner,
        recipe: Recipe,
        data: str,
        session: Session,
        start: Path | None = None,
        log: Callable[[dict[str, Any]], None] | None = None,
        precision: str = "fp32",
        tell: Callable[[str], None] = lambda text: None,
    ) -> None:
        """`learner` holds the bare base; `start` is the folder of the adapter that training starts from.

        `data` is the hash of the data. `log` gets a line of figures after each step and each validation, on rank 0
        alone. `precision` is "fp32" or "bf16" (autocast), with the reason behind a colon. `tell` gets a sentence
        for the user where the budget does not suffice.
        """
        self.recipe, self.budget, self.session, self.learner = recipe, recipe.train, session, learner
        mixed = "bf16" if precision.startswith("bf16") else "no"
        self.accelerator = Accelerator(mixed_precision=mixed, cpu=learner.device.type != "cuda")
        self.rank, self.world = self.accelerator.process_index, self.accelerator.num_processes
        self.log = log if log is not None and self.rank == 0 else lambda line: None
        self.plan = learner.plan()
        self.pace, self.tell = Pace(self.budget, len(self.plan.epoch(0))), tell
        if warning := self.pace.by_steps():
            tell(warning)
        self.identity = {"recipe": recipe.sha256(), "data": data}

        self.progress, self.best = TrainState(precision=precision), dict[str, Tensor]()
        self.checkpoint = session.restore()
        if self.checkpoint is None:
            self.progress.base_validation = self._validation(bare=True)
        torch.manual_seed(self.budget.seed)  # LoRA's A is drawn here, alike on every rank
        learner.attach(start)
        self.parameters = trainable(learner.trained)
        self.optimizer = torch.optim.AdamW(
            learner.groups(self.parameters), lr=self.budget.learning_rate, weight_decay=self.budget.weight_decay
        )
        self.model = self.accelerator.prepare(learner.objective())

    def run(self) -> TrainState:
        """Train to the end of the budget or the early stop; the best weights are in the model then."""
        if self.checkpoint is not None:
            self.progress, self.best = Checkpoint(self.checkpoint).load(self.parameters, self.optimizer, self.identity)
            self.progress.restarts += 1
        else:
            self.best = copy_of(self.parameters)
        if not self.progress.finished:
            self._train()
        write(self.parameters, self.best)
        return self.progress

    def _train(self) -> None:
        progress, budget = self.progress, self.budget
        before, began = progress.seconds, time.monotonic()
        losses: list[float] = []
        for step in self.plan.steps(start=progress.step):
            done = self._share_of_budget(before + time.monotonic() - began)
            if done >= 1:
                break
            for group in self.optimizer.param_groups:
                share = (done - group["start"]) / (1 - group["start"])
                group["lr"] = group["peak"] * _schedule(share, budget.warmup) if share >= 0 else 0.0
            losses.append(self.step(step))
            progress.step += 1
            progress.seconds = before + time.monotonic() - began
            progress.tokens += sum(self.learner.lengths[index] for index in step)
            self.log(
                {
                    "step": progress.step,
                    "loss": losses[-1],
                    "learning_rate": self.optimizer.param_groups[0]["lr"],
                    "tokens_per_second": progress.tokens / progress.seconds,
                    "seconds": progress.seconds,
                    "restarts": progress.restarts,
                    "budget": max(done, self._share_of_steps()),
                }
            )
            if warning := self.pace.by_speed(progress.step, progress.seconds):
                self.tell(warning)
            if progress.step % budget.validate_every == 0:
                self._validate(losses)
                losses.clear()
                progress.seconds = before + time.monotonic() - began
                if budget.early_stop is not None and progress.since_best >= budget.early_stop:
                    break
                self._save()
        if losses:
            self._validate(losses)
        progress.seconds = before + time.monotonic() - began
        progress.finished = True
        self._save()

    def _share_of_budget(self, seconds: float) -> float:
        """How much of the budget is gone before this step, in steps or in minutes: 1 and over is the end.

        Rank 0's clock counts, so that all ranks have the same learning rate and stop at the same step.
        """
        by_steps = self._share_of_steps()
        if self.budget.minutes is None:
            return by_steps
        share = torch.tensor([max(by_steps, seconds / (60 * self.budget.minutes))], device=self.learner.device)
        return float(broadcast(share)) if self.world > 1 else float(share)

    def _share_of_steps(self) -> float:
        return self.progress.step / self.budget.steps if self.budget.steps else 0.0

    def step(self, step: list[int]) -> float:
        """One optimiser step on these examples; returns the mean of its losses, over tokens in nats."""
        torch.manual_seed((self.budget.seed * 1_000_003 + self.progress.step) * 1_009 + self.rank)
        targets = self.learner.num_targets(step)
        self.progress.answer_tokens += targets
        self.learner.trained.train()
        self.optimizer.zero_grad(set_to_none=True)
        total = torch.zeros((), device=self.learner.device)
        batches = self.learner.batches(step, self.rank, self.world)
        for number, (batch, weight) in enumerate(batches):
            last = number == len(batches) - 1
            with nullcontext() if last else self.accelerator.no_sync(self.model):
                loss = self.model(batch).sum() * (weight / targets)
                # DDP takes the mean over ranks; the loss needs the sum, since `targets` counts all of them.
                self.accelerator.backward(loss * self.world)
            total += loss.detach()
        self.accelerator.clip_grad_norm_(self.parameters.values(), self.budget.clip)
        self.optimizer.step()
        return float(self.accelerator.reduce(total, "sum"))

    def _validate(self, losses: list[float]) -> None:
        progress = self.progress
        value = self._validation()
        progress.curve.append((progress.step, sum(losses) / len(losses), value))
        self.log({"step": progress.step, "validation": value})
        if value < progress.best_validation:
            progress.best_validation, progress.best_step, progress.since_best = value, progress.step, 0
            self.best = copy_of(self.parameters)
        else:
            progress.since_best += 1

    def _validation(self, bare: bool = False) -> float:
        """The validation figure of the model as it is; the ranks share the rows."""
        self.learner.trained.eval()
        sums = self.learner.validate(self.rank, self.world, bare)
        above, below = self.accelerator.reduce(sums.to(self.learner.device), "sum").tolist()
        if not below:
            raise UsageError(f"data '{self.recipe.data}': its 'validation' rows hold no text that the base can write.")
        return float(above / below)

    def _save(self) -> None:
        progress = self.progress
        metrics = {"step": progress.step}
        if self.rank != 0:
            self.session.report(metrics, None)
            return
        with tempfile.TemporaryDirectory() as folder:
            path = Path(folder) / "checkpoint"
            Checkpoint(path).save(self.parameters, self.best, self.optimizer, progress, self.identity)
            if progress.finished:  # the adapter has the best weights, the state the last ones
                current = copy_of(self.parameters)
                write(self.parameters, self.best)
                self.learner.save(path / "adapter")
                write(self.parameters, current)
            self.session.report(metrics, path)


def _schedule(done: float, warmup: float) -> float:
    """The share of the full learning rate after `done` of the budget: a linear rise, then a cosine to zero."""
    if done < warmup:
        return (done + 1e-3) / (warmup + 1e-3)
    return 0.5 * (1 + math.cos(math.pi * (done - warmup) / (1 - warmup)))
