"""Batched CTC inference with per-clip adapters: passes, decoding and scoring."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import groupby
from typing import Any

from torch import Tensor
from torch.nn import functional

from kauli.models.adapters.kinds.attention_adapter import ADAPTER_LAYER, adapter_layers
from kauli.models.engine.lora_batch import LoraBatch
from kauli.models.media.decode import RATE
from kauli.models.requests import Progress, TokenLogprob, TranscriptionRequest, Word
from kauli.models.speech.ctc_adapter import CtcHead
from kauli.models.speech.ctc_model import RowAdapters, best_path, bits, encode, frame_count
from kauli.models.speech.vocabulary import Vocabulary, normalised
from kauli.models.speech.word_times import words_of

PASS_FRAMES = 3000
"""Frames that one pass takes at most, padding included, unless a single clip has more."""
SPELLED = math.log2(0x110000)
"""Bits of a character that the model cannot write: one of all that Unicode has."""


class CtcRunner:
    """One model: the base with all adapters, or a fully fine-tuned one."""

    def __init__(self, model: Any, slots: int) -> None:
        """`slots` is the number of LoRAs that one pass can mix."""
        self.model = model
        self.batches = (LoraBatch(model, slots, _adaptable),)
        self._places = []
        for layer in adapter_layers(model):
            layer.adapter_layer = RowAdapters()
            self._places.append(layer.adapter_layer)

    def logits(self, waves: Sequence[Tensor], heads: Sequence[CtcHead]) -> list[Tensor]:
        """The logits (F_i, V_i) float32 of each wave (n_i,) by its head, over the wave's own frames."""
        first = {id(head): place for place, head in reversed(list(enumerate(heads)))}
        order = sorted(range(len(waves)), key=lambda index: first[id(heads[index])])
        inputs = [waves[index].to(self.model.device) for index in order]
        most = max(frame_count(self.model.config, len(wave)) for wave in inputs)
        runs: list[tuple[int, int, CtcHead]] = []
        for _, group in groupby(range(len(order)), key=lambda at: first[id(heads[order[at]])]):
            rows = list(group)
            runs.append((rows[0], rows[-1] + 1, heads[order[rows[0]]]))
        for layer, place in enumerate(self._places):
            place.runs = [(start, end, head.attention[layer]) for start, end, head in runs]
        with self.batches[0].apply([(head.lora, (end - start) * most) for start, end, head in runs]):
            hidden = encode(self.model, inputs)
        out = [hidden] * len(order)
        for start, end, head in runs:
            found = functional.linear(hidden[start:end], head.weight, head.bias)
            for index, own in zip(order[start:end], own_frames(self.model, found, inputs[start:end]), strict=True):
                out[index] = own
        return out


def _adaptable(name: str) -> bool:
    return name.startswith("wav2vec2.") and ADAPTER_LAYER not in name


def own_frames(model: Any, logits: Tensor, waves: Sequence[Tensor]) -> list[Tensor]:
    """From logits (N, T, V) each row's own frames (F_i, V), float32."""
    counts = [frame_count(model.config, len(wave)) for wave in waves]
    return [row[:count].float() for row, count in zip(logits, counts, strict=True)]


def cost(logits: Tensor, text: str, letters: Vocabulary) -> tuple[float, int]:
    """From logits (F, V): the bits that a normalised transcript costs, and its UTF-8 bytes.

    A character that the vocabulary lacks costs `SPELLED` bits, and so does each one of a transcript that has no path.
    """
    target = normalised(text)
    places, unknown = letters.encode(text)
    found = bits(logits, places, letters.blank) + SPELLED * unknown
    return found if math.isfinite(found) else SPELLED * len(target), len(target.encode())


@dataclass(eq=False)
class ClipTicket:
    """A waiting clip; its holder may cancel it."""

    request: TranscriptionRequest
    language: str | None
    wave: Tensor
    runner: CtcRunner
    head: CtcHead
    frames: int
    cancelled: bool = False


def next_part(waiting: Sequence[ClipTicket], slots: int) -> list[ClipTicket]:
    """The clips of the next pass: the first, and later ones that have the same runner and fit beside it."""
    part: list[ClipTicket] = []
    longest = 0
    for ticket in waiting:
        if part and ticket.runner is not part[0].runner:
            continue
        longest = max(longest, ticket.frames)
        if part and (len(part) == slots or longest * (len(part) + 1) > PASS_FRAMES):
            break
        part.append(ticket)
    return part


def answer(ticket: ClipTicket, logits: Tensor) -> Progress:
    """The whole transcript of a clip from its logits (F, V); `failed` where they are not finite."""
    if not logits.isfinite().all():
        return Progress("", 0, "failed")
    request, letters = ticket.request, ticket.head.letters
    path = best_path(logits, letters.blank)
    cut = path[: request.max_tokens]
    logprobs: tuple[TokenLogprob, ...] = ()
    if request.logprobs is not None:
        logprobs = tuple(TokenLogprob(place, letters.written(place).encode(), value) for place, value in cut)
    text = letters.decode(place for place, _ in cut)
    words: tuple[Word, ...] = ()
    if request.words:
        seconds = len(request.samples) / RATE
        # A letter is likeliest in some frame of its sound, which reaches further on both sides
        stride = math.prod(ticket.runner.model.config.conv_stride) / RATE
        frames = letter_frames(logits, letters.blank)
        words = words_of(
            [
                Word(letters.written(place), min(first * stride, seconds), min(end * stride, seconds))
                for (place, _), (first, end) in zip(cut, frames, strict=False)
            ]
        )
    finish = "stop" if len(cut) == len(path) else "length"
    return Progress(text, len(cut), finish, logprobs, words=words, language=ticket.language)


def letter_frames(logits: Tensor, blank: int) -> list[tuple[int, int]]:
    """The first frame of each letter on the best path through logits (F, V), and the one after its last."""
    places = logits.argmax(-1).tolist()
    runs = [list(run) for _, run in groupby(range(len(places)), key=places.__getitem__)]
    return [(run[0], run[-1] + 1) for run in runs if places[run[0]] != blank]
