"""What more data would bring: a proxy's score on nested subsets of the training groups, and the curve through them."""

import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from kauli.models.bases.find import find_base
from kauli.models.errors import UsageError
from kauli.models.media.decode import content_key
from kauli.models.metrics import label
from kauli.models.progress import bar
from kauli.models.tasks import task_of
from kauli.training.data.dataset import Dataset, load_data
from kauli.training.forecast.coverage import NUM_SHOWN, Uncovered, coverage
from kauli.training.forecast.curve import Curve, Expected, Floats, fit_curve, forecast
from kauli.training.forecast.proxies import PROXIES, Proxy, Row, Score
from kauli.training.recipe import Recipe

LEAST_GROUPS = 32
"""Training groups from which a curve can be fitted."""
LEAST_VALIDATION = 10
DRAWS, LEAST_DRAWS = 8, 3
TIMES = (2, 4)
_SIZES = 7
_COLUMNS = ("id", "group", "language", "prompt", "input", "text", "image", "audio")
_SMALLEST = 1 / 16
Ints = NDArray[np.int64]


@dataclass(frozen=True)
class Learning:
    """Scores of nested subsets."""

    groups: tuple[int, ...]
    """(S,) rising; the last is all."""
    rows: tuple[float, ...]
    """(S,) mean over draws."""
    draws: Floats
    """(D, S)."""


@dataclass(frozen=True)
class Forecast:
    """What `kauli data forecast` tells."""

    recipe: str
    data: str
    languages: tuple[str, ...]
    proxy: Proxy
    learning: Learning
    curve: Curve
    expected: tuple[Expected, ...]
    """At TIMES as many groups."""
    uncovered: dict[str, Uncovered]
    validation: int
    """Rows."""

    def to_json(self) -> dict[str, Any]:
        """All of it as plain data."""
        learned = self.learning
        steps = zip(learned.groups, learned.rows, learned.draws.T, strict=True)
        return {
            "recipe": self.recipe,
            "data": self.data,
            "languages": list(self.languages),
            "proxy": self.proxy.what,
            "metric": self.proxy.metric,
            "validation_rows": self.validation,
            "sizes": [
                {"groups": groups, "rows": round(rows), "score": round(float(own.mean()), 4),
                 "draws": [round(one, 4) for one in own.tolist()]}
                for groups, rows, own in steps
            ],
            "curve": {name: round(value, 4) for name, value in asdict(self.curve).items()},
            "forecast": [
                {"times": times, "groups": round(one.size), "score": round(one.score, 4),
                 "interval": [round(one.low, 4), round(one.high, 4)]}
                for times, one in zip(TIMES, self.expected, strict=True)
            ],
            "uncovered": {name: one.to_json() for name, one in self.uncovered.items()},
        }  # fmt: skip

    def summary(self) -> str:
        """For a reader."""
        learned = self.learning
        lines = [
            f"{self.recipe}, {self.data}: {round(learned.rows[-1]):,} training rows in {learned.groups[-1]:,} groups; "
            f"{self.validation:,} for validation",
            f"A PROXY, no training: {label(self.proxy.metric)} on validation of {self.proxy.what}",
            "",
            f"  {'groups':>8}  {'rows':>8}  score",
        ]
        for groups, rows, own in zip(learned.groups, learned.rows, learned.draws.T, strict=True):
            lines.append(f"  {groups:>8,}  {round(rows):>8,}  {own.mean():.3f}")
        one = self.curve
        lines += [f"  score = {one.a:.3f} {one.b:+.3f} groups^-{one.c:.2f}", ""]
        for times, far in zip(TIMES, self.expected, strict=True):
            lines.append(f"  {times} x the data: {far.score:.3f}, with 90 % between {far.low:.3f} and {far.high:.3f}")
        for name, missing in self.uncovered.items():
            shown = ", ".join(f"{unit} {count}" for unit, count in missing.counts[:NUM_SHOWN]) or "none"
            lines += ["", f"  {name} of validation that no training row has: {len(missing.counts):,} of "
                      f"{missing.different:,} ({missing.share:.1%} of all occurrences): {shown}"]  # fmt: skip
        return "\n".join(lines)


def forecast_recipe(recipe: Recipe, base: str | None = None, minutes: float | None = None) -> Forecast:
    """The forecast for a recipe's data.

    Args:
        recipe: its task chooses the proxy, its data and languages the rows.
        base: embeds labelled images, where the proxy needs it; None: the recipe's own where its task embeds.
        minutes: no further draw starts after them, but for the first three.

    Raises UsageError for an unknown base or one of another task, and for data with too few groups or validation rows.
    """
    name = task_of(recipe.task, recipe.method.kind).name
    proxy = PROXIES[name]
    found = find_base(base, task="align") if base else None
    dataset = load_data(recipe.data, recipe.language, recipe.data_options)
    sides = [_rows(dataset, recipe, split, proxy) for split in ("train", "validation")]
    if found is None and proxy.embeds and any(row["image"] for row in sides[0]):
        found = find_base(recipe.base, task="align")
    check_enough(recipe.data, sides[0], sides[1])
    score = proxy.fit(dataset, found, *sides)
    learning = learn(score, [row["group"] for row in sides[0]], minutes=minutes)
    curve = fit_curve(learning.groups, learning.draws.mean(axis=0).tolist(), proxy.best)
    wanted = [float(times * learning.groups[-1]) for times in TIMES]
    expected = tuple(forecast(learning.groups, learning.draws, wanted, proxy.best))
    missing = coverage(*sides)
    languages = tuple(recipe.language)
    return Forecast(recipe.name, recipe.data, languages, proxy, learning, curve, expected, missing, len(sides[1]))


def check_enough(data: str, train: Sequence[Row], validation: Sequence[Row]) -> None:
    """Raise UsageError where a curve can't be fitted."""
    groups = len({row["group"] for row in train})
    if groups < LEAST_GROUPS or len(validation) < LEAST_VALIDATION:
        raise UsageError(
            f"data '{data}' has {len(train):,} usable training rows in {groups:,} groups and {len(validation):,} "
            f"validation rows: a forecast needs {LEAST_GROUPS} groups and {LEAST_VALIDATION} validation rows. See "
            "`kauli data check`."
        )


def learn(
    score: Score, groups: Sequence[str], *, seed: int = 0, draws: int = DRAWS, minutes: float | None = None
) -> Learning:
    """The scores of nested subsets of groups, from a sixteenth to all, in several random orders."""
    began = time.monotonic()
    names = sorted(set(groups))
    number = {name: at for at, name in enumerate(names)}
    place = np.array([number[name] for name in groups])
    sizes = subset_sizes(len(names))
    whole = score(np.arange(len(groups)))
    scores, rows = list[list[float]](), list[list[int]]()
    random = np.random.default_rng(seed)
    with bar("Learning from subsets", draws) as advance:
        for draw in range(draws):
            if draw >= LEAST_DRAWS and minutes is not None and time.monotonic() - began > 60 * minutes:
                break
            rank = random.permutation(len(names))[place]
            subsets: list[Ints] = [np.flatnonzero(rank < size) for size in sizes[:-1]]
            scores.append([*(score(one) for one in subsets), whole])
            rows.append([*map(len, subsets), len(groups)])
            advance()
    return Learning(tuple(sizes), tuple(np.mean(rows, axis=0).tolist()), np.array(scores))


def subset_sizes(groups: int) -> list[int]:
    """Rising numbers of groups, in even steps of the logarithm, the last all."""
    return sorted({round(groups * one) for one in np.geomspace(max(_SMALLEST, 6 / groups), 1, _SIZES)})


def _rows(dataset: Dataset, recipe: Recipe, split: str, proxy: Proxy) -> list[Row]:
    """The rows of a split that the proxy can use; `image` and `audio` are hashes."""
    found = []
    for row in dataset.iter_rows(split, recipe.language, _COLUMNS):
        one = {**row, **{name: content_key(row[name]) if row[name] else None for name in ("image", "audio")}}
        if proxy.usable(one):
            found.append(one)
    return found
