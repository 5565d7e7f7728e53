"""A home without a package index, a model folder of the user's own, and a program that finds a base."""

import os
import shutil
from pathlib import Path

import pytest

from kauli.models.bases.find import find_base

FIND = """
import sys
import huggingface_hub
from kauli.models.bases.find import find_base, local_bases
from kauli.models.errors import KauliError
try:
    base = find_base(sys.argv[1])
    print(base.sha256, base.licence, *base.languages, base.reference)
except KauliError as error:
    print(f"{error.exit_code} {error}")
"""


def new_home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A new $KAULI_HOME, for which pip finds nothing."""
    monkeypatch.setenv("KAULI_HOME", str(tmp_path / "home"))
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_CONFIG_FILE", os.devnull)
    monkeypatch.delenv("PIP_FIND_LINKS", raising=False)
    return tmp_path / "home"


def own_folder(target: Path) -> Path:
    """The debug model as a folder of the user's own, in the home that is set."""
    shutil.copytree(find_base("debug").folder, target)
    (target / "base.json").unlink()
    return target
