"""Pairs of texts as rows of translations: one for each direction, each with its prompt and the examples in it."""

from collections import defaultdict
from collections.abc import Iterable, Sequence
from functools import lru_cache
from typing import Any

from kauli.models.adapters.card import Prompting
from kauli.models.bases.find import Base
from kauli.models.languages import nfc
from kauli.models.text.language_model import load_prompts
from kauli.models.text.retrieval import similarity
from kauli.models.text.translation import Example, fitting, marked_prompt
from kauli.training.data.dataset import Dataset
from kauli.training.features.neighbours import Neighbours

Row = dict[str, Any]
COLUMNS = ("id", "group", "language", "input", "input_language", "text", "source", "licence", "synthetic")
REVERSE = "<"
"""Ends the id of a row that is translated out of its language."""


def pair_rows(dataset: Dataset, split: str, languages: Sequence[str]) -> list[Row]:
    """The rows of a split that have a text in one of the languages and its translation."""
    rows = dataset.iter_rows(split, languages, COLUMNS)
    return [row for row in rows if all((row[key] or "").strip() for key in ("input", "input_language", "text"))]


def directed(row: Row, *, reverse: bool) -> Row:
    """A pair as a translation: `input` in `from` -> `text` in `to`; `language` stays that of the data."""
    if not reverse:
        return {**row, "from": row["input_language"], "to": row["language"]}
    return {
        **row, "id": row["id"] + REVERSE, "input": row["text"], "text": row["input"],
        "from": row["language"], "to": row["input_language"],
    }  # fmt: skip


def is_reverse(row: Row) -> bool:
    """Whether a row is translated out of its language."""
    return bool(row["id"].endswith(REVERSE))


class Prompter:
    """Makes the prompts of rows, with the most similar pairs of a memory in them."""

    def __init__(self, base: Base, prompting: Prompting, memory: Iterable[Row]) -> None:
        """`memory` are rows of `pair_rows`; they answer both directions."""
        self.prompting = prompting
        prompts, _ = load_prompts(base)
        self._count = lru_cache(1 << 17)(lambda text: len(prompts.text_tokens(text)))
        pairs: dict[tuple[str, str], list[Row]] = defaultdict(list)
        for row in memory:
            for one in (directed(row, reverse=False), directed(row, reverse=True)):
                pairs[one["from"], one["to"]].append(one)
        self._memory = {
            key: Neighbours([(nfc(one["input"]), nfc(one["text"])) for one in rows], [one["group"] for one in rows])
            for key, rows in pairs.items()
        }

    def prompted(
        self, rows: Sequence[Row], examples: int | None = None, prompting: Prompting | None = None
    ) -> list[Row]:
        """The rows with `prompt`, `targets` (the examples' translations in it), `nearest` (the first of these) and
        `similarity` (the fuzzy match score of the most similar source; 0 where there is none).

        No example is of a row's own group. `examples`: at most so many; None: as `prompting` says, which in turn is
        the prompter's own where it is None.
        """
        prompting = prompting or self.prompting
        count = prompting.examples if examples is None else examples
        by_pair: dict[tuple[str, str], list[Row]] = defaultdict(list)
        for row in rows:
            by_pair[row["from"], row["to"]].append(row)
        made: dict[str, Row] = {}
        for key, mine in by_pair.items():
            index = self._memory.get(key) or Neighbours([], [])
            found = index.of([row["input"] for row in mine], [row["group"] for row in mine], max(count, 1))
            for row, candidates in zip(mine, found, strict=True):
                pairs = [Example(one.source, one.target) for one in candidates]
                prompt, targets = marked_prompt(
                    row["input"], *key, prompting, fitting(pairs[:count], prompting, self._count)
                )
                made[row["id"]] = {
                    **row, "prompt": prompt, "targets": targets, "nearest": pairs[0].target if pairs else "",
                    "similarity": max((similarity(row["input"], one.source) for one in pairs), default=0.0),
                }  # fmt: skip
        return [made[row["id"]] for row in rows]
