"""Texts of a language model measured: adapter beside base, by bits per byte and greedy answers.

Bits per byte covers every row with a text; some rows, spread over languages and sources, are generated. The English
rows of the same split show what the adapter forgot.
"""

import re
from collections.abc import Mapping, Sequence
from dataclasses import replace

from kauli.models.requests import Message, TextRequest
from kauli.models.tasks import TASKS
from kauli.training.evaluation.certify import Answered, answered
from kauli.training.evaluation.request import ADAPTER, EvalRequest
from kauli.training.evaluation.results import EvalResult
from kauli.training.evaluation.rows import COLUMNS, choose, english_rows, some_groups, source_of, whole_groups
from kauli.training.evaluation.scorers import Row, Tally, clean
from kauli.training.evaluation.systems import BASE, Answering, Bits, System, Systems, bits_tally
from kauli.training.features.left_out import LeftOut
from kauli.training.features.room import Room

MAX_TOKENS = 96
"""New tokens of an answer, where the adapter's own limit is not lower."""


def evaluate_text(request: EvalRequest) -> EvalResult:
    """Evaluate an adapter beside its base on the texts of a split.

    Raises:
        UsageError: the split holds no text in these languages.
        KauliError: a damaged adapter, or one of another base.
    """
    found, left_out = text_rows(request)
    room = Room(request.base)
    english: Sequence[Row] = ()
    if "en" not in request.tags:  # those are beside the rows that are measured, and not counted among them
        english = list(room.fitting(english_rows(request.dataset, request.split), LeftOut(request.split)))
    task = request.task("text")

    def ask(row: Row) -> TextRequest:
        """As a user would, with the guards of the adapter's card: for both systems, so that weights alone differ."""
        guarded: TextRequest = task.guarded(request_for(row), ADAPTER)
        return replace(guarded, max_tokens=min(MAX_TOKENS, guarded.max_tokens or MAX_TOKENS))

    systems = Systems(request, replace(ANSWERING, ask=ask), left_out)
    rows, systems.notes = some_groups(found, request.scored, request.split)
    if request.scored is not None and systems.notes:
        english = whole_groups(english, request.scored)
    chosen = [_short(row, room) for kind in (False, True) for row in generated(rows, request.limit, synthetic=kind)]
    real = [row for row in rows if not row["synthetic"]]
    compared = [System(name, [*rows, *english], key) for name, key in ((ADAPTER, ADAPTER), (BASE, None))]
    bits = {system.name: systems.bits(task, system) for system in compared}
    texts = systems.answers(task, [replace(one, rows=chosen) for one in compared], chosen)
    for name in bits:
        systems.add_bits(name, rows, bits[name])
        systems.add_texts(name, chosen, texts[name])
        systems.sources[name] = (_by_source(real, bits[name]), _by_source(english, bits[name]))
    systems.show(chosen, texts, [row["prompt"] or str(request_for(row).prompt or "") for row in chosen])
    return systems.result(rows, len(chosen))


def answered_texts(request: EvalRequest) -> list[Answered]:
    """About `request.limit` rows answered and scored for a certificate: half of each text without a prompt."""
    found, _ = text_rows(request)
    task, room = request.task("text"), Room(request.base)
    rows = [_short(row, room) for row in generated(found, request.limit, synthetic=False)]

    def ask(row: Row) -> TextRequest:
        guarded: TextRequest = task.guarded(replace(request_for(row), logprobs=0), ADAPTER)
        return replace(guarded, max_tokens=min(MAX_TOKENS, guarded.max_tokens or MAX_TOKENS))

    def known(row: Row) -> dict[str, str]:
        return {"source": row["prompt"] or str(request_for(row).prompt)}

    return answered(task, ADAPTER, TASKS["text"].certified, rows, ask, reference_for, known)


def text_rows(request: EvalRequest) -> tuple[Sequence[Row], LeftOut]:
    """The rows that are measured: with a text, and a prompt that fits the context; UsageError where there is none."""
    found = request.dataset.rows(split=request.split, languages=list(request.tags), columns=COLUMNS)
    left_out = LeftOut(request.split, request.dataset.place)
    rows = Room(request.base).fitting([row for row in found if clean(row["text"] or "")], left_out)
    if not rows:
        raise request.nothing("text", left_out)
    return list(rows), left_out


def generated(rows: Sequence[Row], limit: int, *, synthetic: bool) -> list[Row]:
    """At most `limit` rows that are generated: in turn from each language and source, long enough to be continued."""
    able = [row for row in rows if bool(row["synthetic"]) == synthetic and (row["prompt"] or _cut(row))]
    return choose(able, limit, by=("language", "source"))


def request_for(row: Row) -> TextRequest:
    """The greedy request that a row makes: its prompt as a user's message, or half of its text to be continued."""
    if row["prompt"]:
        return TextRequest(messages=(Message("user", row["prompt"]),))
    return TextRequest(prompt=clean(row["text"])[: _cut(row)])


def reference_for(row: Row) -> str:
    """What `request_for` should be answered with."""
    text = clean(row["text"])
    return text if row["prompt"] else text[_cut(row) :].strip()


def _short(row: Row, room: Room) -> Row:
    """The row, or, where half of its text does not fit the context, the beginning of it."""
    if row["prompt"] or not room.fault({"prompt": clean(row["text"])[: _cut(row)], "text": ""}):
        return row
    return {**row, "text": clean(row["text"])[: room.limit // 6].rsplit(None, 1)[0]}  # a letter is four tokens at most


def _length(row: Row) -> int:
    return len(row["text"]) + len(row["prompt"] or "")


def _cut(row: Row) -> int:
    """Where a text without prompt is cut in two: before the middle word; 0 where it has fewer than 8 words."""
    words = list(re.finditer(r"\S+", clean(row["text"])))
    return words[len(words) // 2 - 1].end() if len(words) >= 8 else 0


def _by_source(rows: Sequence[Row], bits: Bits) -> Mapping[str, Tally]:
    sources = sorted({source_of(row) for row in rows})
    return {source: bits_tally([row for row in rows if source_of(row) == source], bits) for source in sources}


ANSWERING = Answering("text", ("text",), request_for, reference_for, _length)
