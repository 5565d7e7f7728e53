"""Text adapters of random weights on a debug base, for tests."""

from pathlib import Path
from typing import Any

import torch
from peft import LoraConfig, get_peft_model
from transformers import AutoModelForCausalLM

from kauli.models.adapters.card import BaseReference, Card, Prompting, TranslationReference
from kauli.models.adapters.folder import PROMPTS, write_card
from kauli.models.adapters.peft_import import from_peft
from kauli.models.adapters.registry import Registry
from kauli.models.bases.find import Base


def publish_translator(storage: Path, name: str, language: str, base: Base) -> str:
    """A translate adapter with random weights, between English and a language; returns its spec."""
    pairs = [("en", language), (language, "en")]
    changes = {"task": "translate", "translation": TranslationReference(pairs=pairs)}
    return publish_random(storage, name, language, 5, base, **changes)


def publish_prompt(storage: Path, name: str, language: str, base: Base, prompting: Prompting) -> str:
    """A prompt without weights, between English and a language; returns its spec."""
    folder = storage / "scratch" / name
    folder.mkdir(parents=True)
    (folder / PROMPTS).write_text("[]")
    reference = TranslationReference(pairs=[("en", language), (language, "en")], prompting=prompting)
    card = Card(
        name=name, task="translate", language=[language], base=BaseReference.of(base), method={"kind": "prompt"},
        licence=base.licence, translation=reference,
    )  # fmt: skip
    return Registry(str(storage)).publish(folder, write_card(folder, card)).spec


def publish_random(
    storage: Path, name: str, language: str, seed: int, base: Base, lora: LoraConfig | None = None, **changes: Any
) -> str:
    """An adapter with random weights that change every answer; returns its spec. `changes` are of its card."""
    scratch = storage / "scratch" / f"{name}-{seed}"
    torch.manual_seed(seed)
    lora = lora or LoraConfig(r=4, target_modules=["q_proj", "v_proj"])
    model = get_peft_model(AutoModelForCausalLM.from_pretrained(base.folder), lora)
    with torch.no_grad():
        for key, parameter in model.named_parameters():
            if "lora_B" in key:
                parameter.normal_(std=1.0)
    model.save_pretrained(scratch / "plain")
    card = from_peft(
        scratch / "plain", scratch / "ours", name=name, language=language.split(","), base=base, accept_base=True
    )
    card = write_card(scratch / "ours", card.model_copy(update=changes)) if changes else card
    return Registry(str(storage)).publish(scratch / "ours", card).spec
