"""Adapter beside base on examples that training never saw, through the generation code that serves."""

import hashlib
import re
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, Protocol

from kauli.models.adapters.card import Card
from kauli.models.adapters.folder import check_base
from kauli.models.adapters.registry import Registry
from kauli.models.bases.find import Base, find_base
from kauli.models.errors import UsageError
from kauli.models.files import write_atomically
from kauli.models.languages import check_tag
from kauli.models.progress import bar, note
from kauli.models.requests import Chunk, Message, TextRequest
from kauli.models.text.task import TextTask
from kauli.training.data.dataset import Dataset, load_data
from kauli.training.evaluation.results import EvalResult, Sample, Scores
from kauli.training.evaluation.scorers import (
    SYNTHETIC,
    Tally,
    chrf_signature,
    clean,
    score_bits,
    score_generations,
    sentence_chrf,
)

Row = Mapping[str, Any]
Bits = Mapping[str, tuple[float, int]]  # id of the row -> (bits, bytes)

GENERATED = 48
MAX_TOKENS = 96
RUNNING_TEXT = 6  # words; fewer are a name
SCORED_AT_ONCE = 64
ADAPTER = "evaluated"
COLUMNS = ["id", "group", "language", "prompt", "text", "source", "synthetic", "split"]


class Generator(Protocol):
    """What evaluation needs of a task; `kauli.models.text.task.TextTask` is one."""

    def bits(self, rows: Sequence[Row], adapter: str | None) -> list[tuple[float, int]]:
        """(bits, bytes) of each row's text given its prompt."""
        ...

    def generate(self, requests: Sequence[TextRequest], adapters: Sequence[str | None]) -> Iterator[list[Chunk]]:
        """Stream one batch, each row with its own adapter."""
        ...


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
        raise UsageError(f"{exact} does not say what it was trained on: name a data set with --data.")
    dataset = load_data(source, card.language)
    notes = []
    if data is None and card.data and card.data.sha256 != dataset.sha256:
        notes.append(f"the data '{source}' changed since {exact} was trained: its rows may have been trained on")
        note(f"Note: {notes[0]}.")
    wanted = GENERATED if limit is None else limit
    folder = registry.fetch(exact)
    result = evaluate_adapter(card, folder, base, dataset, split=split, limit=wanted)
    result = replace(result, adapter=exact, notes=(*result.notes, *notes))
    if out is not None:
        write_report(result, card, dataset, base, out)
    return result


def evaluate_adapter(
    card: Card,
    folder: Path,
    base: Base,
    dataset: Dataset,
    *,
    split: str = "test",
    limit: int = GENERATED,
    scored: int | None = None,
) -> EvalResult:
    """Evaluate the adapter in `folder` as its task wants it; see the function of each task."""
    if card.task == "describe":
        from kauli.training.evaluation.pictures import evaluate_pictures

        prompt = (card.recipe or {}).get("prompt")
        if ((card.recipe or {}).get("fusion") or {}).get("hearing"):
            from kauli.training.evaluation.fusion import evaluate_fusion

            fastest = (card.recipe or {})["fusion"]["hearing"]["fastest"]
            return evaluate_fusion(
                folder, base, dataset, card.language, prompt, fastest=fastest, split=split, scored=scored
            )
        return evaluate_pictures(folder, base, dataset, card.language, prompt, split=split, limit=limit, scored=scored)
    if card.task == "transcribe":
        from kauli.training.evaluation.speech import FASTEST, evaluate_speech

        speech = (card.recipe or {}).get("speech") or {}
        fastest, related = speech.get("fastest", FASTEST), speech.get("related")
        return evaluate_speech(
            folder, base, dataset, card.language, fastest=fastest, related=related, split=split, scored=scored
        )
    if card.task == "align" and card.method.get("kind") == "head":
        from kauli.training.tasks.head import evaluate_head

        return evaluate_head(folder, base, dataset, card.language, split)
    if card.task == "align":
        from kauli.training.evaluation.retrieval import evaluate_align

        return evaluate_align(folder, base, dataset, card.language, split)
    return evaluate_folder(folder, base, dataset, card.language, split=split, limit=limit, scored=scored)


def evaluate_folder(
    folder: Path | None,
    base: Base,
    dataset: Dataset,
    languages: Sequence[str],
    split: str = "test",
    limit: int = GENERATED,
    english: bool = True,
    seed: int = 0,
    scored: int | None = None,
) -> EvalResult:
    """Evaluate the adapter in `folder` beside `base`, or the base alone where `folder` is None; see `measure`."""
    task = TextTask.load(base)
    if folder is not None:
        task.add_adapter(ADAPTER, folder)
    key = None if folder is None else ADAPTER
    result = measure(task, key, dataset, languages, split=split, limit=limit, english=english, seed=seed, scored=scored)
    return replace(result, base=base.name, adapter=None if folder is None else folder.name)


def measure(
    task: Generator,
    adapter: str | None,
    dataset: Dataset,
    languages: Sequence[str],
    *,
    split: str = "test",
    limit: int = GENERATED,
    english: bool = True,
    seed: int = 0,
    scored: int | None = None,
) -> EvalResult:
    """Score a loaded adapter (a key of `task`; None: the base alone) and its base on one split.

    Bits per byte covers every row with a text; at most `limit` rows, spread over languages and sources, are generated
    greedily. With `english`, the English rows of the same split show what the adapter forgot. `scored` cuts both to
    whole groups of about so many rows, for a quick look; the result's notes say so.

    Raises:
        UsageError: the split holds no text in these languages.
    """
    tags = tuple(check_tag(tag) for tag in languages)
    rows = [row for row in dataset.rows(split=split, languages=list(tags), columns=COLUMNS) if clean(row["text"] or "")]
    if not rows:
        raise UsageError(f"the data has no text in {', '.join(tags)} in its '{split}' split: nothing can be measured.")
    pivot = english_rows(dataset, split) if english and "en" not in tags else []
    notes: tuple[str, ...] = ()
    if scored is not None and len(rows) > scored:
        every, rows, pivot = len(rows), whole_groups(rows, scored), whole_groups(pivot, scored)
        notes = (f"measured on {len(rows)} of the split's {every} rows",)
    systems = [None] if adapter is None else [adapter, None]
    bits = _all_bits(task, [*rows, *pivot], systems)

    real, synthetic = ([row for row in rows if bool(row["synthetic"]) == kind] for kind in (False, True))
    chosen = [*choose(real, limit), *choose(synthetic, limit)]
    texts = _all_texts(task, [request_for(row) for row in chosen], systems)
    scores = [_scores(rows, pivot, chosen, bits[system], texts[system]) for system in systems]
    return EvalResult(
        adapter=adapter,
        base="base",
        languages=tags,
        split=split,
        seed=seed,
        examples=len(rows),
        groups=len({row["group"] for row in rows}),
        generated=len(chosen),
        scores=scores[0],
        base_scores=scores[1] if len(scores) > 1 else None,
        samples=_samples(chosen, texts[None], None if adapter is None else texts[adapter]),
        signatures={"chrf": chrf_signature()},
        data={"name": dataset.name, "sha256": dataset.sha256},
        notes=notes,
    )


def whole_groups(rows: Sequence[Row], count: int) -> list[Any]:
    """Whole groups, in the order of their hash, until there are `count` rows."""
    ordered = sorted(rows, key=lambda row: hashlib.sha256(str(row["group"]).encode()).digest())
    last = ordered[:count][-1]["group"] if ordered else None
    return [row for place, row in enumerate(ordered) if place < count or row["group"] == last]


def english_rows(dataset: Dataset, split: str) -> list[dict[str, Any]]:
    """The English rows of the split that tell what a model knows of English: answers to a prompt, and running text.

    A name or caption is left out: without its picture nobody can guess it.
    """
    rows = dataset.rows(split=split, languages=["en"], columns=[*COLUMNS, "licence", "image", "audio"])
    written = [row for row in rows if clean(row["text"] or "") and not row["synthetic"]]
    return [
        row
        for row in written
        if row["prompt"] or (len(row["text"].split()) >= RUNNING_TEXT and not row["image"] and not row["audio"])
    ]


def choose(rows: Sequence[Row], limit: int) -> list[Row]:
    """At most `limit` rows, taken in turn from each (language, source), in each by the hash of the id.

    The choice does not depend on the order of the rows, and a larger limit keeps what a smaller one chose.
    """
    strata: dict[tuple[str, str], list[Row]] = defaultdict(list)
    for row in sorted(rows, key=lambda row: hashlib.sha256(str(row["id"]).encode()).digest()):
        if row["prompt"] or _cut(row):
            strata[row["language"], row["source"] or ""].append(row)
    turns = [(turn, key, row) for key, members in strata.items() for turn, row in enumerate(members)]
    return [row for _, _, row in sorted(turns, key=lambda place: place[:2])[:limit]]


def request_for(row: Row) -> TextRequest:
    """The greedy request that a row makes: its prompt as a user's message, or half of its text to go on from."""
    if row["prompt"]:
        return TextRequest(messages=(Message("user", row["prompt"]),), max_tokens=MAX_TOKENS)
    return TextRequest(prompt=clean(row["text"])[: _cut(row)], max_tokens=MAX_TOKENS)


def reference_for(row: Row) -> str:
    """What `request_for` should be answered with."""
    text = clean(row["text"])
    return text if row["prompt"] else text[_cut(row) :].strip()


def write_report(result: EvalResult, card: Card | None, dataset: Dataset, base: Base, out: Path) -> None:
    """Write the HTML page of an evaluation; imported late, since drawing is not needed to measure."""
    from kauli.training.data.profile import profile, render
    from kauli.training.evaluation.report import render_report

    page = render_report(result, card, render(profile(dataset, base.folder)))
    write_atomically(out, page.encode())
    note(f"Wrote {out}")


def _cut(row: Row) -> int:
    """Where a text without prompt is cut in two: before the middle word; 0 where it has fewer than 8 words."""
    words = list(re.finditer(r"\S+", clean(row["text"])))
    return words[len(words) // 2 - 1].end() if len(words) >= 8 else 0


def _all_bits(task: Generator, rows: Sequence[Row], systems: Sequence[str | None]) -> Mapping[str | None, Bits]:
    """System -> id of the row -> (bits, bytes)."""
    # rows of like length together, so that little is lost between two steps of the bar
    ordered = sorted(rows, key=lambda row: len(row["text"]) + len(row["prompt"] or ""))
    found: dict[str | None, dict[str, tuple[float, int]]] = {system: {} for system in systems}
    with bar("Scoring", len(rows) * len(systems)) as advance:
        for system in systems:
            for start in range(0, len(ordered), SCORED_AT_ONCE):
                piece = ordered[start : start + SCORED_AT_ONCE]
                costs = task.bits(piece, system)
                found[system].update({row["id"]: cost for row, cost in zip(piece, costs, strict=True)})
                advance(len(piece))
    return found


def _all_texts(
    task: Generator, requests: Sequence[TextRequest], systems: Sequence[str | None]
) -> dict[str | None, list[str]]:
    """System -> the text generated for each request."""
    # Adapter and base stand in one batch, as they do in the service.
    asked = [(place, system) for place in range(len(requests)) for system in systems]
    texts: dict[str | None, list[str]] = {system: [""] * len(requests) for system in systems}
    with bar("Generating", len(asked)) as advance:
        for chunks in task.generate([requests[place] for place, _ in asked], [system for _, system in asked]):
            for chunk in chunks:
                place, system = asked[chunk.row]
                texts[system][place] += chunk.text
                if chunk.finish:
                    advance()
    return texts


def _scores(
    rows: Sequence[Row],
    pivot: Sequence[Row],
    chosen: Sequence[Row],
    bits: Bits,
    texts: Sequence[str],
) -> Scores:
    """All sums of one system."""
    answers = {row["id"]: text for row, text in zip(chosen, texts, strict=True)}
    by_language: dict[str, dict[str, Tally]] = {}
    for tag in sorted({row["language"] for row in rows}):
        by_language[tag] = {}
        for synthetic, prefix in ((False, ""), (True, SYNTHETIC)):
            ours = [row for row in rows if row["language"] == tag and bool(row["synthetic"]) == synthetic]
            answered = [row for row in ours if row["id"] in answers]
            found = {"bits_per_byte": _bits(ours, bits)} if ours else {}
            if answered:
                predictions = [answers[row["id"]] for row in answered]
                found |= score_generations(predictions, [reference_for(row) for row in answered], answered)
            by_language[tag] |= {prefix + name: one for name, one in found.items()}
    real = [row for row in rows if not row["synthetic"]]
    return Scores(by_language, _by_source(real, bits), _by_source(pivot, bits))


def _by_source(rows: Sequence[Row], bits: Bits) -> dict[str, Tally]:
    sources = sorted({row["source"] or "unnamed" for row in rows})
    return {source: _bits([row for row in rows if (row["source"] or "unnamed") == source], bits) for source in sources}


def _bits(rows: Sequence[Row], bits: Bits) -> Tally:
    return score_bits(rows, [bits[row["id"]] for row in rows])


def _samples(chosen: Sequence[Row], base: Sequence[str], adapter: Sequence[str] | None) -> tuple[Sample, ...]:
    samples = []
    for place, row in enumerate(chosen):
        answer = base[place] if adapter is None else adapter[place]
        samples.append(
            Sample(
                id=row["id"],
                language=row["language"],
                source=row["source"] or "unnamed",
                prompt=row["prompt"] or request_for(row).prompt or "",
                reference=reference_for(row),
                base=clean(base[place]),
                adapter=None if adapter is None else clean(adapter[place]),
                chrf=sentence_chrf(answer, reference_for(row)),
                continuation=not row["prompt"],
            )
        )
    return tuple(samples)
