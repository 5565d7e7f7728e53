"""Folders of other people's PEFT: what is served, what is left out, and what is refused with a way out."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import LoraConfig, get_peft_model
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM

from kauli.models.adapters.folder import ADAPTER_CONFIG, ADAPTER_WEIGHTS
from kauli.models.adapters.peft_import import from_peft
from kauli.models.bases.find import Base, find_base
from kauli.models.errors import KauliError, UsageError
from kauli.models.requests import TextRequest
from kauli.models.text.task import TextTask

pytestmark = pytest.mark.filterwarnings("ignore::UserWarning")  # PEFT on tied output layers and saved embeddings


@pytest.fixture(autouse=True, scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("KAULI_HOME", str(tmp_path_factory.mktemp("home")))
        yield


def trained(base: Base, folder: Path, tokens: int = 0, **settings: Any) -> Any:
    """An adapter in `folder` as PEFT saves it by default, and its model; `tokens` are added to the vocabulary."""
    torch.manual_seed(7)
    model = AutoModelForCausalLM.from_pretrained(base.folder)
    if tokens:
        model.resize_token_embeddings(model.config.vocab_size + tokens)
    defaults: dict[str, Any] = {"r": 4, "target_modules": ["q_proj"], "task_type": "CAUSAL_LM"}
    adapted = get_peft_model(model, LoraConfig(**defaults | settings))
    with torch.no_grad():
        for name, parameter in adapted.named_parameters():
            if "lora_B" in name or "lora_embedding_B" in name:
                parameter.normal_(std=0.3)
    adapted.eval().save_pretrained(str(folder))
    return adapted


def added(folder: Path, base: Base, name: str = "mine") -> Path:
    from_peft(folder, folder.parent / "ours", name=name, language="sw", base=base, accept_base=True)
    return folder.parent / "ours"


@pytest.mark.parametrize("name", ["debug", "debug-qwen"])
def test_lora_on_the_output_layer_is_served_as_peft_computes_it(name: str, tmp_path: Path) -> None:
    base = find_base(name)
    model = trained(base, tmp_path / "plain", target_modules=["q_proj", "lm_head"])
    saved = load_file(tmp_path / "plain" / ADAPTER_WEIGHTS)
    assert any(key.endswith("lm_head.base_layer.weight") for key in saved)  # PEFT saves the base's own along
    ours = added(tmp_path / "plain", base)
    assert load_file(ours / ADAPTER_WEIGHTS).keys() == {key for key in saved if "lora_" in key}
    task = TextTask.load(base, dtype=torch.float32)
    task.add_adapter("mine@1", ours)
    request = TextRequest.of_prompt("Habari?", max_tokens=16, ignore_eos=True)
    prompt = torch.tensor([task.prompt_tokens(request)])
    with torch.no_grad():
        tokens = model.generate(
            input_ids=prompt, attention_mask=torch.ones_like(prompt), max_new_tokens=16, min_new_tokens=16,
            do_sample=False,
        )  # fmt: skip
    expected = str(task.tokenizer.decode(tokens[0, prompt.shape[1] :], skip_special_tokens=True))
    assert "".join(chunk.text for step in task.generate([request], ["mine@1"]) for chunk in step) == expected.replace(
        "\ufffd", ""
    )


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({"modules_to_save": ["lm_head"]}, r"modules_to_save=\['lm_head'\] can't be served"),
        ({"trainable_token_indices": [1, 2, 3]}, "trainable_token_indices"),
        ({"target_modules": ["q_proj", "embed_tokens"]}, r"changes 'model.embed_tokens', which is no linear layer"),
        ({"tokens": 3}, r"new or trained embeddings \(.*: 26\d x 64, in the base 25\d x 64"),
    ],
)
def test_more_than_linear_layers_is_refused_with_a_way_out(settings: Any, said: str, tmp_path: Path) -> None:
    base = find_base("debug")
    trained(base, tmp_path / "plain", **settings)
    with pytest.raises(KauliError, match=said) as refused:
        added(tmp_path / "plain", base)
    assert "merge_and_unload" in str(refused.value)
    assert not (tmp_path / "ours").exists()


def test_a_trained_embedding_is_not_taken_for_the_bases_own(tmp_path: Path) -> None:
    base = find_base("debug")
    trained(base, tmp_path / "plain", target_modules=["lm_head"])
    weights = load_file(tmp_path / "plain" / ADAPTER_WEIGHTS)
    next(value for key, value in weights.items() if "base_layer" in key)[3, 5] += 0.01
    save_file(weights, tmp_path / "plain" / ADAPTER_WEIGHTS)
    with pytest.raises(KauliError, match="new or trained embeddings"):
        added(tmp_path / "plain", base)


def test_a_checkpoint_of_trainer_is_taken_without_its_other_files(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    base = find_base("debug")
    folder = tmp_path / "checkpoint-500"
    trained(base, folder)
    others = ("optimizer.pt", "scheduler.pt", "rng_state.pth", "rng_state_0.pth", "training_args.bin")
    for name in others:
        (folder / name).write_bytes(b"no pickle: whoever opens it fails")
    (folder / "trainer_state.json").write_text("{}")
    assert sorted(path.name for path in added(folder, base).iterdir()) == [
        "README.md", ADAPTER_CONFIG, ADAPTER_WEIGHTS, "card.json",
    ]  # fmt: skip
    assert "left out" in capsys.readouterr().err
    (folder / "adapter_model.bin").write_bytes(b"")
    with pytest.raises(KauliError, match=r"adapter_model\.bin is refused"):
        added(folder, base)


@pytest.mark.parametrize("library", ["transformers.models.llama.modeling_llama", "unsloth.models.llama", None])
def test_the_classes_that_auto_mapping_names_are_not_imported(library: str | None, tmp_path: Path) -> None:
    base = find_base("debug")
    trained(base, tmp_path / "plain")
    path = tmp_path / "plain" / ADAPTER_CONFIG
    mapping = {"base_model_class": "LlamaForCausalLM", "parent_library": library}
    path.write_text(json.dumps(json.loads(path.read_text()) | {"auto_mapping": mapping}))
    assert json.loads((added(tmp_path / "plain", base) / ADAPTER_CONFIG).read_text())["auto_mapping"] is None


@pytest.mark.parametrize("name", ["text", "transcribe", "embed", "translate", "smollm2-135m-q4", "debug", "debug-mine"])
def test_names_of_tasks_and_bases_are_no_names_of_adapters(name: str, tmp_path: Path) -> None:
    base = find_base("debug")
    trained(base, tmp_path / "plain")
    with pytest.raises(UsageError, match=f"can't be called '{name}'"):
        added(tmp_path / "plain", base, name)
