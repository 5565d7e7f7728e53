"""Storage of adapters: a local folder, or an object store reached through fsspec, behind one small surface.

Paths are relative to the store's root, with forward slashes. `write` and `create` are atomic: a reader, or a crash,
finds the whole file or none. Failures are `KauliError`s that name the storage.
"""

import os
import shutil
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext, suppress
from pathlib import Path
from typing import Protocol

from kauli.models.errors import KauliError, UsageError
from kauli.models.files import file_lock, write_atomically, written_beside


class Store(Protocol):
    """A place to keep files."""

    uri: str
    """The storage as the user wrote it, for messages."""

    def find(self, prefix: str) -> list[str]:
        """All files under a folder, at any depth; none when there is no such folder."""

    def read(self, path: str) -> bytes | None:
        """The content of a file, None when there is none."""

    def write(self, path: str, content: bytes) -> None:
        """Write a file, replacing an older one."""

    def create(self, path: str, content: bytes) -> bool:
        """Write a file only if there is none yet; False when there is. Of several callers at once, one gets True."""

    def upload(self, source: Path, path: str) -> None:
        """Copy a local file into the store."""

    def download(self, path: str, target: Path) -> None:
        """Copy a file out of the store."""

    def delete(self, path: str) -> None:
        """Delete a file, or a folder with all that is under it; nothing happens when there is none."""

    def local(self, path: str) -> Path | None:
        """The path on this machine; None for a remote store."""

    def lock(self, path: str) -> AbstractContextManager[None]:
        """A lock that all users of a local store respect; a remote store has none, and locks nothing."""


def open_store(storage: str, folder: str) -> Store:
    """The store at `storage/folder`, where `storage` is a local path or any URI that fsspec knows."""
    if storage.startswith("file://"):
        storage = storage.removeprefix("file://")
    if "://" not in storage and "::" not in storage:
        return LocalStore(Path(storage).expanduser().absolute() / folder, storage)
    return ObjectStore(storage, folder)


class LocalStore:
    """A folder on this machine, or on a disk that several machines share."""

    def __init__(self, root: Path, uri: str) -> None:
        self.root = root
        self.uri = uri

    def find(self, prefix: str) -> list[str]:
        def tell(error: OSError) -> None:
            if not isinstance(error, FileNotFoundError | NotADirectoryError):  # removed by another while it was listed
                raise error

        with self._explained("list"):
            paths = (
                Path(folder, name) for folder, _, names in os.walk(self.root / prefix, onerror=tell) for name in names
            )
            return sorted(path.relative_to(self.root).as_posix() for path in paths if path.is_file())

    def read(self, path: str) -> bytes | None:
        with self._explained("read"):
            try:
                return (self.root / path).read_bytes()
            except (FileNotFoundError, NotADirectoryError):
                return None

    def write(self, path: str, content: bytes) -> None:
        with self._explained("write to"):
            write_atomically(self.root / path, content)

    def create(self, path: str, content: bytes) -> bool:
        with self._explained("write to"), written_beside(self.root / path, content) as temporary:
            try:
                os.link(temporary, self.root / path)  # unlike rename, it fails when the target is there
            except FileExistsError:
                return False
            return True

    def upload(self, source: Path, path: str) -> None:
        with self._explained("write to"):
            write_atomically(self.root / path, source)

    def download(self, path: str, target: Path) -> None:
        with self._explained("read"):
            shutil.copyfile(self.root / path, target)

    def delete(self, path: str) -> None:
        target = self.root / path
        with self._explained("delete from"):
            if target.is_dir():
                shutil.rmtree(target)
            else:
                target.unlink(missing_ok=True)
        # An adapter that never came to be leaves no empty folder. A folder in use is not empty, and stays.
        with suppress(OSError):
            for parent in target.relative_to(self.root).parents:
                (self.root / parent).rmdir()

    def local(self, path: str) -> Path | None:
        return self.root / path

    @contextmanager
    def lock(self, path: str) -> Iterator[None]:
        with self._explained("write to"), file_lock(self.root / path):
            yield

    @contextmanager
    def _explained(self, verb: str) -> Iterator[None]:
        try:
            yield
        except OSError as error:
            raise KauliError(f"cannot {verb} {self.uri}: {error.strerror or error}.") from error


class ObjectStore:
    """Any file system of fsspec: S3, Google Cloud Storage, memory."""

    def __init__(self, storage: str, folder: str) -> None:
        import fsspec  # a second of imports that a local registry does without

        self.uri = storage
        try:
            # Listings must be fresh: another machine may have published a second ago.
            self._fs, root = fsspec.core.url_to_fs(storage, use_listings_cache=False)
        except ImportError as error:
            raise UsageError(
                f"storage '{storage}' needs a package: {error}. `pip install kauli[s3]` for S3."
            ) from error
        except ValueError as error:
            raise UsageError(
                f"storage '{storage}' is not known to fsspec: {error}. A local path, s3://, gs://."
            ) from error
        self._root = f"{root.rstrip('/')}/{folder}"

    def find(self, prefix: str) -> list[str]:
        with self._explained("list"):
            try:
                found = self._fs.find(f"{self._root}/{prefix}".rstrip("/"))
            except FileNotFoundError:
                return []
            return sorted(path.removeprefix(f"{self._root}/") for path in found)

    def read(self, path: str) -> bytes | None:
        with self._explained("read"):
            try:
                content: bytes = self._fs.cat_file(f"{self._root}/{path}")
            except FileNotFoundError:
                return None
            return content

    def write(self, path: str, content: bytes) -> None:
        with self._explained("write to"):
            self._fs.pipe_file(f"{self._root}/{path}", content)

    def create(self, path: str, content: bytes) -> bool:
        with self._explained("write to"):
            try:
                self._fs.pipe_file(f"{self._root}/{path}", content, mode="create")
            except FileExistsError:
                # The client sends a request again whose answer was lost: then it is our own file that is there.
                return self.read(path) == content
            return True

    def upload(self, source: Path, path: str) -> None:
        with self._explained("write to"):
            self._fs.put_file(str(source), f"{self._root}/{path}")

    def download(self, path: str, target: Path) -> None:
        with self._explained("read"):
            self._fs.get_file(f"{self._root}/{path}", str(target))

    def delete(self, path: str) -> None:
        with self._explained("delete from"), suppress(FileNotFoundError):
            self._fs.rm(f"{self._root}/{path}", recursive=True)

    def local(self, path: str) -> Path | None:
        return None

    def lock(self, path: str) -> AbstractContextManager[None]:
        return nullcontext()

    @contextmanager
    def _explained(self, verb: str) -> Iterator[None]:
        try:
            yield
        except KauliError:
            raise
        except Exception as error:  # each file system has its own kinds: missing bucket, no credentials, no route
            raise KauliError(f"cannot {verb} {self.uri}: {str(error) or type(error).__name__}.") from error
