"""The commands `kauli adapters ...`: list, show, add, promote and remove adapters."""

import sys
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from kauli.deploy.cli.terminal import Json, Storage, hint, output, split_list, table
from kauli.models.errors import UsageError
from kauli.models.paths import default_storage

if TYPE_CHECKING:
    from kauli.models.adapters.card import Card
    from kauli.models.adapters.registry import Registry

app = typer.Typer(no_args_is_help=True, rich_markup_mode=None, help="List, add, promote and remove adapters.")


@app.command("list")
def adapters_list(storage: Storage = None, as_json: Json = False) -> None:
    """List the registry's adapters with their versions, languages, bases and aliases."""
    from kauli.models.adapters.registry import Registry

    where = storage or default_storage()
    rows = _rows(Registry(where))
    columns = ["adapter", "aliases", "task", "language", "base", "licence", "metric", "score", "base_score"]
    if rows or as_json:
        output(as_json, rows, table(rows, columns))
    if rows:
        hint("kauli adapters show NAME, or kauli serve")
    else:
        print(f"No adapters in {where}.", file=sys.stderr)
        hint("kauli train text-sw")


@app.command("show")
def adapters_show(
    adapter: Annotated[str, typer.Argument(metavar="NAME[@VERSION]")], storage: Storage = None, as_json: Json = False
) -> None:
    """Print an adapter's model card."""
    from kauli.models.adapters.page import render_readme
    from kauli.models.adapters.registry import Registry

    card = Registry(storage or default_storage()).card(adapter)
    output(as_json, card.model_dump(mode="json"), render_readme(card))


@app.command("add")
def adapters_add(
    folder: Annotated[Path, typer.Argument(help="A folder saved by PEFT (safetensors).")],
    name: Annotated[str, typer.Option("--name", help="Name in the registry.")],
    language: Annotated[str, typer.Option("--language", help="BCP-47 tags separated by commas.")],
    base: Annotated[str, typer.Option("--base", help="The base that it was trained on.")],
    accept_base: Annotated[
        bool, typer.Option("--accept-base", help="Add it although it names another base; the card records this.")
    ] = False,
    storage: Storage = None,
    as_json: Json = False,
) -> None:
    """Publish an adapter that was made with plain PEFT."""
    from kauli.models.adapters.peft_import import find_peft_base, from_peft
    from kauli.models.adapters.registry import Registry
    from kauli.models.languages import check_tag
    from kauli.models.tasks import TASKS

    tags = [check_tag(tag) for tag in split_list(language, "--language")]  # before a base is fetched
    found = find_peft_base(base)
    with tempfile.TemporaryDirectory(prefix="kauli-add-") as scratch:  # the folder itself is not changed
        out = Path(scratch) / "adapter"
        card = from_peft(folder, out, name=name, language=tags, base=found, accept_base=accept_base)
        published = Registry(storage or default_storage()).publish(out, card)
    adapter = f"{published.name}@{published.version}"
    output(as_json, {"adapter": adapter, "path": published.uri}, f"{adapter}  {published.uri}")
    hint(f"{TASKS[found.task].command} --model {adapter}")


@app.command("promote")
def adapters_promote(
    adapter: Annotated[str, typer.Argument(metavar="NAME@VERSION")],
    alias: Annotated[str, typer.Argument(help="prod, or any other name.")],
    storage: Storage = None,
    as_json: Json = False,
) -> None:
    """Point an alias to a version; `prod` is what a bare NAME means."""
    from kauli.models.adapters.registry import Registry

    registry = Registry(storage or default_storage())
    if "@" not in adapter:
        raise UsageError(f"'{adapter}' names no version: add one, for example {adapter}@1 or {adapter}@latest")
    name, version = registry.resolve(adapter)
    registry.set_alias(name, version, alias)
    found = {"adapter": f"{name}@{version}", "aliases": registry.aliases(name)}
    output(as_json, found, f"{name}@{alias} -> {name}@{version}")


@app.command("remove")
def adapters_remove(
    adapter: Annotated[str, typer.Argument(metavar="NAME@VERSION")], storage: Storage = None, as_json: Json = False
) -> None:
    """Remove a version that no alias points to (NAME@3), or an alias (NAME@prod: its version stays)."""
    from kauli.models.adapters.registry import Registry

    Registry(storage or default_storage()).remove(adapter)
    output(as_json, {"removed": adapter}, f"removed {adapter}")


def _rows(registry: "Registry") -> list[dict[str, Any]]:
    """One row for each version in the registry, names in order, newest versions first."""
    rows = []
    for name in registry.names():
        aliases = registry.aliases(name)
        for version in reversed(registry.versions(name)):
            card = registry.card(f"{name}@{version}")
            metric = _main_metric(card)
            rows.append(
                {
                    "adapter": f"{name}@{version}",
                    "aliases": [alias for alias, number in aliases.items() if number == version],
                    "task": card.task,
                    "language": card.language,
                    "base": card.base.name,
                    "licence": card.licence,
                    "created": card.created,
                    "metric": metric,
                    "score": card.metrics.get(metric),
                    "base_score": (card.base_metrics or {}).get(metric),
                }
            )
    return rows


def _main_metric(card: "Card") -> str:
    """The headline metric of its task; of synthetic rows where no others were measured."""
    from kauli.models.metrics import SYNTHETIC
    from kauli.models.tasks import task_of

    try:
        names = task_of(card.task, str(card.method.get("kind", ""))).headline
    except KeyError:  # an adapter of a later version
        names = ("bits_per_byte",)
    measured = [prefix + name for prefix in ("", SYNTHETIC) for name in names if prefix + name in card.metrics]
    return measured[0] if measured else names[0]
