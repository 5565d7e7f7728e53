"""Which prompt a base translates best with: a bounded search over examples, templates, instructions and their order.

The figure of a prompt is what the translations of held-out rows cost the base after it, in bits a byte: the prompt with
the least has the highest mean log probability. One part of the prompt is changed at a time. Of its alternatives those
with the lower figure on a quarter of the rows go on to half of them, the better of these to all (successive halving,
Jamieson and Talwalkar 2016), where the best one stays if it is better than the prompt so far.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from random import Random
from typing import Any

from kauli.models.adapters.card import Prompting, PromptPair

INSTRUCTIONS = (
    Prompting().instruction,
    "",
    "Translate the {source_language} text into {target_language}. Write the translation alone.",
    "Translate into {target_language}. Keep names, numbers and placeholders as they are.",
    "{source_language} texts and their translations into {target_language}:",
    "You are a translator. Your mother tongue is {target_language}, and you translate from {source_language}.",
)
"""Of a prompt."""
PAIRS = (
    Prompting().pair,
    "{source}\n{target}",
    "{source} =\n{target}",
    "<{source_language}> {source}\n<{target_language}>\n{target}",
    "{source_language}\n{source}\n{target_language}\n{target}",
    '"{source}" in {target_language}:\n{target}',
)
"""Forms of an example. A translation has a line of its own: a prompt ends before it, and no space is lost there."""
EXAMPLES = (0, 1, 2, 4, 8, 16)
"""Retrieved examples."""
EXAMPLE_TOKENS = 80
"""Room for an example where the recipe gives less."""
SET_SIZES = (2, 4, 8)
"""Fixed examples of a set."""
SETS = 2
"""Sets of each size."""
ORDERS = 3
"""Further orders of the fixed examples."""
_LONGEST = 160  # characters of a fixed example with its translation, where there are enough such rows

Row = dict[str, Any]
Cost = tuple[float, int]
"""(bits, bytes) of a row's translation."""
Axis = Callable[[Prompting], list[Prompting]]
"""A prompt -> the same with other values of one of its parts."""


@dataclass(frozen=True)
class Compared:
    """A prompt and its figure on the first `rows` rows."""

    prompting: Prompting
    rows: int
    bits_per_byte: float

    def to_json(self) -> dict[str, Any]:
        """An entry of `prompts.json`."""
        return {"prompting": self.prompting.model_dump(), "rows": self.rows, "bits_per_byte": self.bits_per_byte}


class PromptSearch:
    """Compares prompts by what the translations of some rows cost."""

    def __init__(
        self,
        cost: Callable[[Prompting, int, int], Sequence[Cost]],
        rows: int,
        trials: int,
        known: Mapping[str, Sequence[Cost]] | None = None,
    ) -> None:
        """At most `trials` prompts are compared, on at most `rows` rows.

        `cost` of a prompt, a first row and the row behind the last one gives the costs of these rows. `known` are the
        `costs` of an interrupted search, which are not asked for again.
        """
        self._cost, self._trials = cost, trials
        self._stages = sorted({-(-rows // 4), -(-rows // 2), rows})
        self.costs = {key: list(one) for key, one in (known or {}).items()}
        """By the prompt's JSON, those of the first rows."""
        self._compared: dict[str, Prompting] = {}

    def best(self, start: Prompting, axes: Sequence[Axis], advance: Callable[[Prompting], None]) -> Prompting:
        """The best prompt that is found from `start` before the trials are used up or no axis leads to a better one.

        `advance` gets the best one so far after each axis.
        """
        best = self._winner([start])
        advance(best)
        last = None  # the best one at the end of the round before
        while last != best:
            last = best
            for axis in axes:
                if len(self._compared) < self._trials:
                    best = self._winner([best, *axis(best)])
                    advance(best)
        return best

    def figure(self, prompting: Prompting, rows: int | None = None) -> float:
        """Bits per byte on the first rows (None: all)."""
        rows = rows or self._stages[-1]
        costs = self.costs.setdefault(prompting.model_dump_json(), [])
        if len(costs) < rows:
            costs += self._cost(prompting, len(costs), rows)
        return sum(bits for bits, _ in costs[:rows]) / sum(count for _, count in costs[:rows])

    def compared(self) -> list[Compared]:
        """All prompts that were compared, those on the most rows first, of these the best first."""
        found = [Compared(one, len(self.costs[key]), 0.0) for key, one in self._compared.items()]
        found = [Compared(one.prompting, one.rows, self.figure(one.prompting, one.rows)) for one in found]
        return sorted(found, key=lambda one: (-one.rows, one.bits_per_byte))

    def _winner(self, candidates: Sequence[Prompting]) -> Prompting:
        """The best of some prompts, or the first, if no other is better on all rows."""
        left: list[Prompting] = []
        for one in candidates:
            key = one.model_dump_json()
            if one not in left and (key in self._compared or len(self._compared) < self._trials):
                self._compared[key] = one
                left.append(one)
        for rows in self._stages:
            ranked = sorted(left, key=lambda one: self.figure(one, rows))
            left = ranked[: -(-len(ranked) // 2)]
        return min([candidates[0], *left], key=self.figure)


def axes(start: Prompting, sets: Sequence[Sequence[PromptPair]], seed: int) -> list[Axis]:
    """The parts of a prompt that are searched, those that matter most first; `sets` are sets of fixed examples."""
    room = {count: max(start.tokens, count * EXAMPLE_TOKENS) for count in EXAMPLES}

    def orders(prompting: Prompting) -> list[Prompting]:
        random, fixed = Random(seed), prompting.fixed
        return [_changed(prompting, fixed=random.sample(fixed, len(fixed))) for _ in range(ORDERS) if len(fixed) > 1]

    return [
        lambda one: [_changed(one, examples=count, tokens=room[count]) for count in EXAMPLES],
        lambda one: [_changed(one, pair=pair) for pair in PAIRS],
        lambda one: [_changed(one, instruction=instruction) for instruction in INSTRUCTIONS],
        lambda one: [_changed(one, order=order) for order in ("nearest_last", "nearest_first") if one.examples > 1],
        lambda one: [_changed(one, fixed=list(fixed)) for fixed in ((), *sets)],
        orders,
    ]


def example_sets(rows: Sequence[Row], seed: int) -> list[list[PromptPair]]:
    """Sets of fixed examples, drawn from rows of `kauli.training.features.translations.pair_rows`.

    Each has as many of every pair of languages.
    """
    by_pair: dict[tuple[str, str], list[Row]] = {}
    for row in sorted(rows, key=lambda row: str(row["id"])):
        by_pair.setdefault((row["input_language"], row["language"]), []).append(row)
    random, sets = Random(seed), list[list[PromptPair]]()
    for size in SET_SIZES * SETS:
        drawn = []
        for (source, target), mine in by_pair.items():
            short = [row for row in mine if len(row["input"]) + len(row["text"]) <= _LONGEST]
            mine = short if len(short) >= size else mine
            drawn += [
                PromptPair(source=row["input"], target=row["text"], source_language=source, target_language=target)
                for row in random.sample(mine, min(size, len(mine)))
            ]
        sets.append(drawn)
    return sets


def _changed(prompting: Prompting, **values: Any) -> Prompting:
    return prompting.model_copy(update=values)
