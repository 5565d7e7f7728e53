"""Recipes from files: the shipped ones and those of users, changed by overrides, checked with one line a mistake."""

import re
from collections.abc import Iterator, Mapping
from importlib.resources import files
from pathlib import Path
from typing import Any, get_args

import yaml
from pydantic import BaseModel, ValidationError

from kauli.models.adapters.upgrade import RENAMED
from kauli.models.errors import UsageError, nearest
from kauli.models.files import read_yaml
from kauli.training.recipe import OneOf, Recipe
from kauli.training.tasks.table import training_task


def recipe_names() -> list[str]:
    """The names of the shipped recipes."""
    return sorted(entry.name.removesuffix(".yaml") for entry in _shipped().iterdir() if entry.name.endswith(".yaml"))


def load_recipe(name_or_path: str, overrides: list[str] | None = None) -> Recipe:
    """The recipe of a shipped name or a YAML file, changed by `key=value` overrides (dotted keys, values read as YAML).

    Raises UsageError for an unknown recipe, key or value; it names the nearest right one.
    """
    path = Path(name_or_path)
    if name_or_path in recipe_names():
        text = (_shipped() / f"{name_or_path}.yaml").read_text(encoding="utf-8")
    elif path.suffix in (".yaml", ".yml") and path.is_file():
        try:
            text = path.read_text(encoding="utf-8")
        except UnicodeDecodeError as error:
            raise UsageError(f"recipe {path} is not UTF-8 (byte {error.start + 1}): save it as UTF-8.") from None
    else:
        names = recipe_names()
        raise UsageError(
            f"there is no recipe '{name_or_path}'.{nearest(name_or_path, names)} Shipped: {', '.join(names)}; "
            "or give the path of a .yaml file."
        )
    try:
        content = read_yaml(text)
    except yaml.YAMLError as error:
        raise UsageError(f"{name_or_path} is not YAML: {error}") from error
    if not isinstance(content, dict):
        raise UsageError(f"{name_or_path} holds no recipe: it must be a mapping with name, base and language.")
    for override in overrides or []:
        _override(content, override)
    try:
        return parse_recipe(content, name_or_path)
    except RecursionError:
        raise UsageError(f"{name_or_path} holds itself by an alias (*name): write it out.") from None


def parse_recipe(content: dict[str, Any], origin: str = "recipe") -> Recipe:
    """A checked recipe of the class of its task; raises UsageError that lists every problem on a line of its own."""
    method = content.get("method")
    kind = method.get("kind") if isinstance(method, dict) else None
    model = training_task(str(content.get("task", "text")), str(kind)).recipe
    problems = [
        f"'{old}' is now '{new}'."
        for old, new in RENAMED.items()
        if old in _keys(content) and new.split(".")[0] in model.model_fields
    ]
    if not problems:
        try:
            return model.model_validate(content)
        except ValidationError as error:
            problems = [_explain(model, dict(problem)) for problem in error.errors()]
    raise UsageError(f"recipe {origin}: " + "\n  ".join(problems))


def _shipped() -> Any:
    return files("kauli.training") / "recipes"


def _override(content: dict[str, Any], override: str) -> None:
    key, equals, value = override.partition("=")
    key = key.strip()
    if not equals or not key:
        raise UsageError(f"--set takes key=value, not '{override}'; for example --set train.steps=100.")
    # YAML 1.1 reads 5e-4 as a string and Norwegian's `no` as false: both are meant as they are written.
    try:
        parsed = float(value) if re.fullmatch(r"[-+]?\d+(\.\d*)?[eE][-+]?\d+", value) else yaml.safe_load(value)
    except yaml.YAMLError as error:
        raise UsageError(f"--set {override}: the value is not YAML ({' '.join(str(error).split())}).") from None
    if isinstance(parsed, bool) and value.strip().lower() not in ("true", "false"):
        parsed = value.strip()
    *parents, last = key.split(".")
    for parent in parents:
        content = content.setdefault(parent, {})
        if not isinstance(content, dict):
            raise UsageError(f"--set {override}: '{parent}' is not a section of a recipe.")
    content[last] = parsed


def _keys(content: Mapping[str, Any], prefix: str = "") -> Iterator[str]:
    """All keys, dotted."""
    for key, value in content.items():
        yield f"{prefix}{key}"
        if isinstance(value, Mapping):
            yield from _keys(value, f"{prefix}{key}.")


def _explain(model: type[BaseModel], problem: dict[str, Any]) -> str:
    """One line for one pydantic problem: the key, what is wrong, what is allowed."""
    *parents, last = problem["loc"] or ("",)
    where, kind = ".".join(str(part) for part in problem["loc"]), problem["type"]
    if kind == "extra_forbidden":
        allowed = sorted(_section(model, parents).model_fields)
        return f"unknown key '{where}'.{nearest(str(last), allowed)} Allowed: {', '.join(allowed)}."
    if kind == "missing":
        return f"'{where}' is missing."
    if kind == "union_tag_not_found":
        return f"'{where}' needs a kind: write {{kind: ...}}."
    if kind == "union_tag_invalid":
        tag, allowed = str(problem["ctx"]["tag"]), re.findall(r"'([^']*)'", problem["ctx"]["expected_tags"])
        return f"'{where}': no kind '{tag}' for this task.{nearest(tag, allowed)} Allowed: {', '.join(allowed)}."
    message = problem["msg"].removeprefix("Value error, ").replace("valid tuple", "list, such as [a, b]")
    found = "" if isinstance(problem["input"], Mapping) else f" (got {problem['input']!r})"
    return f"{where}: {message}{found}." if where else f"{message}."


def _section(model: type[BaseModel], place: list[Any]) -> type[BaseModel]:
    """The model of a section: `place` has keys, indices of lists, and the `kind` where a section is one of several."""
    kinds: dict[Any, type[BaseModel]] = {}
    for part in place:
        if part in kinds:
            model = kinds[part]
        elif part in model.model_fields:
            field = model.model_fields[part]
            found = [*_pieces(field.annotation), *field.metadata]
            kinds = {name: kind for one in found if isinstance(one, OneOf) for name, kind in one.kinds.items()}
            if not kinds:
                model = next((one for one in found if isinstance(one, type) and issubclass(one, BaseModel)), model)
    return model


def _pieces(annotation: Any) -> Iterator[Any]:
    yield annotation
    for one in get_args(annotation):
        yield from _pieces(one)
