"""The documents: generated pages are up to date; every file, link, recipe and command that is named exists.

`tests/test_snippets.py` runs their commands.
"""

import importlib.util
import re
from pathlib import Path
from types import ModuleType

import pytest

from kauli.serving.settings import ServeArgs
from kauli.training.recipe_file import recipe_names
from support.documents import PAGES, check, mentions
from support.imports import PACKAGES, ROOT

ENDINGS = ("py", "js", "md", "yaml", "json", "jsonl", "tsv", "csv", "safetensors")
FIGURE = re.compile(r"(?<![\w.])\d+\.\d+(?!\d|\.\d)")


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
    links = re.findall(r"\]\(([^)#\s]+)[^)]*\)", re.sub(r"`[^`\n]*`", "", text))
    missing += [link for link in links if "://" not in link and not ((ROOT / page).parent / link).exists()]
    for link, anchor in re.findall(r"\]\(([^)#\s:]*)#([^)\s]+)\)", text):
        target = (ROOT / page).parent / link if link else ROOT / page
        if anchor not in anchors(target.read_text(encoding="utf-8")):
            missing.append(f"{link}#{anchor}")
    assert missing == []


def anchors(text: str) -> set[str]:
    """The names by which the headings of a page are linked."""
    headings = re.findall(r"(?m)^#+ (.+)$", text)
    return {re.sub(r"[^\w -]", "", heading.lower()).strip().replace(" ", "-") for heading in headings}


@pytest.mark.parametrize("page", PAGES)
def test_the_commands_in_the_text_exist(page: str) -> None:
    for words in mentions((ROOT / page).read_text(encoding="utf-8")):
        check(words, page)


def test_keys_and_variables_that_are_named_exist() -> None:
    keys: dict[str, set[str]] = {}
    section = ""
    for line in (ROOT / "docs/recipes.md").read_text(encoding="utf-8").splitlines():
        if heading := re.match(r"### `([\w.]+)`", line):
            section = heading[1]
        elif key := re.match(r"\| `(\w+)` \|", line):
            keys.setdefault(section, set()).add(key[1])
    sections = {name for name in keys if name} | {"method"}
    keys["method"] = set().union(*keys.values())
    text = "".join((ROOT / page).read_text(encoding="utf-8") for page in PAGES)
    named = re.findall(r"`([a-z_.]+)\.([a-z_]+)[`=:]", text)
    assert [f"{one}.{key}" for one, key in named if one in sections and key not in {*keys[one], *ENDINGS}] == []
    sources = "".join(path.read_text(encoding="utf-8") for part in PACKAGES for path in (ROOT / part).rglob("*.py"))
    settings = {f"KAULI_{name.upper()}" for name in ServeArgs.model_fields}
    variables = set(re.findall(r"KAULI_[A-Z_]+", text)) - settings
    assert [name for name in sorted(variables) if name not in sources] == []


def test_the_readme_is_short_and_its_figures_are_those_of_the_results() -> None:
    text = (ROOT / "README.md").read_text(encoding="utf-8")
    assert len(text.splitlines()) <= 200
    results = text[text.index("## Results") : text.index("## Limits")]
    measured = "".join((ROOT / page).read_text(encoding="utf-8") for page in ("docs/results.md", "RESULTS.md"))
    assert len(FIGURE.findall(results)) > 20
    assert set(FIGURE.findall(results)) <= set(FIGURE.findall(measured))


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
