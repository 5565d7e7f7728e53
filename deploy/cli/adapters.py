"""The commands `kauli adapters ...`: list, show, add, promote, revoke and remove adapters."""

import sys
import tempfile
from pathlib import Path
from typing import Annotated

import typer

from kauli.deploy.cli.terminal import Json, Storage, hint, output, split_list, table
from kauli.models.errors import UsageError
from kauli.models.paths import default_storage

app = typer.Typer(no_args_is_help=True, rich_markup_mode=None, help="List, add, promote, revoke and remove adapters.")


@app.command("list")
def adapters_list(storage: Storage = None, as_json: Json = False) -> None:
    """List the registry's adapters with their versions, languages, bases and aliases."""
    from kauli.models.adapters.listing import list_adapters
    from kauli.models.adapters.registry import Registry

    where = storage or default_storage()
    rows = [vars(row) for row in list_adapters(Registry(where))]
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
    without_certificate: Annotated[
        bool, typer.Option("--without-certificate", help="Let prod mean a version without one; the alias records it.")
    ] = False,
    storage: Storage = None,
    as_json: Json = False,
) -> None:
    """Point an alias to a version; `prod` is what a bare NAME means, and asks for a certificate."""
    from kauli.models.adapters.registry import Registry
    from kauli.models.tasks import task_of

    registry = Registry(storage or default_storage())
    if "@" not in adapter:
        raise UsageError(f"'{adapter}' names no version: add one, for example {adapter}@1 or {adapter}@latest")
    name, version = registry.resolve(adapter)
    card = registry.card(f"{name}@{version}")
    bare = bool(task_of(card.task, str(card.method.get("kind", ""))).certified) and not card.certificates
    if alias == "prod" and bare and not without_certificate:
        raise UsageError(
            f"{name}@{version} has no certificate: nobody knows which of its answers can be trusted. Run `kauli "
            f"certify {name}@{version}` and promote what it publishes, or add --without-certificate"
        )
    registry.set_alias(name, version, alias, certified=not bare)
    found = {"adapter": f"{name}@{version}", "aliases": registry.aliases(name)}
    output(as_json, found, f"{name}@{alias} -> {name}@{version}")


@app.command("revoke")
def adapters_revoke(
    adapter: Annotated[str, typer.Argument(metavar="NAME[@VERSION]", help="Without a version: all versions.")],
    why: Annotated[str, typer.Option("--why", help="Shown to whoever asks for it.")],
    storage: Storage = None,
    as_json: Json = False,
) -> None:
    """Let nobody use a version any more, such as when a speaker withdraws consent; services stop within seconds."""
    from kauli.models.adapters.registry import Registry

    revoked = Registry(storage or default_storage()).revoke(adapter, why)
    output(as_json, {"revoked": revoked}, f"revoked {', '.join(revoked)}")
    hint(f"kauli adapters remove {revoked[0]} deletes its files")


@app.command("remove")
def adapters_remove(
    adapter: Annotated[str, typer.Argument(metavar="NAME@VERSION")], storage: Storage = None, as_json: Json = False
) -> None:
    """Remove a version that no alias points to (NAME@3), or an alias (NAME@prod: its version stays)."""
    from kauli.models.adapters.registry import Registry

    Registry(storage or default_storage()).remove(adapter)
    output(as_json, {"removed": adapter}, f"removed {adapter}")
