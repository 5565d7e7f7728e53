"""Odd adapter folders as people have them: published and usable, or refused in one sentence, with nothing published."""

import json
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import LoraConfig, get_peft_model
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM

from kauli.models.adapters.folder import ADAPTER_CONFIG, ADAPTER_WEIGHTS
from kauli.models.adapters.registry import Registry
from kauli.models.bases.find import find_base
from support.cli import fails, run

Change = Callable[[Path], object]
LFS = "version https://git-lfs.github.com/spec/v1\noid sha256:4d7a\nsize 12345\n"

pytestmark = pytest.mark.filterwarnings("ignore::UserWarning")  # PEFT on the name of the base


@pytest.fixture(autouse=True, scope="module")
def plain(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """An adapter as PEFT saves it, which the tests change."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("KAULI_HOME", str(tmp_path_factory.mktemp("home")))
        base = find_base("debug")
        model = AutoModelForCausalLM.from_pretrained(base.folder)
        adapted = get_peft_model(model, LoraConfig(r=4, target_modules=["q_proj", "v_proj"]))
        with torch.no_grad():
            for name, parameter in adapted.named_parameters():
                if "lora_B" in name:
                    parameter.normal_(std=0.3)
        folder = tmp_path_factory.mktemp("plain") / "adapter"
        adapted.save_pretrained(str(folder))
        configure(base_model_name_or_path=base.reference)(folder)
        yield folder


def configure(**changes: Any) -> Change:
    def change(folder: Path) -> None:
        path = folder / ADAPTER_CONFIG
        path.write_text(json.dumps(json.loads(path.read_text()) | changes))

    return change


def weigh(what: Callable[[dict[str, torch.Tensor]], dict[str, torch.Tensor]]) -> Change:
    def change(folder: Path) -> None:
        save_file(what(load_file(folder / ADAPTER_WEIGHTS)), folder / ADAPTER_WEIGHTS, metadata={"format": "pt"})

    return change


def each(what: Callable[[torch.Tensor], torch.Tensor]) -> Change:
    return weigh(lambda tensors: {key: what(value).contiguous() for key, value in tensors.items()})


def write(name: str, content: str | bytes) -> Change:
    return lambda folder: (folder / name).write_bytes(content.encode() if isinstance(content, str) else content)


def rewrite(name: str, change: Callable[[bytes], bytes]) -> Change:
    return lambda folder: (folder / name).write_bytes(change((folder / name).read_bytes()))


def move_inside(folder: Path) -> None:
    (folder / "sw").mkdir()
    for path in [path for path in folder.iterdir() if path.is_file()]:
        path.rename(folder / "sw" / path.name)


def odd(plain: Path, folder: Path, change: Change) -> list[str]:
    """The words of the command that adds the changed adapter."""
    shutil.copytree(plain, folder / "mine")
    change(folder / "mine")
    words = ["adapters", "add", str(folder / "mine"), "--name", "mine", "--language", "sw", "--base", "debug"]
    return [*words, "--storage", str(folder / "store")]


@pytest.mark.parametrize(
    ("change", "told"),
    [
        (rewrite(ADAPTER_CONFIG, lambda content: b"\xef\xbb\xbf" + content), ""),
        (rewrite(ADAPTER_CONFIG, lambda content: content.decode().encode("utf-16")), ""),
        (configure(target_modules=".*(q|v)_proj"), ""),
        (configure(task_type="banana", future_option=True, peft_version="9.0"), ""),
        (each(torch.Tensor.half), ""),
        (each(torch.Tensor.double), ""),
        (each(lambda value: value.to(torch.float8_e4m3fn)), ""),
        (weigh(lambda tensors: {key: value * ("lora_A" in key) for key, value in tensors.items()}), "is untrained"),
        (write("README.md", b"---\nlicense: \xff\n---\n"), ""),
        (write("README.md", "---\nlicense: [a\n---\n"), "metadata that is not YAML: its licence is not read"),
        (write("tokenizer.json", "{}"), "left out, as an adapter does not need them: tokenizer.json"),
        (write("mine.gguf", "GGUF"), "left out, as an adapter does not need them: mine.gguf"),
        (lambda folder: (folder / "loop").symlink_to("."), ""),
    ],
)
def test_it_is_published(plain: Path, tmp_path: Path, change: Change, told: str) -> None:
    result = run(*odd(plain, tmp_path, change))
    assert result.exit_code == 0, result.stderr
    assert told in result.stderr
    folder = Registry(str(tmp_path / "store")).fetch("mine@1")
    assert load_file(folder / ADAPTER_WEIGHTS).keys() == load_file(plain / ADAPTER_WEIGHTS).keys()


@pytest.mark.parametrize(
    ("change", "code", "words"),
    [
        (write(ADAPTER_WEIGHTS, LFS), 1, "it is a pointer of Git LFS, fetch the file itself by git lfs pull"),
        (write(ADAPTER_CONFIG, "<!DOCTYPE html>"), 1, "adapter_config.json is not readable JSON"),
        (write(ADAPTER_CONFIG, ""), 1, "adapter_config.json is not readable JSON"),
        (write(ADAPTER_CONFIG, "[]"), 1, "is not a configuration of peft: it has no 'peft_type'"),
        (move_inside, 1, "mine has no adapter_config.json: it is not an adapter that peft's `save_pretrained` wrote."),
        (lambda folder: (folder / ADAPTER_WEIGHTS).rename(folder / "model.safetensors"), 1, "no adapter_model"),
        (configure(r="4"), 1, "adapter_config.json: r is '4': a finite number other than 0 is needed"),
        (configure(r=8), 1, "q_proj.lora_A.weight is 4 x 64, but debug-text needs 8 x 64"),
        (configure(lora_alpha=None), 1, "lora_alpha is None: a finite number other than 0 is needed"),
        (configure(lora_alpha=float("nan")), 1, "lora_alpha is nan: a finite number"),
        (configure(lora_alpha=0), 1, "lora_alpha is 0: a finite number other than 0"),
        (configure(target_modules=".*(q|v_proj"), 1, "does not fit debug-text: missing ), unterminated subpattern"),
        (configure(target_modules="all-linear"), 1, "mlp.down_proj.lora_A.weight is missing (20 tensors missing"),
        (configure(target_modules=[]), 1, "does not fit debug-text: No `target_modules` passed"),
        (configure(peft_type="Lora"), 1, "adapters of the kind Lora cannot be applied; LORA and IA3"),
        (configure(base_model_name_or_path=None), 2, "does not state on which base it was made; --base is kauli/debug"),
        (
            configure(base_model_name_or_path="/home/me/llama"),
            2,
            "made on '/home/me/llama'; --base is kauli/debug-text",
        ),
        (each(lambda value: (value * 10).to(torch.int8)), 1, "is torch.int8: save the adapter in float, not quantised"),
        (each(lambda value: value * float("inf")), 1, "holds numbers that are not finite; the training diverged"),
        (each(lambda value: value.T), 1, "q_proj.lora_A.weight is 64 x 4, but debug-text needs 4 x 64"),
        (weigh(lambda tensors: {}), 1, "8 tensors missing, 0 too many"),
        (weigh(lambda tensors: dict(list(tensors.items())[:3])), 1, "5 tensors missing, 0 too many"),
        (weigh(lambda tensors: {key.split("model.", 2)[2]: one for key, one in tensors.items()}), 1, "8 too many"),
        (weigh(lambda tensors: tensors | {"more": torch.zeros(3)}), 1, "there is no place for more"),
        (rewrite(ADAPTER_WEIGHTS, lambda content: content[:-10]), 1, "is not a sound safetensors file"),
        (rewrite(ADAPTER_WEIGHTS, lambda content: content + b"x" * 10), 1, "is not a sound safetensors file"),
        (write("train.py", "print()"), 1, "train.py is refused: .py files can run code"),
        (lambda folder: shutil.rmtree(folder), 2, "mine is not a folder: give one that peft's `save_pretrained` wrote"),
    ],
)
def test_it_is_refused_in_a_sentence(plain: Path, tmp_path: Path, change: Change, code: int, words: str) -> None:
    fails(code, words, *odd(plain, tmp_path, change))
    assert not (tmp_path / "store").exists()


def test_the_folder_that_was_meant_is_named(plain: Path, tmp_path: Path) -> None:
    fails(1, f"There is one in {tmp_path / 'mine' / 'sw'}.", *odd(plain, tmp_path, move_inside))


@pytest.mark.parametrize(
    ("option", "value", "words"),
    [
        ("--name", "My Adapter", "'My Adapter' is no adapter name: 1 to 64 characters of a-z, 0-9"),
        ("--name", "../up", "'../up' is no adapter name"),
        ("--name", "mine@1", "'mine@1' is no adapter name"),
        ("--name", "text", "an adapter can't be called 'text', the name of a task: choose another name"),
        (
            "--language",
            "Swahili",
            "unknown language 'Swahili': give a BCP-47 tag such as sw, am or be. Did you mean 'sw'?",
        ),
        ("--language", " , ", "--language is empty"),
        ("--base", "debug-clip", "The base 'debug-clip' is for the task align, not 'text'"),
        ("--base", "smollm", "Unknown base 'smollm'. Did you mean 'smollm2-135m-q4'?"),
    ],
)
def test_odd_options(plain: Path, tmp_path: Path, option: str, value: str, words: str) -> None:
    fails(2, words, *odd(plain, tmp_path, lambda _folder: None), option, value)
    assert not (tmp_path / "store").exists()
