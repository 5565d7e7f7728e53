"""Whether a budget suffices: by steps before the first, by minutes after a few."""

import pytest

from kauli.training.loop.pace import ENOUGH_STEPS, FEWEST_STEPS, Pace
from kauli.training.recipe import Train


@pytest.mark.parametrize(
    ("steps", "one_pass", "expected"),
    [
        (10, 400, "train.steps 10 is too few to learn from this data: 2% of one pass over it, which takes 400 steps. "
                  "Use --set train.steps=400 or more."),
        (10, 1, "below 100 steps an adapter hardly changes. Use --set train.steps=100 or more."),
        (400, 400, None),
        (FEWEST_STEPS, 3, None),
        (999, 100_000, "Use --set train.steps=1000 or more"),
        (ENOUGH_STEPS, 100_000, None),
        (None, 400, None),
    ],
)  # fmt: skip
def test_steps_beside_one_pass(steps: int | None, one_pass: int, expected: str | None) -> None:
    told = Pace(Train(steps=steps, minutes=10), one_pass).by_steps()
    assert told is None if expected is None else told is not None and expected in told


def told_by(budget: Train, one_pass: int, each: float, resumed: int = 0) -> list[tuple[int, str]]:
    """(step, sentence) of a run whose first step takes 20 seconds more than the others."""
    pace, found = Pace(budget, one_pass), []
    for step in range(resumed + 1, resumed + 40):
        if text := pace.by_speed(step, 20 + each * step):
            found.append((step, text))
    return found


def test_minutes_are_judged_by_the_speed_of_the_first_steps_and_once() -> None:
    [(step, text)] = told_by(Train(steps=None, minutes=10), 400, each=2)
    assert step == 6
    # 600 seconds, of which 32 are gone: 284 more steps; 400 take 20 + 800 seconds
    assert text == (
        "At this speed (2.0 s a step) 10 minutes are about 290 steps, too few to learn from this data: 72% of one pass "
        "over it, which takes 400 steps. 400 steps take about 14 min: --set train.minutes=14."
    )
    assert told_by(Train(steps=None, minutes=10), 400, each=2, resumed=50)[0][0] == 56
    assert told_by(Train(steps=None, minutes=10), 400, each=20)[0][0] == 3  # slow steps: after half a minute


@pytest.mark.parametrize(
    "budget", [Train(steps=4000, minutes=30), Train(steps=20, minutes=10), Train(steps=4000, minutes=None)]
)
def test_nothing_is_said_where_the_minutes_suffice_or_the_steps_end_first(budget: Train) -> None:
    assert told_by(budget, 400, each=2) == []
