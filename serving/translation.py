"""Translations with a memory: what a prompt shows, what is checked, how a text and a whole document are marked.

The HTTP side and the command use it alike. A text that the memory has is not generated anew. Every other draft is
checked: its placeholders, the glossary's terms, its length. One that fails is asked for once more, and marked red with
the reasons where it fails again.
"""

import asyncio
import json
import re
from collections.abc import Callable, Mapping, Sequence
from contextlib import aclosing
from dataclasses import dataclass, replace
from typing import Any, Literal, Self, get_args

from kauli.models.adapters.card import Prompting
from kauli.models.adapters.certificate import COLOURS, Certificate, Estimate, figures_of
from kauli.models.documents.document import Document, Segment
from kauli.models.documents.placeholders import lost, placeholders, without
from kauli.models.requests import TextRequest
from kauli.models.text.memory_terms import occurs
from kauli.models.text.translation import STOP, Example, fitting, likelier, translation_prompt
from kauli.serving.backends import Backends
from kauli.serving.events import Failed, Piece, Refused
from kauli.serving.routing import Route

Mark = Literal["exact", "fuzzy", "drafted", "red"]
MARKS: tuple[Mark, ...] = get_args(Mark)
FUZZY = 75.0
"""From this score on, a pair of the memory is called a fuzzy match, as translation memories do."""
FROM_MEMORY = "the memory's translation of '{source}', which the adapter finds likelier than its own"
_AT_ONCE = 16  # texts of a document that are under way
_LETTER = re.compile(r"[^\W\d_]")
_SPACES = re.compile(r"^(\s*)(.*?)(\s*)$", re.DOTALL)
_RETRY = {"temperature": 0.7, "seed": 1}


@dataclass(frozen=True)
class Draft:
    """A translation."""

    text: str
    mark: Mark
    """exact: the memory's own; fuzzy: drafted after a similar pair; drafted: without one; red: look at it."""
    reasons: tuple[str, ...] = ()
    """Why it is red, or where it is from."""
    score: float | None = None
    """The fuzzy match score, 0 to 100, of the most similar pair in the memory; None: there is none."""
    examples: int = 0
    """The pairs that the prompt showed."""
    certificate: Estimate | None = None
    """How good it is expected to be; None: the memory's own, or by an adapter without a certificate."""
    similar: Example | None = None
    """The pair of the memory that `score` is of."""


@dataclass(frozen=True)
class Judgement:
    """What is known of a document's drafts as a whole."""

    metric: str
    expected: float
    """The mean."""
    segments: int
    """Drafts with a certificate that are no headings."""
    colours: dict[str, int]
    """How many of them have each."""
    doubt: str | None
    """Why all of them are to be doubted, as a sentence."""


@dataclass(frozen=True)
class _Answer:
    text: str
    finish: str
    """Why it ended."""
    logprobs: list[float]


class Translator:
    """Translates from one language into another with an adapter (or a bare base) and some memories of a tenant."""

    def __init__(
        self, backends: Backends, route: Route, source: str, target: str, prompting: Prompting | None = None,
        memories: Sequence[str] = (), tenant: str = "local", certificate: Certificate | None = None,
    ) -> None:  # fmt: skip
        self._certificate = certificate
        self._backends, self._route = backends, route
        self.source, self.target = source, target
        self._prompting, self._memories, self._tenant = prompting or Prompting(), tuple(memories), tenant

    @classmethod
    async def of(
        cls, backends: Backends, model: str, source: str, target: str, memories: Sequence[str] = (),
        tenant: str = "local",
    ) -> Self:  # fmt: skip
        """The translator of a model, which is a task or an adapter. Raises what `Catalogue.route_pair` raises."""
        route, card = await asyncio.to_thread(backends.catalogue.route_pair, model, source, target)
        prompting = card.translation.prompting if card.translation else None
        return cls(
            backends, route, source, target, prompting, memories, tenant, card.certificates.get(route.language or "")
        )

    @property
    def route(self) -> Route:
        """Who answers."""
        return self._route

    async def state(self) -> str:
        """What decides its drafts beside the text: the adapter, the languages and what the memories hold now.

        Raises Refused.
        """
        found = await self._backends.memory().states(self._tenant, self._memories) if self._memories else []
        if isinstance(found, Failed):
            raise Refused(found)
        return json.dumps([self._route.model, self.source, self.target, self._memories, found])

    async def draft(self, text: str, limit: int | None = None) -> Draft:
        """The translation of a text of at most a paragraph; `limit` is the most characters it may have.

        Raises Refused.
        """
        match = _SPACES.match(text)
        assert match is not None  # it matches any text
        before, inner, behind = match.groups()
        if not _LETTER.search(inner):
            return Draft(text, "exact")  # numbers and signs
        found = await self._translated(inner, limit)
        return replace(found, text=before + found.text + behind)

    async def document(
        self, document: Document, *, only_missing: bool = False, done: Mapping[str, Draft] | None = None,
        advance: Callable[[Segment, Draft], None] | None = None,
    ) -> dict[str, Draft]:  # fmt: skip
        """Translate the segments of a document and fill them in; id -> draft.

        Confirmed translations stay as they are, with `only_missing` drafts of others too. `done` are drafts of an
        earlier try, which are taken as they are. `advance` is told each draft as it comes. Raises Refused.
        """
        kept = {"confirmed", "draft"} if only_missing else {"confirmed"}
        open_ones = [one for one in document.segments if one.state not in kept and one.source.strip()]
        texts: dict[tuple[str, int | None], asyncio.Task[Draft]] = {}
        turn = asyncio.Semaphore(_AT_ONCE)
        drafts: dict[str, Draft] = {}

        async def ask(segment: Segment) -> Draft:
            async with turn:
                return await self.draft(segment.source, segment.limit)

        async def take(segment: Segment) -> None:
            if (found := (done or {}).get(segment.id)) is None:
                key = (segment.source, segment.limit)  # a text that comes again is translated once
                if key not in texts:
                    texts[key] = asyncio.ensure_future(ask(segment))
                found = await texts[key]
            document.check_text(found.text)  # of the first draft that cannot be written, not of the last
            if segment.ambiguous and found.mark == "exact":
                found = replace(found, mark="fuzzy", reasons=("the same text has several translations here",))
            drafts[segment.id] = found
            if advance:
                advance(segment, found)

        waiting = [asyncio.ensure_future(take(one)) for one in open_ones]
        try:
            await asyncio.gather(*waiting)
        finally:
            for pending in (*waiting, *texts.values()):
                pending.cancel()
        for one in open_ones:
            draft = drafts[one.id]
            if draft.text.strip():
                note = "; ".join([*draft.reasons, *([draft.certificate.words] if draft.certificate else [])])
                document.fill(one.id, draft.text, draft=draft.mark != "exact", note=note)
        return {one.id: drafts[one.id] for one in open_ones}

    def judged(self, document: Document, drafts: Mapping[str, Draft]) -> Judgement | None:
        """What is known of a document's drafts as a whole, without its headings; None without a certificate."""
        found = [drafts[one.id].certificate for one in document.segments if one.id in drafts and not one.heading]
        estimates = [one for one in found if one is not None]
        if self._certificate is None or not estimates:
            return None
        expected = sum(one.expected for one in estimates) / len(estimates)
        return Judgement(
            self._certificate.metric, round(expected, 4), len(estimates),
            {colour: sum(one.colour == colour for one in estimates) for colour in COLOURS},
            self._certificate.doubt(estimates),
        )  # fmt: skip

    async def _translated(self, text: str, limit: int | None) -> Draft:
        matches, terms = await self._remembered(text)
        score = max((one.score for one in matches), default=None)
        for one in matches:  # a person stands for it, with or without the glossary's words
            if one.score == 100 and not self._faults(text, one.target.strip(), "stop", (), limit):
                return Draft(one.target.strip(), "exact", (), 100.0, similar=pair_of(one))
        pairs = [pair_of(one) for one in matches]
        similar = pair_of(max(matches, key=lambda one: float(one.score))) if matches else None
        examples = await self._fitting(pairs)
        answer = await self._answer(text, examples, terms)
        faults = self._faults(text, answer.text, answer.finish, terms, limit)
        if faults:
            marks = [Example(one, one) for one in placeholders(text)]
            again = await self._answer(text, examples, [*terms, *marks], **(_RETRY if not marks else {}))
            if len(found := self._faults(text, again.text, again.finish, terms, limit)) < len(faults):
                answer, faults = again, found
        if (other := await self._likelier(text, answer, examples, terms, limit)) is not None:
            return Draft(
                other.target, "fuzzy", (FROM_MEMORY.format(source=other.source),), score, len(examples), None, similar
            )
        mark: Mark = "red" if faults else "fuzzy" if (score or 0) >= FUZZY else "drafted"
        known = None
        if self._certificate is not None:
            figures = figures_of(
                answer.text, answer.logprobs, self.target, source=text, similarity=score or 0.0,
                cut=answer.finish == "length",
            )  # fmt: skip
            known = self._certificate.assess(figures)
        return Draft(answer.text, mark, tuple(faults), score, len(examples), known, similar)

    async def _remembered(self, text: str) -> tuple[list[Any], list[Example]]:
        if not self._memories:
            return [], []
        worker = self._backends.memory()
        limit = max(1, self._prompting.examples) + 1  # the same text is no example
        found = await worker.search(self._tenant, self._memories, text, self.source, self.target, limit)
        if isinstance(found, Failed):
            raise Refused(found)
        matches, terms = found
        plain = without(text)
        return list(matches), [one for one in terms if occurs(one.source, plain)]

    async def _fitting(self, pairs: Sequence[Example]) -> list[Example]:
        """The examples that the prompt has room for; the worker, which has the tokenizer, counts where it is needed."""
        pairs = pairs[: self._prompting.examples]
        texts = [part for one in pairs for part in (one.source, one.target)]
        if sum(len(one.encode()) for one in texts) + 8 * len(pairs) <= self._prompting.tokens:
            return list(pairs)
        counted = await self._backends.of(self._route).count_tokens(texts)
        if isinstance(counted, Failed):
            raise Refused(counted)
        counts = dict(zip(texts, counted, strict=True))
        return fitting(pairs, self._prompting, counts.__getitem__)

    async def _likelier(
        self, text: str, answer: _Answer, examples: Sequence[Example], terms: Sequence[Example], limit: int | None
    ) -> Example | None:
        """The most similar pair, where its translation is sound and likelier than the answer; else None."""
        if not examples or not answer.text:
            return None
        other = examples[0]
        if other.target == answer.text or self._faults(text, other.target, "stop", terms, limit):
            return None
        prompt = translation_prompt(text, self.source, self.target, self._prompting, examples, terms)
        worker = self._backends.of(self._route)
        costs = await worker.costs(prompt, [answer.text, other.target], self._route.adapter)
        if isinstance(costs, Failed):
            raise Refused(costs)
        return other if likelier(costs) else None

    async def _answer(
        self, text: str, examples: Sequence[Example], terms: Sequence[Example], **options: Any
    ) -> _Answer:
        """A translation."""
        prompt = translation_prompt(text, self.source, self.target, self._prompting, examples, terms)
        stop = () if STOP[0] in text else STOP
        logprobs = None if self._certificate is None else 0
        request = TextRequest.of_prompt(prompt, stop=stop, logprobs=logprobs, **options)
        answer, finish, costs = "", "", list[float]()
        async with aclosing(self._backends.of(self._route).stream(request, self._route.adapter, True)) as events:
            async for event in events:
                if isinstance(event, Failed):
                    raise Refused(event)
                if isinstance(event, Piece):
                    answer += event.text
                    finish = event.finish or finish
                    costs += [one.logprob for one in event.logprobs]
        return _Answer(answer.strip(), finish, costs)

    def _faults(self, text: str, answer: str, finish: str, terms: Sequence[Example], limit: int | None) -> list[str]:
        """What is wrong with an answer, in words."""
        if not answer.strip():
            return ["no translation came"]
        faults = list(lost(text, answer))
        faults += [f"the term '{one.target}' for '{one.source}' is missing" for one in terms
                   if not occurs(one.target, answer)]  # fmt: skip
        if limit is not None and len(answer) > limit:
            faults.append(f"it has {len(answer)} characters, its place {limit}")
        if finish == "length":
            faults.append("it was cut off at the most tokens of an answer")
        return faults


def pair_of(match: Any) -> Example:
    """A match of a memory as a pair, without the spaces around its texts."""
    return Example(match.source.strip(), match.target.strip())


def count_marks(drafts: Mapping[str, Draft]) -> dict[str, int]:
    """Mark -> how many drafts have it, in the order of `MARKS`."""
    return {mark: sum(one.mark == mark for one in drafts.values()) for mark in MARKS}


def pairs_of(backends: Backends) -> set[tuple[str, str]]:
    """(source, target) of all that is translated here."""
    cards = (one.card for one in backends.catalogue.adapters())
    return {pair for card in cards if card.translation for pair in card.translation.pairs}


def languages_of(backends: Backends) -> list[str]:
    """All languages that are translated from or into."""
    return sorted({tag for pair in pairs_of(backends) for tag in pair})
