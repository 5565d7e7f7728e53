"""Whether a budget suffices to learn from the data: told before the first step, or once the speed is known."""

import math

from kauli.training.recipe import Train

FEWEST_STEPS = 100
"""Steps below which an adapter hardly leaves its initial weights, however small the data is."""
ENOUGH_STEPS = 1000
"""Steps from which on no whole pass over the data is asked for."""
_MEASURED = 5  # steps after the first, which is slower
_MEASURED_S = 30.0  # seconds after which fewer steps will do


class Pace:
    """The budget of a run beside the steps of one pass over its data; each of its methods has something to say once."""

    def __init__(self, budget: Train, one_pass: int) -> None:
        """`one_pass` are the steps in which each example is taken once."""
        self._budget, self._pass = budget, one_pass
        self.needed = min(ENOUGH_STEPS, max(FEWEST_STEPS, one_pass))
        self._first: tuple[int, float] | None = None
        self._measured = False

    def by_steps(self) -> str | None:
        """What is wrong with the number of steps; None: nothing."""
        steps = self._budget.steps
        if steps is None or steps >= self.needed:
            return None
        return (
            f"train.steps {steps} is too few to learn from this data: {self._share(steps)}. "
            f"Use --set train.steps={self.needed} or more."
        )

    def by_speed(self, step: int, seconds: float) -> str | None:
        """What is wrong with the minutes, after `step` steps in `seconds`; None: nothing, or not known yet."""
        minutes = self._budget.minutes
        if minutes is None or self._measured:
            return None
        if self._first is None:
            self._first = step, seconds
            return None
        steps, passed = step - self._first[0], seconds - self._first[1]
        if steps < _MEASURED and passed < _MEASURED_S:
            return None
        self._measured = True
        each = passed / steps
        expected = step + max(0, math.floor((60 * minutes - seconds) / max(each, 1e-9)))
        if expected >= min(self.needed, self._budget.steps or self.needed):
            return None
        wanted = math.ceil((seconds + (self.needed - step) * each) / 60)
        return (
            f"At this speed ({each:.1f} s a step) {minutes:g} minutes are about {expected:,} steps, too few to learn "
            f"from this data: {self._share(expected)}. {self.needed} steps take about {wanted} min: "
            f"--set train.minutes={wanted}."
        )

    def _share(self, steps: int) -> str:
        """A number of steps beside what is needed."""
        if self._pass < FEWEST_STEPS:
            return f"below {FEWEST_STEPS} steps an adapter hardly changes"
        return f"{steps / self._pass:.0%} of one pass over it, which takes {self._pass:,} steps"
