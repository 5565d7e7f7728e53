"""The registry: adapters by `name@version` in a local folder or an object store, immutable and published atomically.

    <storage>/adapters/NAME/VERSION/...         the adapter folder; it exists from the moment its card.json is there
    <storage>/adapters/NAME/aliases/ALIAS.json  which version an alias means
    <storage>/adapters/NAME/revoked/VERSION.json  why nobody may use a version any more
    <storage>/adapters/NAME/.claims/VERSION.json  who took a number; kept for good, so that no number comes twice

Publishing claims the next number (an exclusive write, so two publishers never share one), copies the files, and writes
card.json last. A killed publisher leaves a claim without a card: it is not visible, and the next one deletes it.
"""

import hashlib
import json
import os
import platform
import re
import time
import uuid
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import psutil

from kauli.models.adapters.card import CARD_FILE, README_FILE, Card, check_name, check_new_name, parse_card
from kauli.models.adapters.folder import check_files, check_folder
from kauli.models.adapters.page import render_readme
from kauli.models.adapters.store import open_store
from kauli.models.errors import KauliError, UsageError, nearest
from kauli.models.files import atomic_folder, hash_files, write_atomically
from kauli.models.paths import kauli_home
from kauli.models.progress import note

_CARD_PATH = re.compile(r"[^/]+/([1-9][0-9]*)/card\.json")
_CLAIM_PATH = re.compile(r"[^/]+/\.claims/([1-9][0-9]*)\.json")
_ALIAS_PATH = re.compile(r"[^/]+/aliases/([^/]+)\.json")
_REVOKED_PATH = re.compile(r"[^/]+/revoked/([1-9][0-9]*)\.json")
_VERSION_PATH = re.compile(r"[^/]+/([1-9][0-9]*)/.*")
_NUMBER = re.compile(r"[1-9][0-9]{0,8}")
_CLAIM_SECONDS = 6 * 3600  # after this a claim by another machine, whose processes are not visible, counts as dead


@dataclass(frozen=True)
class Published:
    """A new version."""

    name: str
    version: int
    uri: str

    @property
    def spec(self) -> str:
        return f"{self.name}@{self.version}"


@dataclass(frozen=True)
class Revocation:
    """That a version may no longer be used, such as after a speaker has withdrawn consent."""

    spec: str
    why: str
    time: str
    """ISO 8601."""

    def __str__(self) -> str:
        return f"{self.spec} was revoked on {self.time[:10]}: {self.why}"


@dataclass(frozen=True)
class _Claim:
    """A number taken by this publisher; `content` is unique to it."""

    version: int
    path: str
    content: bytes


class Registry:
    """The adapters under one storage, a local path or an fsspec URI.

    An object holds no state, so that a version published by another process is visible at once.
    """

    def __init__(self, storage: str) -> None:
        self.storage = storage.rstrip("/") or "/"
        self._store = open_store(self.storage, "adapters")

    def names(self) -> list[str]:
        """The names of which there is at least one version, sorted."""
        return sorted({path.split("/")[0] for path in self._store.find("") if _CARD_PATH.fullmatch(path)})

    def versions(self, name: str) -> list[int]:
        """The versions of `name` that may be used, oldest first; empty when there is no such name."""
        paths = self._store.find(check_name(name))
        revoked = _numbers(_REVOKED_PATH, paths)
        return [number for number in _numbers(_CARD_PATH, paths) if number not in revoked]

    def resolve(self, spec: str) -> tuple[str, int]:
        """Name and version that `NAME`, `NAME@3` or `NAME@alias` means.

        A bare name means `prod`, else `latest`, else the newest version with a note. Raises `UsageError`.
        """
        name, at, wanted = spec.partition("@")
        check_name(name)
        versions, revoked = self.versions(name), self.revoked(name)
        if not versions:
            raise UsageError(f"{revoked[max(revoked)]}." if revoked else self._unknown(name))
        if at and _NUMBER.fullmatch(wanted):
            if int(wanted) in revoked:
                raise UsageError(f"{revoked[int(wanted)]}. {name} has {_listed(versions)}.")
            if int(wanted) not in versions:
                raise UsageError(f"{name} has no version {wanted}; it has {_listed(versions)}.")
            return name, int(wanted)
        aliases = {alias: number for alias, number in self.aliases(name).items() if number in versions}
        if at:
            if (number := self.aliases(name).get(wanted)) in revoked:
                raise UsageError(f"{name}@{wanted} is {number}, and {revoked[number]}. {name} has {_listed(versions)}.")
            if wanted not in aliases:
                known = ", ".join(f"{alias} ({number})" for alias, number in aliases.items()) or "none"
                raise UsageError(
                    f"{name} has no version or alias '{wanted}'.{nearest(wanted, aliases)} "
                    f"Versions: {_listed(versions)}; aliases: {known}."
                )
            return name, aliases[wanted]
        for alias in ("prod", "latest"):
            if alias in aliases:
                return name, aliases[alias]
        note(f"{name} has neither 'prod' nor 'latest': using its newest version, {name}@{versions[-1]}.")
        return name, versions[-1]

    def card(self, spec: str) -> Card:
        """The card of the adapter that `spec` means."""
        return self._card(*self.resolve(spec))

    def fetch(self, spec: str) -> Path:
        """A local folder with the adapter that `spec` means, every file checked against the card's SHA-256.

        From an object store it is brought to `<home>/cache/adapters/` once.
        """
        name, version = self.resolve(spec)
        local = self._store.local(f"{name}/{version}")
        if local is not None:
            check_folder(local)
            return local
        tag = hashlib.sha256(self.storage.encode()).hexdigest()[:16]
        cached = kauli_home() / "cache" / "adapters" / tag / name / str(version)
        card = self._card(name, version)
        if cached.is_dir():
            try:
                check_folder(cached, card)
                return cached
            except KauliError as error:
                note(f"{error} Fetching {name}@{version} again.")
        try:
            with atomic_folder(cached) as partial:
                for path in card.files:
                    (partial / path).parent.mkdir(parents=True, exist_ok=True)
                    self._store.download(f"{name}/{version}/{path}", partial / path)
                write_atomically(partial / CARD_FILE, card.to_json().encode())
                check_folder(partial, card)
        except OSError as error:
            raise KauliError(
                f"cannot store {name}@{version} under {cached.parent}: {error.strerror or error}."
            ) from error
        return cached

    def check_whole(self, name: str, version: int) -> None:
        """Raise `KauliError` where a file of a version is missing; what the files hold is not read."""
        missing = self._card(name, version).files.keys() - {
            path.removeprefix(f"{name}/{version}/") for path in self._store.find(f"{name}/{version}")
        }
        if missing:
            raise KauliError(f"{name}@{version} is not whole: {', '.join(sorted(missing))} missing")

    def aliases(self, name: str) -> dict[str, int]:
        """Alias to version, sorted by alias."""
        found = {}
        for path in self._store.find(f"{check_name(name)}/aliases"):
            match = _ALIAS_PATH.fullmatch(path)
            content = self._store.read(path) if match else None
            if match and content is not None:
                found[match[1]] = int(_parsed(content, path)["version"])
        return found

    def revoked(self, name: str) -> dict[int, Revocation]:
        """The versions of `name` that nobody may use any more."""
        found = {}
        for path in self._store.find(f"{check_name(name)}/revoked"):
            match = _REVOKED_PATH.fullmatch(path)
            content = self._store.read(path) if match else None
            if match and content is not None:
                said = _parsed(content, path)
                found[int(match[1])] = Revocation(f"{name}@{match[1]}", str(said["why"]), str(said["time"]))
        return found

    def revocations(self) -> dict[str, dict[int, Revocation]]:
        """`revoked` of every name that has some."""
        names = {path.split("/")[0] for path in self._store.find("") if _REVOKED_PATH.fullmatch(path)}
        return {name: self.revoked(name) for name in sorted(names)}

    def revoke(self, spec: str, why: str) -> list[str]:
        """Let nobody use a version (`NAME@3`) any more, or for a bare name any of its versions; returns them.

        Their files and cards stay. A service stops answering with them when it next reads the registry. Raises
        `UsageError` without a reason and where there is no such version.
        """
        if not why.strip():
            raise UsageError("say why it is revoked: who asks for such an adapter reads it.")
        name, at, _ = spec.partition("@")
        versions = [self.resolve(spec)[1]] if at else self.versions(name)
        if not versions:
            self.resolve(name)
        content = json.dumps({"why": why.strip(), "time": _now()}).encode()
        for version in versions:
            self._store.write(f"{name}/revoked/{version}.json", content)
        return [f"{name}@{version}" for version in versions]

    def publish(self, folder: Path, card: Card) -> Published:
        """Store a copy of `folder` as the next version of `card.name`; it appears whole or not at all.

        `README.md` and `card.json` are written anew with the version and the hashes of the files.
        Raises `UsageError` when the name belongs to another task, base or language.
        """
        check_files(folder)
        hashes = hash_files(folder, CARD_FILE)
        for path, digest in card.files.items():
            if path != README_FILE and hashes.get(path) != digest:
                raise KauliError(f"{folder / path} is missing or not what its card lists: nothing is published.")
        with self._store.lock(f".locks/{card.name}"):
            self._clean(card.name)
            claim = self._claim(card)
        base = f"{card.name}/{claim.version}"
        try:
            self._check_identity(card, claim.version)
            for path in hashes:
                if path != README_FILE:
                    self._store.upload(folder / path, f"{base}/{path}")
            numbered = card.model_copy(update={"version": claim.version})
            page = render_readme(numbered).encode()
            self._store.write(f"{base}/{README_FILE}", page)
            hashes[README_FILE] = hashlib.sha256(page).hexdigest()
            final = numbered.model_copy(update={"files": dict(sorted(hashes.items()))})
            if self._store.read(claim.path) != claim.content:
                raise KauliError("publishing took so long that its version number was given up; run it again.")
            if not self._store.create(f"{base}/{CARD_FILE}", final.to_json().encode()):
                raise KauliError("another program wrote a card under its version; run it again.")
        except BaseException as error:
            self._withdraw(claim)
            if isinstance(error, UsageError) or not isinstance(error, KauliError | OSError):
                raise
            reason = f"{error.strerror or error}." if isinstance(error, OSError) else str(error)
            raise KauliError(f"{card.name} was not published: {reason}") from error
        return Published(card.name, claim.version, f"{self.storage}/adapters/{base}")

    def check_free(self, card: Card) -> None:
        """Raises `UsageError`, before a long training, where `card.name` can't be its name.

        It is that of a task or a base, or belongs to an adapter of another task, base or language.
        """
        check_new_name(card.name)
        versions = _numbers(_CARD_PATH, self._store.find(card.name))
        if versions:
            _compare_identities(card, [_identity(self._card(card.name, versions[-1]))])

    def set_alias(self, name: str, version: int, alias: str, *, certified: bool = True) -> None:
        """Let `name@alias` mean `version`; moves it when it meant another. That it is not `certified` is recorded."""
        check_name(alias, "alias")
        if _NUMBER.fullmatch(alias):
            raise UsageError(f"'{alias}' cannot be an alias: numbers are versions.")
        self.resolve(f"{name}@{version}")
        content = {"version": version, "set": _now()} | ({} if certified else {"without_certificate": True})
        self._store.write(f"{name}/aliases/{alias}.json", json.dumps(content).encode())

    def remove(self, spec: str) -> None:
        """Delete one version (`NAME@3`), or an alias (`NAME@prod`: the version stays).

        Raises `UsageError` for a bare name and for a version that an alias points to. A removed number never returns.
        """
        if "@" not in spec:
            raise UsageError(f"name the version to remove: {spec}@VERSION.")
        name, _, wanted = spec.partition("@")
        gone = wanted.isdecimal() and int(wanted) in self.revoked(name)
        version = int(wanted) if gone else self.resolve(spec)[1]
        if not _NUMBER.fullmatch(wanted):
            self._store.delete(f"{name}/aliases/{wanted}.json")
            return
        pointing = [alias for alias, number in self.aliases(name).items() if number == version]
        if pointing and not gone:
            raise UsageError(
                f"{name}@{version} is {' and '.join(pointing)}: move the alias with `kauli adapters promote`, "
                f"or drop it with `kauli adapters remove {name}@{pointing[0]}`, then remove the version."
            )
        self._store.write(f"{name}/.claims/{version}.json", json.dumps({"closed": "removed", "time": _now()}).encode())
        for alias in pointing:
            self._store.delete(f"{name}/aliases/{alias}.json")
        self._store.delete(f"{name}/{version}/{CARD_FILE}")  # first, so that a half-deleted version is not visible
        self._store.delete(f"{name}/{version}")

    def _unknown(self, name: str) -> str:
        names = self.names()
        if not names:
            return f"there is no adapter '{name}': {self.storage} holds none. `kauli train` makes one."
        listed = ", ".join(names[:20]) + (", ..." if len(names) > 20 else "")
        return f"there is no adapter '{name}' in {self.storage}.{nearest(name, names)} It holds {listed}."

    def _card(self, name: str, version: int) -> Card:
        path = f"{name}/{version}/{CARD_FILE}"
        content = self._store.read(path)
        if content is None:
            raise KauliError(f"{name}@{version} was removed from {self.storage} a moment ago.")
        where = f"{self.storage}/adapters/{path}"
        card = parse_card(content, where)
        if (card.name, card.version) != (name, version):
            raise KauliError(f"{where} is the card of {card.spec}: the adapter was moved by hand. Publish it instead.")
        return card

    def _claim(self, card: Card) -> _Claim:
        """Take the next free number."""
        content = json.dumps(
            {
                "machine": _machine(),
                "process": os.getpid(),
                "started": psutil.Process().create_time(),
                "time": _now(),
                "token": uuid.uuid4().hex,
                "identity": _identity(card),
            }
        ).encode()
        for _ in range(200):  # each failure means that another publisher got a number, so this ends
            paths = self._store.find(card.name)
            version = max(_numbers(_CLAIM_PATH, paths) + _numbers(_VERSION_PATH, paths), default=0) + 1
            claim = _Claim(version, f"{card.name}/.claims/{version}.json", content)
            if self._store.create(claim.path, content):
                return claim
        raise KauliError(f"{card.name} was not published: too many others publish under this name. Run it again.")

    def _check_identity(self, card: Card, version: int) -> None:
        """A name keeps its task, base and language: those of its versions, and of anyone who came first just now."""
        paths = self._store.find(card.name)
        published = _numbers(_CARD_PATH, paths)
        others = [_identity(self._card(card.name, published[-1]))] if published else []
        for number in _numbers(_CLAIM_PATH, paths):
            if number < version and number not in published:
                claim = self._read_claim(card.name, number)
                if "identity" in claim:
                    others.append(claim["identity"])
        _compare_identities(card, others)

    def _clean(self, name: str) -> None:
        """Delete what killed publishers and interrupted removals left."""
        paths = self._store.find(name)
        for version in sorted(set(_numbers(_CLAIM_PATH, paths)) - set(_numbers(_CARD_PATH, paths))):
            claim = self._read_claim(name, version)
            closed = "closed" in claim
            if not closed and not _is_dead(claim):
                continue
            path = f"{name}/.claims/{version}.json"
            if not closed:
                # Without a lock another cleaner may be at the same number, so there it is given up for good:
                # a claim deleted here and taken again by a third publisher would lose its files to that cleaner.
                self._store.write(path, json.dumps({"closed": "abandoned", "time": _now()}).encode())
            if any(found.startswith(f"{name}/{version}/") for found in paths):
                self._store.delete(f"{name}/{version}")
            if not closed and self._store.local("") is not None:
                self._store.delete(path)

    def _read_claim(self, name: str, version: int) -> dict[str, Any]:
        path = f"{name}/.claims/{version}.json"
        content = self._store.read(path)
        return {"closed": "withdrawn"} if content is None else _parsed(content, path)

    def _withdraw(self, claim: _Claim) -> None:
        """Undo a publishing that failed. When that fails too, the next publisher cleans."""
        try:
            if self._store.read(claim.path) == claim.content:
                folder = claim.path.split("/")[0] + f"/{claim.version}"
                self._store.delete(f"{folder}/{CARD_FILE}")
                self._store.delete(folder)
                self._store.delete(claim.path)
        except KauliError as error:
            note(f"{error} The unfinished version {claim.version} is not visible; the next publishing cleans it.")


def _numbers(pattern: re.Pattern[str], paths: list[str]) -> list[int]:
    return sorted({int(match[1]) for path in paths if (match := pattern.fullmatch(path))})


def _listed(versions: list[int]) -> str:
    return ", ".join(str(version) for version in versions)


def _shown(value: Any) -> str:
    return ", ".join(value) if isinstance(value, list) else str(value)


def _compare_identities(card: Card, others: list[dict[str, Any]]) -> None:
    mine = _identity(card)
    for other in others:
        for what in mine:
            if other[what] != mine[what]:
                raise UsageError(
                    f"'{card.name}' is taken: its {what} is {_shown(other[what])}, not {_shown(mine[what])}, "
                    "and a name keeps its task, base and language. Choose another name (--set name=...)."
                )


def _identity(card: Card) -> dict[str, Any]:
    return {
        "task": card.task,
        "base": f"{card.base.name} ({card.base.sha256[:12]})",
        "language": sorted(card.language),
    }


def _parsed(content: bytes, path: str) -> dict[str, Any]:
    try:
        parsed = json.loads(content)
    except ValueError as error:
        raise KauliError(f"adapters/{path} in the storage is damaged: {error}.") from error
    if not isinstance(parsed, dict):
        raise KauliError(f"adapters/{path} in the storage is damaged: it is not a JSON object.")
    return parsed


def _is_dead(claim: dict[str, Any]) -> bool:
    """Whether the publisher of an open claim is gone: by the process table here, by age elsewhere."""
    if claim["machine"] != _machine():
        return time.time() - datetime.fromisoformat(claim["time"]).timestamp() > _CLAIM_SECONDS
    try:
        # The start tells a process from a later one with the same number; clocks may be set meanwhile.
        started: float = psutil.Process(claim["process"]).create_time()
        return abs(started - float(claim["started"])) > 60
    except psutil.NoSuchProcess:
        return True


def _machine() -> str:
    """Identifies a process table: the host and, in a container, the namespace of process numbers."""
    try:
        return f"{platform.node()} {os.readlink('/proc/self/ns/pid')}"
    except OSError:  # no Linux
        return platform.node()


def _now() -> str:
    return datetime.now(UTC).isoformat(timespec="seconds")
