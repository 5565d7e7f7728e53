"""An adapter made by plain PEFT becomes one of ours, after a check that it fits the base."""

import json
import math
import re
import shutil
import warnings
from collections.abc import Sequence
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor, nn

from kauli.models.adapters.card import README_FILE, BaseReference, Card, check_new_name
from kauli.models.adapters.folder import ADAPTER_CONFIG, ADAPTER_WEIGHTS, check_files, check_no_code, write_card
from kauli.models.adapters.kinds.table import peft_kinds
from kauli.models.adapters.linear import MERGE, check_form, place_of
from kauli.models.bases.hub import read_facts
from kauli.models.errors import KauliError, UsageError
from kauli.models.files import atomic_folder, check_safetensors, read_json
from kauli.models.languages import check_tag
from kauli.models.progress import note
from kauli.models.tasks import TASKS, Peft, resolve

if TYPE_CHECKING:
    from kauli.models.bases.find import Base

# Formats that run code when they are opened. A folder with one of them is refused whole, because it cannot
# be checked; other files (chat templates, vocabularies) are only left out.
_UNSAFE = (".bin", ".pt", ".pth", ".pkl", ".pickle", ".ckpt", ".joblib", ".npy", ".npz", ".py", ".so", ".sh", ".h5")
# What Trainer leaves in a checkpoint beside the adapter: left out by name, never opened.
_TRAINER = re.compile(r"(optimizer|scheduler|scaler)\.pt|rng_state(_\d+)?\.pth|training_args\.bin")
_EMBEDDINGS = ("embed_tokens", "lm_head")  # layers whose base weights PEFT saves along where they are adapted
# Initialisations that change the base's weights: such an adapter fits a base that exists nowhere.
_CHANGED_BASE = ("pissa", "olora", "corda", "loftq", "lora_ga")


def from_peft(
    folder: Path, out: Path, *, name: str, language: str | Sequence[str], base: "Base", accept_base: bool = False
) -> Card:
    """Copy the adapter in `folder` to `out` (made, or replaced) with a card, and return the card.

    `base_model_name_or_path` may be a hub id or a path of this machine; it becomes `base.reference`. When it does not
    lead to `base`, `accept_base` lets the adapter through and the card records that. The tensors must fit the base
    in any case. Raises `UsageError` for a wrong name, language or base, `KauliError` for an unfit or unsafe folder.
    """
    check_new_name(name)
    tags = [check_tag(tag) for tag in ([language] if isinstance(language, str) else language)]
    config = _read_config(folder)
    exceptions = _check_reference(config.get("base_model_name_or_path"), folder, base, accept_base)
    shapes = check_safetensors(folder / ADAPTER_WEIGHTS)
    config["base_model_name_or_path"] = base.reference
    config["task_type"] = _peft_of(base, folder).task_type
    config["inference_mode"] = True
    saved_along = _saved_along(folder / ADAPTER_WEIGHTS, shapes, base)
    check_fit(config, {key: shape for key, shape in shapes.items() if key not in saved_along}, base, folder)
    _check_numbers(folder / ADAPTER_WEIGHTS)
    method = {"kind": str(config["peft_type"]).lower()}
    method |= {
        key: config[source]
        for key, source in (("rank", "r"), ("alpha", "lora_alpha"), ("targets", "target_modules"))
        if config.get(source) is not None
    }
    card = Card(
        name=name,
        task=base.task,
        language=tags,
        base=BaseReference.of(base),
        template=base.template,
        method=method,
        licence=read_facts(folder).licence,
        versions={"peft": str(config.get("peft_version") or version("peft"))},
        exceptions=exceptions,
    )
    with atomic_folder(out) as partial:
        if saved_along:
            kept = {key: _tensor(folder / ADAPTER_WEIGHTS, key) for key in shapes if key not in saved_along}
            save_file(kept, partial / ADAPTER_WEIGHTS, metadata={"format": "pt"})
        else:
            shutil.copyfile(folder / ADAPTER_WEIGHTS, partial / ADAPTER_WEIGHTS)
        (partial / ADAPTER_CONFIG).write_text(json.dumps(config, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
        check_files(partial)
        return write_card(partial, card)


def find_peft_base(name: str) -> "Base":
    """The base called `name`, of that task whose adapters plain PEFT makes; raises as `find_base` does."""
    from kauli.models.bases.find import find_base, known_bases

    rows = [row for row in TASKS.values() if row.peft is not None]
    card = known_bases().get(name)
    if card is not None:
        fitting = [row.name for row in rows if row.name in card.tasks]
        return find_base(name, allow_noncommercial=True, task=fitting[0] if fitting else rows[0].name)
    found = find_base(name, allow_noncommercial=True, task=rows[0].name)
    # A Whisper passes as a language model, since its architecture generates text
    kind = read_json(found.folder / "config.json").get("model_type")
    other = next((row.name for row in rows if kind in row.model_types), None)
    return found if other is None else find_base(name, allow_noncommercial=True, task=other)


def check_fit(config: dict[str, Any], shapes: dict[str, tuple[int, ...]], base: "Base", folder: Path) -> None:
    """Raise `KauliError` unless an adapter has just the tensors that PEFT would make for `config` on `base`.

    Nothing is loaded: the base is built on torch's meta device from its configuration.
    """
    from peft import PeftConfig, get_peft_model, get_peft_model_state_dict
    from transformers import AutoConfig

    known = _peft_of(base, folder)
    started = config.get("init_lora_weights")
    if isinstance(started, str) and started.lower().startswith(_CHANGED_BASE):
        raise KauliError(
            f"{folder / ADAPTER_CONFIG}: an adapter initialised by init_lora_weights='{started}' fits a changed base. "
            "Save it with peft's `path_initial_model_for_weight_conversion` first."
        )
    building: dict[str, Any] = {"base_model_name_or_path": None}
    if config["peft_type"] == "LORA":
        building["init_lora_weights"] = False  # values do not matter, only shapes
    try:
        shape = AutoConfig.from_pretrained(base.folder)
        if (reason := dict(known.refused).get(shape.model_type)) is not None:
            raise KauliError(f"{folder} can't be added for {base.name}: {reason}. Make one with `kauli train`.")
        with torch.device("meta"), warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of deprecations inside PEFT, and of tied output layers
            model = resolve(f"transformers:{known.auto_model}").from_config(shape)
            linears = {name: layer for name, layer in model.named_modules() if type(layer) is nn.Linear}
            settings = PeftConfig.from_peft_type(**{**config, **building})  # type: ignore[no-untyped-call]
            adapted = get_peft_model(model, settings, low_cpu_mem_usage=True)
            made = get_peft_model_state_dict(adapted, save_embedding_layers=False)
    except (ValueError, TypeError, KeyError, AttributeError, NotImplementedError, RuntimeError, re.error) as error:
        raise KauliError(f"{folder} does not fit {base.name}: {error}") from error
    expected = {key: tuple(value.shape) for key, value in made.items()}
    for key in sorted(expected.keys() & shapes.keys()):
        if expected[key] != shapes[key]:
            raise KauliError(
                f"{folder} was made for another base than {base.name}: "
                f"{key} is {_shape(shapes[key])}, but {base.name} needs {_shape(expected[key])}."
            )
    missing = sorted(expected.keys() - shapes.keys())
    # Not even an embedding that peft saved along: loading it would change the base under all other adapters.
    extra = sorted(shapes.keys() - expected.keys())
    if missing or extra:
        what = f"{missing[0]} is missing" if missing else f"there is no place for {extra[0]}"
        count = f"{len(missing)} tensors missing, {len(extra)} too many"
        raise KauliError(f"{folder} does not fit {base.name}: {what} ({count}).")
    for key in sorted(shapes):
        if place_of(key, linears)[0] is None:
            layer = key.removeprefix("base_model.model.").rsplit(".lora_", 1)[0]
            served = ", ".join(dict.fromkeys(name.rpartition(".")[2] for name in linears))
            raise KauliError(
                f"{folder} changes '{layer}', which is no linear layer. Beside others only adapters of "
                f"linear layers ({served}) can be served: train without '{layer.rpartition('.')[2]}' in "
                f"target_modules. {MERGE}"
            )


def _peft_of(base: "Base", folder: Path) -> Peft:
    known = TASKS[base.task].peft
    if known is None:
        fitting = ", ".join(name for name, row in TASKS.items() if row.peft is not None)
        raise KauliError(
            f"{folder} can't be added for {base.name}, a base of the task '{base.task}': take one of {fitting}."
        )
    return known


def _read_config(folder: Path) -> dict[str, Any]:
    if not folder.is_dir():
        raise UsageError(f"{folder} is not a folder: give one that peft's `save_pretrained` wrote.")
    left = []
    for path in sorted(folder.rglob("*")):
        if path.suffix.lower() in _UNSAFE and not _TRAINER.fullmatch(path.name):
            raise KauliError(
                f"{path} is refused: {path.suffix} files can run code when they are loaded. "
                f"Give a folder with {ADAPTER_CONFIG} and {ADAPTER_WEIGHTS} only (peft's `save_pretrained` makes one)."
            )
        if path.is_file() and path.name not in (ADAPTER_CONFIG, ADAPTER_WEIGHTS, README_FILE):
            left.append(path.relative_to(folder).as_posix())
    for name in (ADAPTER_CONFIG, ADAPTER_WEIGHTS):
        if not (folder / name).is_file():
            inner = next((f" There is one in {path.parent}." for path in sorted(folder.rglob(name))), "")
            raise KauliError(
                f"{folder} has no {name}: it is not an adapter that peft's `save_pretrained` wrote.{inner}"
            )
    config = read_json(folder / ADAPTER_CONFIG)
    if isinstance(config, dict):
        # It names classes of the library that the base was loaded with: kauli's tasks know their own.
        config["auto_mapping"] = None
    check_no_code(config, folder / ADAPTER_CONFIG)
    if not isinstance(config, dict) or not isinstance(config.get("peft_type"), str):
        raise KauliError(f"{folder / ADAPTER_CONFIG} is not a configuration of peft: it has no 'peft_type'.")
    if config["peft_type"] not in peft_kinds():
        raise KauliError(
            f"{folder / ADAPTER_CONFIG}: adapters of the kind {config['peft_type']} cannot be applied; "
            f"{' and '.join(peft_kinds())} (with rsLoRA and DoRA) can."
        )
    check_form(config, folder)
    for key, wanted in (("r", int), ("lora_alpha", int | float)):
        value = config.get(key, 1)
        if not isinstance(value, wanted) or not math.isfinite(value) or value == 0:
            raise KauliError(f"{folder / ADAPTER_CONFIG}: {key} is {value!r}: a finite number other than 0 is needed.")
    if left:
        note(f"left out, as an adapter does not need them: {', '.join(left[:8])}{', ...' if len(left) > 8 else ''}")
    return config


def _check_reference(stated: Any, folder: Path, base: "Base", accept: bool) -> list[str]:
    """The exceptions to record: none when the adapter itself names `base`."""
    if isinstance(stated, str) and stated:
        if stated in (base.reference, base.hub_id, base.derived_from, base.name):
            return []
        if Path(stated).expanduser().resolve() == base.folder.resolve():
            return []
    claim = f"states that it was made on '{stated}'" if stated else "does not state on which base it was made"
    if not accept:
        raise UsageError(
            f"{folder} {claim}; --base is {base.reference} ({base.name}). "
            "Give that base with --base, or confirm with --accept-base that it is the same."
        )
    # A path would tell where it was made, and means nothing elsewhere.
    shown = f"'{stated}'" if isinstance(stated, str) and re.fullmatch(r"[\w.-]+/[\w.-]+", stated) else "another path"
    return [f"base accepted by hand: the adapter named {shown if stated else 'no base'}, not {base.reference}"]


def _saved_along(path: Path, shapes: dict[str, tuple[int, ...]], base: "Base") -> set[str]:
    """The tensors of an adapter's file that are the base's own embeddings; KauliError where they were changed."""
    found = set()
    for key, shape in shapes.items():
        name = key.removeprefix("base_model.model.").replace(".base_layer.", ".")
        if name.split(".")[-2:] not in [[layer, "weight"] for layer in _EMBEDDINGS]:
            continue
        own = _base_tensor(base, name)
        if own is None or tuple(own.shape) != shape or not _equal(own, _tensor(path, key)):
            what = f"{_shape(shape)}, in the base {_shape(tuple(own.shape))}" if own is not None else _shape(shape)
            raise KauliError(
                f"{path} holds new or trained embeddings ({name}: {what}), which would change the base under all other "
                f"adapters. {MERGE}"
            )
        found.add(key)
    return found


def _base_tensor(base: "Base", name: str) -> Tensor | None:
    """A tensor of the base's files; an output layer that is tied to the embeddings has theirs."""
    for wanted in (name, name.replace("lm_head", "model.embed_tokens")):
        for path in sorted(base.folder.glob("*.safetensors")):
            with safe_open(path, framework="pt") as file:
                if wanted in file.keys():  # noqa: SIM118 - no mapping
                    return _tensor(path, wanted)
    return None


def _tensor(path: Path, key: str) -> Tensor:
    with safe_open(path, framework="pt") as file:
        tensor: Tensor = file.get_tensor(key)
        return tensor


def _equal(one: Tensor, other: Tensor) -> bool:
    """Whether two tensors are the same, as far as the narrower of their types tells."""
    dtype = min(one.dtype, other.dtype, key=lambda dtype: dtype.itemsize)
    return torch.equal(one.to(dtype), other.to(dtype))


def _check_numbers(path: Path) -> None:
    """Refuse numbers that are not finite; note an adapter that changes nothing."""
    zero = []
    with safe_open(path, framework="pt") as file:
        for key in file.keys():  # noqa: SIM118 - no mapping
            tensor = file.get_tensor(key)
            if not tensor.is_floating_point():
                raise KauliError(f"{path}: {key} is {tensor.dtype}: save the adapter in float, not quantised.")
            if not torch.isfinite(tensor.float()).all():
                raise KauliError(f"{path}: {key} holds numbers that are not finite; the training diverged.")
            if "lora_B" in key:
                zero.append(not tensor.any())
    if zero and all(zero):
        note(f"{path}: every lora_B is zero, so this adapter is untrained and changes nothing.")


def _shape(shape: tuple[int, ...]) -> str:
    return " x ".join(map(str, shape))
