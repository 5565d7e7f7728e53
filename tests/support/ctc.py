"""The debug wav2vec 2.0, clips whose letters are tones, functions that learn and transcribe them, and a small MMS."""

import json
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.torch import save_file
from transformers import Wav2Vec2Config, Wav2Vec2ForCTC

from kauli.models.adapters.kinds.attention_adapter import AttentionAdapter
from kauli.models.adapters.kinds.full import Full
from kauli.models.adapters.kinds.lora import Lora
from kauli.models.bases.find import Base, find_base
from kauli.models.requests import TranscriptionRequest
from kauli.models.speech.ctc import CtcTask
from kauli.models.speech.ctc_model import CtcBatch
from kauli.models.speech.ctc_training import TrainableCtc

PITCHES = {letter: 250 * 2 ** (place / 2) for place, letter in enumerate("abdeimoў")}
TEXTS = ("mama ab", "ba dodo", "ami be", "dado mi", "bibi", "eda oma", "mo be ada", "abide mў")
METHODS: dict[str, tuple[Any, float]] = {
    "attention": (AttentionAdapter(), 0.02),
    "lora": (Lora(rank=8, targets="all-linear"), 0.01),
    "full": (Full(), 0.005),
}


def say(text: str) -> Any:
    """Each letter a tone of its own pitch, each space a pause."""
    times = np.arange(800) / 16_000
    parts = [
        np.zeros(1120)
        if letter == " "
        else np.pad(np.sin(2 * np.pi * PITCHES[letter] * times) * np.hanning(800) ** 0.3, (0, 320))
        for letter in text
    ]
    return (0.3 * np.concatenate([np.zeros(400), *parts, np.zeros(400)])).astype(np.float32)


ROWS = [
    {"id": str(at), "group": str(at), "samples": say(text), "text": text, "language": "be"}
    for at, text in enumerate(TEXTS)
]


def load(base: Base) -> CtcTask:
    return CtcTask.load(base, device="cpu")


def trainable(base: Base) -> TrainableCtc:
    return TrainableCtc.load(base, device="cpu")


def mean_loss(task: TrainableCtc, batch: CtcBatch) -> torch.Tensor:
    """Nats per letter."""
    found: torch.Tensor = task.trained(batch).sum() / batch.lengths.sum()
    return found


def fit(task: TrainableCtc, kind: str, steps: int, until: float = 0.0) -> list[float]:
    """Learn the rows, at most until a letter costs so many nats; the losses."""
    method, rate = METHODS[kind]
    torch.manual_seed(0)
    task.attach(method)
    batch = task.collate(task.encode(ROWS))
    parameters = [value for value in task.trained.parameters() if value.requires_grad]
    optimizer = torch.optim.AdamW(parameters, lr=rate, weight_decay=0.0)
    task.trained.train()
    losses: list[float] = []
    while len(losses) < steps and (not losses or losses[-1] > until):
        loss = mean_loss(task, batch)
        optimizer.zero_grad()
        loss.backward()
        assert all(value.grad is not None for value in parameters)  # else several workers could not train it
        torch.nn.utils.clip_grad_norm_(parameters, 1.0)
        optimizer.step()
        losses.append(float(loss.detach()))
    task.trained.eval()
    return losses


def transcribe(task: CtcTask, keys: Sequence[str | None], rows: Sequence[Any] = ROWS) -> list[str]:
    texts = [""] * len(rows)
    for chunks in task.generate([TranscriptionRequest(row["samples"], row["language"]) for row in rows], keys):
        for chunk in chunks:
            texts[chunk.row] += chunk.text
            assert chunk.finish == "stop"
    return texts


def costs(bits: Sequence[tuple[float, int]]) -> list[float]:
    return [cost for cost, _ in bits]


def settings(folder: Path, **changes: Any) -> None:
    content = json.loads((folder / "speech.json").read_text(encoding="utf-8"))
    (folder / "speech.json").write_text(json.dumps({**content, **changes}), encoding="utf-8")


def changed(base: Base, folder: Path, **changes: Any) -> Base:
    """A base of random weights whose configuration differs."""
    shutil.copytree(base.folder, folder, dirs_exist_ok=True)
    config: Any = Wav2Vec2Config.from_pretrained(base.folder, **changes)
    torch.manual_seed(1)
    Wav2Vec2ForCTC(config).save_pretrained(folder)
    return find_base(str(folder), task="transcribe")


def save_mms(base: Base, folder: Path) -> Base:
    """As MMS is laid out: one encoder, for each language a vocabulary and an adapter file, English built in."""
    changed(base, folder, adapter_attn_dim=8, vocab_size=6)
    letters = {"eng": "abde", "swh": "abdeimo"}
    content = {code: {name: at for at, name in enumerate(["<pad>", "|", *text])} for code, text in letters.items()}
    (folder / "vocab.json").write_text(json.dumps(content))
    (folder / "tokenizer_config.json").write_text(json.dumps({"target_lang": "eng"}))
    model: Any = Wav2Vec2ForCTC.from_pretrained(folder)
    for code, vocabulary in content.items():
        model.lm_head = torch.nn.Linear(64, len(vocabulary))
        for value in model._get_adapters().values():
            torch.nn.init.normal_(value, std=0.3)
        save_file({name: value.detach() for name, value in model._get_adapters().items()},
                  folder / f"adapter.{code}.safetensors")  # fmt: skip
    return find_base(str(folder), task="transcribe")
