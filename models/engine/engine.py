"""Continuous batching over a causal language model: requests join and leave between two passes. No Ray in here.

A pass is one row of tokens: the next token of each slot that is answering, and pieces of prompts that are being read,
up to a number of tokens, so that a long prompt never holds up the answers of others for long. Every token is computed
with its own request's adapter (`kauli.models.engine.lora_batch`), over its own slot (`kauli.models.engine.kv_cache`).
Continuous batching is Orca's (Yu et al. 2022); reading prompts in pieces is Sarathi's (Agrawal et al. 2023,
arXiv 2308.16369).
"""

import math
from collections import deque
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import replace
from typing import Any

import numpy as np
import torch
from torch import Tensor

from kauli.models.engine.beams import CANDIDATES, Beam, Path, fused, repeats
from kauli.models.engine.detokenize import TextStream, TokenBytes
from kauli.models.engine.kv_cache import SlotCache, SlotPass, Span
from kauli.models.engine.lora_batch import LoraBatch, Segment
from kauli.models.engine.sampling import Draw, choose
from kauli.models.engine.ticket import Generation, Ticket, embeddings_in
from kauli.models.requests import BeamSearch, Progress, TokenLogprob

PROMPT_TOKENS = 256
"""Tokens of prompts that one pass reads at most."""
_SCORED_ROWS = 32  # of logits whose softmax is held at once


class Engine:
    """One model, its adapters and its slots. All methods belong to one thread, `Ticket.cancelled` to any.

    `lora` holds the adapters; None for a model without any. `ends` are the tokens that end an answer.
    """

    def __init__(
        self,
        model: Any,
        token_bytes: TokenBytes,
        ends: frozenset[int],
        lora: LoraBatch | None = None,
        *,
        slots: int = 16,
        context: int = 2048,
        prompt_tokens: int = PROMPT_TOKENS,
    ) -> None:
        self._model, self._token_bytes, self._ends, self._lora = model, token_bytes, ends, lora
        self._device = next(model.parameters()).device
        self.context = context
        self._prompt_tokens = prompt_tokens
        self._cache = SlotCache(slots, context, self._device)
        self._slots: list[Ticket | None] = [None] * slots
        self._waiting: deque[Ticket] = deque()
        self._order: list[Ticket] = []  # those in slots, by the time they came in

    @property
    def busy(self) -> bool:
        """Whether `step` has something to do."""
        return bool(self._waiting or self._order)

    def coming(self) -> list[Ticket]:
        """The requests that get a slot at the next step, those of one adapter side by side."""
        coming = [ticket for ticket in self._waiting if not ticket.cancelled][: self._slots.count(None)]
        return sorted(coming, key=lambda ticket: ticket.generation.adapter or "")

    def submit(self, generation: Generation) -> Ticket:
        """Queue a request. Raises ValueError for a prompt that is empty or fills the context, or an unknown adapter."""
        tokens: list[int] = []
        embeddings = []
        for part in generation.prompt:
            if isinstance(part, Tensor):
                embeddings.append((len(tokens), part))
                tokens += [0] * len(part)
            else:
                tokens += part
        if not 1 <= len(tokens) < self.context:
            raise ValueError(f"the prompt has {len(tokens)} tokens; the context holds {self.context}")
        adapter = generation.adapter
        if adapter is not None and (self._lora is None or adapter not in self._lora):
            raise ValueError(f"adapter {adapter!r} is not loaded")
        if generation.beam is not None and not 1 <= generation.beam.size <= len(self._slots):
            raise ValueError(f"a beam of {generation.beam.size}; the engine has {len(self._slots)} slots")
        known = [token for part in generation.prompt if not isinstance(part, Tensor) for token in part]
        ticket = Ticket(
            generation,
            tokens,
            embeddings,
            Draw(generation.sampling, self._ends, known, generation.index),
            TextStream(self._token_bytes, generation.stop),
            min(generation.max_tokens, self.context - len(tokens)),
        )
        repeated = tokens[len(tokens) - generation.echo :]
        unscored = repeated if generation.logprobs is None else repeated[:1]
        ticket.echoed = [TokenLogprob(token, self._token_bytes.written(token), math.nan) for token in unscored]
        self._waiting.append(ticket)
        return ticket

    @torch.inference_mode()
    def step(self) -> list[tuple[Ticket, Progress]]:
        """One pass: what it added to each answer. A cancelled request ends here, and its slot is free at once."""
        ended = self._drop_cancelled()
        self._admit()
        answering = [
            (ticket, Span(ticket.slot, ticket.done, ticket.done + 1)) for ticket in self._order if not ticket.reading
        ]
        reading = self._pieces()
        if not answering and not reading:
            return ended
        self._sort(answering, reading)
        self._cache.reserve(max(span.end for _, span in [*answering, *reading]))
        logits = self._echo(len(answering), reading, self._forward(answering, reading))
        for ticket, span in [*answering, *reading]:
            ticket.done = span.end
        complete = [ticket for ticket, _ in [*answering, *reading] if not ticket.reading]
        beams = [place for place, ticket in enumerate(complete) if ticket.beam is not None]
        if not beams:
            return ended + self._choose(complete, logits)
        single = [place for place, ticket in enumerate(complete) if ticket.beam is None]
        ended += self._choose([complete[place] for place in single], logits[single])
        return ended + self._search([complete[place] for place in beams], logits[beams])

    def _drop_cancelled(self) -> list[tuple[Ticket, Progress]]:
        ended = [ticket for ticket in [*self._waiting, *self._order] if ticket.cancelled]
        for ticket in ended:
            if ticket.slot < 0:
                self._waiting.remove(ticket)
            else:
                if ticket.reading:  # what it has read is not known to be finite
                    self._cache.erase(ticket.slot)
                self._release(ticket)
        return [(ticket, Progress("", 0, "cancelled")) for ticket in ended]

    def _admit(self) -> None:
        if not self._order:
            self._cache.shrink()
        while self._waiting and None in self._slots:
            asked = self._waiting[0].generation
            if asked.memory is not None and not asked.memory.ready:
                break  # a slot that became free after `coming` was asked: the next step takes it
            if asked.beam is not None and self._slots.count(None) < asked.beam.size:
                break
            ticket = self._waiting.popleft()
            if asked.beam is not None:
                ends = frozenset() if asked.sampling.ignore_eos else self._ends
                ticket.beam = Beam(asked.beam, ends, ticket.limit)
                ticket.beside = [replace(ticket, beside=[], answer=[]) for _ in range(asked.beam.size - 1)]
            self._order.append(ticket)
            for one in (ticket, *ticket.beside):
                one.slot = self._slots.index(None)
                self._slots[one.slot] = one
                if asked.memory is not None:
                    self._model.remember(one.slot, asked.memory)

    def _share(self, ticket: Ticket) -> bool:
        """Whether `ticket` must wait for a sibling that is reading the same prompt; copies what is read already."""
        mine = ticket.generation
        for other in self._order:
            if other is ticket:
                return False
            if other.generation.prompt is mine.prompt and other.generation.adapter == mine.adapter:
                if not other.reading:
                    # The last token is read anew, for its logits.
                    ticket.done = len(ticket.tokens) - 1
                    self._cache.copy(other.slot, ticket.slot, ticket.done)
                return other.reading
        return False

    def _pieces(self) -> list[tuple[Ticket, Span]]:
        """The pieces of prompts that are read in this pass, in the order of arrival."""
        room = self._prompt_tokens
        pieces = []
        for ticket in self._order:
            if ticket.reading and room > 0 and not (ticket.done == 0 and self._share(ticket)):
                end = min(len(ticket.tokens), ticket.done + room)
                pieces.append((ticket, Span(ticket.slot, ticket.done, end)))
                room -= end - ticket.done
        return pieces

    def _sort(self, *parts: list[tuple[Ticket, Span]]) -> None:
        """By the places of their adapters, those without one last: `lora_batch` is fastest in this order."""
        keys = {ticket.generation.adapter: None for part in parts for ticket, _ in part}
        places = self._lora.arrange([key for key in keys if key is not None]) if self._lora is not None else {}
        for part in parts:
            part.sort(key=lambda one: (places.get(one[0].generation.adapter or "", len(self._slots)), one[0].slot))

    def _forward(self, answering: list[tuple[Ticket, Span]], reading: list[tuple[Ticket, Span]]) -> Tensor:
        """Logits (rows, vocabulary) of each answering row, and of what each piece of a prompt keeps."""
        ids = [ticket.answer[-1] for ticket, _ in answering]
        kept = list(range(len(ids)))
        segments: list[Segment] = [(ticket.generation.adapter, 1) for ticket, _ in answering]
        kept_segments = list(segments)
        replaced = []
        for ticket, span in reading:
            replaced += [(len(ids) + at - span.start, part) for at, part in embeddings_in(ticket, span)]
            ids += ticket.tokens[span.start : span.end]
            segments.append((ticket.generation.adapter, span.end - span.start))
            if count := span.end - ticket.kept(span):
                kept += range(len(ids) - count, len(ids))
                kept_segments.append((ticket.generation.adapter, count))
        embedded = self._model.get_input_embeddings()(torch.tensor([ids], device=self._device))
        for at, part in replaced:
            embedded[0, at : at + len(part)] = part.to(embedded)
        slot_pass = SlotPass(
            self._cache, [span for _, span in answering], [span for _, span in reading], embedded.dtype
        )
        inputs = {
            "inputs_embeds": embedded,
            "position_ids": slot_pass.positions[None],
            # transformers passes a mask of four dimensions on unchanged: none of T x T is built.
            "attention_mask": embedded.new_ones(1, 1, 1, 1, dtype=torch.bool),
            "slot_pass": slot_pass,
            "use_cache": False,
            "logits_to_keep": torch.tensor(kept or [0], device=self._device),
        }
        adapters: AbstractContextManager[None] = nullcontext()
        if self._lora is not None:
            adapters = self._lora.apply(segments, len(answering) or len(ids), kept_segments or [(segments[0][0], 1)])
        with adapters:
            logits: Tensor = self._model(**inputs).logits[0]
        return logits.float()

    def _echo(self, answering: int, reading: list[tuple[Ticket, Span]], logits: Tensor) -> Tensor:
        """Score the prompts that want it by the logits of `_forward`; what is left are the rows that get a token."""
        if all(ticket.scored == len(ticket.tokens) for ticket, _ in reading):
            return logits
        ends, row = list(range(answering)), answering
        for ticket, span in reading:
            first = ticket.kept(span)
            if ticket.scored < len(ticket.tokens):
                following = ticket.tokens[first + 1 : span.end + 1]
                for at in range(0, len(following), _SCORED_ROWS):
                    tokens = following[at : at + _SCORED_ROWS]
                    found = torch.log_softmax(logits[row + at : row + at + len(tokens)], dim=-1)
                    top = ticket.generation.logprobs or 0
                    ticket.echoed += [
                        self._logprob(one, of, top, self._token_bytes.written)
                        for one, of in zip(tokens, found, strict=True)
                    ]
            row += span.end - first
            if span.end == len(ticket.tokens):
                ends.append(row - 1)
        return logits[ends]

    def _choose(self, rows: list[Ticket], logits: Tensor) -> list[tuple[Ticket, Progress]]:
        if not rows:
            return []
        sound = logits.sum(dim=-1).isfinite().tolist()  # one NaN or infinity makes the sum such
        logits = logits if all(sound) else logits.nan_to_num(0.0, 0.0, 0.0)
        wanting = [place for place, ticket in enumerate(rows) if ticket.generation.logprobs is not None]
        raw = torch.log_softmax(logits[wanting], dim=-1) if wanting else None
        chosen = choose(logits, [ticket.draw for ticket in rows])
        out = []
        for place, (ticket, token) in enumerate(zip(rows, chosen, strict=True)):
            if not sound[place]:
                self._cache.erase(ticket.slot)
                progress = Progress("", 0, "failed")
            else:
                row = raw[wanting.index(place)] if raw is not None and place in wanting else None
                progress = self._advance(ticket, token, row)
                if ticket.echoed:
                    progress, ticket.echoed = replace(progress, echo=tuple(ticket.echoed)), []
            if progress.finish:
                self._release(ticket)
            out.append((ticket, progress))
        return out

    def _search(self, rows: list[Ticket], logits: Tensor) -> list[tuple[Ticket, Progress]]:
        """Extend all beams by a token; those that ended."""
        sound = logits.sum(dim=-1).isfinite().tolist()
        found = torch.log_softmax(logits if all(sound) else logits.nan_to_num(0.0, 0.0, 0.0), dim=-1)
        banned = [
            (row, token)
            for row, one in enumerate(rows)
            for token in [
                *repeats(one.answer, one.generation.sampling.no_repeat),
                *(self._ends if one.generation.sampling.ignore_eos else ()),
            ]
        ]
        kept = found
        if banned:
            kept = found.clone()
            kept[[row for row, _ in banned], [token for _, token in banned]] = float("-inf")
        searches = [one.beam.search for one in rows if one.beam is not None]
        width = min(kept.shape[1], max(CANDIDATES, *(2 * search.size for search in searches)))
        values, tokens = (part.cpu().numpy() for part in kept.topk(width, dim=-1))
        values, tokens = _with_wanted(kept, values, tokens, searches, [one.answer for one in rows])
        scores = fused(searches, [one.answer for one in rows], tokens, values.astype("float64"))
        for end in self._ends:
            scores -= (tokens == end) * [[search.bonus] for search in searches]
        places = {one.slot: row for row, one in enumerate(rows)}
        out = []
        # The first ticket of a beam has the lowest of its slots, and is always among the rows
        for leader in {id(one.beam): one for one in sorted(rows, key=lambda one: -one.slot)}.values():
            beam, members = leader.beam, [leader, *leader.beside]
            assert beam is not None
            own = [places[members[place].slot] for place in beam.live]
            if not all(sound[row] for row in own):
                for one in members:
                    self._cache.erase(one.slot)
                progress = Progress("", 0, "failed")
            else:
                self._move(members, beam.advance(tokens[own], scores[own], values[own]))
                best = beam.best()
                if best is None:
                    continue
                leader.answer = list(best.tokens)
                stopped = bool(leader.answer) and leader.answer[-1] in beam.ends
                written = leader.answer[: len(leader.answer) - stopped]
                text = "".join(map(leader.stream.push, written)) + leader.stream.close()
                progress = Progress(
                    text, len(leader.answer), "stop" if stopped else "length", self._costs(leader, best)
                )
            self._release(leader)
            out.append((leader, progress))
        return out

    def _costs(self, ticket: Ticket, path: Path) -> tuple[TokenLogprob, ...]:
        if ticket.generation.logprobs is None:
            return ()
        pairs = zip(path.tokens, path.logprobs, strict=True)
        return tuple(TokenLogprob(token, self._token_bytes(token), value) for token, value in pairs)

    def _move(self, members: list[Ticket], moves: list[tuple[int, int]]) -> None:
        """Let the slots of a beam take over each other's contents."""
        beam, done = members[0].beam, members[0].done
        assert beam is not None
        for place, source in moves:
            one, path = members[place], beam.paths[place]
            assert path is not None
            if place != source:
                self._cache.copy(members[source].slot, one.slot, done)
            if one not in self._order:
                self._order.append(one)
            one.done, one.answer = done, list(path.tokens)

    def _advance(self, ticket: Ticket, token: int, logprobs: Tensor | None) -> Progress:
        """The progress of one row by one more token."""
        if not ticket.limit:  # only the prompt was asked for
            return Progress("", 0, "length")
        ticket.answer.append(token)
        found = () if logprobs is None else (self._logprob(token, logprobs, ticket.generation.logprobs or 0),)
        if token in self._ends and not ticket.generation.sampling.ignore_eos:
            return Progress(ticket.stream.close(), 1, "stop", found)
        text = ticket.stream.push(token)
        if ticket.stream.stopped:
            # `min_tokens` holds back end tokens; a stop string is the caller's own wish.
            return Progress(text, 1, "stop", found)
        if len(ticket.answer) >= ticket.limit:
            return Progress(text + ticket.stream.close(), 1, "length", found)
        return Progress(text, 1, None, found)

    def _logprob(
        self, token: int, logprobs: Tensor, top: int, bytes_of: Callable[[int], bytes] | None = None
    ) -> TokenLogprob:
        bytes_of = bytes_of or self._token_bytes

        def of(one: int, value: float) -> TokenLogprob:
            return TokenLogprob(one, bytes_of(one), value)

        values, tokens = logprobs.topk(top)
        likeliest = tuple(of(one, value) for one, value in zip(tokens.tolist(), values.tolist(), strict=True))
        return TokenLogprob(token, bytes_of(token), float(logprobs[token]), likeliest)

    def _release(self, ticket: Ticket) -> None:
        for one in (ticket, *ticket.beside):
            self._slots[one.slot] = None
            if one in self._order:
                self._order.remove(one)


def _with_wanted(
    found: Tensor, values: Any, tokens: Any, searches: Sequence[BeamSearch], answers: Sequence[Sequence[int]]
) -> tuple[Any, Any]:
    """The likeliest candidates (H, C) of each answer, and those of its hot words beside them."""
    more = [
        [] if search.bias is None else sorted({*search.bias.wanted(search.bias.history(answer))} - {*row.tolist()})
        for search, answer, row in zip(searches, answers, tokens, strict=True)
    ]
    if not (width := max(map(len, more))):
        return values, tokens
    # The others' rows are filled with an impossible token
    places = np.array([[*row, *[-1] * (width - len(row))] for row in more])
    extra = found.cpu().numpy()[np.arange(len(more))[:, None], places]
    extra[places < 0] = -np.inf
    return np.concatenate([values, extra], 1), np.concatenate([tokens, np.maximum(places, 0)], 1)
