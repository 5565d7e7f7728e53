"""Which rows fit a language model, told by its tokenizer alone: before its weights are read, and hours are spent."""

from collections.abc import Iterable, Mapping
from functools import cached_property
from typing import Any

from kauli.models.bases.find import Base
from kauli.models.languages import nfc
from kauli.models.requests import TextRequest
from kauli.models.text.language_model import load_prompts
from kauli.models.text.prompts import Prompts
from kauli.training.features.left_out import LeftOut

Row = dict[str, Any]
_TEMPLATE = 256  # tokens that a chat template puts around a prompt, at most
_SHORT = 1024  # tokens that every context holds


class Room:
    """The tokens that rows take on a base. The tokenizer is loaded for the first row that is long enough to ask it."""

    def __init__(self, base: Base, max_length: int | None = None, media: int = 0) -> None:
        """`max_length` is that of training, None: the base's context alone; `media` are the tokens of a row's media."""
        self._base, self._max_length, self._media = base, max_length, media

    @cached_property
    def _prompts(self) -> tuple[Prompts, int]:
        return load_prompts(self._base)

    @property
    def limit(self) -> int:
        """The most tokens of an example."""
        return min(self._max_length or self._prompts[1], self._prompts[1])

    def fitting(self, rows: Iterable[Row], left_out: LeftOut) -> list[Row]:
        """The rows that the base takes; the others go to `left_out`."""
        kept = []
        for row in rows:
            if fault := self.fault(row):
                left_out.add(row["id"], *fault)
            else:
                kept.append(row)
        return kept

    def fault(self, row: Mapping[str, Any]) -> tuple[str, str] | None:
        """Why a row's prompt leaves no room for an answer: a reason and a detail of `LeftOut.add`; None where it fits.

        A prompt with media cannot be cut: it may take half of the limit, or must leave room for the whole text.
        """
        written = nfc(row["prompt"] or "") + (nfc(row["text"]) if self._media else "")
        most = len(written.encode()) + self._media + _TEMPLATE  # a token is a byte or more
        if most < min(self._max_length or _SHORT, _SHORT):
            return None
        prompts, context = self._prompts
        prompt = len(prompts.tokens(TextRequest.of_prompt(row["prompt"]))) + self._media
        answer = len(prompts.text_tokens(row["text"])) + 1 if self._media else 1
        fits = prompt < self.limit if not self._media else prompt <= self.limit // 2 or prompt + answer <= self.limit
        if fits:
            return None
        of = f"the context of {self._base.name}" if self.limit == context else "train.max_length"
        return f"whose prompt leaves no room for an answer in the {self.limit:,} tokens of {of}", f"{prompt:,} tokens"
