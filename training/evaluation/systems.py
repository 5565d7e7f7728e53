"""Systems side by side: what each is shown and answers, its sums by language, and the result made of them."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from kauli.models.metrics import metric_of
from kauli.models.progress import bar
from kauli.training.evaluation.request import ADAPTER, EvalRequest
from kauli.training.evaluation.results import EvalResult, Sample, Scores
from kauli.training.evaluation.rows import by_language, source_of
from kauli.training.evaluation.scorers import (
    Row,
    Tally,
    chrf_signature,
    clean,
    score_answers,
    score_bits,
    sentence_chrf,
)
from kauli.training.features.left_out import LeftOut

BASE = "base"
SCORED_AT_ONCE = 64
Bits = Mapping[str, tuple[float, int]]
"""Id of a row -> (bits, bytes)."""
Tables = Mapping[str, Mapping[str, Tally]]
"""Language -> metric -> sums."""


def text_length(row: Row) -> int:
    """Characters of the text: rows of like length are scored together."""
    return len(row["text"])


def reference_text(row: Row) -> str:
    """The whole text of a row, as it is compared."""
    return clean(row["text"])


@dataclass(frozen=True)
class Answering:
    """How the rows of a task become requests and scores."""

    task: str
    """Of the result."""
    kinds: tuple[str, ...] = ()
    """Of the answers; see `scorers.SCORERS`."""
    ask: Callable[..., Any] = dict
    """(row, **options of the system) -> the request of the served task."""
    reference: Callable[[Row], str] = reference_text
    """What a row should be answered with."""
    length: Callable[[Row], int] | None = text_length
    """By which rows are ordered for `bits`, in calls of `SCORED_AT_ONCE`; None: the task orders and batches itself."""
    together: bool = True
    """All systems answer in one batch, as they do in the service; otherwise one after the other, to hold less."""


@dataclass(frozen=True)
class System:
    """One of the systems compared: what it is shown of each row, and with which adapter (None: the base)."""

    name: str
    rows: Sequence[Row]
    """With the ids of the measured rows."""
    adapter: str | None = None
    options: Mapping[str, Any] = field(default_factory=dict)
    """Further arguments of its requests and of `bits`."""


class Systems:
    """Collects what systems score, on one set of rows or several, and makes the result.

    The system `ADAPTER` is the one that is evaluated, `BASE` is its base, and all others are the baselines, in the
    order in which they come.
    """

    def __init__(self, request: EvalRequest, how: Answering, left_out: LeftOut) -> None:
        """`left_out` are the rows of the split that cannot be measured."""
        self.request, self.how, self.left_out = request, how, left_out
        self.tables: dict[str, dict[str, dict[str, Tally]]] = {}
        self.sources: dict[str, tuple[Mapping[str, Tally], Mapping[str, Tally]]] = {}
        """System -> bits per byte by source: on the evaluated languages, and on English rows."""
        self.samples: list[Sample] = []
        self.notes: list[str] = []

    def add(self, system: str, tables: Tables, prefix: str = "") -> None:
        """Keep a system's sums; `prefix` is that of the set of rows."""
        mine = self.tables.setdefault(system, {tag: {} for tag in self.request.tags})
        for tag, tallies in tables.items():
            mine[tag] |= {prefix + metric: one for metric, one in tallies.items()}

    def add_bits(self, system: str, rows: Sequence[Row], bits: Bits, prefix: str = "") -> None:
        """Keep a system's bits per byte."""
        for tag, kind, mine in by_language(rows):
            self.add(system, {tag: {f"{kind}bits_per_byte": bits_tally(mine, bits)}}, prefix)

    def add_texts(self, system: str, rows: Sequence[Row], texts: Sequence[str], prefix: str = "") -> None:
        """Keep a system's metrics of the texts that it generated for these rows."""
        answers = {row["id"]: text for row, text in zip(rows, texts, strict=True)}
        for tag, kind, mine in by_language(rows):
            predictions, references = [answers[row["id"]] for row in mine], [self.how.reference(row) for row in mine]
            found = score_answers(predictions, references, mine, self.how.kinds)
            self.add(system, {tag: {kind + metric: one for metric, one in found.items()}}, prefix)

    def compare(
        self, served: Any, systems: Sequence[System], rows: Sequence[Row], chosen: Sequence[Row], prefix: str = "",
        settle: Callable[[dict[str, list[str]]], dict[str, list[str]]] = lambda texts: texts,
    ) -> dict[str, list[str]]:  # fmt: skip
        """Score the bits of all `rows` and the answers to the `chosen` ones; system -> its text for each of these.

        `settle` makes of the answers what users would get.
        """
        bits = {system.name: self.bits(served, system) for system in systems}
        texts = settle(self.answers(served, systems, chosen))
        for system in systems:
            self.add_bits(system.name, rows, bits[system.name], prefix)
            self.add_texts(system.name, chosen, texts[system.name], prefix)
        return texts

    def bits(self, served: Any, system: System) -> Bits:
        """What each row's text costs a system."""
        length = self.how.length
        ordered = list(system.rows) if length is None else sorted(system.rows, key=length)
        turn = len(ordered) if length is None else SCORED_AT_ONCE
        found: dict[str, tuple[float, int]] = {}
        with bar("Scoring", len(ordered)) as advance:
            for start in range(0, len(ordered), max(1, turn)):
                piece = ordered[start : start + turn]
                costs = served.bits(piece, system.adapter, **system.options)
                found |= {row["id"]: cost for row, cost in zip(piece, costs, strict=True)}
                advance(len(piece))
        return found

    def answers(self, served: Any, systems: Sequence[System], chosen: Sequence[Row]) -> dict[str, list[str]]:
        """System -> its greedy text for each chosen row.

        A system that is shown no media answers a prompt once: the same prompt has the same greedy answer.
        """
        if not self.how.together and len(systems) > 1:
            return {one.name: self.answers(served, [one], chosen)[one.name] for one in systems}
        requests: list[Any] = []
        adapters: list[str | None] = []
        known: dict[Any, int] = {}
        places: dict[str, list[int]] = {}
        for system in systems:
            by_id = {row["id"]: row for row in system.rows}
            places[system.name] = []
            for row in (by_id[one["id"]] for one in chosen):
                shown = row["prompt"], tuple(row.get("captions") or ())
                what = shown if row.get("media") == () else (system.name, row["id"])
                place = known.setdefault((system.adapter, what), len(requests))
                if place == len(requests):
                    requests.append(self.how.ask(row, **system.options))
                    adapters.append(system.adapter)
                places[system.name].append(place)
        texts = generate(served, requests, adapters)
        return {name: [texts[place] for place in mine] for name, mine in places.items()}

    def show(
        self, rows: Sequence[Row], texts: Mapping[str, Sequence[str]], prompts: Sequence[str], where: str = ""
    ) -> None:
        """Keep a sample of each row: `texts` of `ADAPTER` and `BASE`; `where` follows its source."""
        for place, row in enumerate(rows):
            answer, reference = texts[ADAPTER][place], self.how.reference(row)
            self.samples.append(
                Sample(
                    id=row["id"],
                    language=row["language"],
                    source=source_of(row) + where,
                    prompt=prompts[place],
                    reference=reference,
                    base=clean(texts[BASE][place]),
                    adapter=clean(answer),
                    chrf=sentence_chrf(answer, reference),
                    continuation=reference != reference_text(row),
                    image=bytes(row["image"]) if row.get("image") else None,
                )
            )

    def result(self, rows: Sequence[Row], generated: int = 0) -> EvalResult:
        """The evaluation on `rows`, `generated` of which were answered."""
        request, split = self.request, self.left_out.split
        kept = sum(row.get("split", split) == split for row in rows)
        scores = {name: Scores(tables, *self.sources.get(name, ())) for name, tables in self.tables.items()}
        others = [name for name in scores if name not in (ADAPTER, BASE) and any(self.tables[name].values())]
        metrics = {metric_of(one).name for tables in self.tables.values() for mine in tables.values() for one in mine}
        return EvalResult(
            adapter=request.folder.name, base=request.base.name, languages=request.tags, split=request.split,
            seed=request.seed, examples=len(rows), groups=len({row["group"] for row in rows}), generated=generated,
            scores=scores[ADAPTER], base_scores=scores[BASE], baselines={name: scores[name] for name in others},
            samples=tuple(self.samples), signatures={"chrf": chrf_signature()} if "chrf" in metrics else {},
            data={"name": request.dataset.name, "sha256": request.dataset.sha256}, left_out=self.left_out.count,
            notes=(*self.left_out.notes(kept), *self.notes), task=self.how.task,
        )  # fmt: skip


def bits_tally(rows: Sequence[Row], bits: Bits) -> Tally:
    """Bits per byte of these rows."""
    return score_bits(rows, [bits[row["id"]] for row in rows])


def generate(served: Any, requests: Sequence[Any], adapters: Sequence[str | None]) -> list[str]:
    """The whole text of each request, each with its own adapter."""
    texts = [""] * len(requests)
    with bar("Generating", len(requests)) as advance:
        for chunks in served.generate(requests, adapters):
            for chunk in chunks:
                texts[chunk.row] += chunk.text
                if chunk.finish:
                    advance()
    return texts
