"""One pass of a CTC model over clips that wait, each with its own adapter; what comes of it, and what it costs."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import groupby
from typing import Any

from torch import Tensor
from torch.nn import functional

from kauli.models.engine.engine import Progress
from kauli.models.engine.lora_batch import LoraBatch
from kauli.models.media.decode import RATE
from kauli.models.requests import TokenLogprob, Word
from kauli.models.speech.ctc_adapter import CtcHead
from kauli.models.speech.ctc_model import (
    ADAPTER_LAYER,
    RowAdapters,
    adapter_layers,
    best_path,
    bits,
    encode,
    frame_count,
)
from kauli.models.speech.vocabulary import Vocabulary, spoken
from kauli.models.speech.word_times import words_of

PASS_FRAMES = 3000
"""Frames that one pass takes at most, padding included, unless a single clip has more."""
SPELLED = math.log2(0x110000)
"""Bits of a character that is named, since the model can't write it: any of Unicode's."""


class CtcRunner:
    """A model with what mixes adapters in it: the base, or a base whose every weight was trained."""

    def __init__(self, model: Any, slots: int) -> None:
        """`slots` is how many LoRAs one pass can mix."""
        self.model = model
        self.adapters = LoraBatch(model, slots, lambda name: name.startswith("wav2vec2.") and ADAPTER_LAYER not in name)
        self._places = []
        for layer in adapter_layers(model):
            layer.adapter_layer = RowAdapters()
            self._places.append(layer.adapter_layer)

    def logits(self, waves: Sequence[Tensor], speakers: Sequence[CtcHead]) -> list[Tensor]:
        """The logits (F_i, V_i) float32 of each wave (n_i,) by its speaker, over the wave's own frames."""
        first = {id(speaker): place for place, speaker in reversed(list(enumerate(speakers)))}
        order = sorted(range(len(waves)), key=lambda index: first[id(speakers[index])])
        sounds = [waves[index].to(self.model.device) for index in order]
        most = max(frame_count(self.model.config, len(sound)) for sound in sounds)
        runs: list[tuple[int, int, CtcHead]] = []
        for _, group in groupby(range(len(order)), key=lambda at: first[id(speakers[order[at]])]):
            rows = list(group)
            runs.append((rows[0], rows[-1] + 1, speakers[order[rows[0]]]))
        for layer, place in enumerate(self._places):
            place.runs = [(start, end, speaker.attention[layer]) for start, end, speaker in runs]
        with self.adapters.apply([(speaker.lora, (end - start) * most) for start, end, speaker in runs]):
            hidden = encode(self.model, sounds)
        out = [hidden] * len(order)
        for start, end, speaker in runs:
            found = functional.linear(hidden[start:end], speaker.weight, speaker.bias)
            for index, own in zip(order[start:end], own_frames(self.model, found, sounds[start:end]), strict=True):
                out[index] = own
        return out


def own_frames(model: Any, logits: Tensor, waves: Sequence[Tensor]) -> list[Tensor]:
    """Of logits (N, T, V) each row's own frames (F_i, V), float32."""
    counts = [frame_count(model.config, len(wave)) for wave in waves]
    return [row[:count].float() for row, count in zip(logits, counts, strict=True)]


def cost(logits: Tensor, text: str, letters: Vocabulary) -> tuple[float, int]:
    """Of logits (F, V): the bits that a transcript costs as it is said (`spoken`), and its UTF-8 bytes.

    A character that the vocabulary lacks costs `SPELLED` bits, and so does each one of a transcript that has no path.
    """
    said = spoken(text)
    places, unknown = letters.encode(text)
    found = bits(logits, places, letters.blank) + SPELLED * unknown
    return found if math.isfinite(found) else SPELLED * len(said), len(said.encode())


@dataclass(frozen=True)
class ClipRequest:
    """What was asked of a clip."""

    wave: Tensor
    adapter: str | None
    language: str | None
    max_tokens: int | None
    logprobs: int | None
    seconds: float
    """The clip's."""
    words: bool

    @property
    def memory(self) -> "ClipRequest":
        """Itself: the service looks here for the language, as in what the engine generates."""
        return self


@dataclass(eq=False)
class ClipTicket:
    """A clip that waits; whoever holds it may cancel it."""

    generation: ClipRequest
    voice: CtcRunner
    speaker: CtcHead
    frames: int
    cancelled: bool = False


def next_part(waiting: Sequence[ClipTicket], slots: int) -> list[ClipTicket]:
    """What the next pass takes: the first clip, and those behind it that have the same voice and fit beside it."""
    part: list[ClipTicket] = []
    longest = 0
    for ticket in waiting:
        if part and ticket.voice is not part[0].voice:
            continue
        longest = max(longest, ticket.frames)
        if part and (len(part) == slots or longest * (len(part) + 1) > PASS_FRAMES):
            break
        part.append(ticket)
    return part


def answer(ticket: ClipTicket, logits: Tensor) -> Progress:
    """The whole transcript of a clip, of its logits (F, V); `failed` where they are not finite."""
    if not logits.isfinite().all():
        return Progress("", 0, "failed")
    asked, letters = ticket.generation, ticket.speaker.letters
    path = best_path(logits, letters.blank)
    cut = path[: asked.max_tokens]
    logprobs: tuple[TokenLogprob, ...] = ()
    if asked.logprobs is not None:
        logprobs = tuple(TokenLogprob(place, letters.written(place).encode(), value) for place, value in cut)
    text = letters.decode(place for place, _ in cut)
    words: tuple[Word, ...] = ()
    if asked.words:
        # A letter's frame is where it is likeliest; what it is heard in lies around it
        stride = math.prod(ticket.voice.model.config.conv_stride) / RATE
        frames = letter_frames(logits, letters.blank)
        words = words_of(
            [
                Word(letters.written(place), min(first * stride, asked.seconds), min(end * stride, asked.seconds))
                for (place, _), (first, end) in zip(cut, frames, strict=False)
            ]
        )
    return Progress(text, len(cut), "stop" if len(cut) == len(path) else "length", logprobs, words)


def letter_frames(logits: Tensor, blank: int) -> list[tuple[int, int]]:
    """Of each letter on the best path through logits (F, V) its first frame, and the one behind its last."""
    places = logits.argmax(-1).tolist()
    runs = [list(run) for _, run in groupby(range(len(places)), key=places.__getitem__)]
    return [(run[0], run[-1] + 1) for run in runs if places[run[0]] != blank]
