"""What several test files share: a store with adapters of random weights that change every answer."""

from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import torch
from peft import LoraConfig, get_peft_model
from transformers import AutoModelForCausalLM

from kauli.models.adapters.peft_import import from_peft
from kauli.models.adapters.registry import Registry
from kauli.models.bases.find import Base, find_base

Publish = Callable[[Path, str, str, int], str]


def publish_random(storage: Path, name: str, language: str, seed: int, base: Base) -> str:
    """An adapter with random weights that change every answer; returns its spec."""
    scratch = storage / "scratch" / f"{name}-{seed}"
    torch.manual_seed(seed)
    model = get_peft_model(
        AutoModelForCausalLM.from_pretrained(base.folder), LoraConfig(r=4, target_modules=["q_proj", "v_proj"])
    )
    with torch.no_grad():
        for key, parameter in model.named_parameters():
            if "lora_B" in key:
                parameter.normal_(std=1.0)
    model.save_pretrained(scratch / "plain")
    card = from_peft(
        scratch / "plain", scratch / "ours", name=name, language=language.split(","), base=base, accept_base=True
    )
    return Registry(str(storage)).publish(scratch / "ours", card).spec


@pytest.fixture(scope="session")
def publish() -> Publish:
    """Publishes an adapter of random weights on the debug base: (store, name, languages, seed) -> its spec."""
    return lambda storage, name, language, seed: publish_random(storage, name, language, seed, find_base("debug"))


@pytest.fixture(scope="module")
def storage(publish: Publish, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("KAULI_HOME", str(tmp_path_factory.mktemp("home")))
        folder = tmp_path_factory.mktemp("store")
        patch.setenv("KAULI_STORAGE", str(folder))
        publish(folder, "text-sw", "sw", 1)
        publish(folder, "text-sw", "sw", 2)
        publish(folder, "text-be", "be", 3)
        publish(folder, "text-many", "am,ky,be", 4)
        yield folder
