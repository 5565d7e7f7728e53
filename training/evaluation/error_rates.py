"""How wrong transcripts are: edits of graphemes (CER) and of words (WER), and loops; edits are jiwer's."""

import unicodedata
from collections.abc import Mapping, Sequence
from typing import Any

import jiwer
import regex

from kauli.models.languages import APOSTROPHES
from kauli.models.speech.loops import looped

Row = Mapping[str, Any]

NORMALISATION = (
    "before CER and WER are counted, transcripts and references are brought to Unicode NFC and folded in case, every "
    "kind of apostrophe becomes ' and stays between letters, other punctuation, symbols and hyphens become spaces, "
    "invisible format characters go, combining marks stay; CER is edits over graphemes (extended clusters; a space is "
    "one), WER edits over words"
)
"""A sentence for the notes of an evaluation."""

_APOSTROPHES = regex.compile(f"[{APOSTROPHES}]")
_INVISIBLE = regex.compile(r"\p{Cf}")
# Marks on a symbol (the variation selector of ❤️) go with it.
_NO_WORD = regex.compile(r"(?:(?<![\p{L}\p{M}\p{N}])'|'(?![\p{L}\p{N}])|[\p{P}\p{S}\p{Z}\p{Cc}--'])\p{M}*", regex.V1)
_SPACE = "␣"  # a symbol, so that no normalised text holds one


def normalised(text: str) -> str:
    """The words that are compared, with one space between them, as `NORMALISATION` tells; numbers are not spelt out."""
    visible = unicodedata.normalize("NFC", _INVISIBLE.sub("", text))
    folded = unicodedata.normalize("NFC", visible.casefold())  # which may have taken a letter apart
    return " ".join(_NO_WORD.sub(" ", _APOSTROPHES.sub("'", folded)).split())


def character_edits(
    predictions: Sequence[str], references: Sequence[str], rows: Sequence[Row] = ()
) -> list[list[float]]:
    """(rows, 2): edits of graphemes and reference graphemes, after `normalised`; `rows` are not looked at.

    Where the reference is empty, everything in the transcript counts as edits; so a rate may be above 1.
    """
    return _edits(
        [_graphemes(normalised(text)) for text in predictions], [_graphemes(normalised(t)) for t in references]
    )


def word_edits(predictions: Sequence[str], references: Sequence[str], rows: Sequence[Row] = ()) -> list[list[float]]:
    """The same in words."""
    return _edits([normalised(text) for text in predictions], [normalised(text) for text in references])


def loops(predictions: Sequence[str], references: Sequence[str], rows: Sequence[Row] = ()) -> list[list[float]]:
    """(rows, 2): whether the transcript repeats itself without end, and 1."""
    return [[float(looped(text)), 1.0] for text in predictions]


def _graphemes(text: str) -> str:
    """The graphemes with a space between them, as jiwer takes words; a space of the text is `_SPACE`."""
    return f" {_SPACE} ".join(" ".join(regex.findall(r"\X", word)) for word in text.split())


def _edits(transcripts: list[str], references: list[str]) -> list[list[float]]:
    """(rows, 2): substitutions, deletions and insertions of words in each row, and the words of the reference."""
    found = jiwer.process_words(references, transcripts)
    return [
        [float(sum(_size(chunk) for chunk in chunks if chunk.type != "equal")), float(len(words))]
        for chunks, words in zip(found.alignments, found.references, strict=True)
    ]


def _size(chunk: jiwer.AlignmentChunk) -> int:
    # one of the two is empty, or both are as long: a substitution replaces one word each
    return int(max(chunk.ref_end_idx - chunk.ref_start_idx, chunk.hyp_end_idx - chunk.hyp_start_idx))
