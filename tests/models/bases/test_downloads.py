"""Bases are fetched whole or not at all, from a hub made here; real weights answer as those they were made from."""

import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from kauli.models.bases.find import find_base, known_bases, local_bases
from kauli.models.bases.hub import ANSWER_SECONDS
from support.bases import FIND, new_home, own_folder

REVISION = "0123456789abcdef0123456789abcdef01234567"


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    return new_home(tmp_path, monkeypatch)


@pytest.fixture
def folder(home: Path, tmp_path: Path) -> Path:
    return own_folder(tmp_path / "mine")


# -- the hub --------------------------------------------------------------------------------------------------------


class Hub(ThreadingHTTPServer):
    """As much of a hub as a download needs, serving one folder as `org/tiny`."""

    daemon_threads = True

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.card: dict[str, Any] = {"license": "apache-2.0", "language": ["sw"]}
        self.config: dict[str, Any] = {}
        self.stall = threading.Event()
        self.resolved: list[str] = []
        super().__init__(("127.0.0.1", 0), Answer)

    def names(self) -> list[str]:
        return sorted(path.name for path in self.folder.iterdir())


class Answer(BaseHTTPRequestHandler):
    server: Hub
    protocol_version = "HTTP/1.1"

    def do_HEAD(self) -> None:
        self.do_GET()

    def do_GET(self) -> None:
        path = self.path.split("?")[0]
        if path.startswith("/api/models/org/tiny/tree/"):
            self.reply(json.dumps([self.entry(name) for name in self.server.names()]).encode())
        elif path.startswith("/api/models/org/tiny"):
            siblings = [{"rfilename": name} for name in self.server.names()]
            facts = {"id": "org/tiny", "sha": REVISION, "siblings": siblings}
            self.reply(json.dumps(facts | {"cardData": self.server.card, "config": self.server.config}).encode())
        elif path.startswith("/org/tiny/resolve/"):
            name = path.rsplit("/", 1)[1]
            if self.command == "GET":
                self.server.resolved.append(name)
            self.reply((self.server.folder / name).read_bytes(), name)
        else:
            self.send_response(404)
            self.send_header("X-Error-Code", "RepoNotFound")
            self.send_header("Content-Length", "0")
            self.end_headers()

    def entry(self, name: str) -> dict[str, Any]:
        size = (self.server.folder / name).stat().st_size
        return {"type": "file", "path": name, "size": size, "oid": f"{name:0>40}".replace(".", "0")}

    def reply(self, body: bytes, name: str = "") -> None:
        self.send_response(200)
        self.send_header("Content-Length", str(len(body)))
        self.send_header("ETag", f'"{name or "list"}"')
        self.send_header("X-Repo-Commit", REVISION)
        self.end_headers()
        if self.command == "HEAD":
            return
        if name == "model.safetensors" and self.server.stall.is_set():
            self.wfile.write(body[:1000])
            self.wfile.flush()
            while self.server.stall.is_set():
                time.sleep(0.02)
        self.wfile.write(body)

    def log_message(self, *_: Any) -> None:
        pass


@pytest.fixture
def hub(folder: Path) -> Iterator[Hub]:
    (folder / "evil.py").write_text("print('never fetched')")
    (folder / "pytorch_model.bin").write_bytes(b"pickle")
    server = Hub(folder)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield server
    server.stall.clear()
    server.shutdown()
    server.server_close()


def start(name: str, endpoint: str, home: Path) -> "subprocess.Popen[str]":
    """`find_base(name)` in a process of its own: the hub's address is read when its library is imported."""
    env = os.environ | {"HF_ENDPOINT": endpoint, "HF_HOME": str(home / "hf"), "HF_HUB_DISABLE_XET": "1"}
    env = {key: value for key, value in env.items() if key.lower() not in ("http_proxy", "https_proxy", "all_proxy")}
    env.pop("HF_HUB_OFFLINE", None)
    return subprocess.Popen(
        [sys.executable, "-c", FIND, name], env=env, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )


def find(name: str, endpoint: str, home: Path) -> str:
    out, err = start(name, endpoint, home).communicate(timeout=120)
    assert out, err
    return out.strip()


def address(hub: Hub) -> str:
    return f"http://127.0.0.1:{hub.server_port}"


def test_hub_model_is_fetched_without_code_or_pickles(hub: Hub, home: Path) -> None:
    assert find("org/tiny", address(hub), home) == f"{find_base('debug').sha256} apache-2.0 sw org/tiny"
    stored = home / "bases" / "org--tiny"
    assert {path.name for path in stored.iterdir()} == {*hub.names(), "base.json"} - {"evil.py", "pytorch_model.bin"}
    base = find_base("org/tiny")  # from now on without the hub
    assert (base.hub_id, base.reference, base.folder) == ("org/tiny", "org/tiny", stored)
    assert json.loads((stored / "base.json").read_text())["made_from"] == REVISION


def test_hub_model_in_the_hubs_own_cache_needs_no_network(hub: Hub, home: Path) -> None:
    first = find("org/tiny", address(hub), home)
    shutil.rmtree(home / "bases" / "org--tiny")
    hub.shutdown()
    hub.server_close()
    again = find("org/tiny", "http://127.0.0.1:9", home)
    assert again.split()[0] == first.split()[0]


def test_hub_refusals(hub: Hub, home: Path) -> None:
    hub.card = {"license": "other", "license_name": "acme-non-commercial"}
    assert "allow_noncommercial" in find("org/tiny", address(hub), home)
    hub.card = {"license": "mit"}
    hub.config = {"auto_map": {"AutoModel": "evil.Model"}}
    assert "needs its own code" in find("org/tiny", address(hub), home)
    (hub.folder / "model.safetensors").unlink()
    assert "holds no safetensors" in find("org/tiny", address(hub), home)
    answer = find("org/missing", address(hub), home)
    assert answer.startswith("2 ")
    assert "has no model 'org/missing'" in answer
    assert hub.resolved == []
    assert not (home / "bases" / "org--tiny").exists()


def test_killed_download_leaves_no_half_base_and_concurrent_ones_fetch_once(hub: Hub, home: Path) -> None:
    hub.stall.set()
    child = start("org/tiny", address(hub), home)
    deadline = time.monotonic() + 60
    while "model.safetensors" not in hub.resolved:
        assert time.monotonic() < deadline
        assert child.poll() is None
        time.sleep(0.02)
    child.send_signal(signal.SIGKILL)
    child.communicate()
    assert not (home / "bases" / "org--tiny").exists()
    assert "org/tiny" not in local_bases()
    hub.stall.clear()
    hub.resolved.clear()
    children = [start("org/tiny", address(hub), home) for _ in range(2)]
    answers = {child.communicate(timeout=120)[0] for child in children}
    assert answers == {f"{find_base('debug').sha256} apache-2.0 sw org/tiny\n"}
    assert hub.resolved.count("model.safetensors") == 1
    assert not list((home / "bases").glob(".*"))


def test_without_a_network_the_answer_comes_soon(home: Path) -> None:
    """The process ends, though the hub never answers; how long it waits is a constant, which needs no clock."""
    assert ANSWER_SECONDS < 10
    find_base("debug-qwen")
    silent = socket.create_server(("127.0.0.1", 0))  # takes connections and never answers
    for endpoint in ("http://127.0.0.1:9", f"http://127.0.0.1:{silent.getsockname()[1]}"):
        code, message = find("some/model", endpoint, home).split(maxsplit=1)
        assert code == "1"
        assert "hub cannot be reached" in message
        assert "Available on this machine: debug-qwen, debug." in message
    silent.close()
    assert list((home / "bases").glob("*some*")) == []


# -- real weights ---------------------------------------------------------------------------------------------------


@pytest.mark.weights
def test_smollm2_answers_as_its_gguf_does() -> None:
    base = find_base("smollm2-135m-q4")  # in the real home: fetched once
    tokenizer = AutoTokenizer.from_pretrained(base.folder, local_files_only=True)
    model: Any = AutoModelForCausalLM.from_pretrained(base.folder, dtype=torch.float32, local_files_only=True)
    (part,) = known_bases()["smollm2-135m-q4"].gguf.parts  # type: ignore[union-attr]
    gguf = base.folder.parent.parent / "packages" / part.package.folder_name / part.file
    original: Any = AutoModelForCausalLM.from_pretrained(gguf.parent, gguf_file=gguf.name, dtype=torch.float32)
    for prompt in ("The capital of France is", "Water boils at"):
        ids = tokenizer(prompt, return_tensors="pt")
        tokens = model.generate(**ids, max_new_tokens=16, do_sample=False)
        assert torch.equal(tokens, original.generate(**ids, max_new_tokens=16, do_sample=False))
        if "France" in prompt:
            assert "Paris" in tokenizer.decode(tokens[0])
    # Digits are taken one by one before all else, as the original's tokenizer does.
    assert tokenizer.tokenize("a  5 and 12") == ["a", "ĠĠ", "5", "Ġand", "Ġ", "1", "2"]
