"""A base's folder on the disk: what it must hold, its hashes, and the record that says it is whole."""

import hashlib
import json
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from pydantic import ValidationError
from safetensors import SafetensorError, safe_open

from kauli.models.bases.clip_import import CLIP_CONFIG, check_clip
from kauli.models.errors import KauliError, UsageError
from kauli.models.files import sha256_file, write_atomically
from kauli.models.frozen import FrozenModel
from kauli.models.paths import kauli_home
from kauli.models.tasks import TASKS, resolve

RECORD = "base.json"
# What a base is, besides its configuration: its weights and its vocabulary.
IDENTITY_FILES = (
    "*.safetensors",
    "tokenizer.json",
    "tokenizer.model",
    "spiece.model",
    "vocab.*",
    "merges.txt",
    "voice.json",
)
# Keys of config.json that differ between machines and library versions without changing the model.
VOLATILE_KEYS = {"transformers_version", "_name_or_path", "_model_name_or_path", "dtype", "torch_dtype"}
PLAIN = "{% for message in messages %}{{ message['content'] }}\n{% endfor %}"
"""The chat template of a base that has none."""
# Suffixes of architectures that generate text from left to right (the second: Gemma 3 with images and similar ones).
TEXT_ARCHITECTURES = ("ForCausalLM", "ForConditionalGeneration", "LMHeadModel")


class StoredFile(FrozenModel):
    """The size and hash that a file of a stored base has."""

    bytes: int
    sha256: str


class Record(FrozenModel):
    """base.json: written last into a base's folder, so a folder that has one is whole."""

    name: str
    sha256: str
    made_from: str
    """The hash of the card's sources, or the hub's revision."""
    created: str
    card: dict[str, Any]
    files: dict[str, StoredFile]


def read_record(folder: Path) -> Record | None:
    """The record of a stored base, or None when the folder holds no whole base of this version's kind."""
    try:
        return Record.model_validate_json((folder / RECORD).read_bytes())
    except (FileNotFoundError, ValidationError):
        return None


def write_record(folder: Path, name: str, card: dict[str, Any], made_from: str) -> Record:
    """Hash every file of `folder` and write its record."""
    paths = sorted(path for path in folder.iterdir() if path.is_file() and path.name != RECORD)
    for path in paths:
        if path.stat().st_nlink == 1:  # weights are saved for this user alone; a linked file belongs to the hub's cache
            path.chmod(0o644)
    files = {path.name: StoredFile(bytes=path.stat().st_size, sha256=sha256_file(path)) for path in paths}
    identity = _identity(folder, {name: files[name].sha256 for name in _identity_names(folder)})
    created = datetime.now(UTC).isoformat(timespec="seconds")
    record = Record(name=name, sha256=identity, made_from=made_from, created=created, card=card, files=files)
    (folder / RECORD).write_text(record.model_dump_json(indent=1) + "\n", encoding="utf-8")
    return record


def damaged_files(folder: Path, record: Record, content: bool) -> list[str]:
    """Names of files that are missing or of another size than recorded, or (`content`) of another hash."""
    damaged = []
    for name, stored in record.files.items():
        path = folder / name
        whole = path.is_file() and path.stat().st_size == stored.bytes
        if not whole or (content and sha256_file(path) != stored.sha256):
            damaged.append(name)
    return damaged


def hash_folder(folder: Path) -> str:
    """The identity hash of a model folder of the user's; file hashes are remembered by size and time of change."""
    memory = kauli_home() / "hashes" / f"{hashlib.sha256(str(folder).encode()).hexdigest()[:16]}.json"
    try:
        known = json.loads(memory.read_text())
    except (FileNotFoundError, ValueError):
        known = {}
    hashes: dict[str, list[Any]] = {}
    for name in _identity_names(folder):
        stat = (folder / name).stat()
        state = [stat.st_size, stat.st_mtime_ns]
        old = known.get(name)
        hashes[name] = old if old and old[:2] == state else [*state, sha256_file(folder / name)]
    if hashes != known:
        write_atomically(memory, json.dumps(hashes).encode())
    return _identity(folder, {name: sha256 for name, (_, _, sha256) in hashes.items()})


def check_model(folder: Path, name: str, task: str) -> None:
    """Raise `UsageError` unless `folder` holds a base of `task`: whole safetensors, no code, a vocabulary."""
    resolve(TASKS[task].check)(folder, name)


def check_aligned(folder: Path, name: str) -> None:
    """Raise `UsageError` unless `folder` holds an open_clip model that kauli loads."""
    check_clip(folder, name)
    _check_weights(folder, name)


def check_recogniser(folder: Path, name: str) -> None:
    """Raise `UsageError` unless `folder` holds a speech recogniser that kauli loads."""
    config = _check_config(folder, name)
    kind, known = config.get("model_type"), TASKS["transcribe"].model_types
    if kind not in known:
        raise UsageError(f"'{name}' is a model of the kind '{kind}'; the task 'transcribe' takes {', '.join(known)}.")
    # A wav2vec2 without a vocabulary is a bare encoder, which gets one in training
    if kind == "whisper" and not any((folder / file).is_file() for file in ("tokenizer.json", "vocab.json")):
        raise UsageError(f"'{name}' has no tokenizer (tokenizer.json or vocab.json).")
    if not (folder / "preprocessor_config.json").is_file():
        raise UsageError(f"'{name}' has no preprocessor_config.json, which says how audio becomes its input.")


def check_voice(folder: Path, name: str) -> None:
    """Raise `UsageError` unless `folder` holds a voice that kauli loads."""
    config = _check_config(folder, name)
    kind, known = config.get("model_type"), TASKS["speak"].model_types
    if kind not in known:
        raise UsageError(f"'{name}' is a model of the kind '{kind}'; the task 'speak' takes {', '.join(known)}.")
    if not any((folder / file).is_file() for file in ("voice.json", "vocab.json")):
        raise UsageError(f"'{name}' has no vocab.json, which says what its voice reads.")


def check_text(folder: Path, name: str) -> None:
    """Raise `UsageError` unless `folder` holds a causal language model that kauli loads."""
    architectures = _check_config(folder, name).get("architectures") or []
    if architectures and not any(str(kind).endswith(TEXT_ARCHITECTURES) for kind in architectures):
        raise UsageError(f"'{name}' is a {architectures[0]}; the task 'text' needs a causal language model.")
    vocabulary = ("tokenizer.json", "tokenizer.model", "spiece.model", "vocab.json")
    if not any((folder / file).is_file() for file in vocabulary):
        raise UsageError(f"'{name}' has no tokenizer (one of {', '.join(vocabulary)}).")


def _check_config(folder: Path, name: str) -> dict[str, Any]:
    """The configuration of a folder of transformers, whose weights are whole and which asks for no code."""
    if not (folder / "config.json").is_file():
        hint = " It is an adapter, not a base." if (folder / "adapter_config.json").is_file() else ""
        raise UsageError(f"'{name}' is no base: it has no config.json.{hint}")
    config = _json(folder / "config.json", name)
    for file in ("config.json", "tokenizer_config.json"):
        if (folder / file).is_file() and "auto_map" in _json(folder / file, name):
            raise UsageError(f"'{name}' needs its own code (auto_map in {file}), which kauli never runs.")
    _check_weights(folder, name)
    return config


def _check_weights(folder: Path, name: str) -> None:
    weights = sorted(folder.glob("*.safetensors"))
    if not weights:
        others = sorted(path.name for pattern in ("*.bin", "*.pt", "*.pth", "*.gguf") for path in folder.glob(pattern))
        found = f", only {', '.join(others[:3])}" if others else ""
        raise UsageError(f"'{name}' has no *.safetensors{found}. kauli loads weights from safetensors alone.")
    index = folder / "model.safetensors.index.json"
    if index.is_file():
        shards = set(_json(index, name).get("weight_map", {}).values())
        missing = sorted(shards - {path.name for path in weights})
        if missing:
            raise UsageError(f"'{name}' is not whole: {', '.join(missing[:3])} is missing.")
    for path in weights:
        try:
            with safe_open(path, framework="numpy") as tensors:
                tensors.keys()
        except (SafetensorError, OSError) as error:
            raise KauliError(f"{path.name} of '{name}' is damaged: {error}.") from error


def has_chat_template(folder: Path) -> bool:
    """Whether the folder's tokenizer brings its own chat template."""
    settings = folder / "tokenizer_config.json"
    return (folder / "chat_template.jinja").is_file() or (
        settings.is_file() and "chat_template" in _json(settings, str(folder))
    )


def _identity_names(folder: Path) -> list[str]:
    return sorted({path.name for pattern in IDENTITY_FILES for path in folder.glob(pattern) if path.is_file()})


def _identity(folder: Path, hashes: dict[str, str]) -> str:
    configs = [path for path in (folder / "config.json", folder / CLIP_CONFIG) if path.is_file()]
    merged = {key: value for path in configs for key, value in _json(path, str(folder)).items()}
    lasting = {key: value for key, value in merged.items() if key not in VOLATILE_KEYS}
    return hashlib.sha256(json.dumps([lasting, hashes], sort_keys=True).encode()).hexdigest()


def _json(path: Path, name: str) -> dict[str, Any]:
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise UsageError(f"{path.name} of '{name}' is not JSON: {error}.") from error
    if not isinstance(content, dict):
        raise UsageError(f"{path.name} of '{name}' holds no JSON object.")
    return content
