"""Publishers to a folder and to an S3-like store: several at once, killed, given up, interrupted, a full disk."""

import errno
import json
import os
import signal
import subprocess
import sys
import textwrap
import uuid
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from kauli.models.adapters.folder import check_folder
from kauli.models.adapters.registry import Registry
from kauli.models.adapters.store import LocalStore, ObjectStore, open_store
from kauli.models.errors import KauliError, UsageError
from support.stores import BUCKET, make_card, make_folder, new_storage, s3_server, stored


@pytest.fixture(scope="module")
def s3() -> Iterator[str]:
    with s3_server() as endpoint:
        yield endpoint


@pytest.fixture(params=["local", "s3"])
def storage(request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    return new_storage(request, tmp_path, monkeypatch)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return make_folder(tmp_path / "made")


# Several at once


def test_publishers_at_once_get_a_number_each(storage: str, tmp_path: Path) -> None:
    folders = [make_folder(tmp_path / f"made-{index}", float(index)) for index in range(6)]

    def publish(index: int) -> int:
        return Registry(storage).publish(folders[index], make_card()).version

    with ThreadPoolExecutor(6) as pool:
        versions = list(pool.map(publish, range(6)))
    assert sorted(versions) == [1, 2, 3, 4, 5, 6]
    registry = Registry(storage)
    assert registry.versions("text-sw") == [1, 2, 3, 4, 5, 6]
    for index, version in enumerate(versions):
        weights = load_file(registry.fetch(f"text-sw@{version}") / "adapter_model.safetensors")
        assert torch.equal(weights["x.lora_B.weight"], torch.full((4, 4), float(index)))


def test_first_publishers_at_once_cannot_give_a_name_two_tasks(storage: str, tmp_path: Path) -> None:
    tasks = ["text", "describe", "align", "speak"]
    folders = [make_folder(tmp_path / task) for task in tasks]

    def publish(index: int) -> str | None:
        try:
            Registry(storage).publish(folders[index], make_card(task=tasks[index]))
        except UsageError:
            return None
        return tasks[index]

    with ThreadPoolExecutor(4) as pool:
        kept = [task for task in pool.map(publish, range(4)) if task]
    assert len(kept) == 1
    registry = Registry(storage)
    assert [registry.card(f"text-sw@{number}").task for number in registry.versions("text-sw")] == kept


PUBLISH_IN_A_PROCESS = """
    import os, signal, sys
    from pathlib import Path
    from kauli.models.adapters.card import Card
    from kauli.models.adapters.registry import Registry
    from kauli.models.adapters.store import LocalStore, ObjectStore

    storage, folder, card, deaths = sys.argv[1:]
    written = 0

    def dying(method):
        def call(self, *arguments):
            global written
            if written == int(deaths):
                os.kill(os.getpid(), signal.SIGKILL)
            written += 1
            return method(self, *arguments)
        return call

    for kind in (LocalStore, ObjectStore):
        for name in ("write", "create", "upload"):
            setattr(kind, name, dying(getattr(kind, name)))
    print(Registry(storage).publish(Path(folder), Card.model_validate_json(card)).version)
"""


def run_publisher(storage: str, folder: Path, dies_at: int) -> subprocess.CompletedProcess[str]:
    """Publish in another process that is killed at its write number `dies_at` (-1: never)."""
    code = textwrap.dedent(PUBLISH_IN_A_PROCESS)
    arguments = [storage, str(folder), make_card().to_json(), str(dies_at)]
    return subprocess.run([sys.executable, "-c", code, *arguments], capture_output=True, text=True, check=False)


def test_publishers_in_two_processes_get_a_number_each(storage: str, folder: Path) -> None:
    with ThreadPoolExecutor(2) as pool:
        done = list(pool.map(lambda _: run_publisher(storage, folder, -1), range(2)))
    assert sorted(one.stdout for one in done) == ["1\n", "2\n"], [one.stderr for one in done]
    for version in Registry(storage).versions("text-sw"):
        check_folder(Registry(storage).fetch(f"text-sw@{version}"))


# Writes in order: the claim, two files, the README, the card.
@pytest.mark.parametrize("dies_at", [0, 1, 3, 4])
def test_a_killed_publisher_leaves_nothing_that_counts(storage: str, folder: Path, dies_at: int) -> None:
    registry = Registry(storage)
    registry.publish(folder, make_card())
    before = stored(storage)
    killed = run_publisher(storage, folder, dies_at)
    assert killed.returncode == -signal.SIGKILL, killed.stderr
    assert len(stored(storage)) == len(before) + dies_at
    assert registry.versions("text-sw") == [1]
    assert registry.resolve("text-sw") == ("text-sw", 1)
    version = registry.publish(folder, make_card()).version
    assert registry.versions("text-sw") == [1, version]
    check_folder(registry.fetch(f"text-sw@{version}"))
    orphans = [path for path in stored(storage) if path.split("/")[1] not in ("1", str(version), ".claims")]
    assert orphans == []
    if isinstance(open_store(storage, ""), LocalStore):
        assert version == 2  # on a local store, where a lock proves that nobody else is cleaning


def test_a_living_publisher_is_not_cleaned_away(storage: str, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    registry = Registry(storage)
    upload = type(open_store(storage, "")).upload
    inner: list[int] = []

    def upload_while_another_publishes(self: Any, source: Path, path: str) -> None:
        if not inner:
            inner.append(0)
            inner.append(Registry(storage).publish(folder, make_card()).version)
        upload(self, source, path)

    monkeypatch.setattr(type(open_store(storage, "")), "upload", upload_while_another_publishes)
    assert registry.publish(folder, make_card()).version == 1
    assert inner == [0, 2]
    for version in (1, 2):
        check_folder(registry.fetch(f"text-sw@{version}"))


def test_a_publisher_that_was_given_up_cannot_commit(
    storage: str, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    registry = Registry(storage)
    kind = type(open_store(storage, ""))
    upload = kind.upload

    def upload_slowly(self: Any, source: Path, path: str) -> None:
        monkeypatch.setattr(kind, "upload", upload)
        monkeypatch.setattr("kauli.models.adapters.registry._is_dead", lambda claim: True)
        Registry(storage).publish(folder, make_card())
        upload(self, source, path)

    monkeypatch.setattr(kind, "upload", upload_slowly)
    with pytest.raises(KauliError, match="given up; run it again"):
        registry.publish(folder, make_card())
    assert len(registry.versions("text-sw")) == 1
    check_folder(registry.fetch("text-sw"))


def test_claims_of_another_machine_die_of_age(storage: str, folder: Path) -> None:
    store = open_store(storage, "adapters")
    registry = Registry(storage)
    claim = {"machine": "elsewhere", "process": 1, "started": 0.0, "token": "t"}
    claim["identity"] = {"task": "text", "base": "debug (555555555555)", "language": ["sw"]}
    for number, time in ((1, "2020-01-01T00:00:00+00:00"), (2, "2999-01-01T00:00:00+00:00")):
        store.write(f"text-sw/.claims/{number}.json", json.dumps({**claim, "time": time}).encode())
        store.write(f"text-sw/{number}/adapter_config.json", b"{}")
    assert registry.names() == []
    assert registry.publish(folder, make_card()).version == 3
    assert "text-sw/1/adapter_config.json" not in stored(storage)
    assert "text-sw/2/adapter_config.json" in stored(storage)


# Faults


@pytest.mark.parametrize("fails_at", range(6))
def test_disk_full_at_any_write_leaves_nothing(
    tmp_path: Path, folder: Path, monkeypatch: pytest.MonkeyPatch, fails_at: int
) -> None:
    registry = Registry(str(tmp_path / "store"))
    calls = 0
    real = os.fsync

    def full(handle: int) -> None:
        nonlocal calls
        calls += 1
        if calls > fails_at:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        real(handle)

    monkeypatch.setattr(os, "fsync", full)
    if fails_at == 5:  # a claim, two files, the README and the card are five writes
        assert registry.publish(folder, make_card()).version == 1
        return
    with pytest.raises(KauliError, match="No space left on device") as caught:
        registry.publish(folder, make_card())
    assert caught.value.exit_code == 1
    assert stored(str(tmp_path / "store")) == []
    assert registry.names() == []
    monkeypatch.setattr(os, "fsync", real)
    assert registry.publish(folder, make_card()).version == 1


def test_a_truly_full_disk(tmp_path: Path) -> None:
    """A process that may write no more than 100 kB to a file: the kernel itself refuses the weights."""
    folder = make_folder(tmp_path / "made")
    save_file({"x.lora_B.weight": torch.zeros(300, 300)}, folder / "adapter_model.safetensors")
    code = """
        import resource, signal, sys
        from pathlib import Path
        from kauli.models.adapters.card import Card
        from kauli.models.adapters.registry import Registry
        signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
        resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, 100_000))
        Registry(sys.argv[1]).publish(Path(sys.argv[2]), Card.model_validate_json(sys.argv[3]))
    """
    command = [sys.executable, "-c", textwrap.dedent(code), str(tmp_path / "store"), str(folder), make_card().to_json()]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert "KauliError: text-sw was not published: cannot write to" in done.stderr
    assert "File too large" in done.stderr
    assert stored(str(tmp_path / "store")) == []


def test_interrupted_upload_to_an_object_store_leaves_nothing(
    s3: str, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    storage = f"s3://{BUCKET}/{uuid.uuid4().hex}"
    upload = ObjectStore.upload

    def interrupted(self: ObjectStore, source: Path, path: str) -> None:
        if source.suffix == ".safetensors":
            raise KeyboardInterrupt
        upload(self, source, path)

    monkeypatch.setattr(ObjectStore, "upload", interrupted)
    with pytest.raises(KeyboardInterrupt):
        Registry(storage).publish(folder, make_card())
    assert stored(storage) == []
