"""What every evaluator takes: the adapter, its base, the data, and the settings that its card gives."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from kauli.models.adapters.card import Card, Prompting
from kauli.models.adapters.folder import check_base
from kauli.models.adapters.registry import Registry
from kauli.models.bases.find import Base, find_base
from kauli.models.engine.precision import choose_precision, place
from kauli.models.errors import UsageError
from kauli.models.languages import check_tag
from kauli.models.tasks import load_served
from kauli.training.data.dataset import Dataset, load_data
from kauli.training.data.options import DataOptions
from kauli.training.features.left_out import LeftOut

GENERATED = 48
"""Rows that are generated for the metrics of answers, where nobody asks for another number."""
ADAPTER = "adapter"
"""The key under which the served task holds the evaluated adapter, and the name of its system."""
JUDGE = "whisper-base"
"""The base that listens to speech, where no card names another."""
MAX_CHARS_PER_SECOND = 25.0
"""The limit of a transcript's speed where no card names one: a faster row can't be a transcript of its audio."""


@dataclass(frozen=True)
class EvalRequest:
    """One evaluation: the adapter in `folder` beside `base` on the rows of a split."""

    folder: Path
    base: Base
    dataset: Dataset
    languages: tuple[str, ...]
    split: str = "test"
    limit: int = GENERATED
    """Rows that are generated, where a task generates only some; the other metrics cover the whole split."""
    scored: int | None = None
    """Cut the split to whole groups of about this many rows, for a quick look; the result's notes say it."""
    seed: int = 0
    """Of the bootstrap intervals."""
    instruction: str | None = None
    """The prompt of every row, with `{language}`; None: each row's own."""
    max_chars_per_second: float | None = None
    """Rows with audio and more characters a second are left out, as in training."""
    base_languages: Mapping[str, str] = field(default_factory=dict)
    """A language that the base does not know -> the language to ask the base for."""
    prompting: Prompting | None = None
    """How translations are asked for."""
    judges: tuple[str, ...] = (JUDGE,)
    """Those that listen to speech, bases or adapters of `registry`; the first gives the figures."""
    registry: Registry | None = None
    served: Any = None
    """The served task with the base's weights already loaded; None: the evaluator loads it."""

    @property
    def tags(self) -> tuple[str, ...]:
        """The languages, checked; raises `UsageError` for a tag that is none."""
        return tuple(check_tag(tag) for tag in self.languages)

    def nothing(self, what: str, left_out: LeftOut) -> UsageError:
        """The error for a split in which there is nothing to measure."""
        reasons = "".join(f"; {told}" for told in left_out.notes(0))
        where = f"{', '.join(self.languages)} in its '{self.split}' split"
        return UsageError(f"data '{self.dataset.name}' has no {what} in {where}: nothing can be measured{reasons}.")

    def base_task(self, name: str) -> Any:
        """The served task of this name, without the adapter, in the precision that the service chooses."""
        if self.served is not None:
            return self.served
        device = place()[0]
        return load_served(name, self.base, str(device), choose_precision(self.base, device.type).dtype)

    def task(self, name: str) -> Any:
        """The served task of this name with the adapter loaded under the key `ADAPTER`.

        Raises:
            KauliError: a damaged adapter, or one of another base.
        """
        served = self.base_task(name)
        served.add_adapter(ADAPTER, self.folder)
        return served


def request_of(card: Card, folder: Path, base: Base, dataset: Dataset, registry: Registry | None = None) -> EvalRequest:
    """The evaluation of a published or drafted adapter on its test split, with the settings of its card."""
    settings = card.evaluation
    return EvalRequest(
        folder, base, dataset, tuple(card.language), instruction=card.prompt.instruction,
        max_chars_per_second=settings.max_chars_per_second, base_languages=settings.base_languages,
        prompting=card.translation.prompting if card.translation else None, judges=settings.judges or (JUDGE,),
        registry=registry,
    )  # fmt: skip


def published_request(registry: Registry, card: Card, data: str | None = None) -> EvalRequest:
    """The evaluation of a published adapter on the data that it was trained on, or on the data set `data`.

    Raises:
        UsageError: no data is known for the adapter.
        KauliError: a damaged adapter, or a base here that is not the one it was trained on.
    """
    base = find_base(card.base.name, task=card.task, allow_noncommercial=True)
    check_base(card, base)
    source = data or (card.data.name if card.data else None)
    if source is None:
        raise UsageError(f"The card of {card.spec} names no training data: name a data set with --data.")
    options = card.data.options if card.data and data is None else {}
    dataset = load_data(source, card.language, DataOptions.model_validate(options))
    return request_of(card, registry.fetch(card.spec), base, dataset, registry)
