"""Batched Whisper inference with per-clip adapters: a pass of the encoder for new clips, one of the decoder for all.

The frames of many clips are one row for the encoder, the tokens of many transcripts one row for the decoder, each with
the adapter of its own clip.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional

from kauli.models.engine.detokenize import TokenBytes
from kauli.models.engine.engine import Engine
from kauli.models.engine.lora_batch import LoraBatch
from kauli.models.engine.ticket import Ticket
from kauli.models.requests import Progress, Word
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
    attention_weights,
    outside_pauses,
    token_frames,
    token_pieces,
    words_of,
)

ENCODED_FRAMES = 3000
"""Frames that one pass of the encoder takes at most, unless a single clip has more."""


@dataclass
class ClipState:
    """A clip and what the encoder made of it."""

    mel: Tensor | None
    language: str | None
    """None: the decoder detects it."""
    seconds: float
    """The clip's own, without padding."""
    pauses: Sequence[tuple[float, float]] | None = None
    """Those in the clip, in seconds, if the times of its words are requested."""
    layers: Memory | None = None
    no_speech_prob: float | None = None

    @property
    def ready(self) -> bool:
        """Whether the encoder has processed it."""
        return self.layers is not None


class WhisperRunner:
    """One model: the base with all adapters, or a fully fine-tuned one. Belongs to one thread."""

    def __init__(
        self,
        model: Any,
        token_bytes: TokenBytes,
        suppressed: Sequence[int],
        slots: int,
        start: int,
        languages: Mapping[str, int],
        no_speech: int | None,
    ) -> None:
        """`suppressed` are tokens that are never generated; `languages` the tokens that may follow `start`.

        `no_speech` is the one that follows it where nothing is spoken, None for a model without.

        The `memory` of what is submitted to the `engine` is the clip's `ClipState`.
        """
        self.model = model
        self.encoding = LoraBatch(model, slots, encoder_side)
        self.decoding = LoraBatch(model, slots, lambda name: not encoder_side(name))
        self.batches = (self.encoding, self.decoding)
        self._start, self._languages, self._no_speech, self._token_bytes = start, languages, no_speech, token_bytes
        self._heads = alignment_heads(model)
        self._device = next(model.parameters()).device
        self.engine = Engine(
            SlotDecoder(model, slots, suppressed).to(self._device),
            token_bytes,
            frozenset({int(model.config.eos_token_id)}),
            self.decoding,
            slots=slots,
            context=int(model.config.max_target_positions),
        )

    @torch.inference_mode()
    def step(self) -> list[tuple[Ticket, Progress]]:
        """One pass: the encoder for new clips, then the decoder for all; finished transcripts get their words."""
        parts: list[list[Ticket]] = []
        room = 0
        for ticket in self.engine.coming():
            clip = ticket.generation.memory
            if clip.layers is not None:
                continue
            count = frame_count(clip.mel)
            if not parts or count > room:
                parts.append([])
                room = max(ENCODED_FRAMES, count)
            parts[-1].append(ticket)
            room -= count
        for part in parts:
            self._encode(part)
        return [(ticket, self._described(ticket, progress)) for ticket, progress in self.engine.step()]

    def _described(self, ticket: Ticket, progress: Progress) -> Progress:
        """The progress with the clip's language, and once it is finished with its words if they are requested."""
        clip = ticket.generation.memory
        timed = clip.pauses is not None and progress.finish in ("stop", "length")
        words = self._words(ticket) if timed else ()
        return replace(progress, language=clip.language, words=words, no_speech_prob=clip.no_speech_prob)

    def frames(self, mels: Sequence[Tensor]) -> list[Tensor]:
        """The bare encoder's frames (F, W) of each spectrogram."""
        counts = [frame_count(mel) for mel in mels]
        with torch.inference_mode(), self.encoding.apply([(None, sum(counts))]):
            packed = encode(self.model.get_encoder(), [mel.to(self._device) for mel in mels])
        return list(torch.split(packed[0], counts))

    def _encode(self, tickets: Sequence[Ticket]) -> None:
        clips = [ticket.generation.memory for ticket in tickets]
        mels = [clip.mel.to(self._device) for clip in clips]
        counts = [frame_count(mel) for mel in mels]
        keys = [ticket.generation.adapter for ticket in tickets]
        with self.encoding.apply(list(zip(keys, counts, strict=True))):
            frames = encode(self.model.get_encoder(), mels)
            layers = memories(self.model.get_decoder(), frames, counts)
        for clip, memory in zip(clips, layers, strict=True):
            clip.mel, clip.layers = None, memory
        names, places = list(self._languages), torch.tensor(list(self._languages.values()), device=self._device)
        # Training needs neither, and a short clip costs 3 % more by them
        asking = [
            one for one in tickets if one.generation.logprobs is not None or one.generation.memory.language is None
        ]
        for ticket, row in zip(asking, self._first_logits(asking) if asking else (), strict=True):
            clip = ticket.generation.memory
            if self._no_speech is not None:
                clip.no_speech_prob = float(row.softmax(-1)[self._no_speech])
            if clip.language is None and names:  # section 2.3 of the paper
                clip.language = names[int(row[places].argmax())]
                ticket.tokens[ticket.tokens.index(LANGUAGE)] = self._languages[clip.language]

    def _first_logits(self, tickets: Sequence[Ticket]) -> Tensor:
        """(N, vocabulary) float32 of the token after the start token: a language, or that nothing is spoken."""
        clips = [ticket.generation.memory.layers for ticket in tickets]
        decoder = self.model.get_decoder()
        embedded = decoder.embed_tokens(torch.tensor([[self._start] * len(clips)], device=self._device))

        def look(layer: int, query: Tensor) -> Tensor:
            found = []
            for place, memory in enumerate(clips):
                q = query[:, place : place + 1].transpose(1, 2)
                keys, values = (one[None].transpose(1, 2) for one in memory[layer])
                found.append(functional.scaled_dot_product_attention(q, keys, values))
            return torch.cat(found, dim=2).transpose(1, 2)

        first = torch.zeros(len(clips), dtype=torch.long, device=self._device)
        with self.decoding.apply([(ticket.generation.adapter, 1) for ticket in tickets]):
            hidden = decode(decoder, embedded, first, lambda layer, query, key, value: value, look)
            logits: Tensor = self.model.proj_out(hidden[0])
        return logits.float()

    def _words(self, ticket: Ticket) -> tuple[Word, ...]:
        """The words of a finished transcript, timed by the decoder's attention in one pass over the transcript."""
        clip: ClipState = ticket.generation.memory
        answer = [token for token in ticket.answer if self._token_bytes(token)]
        if not answer or clip.layers is None:
            return ()
        decoder = self.model.get_decoder()
        tokens = [*ticket.tokens, *answer]
        embedded = decoder.embed_tokens(torch.tensor([tokens], device=self._device))
        for at, part in ticket.embeddings:
            embedded[0, at : at + len(part)] = part.to(embedded)
        frames = min(len(clip.layers[0][0]), math.ceil(clip.seconds * FRAMES_PER_SECOND))
        with self.decoding.apply([(ticket.generation.adapter, len(tokens))]):
            # A token begins where the one before it, which predicts it, begins to attend to it
            weights = attention_weights(
                decoder, embedded, clip.layers, self._heads, frames, first=len(ticket.tokens) - 1
            )
        times = [min(frame / FRAMES_PER_SECOND, clip.seconds) for frame in token_frames(weights)]
        words = words_of(token_pieces(answer, times, self._token_bytes))
        return outside_pauses(words, clip.pauses or ())
