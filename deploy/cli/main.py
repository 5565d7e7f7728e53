"""The `kauli` command: every function here parses, calls one function and prints its result.

The commands of a kind are in a file beside this one, shared options and output in `kauli.deploy.cli.terminal`.
Heavy imports are inside the functions, so that `kauli --help` answers at once.
"""

import sys
from io import TextIOWrapper
from pathlib import Path
from typing import Annotated

import typer

from kauli.deploy.cli import adapters, answers, data, deploy, doctor, memory, training
from kauli.deploy.cli.speak import speak
from kauli.deploy.cli.talk import talk
from kauli.deploy.cli.terminal import AcceptTerms, Command, Json, Storage, hint, output, split_list
from kauli.deploy.cli.translate import translate
from kauli.models.paths import default_storage
from kauli.serving.tasks import DEFAULT_BASE, TASKS

# Plain text help: Rich panels cost 0.2 s at every start.
app = typer.Typer(
    cls=Command, no_args_is_help=True, add_completion=False, rich_markup_mode=None, pretty_exceptions_enable=False,
    help="Train small adapters for languages with little data, evaluate them, and serve them.",
)  # fmt: skip
app.add_typer(data.app, name="data")
app.add_typer(adapters.app, name="adapters")
app.add_typer(memory.app, name="memory")
app.add_typer(deploy.app, name="deploy")


def main() -> None:
    """Entry point of the `kauli` script."""
    if isinstance(sys.stdout, TextIOWrapper):  # a file's name or a terminal that is not UTF-8 ends no command
        sys.stdout.reconfigure(errors="backslashreplace")
    app(prog_name="kauli")


@app.command()
def fetch(
    bases: Annotated[list[str] | None, typer.Argument(metavar="[BASE]...", help="Names, hub ids or folders.")] = None,
    accept_terms: AcceptTerms = False,
    storage: Storage = None,
    as_json: Json = False,
) -> None:
    """Download bases, check them, and print the folder of each."""
    from kauli.deploy.cli.commands import bring_base

    found = [bring_base(name, accept_terms) for name in bases or [DEFAULT_BASE]]
    shown = [{"name": b.name, "folder": str(b.folder), "sha256": b.sha256, "licence": b.licence} for b in found]
    output(as_json, shown, "\n".join(str(base.folder) for base in found))
    hint("kauli data build --languages sw")


app.command()(training.train)
app.command("eval")(training.evaluate)
app.command()(training.certify)
app.command()(training.compare)
app.command()(answers.generate)
app.command()(translate)
app.command()(answers.transcribe)
app.command()(answers.describe)
app.command()(speak)
app.command()(talk)
app.command()(answers.embed)
app.command()(doctor.doctor)


@app.command()
def serve(
    config: Annotated[Path | None, typer.Option("--config", help="A YAML file like deploy/local.yaml.")] = None,
    host: Annotated[str | None, typer.Option("--host", help="Address to listen on [127.0.0.1, KAULI_HOST].")] = None,
    port: Annotated[int | None, typer.Option("--port", help="Port [8000, KAULI_PORT].", min=1, max=65535)] = None,
    tasks: Annotated[
        str | None,
        typer.Option("--tasks", help=f"Some of {', '.join(TASKS)} [those that the storage has adapters for]."),
    ] = None,
    base: Annotated[
        list[str] | None,
        typer.Option("--base", help="A base for text; the first is the default [those of the adapters]."),
    ] = None,
    address: Annotated[
        str | None, typer.Option("--address", help="Join this Ray cluster instead of starting one here.")
    ] = None,
    storage: Storage = None,
) -> None:
    """Serve bases and adapters behind an OpenAI-compatible endpoint, until Ctrl-C."""
    from kauli.deploy.cli.commands import serve_until_stopped
    from kauli.serving.settings import load_settings

    settings = load_settings(
        config, host=host, port=port, tasks=split_list(tasks, "--tasks") if tasks is not None else None,
        bases=base or None, storage=storage,
    )  # fmt: skip
    serve_until_stopped(settings, address)


@app.command()
def demo(
    once: Annotated[bool, typer.Option("--once", help="Exit after the first round instead of serving on.")] = False,
    minutes: Annotated[float, typer.Option("--minutes", min=0.05, help="Time of each training.")] = 2.0,
    tasks: Annotated[
        str | None,
        typer.Option("--tasks", help="Some of transcribe, head, text, translate, describe [all, in this order]."),
    ] = None,
    port: Annotated[int, typer.Option("--port", help="Port of the service.", min=1, max=65535)] = 8000,
    storage: Storage = None,
) -> None:
    """Train an adapter of each task, serve it and ask it beside its base; further ones follow, until Ctrl-C."""
    from kauli.deploy.cli.demo import run_demo

    chosen = split_list(tasks, "--tasks") if tasks is not None else []
    run_demo(storage or default_storage(), tasks=chosen, minutes=minutes, port=port, once=once)
