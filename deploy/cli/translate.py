"""`kauli translate`: a text, or a whole document in its own format, without a service.

Heavy imports are inside the functions, so that `kauli --help` answers at once.
"""

import hashlib
import json
import re
import sys
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from kauli.deploy.cli.terminal import Json, Storage, output, split_list, table
from kauli.models.errors import UsageError, whole
from kauli.models.metrics import METRICS
from kauli.models.paths import default_storage, kauli_home
from kauli.models.progress import bar, note

if TYPE_CHECKING:
    from kauli.models.documents.document import DocumentOptions, Segment
    from kauli.serving.local import Local
    from kauli.serving.translation import Draft

_SAMPLE = 2000  # characters of a document by which its language is told
_FEWEST = 60  # letters below which no language is told
_SURE = 0.95
_SHOWN = 10  # red segments that are printed


def translate(
    what: Annotated[str, typer.Argument(metavar="TEXT|FILE", help="A text, a document, or `-` for stdin.")],
    target: Annotated[str, typer.Option("--to", help="BCP-47 tag of the language to translate into.")],
    source: Annotated[
        str | None, typer.Option("--from", help="BCP-47 tag of the language to translate from [detected].")
    ] = None,
    memory: Annotated[
        list[str] | None, typer.Option("--memory", help="A memory of confirmed translations; may be repeated.")
    ] = None,
    out: Annotated[
        Path | None, typer.Option("--out", help="Where to write the document [beside it, with the language's tag].")
    ] = None,
    only_missing: Annotated[
        bool, typer.Option("--only-missing", help="Leave drafts that are in the document as they are.")
    ] = False,
    model: Annotated[str, typer.Option("--model", help="translate, or an adapter (translate-am@1).")] = "translate",
    form: Annotated[str | None, typer.Option("--format", help="Format of the document [by its suffix].")] = None,
    encoding: Annotated[str | None, typer.Option("--encoding", help="Encoding of the document [detected].")] = None,
    columns: Annotated[
        str | None, typer.Option("--columns", help="Columns of a table: text,translation [found by their names].")
    ] = None,
    tier: Annotated[str | None, typer.Option("--tier", help="Tier of an ELAN or Praat file.")] = None,
    accept_language: Annotated[
        bool, typer.Option("--accept-language", help="Translate a document that seems to be in another language.")
    ] = False,
    storage: Storage = None,
    as_json: Json = False,
) -> None:
    """Translate a text or a document. Confirmed translations in a document are never changed."""
    from kauli.models.documents.document import DocumentOptions
    from kauli.serving.local import Local

    named = tuple(split_list(columns, "--columns")) if columns is not None else None
    if named is not None and len(named) != 2:
        raise UsageError(f"--columns {columns}: name two, the text's and the translation's, such as source,target")
    options = DocumentOptions(source, target, encoding, columns=named, tier=tier)
    path = None if what == "-" else _document_path(what, form)
    with Local(storage or default_storage()) as local:
        if path is None:
            try:
                text = whole(sys.stdin.read() if what == "-" else what, "the text")
            except UnicodeDecodeError as error:
                raise UsageError(f"stdin is no UTF-8: {error.reason} at byte {error.start}") from None
            draft, spoken = translate_text(local, text, source, target, memory or (), model)
            for reason in draft.reasons:
                note(f"look at it: {reason}")
            if draft.certificate:
                note(draft.certificate.words)
            output(as_json, {**asdict(draft), "source": spoken, "target": target}, draft.text)
            return
        where = out or path.with_name(f"{path.stem}.{target}{path.suffix}")
        if where.is_dir() or not where.absolute().parent.is_dir():
            what = "is a folder" if where.is_dir() else "is in no folder that is there"
            raise UsageError(f"--out {where} {what}: name a file")
        if out is None and where.exists():
            raise UsageError(f"{where} exists already: name the file to write with --out")
        done = translate_file(
            local, path, where, options, memory or (), model, form, only_missing, accept_language=accept_language
        )
    rows = [{"mark": mark, "segments": count} for mark, count in done["marks"].items()]
    print(table(rows, ["mark", "segments"]), file=sys.stderr)
    if judged := done["certificate"]:
        colours = ", ".join(f"{count} {colour}" for colour, count in judged["colours"].items())
        label = METRICS[judged["metric"]].label.split(",")[0]
        print(f"Expected {label} {judged['expected']:.1f} over {judged['segments']} drafts: {colours}", file=sys.stderr)
        if judged["doubt"]:
            note(judged["doubt"])
    red = [one for one in done["segments"] if one["mark"] == "red"]
    for one in red[:_SHOWN]:
        print(f"red: {one['source'][:60]!r}: {'; '.join(one['reasons'])}", file=sys.stderr)
    if len(red) > _SHOWN:
        print(f"and {len(red) - _SHOWN} more: --json lists them all", file=sys.stderr)
    output(as_json, done, str(where))


def translate_text(
    local: "Local", text: str, source: str | None, target: str, memories: Sequence[str], model: str
) -> "tuple[Draft, str]":
    """The translation of a text, and the language that it was translated from. Raises UsageError and KauliError."""
    spoken = source or _detected(local, text, model)
    translator = local.translator(model, spoken, target, memories)
    return local.run(translator.draft(text)), spoken


def translate_file(
    local: "Local", path: Path, out: Path, options: "DocumentOptions", memories: Sequence[str], model: str,
    form: str | None = None, only_missing: bool = False, *, accept_language: bool = False,
) -> dict[str, Any]:  # fmt: skip
    """Translate a document into another file, which appears when it is whole; an earlier try that was ended goes on.

    Returns what `--json` prints. Raises UsageError and KauliError.
    """
    from kauli.models.documents.placeholders import without
    from kauli.models.documents.table import open_document
    from kauli.models.files import write_atomically
    from kauli.models.languages import check_tag
    from kauli.serving.translation import count_marks

    try:
        data = path.read_bytes()
    except OSError as error:
        raise UsageError(f"{path} can't be read: {error.strerror}") from None
    target = check_tag(options.target or "")
    document = open_document(data, path.name, options, form)
    if not document.segments:
        raise UsageError(f"{path} has nothing to translate")
    sample = " ".join(one.source for one in document.segments)[:_SAMPLE]
    said = document.languages
    if said[1] and said[1].partition("-")[0] != target.partition("-")[0]:
        raise UsageError(f"{path} says that its translations are in '{said[1]}', not in '{target}': use --to {said[1]}")
    source = options.source or said[0] or _detected(local, sample, model)
    if not accept_language:
        _check_language(local, path, without(sample), source, target)
    translator = local.translator(model, source, target, memories)
    with Journal([data, local.run(translator.state()), f"{form} {options}"]) as journal:
        count = len([one for one in document.segments if one.state != "confirmed"])
        with bar("Translating", count) as advance:

            def told(segment: "Segment", draft: "Draft") -> None:
                journal.add(segment.id, draft)
                advance()

            found = local.run(
                translator.document(document, only_missing=only_missing, done=journal.drafts, advance=told)
            )
        write_atomically(out, document.write())
        journal.done()
    judged = translator.judged(document, found)
    return {
        "certificate": asdict(judged) if judged else None,
        "document": str(out), "format": document.format, "source": source, "target": target,
        "model": translator.route.model, "memory": list(memories), "marks": count_marks(found),
        "kept": len(document.segments) - len(found),
        "segments": [{"id": one.id, "source": one.source, **asdict(found[one.id])}
                     for one in document.segments if one.id in found],
    }  # fmt: skip


class Journal:
    """The drafts of a document that was not finished, in `KAULI_HOME/translations`, a line a draft."""

    def __init__(self, key: Sequence[str | bytes]) -> None:
        """`key`: all that decides the drafts: the document's bytes and options, `Translator.state`."""
        parts = [part if isinstance(part, bytes) else part.encode() for part in key]
        digest = hashlib.sha256(b"".join(len(part).to_bytes(8, "big") + part for part in parts)).hexdigest()
        self._path = kauli_home() / "translations" / f"{digest[:32]}.jsonl"
        self.drafts: Mapping[str, Draft] = self._read()
        if self.drafts:
            note(f"Going on with an earlier try: {len(self.drafts)} segments are translated")

    def __enter__(self) -> "Journal":
        self._path.parent.mkdir(parents=True, exist_ok=True)
        self._file = self._path.open("a", encoding="utf-8")
        if self._file.tell():
            self._file.write("\n")  # the line that was being written when the command was killed ends here
        return self

    def __exit__(self, *error: object) -> None:
        self._file.close()

    def add(self, id: str, draft: "Draft") -> None:
        """Keep a draft."""
        if id not in self.drafts:
            self._file.write(json.dumps({"id": id, **asdict(draft)}, ensure_ascii=False) + "\n")
            self._file.flush()

    def done(self) -> None:
        """The document is written: nothing has to be kept."""
        self._path.unlink(missing_ok=True)

    def _read(self) -> "dict[str, Draft]":
        from kauli.models.adapters.certificate import Estimate
        from kauli.models.text.translation import Example
        from kauli.serving.translation import Draft

        found = {}
        if self._path.exists():
            for line in self._path.read_text(encoding="utf-8").splitlines():
                try:
                    content = json.loads(line)
                except ValueError:  # half a line, or none
                    continue
                id, known, pair = content.pop("id"), content.pop("certificate", None), content.pop("similar", None)
                content |= {
                    "reasons": tuple(content["reasons"]), "certificate": Estimate(**known) if known else None,
                    "similar": Example(**pair) if pair else None,
                }  # fmt: skip
                found[id] = Draft(**content)
        return found


def _document_path(what: str, form: str | None) -> Path | None:
    """The file that is meant; None for a text. Raises UsageError for the name of a file that is not there."""
    from kauli.models.documents.table import FORMATS, suffixes

    try:
        if Path(what).is_file():
            return Path(what)
        if Path(what).is_dir():
            raise UsageError(f"{what} is a folder: name one file, or quote a longer text")
    except (OSError, ValueError):  # a text that is too long for a name
        return None
    known = [suffix for one in FORMATS for suffix in suffixes(one)]
    is_name = re.fullmatch(r"\S+", what) and (
        what.lower().endswith(tuple(known)) or re.fullmatch(r"(?!\w+://).*[/\\][^/\\]+\.\w{1,8}", what)
    )
    if form is not None or is_name:
        raise UsageError(f"there is no file {what}")
    return None


def _languages(local: "Local") -> list[str]:
    """All languages that an adapter of the storage translates."""
    from kauli.serving.routing import newest_cards

    cards = newest_cards(local.registry)
    return sorted({tag for card in cards if card.translation for pair in card.translation.pairs for tag in pair})


def _detected(local: "Local", text: str, model: str) -> str:
    from kauli.models.text.detection import detect

    found = detect(text, _languages(local))
    if not found:
        raise UsageError("the language of the text is not known: name it with --from")
    note(f"from {found[0][0]} (detected)")
    return found[0][0]


def _check_language(local: "Local", path: Path, sample: str, source: str, target: str) -> None:
    """Raise UsageError for a document that is surely in another language than the one that is named."""
    from kauli.models.text.detection import detect

    if len(re.findall(r"[^\W\d_]", sample)) < _FEWEST:
        return
    found = detect(sample, {*_languages(local), source, target, "en"})
    if found and found[0][0].partition("-")[0] != source.partition("-")[0] and found[0][1] > _SURE:
        raise UsageError(
            f"{path} is in '{found[0][0]}', not in '{source}', as far as its first {len(sample)} characters tell: "
            f"use --from {found[0][0]}{' and another --to' if found[0][0] == target else ''}, or --accept-language"
        )
