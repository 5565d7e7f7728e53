"""The `kauli` command: wrong use is one clear error with the right exit code; stdout holds the result alone."""

import json
import resource
import shutil
import socket
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from peft import LoraConfig, get_peft_model
from transformers import AutoModelForCausalLM, WhisperForConditionalGeneration

from kauli.models.adapters.peft_import import from_peft
from kauli.models.adapters.registry import Registry
from kauli.models.bases.find import find_base
from kauli.models.tasks import load_served
from support.cli import fails, run
from support.imports import HEAVY


@pytest.fixture(autouse=True, scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    with pytest.MonkeyPatch.context() as patch:
        folder = tmp_path_factory.mktemp("home")
        patch.setenv("KAULI_HOME", str(folder))
        for name in ("KAULI_STORAGE", "KAULI_API_KEYS", "KAULI_HOST", "KAULI_PORT", "KAULI_BASES"):
            patch.delenv(name, raising=False)
        yield folder


@pytest.fixture(scope="module")
def plain(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An adapter folder made by plain PEFT on the debug base."""
    folder = tmp_path_factory.mktemp("plain") / "adapter"
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_pretrained(find_base("debug").folder)
    model = get_peft_model(model, LoraConfig(r=2, target_modules=["q_proj"]))
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "lora_B" in name:
                parameter.normal_(std=1.0)
    model.save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def store(plain: Path, tmp_path_factory: pytest.TempPathFactory) -> str:
    """A storage with text-sw@1 and text-sw@2."""
    folder = str(tmp_path_factory.mktemp("store"))
    for _ in range(2):
        result = run(*add(plain), "--storage", folder)
        assert result.exit_code == 0, result.stderr
    return folder


def add(folder: Path, name: str = "text-sw", language: str = "sw", base: str = "debug") -> list[str]:
    return ["adapters", "add", str(folder), "--name", name, "--language", language, "--base", base]


def test_help_is_instant_and_names_every_command() -> None:
    times = []
    for _ in range(3):  # in CPU seconds, and the best of three: the machine may be busy
        began = resource.getrusage(resource.RUSAGE_CHILDREN)
        shown = subprocess.run(
            [sys.executable, "-c", "from kauli.deploy.cli.main import main; main()", "--help"],
            capture_output=True, text=True, check=True,
        ).stdout  # fmt: skip
        ended = resource.getrusage(resource.RUSAGE_CHILDREN)
        times.append(ended.ru_utime + ended.ru_stime - began.ru_utime - began.ru_stime)
    for command in ("fetch", "train", "eval", "compare", "generate", "serve", "demo", "doctor", "data", "adapters"):
        assert f"\n  {command} " in shown
    assert min(times) < 0.4


def test_help_imports_nothing_heavy() -> None:
    heavy = {*HEAVY, "pyarrow", "pydantic", "numpy", "fastapi", "matplotlib"}
    code = f"import sys, kauli.deploy.cli.main; print({heavy} & {{*sys.modules}})"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout == "set()\n"


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["trian"], "Did you mean 'train'"),
        (["data", "build"], "--languages"),
        (["data", "build", "--languages", " , "], "--languages is empty"),
        (["data", "build", "--languages", "swahilli"], "unknown language 'swahilli'"),
        (["data", "check", "/no/such/data"], "/no/such/data"),
        (["fetch", "smollm"], "Unknown base 'smollm'"),
        (["train", "text-ws"], "text-sw"),
        (["train", "text-sw", "--set", "train.stpes=3"], "stpes"),
        (["train", "text-sw", "--set", "language=swahilli"], "swahilli"),
        (["train", "text-sw", "--set", "nonsense"], "key=value"),
        (["eval", "text-none"], "text-none"),
        (["eval", "text-sw", "--split", "tset"], "split 'tset'"),
        (["compare", "text-sw", "text-none"], "text-none"),
        (["compare", "text-sw", "--seeds", "0"], "--seeds"),
        (["adapters", "show", "none"], "none"),
        (["adapters", "show", "../../etc"], "../../etc"),
        (["adapters", "promote", "text-sw", "prod"], "names no version"),
        (["adapters", "remove", "text-sw@1"], "text-sw"),
        (["generate", "hi", "--max-tokens", "0"], "--max-tokens"),
        (["serve", "--port", "99999"], "--port"),
        (["serve", "--tasks", "speak"], "task 'speak'"),
        (["serve", "--host", "0.0.0.0"], "KAULI_API_KEYS"),
        (["serve", "--config", "none.yaml"], "no file none.yaml"),
        (["serve", "--base", "smollm"], "Unknown base 'smollm'"),
        (["demo", "--minutes", "0"], "--minutes"),
    ],
)
def test_wrong_use(words: list[str], said: str) -> None:
    fails(2, said, *words)


def test_text_that_is_not_utf8_is_one_sentence(tmp_path: Path) -> None:
    (tmp_path / "mine.yaml").write_bytes(b"name: caf\xe9\n")
    fails(2, "mine.yaml is not UTF-8 (byte 10)", "train", str(tmp_path / "mine.yaml"))
    fails(2, "the prompt is not valid Unicode (character 4)", "generate", "caf\udce9", "--model", "debug")
    fails(2, "the text is not valid Unicode (character 4)", "embed", "caf\udce9", "--model", "debug")
    fails(2, "the value is not YAML", "train", "text-sw", "--set", "name=caf\udce9")
    result = run("generate", "-", "--model", "debug", input=b"caf\xe9")
    assert result.exit_code == 2
    assert result.stderr == (
        "error: stdin is not UTF-8 (byte 4): convert it, for example with: iconv -f WINDOWS-1252 -t UTF-8\n"
    )


def test_names_of_bases_and_tasks_are_refused_before_a_training(plain: Path, tmp_path: Path) -> None:
    (tmp_path / "mine.jsonl").write_text("\n".join(f'{{"prompt": "swali {n}", "text": "jibu {n}"}}' for n in range(20)))
    keys = (f"data={tmp_path / 'mine.jsonl'}", "language=sw", "base=debug", "train.steps=1", "train.minutes=null")
    for name in ("debug-text", "text"):
        said = f"an adapter can't be called '{name}'"
        sets = [word for key in (*keys, f"name={name}") for word in ("--set", key)]
        result = run("train", "text-sw", *sets, "--no-ray", "--storage", str(tmp_path / "store"))
        assert (result.exit_code, said in result.stderr, result.stdout) == (2, True, "")
        fails(2, said, *add(plain, name=name), "--storage", str(tmp_path / "store"))


def test_a_taken_port_is_said_before_anything_starts() -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = str(taken.getsockname()[1])
        fails(2, f"127.0.0.1:{port}", "serve", "--base", "debug", "--port", port)
        fails(2, f"127.0.0.1:{port}", "demo", "--port", port)


def test_fetch_prints_the_folder() -> None:
    result = run("fetch", "debug")
    assert result.exit_code == 0
    assert (Path(result.stdout.strip()) / "config.json").is_file()
    assert "Next: " in result.stderr
    assert json.loads(run("fetch", "debug", "--json").stdout)[0]["name"] == "debug-text"


def test_adapters(store: str, plain: Path) -> None:
    where = ["--storage", store]
    listed = json.loads(run("adapters", "list", "--json", *where).stdout)
    assert [row["adapter"] for row in listed] == ["text-sw@2", "text-sw@1"]
    fails(2, "has no certificate", "adapters", "promote", "text-sw@1", "prod", *where)
    promoted = run("adapters", "promote", "text-sw@1", "prod", "--without-certificate", *where)
    assert promoted.stdout == "text-sw@prod -> text-sw@1\n"
    table = run("adapters", "list", *where).stdout.splitlines()
    assert table[0].split()[:4] == ["adapter", "aliases", "task", "language"]
    assert table[2].split()[:4] == ["text-sw@1", "prod", "text", "sw"]
    assert json.loads(run("adapters", "show", "text-sw", "--json", *where).stdout)["version"] == 1
    assert "debug" in run("adapters", "show", "text-sw", *where).stdout
    fails(2, "prod", "adapters", "remove", "text-sw@1", *where)
    fails(2, "text-sw", "adapters", "promote", "text-sw@7", "prod", *where)
    fails(2, "language", *add(plain, language="am"), *where)


def test_adapters_are_listed_with_the_main_figure_of_their_task(plain: Path, tmp_path: Path) -> None:
    read = from_peft(plain, tmp_path / "ours", name="text-sw", language="sw", base=find_base("debug"))
    told = {
        "text": ({"bits_per_byte": 2.5, "chrf": 30.0}, ["bits_per_byte", "2.500", "5.000"]),
        "transcribe": ({"bits_per_byte": 2.5, "cer": 0.25, "synthetic_cer": 0.1}, ["cer", "0.250", "0.500"]),
        "transcribe-made": (
            {"synthetic_bits_per_byte": 2.5, "synthetic_cer": 0.2},
            ["synthetic_cer", "0.200", "0.400"],
        ),
        "align": ({"accuracy": 0.6, "macro_f1": 0.4}, ["macro_f1", "0.400", "0.800"]),
        "unmeasured-text": ({}, ["bits_per_byte", "-", "-"]),
    }
    for name, (metrics, _) in told.items():
        task = next(task for task in ("text", "transcribe", "align") if task in name)
        base = {metric: 2 * value for metric, value in metrics.items()}
        method = {"kind": "head"} if task == "align" else read.method
        told_card = {"name": name, "task": task, "method": method, "metrics": metrics, "base_metrics": base}
        card = read.model_copy(update=told_card)
        Registry(str(tmp_path)).publish(tmp_path / "ours", card)
    lines = run("adapters", "list", "--storage", str(tmp_path)).stdout.splitlines()
    assert lines[0].split()[-3:] == ["metric", "score", "base_score"]
    assert {line.split("@")[0]: line.split()[-3:] for line in lines[1:]} == {
        name: row for name, (_, row) in told.items()
    }


def test_adapters_of_an_empty_storage(tmp_path: Path) -> None:
    result = run("adapters", "list", "--storage", str(tmp_path))
    assert (result.exit_code, result.stdout) == (0, "")
    assert "kauli train" in result.stderr
    assert run("adapters", "list", "--json", "--storage", str(tmp_path)).stdout == "[]\n"


@pytest.mark.parametrize("named", [True, False])
def test_an_adapter_of_a_whisper_is_added_for_transcribe(named: bool, tmp_path: Path) -> None:
    base = find_base("debug", task="transcribe")
    torch.manual_seed(0)
    model = WhisperForConditionalGeneration.from_pretrained(base.folder)
    model = get_peft_model(model, LoraConfig(r=2, target_modules=["q_proj", "v_proj"], task_type="SEQ_2_SEQ_LM"))
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "lora_B" in name:
                parameter.normal_(std=1.0)
    model.save_pretrained(tmp_path / "plain")
    shutil.copytree(base.folder, tmp_path / "base")
    shown = base.name if named else str(tmp_path / "base")
    where = ["--storage", str(tmp_path), *([] if named else ["--accept-base"])]
    result = run(*add(tmp_path / "plain", "transcribe-be", "be", shown), *where)
    assert result.exit_code == 0, result.stderr
    assert "Next: kauli transcribe" in result.stderr
    assert Registry(str(tmp_path)).card("transcribe-be@1").task == "transcribe"
    task = load_served("transcribe", base, device="cpu")
    task.add_adapter("theirs", Registry(str(tmp_path)).fetch("transcribe-be@1"))
    row = {"samples": np.sin(np.arange(16_000) / 9).astype(np.float32), "text": "добры дзень", "language": "be"}
    (ours, _), (bare, _) = (task.bits([row], key)[0] for key in ("theirs", None))
    assert ours != pytest.approx(bare, rel=1e-3)


def test_an_adapter_of_a_base_that_takes_none_from_plain_peft_is_refused(plain: Path, tmp_path: Path) -> None:
    where = ["--accept-base", "--storage", str(tmp_path)]
    fails(1, "does not keep the characters", *add(plain, base="debug-wav2vec2"), *where)
    fails(2, "is for the task align", *add(plain, base="debug-clip"), *where)


def test_adapters_that_are_refused(plain: Path, tmp_path: Path) -> None:
    where = ["--storage", str(tmp_path / "store")]
    fails(2, "../evil", *add(plain, name="../evil"), *where)
    fails(2, "klingonish", *add(plain, language="klingonish"), *where)
    fails(2, str(tmp_path / "none"), *add(tmp_path / "none"), *where)
    unsafe = tmp_path / "unsafe"
    unsafe.mkdir()
    for file in plain.iterdir():
        (unsafe / file.name).write_bytes(file.read_bytes())
    (unsafe / "adapter_model.bin").write_bytes(b"pickle")
    fails(1, "adapter_model.bin", *add(unsafe), *where)
    fails(2, "--accept-base", *add(plain, base="debug-qwen"), *where)
    assert not list((tmp_path / "store").rglob("card.json"))


def test_generate(store: str) -> None:
    where = ["--storage", store, "--max-tokens", "8"]
    streamed = run("generate", "Habari", "--language", "sw", "--temperature", "0", *where)
    assert streamed.exit_code == 0, streamed.stderr
    answer = json.loads(run("generate", "-", "--model", "text-sw@2", "--json", *where, input="Habari").stdout)
    assert streamed.stdout == answer["text"] + "\n"
    assert (answer["adapter"], answer["base"], answer["language"]) == ("text-sw@2", "debug-text", "sw")
    base = json.loads(run("generate", "Habari", "--model", "debug", "--json", *where).stdout)
    assert base["adapter"] is None
    assert base["text"] != answer["text"]


def test_generate_with_an_unknown_model(store: str) -> None:
    fails(2, "Did you mean 'text-sw'", "generate", "hi", "--model", "text-ws", "--storage", store)
    fails(2, "no adapter of the task 'text' serves 'ka'", "generate", "hi", "--language", "ka", "--storage", store)


def test_storage_flag_beats_variable(store: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("KAULI_STORAGE", store)
    assert "text-sw@2" in run("adapters", "list").stdout
    assert run("adapters", "list", "--storage", str(tmp_path)).stdout == ""


def test_train_prints_the_contract(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    from kauli.training.evaluation.results import Verdict

    seen: dict[str, Any] = {}

    def train(recipe: Any, storage: str, **options: Any) -> Any:
        seen.update(recipe=recipe, storage=storage, **options)
        verdict = Verdict(True, "text-ka@1 is better.")
        return SimpleNamespace(
            adapter="text-ka@1", path=tmp_path, metrics={"bits_per_byte": 2.5}, aliases=["latest"], verdict=verdict
        )

    monkeypatch.setattr("kauli.training.train.train", train)
    words = ["train", "text-sw", "--set", "language=ka", "--set", "name=text-ka", "--storage", str(tmp_path)]
    result = run(*words, "--json")
    assert json.loads(result.stdout) == {
        "adapter": "text-ka@1", "path": str(tmp_path), "metrics": {"bits_per_byte": 2.5}, "aliases": ["latest"],
        "verdict": {"better": True, "text": "text-ka@1 is better."},
    }  # fmt: skip
    assert (list(seen["recipe"].language), seen["recipe"].name) == (["ka"], "text-ka")
    assert seen["storage"] == str(tmp_path)
    first, second = run(*words).stdout.splitlines()
    assert first.startswith("text-ka@1 (latest)")
    assert second == "text-ka@1 is better."


@pytest.mark.parametrize("error", [OSError(28, "No space left on device", "/a"), PermissionError(13, "Denied", "/x")])
def test_a_full_or_forbidden_disk_is_one_error(error: OSError, monkeypatch: pytest.MonkeyPatch) -> None:
    def train(*words: Any, **options: Any) -> Any:
        raise error

    monkeypatch.setattr("kauli.training.train.train", train)
    fails(1, f"error: {error.strerror}: {error.filename}", "train", "text-sw")


def test_interrupt_is_130(monkeypatch: pytest.MonkeyPatch) -> None:
    def train(*words: Any, **options: Any) -> Any:
        raise KeyboardInterrupt

    monkeypatch.setattr("kauli.training.train.train", train)
    assert run("train", "text-sw").exit_code == 130
