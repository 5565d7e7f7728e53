"""Detects transcripts that loop (repeat without end), and collapsed sets of transcripts.

Speech decoders loop on unintelligible clips, on silence and after too little training.
"""

import zlib
from collections import Counter
from collections.abc import Sequence

import numpy as np
import regex
from numpy.typing import NDArray

MOST_LOOPS = 0.1
"""The largest acceptable share of loops in a set of transcripts."""
ENOUGH = 8
"""Fewer transcripts may well be mostly the same."""
ZLIB_RATIO = 2.4
"""Whisper's own limit (Radford et al. 2022, arXiv 2212.04356, section 4.5)."""
_PIECE = 500  # characters: about 30 s of speech, the unit that Whisper judges
_ZLIB_LENGTH = 100  # characters below which headers and tables outweigh the text
_STRETCH = 10  # letters of the shortest loop: "Аааа!" is none
_TIMES = 5  # consecutive repeats of a unit that make a loop: "ха-ха-ха" is none
_PHRASE = 10  # letters that make a unit a phrase, for which
_PHRASE_TIMES = 3  # repeats are enough


def looped(text: str, ratio: float = ZLIB_RATIO) -> bool:
    """Whether a transcript is a loop, in any script: of letters, syllables, words or phrases.

    A loop is a unit that repeats five times or more in a row (a phrase of ten letters three times) and so fills more
    than half of the text, white space, punctuation and case aside; or a text that zlib shortens by more than `ratio`.
    A text of more than 500 characters is judged in pieces of 500, of which one loop is enough.
    """
    last = max(len(text) - _PIECE, 0)
    pieces = [text[start : start + _PIECE] for start in (*range(0, last, _PIECE), last)]
    return any(_repeats(_letters(piece)) or _compresses(piece, ratio) for piece in pieces)


def collapsed(texts: Sequence[str], references: Sequence[str]) -> str | None:
    """The fault of a whole set of transcripts, as a sentence without a full stop; None for a sound set.

    Faults are more than half empty, more than half the same (of eight or more), and more than a tenth loops. A
    transcript that its reference justifies is not counted.

    Args:
        texts: the transcripts.
        references: the true text of each.
    """
    pairs = [(_letters(text), _letters(right)) for text, right in zip(texts, references, strict=True)]
    empty = sum(not text and bool(right) for text, right in pairs)
    if 2 * empty > len(pairs):
        return f"{empty} of {len(pairs)} transcripts are empty"
    same = Counter(text for text, right in pairs if text != right)
    if same and len(pairs) >= ENOUGH:
        text, count = same.most_common(1)[0]
        if 2 * count > len(pairs):
            first = next(one for one in texts if _letters(one) == text)
            return f"{count} of {len(pairs)} transcripts are the same, and wrong: '{_shown(first)}'"
    loops = [text for text, right in zip(texts, references, strict=True) if looped(text) and not looped(right)]
    if len(loops) > MOST_LOOPS * len(pairs):
        return f"{len(loops)} of {len(pairs)} transcripts repeat without end, such as '{_shown(loops[0])}'"
    return None


def _shown(text: str) -> str:
    return " ".join(text.split())[:60]


def _letters(text: str) -> str:
    """Only the letters, their marks and digits."""
    return "".join(regex.findall(r"[\p{L}\p{M}\p{N}]", text.casefold()))


def _repeats(letters: str) -> bool:
    codes = np.array([ord(letter) for letter in letters], dtype=np.int64)
    for unit in range(1, len(codes) // _PHRASE_TIMES + 1):
        times = _PHRASE_TIMES if unit >= _PHRASE else _TIMES
        least = max(times * unit, _STRETCH, len(codes) // 2 + 1)
        if _longest_run(codes[unit:] == codes[:-unit]) + unit >= least:
            return True
    return False


def _longest_run(equal: NDArray[np.bool_]) -> int:
    breaks = np.flatnonzero(np.concatenate(([True], ~equal, [True])))
    return int(np.diff(breaks).max()) - 1


def _compresses(text: str, ratio: float) -> bool:
    # One byte for each character: in UTF-8 the lead bytes of other scripts repeat, and any Georgian has a ratio of 3.
    numbers = {letter: number for number, letter in enumerate(dict.fromkeys(text))}
    if len(text) < _ZLIB_LENGTH or len(numbers) > 256:
        return False
    return len(text) / len(zlib.compress(bytes(numbers[letter] for letter in text))) > ratio
