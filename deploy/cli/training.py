"""`kauli train`, `kauli eval` and `kauli compare`.

Heavy imports are inside the functions, so that `kauli --help` answers at once.
"""

import shlex
from contextlib import AbstractContextManager, nullcontext
from dataclasses import asdict
from pathlib import Path
from typing import Annotated, Any

import typer

from kauli.deploy.cli.terminal import AcceptTerms, Json, Overrides, Storage, hint, output, table
from kauli.models.errors import UsageError
from kauli.models.metrics import label
from kauli.models.paths import default_storage


def train(
    recipe: Annotated[str, typer.Argument(help="A recipe by name (text-sw) or a YAML file.")],
    overrides: Overrides = None,
    accept_terms: AcceptTerms = False,
    restart: Annotated[bool, typer.Option("--restart", help="Delete the checkpoints of an interrupted run.")] = False,
    no_ray: Annotated[
        bool, typer.Option("--no-ray", help="Train in this process, with one worker, without Ray.")
    ] = False,
    address: Annotated[
        str | None,
        typer.Option(
            "--address", envvar="RAY_ADDRESS", help="Train on this Ray cluster (HOST:6379, auto) [RAY_ADDRESS]."
        ),
    ] = None,
    storage: Storage = None,
    as_json: Json = False,
) -> None:
    """Train an adapter by a recipe, evaluate it on held-out data and publish it; an interrupted run is resumed.

    The second line of the result says whether the adapter is better than its base.
    """
    from kauli.training.recipe_file import load_recipe
    from kauli.training.train import train as run_training

    place: AbstractContextManager[None] = nullcontext()
    loaded, where = load_recipe(recipe, overrides or []), storage or default_storage()
    if address and not no_ray:
        from kauli.models.adapters.nodes import joined_cluster

        place = joined_cluster(address, where)  # before anything is prepared: a mistake is told at once
    with place:
        result = run_training(
            loaded, where, accept_terms=accept_terms, restart=restart, use_ray=not no_ray
        )  # fmt: skip
    aliases = f" ({', '.join(result.aliases)})" if result.aliases else ""
    fields: dict[str, Any] = {"adapter": result.adapter, "path": str(result.path)}
    fields |= {"metrics": dict(result.metrics), "aliases": list(result.aliases), "verdict": asdict(result.verdict)}
    output(as_json, fields, f"{result.adapter}{aliases}  {result.path}\n{result.verdict.text}")
    hint(f"kauli eval {result.adapter} --out report.html")


def evaluate(
    adapter: Annotated[str, typer.Argument(metavar="NAME[@VERSION]", help="An adapter, e.g. text-sw@latest.")],
    data: Annotated[str | None, typer.Option("--data", help="Another data set than that of the training.")] = None,
    split: Annotated[str, typer.Option("--split", help="train, validation or test.")] = "test",
    out: Annotated[Path | None, typer.Option("--out", help="Write a report (one HTML file).")] = None,
    limit: Annotated[int | None, typer.Option("--limit", min=1, help="Generate for at most this many rows.")] = None,
    storage: Storage = None,
    as_json: Json = False,
) -> None:
    """Evaluate an adapter and its base on held-out rows, with 95 % intervals."""
    if split not in ("train", "validation", "test"):
        raise UsageError(f"split '{split}' is unknown: use train, validation or test")
    from kauli.training.evaluation.run import evaluate as run_evaluation

    again = f"kauli eval {adapter}{f' --data {shlex.quote(data)}' if data else ''} --split {split}"
    result = run_evaluation(adapter, storage or default_storage(), data=data, split=split, out=out, limit=limit)
    output(as_json, result.to_json(), result.summary())
    better = f"kauli adapters promote {result.adapter} prod"
    hint(f"open {shlex.quote(str(out))}" if out else better if result.verdict.better else f"{again} --out report.html")


def certify(
    adapter: Annotated[str, typer.Argument(metavar="NAME[@VERSION]", help="An adapter, e.g. text-sw@latest.")],
    rows: Annotated[int, typer.Option("--rows", min=1, help="Validation rows that are answered.")] = 200,
    data: Annotated[str | None, typer.Option("--data", help="Another data set than that of the training.")] = None,
    green: Annotated[float | None, typer.Option("--green", help="An answer is green from this score on.")] = None,
    yellow: Annotated[float | None, typer.Option("--yellow", help="And yellow from this one on.")] = None,
    storage: Storage = None,
    as_json: Json = False,
) -> None:
    """Learn on validation rows how good each answer of an adapter will be; publish the same weights with that.

    Answers then come with an expected score, a bound that holds for nine of ten, and a colour.
    """
    if (green is None) != (yellow is None):
        raise UsageError("give both --green and --yellow, or none")
    from kauli.training.certify import certify as run_certification

    thresholds = None if green is None or yellow is None else (green, yellow)
    result = run_certification(adapter, storage or default_storage(), rows=rows, data=data, thresholds=thresholds)
    lines = [
        {"language": tag, "score": label(one.metric), "rows": one.segments, "groups": one.groups,
         "bound holds": f"{one.coverage:.0%}", "rank correlation": f"{one.rank_correlation:.2f}",
         "green from": one.green, "yellow from": one.yellow}
        for tag, one in result.certificates.items()
    ]  # fmt: skip
    aliases = f" ({', '.join(result.aliases)})" if result.aliases else ""
    fields = {"adapter": result.adapter, "aliases": list(result.aliases)}
    certificates = {tag: one.model_dump(mode="json") for tag, one in result.certificates.items()}
    text = f"{result.adapter}{aliases}\n{table(lines, list(lines[0]))}"
    output(as_json, fields | {"certificates": certificates}, text)
    hint(f"kauli adapters promote {result.adapter} prod")


def compare(
    recipes: Annotated[list[str], typer.Argument(metavar="RECIPE...", help="Recipes; the first is the reference.")],
    seeds: Annotated[int, typer.Option("--seeds", min=1, help="Runs of each recipe, one a seed.")] = 5,
    folds: Annotated[
        int | None, typer.Option("--folds", min=2, help="Test every group once, by so many runs a seed.")
    ] = None,
    overrides: Overrides = None,
    storage: Storage = None,
    as_json: Json = False,
) -> None:
    """Train recipes with the same seeds and print their differences with 95 % intervals; finished runs are kept."""
    from kauli.training.compare import compare as run_comparison
    from kauli.training.recipe_file import load_recipe

    loaded = [load_recipe(name, overrides or []) for name in recipes]
    result = run_comparison(loaded, seeds, storage or default_storage(), folds=folds)
    output(as_json, result.to_json(), result.summary())
