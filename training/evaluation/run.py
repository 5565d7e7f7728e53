"""`kauli eval`: a published adapter beside its base on examples that training never saw, and the report of it."""

from dataclasses import replace
from pathlib import Path

from kauli.models.adapters.card import Card
from kauli.models.adapters.registry import Registry
from kauli.models.bases.find import Base
from kauli.models.files import write_atomically
from kauli.models.progress import note
from kauli.training.data.dataset import Dataset
from kauli.training.data.profile import profile, render
from kauli.training.evaluation.report import render_report
from kauli.training.evaluation.request import GENERATED, published_request
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
    request = published_request(registry, card, data)
    base, dataset = request.base, request.dataset
    notes = []
    if data is None and card.data and card.data.sha256 != dataset.sha256:
        notes.append(f"the data '{dataset.name}' changed since {exact} was trained: its rows may have been trained on")
        note(f"Note: {notes[0]}.")
    wanted = GENERATED if limit is None else limit
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
