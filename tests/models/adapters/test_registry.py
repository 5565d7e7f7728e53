"""The registry on a local folder and on an S3-like store: versions, names, aliases, removal, damage."""

import os
import uuid
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from kauli.models.adapters.card import BaseReference
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


# Revocation


def test_a_revoked_version_is_never_resolved_and_its_files_stay(tmp_path: Path, folder: Path) -> None:
    registry = Registry(str(tmp_path / "store"))
    for _ in range(3):
        registry.publish(folder, make_card())
    registry.set_alias("text-sw", 3, "prod")
    registry.set_alias("text-sw", 2, "latest")
    assert registry.revoke("text-sw@prod", " consent withdrawn ") == ["text-sw@3"]
    assert registry.resolve("text-sw") == ("text-sw", 2)
    assert registry.versions("text-sw") == [1, 2]
    for spec in ("text-sw@3", "text-sw@prod"):
        for use in (registry.resolve, registry.card, registry.fetch):
            with pytest.raises(UsageError, match=r"text-sw@3 was revoked on 20.*: consent withdrawn\. text-sw has 1"):
                use(spec)
    with pytest.raises(UsageError, match="was revoked"):
        registry.set_alias("text-sw", 3, "prod")
    assert (tmp_path / "store/adapters/text-sw/3/card.json").exists()
    assert registry.publish(folder, make_card()).version == 4  # its number does not come again
    assert registry.revoke("text-sw", "x") == ["text-sw@1", "text-sw@2", "text-sw@4"]
    with pytest.raises(UsageError, match=r"text-sw@4 was revoked on .*: x\.$"):
        registry.resolve("text-sw")
    registry.remove("text-sw@3")
    assert not (tmp_path / "store/adapters/text-sw/3").exists()
    assert set(registry.revoked("text-sw")) == {1, 2, 3, 4}


def test_a_revocation_needs_a_reason_and_a_version(tmp_path: Path, folder: Path) -> None:
    registry = Registry(str(tmp_path / "store"))
    registry.publish(folder, make_card())
    with pytest.raises(UsageError, match="say why"):
        registry.revoke("text-sw@1", " ")
    with pytest.raises(UsageError, match="has no version 2"):
        registry.revoke("text-sw@2", "x")
    with pytest.raises(UsageError, match="there is no adapter 'text-xx'"):
        registry.revoke("text-xx", "x")
    assert registry.revoked("text-sw") == {}
    assert registry.resolve("text-sw") == ("text-sw", 1)


# Stores


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
