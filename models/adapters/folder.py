"""An adapter folder: its allowed files, and whether it is whole, harmless and made for a given base.

The folder is the contract between training, the registry and serving: a PEFT folder (or the weights of a full
fine-tuning, `model.safetensors`, or the prompts of a search, `prompts.json`) with `card.json` and `README.md`. Nothing
in it is ever unpickled or run.
"""

import re
from pathlib import Path
from typing import TYPE_CHECKING, Any

from kauli.models.adapters.card import CARD_FILE, README_FILE, SUFFIXES, Card, read_card
from kauli.models.adapters.page import render_readme
from kauli.models.errors import KauliError
from kauli.models.files import check_safetensors, hash_files, read_json, write_atomically

if TYPE_CHECKING:
    from kauli.models.bases.find import Base

ADAPTER_CONFIG = "adapter_config.json"
ADAPTER_WEIGHTS = "adapter_model.safetensors"
PROMPTS = "prompts.json"
"""In the place of weights: the prompts that were compared, the best first. The card holds the one that is used."""
_HUB_ID = re.compile(r"[A-Za-z0-9][\w.-]*(/[A-Za-z0-9][\w.-]*)?")
# Keys by which a configuration makes transformers, peft or diffusers import code that came with the weights.
_CODE_KEYS = {"auto_map", "trust_remote_code", "custom_generate", "custom_pipelines", "megatron_config"}


def write_card(folder: Path, card: Card) -> Card:
    """Write `README.md` and then, as the last file, `card.json` with the hash of every file in `folder`.

    Returns the card as written (`card` itself is not changed).
    """
    page = render_readme(card)
    write_atomically(folder / README_FILE, page.encode())
    written = card.model_copy(update={"files": hash_files(folder, CARD_FILE)})
    write_atomically(folder / CARD_FILE, written.to_json().encode())
    return written


def check_folder(folder: Path, card: Card | None = None) -> Card:
    """Refuse, with a `KauliError` that names the file, a folder that is not a whole and harmless adapter.

    Checks what `check_files` checks, and every file's SHA-256 against the card (by default the one in the folder).
    Returns that card.
    """
    check_files(folder)
    card = card or read_card(folder)
    found = hash_files(folder, CARD_FILE)
    for name in sorted(card.files.keys() - found.keys()):
        raise KauliError(f"{folder / name} is missing: the adapter is not whole. Fetch or publish it again.")
    for name, digest in found.items():
        if card.files.get(name) != digest:
            reason = "differs from the SHA-256 in its card" if name in card.files else "is not in its card"
            raise KauliError(f"{folder / name} {reason}: the adapter is damaged or was changed.")
    return card


def check_files(folder: Path) -> None:
    """Refuse a folder with anything but sound safetensors, JSON without code, and Markdown; needs no card."""
    if not folder.is_dir():
        raise KauliError(f"{folder} is not a folder.")
    weights = 0
    for path in sorted(folder.rglob("*")):
        if path.is_symlink():
            raise KauliError(f"{path} is a symbolic link: an adapter folder holds its own files only.")
        if path.is_dir():
            continue
        if not path.is_file() or not path.name.endswith(SUFFIXES):
            raise KauliError(
                f"{path} is not allowed in an adapter folder: only {', '.join(SUFFIXES)} files are, "
                "because other formats can run code when they are loaded. "
                "Save the weights with `save_pretrained` of peft (safetensors), or remove this file."
            )
        if path.suffix == ".safetensors":
            check_safetensors(path)
            weights += 1
        elif path.suffix == ".json" and path.name != CARD_FILE:
            content = read_json(path)
            check_no_code(content, path)
            if path.name == ADAPTER_CONFIG:
                _check_reference(content, path)
    if not weights and not (folder / PROMPTS).exists():
        raise KauliError(f"{folder} holds no weights (*.safetensors).")
    for name, other in ((ADAPTER_WEIGHTS, ADAPTER_CONFIG), (ADAPTER_CONFIG, ADAPTER_WEIGHTS)):
        if (folder / name).exists() and not (folder / other).exists():
            raise KauliError(f"{folder / other} is missing beside {name}: the adapter is not whole.")


def check_base(card: Card, base: "Base") -> None:
    """Raise `KauliError` when `base` is not the one that the adapter was made on."""
    if card.base.sha256 != base.sha256:
        raise KauliError(
            f"adapter {card.spec} was made on {card.base.name} ({card.base.sha256[:12]}), "
            f"but the base here is {base.name} ({base.sha256[:12]}). Use that base."
        )


def check_no_code(content: Any, path: Path) -> None:
    """Refuse a configuration that asks a loader to import code, at any depth."""
    pending = [content]
    while pending:
        part = pending.pop()
        if isinstance(part, list):
            pending.extend(part)
        elif isinstance(part, dict):
            pending.extend(part.values())
            for key in _CODE_KEYS & part.keys():
                if part[key]:
                    raise KauliError(f"{path} asks for code to be loaded ('{key}'): it is refused.")
            # peft writes this itself for a model without a task type, and imports the library that it names.
            mapping = part.get("auto_mapping")
            if mapping and not (isinstance(mapping, dict) and _from_transformers(mapping.get("parent_library"))):
                raise KauliError(f"{path} asks for foreign code to be loaded ('auto_mapping'): it is refused.")


def _from_transformers(library: Any) -> bool:
    return isinstance(library, str) and (library == "transformers" or library.startswith("transformers."))


def _check_reference(config: Any, path: Path) -> None:
    """A published adapter names its base by hub id: a local path helps nobody else and tells where it was made."""
    if not isinstance(config, dict) or not isinstance(config.get("peft_type"), str):
        raise KauliError(f"{path} is not a configuration of peft: it has no 'peft_type'.")
    reference = config.get("base_model_name_or_path")
    if not isinstance(reference, str) or not _HUB_ID.fullmatch(reference):
        raise KauliError(f"{path} names its base {reference!r}: no hub id. `kauli adapters add` rewrites it.")
