"""`kauli memory ...`: confirmed translations and a glossary, which the next translation uses.

Heavy imports are inside the functions, so that `kauli --help` answers at once.
"""

import sys
from dataclasses import asdict, replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from kauli.deploy.cli.terminal import Json, Storage, hint, output, split_list, table
from kauli.models.errors import UsageError
from kauli.models.paths import default_storage

if TYPE_CHECKING:
    from kauli.models.text.memory import Confirmed, Memories
    from kauli.models.text.memory_pairs import Kind

app = typer.Typer(
    no_args_is_help=True, rich_markup_mode=None, help="Confirmed translations, which the next request uses."
)
TENANT = "local"
"""Whose memories the commands use; so does a service without keys."""
Name = Annotated[str, typer.Argument(metavar="NAME", help="The memory's name.")]
From = Annotated[str | None, typer.Option("--from", help="BCP-47 tag of the source language.")]
To = Annotated[str | None, typer.Option("--to", help="BCP-47 tag of the target language.")]


@app.command("add")
def memory_add(
    name: Name,
    files: Annotated[
        list[str] | None,
        typer.Argument(metavar="[FILE]...", help="Documents with translations, or a data set such as starter-full."),
    ] = None,
    pair: Annotated[
        tuple[str, str] | None, typer.Option("--pair", help="One text and its translation, instead of a file.")
    ] = None,
    source: From = None,
    target: To = None,
    glossary: Annotated[bool, typer.Option("--glossary", help="Add terms, which translations must use.")] = False,
    columns: Annotated[
        str | None, typer.Option("--columns", help="Columns of a table: source,target [source,target].")
    ] = None,
    storage: Storage = None,
    as_json: Json = False,
) -> None:
    """Add confirmed translations; the memory is made where there is none. Drafts of a document are left out.

    Of a data set the training rows are taken, so that figures on its test rows keep their meaning.
    """
    from kauli.models.progress import bar
    from kauli.models.text.memory import Confirmed
    from kauli.models.text.memory_pairs import rows_of

    kind: Kind = "term" if glossary else "pair"
    if bool(files) == (pair is not None):
        raise UsageError("give files, or one pair as --pair SOURCE TARGET --from TAG --to TAG")
    found: list[Confirmed] = []
    left_out = 0
    if pair is not None:
        if source is None or target is None:
            raise UsageError("a pair needs its languages: add --from TAG --to TAG")
        found.append(Confirmed(*pair, source, target, "kauli memory add", kind))
    for file in files or []:
        parts = tuple(split_list(columns, "--columns")) if columns is not None else None
        read, missed = _read(file, source, target, kind, parts)
        found += read
        left_out += missed
    if not found:
        raise UsageError(
            f"{', '.join(files or [])}: no confirmed translation, {left_out} drafts or rows without one. "
            "Confirm some, or give another file."
        )
    rows_of(found)  # what can't be stored is refused before a memory is made
    memory = _memories(storage, embeds=True).open(TENANT, name, create=True)
    before = {row.id for row in memory.pairs()}
    with bar("embedding", len(found)) as advance:
        ids = memory.add(found, advance)
    added, total = len(set(ids) - before), len(memory.pairs())
    result = {"memory": name, "added": added, "left_out": left_out, "total": total}
    output(as_json, result, f"{name}: {added} added or changed, {total} in all")
    if left_out:
        print(f"{left_out} drafts or rows without a translation were left out", file=sys.stderr)
    hint(f"kauli translate TEXT --to {found[0].target_language} --memory {name}")


@app.command("list")
def memory_list(
    name: Annotated[str | None, typer.Argument(metavar="[NAME]", help="List its pairs [list the memories].")] = None,
    containing: Annotated[str | None, typer.Option("--containing", help="Only pairs with this text.")] = None,
    source: From = None,
    target: To = None,
    glossary: Annotated[bool, typer.Option("--glossary", help="Only terms.")] = False,
    limit: Annotated[int, typer.Option("--limit", min=1, help="At most so many pairs.")] = 50,
    storage: Storage = None,
    as_json: Json = False,
) -> None:
    """List the memories, or the pairs of one."""
    memories = _memories(storage)
    if name is None:
        rows = [_summary(memories, one) for one in memories.names(TENANT)]
        if rows or as_json:
            output(as_json, rows, table(rows, ["memory", "pairs", "terms", "languages"]))
        hint(f"kauli memory list {rows[0]['memory']}" if rows else "kauli memory add NAME FILE")
        return
    kind: Kind | None = "term" if glossary else None
    found = memories.open(TENANT, name).pairs(source, target, kind, containing)
    shown = [asdict(row) for row in found[:limit]]
    if shown or as_json:
        columns = ["id", "source_language", "source", "target_language", "target", "kind", "origin"]
        output(as_json, shown, table(shown, columns))
    if len(found) > len(shown):
        print(f"{len(found) - len(shown)} more: --limit {len(found)}, or --containing TEXT", file=sys.stderr)


@app.command("remove")
def memory_remove(
    name: Name,
    ids: Annotated[list[str] | None, typer.Argument(metavar="[ID]...", help="Of pairs, as listed.")] = None,
    everything: Annotated[bool, typer.Option("--all", help="The memory with all that it holds.")] = False,
    storage: Storage = None,
    as_json: Json = False,
) -> None:
    """Remove pairs by their ids, or a whole memory."""
    memories = _memories(storage)
    if bool(ids) == everything:
        raise UsageError(f"say what to remove: ids of pairs (kauli memory list {name}), or --all")
    memory = memories.open(TENANT, name)
    if ids:
        known = {row.id for row in memory.pairs()}
        if unknown := [id for id in ids if id not in known]:
            raise UsageError(f"'{name}' has no pair {', '.join(unknown)}: see kauli memory list {name}")
        count = memory.remove(ids)
    else:
        count = len(memory.pairs())
        memories.delete(TENANT, name)
    output(as_json, {"memory": name, "removed": count}, f"{name}: {count} removed")


@app.command("export")
def memory_export(
    name: Name,
    out: Annotated[Path, typer.Option("--out", help="The file: .tmx, .csv or .jsonl.")],
    source: From = None,
    target: To = None,
    glossary: Annotated[bool, typer.Option("--glossary", help="Only terms.")] = False,
    storage: Storage = None,
    as_json: Json = False,
) -> None:
    """Write a memory to a file that other tools read; an older file stays until the new one is whole."""
    from kauli.models.files import write_atomically
    from kauli.models.text.memory_export import exported

    found = _memories(storage).open(TENANT, name).pairs(source, target, "term" if glossary else None)
    write_atomically(out, exported(found, out.name))
    output(as_json, {"memory": name, "exported": len(found), "path": str(out)}, str(out))


def _memories(storage: str | None, embeds: bool = False) -> "Memories":
    from kauli.models.text.memory import Memories

    if not embeds:
        return Memories(storage or default_storage(), None)
    from kauli.models.text.embedder import Embedder

    return Memories(storage or default_storage(), Embedder.default())


def _summary(memories: "Memories", name: str) -> dict[str, Any]:
    memory = memories.open(TENANT, name)
    terms = len(memory.pairs(kind="term"))
    languages = [f"{source}-{target}" for source, target in sorted(memory.languages())]
    return {"memory": name, "pairs": len(memory.pairs()) - terms, "terms": terms, "languages": languages}


def _read(
    name: str, source: str | None, target: str | None, kind: "Kind", columns: tuple[str, ...] | None
) -> tuple[list["Confirmed"], int]:
    """The confirmed translations of a document or a data set, and how many others it has."""
    from kauli.models.text.memory import Confirmed

    path = Path(name).expanduser()
    if not path.is_file() or path.suffix == ".parquet":
        return _read_data(name, source, target, kind)
    from kauli.models.documents.document import DocumentOptions
    from kauli.models.documents.table import open_document
    from kauli.models.text.memory_import import imported
    from kauli.models.text.memory_pairs import short_tag

    if columns is not None and len(columns) != 2:
        raise UsageError(f"--columns {','.join(columns)}: give two, the source's and the target's")
    data = path.read_bytes()
    if columns is None and (pairs := imported(data, path.name)) is not None:
        kept = [one for one in pairs if all(tag is None or short_tag(tag) == short_tag(own) for tag, own in (
            (source, one.source_language), (target, one.target_language)))]  # fmt: skip
        return [replace(one, kind=kind) if kind == "term" else one for one in kept], len(pairs) - len(kept)
    options = DocumentOptions(source, target, columns=columns and (columns[0], columns[1]))
    document = open_document(data, path.name, options)
    own, other = document.languages
    into = _language(path.name, "--to", target, other)
    out_of = _language(path.name, "--from", source, own)
    found = [
        Confirmed(one.source, one.target, out_of, into, path.name, kind)
        for one in document.segments
        if one.state == "confirmed" and one.source.strip() and one.target.strip() and not one.ambiguous
    ]
    return found, len(document.segments) - len(found)


def _language(name: str, option: str, given: str | None, own: str | None) -> str:
    """The language that is given for a document, or its own."""
    from kauli.models.text.memory_pairs import short_tag

    if given is None and own is None:
        raise UsageError(f"{name} does not say which language it is in: add {option} TAG")
    if given is not None and own is not None and short_tag(given) != short_tag(own):
        raise UsageError(f"{name} says that it is in '{own}', and {option} says '{given}': leave {option} out")
    return given or own or ""


def _read_data(name: str, source: str | None, target: str | None, kind: "Kind") -> tuple[list["Confirmed"], int]:
    from kauli.models.languages import check_tag
    from kauli.models.text.memory import Confirmed
    from kauli.training.data.dataset import load_data

    data = load_data(name, None if target is None else [target])
    wanted = None if source is None else check_tag(source)
    found, others = list[Confirmed](), 0
    for row in data.iter_rows("train", data.languages, ("input", "input_language", "text", "language", "source")):
        if all((row[key] or "").strip() for key in ("input", "input_language", "text")) and (
            wanted is None or row["input_language"] == wanted
        ):
            origin = row["source"] or name
            found.append(Confirmed(row["input"], row["text"], row["input_language"], row["language"], origin, kind))
        else:
            others += 1
    return found, others
