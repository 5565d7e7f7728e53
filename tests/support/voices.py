"""Voice adapters of random weights on the debug voice, for tests."""

from pathlib import Path

import torch

from kauli.models.adapters.card import BaseReference, Card
from kauli.models.adapters.kinds.lora import Lora
from kauli.models.adapters.registry import Registry
from kauli.models.bases.find import find_base
from kauli.models.speech.vits_training import TrainableVoice

TEXTS = {"sw": "Habari za asubuhi.", "be": "Добры дзень, сябры."}


def trained_voice(language: str = "sw", seed: int = 1) -> TrainableVoice:
    """A voice in training whose adapter changes every sentence."""
    voice = TrainableVoice.load(find_base("debug", task="speak"), device="cpu")
    voice.learn_sounds([(TEXTS[language], language)], [language])
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        voice.attach(Lora(rank=4, alpha=8, targets=("q_proj", "v_proj", "conv_1", "conv_2", "project")))
        with torch.no_grad():
            for name, parameter in voice.trained.named_parameters():
                if "lora_B" in name or name.endswith("rows"):
                    parameter.add_(0.3 * torch.randn(parameter.shape))
            assert voice._durations is not None
            voice._durations.out.bias.fill_(1.0)  # some three frames a symbol
    return voice


def publish_voice(storage: Path, name: str, language: str = "sw", seed: int = 1) -> str:
    """Such an adapter in a registry; returns its spec."""
    folder = storage / "scratch" / f"{name}-{seed}"
    trained_voice(language, seed).save(folder)
    (folder / "README.md").unlink(missing_ok=True)
    card = Card(
        name=name, task="speak", language=[language], base=BaseReference.of(find_base("debug", task="speak")),
        method={"kind": "lora"}, licence="CC0-1.0",
    )  # fmt: skip
    return Registry(str(storage)).publish(folder, card).spec
