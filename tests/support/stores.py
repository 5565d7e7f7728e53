"""Adapters of one small weight to publish, and storages for them: a folder, and a bucket on an S3 server made here."""

import json
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import boto3  # type: ignore[import-untyped]
import pytest
import torch
from moto.server import ThreadedMotoServer
from s3fs import S3FileSystem
from safetensors.torch import save_file

from kauli.models.adapters.card import BaseReference, Card
from kauli.models.adapters.store import open_store

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


@contextmanager
def s3_server() -> Iterator[str]:
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


def new_storage(request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """Of the kind in `request.param`, "local" or "s3", beside a new $KAULI_HOME; asks for the fixture `s3` itself."""
    monkeypatch.setenv("KAULI_HOME", str(tmp_path / "home"))
    if request.param == "local":
        return str(tmp_path / "store")
    request.getfixturevalue("s3")
    return f"s3://{BUCKET}/{uuid.uuid4().hex}/store"


def stored(storage: str) -> list[str]:
    """Every file of the storage but locks and the record of used numbers."""
    return [path for path in open_store(storage, "adapters").find("") if not path.startswith(".locks/")]
