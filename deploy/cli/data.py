"""`kauli data ...`: the starter data, and a look at one's own.

Heavy imports are inside the functions, so that `kauli --help` answers at once.
"""

import json
import re
import shlex
from collections.abc import Mapping
from importlib.resources import files
from itertools import chain, count
from pathlib import Path
from typing import Annotated, Any

import typer

from kauli.deploy.cli.terminal import Json, Storage, hint, output, split_list
from kauli.models.paths import default_storage
from kauli.serving.tasks import DEFAULT_BASE

_MOST_LANGUAGES = 8  # in one adapter
_SHOTS = 5  # of each class, in the recipe head-topics
app = typer.Typer(no_args_is_help=True, rich_markup_mode=None, help="Build the starter data, or check your own.")


@app.command("build")
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


@app.command("check")
def data_check(
    path: Annotated[str, typer.Argument(help="A data set: `starter`, a file, a folder or a URI.")],
    languages: Annotated[str | None, typer.Option("--languages", help="Only these languages [all].")] = None,
    language: Annotated[str | None, typer.Option("--language", help="Of rows that name none, e.g. sw.")] = None,
    columns: Annotated[
        str | None, typer.Option("--map", help="Our columns by the file's, e.g. text=sentence,language=locale.")
    ] = None,
    encoding: Annotated[str | None, typer.Option("--encoding", help="Of text files, e.g. cp1252 [found out].")] = None,
    delimiter: Annotated[str | None, typer.Option("--delimiter", help="Of CSV and TSV, e.g. ';' [found out].")] = None,
    leaks: Annotated[
        str | None, typer.Option("--leaks", help="What keeps rows in one split: content, pair or group [content].")
    ] = None,
    base: Annotated[
        str | None, typer.Option("--base", help=f"Measure this base's tokenizer too [{DEFAULT_BASE} if fetched].")
    ] = None,
    storage: Storage = None,
    as_json: Json = False,
) -> None:
    """Profile a data set: rows, groups, splits, images, audio, scripts, what looks wrong, leaks, a tokenizer's fit."""
    from kauli.models.bases.find import find_base, local_bases
    from kauli.models.languages import check_tag
    from kauli.training.data.dataset import load_data
    from kauli.training.data.options import DataOptions
    from kauli.training.data.profile import profile, render

    tags = [check_tag(tag) for tag in split_list(languages, "--languages")] if languages is not None else None
    given = {"map": columns, "language": language, "encoding": encoding, "delimiter": delimiter, "leaks": leaks}
    options = {name: value for name, value in given.items() if value is not None}
    base = base or (DEFAULT_BASE if DEFAULT_BASE in local_bases() else None)
    folder = find_base(base, allow_noncommercial=True).folder if base else None
    result = profile(load_data(path, tags, DataOptions.model_validate(options)), folder)
    result["next"] = _training_command(path, result, options, storage)
    output(as_json, result, render(result))
    hint(result["next"] or "give each language rows in train, validation and test, then check again")


_RECIPES = {
    "audio": ("transcribe-{tag}", "transcribe-be"),
    "classes": ("head-topics",),
    "image": ("describe-multi",),
    "text": ("text-{tag}", "text-sw"),
}
"""What most rows hold -> recipes for it, the first that is shipped is taken."""


def _training_command(
    path: str, result: Mapping[str, Any], options: Mapping[str, str], storage: str | None
) -> str | None:
    """The command that trains on this data what most of its rows can teach; None where no language has all splits."""
    from kauli.models.adapters.registry import Registry

    def usable(use: str) -> dict[str, int]:
        counts = {tag: part["uses"].get(use, {}) for tag, part in result["languages"].items()}
        return {tag: sum(rows.values()) for tag, rows in counts.items() if rows and all(rows.values())}

    use = max(("audio", "image", "text"), key=lambda use: sum(usable(use).values()))
    tags = sorted(usable(use), key=lambda tag: -usable(use)[tag])
    if not tags:
        return None
    classes = result["languages"][tags[0]]["classes"] if use == "image" else {}
    if classes:
        use, tags = "classes", tags[:1]
    tags = tags[:_MOST_LANGUAGES]
    shipped = {file.name.removesuffix(".yaml") for file in (files("kauli.training") / "recipes").iterdir()}
    names = [name.format(tag=tags[0].lower()) for name in _RECIPES[use]]
    recipe = next(name for name in names if name in shipped)
    taken = {*shipped, *Registry(storage or default_storage()).names()}
    stem = re.sub(r"[^a-z0-9]+", "-", Path(path).stem.lower()).strip("-") or recipe.split("-")[0]
    name = f"{stem[:40]}-{tags[0].lower()}" if len(tags) == 1 else stem[:40]
    name = next(one for one in chain([name], (f"{name}-{number}" for number in count(2))) if one not in taken)
    keys = {"data": path, "language": tags[0] if len(tags) == 1 else tags, "name": name}
    keys |= {f"data_options.{key}": value for key, value in options.items()}
    if classes and min(classes.values()) < _SHOTS:
        keys["method.shots"] = min(classes.values())
    words = [
        "kauli",
        "train",
        recipe,
        *(word for key, value in keys.items() for word in ("--set", f"{key}={_yaml(value)}")),
    ]
    return shlex.join([*words, *(["--storage", storage] if storage else [])])


def _yaml(value: Any) -> str:
    """A value as YAML reads it back, plain where that can be: not so `no`, which is false and a language."""
    import yaml

    if isinstance(value, str) and re.fullmatch(r"[A-Za-z_.~/][^:#]*", value) and yaml.safe_load(value) == value:
        return value
    return json.dumps(value, ensure_ascii=False)
