"""Engines on debug bases with adapters of random weights, requests, their answers, and what transformers answers."""

import random
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import LoraConfig
from safetensors.torch import load_file, save_file
from transformers import AutoTokenizer

from kauli.models.adapters.delta import LinearDelta
from kauli.models.bases.find import find_base
from kauli.models.engine.detokenize import TokenBytes
from kauli.models.engine.engine import Engine
from kauli.models.engine.lora_batch import LoraBatch
from kauli.models.engine.sampling import Sampling
from kauli.models.engine.ticket import Generation, Ticket
from kauli.models.requests import TokenLogprob
from support.random_adapters import EVERY, fresh, peft_model, save_adapter

BASES = ["debug", "debug-gemma", "debug-qwen"]
ENDS = frozenset({0, 2})


@dataclass
class Served:
    """A base and the adapters that a test may load into it."""

    base: str
    folders: dict[str, Path]
    model: Any
    lora: LoraBatch
    terms: dict[str, dict[str, LinearDelta]]

    def engine(self, ends: frozenset[int] = ENDS, **options: Any) -> Engine:
        return Engine(self.model, token_bytes(), ends, self.lora, **options)


@cache
def token_bytes() -> TokenBytes:
    return TokenBytes(AutoTokenizer.from_pretrained(find_base("debug").folder))


def save_adapters(tmp_path_factory: pytest.TempPathFactory) -> dict[str, dict[str, Path]]:
    """By base the folders of its adapters."""
    kinds = {
        "a": {"r": 4, "target_modules": EVERY},
        "b": {"r": 9, "target_modules": ["q_proj", "down_proj"]},
        "c": {"r": 2, "target_modules": ["v_proj", "up_proj", "lm_head"], "use_dora": True},
    }
    found: dict[str, dict[str, Path]] = {}
    for base in BASES:
        found[base] = {}
        for seed, (key, kind) in enumerate(kinds.items()):
            folder = tmp_path_factory.mktemp(f"{base}-{key}")
            found[base][key] = save_adapter(folder, base, LoraConfig(lora_alpha=8, **kind), seed)  # type: ignore[arg-type]
    tensors = load_file(found["debug"]["a"] / "adapter_model.safetensors")
    tensors[sorted(tensors)[0]][0, 0] = float("nan")
    broken = found["debug"]["broken"] = tmp_path_factory.mktemp("broken")
    (broken / "adapter_config.json").write_text((found["debug"]["a"] / "adapter_config.json").read_text())
    save_file(tensors, broken / "adapter_model.safetensors")
    return found


def serve(folders: dict[str, dict[str, Path]], base: str = "debug", loaded: Iterable[str] = ()) -> Served:
    model = fresh(base)
    lora = LoraBatch(model, 4)
    terms = {key: lora.read(folder) for key, folder in folders[base].items()}
    for key in loaded:
        lora.add(key, terms[key])
    return Served(base, folders[base], model, lora, terms)


@dataclass
class Answer:
    """What came of a request."""

    text: str = ""
    finish: str | None = None
    logprobs: list[TokenLogprob] = field(default_factory=list)
    tokens: list[int] = field(default_factory=list)


def step(engine: Engine, answers: dict[Ticket, Answer]) -> None:
    for ticket, progress in engine.step():
        answer = answers.setdefault(ticket, Answer())
        assert answer.finish is None
        assert "\ufffd" not in progress.text
        answer.text += progress.text
        answer.finish = progress.finish
        answer.logprobs += progress.logprobs
        answer.tokens = list(ticket.answer)


def drain(engine: Engine, answers: dict[Ticket, Answer] | None = None) -> dict[Ticket, Answer]:
    answers = {} if answers is None else answers
    while engine.busy:
        step(engine, answers)
    assert engine.step() == []
    assert all(answer.finish for answer in answers.values())
    return answers


def ask(engine: Engine, generations: Sequence[Generation]) -> list[Answer]:
    tickets = [engine.submit(generation) for generation in generations]
    answers = drain(engine)
    return [answers[ticket] for ticket in tickets]


def prompt(length: int, seed: int = 0) -> list[int]:
    return random.Random(1000 * seed + length).choices(range(3, 259), k=length)


def greedy(length: int, adapter: str | None = None, max_tokens: int = 20, seed: int = 0) -> Generation:
    """A request that never ends early."""
    return Generation([prompt(length, seed)], adapter, max_tokens, Sampling(ignore_eos=True))


def of_transformers(base: str, folder: Path | None, generation: Generation) -> list[int]:
    """The tokens that transformers' own generation gives, with PEFT's own model."""
    ids = torch.tensor(generation.prompt)
    found = peft_model(base, folder).generate(
        input_ids=ids, attention_mask=torch.ones_like(ids), max_new_tokens=generation.max_tokens, do_sample=False,
        suppress_tokens=sorted(ENDS), eos_token_id=None, pad_token_id=0,
    )  # fmt: skip
    tokens: list[int] = found[0, ids.shape[1] :].tolist()
    return tokens
