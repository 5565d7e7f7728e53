"""Models of the Hugging Face hub: what one is before it is downloaded, and its safe files."""

import re
import shutil
import threading
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from kauli.models.errors import KauliError, UsageError
from kauli.models.progress import note

HUB_ID = re.compile(r"[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*")
# Weights, configuration and vocabulary in formats that cannot carry code; no *.bin, no *.py.
SAFE_FILES = ("*.safetensors", "*.json", "*.txt", "*.jinja", "tokenizer.model", "spiece.model", "README.md", "LICENSE*")
ANSWER_SECONDS = 7.0
_NONCOMMERCIAL = re.compile(r"(^|[-_ ])nc([-_ ]|$)|non-?commercial|research", re.IGNORECASE)


@dataclass(frozen=True)
class Facts:
    """Licence and languages by the front matter of a model card."""

    licence: str
    languages: tuple[str, ...]

    @property
    def noncommercial(self) -> bool:
        """Whether the licence's name forbids commercial use."""
        return _NONCOMMERCIAL.search(self.licence) is not None


def read_facts(folder: Path) -> Facts:
    """The facts in the front matter of the folder's README.md; licence "unknown" when it says none."""
    readme = folder / "README.md"
    text = readme.read_text(encoding="utf-8", errors="replace") if readme.is_file() else ""
    found = re.match(r"---\s*\n(.*?)\n---\s*(\n|$)", text, re.DOTALL)
    try:
        matter = yaml.safe_load(found[1]) if found else None
    except yaml.YAMLError:  # a model card written by hand; the licence then counts as unknown
        note(f"{readme} has metadata that is not YAML: its licence is not read.")
        matter = None
    return _facts(matter if isinstance(matter, dict) else {})


def look_up(hub_id: str) -> Facts | None:
    """Ask the hub about a model, for at most 7 seconds; None when the hub cannot be reached.

    Raises `UsageError` when there is no such model, or it holds no safetensors, or needs its own code.
    """
    from huggingface_hub import HfApi
    from huggingface_hub.errors import GatedRepoError, HFValidationError, RepositoryNotFoundError
    from huggingface_hub.errors import HTTPError as HubError  # type: ignore[attr-defined]

    answer: list[Any] = []

    def ask() -> None:
        try:
            answer.append(HfApi().model_info(hub_id, timeout=5))
        except Exception as error:  # carried to the caller's thread, below
            answer.append(error)

    # A thread, because no timeout of the client covers a name server that does not answer.
    thread = threading.Thread(target=ask, daemon=True)
    thread.start()
    thread.join(ANSWER_SECONDS)
    info = answer[0] if answer else TimeoutError()
    if isinstance(info, GatedRepoError):
        raise UsageError(f"'{hub_id}' is gated: accept its terms on its page at the hub, and set HF_TOKEN.") from info
    if isinstance(info, (RepositoryNotFoundError, HFValidationError)):
        raise UsageError(f"The hub has no model '{hub_id}' (or it is private: set HF_TOKEN). Check the name.") from info
    if isinstance(info, (OSError, HubError)):
        reason = str(info).strip().splitlines()
        note(f"the hub did not answer ({type(info).__name__}{': ' + reason[0] if reason else ''})")
        return None
    if isinstance(info, Exception):
        raise info
    names = [sibling.rfilename for sibling in info.siblings or []]
    if not any(name.endswith(".safetensors") and "/" not in name for name in names):
        raise UsageError(f"'{hub_id}' holds no safetensors weights, and kauli loads nothing else (no .bin, no pickle).")
    if "auto_map" in (info.config or {}):
        raise UsageError(f"'{hub_id}' needs its own code (auto_map), which kauli never runs. Take another base.")
    return _facts(info.card_data.to_dict() if info.card_data else {})


def download(hub_id: str, out: Path, online: bool) -> str:
    """Bring the safe files of a hub model into `out`; returns its revision (a commit hash).

    The files go through the hub's own cache, so a broken download resumes where it stopped, and a model that the cache
    holds needs no network (`online=False`). Raises `KauliError`.
    """
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HTTPError as HubError  # type: ignore[attr-defined]
    from huggingface_hub.errors import IncompleteSnapshotError, LocalEntryNotFoundError

    try:
        snapshot = Path(snapshot_download(hub_id, allow_patterns=list(SAFE_FILES), local_files_only=not online))
    except (LocalEntryNotFoundError, IncompleteSnapshotError) as error:
        raise KauliError(f"'{hub_id}' is not on this machine and the hub cannot be reached.") from error
    except (OSError, HubError) as error:
        reason = str(error).strip().splitlines() or [type(error).__name__]
        raise KauliError(
            f"The download of '{hub_id}' broke off: {reason[0]}. Run the command again to resume it."
        ) from error
    for path in snapshot.iterdir():  # top level only: subfolders hold other formats (onnx, original)
        if path.is_file():
            _link(path.resolve(), out / path.name)
    return snapshot.name


def _link(source: Path, target: Path) -> None:
    try:
        target.hardlink_to(source)
    except OSError:  # another file system
        shutil.copyfile(source, target)


def _facts(matter: dict[str, Any]) -> Facts:
    licence = str(matter.get("license") or "unknown")
    if licence == "other" and matter.get("license_name"):
        licence = str(matter["license_name"])
    languages = matter.get("language") or []
    return Facts(licence, tuple(map(str, [languages] if isinstance(languages, str) else languages)))
