"""The house's rules: which way imports point, what is packaged, that every shipped YAML loads."""

import ast
import subprocess
import sys
import time
import tomllib
from pathlib import Path

import pytest
import yaml

ROOT = Path(__file__).parent.parent
PACKAGES = ("models", "training", "serving", "deploy")
MAY_IMPORT = {
    "models": {"models"},
    "training": {"models", "training"},
    "serving": {"models", "serving"},
    "deploy": {"models", "training", "serving", "deploy"},
}
TOP = {*PACKAGES, "tests", "docs", "pyproject.toml", "README.md", "Makefile", "LICENSE", "requirements.lock"} | {
    "CONTRIBUTING.md", "RESULTS.md", ".ci", ".gitignore"
}  # fmt: skip


def imports(path: Path) -> set[str]:
    names: set[str] = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            names.update(alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: a relative import"
            names.add(node.module or "")
    return names


@pytest.mark.parametrize("package", PACKAGES)
def test_imports_point_one_way(package: str) -> None:
    for path in (ROOT / package).rglob("*.py"):
        ours = {name.split(".")[1] for name in imports(path) if name.startswith("kauli.")}
        assert ours <= MAY_IMPORT[package], f"{path} imports {ours - MAY_IMPORT[package]}"


def test_ray_train_and_serve_have_one_door_each() -> None:
    for package in PACKAGES:
        for path in (ROOT / package).rglob("*.py"):
            names = imports(path)
            if any(name.startswith("ray.train") for name in names):
                assert path.relative_to(ROOT).as_posix() == "training/loop/ray.py"
            if any(name.startswith("ray.serve") for name in names):
                assert path.relative_to(ROOT).as_posix() == "serving/app.py"


def test_packages_list_is_the_folders() -> None:
    settings = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["setuptools"]
    folders = {
        path.parent.relative_to(ROOT).as_posix() for name in PACKAGES for path in (ROOT / name).rglob("__init__.py")
    }
    assert {f"kauli.{folder.replace('/', '.')}" for folder in folders} == set(settings["packages"])
    assert settings["package-dir"] == {f"kauli.{folder}": folder for folder in folders}


def test_the_top_level_is_fixed() -> None:
    tracked = subprocess.run(["git", "ls-files"], cwd=ROOT, capture_output=True, text=True, check=True).stdout.split(
        "\n"
    )
    assert {name.split("/")[0] for name in tracked if name} <= TOP


def test_the_readme_has_a_line_for_every_file() -> None:
    page = (ROOT / "README.md").read_text(encoding="utf-8")
    files = [path for package in (*PACKAGES, "tests") for path in (ROOT / package).glob("*.*")]
    named = [path for path in files if path.name not in ("__init__.py", "py.typed") and path.is_file()]
    assert [path.name for path in named if f"`{path.relative_to(ROOT)}`" not in page] == []


def test_every_shipped_yaml_loads() -> None:
    found = [path for package in PACKAGES for path in (ROOT / package).rglob("*.yaml")]
    assert len(found) >= 8
    for path in found:
        assert yaml.safe_load(path.read_text(encoding="utf-8")), path


def test_the_lock_names_no_address() -> None:
    assert "://" not in (ROOT / "requirements.lock").read_text()


def test_help_is_instant() -> None:
    command = [str(Path(sys.executable).parent / "kauli"), "--help"]
    subprocess.run(command, check=True, capture_output=True)  # the first one may compile
    seconds = []
    for _ in range(5):
        begin = time.monotonic()
        subprocess.run(command, check=True, capture_output=True)
        seconds.append(time.monotonic() - begin)
    assert min(seconds) < 0.5, seconds  # the least: the machine may be busy
