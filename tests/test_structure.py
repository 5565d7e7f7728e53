"""The house's rules: which way imports point, what is packaged, no branch on a task's name, no import cycle."""

import shutil
import subprocess
from pathlib import Path

import pytest

from support.imports import PACKAGES, ROOT
from support.structure import GUARDS

TOP = {*PACKAGES, "tests", "docs", "pyproject.toml", "README.md", "Makefile", "LICENSE", "requirements.lock"} | {
    "CONTRIBUTING.md", "RESULTS.md", ".ci", ".gitignore"
}  # fmt: skip
PROBES = {
    "wrong_arrows": [
        ("models/text/probe.py", "import kauli.serving.settings\n"),
        ("training/data/probe.py", "def late():\n    from kauli.serving import settings\n"),
        ("serving/http/probe.py", "from kauli import deploy\n"),
        ("models/media/probe.py", "from kauli.models.engine.engine import Engine\n"),
        ("models/adapters/probe.py", "def late():\n    from kauli.models.text import task\n"),
        ("models/probe.py", "import kauli.models.adapters.card\n"),
        ("models/tasks.py", "import kauli.models.adapters.card\n"),
        ("deploy/cli/probe.py", "from models import errors\n"),
    ],
    "wrong_doors": [
        ("models/text/probe.py", "import ray.serve\n"),
        ("training/tasks/probe.py", "def late():\n    from ray import train\n"),
        ("serving/workers/probe.py", "from ray.serve.handle import DeploymentHandle\n"),
    ],
    "unpackaged": [("models/text/inner/probe.py", ""), ("models/text/inner/__init__.py", "")],
    "import_cycles": [("models/text/probe.py", "import kauli.models.text.other\n")],
    "task_branches": [
        ("serving/workers/probe.py", 'def worker(task):\n    if task == "text":\n        pass\n'),
        ("training/loop/probe.py", 'def pick(card):\n    return card.task in ("text", "align")\n'),
        ("training/tasks/probe.py", "def pick(recipe):\n    return recipe.speech is not None\n"),
    ],
    "recipe_digging": [
        ("serving/http/probe.py", 'def encoder(card):\n    return (card.recipe or {}).get("fusion")\n'),
        ("training/evaluation/probe.py", 'def encoder(card):\n    return card.recipe["fusion"]\n'),
    ],
    "unreadable_yaml": [("training/recipes/probe.yaml", "# nothing\n")],
}  # fmt: skip
"""Guard -> files, or lines at a file's end, each of which alone must be found; an empty `__init__.py` beside a probe
keeps it packaged."""


@pytest.mark.parametrize("guard", GUARDS)
def test_the_house_keeps_its_rules(guard: str) -> None:
    assert GUARDS[guard](ROOT) == []


@pytest.fixture(scope="module")
def copy(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("copy")
    for package in PACKAGES:
        shutil.copytree(ROOT / package, root / package, ignore=shutil.ignore_patterns("__pycache__"))
    shutil.copy(ROOT / "pyproject.toml", root)
    return root


@pytest.mark.parametrize(("guard", "name", "content"), [(guard, *probe) for guard in GUARDS for probe in PROBES[guard]])
def test_a_file_that_breaks_a_rule_is_found(copy: Path, guard: str, name: str, content: str) -> None:
    before = GUARDS[guard](copy)
    probe, other = copy / name, copy / "models/text/other.py"
    probe.parent.mkdir(exist_ok=True)
    kept = probe.read_text() if probe.exists() else None
    try:
        probe.write_text((kept or "") + content)
        if guard == "import_cycles":
            other.write_text("from kauli.models.text import probe\n")
        new = set(GUARDS[guard](copy)) - set(before)
        assert any(part in one for one in new for part in ("probe", "inner", "models/tasks.py imports")), new
    finally:
        probe.unlink()
        if kept is not None:
            probe.write_text(kept)
        other.unlink(missing_ok=True)
        if not any(probe.parent.iterdir()):
            probe.parent.rmdir()


def test_the_top_level_is_fixed() -> None:
    tracked = subprocess.run(["git", "ls-files"], cwd=ROOT, capture_output=True, text=True, check=True).stdout
    assert {name.split("/")[0] for name in tracked.splitlines()} <= TOP


def test_tests_mirror_the_tree() -> None:
    folders = {path.parent.relative_to(ROOT / "tests").as_posix() for path in (ROOT / "tests").rglob("test_*.py")}
    assert [folder for folder in sorted(folders) if folder not in (".", "bench") and not (ROOT / folder).is_dir()] == []


def test_the_lock_names_no_address() -> None:
    assert "://" not in (ROOT / "requirements.lock").read_text()
