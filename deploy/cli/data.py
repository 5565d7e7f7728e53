"""`kauli data ...`: the starter data, and a look at one's own.

Heavy imports are inside the functions, so that `kauli --help` answers at once.
"""

import shlex
from pathlib import Path
from typing import Annotated

import typer

from kauli.deploy.cli.terminal import Json, Overrides, Storage, hint, output, split_list
from kauli.serving.tasks import DEFAULT_BASE

SHOWN = 20
"""Rows that `kauli data doctor` prints for a reader."""

app = typer.Typer(no_args_is_help=True, rich_markup_mode=None, help="Build the starter data, import or check your own.")


InputLanguage = Annotated[
    str | None, typer.Option("--input-language", help="Language that the texts translate, where no file tells.")
]
Tier = Annotated[str | None, typer.Option("--tier", help="Tier of ELAN or Praat files [the only one].")]


@app.command("build")
def data_build(
    languages: Annotated[str, typer.Option("--languages", help="BCP-47 tags separated by commas, e.g. sw,am.")],
    out: Annotated[Path | None, typer.Option("--out", help="Folder to write to [KAULI_HOME/data/starter].")] = None,
    full: Annotated[
        bool, typer.Option("--full", help="All pairs of texts, for translation, as the data set `starter-full`.")
    ] = False,
    storage: Storage = None,
    as_json: Json = False,
) -> None:
    """Build the starter data set of some languages from open packages."""
    from kauli.models.languages import check_tag
    from kauli.training.data.starter import build

    tags = [check_tag(tag) for tag in split_list(languages, "--languages")]
    folder = build(tags, out, full=full)
    output(as_json, {"folder": str(folder), "languages": tags}, str(folder))
    train = f"translate-am --set language={tags[0]} --set name=translate-{tags[0]}" if full else f"text-{tags[0]}"
    hint(f"kauli data check {folder}" if out else f"kauli train {train}")


@app.command("import")
def data_import(
    path: Annotated[str, typer.Argument(help="A document, a table, or a folder of such files; or a URI.")],
    out: Annotated[Path | None, typer.Option("--out", help="The data folder to write [NAME-data].")] = None,
    language: Annotated[str | None, typer.Option("--language", help="Language of texts that name none.")] = None,
    input_language: InputLanguage = None,
    tier: Tier = None,
    columns: Annotated[
        str | None, typer.Option("--map", help="The file's names of our columns, e.g. text=sentence.")
    ] = None,
    encoding: Annotated[str | None, typer.Option("--encoding", help="Encoding of text files [detected].")] = None,
    delimiter: Annotated[str | None, typer.Option("--delimiter", help="Delimiter of CSV and TSV [detected].")] = None,
    as_json: Json = False,
) -> None:
    """Turn documents, tables or annotated recordings into a data folder: checked, grouped and split.

    Of PO, XLIFF and TMX the confirmed translations become pairs, of ELAN and TextGrid the annotations of a tier
    become clips of the recording beside the file.
    """
    from collections import Counter

    from kauli.training.data.dataset import load_data
    from kauli.training.data.imports import write_folder
    from kauli.training.data.options import DataOptions

    given = {
        "map": columns, "language": language, "input_language": input_language, "tier": tier, "encoding": encoding,
        "delimiter": delimiter,
    }  # fmt: skip
    options = {name: value for name, value in given.items() if value is not None}
    dataset = load_data(path, None, DataOptions.model_validate(options))
    folder = out or Path(f"{Path(path).stem}-data")
    write_folder(dataset.reference.paths, folder)
    splits = Counter(row["split"] for row in dataset.iter_rows(columns=("split",)))
    result = {"folder": str(folder), "languages": list(dataset.languages), "rows": dict(splits)}
    output(as_json, result, f"{folder}: {', '.join(f'{count:,} {split}' for split, count in sorted(splits.items()))}")
    hint(f"kauli data check {folder}")


@app.command("check")
def data_check(
    path: Annotated[str, typer.Argument(help="A data set: `starter`, a file, a folder or a URI.")],
    languages: Annotated[str | None, typer.Option("--languages", help="Only these languages [all].")] = None,
    language: Annotated[str | None, typer.Option("--language", help="Language of rows that name none.")] = None,
    input_language: InputLanguage = None,
    tier: Tier = None,
    columns: Annotated[
        str | None, typer.Option("--map", help="The file's names of our columns, e.g. text=sentence.")
    ] = None,
    encoding: Annotated[str | None, typer.Option("--encoding", help="Encoding of text files [detected].")] = None,
    delimiter: Annotated[str | None, typer.Option("--delimiter", help="Delimiter of CSV and TSV [detected].")] = None,
    leaks: Annotated[
        str | None,
        typer.Option("--leaks", help="Rows that share this stay in one split: content, pair or group [content]."),
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
    from kauli.models.progress import kept_notes
    from kauli.training.data.dataset import load_data
    from kauli.training.data.options import DataOptions
    from kauli.training.data.profile import profile, render
    from kauli.training.data.training_command import missing, training_command

    tags = [check_tag(tag) for tag in split_list(languages, "--languages")] if languages is not None else None
    given = {
        "map": columns, "language": language, "input_language": input_language, "tier": tier, "encoding": encoding,
        "delimiter": delimiter, "leaks": leaks,
    }  # fmt: skip
    options = {name: value for name, value in given.items() if value is not None}
    base = base or (DEFAULT_BASE if DEFAULT_BASE in local_bases() else None)
    folder = find_base(base, allow_noncommercial=True).folder if base else None
    with kept_notes() as notes:  # which columns were taken, and what was left out
        dataset = load_data(path, tags, DataOptions.model_validate(options))
    result = {"notes": notes} | profile(dataset, folder)
    result["next"] = training_command(path, result, options, storage)
    output(as_json, result, render(result))
    hint(result["next"] or missing(result))


@app.command("doctor")
def data_doctor(
    path: Annotated[str, typer.Argument(help="A data set: `starter`, a file, a folder or a URI.")],
    language: Annotated[
        str | None, typer.Option("--language", help="Language of rows that name none, and the only one looked at.")
    ] = None,
    base: Annotated[
        str | None, typer.Option("--base", help="A base for `align`, e.g. kauli-towers: also looks at images, meaning.")
    ] = None,
    limit: Annotated[int | None, typer.Option("--limit", min=1, help="The worst N rows [20; with --json all].")] = None,
    input_language: InputLanguage = None,
    tier: Tier = None,
    columns: Annotated[
        str | None, typer.Option("--map", help="The file's names of our columns, e.g. text=sentence.")
    ] = None,
    encoding: Annotated[str | None, typer.Option("--encoding", help="Encoding of text files [detected].")] = None,
    delimiter: Annotated[str | None, typer.Option("--delimiter", help="Delimiter of CSV and TSV [detected].")] = None,
    as_json: Json = False,
) -> None:
    """Rank the rows that are probably wrong, the worst first, each with its reasons.

    Wrong labels, texts that translate something else, other languages, texts longer than what is said, copies, leaks.
    """
    from kauli.models.languages import check_tag
    from kauli.training.data.doctor.ranking import doctor, render
    from kauli.training.data.options import DataOptions

    tag = check_tag(language) if language is not None else None
    given = {
        "map": columns, "language": tag, "input_language": input_language, "tier": tier, "encoding": encoding,
        "delimiter": delimiter,
    }  # fmt: skip
    options = DataOptions.model_validate({name: value for name, value in given.items() if value is not None})
    dataset, found = doctor(path, tag, base, options)
    result = [one.to_json() for one in found[:limit]]
    output(as_json, result, render(dataset, found, limit or SHOWN))


@app.command("forecast")
def data_forecast(
    recipe: Annotated[str, typer.Argument(help="A recipe by name (text-sw) or a YAML file.")],
    base: Annotated[
        str | None, typer.Option("--base", help="A base that embeds labelled images [the recipe's own].")
    ] = None,
    minutes: Annotated[
        float | None, typer.Option("--minutes", min=0.05, help="Start no further draw after them.")
    ] = None,
    out: Annotated[Path | None, typer.Option("--out", help="Write a report (one HTML file).")] = None,
    overrides: Overrides = None,
    as_json: Json = False,
) -> None:
    """Tell what two and four times the data of a recipe would bring, with 90 % intervals, and what is uncovered.

    A cheap stand-in for the training learns from nested subsets of the training groups; the result says which.
    """
    from kauli.training.forecast.forecast import forecast_recipe
    from kauli.training.forecast.page import write_page
    from kauli.training.recipe_file import load_recipe

    result = forecast_recipe(load_recipe(recipe, overrides or []), base, minutes)
    if out is not None:
        write_page(result, out)
    output(as_json, result.to_json(), result.summary())
    hint(f"open {shlex.quote(str(out))}" if out else f"kauli train {recipe}")
