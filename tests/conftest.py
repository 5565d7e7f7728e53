"""Fixtures of all tests, and how tests are chosen and shared out. A heavy library is imported when a test asks."""

import os
from collections.abc import Callable, Iterator
from pathlib import Path

# Before torch is imported: a thread a process, so that two workers share two cores. Ray's processes inherit it.
os.environ.setdefault("OMP_NUM_THREADS", "1")

import pytest

from support.imports import is_heavy

Publish = Callable[[Path, str, str, int], str]

FIRST = ("test_faults.py", "test_serve_ray.py", "test_compare.py", "test_downloads.py", "test_snippets.py")
"""Started first, since they take longest: a worker that got one of them last would keep the other waiting."""


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--fast", action="store_true", help="Only test files that import no heavy library (torch, ...).")


def pytest_ignore_collect(collection_path: Path, config: pytest.Config) -> bool | None:
    """With `--fast` leave out what would import torch; None leaves the decision to pytest."""
    test = collection_path.name.startswith("test_") and collection_path.suffix == ".py"
    return True if test and config.getoption("--fast") and is_heavy(collection_path) else None


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """The longest files first; `--dist loadfile` keeps a file on one worker, so its fixtures are made once."""
    items.sort(key=lambda item: FIRST.index(item.path.name) if item.path.name in FIRST else len(FIRST))


@pytest.fixture(scope="session")
def publish() -> Publish:
    """Publishes an adapter of random weights on the debug base: (store, name, languages, seed) -> its spec."""
    from kauli.models.bases.find import find_base
    from support.text_adapters import publish_random

    return lambda storage, name, language, seed: publish_random(storage, name, language, seed, find_base("debug"))


@pytest.fixture(scope="module")
def storage(publish: Publish, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A store with text adapters in several languages, which is also $KAULI_STORAGE, beside a new $KAULI_HOME."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("KAULI_HOME", str(tmp_path_factory.mktemp("home")))
        folder = tmp_path_factory.mktemp("store")
        patch.setenv("KAULI_STORAGE", str(folder))
        publish(folder, "text-sw", "sw", 1)
        publish(folder, "text-sw", "sw", 2)
        publish(folder, "text-be", "be", 3)
        publish(folder, "text-many", "am,ky,be", 4)
        yield folder
