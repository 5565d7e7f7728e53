"""The house's rules as functions from a checkout's root to what breaks them; `tests/test_structure.py` asks them.

Each sees every sub-folder, and each is proved to fail by a probe file in a copy.
"""

import ast
import re
import tomllib
from collections.abc import Callable, Iterator
from pathlib import Path

import yaml

from support.imports import PACKAGES, cycles, files_imported, imports

MAY_IMPORT = {
    "models": {"models"},
    "training": {"models", "training"},
    "serving": {"models", "serving"},
    "deploy": {"models", "training", "serving", "deploy"},
}
MODELS_MAY_IMPORT = {
    "media": set(),
    "documents": set(),
    "bases": {"media"},
    "adapters": {"media", "bases"},
    "engine": {"media", "bases", "adapters"},
    "text": {"media", "documents", "bases", "adapters", "engine"},
    "vision": {"media", "bases", "adapters", "engine"},
    "speech": {"media", "bases", "adapters", "engine"},
}
"""Sub-package of models -> the others that it may import. Every one may import the table `models/tasks.py`, which
therefore imports none of them at module level."""
ONE_DOOR = {"ray.train": "training/loop/ray.py", "ray.serve": "serving/app.py", "ray.tune": "training/search.py"}
TABLES = ("models/tasks.py", "training/tasks/table.py", "serving/tasks.py", "models/adapters/kinds/table.py")
"""Where a task's name may decide something."""
_TASK_BRANCH = re.compile(r"task (==|in|!=|not in)|recipe\.(speech|pairs|fusion) is|match [\w.]*task\b")


def wrong_arrows(root: Path) -> list[str]:
    """Imports against the arrows between the four packages, and between the sub-packages of models."""
    found = []
    for path in _files(root):
        package, *inner = path.relative_to(root).parts
        for name in sorted(imports(path)):
            theirs = name.split(".")[1:]
            if name.startswith("kauli.") and theirs[0] not in MAY_IMPORT[package]:
                found.append(f"{path.relative_to(root)} imports {name}")
            if name.partition(".")[0] in PACKAGES:
                found.append(f"{path.relative_to(root)} imports {name}: write kauli.{name}")
        if package != "models":
            continue
        ours = inner[0] if len(inner) > 1 else None
        for other in sorted(files_imported(path, late=inner != ["tasks.py"], root=root)):
            theirs = list(other.relative_to(root).parts)
            below = MODELS_MAY_IMPORT.get(ours or "", set())
            if theirs[0] == "models" and len(theirs) > 2 and theirs[1] != ours and theirs[1] not in below:
                found.append(f"{path.relative_to(root)} imports {other.relative_to(root)}")
    return found


def wrong_doors(root: Path) -> list[str]:
    """Files that import Ray Train, Serve or Tune beside the one that may."""
    return [
        f"{path.relative_to(root)} imports {name}"
        for path in _files(root)
        for name in sorted(imports(path))
        for door, allowed in ONE_DOOR.items()
        if (name == door or name.startswith(f"{door}.")) and path.relative_to(root).as_posix() != allowed
    ]


def unpackaged(root: Path) -> list[str]:
    """Folders of Python files that have no `__init__.py`, or that pyproject.toml does not list."""
    settings = tomllib.loads((root / "pyproject.toml").read_text())["tool"]["setuptools"]
    folders = {path.parent for path in _files(root)}
    found = [f"{one.relative_to(root)} has no __init__.py" for one in folders if not (one / "__init__.py").is_file()]
    dotted = {f"kauli.{one.relative_to(root).as_posix().replace('/', '.')}" for one in folders}
    found += [f"pyproject.toml lists {name}, which is no folder" for name in set(settings["packages"]) - dotted]
    found += [f"pyproject.toml does not list {name}" for name in dotted - set(settings["packages"])]
    if settings["package-dir"] != {f"kauli.{name}": name for name in PACKAGES}:
        found.append("pyproject.toml: package-dir is the four top folders")
    return sorted(found)


def import_cycles(root: Path) -> list[str]:
    """Groups of files that import each other at module level."""
    return [" <-> ".join(group) for group in cycles(root)]


def task_branches(root: Path) -> list[str]:
    """Lines that ask for a task's name outside the tables."""
    return [
        f"{path.relative_to(root)}:{number}: {line.strip()}"
        for path in _files(root)
        if path.relative_to(root).as_posix() not in TABLES
        for number, line in enumerate(path.read_text(encoding="utf-8").splitlines(), 1)
        if _TASK_BRANCH.search(line)
    ]


def recipe_digging(root: Path) -> list[str]:
    """Keys read from a card's `recipe`, which is for display and reproduction; what is needed has a typed field."""
    found = []
    for path in _files(root):
        if path.relative_to(root).as_posix() == "models/adapters/upgrade.py":
            continue
        source = path.read_text(encoding="utf-8")
        for node in ast.walk(ast.parse(source)) if ".recipe" in source else ():
            value = node.value if isinstance(node, ast.Subscript | ast.Attribute) else None
            if isinstance(value, ast.BoolOp):  # (card.recipe or {}).get(...)
                value = value.values[0]
            of_card = isinstance(value, ast.Attribute) and value.attr == "recipe"
            if of_card and "card" in ast.unparse(value.value):  # type: ignore[union-attr]
                found.append(f"{path.relative_to(root)}:{node.lineno}: {ast.unparse(node)}")  # type: ignore[attr-defined]
    return found


def unreadable_yaml(root: Path) -> list[str]:
    """Shipped YAML files that hold nothing."""
    files = [path for package in PACKAGES for path in sorted((root / package).rglob("*.yaml"))]
    return [str(path) for path in files if not any(yaml.safe_load_all(path.read_text(encoding="utf-8")))]


GUARDS: dict[str, Callable[[Path], list[str]]] = {
    guard.__name__: guard
    for guard in (
        wrong_arrows, wrong_doors, unpackaged, import_cycles, task_branches, recipe_digging, unreadable_yaml
    )
}  # fmt: skip


def _files(root: Path) -> Iterator[Path]:
    return (path for package in PACKAGES for path in sorted((root / package).rglob("*.py")))
