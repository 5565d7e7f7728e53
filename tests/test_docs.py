"""The documents: generated pages are up to date, every file and link that is named exists, every recipe and key too."""

import importlib.util
import re
from pathlib import Path
from types import ModuleType

import pytest

from kauli.training.recipe_file import recipe_names
from support.imports import ROOT

PAGES = ["README.md", "CONTRIBUTING.md", *(str(one.relative_to(ROOT)) for one in sorted((ROOT / "docs").rglob("*.md")))]


def generator() -> ModuleType:
    spec = importlib.util.spec_from_file_location("generate", ROOT / "docs" / "generate.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.mark.parametrize("name", ["architecture.md", "recipes.md"])
def test_generated_pages_are_up_to_date(name: str) -> None:
    assert (ROOT / "docs" / name).read_text(encoding="utf-8") == generator().page(name), "run `make docs`"


def test_every_file_says_what_it_holds() -> None:
    docs = generator()
    files = [path for part in docs.PARTS for path in docs._files(ROOT / part)]
    assert len(files) > 150
    assert [str(path.relative_to(ROOT)) for path in files if not docs.first_line(path)] == []


@pytest.mark.parametrize("page", PAGES)
def test_files_and_links_exist(page: str) -> None:
    text = (ROOT / page).read_text(encoding="utf-8")
    named = re.findall(r"`((?:models|training|serving|deploy|tests|docs)/[\w./*-]*)`", text)
    missing = [name for name in named if not list(ROOT.glob(name.rstrip("/")))]
    links = re.findall(r"\]\(([^)#\s]+)[^)]*\)", text)
    missing += [link for link in links if "://" not in link and not ((ROOT / page).parent / link).exists()]
    assert missing == []


@pytest.mark.parametrize("page", PAGES)
def test_recipes_exist(page: str) -> None:
    text = (ROOT / page).read_text(encoding="utf-8")
    named = set(re.findall(r"kauli train ([a-z][a-z0-9-]+)(?=[\s`)])", text)) - {"mine"}
    assert named <= set(recipe_names())


def test_contributing_names_every_table() -> None:
    text = (ROOT / "CONTRIBUTING.md").read_text(encoding="utf-8")
    tables = ["models/tasks.py", "models/metrics.py", "serving/tasks.py"]
    tables += [
        str(path.relative_to(ROOT)) for part in ("models", "training") for path in (ROOT / part).rglob("table.py")
    ]
    assert len(tables) >= 7
    assert [name for name in tables if f"`{name}`" not in text] == []


def test_the_mark_of_generated_pages_is_found(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    docs = generator()
    (tmp_path / "docs").mkdir()
    (tmp_path / "docs" / "recipes.md").write_text("no mark")
    monkeypatch.setattr(docs, "ROOT", tmp_path)
    with pytest.raises(AssertionError, match="has no line"):
        docs.page("recipes.md")
