"""`kauli doctor`: what it finds on a machine made here, and what it advises; nothing heavy is loaded."""

import json
import os
import resource
import socket
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from kauli.deploy.cli import doctor
from kauli.models.bases.folder import Record, StoredFile
from support.cli import run
from support.imports import HEAVY


@pytest.fixture(autouse=True)
def machine(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A new home and storage, and an environment without anything of note."""
    for name in list(os.environ):
        if name.startswith(("RAY_", "KAULI_")) or name.lower().endswith("_proxy"):
            monkeypatch.delenv(name)
    monkeypatch.setenv("KAULI_HOME", str(tmp_path / "home"))
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        monkeypatch.setenv("KAULI_PORT", str(free.getsockname()[1]))
    return tmp_path


def found(*words: str) -> tuple[int, dict[str, dict[str, Any]]]:
    """The exit code, and the findings by check."""
    done = run("doctor", "--json", *words)
    assert isinstance(done.exception, SystemExit | None), done.exception
    findings = json.loads(done.stdout)
    return done.exit_code, {one["check"]: one for one in findings}


def test_a_machine_in_order(machine: Path) -> None:
    code, checks = found()
    assert {name for name, one in checks.items() if one["state"] == "problem"} == set()
    assert code == 0
    assert {"python", "kauli", "packages", "av", "s3fs", "espeak", "cpu", "memory", "gpu", "KAULI_HOME", "storage",
            "adapters", "port", "ray", "proxy", "open files", "encoding"} <= checks.keys()  # fmt: skip
    assert checks["packages"]["found"].startswith("torch ")
    assert checks["adapters"]["advice"] == "kauli train text-sw makes one"
    assert checks["port"]["found"] == f"127.0.0.1:{os.environ['KAULI_PORT']} is free"
    assert not (machine / "home").exists()  # nothing is written
    lines = run("doctor").stdout.splitlines()
    assert len(lines) == 1 + len(checks)
    assert lines[0].split() == ["state", "check", "found"]


def test_it_is_quick_and_imports_nothing_heavy() -> None:
    code = (
        "import sys\nfrom kauli.deploy.cli.main import app\n"
        "try:\n    app(['doctor', '--json'])\nexcept SystemExit:\n    pass\n"
        f"print({{*{sorted(HEAVY)!r}}} & {{*sys.modules}}, file=sys.stderr)"
    )
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    assert done.stderr.strip().endswith("set()")
    assert after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime < 3


def test_terms_and_bases(machine: Path) -> None:
    _, checks = found()
    gemma = checks["base gemma-3-270m-q4"]
    assert "terms are not accepted" in gemma["found"]
    assert gemma["advice"] == "kauli fetch gemma-3-270m-q4 --accept-terms"
    assert checks["base whisper-base"]["advice"] == "kauli fetch whisper-base"
    folder = machine / "home" / "bases" / "whisper-base"
    folder.mkdir(parents=True)
    files = {"config.json": StoredFile(bytes=2, sha256="0"), "model.safetensors": StoredFile(bytes=2**30, sha256="0")}
    record = Record(name="whisper-base", sha256="0", made_from="0", created="", card={"licence": "MIT"}, files=files)
    (folder / "base.json").write_text(record.model_dump_json())
    (folder / "config.json").write_text("{}")
    code, checks = found()
    assert code == 1
    damaged = checks["base whisper-base"]
    assert (damaged["state"], damaged["advice"]) == ("problem", "kauli fetch whisper-base")
    assert damaged["found"] == "1.0 GiB, damaged: model.safetensors"


def test_broken_adapters_are_problems(machine: Path) -> None:
    for name, card in (("broken", "{"), ("other", json.dumps({"schema": 2}))):
        (machine / "store" / "adapters" / name / "1").mkdir(parents=True)
        (machine / "store" / "adapters" / name / "1" / "card.json").write_text(card)
    code, checks = found("--storage", str(machine / "store"))
    assert code == 1
    assert checks["adapters"]["found"].startswith("0 whole versions of 2 names")
    for name in ("broken", "other"):
        assert checks[f"adapter {name}@1"]["advice"].endswith(f"kauli adapters remove {name}@1")


def test_a_taken_port_is_told_with_its_owner(machine: Path) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", int(os.environ["KAULI_PORT"])))
        taken.listen()
        code, checks = found()
    assert code == 0
    assert checks["port"]["state"] == "warning"
    assert f"by process {os.getpid()} " in checks["port"]["found"]
    assert "--port" in checks["port"]["advice"]


def test_the_environment(machine: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HTTPS_PROXY", "http://me:secret@proxy.example:3128")
    monkeypatch.setenv("RAY_ADDRESS", "ray://elsewhere:10001")
    monkeypatch.setattr(resource, "getrlimit", lambda what: (1024, 524288))
    code, checks = found()
    assert code == 0
    assert checks["proxy"]["found"] == "https_proxy proxy.example"  # and no password
    assert "NO_PROXY" in checks["proxy"]["advice"]
    assert checks["ray variables"]["found"] == "RAY_ADDRESS"
    assert checks["open files"]["advice"] == "ulimit -n 65536"
    monkeypatch.setenv("NO_PROXY", "localhost,127.0.0.1")
    monkeypatch.setenv("KAULI_PORT", "eighty")
    code, checks = found()
    assert (code, checks["proxy"]["state"], checks["settings"]["state"]) == (1, "ok", "problem")
    assert "eighty" in checks["settings"]["found"]


def test_packages_that_are_missing_or_old(monkeypatch: pytest.MonkeyPatch) -> None:
    installed = doctor._version
    monkeypatch.setattr(doctor, "_version", lambda name: {"peft": None, "ray": "2.0", "s3fs": None}.get(
        name, installed(name)) if name in ("peft", "ray", "s3fs") else installed(name))  # fmt: skip
    code, checks = found("--storage", "s3://bucket/kauli")
    assert code == 1
    assert "peft is missing" in checks["packages"]["found"]
    assert "ray 2.0 is not >=2." in checks["packages"]["found"]
    assert checks["s3fs"]["state"] == "problem"
    assert "kauli[s3]" in checks["s3fs"]["advice"]


def test_a_disk_that_is_full_or_not_written(machine: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    class Usage:
        free = 100 * 2**20

    monkeypatch.setattr(doctor.shutil, "disk_usage", lambda path: Usage)
    code, checks = found("--storage", "/proc/none")
    assert code == 1
    assert checks["KAULI_HOME"]["state"] == "problem"
    assert "100 MiB free" in checks["KAULI_HOME"]["found"]
    assert "can't be written" in checks["storage"]["advice"]


def test_a_storage_that_does_not_answer(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(doctor, "_STORAGE_S", 0.0)
    monkeypatch.setattr(doctor, "_registry", lambda storage: iter(()))
    _, checks = found("--storage", "memory://far/away")
    assert "did not answer" in checks["adapters"]["found"]
