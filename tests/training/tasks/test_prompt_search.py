"""The search over prompts: what it finds at which cost, on prompts whose figures are known."""

import itertools
from collections.abc import Sequence
from typing import Any

import pytest

from kauli.models.adapters.card import Prompting
from kauli.training.tasks.prompt_search import (
    EXAMPLES,
    INSTRUCTIONS,
    PAIRS,
    SET_SIZES,
    Cost,
    PromptSearch,
    axes,
    example_sets,
)

ROWS = 16
START = Prompting(examples=4)
WORTH = {
    "examples": dict(zip(EXAMPLES, (3.0, 2.0, 1.5, 1.2, 1.7, 2.2), strict=True)),
    "pair": dict(zip(PAIRS, (2.0, 2.5, 0.5, 2.2, 2.1, 2.3), strict=True)),
    "instruction": dict(zip(INSTRUCTIONS, (1.0, 1.1, 1.2, 1.3, 0.2, 1.4), strict=True)),
    "order": {"nearest_last": 1.0, "nearest_first": 0.9},
}
"""Field -> value -> bits of each byte that it costs."""


def worth(one: Prompting) -> float:
    fixed = 0.3 * len(one.fixed) + 0.01 * sum(at * len(pair.source) for at, pair in enumerate(one.fixed))
    return fixed + sum(values[getattr(one, name)] for name, values in WORTH.items())


class Costs:
    """Costs of 2 bytes a row; rows differ alike for all prompts. Remembers what was asked."""

    def __init__(self) -> None:
        self.asked: list[tuple[str, int]] = []

    def __call__(self, one: Prompting, first: int, last: int) -> Sequence[Cost]:
        self.asked += [(one.model_dump_json(), row) for row in range(first, last)]
        return [(2 * worth(one) + row, 2) for row in range(first, last)]


PAIR_ROWS: list[dict[str, Any]] = [
    {
        "id": f"{language}-{at}",
        "input": f"word {at}",
        "input_language": "en",
        "text": "x" * (1 + at),
        "language": language,
    }
    for at in range(20)
    for language in ("am", "sw")
]  # fmt: skip


def searched(trials: int, costs: Costs, known: dict[str, list[Cost]] | None = None) -> tuple[PromptSearch, Prompting]:
    search = PromptSearch(costs, ROWS, trials, known)
    return search, search.best(START, axes(START, example_sets(PAIR_ROWS, 0), 0), lambda best: None)


def test_the_best_of_all_combinations_is_found_by_a_few_of_them() -> None:
    costs = Costs()
    search, best = searched(100, costs)
    combinations = [
        START.model_copy(update=dict(zip(WORTH, values, strict=True))) for values in itertools.product(*WORTH.values())
    ]
    assert len(combinations) == 432
    assert worth(best) == min(worth(one) for one in combinations)
    assert (best.examples, best.pair, best.instruction, best.order) == (4, PAIRS[2], INSTRUCTIONS[4], "nearest_first")
    found = search.compared()
    assert found[0].prompting == best
    assert found[0].bits_per_byte == pytest.approx(worth(best) + sum(range(ROWS)) / ROWS / 2)
    assert len(found) < 50
    assert len(set(costs.asked)) == len(costs.asked)  # no row is scored twice with a prompt
    assert {one.rows for one in found} == {ROWS // 4, ROWS // 2, ROWS}
    assert sum(one.rows == ROWS for one in found) < len(found) / 2  # most were given up early


@pytest.mark.parametrize("trials", [1, 2, 7, 20])
def test_no_more_prompts_than_trials_are_compared(trials: int) -> None:
    costs = Costs()
    search, best = searched(trials, costs)
    assert len(search.compared()) == len({prompt for prompt, _ in costs.asked}) == trials
    assert worth(best) == min(worth(one.prompting) for one in search.compared())
    assert worth(best) <= worth(START)


def test_an_interrupted_search_asks_for_nothing_again() -> None:
    whole, first = Costs(), Costs()
    expected = searched(40, whole)[1]
    saved = searched(15, first)[0].costs
    rest = Costs()
    search, best = searched(40, rest, {key: list(costs) for key, costs in saved.items()})
    assert best == expected
    assert sorted(first.asked + rest.asked) == sorted(whole.asked)
    assert len(search.compared()) == len({prompt for prompt, _ in whole.asked})


def test_a_prompt_that_is_better_on_the_first_rows_alone_is_not_taken() -> None:
    def cost(one: Prompting, first: int, last: int) -> Sequence[Cost]:
        lucky = one.examples == 1
        return [(1.0 if lucky and row < 4 else 9.0 if lucky else 5.0, 1) for row in range(first, last)]

    search = PromptSearch(cost, ROWS, 5)
    assert search.best(START, axes(START, [], 0)[:1], lambda best: None) == START


def test_sets_of_examples_hold_every_pair_of_languages() -> None:
    sets = example_sets(PAIR_ROWS, 3)
    assert sets == example_sets(list(reversed(PAIR_ROWS)), 3) != example_sets(PAIR_ROWS, 4)
    assert sorted({len(one) for one in sets}) == [2 * size for size in SET_SIZES]
    rows = {(row["input"], row["text"], row["input_language"], row["language"]) for row in PAIR_ROWS}
    for one in sets:
        pairs = [(pair.source, pair.target, pair.source_language, pair.target_language) for pair in one]
        assert len(set(pairs)) == len(pairs)
        assert set(pairs) <= rows
        assert {pair.target_language for pair in one} == {"am", "sw"}
    long = {"id": "0", "input": "i" * 500, "input_language": "en", "text": "t", "language": "am"}
    assert not any(pair.source == long["input"] for one in example_sets([long, *PAIR_ROWS], 0) for pair in one)
    assert all(len(one) == 1 for one in example_sets([long], 0))  # where there is nothing else


def test_an_axis_changes_one_part() -> None:
    sets = example_sets(PAIR_ROWS, 0)
    start = START.model_copy(update={"fixed": sets[0]})
    for axis in axes(start, sets, 0):
        for one in axis(start):
            changed = {name for name in Prompting.model_fields if getattr(one, name) != getattr(start, name)}
            assert changed <= {"examples", "tokens"} or len(changed) <= 1
            assert sorted(pair.source for pair in one.fixed) in [[], *(sorted(p.source for p in s) for s in sets)]
            Prompting.model_validate(one.model_dump())
