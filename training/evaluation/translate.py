"""Translations measured in both directions: adapter and base with the same examples in their prompts, and baselines.

Metrics out of the language, such as into English, have the prefix `reverse_`. The baselines are the translation of the
most similar pair of the training split (what a translation memory would offer), the text itself, and the adapter
without examples: an adapter that does not beat the first is of no use to somebody who has a memory. `own_answer` is
what the adapter wrote, before `likelier_of` chose between it and the most similar pair's translation. A prompt without
weights stands beside the base that is asked without examples, and beside the usual prompt with examples.
"""

from collections.abc import Sequence
from dataclasses import replace
from functools import partial
from typing import Any

from kauli.models.adapters.card import Prompting
from kauli.models.documents.placeholders import lost
from kauli.models.metrics import REVERSE
from kauli.models.requests import TextRequest
from kauli.models.tasks import TASKS
from kauli.models.text.translation import STOP, likelier
from kauli.training.evaluation.certify import Answered, answered
from kauli.training.evaluation.request import ADAPTER, EvalRequest
from kauli.training.evaluation.results import EvalResult
from kauli.training.evaluation.rows import choose, some_groups
from kauli.training.evaluation.scorers import Row, clean
from kauli.training.evaluation.systems import BASE, Answering, System, Systems
from kauli.training.features.left_out import LeftOut
from kauli.training.features.room import Room
from kauli.training.features.translations import Prompter, directed, pair_rows

MEMORY, COPY, NO_MEMORY, USUAL = "memory", "copy", "no_memory", "usual_prompt"
OWN_ANSWER = "own_answer"
PAIR_ROWS = "text with its translation (columns input, input_language, text)"
"""What a split must have, in errors."""
SCORED = 150
"""Rows of each direction that are scored where nobody asks for another number: a prompt with examples is long."""
MAX_TOKENS = 160
"""New tokens of an answer, where the adapter's own limit is not lower."""


def evaluate_translate(request: EvalRequest, *, weights: bool = True) -> EvalResult:
    """Evaluate an adapter beside its base on pairs; `request.limit` rows of each direction are translated.

    An adapter without `weights` is a prompt alone.

    Raises:
        UsageError: the split holds no pairs in these languages.
        KauliError: a damaged adapter, or one of another base.
    """
    found, left_out = translated_rows(request)
    prompter = _prompter(request)
    task = request.task("translate")
    systems = Systems(request, replace(ANSWERING, ask=partial(_ask, task)), left_out)
    measured, num_chosen = list[Row](), 0
    pairs, systems.notes = some_groups(found, request.scored or SCORED, request.split)
    for reverse in (False, True):
        rows = prompter.prompted([directed(row, reverse=reverse) for row in pairs])
        chosen = choose(rows, request.limit, by=("language", "source"))
        alone = prompter.prompted(rows, 0)
        bare = rows if weights else prompter.prompted(rows, 0, Prompting())
        compared = [System(ADAPTER, rows, ADAPTER), System(BASE, bare), System(NO_MEMORY, alone, ADAPTER)]
        if not weights and prompter.prompting != Prompting():
            compared.append(System(USUAL, prompter.prompted(rows, prompting=Prompting())))
        prefix = REVERSE if reverse else ""
        own: list[str] = []

        def settle(texts: dict[str, list[str]], chosen: Sequence[Row] = chosen, own: list[str] = own) -> Any:
            own += texts[ADAPTER]
            adapter = ADAPTER if weights else None
            return texts | {ADAPTER: likelier_of(task, chosen, texts[ADAPTER], adapter)}

        texts = systems.compare(task, compared, rows, chosen, prefix, settle)
        for name, key in ((MEMORY, "nearest"), (COPY, "input")):
            systems.add_texts(name, chosen, [row[key] for row in chosen], prefix)
        systems.add_texts(OWN_ANSWER, chosen, own, prefix)
        where = f" ({chosen[0]['from']} to {chosen[0]['to']})" if chosen else ""
        systems.show(chosen, texts, [row["input"] for row in chosen], where)
        measured += rows
        num_chosen += len(chosen)
    return systems.result(measured, num_chosen)


def likelier_of(task: Any, rows: Sequence[Row], texts: Sequence[str], adapter: str | None) -> list[str]:
    """The answers as a user gets them: where the adapter finds the most similar pair's translation likelier than its
    own answer, and that translation keeps the text's placeholders, it takes the answer's place.
    """
    asked = [
        at for at, (row, text) in enumerate(zip(rows, texts, strict=True))
        if text.strip() and row["nearest"] and clean(text) != clean(row["nearest"])
        and not lost(row["input"], row["nearest"])
    ]  # fmt: skip
    ours = task.bits([{**rows[at], "text": texts[at].strip()} for at in asked], adapter)
    theirs = task.bits([{**rows[at], "text": rows[at]["nearest"]} for at in asked], adapter)
    found = list(texts)
    for at, own, other in zip(asked, ours, theirs, strict=True):
        if likelier((own, other)):
            found[at] = rows[at]["nearest"]
    return found


def answered_translations(request: EvalRequest) -> list[Answered]:
    """About `request.limit` rows of each direction translated and scored for a certificate."""
    found, _ = translated_rows(request)
    prompter, task = _prompter(request), request.task("translate")
    rows = [
        row for reverse in (False, True)
        for row in prompter.prompted([directed(one, reverse=reverse) for one in choose(
            found, request.limit, by=("language", "source"))])
    ]  # fmt: skip

    def known(row: Row) -> dict[str, Any]:
        return {"source": row["input"], "similarity": row["similarity"]}

    ask = partial(_ask, task, logprobs=0)
    return answered(task, ADAPTER, TASKS["translate"].certified, rows, ask, lambda row: str(row["text"]), known)


def _ask(task: Any, row: Row, **options: Any) -> TextRequest:
    """As a user would, with the guards of the adapter's card: for all systems, so that they alone differ."""
    guarded: TextRequest = task.guarded(TextRequest.of_prompt(row["prompt"], stop=STOP, **options), ADAPTER)
    return replace(guarded, max_tokens=min(MAX_TOKENS, guarded.max_tokens or MAX_TOKENS))


def translated_rows(request: EvalRequest) -> tuple[list[Any], LeftOut]:
    """The pairs that are measured; UsageError where there is none whose prompt fits the context."""
    left_out = LeftOut(request.split, request.dataset.place)
    found = pair_rows(request.dataset, request.split, request.tags)
    rows = Room(request.base).fitting([{**row, "prompt": row["input"]} for row in found], left_out)
    if not rows:
        raise request.nothing(PAIR_ROWS, left_out)
    return rows, left_out


def _prompter(request: EvalRequest) -> Prompter:
    return Prompter(request.base, request.prompting or Prompting(), pair_rows(request.dataset, "train", request.tags))


ANSWERING = Answering("translate", ("text", "translation"))
