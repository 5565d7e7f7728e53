"""The debug Whisper: as a task, as transformers loads it, and adapters of random weights on it."""

from pathlib import Path
from typing import Any

import numpy as np
import torch
from peft import LoraConfig, get_peft_model
from transformers import WhisperForConditionalGeneration

from kauli.models.bases.find import find_base
from kauli.models.media.decode import RATE
from kauli.models.speech.whisper import WhisperTask
from kauli.models.speech.whisper_training import TrainableWhisper


def sound(seconds: float, seed: int) -> Any:
    """A tone of its own pitch for each seed, in some noise."""
    times = np.arange(int(seconds * RATE)) / RATE
    noise = np.random.default_rng(seed).normal(size=len(times))
    return (0.3 * np.sin(2 * np.pi * 200 * (seed + 1) * times) + 0.01 * noise).astype(np.float32)


def whisper() -> WhisperTask:
    return WhisperTask.load(find_base("debug", task="transcribe"), device="cpu")


def trainable() -> TrainableWhisper:
    return TrainableWhisper.load(find_base("debug", task="transcribe"), device="cpu")


def reference() -> Any:
    folder = find_base("debug", task="transcribe").folder
    return WhisperForConditionalGeneration.from_pretrained(folder, dtype=torch.float32).eval()


def adapter(folder: Path, seed: int, targets: str = "all-linear") -> Path:
    """A plain PEFT adapter of random weights on encoder and decoder, with the languages that Kauli writes beside it."""
    torch.manual_seed(seed)
    model = get_peft_model(reference(), LoraConfig(r=4, lora_alpha=8, target_modules=targets))
    for name, parameter in model.named_parameters():
        if "lora_B" in name:
            torch.nn.init.normal_(parameter, std=0.3)
    model.save_pretrained(folder)
    (folder / "speech.json").write_text('{"languages": ["be"]}')
    return folder
