"""The one train loop: ordinary torch and accelerate, with or without Ray around it.

What it computes does not depend on how a step is cut: one worker or several, one pack or many, each gradient is that
of the mean loss over the step's answer tokens.
"""

import math
import tempfile
import time
from collections.abc import Callable, Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import torch
from accelerate import Accelerator
from accelerate.utils import broadcast
from torch import Tensor, nn

from kauli.models.packing import Document, pack
from kauli.models.text import TextTask, answer_losses
from kauli.training.checkpoint import Checkpoint, Progress, copy_of, trainable, write
from kauli.training.merged_lora import merge_while_training
from kauli.training.plan import Plan, micro_batches, share_out
from kauli.training.recipe import Recipe

Row = dict[str, Any]


@dataclass(frozen=True)
class Examples:
    """What a run learns from: rows of the data set, and the hash of it all."""

    train: Sequence[Row]
    validation: Sequence[Row]
    replay: Sequence[Row]
    sha256: str


class Session(Protocol):
    """What the loop needs of whoever runs it: a place for checkpoints, and an ear for what happens."""

    def restore(self) -> Path | None:
        """The folder of the newest checkpoint, if there is one."""

    def report(self, metrics: dict[str, Any], checkpoint: Path | None) -> None:
        """Called by every rank after each validation; rank 0 hands over a checkpoint folder, which may be moved."""


class _Packed(nn.Module):
    """The model's packed forward as a module of its own, which is what DDP can wrap."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, batch: Any) -> Tensor:
        return answer_losses(self.model, batch)


class Loop:
    """A run of one recipe on one rank."""

    def __init__(
        self,
        task: TextTask,
        recipe: Recipe,
        examples: Examples,
        session: Session,
        start: Path | None = None,
        log: Callable[[dict[str, Any]], None] | None = None,
    ) -> None:
        """`task` holds the bare base; `start` is the folder of the adapter that training starts from.

        `log` gets a line of figures after each step and each validation, on rank 0 alone.
        """
        self.recipe, self.budget, self.session, self.task = recipe, recipe.train, session, task
        precision = recipe.scale.precision
        on_gpu = task.device.type == "cuda"
        mixed = "bf16" if precision == "bf16" or (precision == "auto" and on_gpu) else "no"
        self.accelerator = Accelerator(mixed_precision=mixed, cpu=not on_gpu)
        self.rank, self.world = self.accelerator.process_index, self.accelerator.num_processes
        self.log = log if log is not None and self.rank == 0 else lambda line: None
        self.identity = {"recipe": recipe.sha256(), "data": examples.sha256}
        self.examples = examples

        self.progress, self.best = Progress(), dict[str, Tensor]()
        self.checkpoint = session.restore()
        if self.checkpoint is None:
            self.progress.base_validation = self._validate_rows(examples.validation)
        torch.manual_seed(self.budget.seed)  # LoRA's A is drawn here, alike on every rank
        bare: Any = task.model
        attached: Any = recipe.method.attach(bare, task.base.reference)
        task.model = attached
        if start is not None:
            task.start_from(start)
        merge_while_training(task.model)
        self.parameters = trainable(task.model)
        self.optimizer = torch.optim.AdamW(
            self.parameters.values(), lr=self.budget.learning_rate, weight_decay=self.budget.weight_decay
        )
        self.model = self.accelerator.prepare(_Packed(task.model))
        length = self.budget.max_length
        repeat = self.budget.repeat
        rows = [row for row in examples.train for _ in range(repeat.get(row.get("source") or "", 1))]
        self.documents: list[Document] = task.encode([*rows, *examples.replay], length)
        self.cut = sum(not document.ended for document in self.documents)
        """How many examples, repeats counted, were longer than `max_length`."""
        self.lengths = [len(document.tokens) for document in self.documents]
        count = len(rows)
        share = recipe.objective.weight if recipe.objective.regulariser == "replay" else 0.0
        self.plan = Plan(self.lengths[:count], self.budget.batch_tokens, self.budget.seed, self.lengths[count:], share)

    def run(self) -> Progress:
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
                group["lr"] = budget.learning_rate * _schedule(done, budget.warmup)
            losses.append(self.step(step))
            progress.step += 1
            progress.seconds = before + time.monotonic() - began
            progress.tokens += sum(self.lengths[index] for index in step)
            self.log(
                {
                    "step": progress.step,
                    "loss": losses[-1],
                    "learning_rate": self.optimizer.param_groups[0]["lr"],
                    "tokens_per_second": progress.tokens / progress.seconds,
                    "seconds": progress.seconds,
                    "restarts": progress.restarts,
                    "budget": max(done, progress.step / budget.steps),
                }
            )
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
        by_steps = self.progress.step / self.budget.steps
        if self.budget.minutes is None:
            return by_steps
        share = torch.tensor([max(by_steps, seconds / (60 * self.budget.minutes))], device=self.task.device)
        return float(broadcast(share)) if self.world > 1 else float(share)

    def step(self, step: list[int]) -> float:
        """One optimiser step on these examples; returns the mean loss over their answer tokens, in nats."""
        torch.manual_seed((self.budget.seed * 1_000_003 + self.progress.step) * 1_009 + self.rank)
        answers = sum(len(self.documents[index].tokens) - self.documents[index].answer_start for index in step)
        self.progress.answer_tokens += answers
        share = share_out(step, self.lengths, self.world)[self.rank]
        packs = micro_batches(share, self.lengths, self.budget.micro_tokens)
        # A rank that got none still has to take part in the exchange of gradients: with a weight of zero.
        weighted = [(indices, 1.0) for indices in packs] or [([step[0]], 0.0)]
        self.task.model.train()
        self.optimizer.zero_grad(set_to_none=True)
        total = torch.zeros((), device=self.task.device)
        for number, (indices, weight) in enumerate(weighted):
            batch = pack([self.documents[index] for index in indices]).to(self.task.device)
            last = number == len(weighted) - 1
            with nullcontext() if last else self.accelerator.no_sync(self.model):
                loss = self.model(batch).sum() * (weight / answers)
                # DDP takes the mean over ranks; the sum is wanted, since `answers` counts all of them.
                self.accelerator.backward(loss * self.world)
            total += loss.detach()
        self.accelerator.clip_grad_norm_(self.parameters.values(), self.budget.clip)
        self.optimizer.step()
        return float(self.accelerator.reduce(total, "sum"))

    def _validate(self, losses: list[float]) -> None:
        progress = self.progress
        value = self._validate_rows(self.examples.validation)
        progress.curve.append((progress.step, sum(losses) / len(losses), value))
        self.log({"step": progress.step, "validation_bits_per_byte": value})
        if value < progress.best_validation:
            progress.best_validation, progress.best_step, progress.since_best = value, progress.step, 0
            self.best = copy_of(self.parameters)
        else:
            progress.since_best += 1

    def _validate_rows(self, rows: Sequence[Row]) -> float:
        """Bits per byte of the model as it is on these rows, which the ranks share."""
        self.task.model.eval()
        sums = torch.zeros(2, dtype=torch.float64)
        for bits, count in self.task.current_bits(rows[self.rank :: self.world]):
            sums += torch.tensor([bits, count], dtype=torch.float64)
        bits, count = self.accelerator.reduce(sums.to(self.task.device), "sum").tolist()
        return float(bits / count)

    def _save(self) -> None:
        progress = self.progress
        metrics = {
            "step": progress.step,
            "train_loss": progress.curve[-1][1] if progress.curve else math.nan,
            "validation_bits_per_byte": progress.curve[-1][2] if progress.curve else math.nan,
        }
        if self.rank != 0:
            self.session.report(metrics, None)
            return
        with tempfile.TemporaryDirectory() as folder:
            path = Path(folder) / "checkpoint"
            Checkpoint(path).save(self.parameters, self.best, self.optimizer, progress, self.identity)
            if progress.finished:
                self.finish(path)
            self.session.report(metrics, path)

    def finish(self, checkpoint: Path) -> None:
        """Put the adapter with the best weights beside the last state."""
        current = copy_of(self.parameters)
        write(self.parameters, self.best)
        self.task.save(checkpoint / "adapter")
        write(self.parameters, current)


def _schedule(done: float, warmup: float) -> float:
    """The share of the full learning rate after `done` of the budget: a linear rise, then a cosine to zero."""
    if done < warmup:
        return (done + 1e-3) / (warmup + 1e-3)
    return 0.5 * (1 + math.cos(math.pi * (done - warmup) / (1 - warmup)))
