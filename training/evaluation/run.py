"""`kauli eval`: a published adapter beside its base on examples that training never saw, and the report of it."""

from dataclasses import replace
from pathlib import Path

from kauli.models.adapters.card import Card
from kauli.models.adapters.folder import check_base
from kauli.models.adapters.registry import Registry
from kauli.models.bases.find import Base, find_base
from kauli.models.errors import UsageError
from kauli.models.files import write_atomically
from kauli.models.progress import note
from kauli.training.data.dataset import Dataset, load_data
from kauli.training.data.options import DataOptions
from kauli.training.data.profile import profile, render
from kauli.training.evaluation.report import render_report
from kauli.training.evaluation.request import GENERATED, request_of
from kauli.training.evaluation.results import EvalResult
from kauli.training.tasks.table import task_of_card


def evaluate(
    spec: str,
    storage: str,
    *,
    data: str | None = None,
    split: str = "test",
    out: Path | None = None,
    limit: int | None = None,
) -> EvalResult:
    """Evaluate a published adapter beside its base.

    Args:
        spec: NAME, NAME@VERSION or NAME@ALIAS.
        storage: URI of the store that holds the registry.
        data: what to evaluate on; by default what the adapter was trained on.
        split: of the data.
        out: where to write the HTML report.
        limit: how many examples are generated (48 by default); bits per byte always covers the whole split.

    Raises:
        UsageError: unknown adapter, no rows in the split, or no data known for the adapter.
        KauliError: a damaged adapter, or a base that is not the one it was trained on.
    """
    registry = Registry(storage)
    name, version = registry.resolve(spec)
    exact = f"{name}@{version}"
    card = registry.card(exact)
    base = find_base(card.base.name, task=card.task, allow_noncommercial=True)
    check_base(card, base)
    source = data or (card.data.name if card.data else None)
    if source is None:
        raise UsageError(f"The card of {exact} names no training data: name a data set with --data.")
    options = card.data.options if card.data and data is None else {}
    dataset = load_data(source, card.language, DataOptions.model_validate(options))
    notes = []
    if data is None and card.data and card.data.sha256 != dataset.sha256:
        notes.append(f"the data '{source}' changed since {exact} was trained: its rows may have been trained on")
        note(f"Note: {notes[0]}.")
    wanted = GENERATED if limit is None else limit
    request = request_of(card, registry.fetch(exact), base, dataset)
    result = task_of_card(card).evaluate(replace(request, split=split, limit=wanted))
    result = replace(result, adapter=exact, notes=(*result.notes, *notes))
    if out is not None:
        write_report(result, card, dataset, base, out)
    return result


def write_report(result: EvalResult, card: Card, dataset: Dataset, base: Base, out: Path) -> None:
    """Write the HTML page of an evaluation, with the profile of its data."""
    tokenizer = base.folder if (base.folder / "tokenizer.json").is_file() else None  # a CTC base has letters alone
    page = render_report(result, card, render(profile(dataset, tokenizer)))
    write_atomically(out, page.encode())
    note(f"Wrote {out}")
