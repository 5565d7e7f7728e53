"""The command that trains on a data set what most of its rows can teach."""

import json
import re
import shlex
from collections.abc import Mapping, Sequence
from importlib.resources import files
from itertools import chain, count
from pathlib import Path
from typing import Any

import yaml

from kauli.models.adapters.registry import Registry
from kauli.models.paths import default_storage

_RECIPES = {
    "audio": ("transcribe-{tag}", "transcribe-be"),
    "classes": ("head-topics",),
    "image": ("describe-multi",),
    "pair": ("translate-{tag}", "translate-am"),
    "text": ("text-{tag}", "text-sw"),
}
"""What the rows hold -> recipes for it, of which the first that is shipped is taken."""
_MOST_LANGUAGES = 8  # of one adapter


def training_command(
    path: str, result: Mapping[str, Any], options: Mapping[str, str], storage: str | None
) -> str | None:
    """A command for a shell: the recipe for what the rows hold, their languages, a free name, how they were read.

    `result` is that of `profile`, `options` are given DataOptions. None where no language has rows in each split.
    """
    uses = {use: _languages(result, use) for use in ("audio", "image", "pair", "text")}
    use = max(uses, key=lambda one: sum(uses[one].values()))
    tags = sorted(uses[use], key=lambda tag: -uses[use][tag])[:_MOST_LANGUAGES]
    if not tags:
        return None
    keys: dict[str, Any] = {"data": path}
    if use == "image" and (classes := result["languages"][tags[0]]["classes"]):
        use, tags = "classes", tags[:1]
    shipped = {file.name.removesuffix(".yaml"): file for file in (files("kauli.training") / "recipes").iterdir()}
    names = [name.format(tag=tags[0].lower()) for name in _RECIPES[use]]
    recipe = next(name for name in names if name in shipped)
    method = yaml.safe_load(shipped[recipe].read_text())["method"]
    if use == "classes" and min(classes.values()) < method["shots"]:
        keys["method.shots"] = min(classes.values())
    if use == "audio" and recipe != names[0] and (related := _related(tags)):
        keys["transcribe.init_from_languages"] = related
    keys |= {"language": tags[0] if len(tags) == 1 else tags}
    keys |= {"name": _free_name(path, tags, {*shipped, *Registry(storage or default_storage()).names()})}
    keys |= {f"data_options.{key}": value for key, value in options.items()}
    words = [word for key, value in keys.items() for word in ("--set", f"{key}={_yaml(value)}")]
    return shlex.join(["kauli", "train", recipe, *words, *(["--storage", storage] if storage else [])])


def missing(result: Mapping[str, Any]) -> str:
    """What to do about data for which there is no `training_command`."""
    found = [
        (sum(rows.values()), tag, use, [split for split, number in rows.items() if not number])
        for tag, part in result["languages"].items()
        for use, rows in part["uses"].items()
    ]
    if not found:
        return "give the rows texts, or repair their files, then check again"
    _, tag, use, splits = max(found)
    what = use if use in ("text", "pair") else f"{use} that can be used, with a text,"
    return (
        f"{tag} has no {what} in {' and '.join(splits)}: add or repair rows, or let `split` be chosen; then check again"
    )


def _languages(result: Mapping[str, Any], use: str) -> dict[str, int]:
    """Language -> rows of this use, where each split has some."""
    counts = {tag: part["uses"].get(use, {}) for tag, part in result["languages"].items()}
    return {tag: sum(rows.values()) for tag, rows in counts.items() if rows and all(rows.values())}


def _free_name(path: str, tags: Sequence[str], taken: set[str]) -> str:
    stem = re.sub(r"[^a-z0-9]+", "-", Path(path).stem.lower()).strip("-")[:40] or "mine"
    name = f"{stem}-{tags[0].lower()}" if len(tags) == 1 else stem
    return next(one for one in chain([name], (f"{name}-{number}" for number in count(2))) if one not in taken)


def _related(tags: Sequence[str]) -> dict[str, list[str]]:
    """Of languages that Whisper has no token for, one that it has and that their speakers often know."""
    import langcodes
    from transformers.models.whisper.tokenization_whisper import LANGUAGES  # takes seconds

    known = {langcodes.standardize_tag(name): name for name in LANGUAGES}
    missing = [tag for tag in tags if tag.split("-")[0] not in {*LANGUAGES, "jv"}]
    return {tag: [known[langcodes.closest_match(tag, list(known), max_distance=1000)[0]]] for tag in missing}


def _yaml(value: Any) -> str:
    """A value as YAML reads it back, plain where that can be: not so `no`, which is false and a language."""
    if isinstance(value, str) and re.fullmatch(r"[A-Za-z_.~/][^:#]*", value) and yaml.safe_load(value) == value:
        return value
    return json.dumps(value, ensure_ascii=False)
