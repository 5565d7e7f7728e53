"""Guards for an adapter's answers, measured on those of its training: against loops, and answers without end."""

import math
from collections.abc import Sequence

from kauli.models.adapters.card import Decoding
from kauli.models.engine.packing import Document

RUNS = range(3, 25)
"""Lengths of token runs that a guard may forbid to repeat."""
REPEATED = 0.01
"""The share of the training answers' tokens that may end a run which a guard would have forbidden."""
LONGEST = 0.99
"""The share of the training answers that are no longer than what the limits are made of."""
SLACK = 1.5
"""The limits over the longest training answers."""
MOST_TOKENS = 1024
_MOST_READ = 1000  # documents


def decoding_of(documents: Sequence[Document]) -> Decoding:
    """The shortest run that hardly occurs twice in an answer, and limits that hardly any answer reaches.

    Where answers repeat themselves at any length, no run is forbidden. Documents without a prompt tell no length.
    """
    read = documents[:: -(-len(documents) // _MOST_READ)]
    answers = [one.tokens[one.answer_start :] for one in read]
    total = sum(map(len, answers))
    no_repeat = next((n for n in RUNS if sum(_repeats(one, n) for one in answers) <= REPEATED * total), 0)
    pairs = [(len(one.tokens) - one.answer_start, one.answer_start) for one in read if one.answer_start > 1]
    if not pairs:
        return Decoding(no_repeat=no_repeat)
    longest = _quantile([float(answer) for answer, _ in pairs])
    ratio = _quantile([answer / prompt for answer, prompt in pairs])
    most = min(MOST_TOKENS, math.ceil(SLACK * longest))
    return Decoding(no_repeat=no_repeat, max_tokens=most, tokens_per_prompt_token=round(SLACK * ratio, 3))


def _repeats(tokens: Sequence[int], size: int) -> int:
    """The tokens that end a run of `size` which was there before."""
    runs = [tuple(tokens[at : at + size]) for at in range(len(tokens) - size + 1)]
    return len(runs) - len(set(runs))


def _quantile(values: list[float]) -> float:
    return sorted(values)[min(len(values) - 1, int(LONGEST * len(values)))]
