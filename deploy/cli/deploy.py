"""`kauli deploy`: the manifests of a fleet."""

from pathlib import Path
from typing import Annotated

import typer

from kauli.deploy.cli.terminal import Json, hint, output

app = typer.Typer(no_args_is_help=True, help="Manifests for compose and Kubernetes.")


@app.command()
def render(
    profile: Annotated[str, typer.Option("--profile", help="laptop, gpu-box or cluster.")],
    overrides: Annotated[
        list[str] | None,
        typer.Option("--set", metavar="KEY=VALUE", help="Change a key of the fleet; the value is YAML."),
    ] = None,
    out: Annotated[Path, typer.Option("--out", help="The folder to write to.")] = Path("deploy"),
    as_json: Json = False,
) -> None:
    """Write the manifests of a fleet: compose, KubeRay, dashboard and alerts."""
    from kauli.deploy.fleet.config import load_fleet
    from kauli.deploy.fleet.render import render as render_fleet
    from kauli.deploy.fleet.render import write

    changes = overrides or []
    paths = write(render_fleet(load_fleet(profile, changes), profile, changes), out)
    output(as_json, [str(path) for path in paths], "\n".join(str(path) for path in paths))
    hint(f"kubectl apply -f {out}/kuberay/base.yaml, or docker compose -f {out}/docker/compose.yaml up")
