"""The one table of tasks, and the surface that all of them have."""

from collections.abc import Callable, Iterator, Sequence
from importlib import import_module
from pathlib import Path
from typing import Any, Protocol

import torch
from torch import Tensor

from kauli.models.bases.find import Base

TASKS = {
    "text": "kauli.models.text.task:TextTask",
    "describe": "kauli.models.text.describe:DescribeTask",
    "align": "kauli.models.vision.align:AlignTask",
    "transcribe": "kauli.models.speech.task:Recogniser",
}
"""Name -> module and class; a module is imported when its task is asked for, since each brings its own libraries."""


class Task(Protocol):
    """What is learned and generated: the frozen part once (`encode`), then batches, losses and answers.

    Rows are examples as dictionaries; features, batches and requests are each task's own.
    """

    base: Base
    model: torch.nn.Module

    def encode(self, rows: Sequence[Any], max_length: int | None = None) -> list[Any]:
        """The frozen part of each row, computed once; the caller keeps it."""
        ...

    def collate(self, documents: Sequence[Any]) -> Any:
        """Encoded rows as one batch of tensors."""
        ...

    def loss(self, batch: Any) -> Tensor:
        """A differentiable scalar: the mean over the batch's answer tokens, frames or pairs."""
        ...

    def generate(
        self, requests: Sequence[Any], adapters: Sequence[str | None], cancelled: Callable[[int], bool] | None = None
    ) -> Iterator[list[Any]]:
        """Answer a batch, each row with its own adapter; yields chunks as they come.

        The task `align` generates nothing: it has `embed_images` and `embed_texts` in its place.
        """
        ...

    def add_adapter(self, key: str, folder: Path) -> None:
        """Load an adapter folder; KauliError where it does not fit the base."""
        ...

    def save(self, folder: Path) -> None:
        """Write the adapter in training as a folder."""
        ...


def load_task(name: str, base: Base, device: str | None = None, dtype: torch.dtype | None = None) -> Any:
    """The task `name` on a base, ready to train or to generate: a `Task`, with what else its class has."""
    module, _, attribute = TASKS[name].partition(":")
    return getattr(import_module(module), attribute).load(base, device=device, dtype=dtype)
