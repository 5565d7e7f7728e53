"""The `kauli` command: every function here parses, calls one function and prints its result.

`kauli adapters ...` is in `kauli.deploy.cli.adapters`, shared options and output in `kauli.deploy.cli.terminal`.
Heavy imports are inside the functions, so that `kauli --help` answers at once.
"""

import sys
from pathlib import Path
from typing import Annotated, Any

import typer

from kauli.deploy.cli import adapters
from kauli.deploy.cli.terminal import Command, Json, Storage, answer_fields, hint, output, split_list
from kauli.models.errors import UsageError
from kauli.models.paths import default_storage
from kauli.serving.tasks import DEFAULT_BASE, TASKS

# Plain text help: Rich panels cost 0.2 s at every start.
app = typer.Typer(
    cls=Command, no_args_is_help=True, add_completion=False, rich_markup_mode=None, pretty_exceptions_enable=False,
    help="Train small adapters for languages with little data, evaluate them, and serve them.",
)  # fmt: skip
data_app = typer.Typer(no_args_is_help=True, rich_markup_mode=None, help="Build the starter data, or check your own.")
app.add_typer(data_app, name="data")
app.add_typer(adapters.app, name="adapters")

AcceptTerms = Annotated[bool, typer.Option("--accept-terms", help="Accept the terms of use of a base.")]
Overrides = Annotated[
    list[str] | None, typer.Option("--set", metavar="KEY=VALUE", help="Change a key of the recipe; the value is YAML.")
]


def main() -> None:
    """Entry point of the `kauli` script."""
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


@data_app.command("build")
def data_build(
    languages: Annotated[str, typer.Option("--languages", help="BCP-47 tags separated by commas, e.g. sw,am.")],
    out: Annotated[Path | None, typer.Option("--out", help="Folder to write to [KAULI_HOME/data/starter].")] = None,
    storage: Storage = None,
    as_json: Json = False,
) -> None:
    """Build the starter data set of some languages from open packages."""
    from kauli.models.languages import check_tag
    from kauli.training.data.starter import build

    tags = [check_tag(tag) for tag in split_list(languages, "--languages")]
    folder = build(tags, out)
    output(as_json, {"folder": str(folder), "languages": tags}, str(folder))
    hint(f"kauli data check {folder}" if out else f"kauli train text-{tags[0]}")


@data_app.command("check")
def data_check(
    path: Annotated[str, typer.Argument(help="A data set: `starter`, a file, a folder or a URI.")],
    languages: Annotated[str | None, typer.Option("--languages", help="Only these languages [all].")] = None,
    base: Annotated[
        str | None, typer.Option("--base", help=f"Measure this base's tokenizer too [{DEFAULT_BASE} if fetched].")
    ] = None,
    storage: Storage = None,
    as_json: Json = False,
) -> None:
    """Profile a data set: rows, groups, splits, scripts, lengths, leaks, licences, and a tokenizer's fit."""
    from kauli.models.bases.find import find_base, local_bases
    from kauli.models.languages import check_tag
    from kauli.training.data.dataset import load_data
    from kauli.training.data.profile import profile, render

    tags = [check_tag(tag) for tag in split_list(languages, "--languages")] if languages is not None else None
    base = base or (DEFAULT_BASE if DEFAULT_BASE in local_bases() else None)
    folder = find_base(base, allow_noncommercial=True).folder if base else None
    result = profile(load_data(path, tags), folder)
    output(as_json, result, render(result))
    hint(f"kauli train text-sw --set data={path} --set language=TAG --set name=NAME")


@app.command()
def train(
    recipe: Annotated[str, typer.Argument(help="A recipe by name (text-sw) or a YAML file.")],
    overrides: Overrides = None,
    accept_terms: AcceptTerms = False,
    restart: Annotated[bool, typer.Option("--restart", help="Delete the checkpoints of an interrupted run.")] = False,
    no_ray: Annotated[
        bool, typer.Option("--no-ray", help="Train in this process, with one worker, without Ray.")
    ] = False,
    storage: Storage = None,
    as_json: Json = False,
) -> None:
    """Train an adapter by a recipe, evaluate it on held-out data and publish it; an interrupted run is resumed."""
    from kauli.training.recipe_file import load_recipe
    from kauli.training.train import train as run_training

    result = run_training(
        load_recipe(recipe, overrides or []), storage or default_storage(),
        accept_terms=accept_terms, restart=restart, use_ray=not no_ray,
    )  # fmt: skip
    aliases = f" ({', '.join(result.aliases)})" if result.aliases else ""
    fields: dict[str, Any] = {"adapter": result.adapter, "path": str(result.path)}
    fields |= {"metrics": dict(result.metrics), "aliases": list(result.aliases)}
    output(as_json, fields, f"{result.adapter}{aliases}  {result.path}")
    hint(f"kauli eval {result.adapter} --out report.html")


@app.command("eval")
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

    result = run_evaluation(adapter, storage or default_storage(), data=data, split=split, out=out, limit=limit)
    output(as_json, result.to_json(), result.summary())
    hint(f"open {out}" if out else f"kauli adapters promote {adapter.split('@')[0]}@VERSION prod; kauli serve")


@app.command()
def compare(
    recipes: Annotated[list[str], typer.Argument(metavar="RECIPE...", help="Recipes; the first is the reference.")],
    seeds: Annotated[int, typer.Option("--seeds", min=1, help="Runs of each recipe, one a seed.")] = 5,
    overrides: Overrides = None,
    storage: Storage = None,
    as_json: Json = False,
) -> None:
    """Train recipes with the same seeds and print their differences with 95 % intervals; finished runs are kept."""
    from kauli.training.compare import compare as run_comparison
    from kauli.training.recipe_file import load_recipe

    loaded = [load_recipe(name, overrides or []) for name in recipes]
    result = run_comparison(loaded, seeds, storage or default_storage())
    output(as_json, result.to_json(), result.summary())


@app.command()
def generate(
    prompt: Annotated[str, typer.Argument(help="The prompt; `-` reads stdin.")],
    model: Annotated[str, typer.Option("--model", help="text, an adapter (text-sw@1) or a base.")] = "text",
    language: Annotated[str | None, typer.Option("--language", help="Choose the adapter by language.")] = None,
    max_tokens: Annotated[int, typer.Option("--max-tokens", min=1, help="At most this many new tokens.")] = 128,
    temperature: Annotated[float, typer.Option("--temperature", min=0.0, max=5.0, help="0 is greedy.")] = 0.0,
    top_p: Annotated[float, typer.Option("--top-p", min=0.0, max=1.0)] = 1.0,
    seed: Annotated[int | None, typer.Option("--seed", help="For temperatures above 0.")] = None,
    storage: Storage = None,
    as_json: Json = False,
) -> None:
    """Generate text with an adapter or a base, without a service."""
    from kauli.serving.local import generate as generate_text

    answer = generate_text(
        storage or default_storage(), sys.stdin.read() if prompt == "-" else prompt, model, language,
        None if as_json else lambda text: print(text, end="", flush=True),
        max_tokens=max_tokens, temperature=temperature, top_p=top_p, seed=seed,
    )  # fmt: skip
    # Without --json the text is printed already, but for the end of its line.
    output(as_json, answer_fields(answer) | {"finish_reason": answer.finish}, "")


@app.command()
def transcribe(
    files: Annotated[list[Path], typer.Argument(metavar="FILE...", help="Audio: WAV, FLAC, Ogg or MP3.")],
    model: Annotated[str, typer.Option("--model", help="transcribe, an adapter (transcribe-be@1) or a base.")] = (
        "transcribe"
    ),
    language: Annotated[
        str | None, typer.Option("--language", help="The language of the audio [detected by the base].")
    ] = None,
    form: Annotated[
        str | None,
        typer.Option("--format", help="text, subtitles (srt, vtt), or OpenAI's json, verbose_json [text]."),
    ] = None,
    words: Annotated[
        bool, typer.Option("--words", help="Add the times of words to --json or --format verbose_json.")
    ] = False,
    prompt: Annotated[
        str | None, typer.Option("--prompt", help="The text before the audio, or names and words that may occur.")
    ] = None,
    storage: Storage = None,
    as_json: Json = False,
) -> None:
    """Transcribe audio files, without a service. Use --json for full details."""
    from kauli.deploy.cli.media import read_audio
    from kauli.deploy.cli.transcripts import as_result, check_format, rendered

    if as_json and form:
        raise UsageError(f"--json and --format {form} are two formats of one result: give one of them")
    check_format(form or "text", len(files))
    if words and not as_json and form != "verbose_json":
        raise UsageError(f"--words does not apply to {form or 'text'}: add --json or --format verbose_json")
    words = words or form in ("srt", "vtt")
    clips = [read_audio(path)[1] for path in files]
    from kauli.serving.local import transcribe as transcribe_all

    route, found = transcribe_all(storage or default_storage(), clips, model, language, prompt, words)
    results = [as_result(path, one, route, words) for path, one in zip(files, found, strict=True)]
    output(as_json, results if len(results) > 1 else results[0], rendered(results, form or "text").rstrip("\n"))


@app.command()
def describe(
    image: Annotated[Path | None, typer.Option("--image", help="An image: PNG, JPEG, WEBP, GIF or BMP.")] = None,
    audio: Annotated[Path | None, typer.Option("--audio", help="An audio file: WAV, FLAC, Ogg or MP3.")] = None,
    prompt: Annotated[
        str | None, typer.Option("--prompt", help="The prompt [the instruction that the adapter was trained with].")
    ] = None,
    model: Annotated[str, typer.Option("--model", help="describe, or an adapter (describe-multi@1).")] = "describe",
    language: Annotated[str | None, typer.Option("--language", help="The language of the description.")] = None,
    max_tokens: Annotated[int, typer.Option("--max-tokens", min=1, help="At most this many new tokens.")] = 64,
    temperature: Annotated[
        float | None, typer.Option("--temperature", min=0.0, max=5.0, help="0 is greedy [0; 0.8 with --rerank].")
    ] = None,
    seed: Annotated[int | None, typer.Option("--seed", help="For temperatures above 0.")] = None,
    rerank: Annotated[
        int,
        typer.Option(
            "--rerank", min=1, max=16, help="Generate N candidates and return the one most similar to the image."
        ),
    ] = 1,
    storage: Storage = None,
    as_json: Json = False,
) -> None:
    """Describe an image, an audio file or both in a language, without a service."""
    from kauli.deploy.cli.media import attachments

    if rerank > 1 and image is None:
        raise UsageError("--rerank compares candidates with an image: give --image FILE")
    attached = attachments(image, audio)
    from kauli.serving.local import describe as describe_media

    answer = describe_media(
        storage or default_storage(), attached, prompt, model, language,
        rerank=rerank, temperature=temperature, max_tokens=max_tokens, seed=seed,
    )  # fmt: skip
    more = {"prompt": answer.prompt, "reranked": rerank if rerank > 1 else None}
    output(as_json, answer_fields(answer) | more, answer.text)


@app.command()
def embed(
    texts: Annotated[list[str] | None, typer.Argument(metavar="[TEXT]...", help="Texts, in any language.")] = None,
    image: Annotated[list[Path] | None, typer.Option("--image", help="An image; may be given several times.")] = None,
    model: Annotated[str, typer.Option("--model", help="A base for images and texts.")] = "kauli-clip",
    storage: Storage = None,
    as_json: Json = False,
) -> None:
    """Embed texts and images in one space: prints their cosines, with --json the embeddings."""
    from kauli.deploy.cli.media import cosine_table, read_image

    words, paths = texts or [], image or []
    images = [read_image(path) for path in paths]
    if not words and not images:
        raise UsageError("nothing to embed: give texts, or images with --image FILE")
    from kauli.serving.local import embed as embed_all

    rows = embed_all(storage or default_storage(), model, [*words, *images])
    inputs = [*({"text": text} for text in words), *({"image": str(path)} for path in paths)]
    found = [one | {"embedding": row.tolist()} for one, row in zip(inputs, rows, strict=True)]
    output(as_json, found, cosine_table([*words, *(path.name for path in paths)], rows))


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
    once: Annotated[bool, typer.Option("--once", help="Exit after the answers instead of serving on.")] = False,
    minutes: Annotated[float, typer.Option("--minutes", min=0.05, help="Time of each training.")] = 3.0,
    port: Annotated[int, typer.Option("--port", help="Port of the service.", min=1, max=65535)] = 8000,
    storage: Storage = None,
) -> None:
    """Fetch bases, train adapters of every task, evaluate them, serve them and send requests."""
    from kauli.deploy.cli.demo import run_demo

    run_demo(storage or default_storage(), minutes=minutes, port=port, once=once)
