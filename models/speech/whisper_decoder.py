"""A Whisper model with its adapters at work: clips pass the encoder when their turn comes, tokens the engine's decoder.

What the batch mixes is the adapters' choice alone: frames of many clips are one row for the encoder, tokens of many
transcripts one row for the decoder, each with its own clip's adapter.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional

from kauli.models.engine.detokenize import TokenBytes
from kauli.models.engine.engine import Engine, Generation, Progress, Ticket
from kauli.models.engine.lora_batch import LoraBatch
from kauli.models.requests import Word
from kauli.models.speech.whisper_model import (
    FRAMES_PER_SECOND,
    LANGUAGE,
    Memory,
    SlotDecoder,
    decode,
    encode,
    encoder_side,
    frame_count,
    memories,
)
from kauli.models.speech.word_times import (
    alignment_heads,
    look_weights,
    outside_pauses,
    token_frames,
    token_pieces,
    words_of,
)

ENCODED_FRAMES = 3000
"""Frames that one pass of the encoder takes at most, unless a single clip has more."""


@dataclass
class ClipState:
    """A clip on its way through the encoder."""

    mel: Tensor | None
    language: str | None
    """None: the decoder is asked for it."""
    seconds: float
    """The clip's own, without what fills the window."""
    pauses: Sequence[tuple[float, float]] | None = None
    """Those in the clip, in seconds, if the times of its words are asked for."""
    layers: Memory | None = None

    @property
    def ready(self) -> bool:
        """Whether it was through the encoder."""
        return self.layers is not None


class WhisperRunner:
    """One model: the base with all adapters, or a base whose every weight was trained. Belongs to one thread."""

    def __init__(
        self,
        model: Any,
        token_bytes: TokenBytes,
        silent: Sequence[int],
        slots: int,
        start: int,
        languages: Mapping[str, int],
    ) -> None:
        """`silent` are tokens that are never generated; `languages` the tokens that may stand behind `start`."""
        self.model = model
        self.encoding = LoraBatch(model, slots, encoder_side)
        self.decoding = LoraBatch(model, slots, lambda name: not encoder_side(name))
        self._start, self._languages, self._token_bytes = start, languages, token_bytes
        self._heads = alignment_heads(model)
        self._device = next(model.parameters()).device
        self._engine = Engine(
            SlotDecoder(model, slots, silent).to(self._device),
            token_bytes,
            frozenset({int(model.config.eos_token_id)}),
            self.decoding,
            slots=slots,
            context=int(model.config.max_target_positions),
        )

    @property
    def busy(self) -> bool:
        """Whether `step` has something to do."""
        return self._engine.busy

    def submit(self, generation: Generation) -> Ticket:
        """Queue a transcript; its `memory` is the clip's `ClipState`."""
        return self._engine.submit(generation)

    @torch.inference_mode()
    def step(self) -> list[tuple[Ticket, Progress]]:
        """One pass: the encoder for clips that come in, then the decoder for all; the words of what is finished."""
        parts: list[list[Ticket]] = []
        room = 0
        for ticket in self._engine.coming():
            hearing = ticket.generation.memory
            if hearing.layers is not None:
                continue
            count = frame_count(hearing.mel)
            if not parts or count > room:
                parts.append([])
                room = max(ENCODED_FRAMES, count)
            parts[-1].append(ticket)
            room -= count
        for part in parts:
            self._hear(part)
        return [
            (ticket, replace(progress, words=self._words(ticket)))
            if ticket.generation.memory.pauses is not None and progress.finish in ("stop", "length")
            else (ticket, progress)
            for ticket, progress in self._engine.step()
        ]

    def frames(self, mels: Sequence[Tensor]) -> list[Tensor]:
        """The bare encoder's frames (F, W) of each spectrogram."""
        counts = [frame_count(mel) for mel in mels]
        with torch.inference_mode(), self.encoding.apply([(None, sum(counts))]):
            packed = encode(self.model.get_encoder(), [mel.to(self._device) for mel in mels])
        return list(torch.split(packed[0], counts))

    def _hear(self, tickets: Sequence[Ticket]) -> None:
        hearings = [ticket.generation.memory for ticket in tickets]
        mels = [hearing.mel.to(self._device) for hearing in hearings]
        counts = [frame_count(mel) for mel in mels]
        keys = [ticket.generation.adapter for ticket in tickets]
        with self.encoding.apply(list(zip(keys, counts, strict=True))):
            frames = encode(self.model.get_encoder(), mels)
            layers = memories(self.model.get_decoder(), frames, counts)
        for ticket, hearing, memory in zip(tickets, hearings, layers, strict=True):
            hearing.mel, hearing.layers = None, memory
            if hearing.language is None and self._languages:
                hearing.language = self._heard(memory, ticket.generation.adapter)
                ticket.tokens[ticket.tokens.index(LANGUAGE)] = self._languages[hearing.language]

    def _heard(self, memory: Memory, adapter: str | None) -> str:
        """The language that the decoder names after its start token (section 2.3 of the paper)."""
        decoder = self.model.get_decoder()
        embedded = decoder.embed_tokens(torch.tensor([[self._start]], device=self._device))

        def look(layer: int, query: Tensor) -> Tensor:
            keys, values = (one[None].transpose(1, 2) for one in memory[layer])
            return functional.scaled_dot_product_attention(query.transpose(1, 2), keys, values).transpose(1, 2)

        first = torch.zeros(1, dtype=torch.long, device=self._device)
        with self.decoding.apply([(adapter, 1)]):
            hidden = decode(decoder, embedded, first, lambda layer, query, key, value: value, look)
            logits = self.model.proj_out(hidden[0, 0])
        names = list(self._languages)
        return names[int(logits[torch.tensor(list(self._languages.values()), device=self._device)].argmax())]

    def _words(self, ticket: Ticket) -> tuple[Word, ...]:
        """The words of a finished transcript, from where the decoder looks when it reads it at once."""
        hearing: ClipState = ticket.generation.memory
        answer = [token for token in ticket.answer if self._token_bytes(token)]
        if not answer or hearing.layers is None:
            return ()
        decoder = self.model.get_decoder()
        tokens = [*ticket.tokens, *answer]
        embedded = decoder.embed_tokens(torch.tensor([tokens], device=self._device))
        for at, part in ticket.embeddings:
            embedded[0, at : at + len(part)] = part.to(embedded)
        frames = min(len(hearing.layers[0][0]), math.ceil(hearing.seconds * FRAMES_PER_SECOND))
        with self.decoding.apply([(ticket.generation.adapter, len(tokens))]):
            # A token begins where the one before it, which predicts it, begins to look at it
            weights = look_weights(decoder, embedded, hearing.layers, self._heads, frames, first=len(ticket.tokens) - 1)
        times = [min(frame / FRAMES_PER_SECOND, hearing.seconds) for frame in token_frames(weights)]
        words = words_of(token_pieces(answer, times, self._token_bytes))
        return outside_pauses(words, hearing.pauses or ())
