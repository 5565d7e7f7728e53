"""Files and folders that are written whole or not at all, hashes of files, reading of JSON, YAML and safetensors."""

import fcntl
import glob
import hashlib
import json
import os
import shutil
import tempfile
import uuid
from collections.abc import Hashable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import yaml
from safetensors import SafetensorError, safe_open

from kauli.models.errors import KauliError
from kauli.models.paths import kauli_home

_MOST_JSON_BYTES = 64 * 2**20  # a tokenizer is the largest JSON that an honest folder holds


@contextmanager
def atomic_folder(target: Path) -> Iterator[Path]:
    """Yield an empty folder beside `target` that becomes `target` when the block ends well, replacing an older one.

    When the block raises, or the process is killed, `target` stays as it was. Leftovers of killed runs are removed
    by the next call for the same target; calls for one target wait for each other.
    """
    target = target.absolute()
    tag = hashlib.sha256(str(target).encode()).hexdigest()[:12]
    with file_lock(kauli_home() / "locks" / f"folder-{target.name}-{tag}.lock"):
        target.parent.mkdir(parents=True, exist_ok=True)
        for leftover in target.parent.glob(f".{glob.escape(target.name)}.*.partial*"):
            shutil.rmtree(leftover, ignore_errors=True)  # its owner held the lock, so that process is dead
        partial = Path(tempfile.mkdtemp(prefix=f".{target.name}.", suffix=".partial", dir=target.parent))
        partial.chmod(0o755)  # mkdtemp makes it private to this user; the finished folder is an ordinary one
        try:
            yield partial
            if target.exists():
                old = partial.with_name(partial.name + ".old")
                target.rename(old)
                partial.rename(target)
                shutil.rmtree(old, ignore_errors=True)
            else:
                partial.rename(target)
        finally:
            shutil.rmtree(partial, ignore_errors=True)


@contextmanager
def file_lock(path: Path) -> Iterator[None]:
    """Hold an exclusive lock on `path` (created if missing), waiting for its holder; a killed holder frees it."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("a") as handle:
        fcntl.flock(handle, fcntl.LOCK_EX)
        yield  # closing the file releases the lock


def sha256_file(path: Path) -> str:
    """The SHA-256 of a file's bytes, in hex."""
    with path.open("rb") as handle:
        return hashlib.file_digest(handle, "sha256").hexdigest()


def write_atomically(path: Path, content: bytes | Path) -> None:
    """Write bytes, or a copy of a file, so that a reader, or a crash, finds all of it or none; folders are made."""
    with written_beside(path, content) as temporary:
        os.replace(temporary, path)


@contextmanager
def written_beside(path: Path, content: bytes | Path) -> Iterator[Path]:
    """A temporary file with `content`, bytes or that of a file, on the disk beside the place where it belongs."""
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.{uuid.uuid4().hex}.tmp")
    try:
        if isinstance(content, Path):
            shutil.copyfile(content, temporary)
        else:
            temporary.write_bytes(content)
        with temporary.open("rb") as file:
            os.fsync(file.fileno())
        yield temporary
    finally:
        temporary.unlink(missing_ok=True)


def hash_files(folder: Path, exclude: str = "") -> dict[str, str]:
    """Path inside `folder` to SHA-256, for every file but the one called `exclude`, sorted by path."""
    paths = sorted(path for path in folder.rglob("*") if path.is_file())
    names = [path.relative_to(folder).as_posix() for path in paths]
    return {name: sha256_file(path) for name, path in zip(names, paths, strict=True) if name != exclude}


def check_safetensors(path: Path) -> dict[str, tuple[int, ...]]:
    """Tensor names and shapes of a safetensors file; raises `KauliError` when it is truncated or not one."""
    try:
        with safe_open(path, framework="np") as file:  # only shapes are read: torch need not be imported for that
            return {name: tuple(file.get_slice(name).get_shape()) for name in file.keys()}  # noqa: SIM118 - no mapping
    except (SafetensorError, OSError, ValueError) as error:
        with path.open("rb") as handle:
            pointer = handle.read(32).startswith(b"version https://git-lfs")
        reason = "it is a pointer of Git LFS, fetch the file itself by git lfs pull" if pointer else error
        raise KauliError(f"{path} is not a sound safetensors file: {reason}.") from error


class _Once(yaml.SafeLoader):
    """A key that is there twice is an error: of YAML's own loaders the last one wins, without a word."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Hashable, Any]:
        names = [key.value for key, _ in node.value]
        if twice := [key for key, _ in node.value if names.count(key.value) > 1]:
            raise yaml.MarkedYAMLError(
                problem=f"the key '{twice[-1].value}' is there twice", problem_mark=twice[-1].start_mark
            )
        return super().construct_mapping(node, deep)


def read_yaml(text: str) -> Any:
    """The content of a YAML file of a user; raises yaml.YAMLError, for a key that is there twice too."""
    return yaml.load(text, _Once)


def read_json(path: Path) -> Any:
    """The content of a JSON file that came with weights; raises `KauliError` when it cannot be read."""
    if path.stat().st_size > _MOST_JSON_BYTES:
        raise KauliError(f"{path} is larger than {_MOST_JSON_BYTES // 2**20} MiB: it is not read.")
    try:
        return json.loads(path.read_bytes())
    except (ValueError, RecursionError) as error:
        raise KauliError(f"{path} is not readable JSON: {error}.") from error
