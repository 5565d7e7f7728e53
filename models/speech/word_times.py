"""The times of a transcript's words: by the attention of Whisper's decoder, or by the frames of a CTC model's letters.

The decoder's tokens attend to the frames in which they are spoken. These weights become one path through tokens and
frames by dynamic time warping, as in openai-whisper's `timing.py` and in transformers' `_extract_token_timestamps`.

Shape letters: T tokens, N tokens to time, F frames, H heads, D head size, W width.
"""

import codecs
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
import regex
import torch
from torch import Tensor
from torch.nn import functional

from kauli.models.errors import KauliError
from kauli.models.languages import nfc
from kauli.models.requests import Word
from kauli.models.speech.chunking import word_spans
from kauli.models.speech.whisper_model import Memory, decode

_FILTER = 7  # frames that the weights are smoothed over, as both engines do
# A network of exchanges, several times as fast as sorting (opt_med7 of Devillard 1998, "Fast median search")
_MEDIAN_OF_7 = (
    (0, 5), (0, 3), (1, 6), (2, 4), (0, 1), (3, 5), (2, 6), (2, 3), (3, 6), (4, 5), (1, 4), (1, 3), (3, 4)
)  # fmt: skip
_LETTER = regex.compile(r"[\p{L}\p{M}\p{N}]")

Heads = Mapping[int, Sequence[int]]
"""By the number of a decoder's layer, its heads that attend to the words spoken."""


def alignment_heads(model: Any) -> dict[int, list[int]]:
    """The heads that the generation settings name, else all heads of the upper half of the decoder's layers.

    Raises KauliError for settings that name heads that the model lacks.
    """
    layers, heads = model.config.decoder_layers, model.config.decoder_attention_heads
    named = getattr(model.generation_config, "alignment_heads", None)
    if not named:
        return {layer: list(range(heads)) for layer in range(layers // 2, layers)}
    found: dict[int, list[int]] = {}
    for pair in named:
        if len(pair) != 2 or not (0 <= pair[0] < layers and 0 <= pair[1] < heads):
            raise KauliError(
                f"generation_config.json names the alignment head {pair}; the decoder has {layers} layers of {heads} "
                "heads: remove alignment_heads from the file, or list pairs of layer and head that exist."
            )
        found.setdefault(pair[0], []).append(pair[1])
    return found


def attention_weights(decoder: Any, embedded: Tensor, memory: Memory, heads: Heads, frames: int, first: int) -> Tensor:
    """(H, T - first, frames) float32: the attention of each token from `first` on to each of a clip's first frames.

    Args:
        decoder: `model.model.decoder`.
        embedded: (1, T, W), all tokens of the prompt and the transcript.
        memory: the clip's keys and values.
        heads: those to read.
        frames: how many of the memory's frames are the clip's own; padding gets no weight.
        first: index of the first token to time.
    """
    found = []

    def attend(layer: int, query: Tensor, key: Tensor, value: Tensor) -> Tensor:
        q, k, v = (one.transpose(1, 2) for one in (query, key, value))
        return functional.scaled_dot_product_attention(q, k, v, is_causal=True).transpose(1, 2)

    def look(layer: int, query: Tensor) -> Tensor:
        keys, values = (one[None].transpose(1, 2) for one in memory[layer])
        q = query.transpose(1, 2)
        if layer in heads:
            chosen = list(heads[layer])
            asked = q[0, chosen, first:].float() * q.shape[-1] ** -0.5
            found.append((asked @ keys[0, chosen, :frames].float().mT).softmax(-1))
        return functional.scaled_dot_product_attention(q, keys, values).transpose(1, 2)

    decode(decoder, embedded, torch.arange(embedded.shape[1], device=embedded.device), attend, look)
    return torch.cat(found)


def token_frames(weights: Tensor) -> list[int]:
    """The frame at which each token begins, of weights (H, N, F)."""
    deviation, mean = torch.std_mean(weights, dim=1, keepdim=True, unbiased=False)
    # 0 / 0 where all tokens attend equally to a frame
    weights = ((weights - mean) / deviation).nan_to_num(0.0, 0.0, 0.0)
    # Head by head they fit the processor's cache, which is twice as fast
    weights = torch.stack([smoothed(head) for head in weights])
    return warped(-weights.mean(0).double().cpu().numpy())


def warped(costs: npt.NDArray[np.floating]) -> list[int]:
    """Dynamic time warping: for each row of costs (N, F) the first column of the cheapest path from corner to corner.

    Computed by diagonals, whose cells do not depend on each other: a clip of 30 s has 1,500 columns.
    """
    rows, columns = costs.shape
    W = columns + 1
    total = np.full((rows + 1, W), np.inf, np.float32)
    total[0, 0] = 0
    step = np.zeros((rows + 1, W), np.int8)
    flat, steps = total.ravel(), step.ravel()
    own = np.zeros_like(total)
    own[1:, 1:] = costs
    prices = own.ravel()
    for diagonal in range(2, rows + W):
        low, high = max(1, diagonal - columns), min(rows, diagonal - 1)
        begin, end = diagonal + low * columns, diagonal + high * columns + 1
        both, down, along = (flat[begin - back : end - back : columns] for back in (W + 1, W, 1))
        best = np.minimum(np.minimum(both, down), along)
        # As in transformers, where two ways cost the same: along
        way = np.where((both < down) & (both < along), 0, np.where((down < both) & (down < along), 1, 2))
        flat[begin:end:columns] = prices[begin:end:columns] + best
        steps[begin:end:columns] = way
    starts = [0] * rows
    row, column = rows, columns
    while row > 0 and column > 0:
        starts[row - 1] = column - 1
        taken = int(step[row, column])
        row, column = row - (taken != 2), column - (taken != 1)
    return starts


def smoothed(weights: Tensor) -> Tensor:
    """(..., N, F): the median of each value and its three neighbours on both sides; mirrored at the ends."""
    half, frames = _FILTER // 2, weights.shape[-1]
    if frames <= half:
        return weights
    padded = functional.pad(weights, (half, half), mode="reflect")
    near = [padded[..., at : at + frames] for at in range(_FILTER)]
    for i, j in _MEDIAN_OF_7:
        near[i], near[j] = torch.minimum(near[i], near[j]), torch.maximum(near[i], near[j])
    return near[half]


def token_pieces(tokens: Iterable[int], times: Sequence[float], token_bytes: Callable[[int], bytes]) -> list[Word]:
    """The text of N tokens in pieces of whole characters, which several tokens may share.

    `times` are the start of each token and the end of the last, N + 1 seconds. Bytes that form no character are left
    out, as in the transcript itself (`kauli.models.engine.detokenize.TextStream`).
    """
    decoder = codecs.getincrementaldecoder("utf-8")(errors="ignore")
    pieces = []
    begun: float | None = None
    for at, token in enumerate(tokens):
        text = decoder.decode(token_bytes(token))
        start = times[at] if begun is None else begun
        if text:
            pieces.append(Word(text, start, times[at + 1]))
        unfinished = bool(decoder.getstate()[0])
        begun = (times[at] if text or begun is None else begun) if unfinished else None
    return pieces


def words_of(pieces: Sequence[Word]) -> tuple[Word, ...]:
    """The words (`word_spans`) of a transcript given as pieces, such as tokens or letters, with their times.

    A piece's time is divided evenly among its letters. A word's time is that of its letters: punctuation is silent.
    """
    text = ""
    times: list[tuple[float, float]] = []
    for piece in pieces:
        letters = [bool(_LETTER.match(character)) for character in piece.text]
        share = (piece.end - piece.start) / max(1, sum(letters))
        for at, letter in enumerate(letters):
            start = piece.start + share * sum(letters[:at])
            times.append((start, start + share * (letter or not any(letters))))
        text += piece.text
    words = []
    for start, end in word_spans(text):
        spoken = [at for at in range(start, end) if _LETTER.match(text[at])] or [start, end - 1]
        words.append(Word(nfc(text[start:end]), times[spoken[0]][0], times[spoken[-1]][1]))
    return tuple(words)


def outside_pauses(words: Sequence[Word], pauses: Sequence[tuple[float, float]]) -> tuple[Word, ...]:
    """The words with pauses removed from their times; a word inside a pause keeps its time.

    The decoder attends to some frame in silence too, so that a pause is added to the word before or after it.
    """
    found = []
    for word in words:
        start, end = word.start, word.end
        for begin, stop in pauses:
            if start < begin < end and begin - start >= end - stop:
                end = begin
            elif start < stop < end:
                start = stop
        found.append(Word(word.text, start, end))
    return tuple(found)
