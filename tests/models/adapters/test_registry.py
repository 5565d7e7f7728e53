"""The registry on a local folder and on an S3-like store: versions, aliases, races, faults, killed publishers."""

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

import boto3  # type: ignore[import-untyped]
import pytest
import torch
from moto.server import ThreadedMotoServer
from s3fs import S3FileSystem
from safetensors.torch import load_file, save_file

from kauli.models.adapters.card import BaseReference, Card
from kauli.models.adapters.folder import check_folder
from kauli.models.adapters.registry import Registry
from kauli.models.adapters.store import LocalStore, ObjectStore, open_store
from kauli.models.errors import KauliError, UsageError

BUCKET = "kauli-test"


def make_card(**changes: Any) -> Card:
    base = BaseReference(name="debug", reference="kauli/debug-text", sha256="5" * 64, licence="Apache-2.0")
    fields = {"name": "text-sw", "task": "text", "language": "sw", "base": base, "licence": "MIT"}
    return Card(**{**fields, "method": {"kind": "lora"}, **changes})


def make_folder(folder: Path, value: float = 1.0) -> Path:
    folder.mkdir(parents=True)
    save_file({"x.lora_B.weight": torch.full((4, 4), value)}, folder / "adapter_model.safetensors")
    config = {"peft_type": "LORA", "base_model_name_or_path": "kauli/debug-text"}
    (folder / "adapter_config.json").write_text(json.dumps(config))
    return folder


@pytest.fixture(scope="module")
def s3() -> Iterator[str]:
    """The address of a local S3 server; the clients find it and made-up keys in the environment."""
    server = ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
    server.start()
    endpoint = "http://{}:{}".format(*server.get_host_and_port())
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("AWS_ENDPOINT_URL", endpoint)
        patch.setenv("AWS_ACCESS_KEY_ID", "test")
        patch.setenv("AWS_SECRET_ACCESS_KEY", "test")
        patch.setenv("AWS_DEFAULT_REGION", "us-east-1")
        S3FileSystem.clear_instance_cache()  # one that an earlier test made has no credentials
        boto3.client("s3").create_bucket(Bucket=BUCKET)
        yield endpoint
    server.stop()


@pytest.fixture(params=["local", "s3"])
def storage(request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    monkeypatch.setenv("KAULI_HOME", str(tmp_path / "home"))
    if request.param == "local":
        return str(tmp_path / "store")
    request.getfixturevalue("s3")
    return f"s3://{BUCKET}/{uuid.uuid4().hex}/store"


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return make_folder(tmp_path / "made")


def stored(storage: str) -> list[str]:
    """Every file of the storage but locks and the record of used numbers."""
    return [path for path in open_store(storage, "adapters").find("") if not path.startswith(".locks/")]


# Publishing and reading


def test_published_versions_are_whole_and_numbered(storage: str, folder: Path) -> None:
    registry = Registry(storage)
    assert registry.names() == []
    first = registry.publish(folder, make_card())
    second = registry.publish(folder, make_card())
    registry.publish(folder, make_card(name="text-am", language="am"))
    assert (first.spec, second.spec) == ("text-sw@1", "text-sw@2")
    assert second.uri == f"{storage}/adapters/text-sw/2"
    assert registry.names() == ["text-am", "text-sw"]
    assert registry.versions("text-sw") == [1, 2]
    fetched = registry.fetch("text-sw@2")
    card = check_folder(fetched)
    assert card == registry.card("text-sw@2")
    assert (card.name, card.version, set(card.files)) == (
        "text-sw", 2, {"README.md", "adapter_config.json", "adapter_model.safetensors"},
    )  # fmt: skip
    assert "# text-sw@2\n" in (fetched / "README.md").read_text()
    assert torch.equal(load_file(fetched / "adapter_model.safetensors")["x.lora_B.weight"], torch.ones(4, 4))


def test_a_published_version_does_not_follow_its_folder(storage: str, folder: Path) -> None:
    registry = Registry(storage)
    registry.publish(folder, make_card())
    save_file({"x.lora_B.weight": torch.zeros(4, 4)}, folder / "adapter_model.safetensors")
    weights = load_file(registry.fetch("text-sw@1") / "adapter_model.safetensors")
    assert torch.equal(weights["x.lora_B.weight"], torch.ones(4, 4))


def test_what_a_name_means(storage: str, folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    registry = Registry(storage)
    for _ in range(3):
        registry.publish(folder, make_card())
    assert registry.resolve("text-sw") == ("text-sw", 3)
    assert "neither 'prod' nor 'latest'" in capsys.readouterr().err
    registry.set_alias("text-sw", 2, "latest")
    assert registry.resolve("text-sw") == ("text-sw", 2)
    registry.set_alias("text-sw", 1, "prod")
    assert registry.resolve("text-sw") == ("text-sw", 1)
    assert registry.resolve("text-sw@latest") == ("text-sw", 2)
    assert registry.resolve("text-sw@3") == ("text-sw", 3)
    registry.set_alias("text-sw", 3, "prod")
    assert registry.aliases("text-sw") == {"latest": 2, "prod": 3}
    assert capsys.readouterr().err == ""


@pytest.mark.parametrize(
    ("spec", "message"),
    [
        ("text-swa", "no adapter 'text-swa'.*Did you mean 'text-sw'"),
        ("text-sw@2", "no version 2; it has 1"),
        ("text-sw@prob", "Did you mean 'prod'"),
        ("text-sw@", "no version or alias ''"),
        ("text-sw@../../x", "no version or alias"),
        ("text-sw@01", "no version or alias"),
        ("../../etc", "no adapter name"),
        ("text-sw/1", "no adapter name"),
        ("Text", "no adapter name"),
        (".claims", "no adapter name"),
        ("", "no adapter name"),
    ],
)
def test_unknown_or_unsafe_names_are_wrong_use(tmp_path: Path, folder: Path, spec: str, message: str) -> None:
    registry = Registry(str(tmp_path / "store"))
    registry.publish(folder, make_card())
    registry.set_alias("text-sw", 1, "prod")
    for call in (registry.resolve, registry.card, registry.fetch):
        with pytest.raises(UsageError, match=message):
            call(spec)


@pytest.mark.parametrize("alias", ["3", "../prod", "a/b", "", "Prod"])
def test_unsafe_aliases_are_wrong_use(tmp_path: Path, folder: Path, alias: str) -> None:
    registry = Registry(str(tmp_path / "store"))
    registry.publish(folder, make_card())
    with pytest.raises(UsageError, match="alias"):
        registry.set_alias("text-sw", 1, alias)
    with pytest.raises(UsageError, match="no version 2"):
        registry.set_alias("text-sw", 2, "prod")


def test_removing(storage: str, folder: Path) -> None:
    registry = Registry(storage)
    for _ in range(2):
        registry.publish(folder, make_card())
    registry.set_alias("text-sw", 2, "prod")
    with pytest.raises(UsageError, match="name the version to remove"):
        registry.remove("text-sw")
    with pytest.raises(UsageError, match=r"text-sw@2 is prod.*kauli adapters promote"):
        registry.remove("text-sw@2")
    registry.remove("text-sw@1")
    assert registry.versions("text-sw") == [2]
    registry.remove("text-sw@prod")  # lets the alias go, keeps the version
    assert (registry.versions("text-sw"), registry.aliases("text-sw")) == ([2], {})
    registry.remove("text-sw@2")
    assert registry.names() == []
    assert all("/.claims/" in path for path in stored(storage))
    # Caches go by name and version, so a number never means something else later.
    assert registry.publish(folder, make_card()).version == 3


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"task": "describe"}, "its task is text, not describe"),
        ({"language": ["sw", "am"]}, "its language is sw, not am, sw"),
        (
            {"base": BaseReference(name="other", reference="a/b", sha256="6" * 64, licence="MIT")},
            r"its base is debug \(555.*\), not other",
        ),
    ],
)
def test_a_name_keeps_what_it_is(storage: str, folder: Path, change: dict[str, Any], message: str) -> None:
    registry = Registry(storage)
    registry.publish(folder, make_card())
    before = stored(storage)
    with pytest.raises(UsageError, match=message):
        registry.publish(folder, make_card(**change))
    assert stored(storage) == before


@pytest.mark.parametrize("file", ["adapter_model.bin", "state.pkl", "modeling.py"])
def test_unsafe_folder_is_not_published(storage: str, folder: Path, file: str) -> None:
    (folder / file).write_bytes(b"\x80\x04.")
    with pytest.raises(KauliError, match=file):
        Registry(storage).publish(folder, make_card())
    assert stored(storage) == []


def test_folder_that_changed_since_its_card_is_not_published(storage: str, folder: Path) -> None:
    with pytest.raises(KauliError, match=r"adapter_config\.json is missing or not what its card lists"):
        Registry(storage).publish(folder, make_card(files={"adapter_config.json": "0" * 64}))


# Damage


def test_damage_in_a_local_registry_is_found(tmp_path: Path, folder: Path) -> None:
    registry = Registry(str(tmp_path / "store"))
    registry.publish(folder, make_card())
    weights = registry.fetch("text-sw@1") / "adapter_model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-1] + b"\x01")
    with pytest.raises(KauliError, match="differs from the SHA-256"):
        registry.fetch("text-sw@1")
    (weights.parent / "card.json").write_text("{")
    with pytest.raises(KauliError, match="not a readable card"):
        registry.card("text-sw@1")


def test_damaged_cache_of_an_object_store_is_fetched_again(
    s3: str, tmp_path: Path, folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("KAULI_HOME", str(tmp_path / "home"))
    storage = f"s3://{BUCKET}/{uuid.uuid4().hex}"
    registry = Registry(storage)
    registry.publish(folder, make_card())
    weights = registry.fetch("text-sw@1") / "adapter_model.safetensors"
    good = weights.read_bytes()
    weights.write_bytes(good[:-1] + b"\x01")
    assert (registry.fetch("text-sw@1") / "adapter_model.safetensors").read_bytes() == good
    assert "again" in capsys.readouterr().err
    # Damage in the store itself is an error, and the cache keeps nothing of it.
    store = open_store(storage, "adapters")
    store.write("text-sw/1/adapter_model.safetensors", good[:-1] + b"\x01")
    monkeypatch.setenv("KAULI_HOME", str(tmp_path / "other-home"))
    with pytest.raises(KauliError, match="differs from the SHA-256"):
        registry.fetch("text-sw@1")
    assert not list((tmp_path / "other-home").rglob("*.safetensors"))


def test_an_object_store_is_asked_once_for_the_weights(
    s3: str, tmp_path: Path, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("KAULI_HOME", str(tmp_path / "home"))
    registry = Registry(f"s3://{BUCKET}/{uuid.uuid4().hex}")
    registry.publish(folder, make_card())
    first = registry.fetch("text-sw@1")
    monkeypatch.setattr(ObjectStore, "download", None)
    assert registry.fetch("text-sw@1") == first


# Several publishers


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


def test_storage_that_cannot_be_used_is_told(s3: str, tmp_path: Path, folder: Path) -> None:
    with pytest.raises(UsageError, match="nosuch://x"):
        Registry("nosuch://x")
    with pytest.raises(KauliError, match="s3://no-such-bucket"):
        Registry("s3://no-such-bucket/x").publish(folder, make_card())
    (tmp_path / "file").write_text("in the way")
    with pytest.raises(KauliError, match="file"):
        Registry(str(tmp_path / "file")).publish(folder, make_card())


def test_a_store_in_memory_works_too(tmp_path: Path, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("KAULI_HOME", str(tmp_path / "home"))
    registry = Registry(f"memory://{uuid.uuid4().hex}")
    assert registry.publish(folder, make_card()).version == 1
    assert registry.publish(folder, make_card()).version == 2
    check_folder(registry.fetch("text-sw@2"))


def test_a_file_uri_is_a_local_folder(tmp_path: Path, folder: Path) -> None:
    registry = Registry(f"file://{tmp_path}/store")
    registry.publish(folder, make_card())
    assert registry.fetch("text-sw@1") == tmp_path / "store" / "adapters" / "text-sw" / "1"


def test_a_folder_that_is_removed_while_it_is_listed_is_passed_over(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("1", "2"):
        (tmp_path / "store" / "adapters" / "text-sw" / name).mkdir(parents=True)
        (tmp_path / "store" / "adapters" / "text-sw" / name / "a").write_bytes(b"")
    real = os.scandir

    def scandir(path: Any) -> Any:
        if os.fspath(path).endswith("1"):
            os.remove(Path(path) / "a")
            os.rmdir(path)
        return real(path)

    monkeypatch.setattr(os, "scandir", scandir)
    assert LocalStore(tmp_path / "store" / "adapters", "store").find("text-sw") == ["text-sw/2/a"]
