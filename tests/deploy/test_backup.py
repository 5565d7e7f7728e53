"""Backup and restore as docs/deploy.md has them: the same hashes and the same answers after the store was lost."""

import json
import re
import shlex
import subprocess
from pathlib import Path

import pytest

from kauli.models.bases.find import find_base
from kauli.models.files import hash_files
from support.cli import fails, run
from support.imports import ROOT
from support.memories import small_embedder
from support.text_adapters import publish_random


def documented() -> list[list[str]]:
    """The commands of the section, in order: backup, loss, restore, check."""
    text = (ROOT / "docs/deploy.md").read_text(encoding="utf-8")
    section = text[text.index("## Backup and restore") : text.index("## Upgrade")]
    return [shlex.split(line) for line in re.findall(r"(?m)^    (.+)$", section)]


def test_a_lost_store_comes_back(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("KAULI_HOME", str(tmp_path / "home"))
    monkeypatch.chdir(tmp_path)
    small_embedder(monkeypatch)
    publish_random(tmp_path / "store", "text-sw", "sw", 1, find_base("debug"))
    words = ("memory", "add", "main", "--pair", "file", "ፋይል", "--from", "en", "--to", "am", "--storage", "store")
    assert run(*words).exit_code == 0
    ask = ("generate", "Habari", "--model", "text-sw", "--max-tokens", "8", "--json", "--storage", "store")

    def state() -> tuple[str, str]:
        answer, memory = run(*ask), run("memory", "list", "main", "--json", "--storage", "store")
        assert (answer.exit_code, memory.exit_code) == (0, 0), answer.stderr + memory.stderr
        return json.loads(answer.stdout)["text"], memory.stdout

    backup, lose, restore, check = documented()
    hashes, before = hash_files(tmp_path / "store"), state()
    assert len(hashes) > 4
    subprocess.run(backup, check=True)
    subprocess.run(lose, check=True)
    fails(2, "text-sw", *ask)
    subprocess.run(restore, check=True)
    assert hash_files(tmp_path / "store") == hashes
    assert state() == before
    assert "text-sw" in run("adapters", "list", "--storage", "store").stdout
    assert check[:2] == ["kauli", "doctor"]
    checked = json.loads(run(*check[1:], "--json").stdout)
    assert next(one["found"] for one in checked if one["check"] == "adapters").startswith("1 whole versions")
