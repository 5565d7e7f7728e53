"""Recipes side by side: the same test groups and seeds, every finished cell kept, paired differences with intervals."""

import json
from collections.abc import Callable, Sequence
from time import perf_counter

import numpy as np

from kauli.models.adapters.store import Store, open_store
from kauli.models.errors import KauliError, UsageError
from kauli.models.metrics import METRICS, SYNTHETIC
from kauli.models.progress import note
from kauli.training.data.dataset import load_data
from kauli.training.evaluation.comparison import ENGLISH, Cell, CompareResult, Line, cell_from_json
from kauli.training.evaluation.results import Scores
from kauli.training.evaluation.scorers import Tally, merge
from kauli.training.recipe import Recipe
from kauli.training.train import train

RunCell = Callable[[Recipe, str], Cell]


def compare(
    recipes: Sequence[Recipe], seeds: int, storage: str, run: RunCell | None = None, folds: int | None = None
) -> CompareResult:
    """Train every recipe with seeds 0 to `seeds - 1`, evaluate each on its test split, and compare them.

    A cell is stored as soon as it is finished, under the hash of its recipe (without the seed) and the seed, and is not
    run again: an interrupted comparison resumes where it stopped, and a new recipe needs its own cells alone.

    Args:
        recipes: the first one is what the others are compared with.
        seeds: how many.
        storage: URI of the store.
        run: trains and evaluates one recipe (with its seed set); by default `run_cell`.
        folds: so many parts of all groups, each tested once by a run that did not see it; None: the test split alone.

    Raises:
        UsageError: no seed, the same recipe twice, or no language in common.
        KauliError: the stored cells were not measured on the same test rows.
    """
    if seeds < 1:
        raise UsageError(f"--seeds {seeds}: at least one seed is needed.")
    if len({recipe.sha256(with_seed=False) for recipe in recipes}) < len(recipes):
        raise UsageError("the same recipe is given twice: recipes that are compared differ in more than their seed.")
    if len({recipe.task for recipe in recipes}) > 1:
        listed = ", ".join(f"{recipe.name}: {recipe.task}" for recipe in recipes)
        raise UsageError(f"these recipes are of different tasks ({listed}): they have no figures in common.")
    common = [tag for tag in recipes[0].language if all(tag in recipe.language for recipe in recipes)]
    if not common:
        spoken = "; ".join(f"{recipe.name}: {', '.join(recipe.language)}" for recipe in recipes)
        raise UsageError(f"these recipes have no language in common ({spoken}): there are no rows to compare them on.")
    store = open_store(storage, "runs/compare")
    parts = [None] if folds is None else _parts(recipes, common, folds)
    planned = [(recipe, seed, part) for recipe in recipes for seed in range(seeds) for part in parts]
    cells: dict[str, list[list[Cell]]] = {recipe.sha256(with_seed=False): [] for recipe in recipes}
    for number, (recipe, seed, part) in enumerate(planned, start=1):
        of_part = f", fold {part[0] + 1} of {part[1]}" if part else ""
        place = f"cell {number} of {len(planned)}: {recipe.name}, seed {seed}{of_part}"
        mine = cells[recipe.sha256(with_seed=False)]
        if part is None or part[0] == 0:
            mine.append([])
        mine[-1].append(_cell(store, storage, _in_fold(recipe, part), seed, place, run or run_cell))
    names = _labels(recipes)
    # examples are generated for rows spread over all of a recipe's languages: other languages, other rows
    metrics = tuple(METRICS) if len({frozenset(recipe.language) for recipe in recipes}) == 1 else ("bits_per_byte",)
    lines = [_line(name, of_recipe, common, metrics) for name, of_recipe in zip(names, cells.values(), strict=True)]
    _check_same_rows(lines, store)
    groups = next(iter(lines[0].sums.values())).shape[1]
    return CompareResult(tuple(common), tuple(range(seeds)), groups, tuple(lines), folds)


def run_cell(recipe: Recipe, storage: str) -> Cell:
    """Train a recipe with the seed that it holds; training ends with the evaluation on the test split."""
    start = perf_counter()
    trained = train(recipe, storage, promote=False)
    seconds = round(perf_counter() - start, 1)
    result, sha256 = trained.evaluation, recipe.sha256(with_seed=False)
    return Cell(recipe.name, sha256, recipe.train.seed, trained.adapter, seconds, result.scores, result.base_scores)


def _cell(store: Store, storage: str, recipe: Recipe, seed: int, place: str, run: RunCell) -> Cell:
    path = f"{recipe.sha256(with_seed=False)[:16]}-{seed}.json"
    stored = store.read(path)
    if stored is not None:
        note(f"{place} (finished before)")
        try:
            return cell_from_json(json.loads(stored))
        except (ValueError, KeyError, TypeError) as error:
            raise KauliError(f"the stored cell {store.uri}/{path} can't be read: delete it to run it again.") from error
    note(place)
    seeded = recipe.model_copy(update={"train": recipe.train.model_copy(update={"seed": seed})})
    cell = run(seeded, storage)
    store.write(path, json.dumps(cell.to_json(), ensure_ascii=False).encode())
    return cell


def _parts(recipes: Sequence[Recipe], languages: Sequence[str], folds: int) -> list[tuple[int, int]]:
    """[K, N] of each fold. Raises UsageError where some data has fewer groups than folds."""
    if folds < 2:
        raise UsageError(f"--folds {folds}: at least two folds are needed.")
    for recipe in recipes:
        rows = load_data(recipe.data, languages, recipe.data_options).iter_rows(None, languages, ["group"])
        if (count := len({row["group"] for row in rows})) < 2 * folds:
            raise UsageError(
                f"--folds {folds}: the data of {recipe.name} has {count} groups in {', '.join(languages)}; at least "
                f"{2 * folds} are needed, so that something is left to learn from."
            )
    return [(part, folds) for part in range(folds)]


def _in_fold(recipe: Recipe, part: tuple[int, int] | None) -> Recipe:
    if part is None:
        return recipe
    return recipe.model_copy(update={"data_options": recipe.data_options.model_copy(update={"fold": part})})


def _line(name: str, cells: Sequence[Sequence[Cell]], languages: list[str], metrics: Sequence[str]) -> Line:
    """Stack the cells of one recipe, those of one seed's folds together.

    Its seeds were scored on the same rows, or this raises KauliError.
    """
    ours = [_merged([_tallies(cell.scores, languages, metrics) for cell in of_seed]) for of_seed in cells]
    theirs = [_merged([_tallies(cell.base_scores, languages, metrics) for cell in of_seed]) for of_seed in cells]
    shared = [metric for metric in ours[0] if all(metric in one for one in ours + theirs)]
    for metric in shared:
        if len({one[metric].groups for one in ours + theirs}) > 1:
            raise KauliError(f"the seeds of {name} were scored on different test rows: its data changed between them.")
    flat = [cell for of_seed in cells for cell in of_seed]
    adapters, seconds = tuple(cell.adapter for cell in flat), tuple(cell.seconds for cell in flat)
    sums = ({metric: np.stack([one[metric].sums for one in side]) for metric in shared} for side in (ours, theirs))
    return Line(name, flat[0].sha256, adapters, seconds, *sums)


def _merged(folds: Sequence[dict[str, Tally]]) -> dict[str, Tally]:
    """Metric -> the sums of all folds; a metric that one of them lacks is left out."""
    return {name: merge([one[name] for one in folds]) for name in folds[0] if all(name in one for one in folds)}


def _tallies(scores: Scores, languages: list[str], metrics: Sequence[str]) -> dict[str, Tally]:
    english = {ENGLISH: merge(list(scores.english.values()))} if scores.english else {}
    total = scores.total(languages)
    return {name: one for name, one in total.items() if name.removeprefix(SYNTHETIC) in metrics} | english


def _check_same_rows(lines: Sequence[Line], store: Store) -> None:
    """Bytes by group are a fingerprint of the test rows: they are the text's, not the system's."""
    for metric in ("bits_per_byte", SYNTHETIC + "bits_per_byte"):
        sizes = [line.sums[metric][:, :, 1].tolist() if metric in line.sums else None for line in lines]
        # in no line: a task without texts to predict; the pairing checks the number of rows
        for line, size in zip(lines, sizes, strict=True):
            if size != sizes[0]:
                raise KauliError(
                    f"{line.name} and {lines[0].name} were scored on different test rows, so they can't be compared: "
                    f"their data differ, or changed between the runs. Finished cells lie in {store.uri}: delete the "
                    "old."
                )


def _labels(recipes: Sequence[Recipe]) -> list[str]:
    names = [recipe.name for recipe in recipes]
    return [
        name if names.count(name) == 1 else f"{name} ({recipe.sha256(with_seed=False)[:8]})"
        for name, recipe in zip(names, recipes, strict=True)
    ]
