"""Each task on its debug base: an adapter is saved, loaded and mixed in a batch, and leaves the base as it was."""

import pickle
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors import safe_open
from torch import Tensor
from torch.nn import functional

from kauli.models.adapters.kinds.full import Full
from kauli.models.adapters.kinds.lora import Lora
from kauli.models.adapters.kinds.projection import Projection
from kauli.models.adapters.kinds.table import kinds_of
from kauli.models.bases.find import find_base
from kauli.models.metrics import METRICS
from kauli.models.requests import Media, TextRequest, TranscriptionRequest
from kauli.models.tasks import TASKS, Task, load_served, load_trainable, resolve, task_of
from kauli.models.text.connector import PartSettings

WORDS = ("moto", "maji", "mti", "jua", "mto", "bahari", "upepo", "mvua")
PARTS = {"image": PartSettings(encoder="made-up", sha256="0" * 64, width=24, places=3, grid=1, inner=16)}
TRAINED = [row.name for row in TASKS.values() if row.trainable]
METHODS = {name: Projection() if name == "align" else Lora(rank=4, targets="all-linear") for name in TRAINED}


def features(seed: int) -> tuple[Media, ...]:
    """Features as an encoder might make them of an image."""
    return (Media("image", torch.randn(3, 24, generator=torch.Generator().manual_seed(seed)).numpy()),)


def tone(pitch: int) -> Any:
    """Half a second of audio."""
    times = np.arange(8000 + 320 * pitch) / 16_000
    return (0.3 * np.sin(2 * np.pi * 200 * (pitch + 1) * times)).astype(np.float32)


def requests_of(name: str, rows: list[dict[str, Any]]) -> list[Any]:
    if name == "transcribe":
        return [TranscriptionRequest(row["samples"], "be", max_tokens=12) for row in rows[:3]]
    return [TextRequest.of_prompt(row["prompt"], row.get("media", ()), max_tokens=12) for row in rows[:3]]


@pytest.fixture
def rows() -> dict[str, list[dict[str, Any]]]:
    """Examples of each task."""
    colours = ("red", "blue", "green", "yellow", "black", "orange", "purple", "pink")
    return {
        "text": [{"prompt": f"say {word}", "text": word * 3} for word in WORDS],
        "translate": [{"prompt": f"English: {word}\nSwahili:", "text": word * 3} for word in WORDS],
        "describe": [{"prompt": "what?", "text": word * 3, "media": features(at)} for at, word in enumerate(WORDS)],
        "transcribe": [{"samples": tone(at), "text": word, "language": "be"} for at, word in enumerate(WORDS)],
        "speak": [{"text": word} for word in WORDS],
        "align": [
            {"image": Image.new("RGB", (32, 32), colour), "text": word}
            for word, colour in zip(WORDS, colours, strict=True)
        ],
    }


def trainable(name: str, rows: list[dict[str, Any]], kind: Any) -> Any:
    """A task on its debug base with an adapter of this kind attached, whose weights are as if it had learned."""
    task = load_trainable(name, find_base("debug", task=name), device="cpu")
    torch.manual_seed(0)
    if name == "describe":
        task.add_connector(PARTS, rows)
    if name == "transcribe":
        task.add_languages(["be"], {})
    if name == "speak":
        task.learn_sounds([(row["text"], "be") for row in rows], ["be"])
    task.attach(kind)
    with torch.no_grad():
        for one in task.trained.parameters():
            if one.requires_grad:
                one.add_(0.05 * torch.randn_like(one))
    return task


def answers(task: Any, requests: list[Any], adapters: list[str | None]) -> list[str]:
    texts = [""] * len(requests)
    for chunks in task.generate(requests, adapters):
        for chunk in chunks:
            texts[chunk.row] += chunk.text
    return texts


@pytest.mark.parametrize("name", [name for name in TRAINED if name != "speak"])  # see test_vits_adapter
def test_the_surface_of_a_task(name: str, rows: dict[str, list[dict[str, Any]]], tmp_path: Path) -> None:
    task = trainable(name, rows[name], METHODS[name])
    task.save(tmp_path / "adapter")
    if name == "align":
        found = task.trained.text(task.text_features(WORDS)).detach()
        trained: Any = functional.normalize(found, dim=-1)
    else:
        trained = sum(bits for bits, _ in task.current_bits(rows[name]))

    for loaded in (task.served(), load_served(name, find_base("debug", task=name), device="cpu")):
        loaded.add_adapter("mine@1", tmp_path / "adapter")
        assert loaded.adapters() == ["mine@1"]
        if name == "align":
            together = loaded.embed_texts(WORDS, "mine@1")
            torch.testing.assert_close(together, trained, atol=1e-5, rtol=1e-4)
            torch.testing.assert_close(loaded.embed_texts(WORDS[3:4], "mine@1"), together[3:4], atol=1e-5, rtol=1e-4)
            assert not torch.allclose(loaded.embed_texts(WORDS), together, atol=1e-2)
        else:
            scored = sum(bits for bits, _ in loaded.bits(rows[name], "mine@1"))
            assert scored == pytest.approx(trained, rel=1e-5)
            requests = pickle.loads(pickle.dumps(requests_of(name, rows[name])))
            keys: list[str | None] = ["mine@1", "mine@1" if name == "describe" else None, "mine@1"]
            mixed = answers(loaded, requests, keys)
            assert mixed == [answers(loaded, [one], [key])[0] for one, key in zip(requests, keys, strict=True)]
        loaded.remove_adapter("mine@1")
        assert loaded.adapters() == []


def weights(task: Any) -> dict[str, Tensor]:
    """All of a served base's."""
    if hasattr(task, "model"):
        return dict(task.model.state_dict())
    return {**{f"towers.{name}": value for name, value in task._towers.state_dict().items()}, **task.bare.tensors()}


@pytest.mark.parametrize(
    ("name", "kind"), [*METHODS.items(), ("text", Full()), ("describe", Full()), ("transcribe", Full())]
)
def test_the_base_is_served_after_training_as_it_was_loaded(
    name: str, kind: Any, rows: dict[str, list[dict[str, Any]]], monkeypatch: pytest.MonkeyPatch
) -> None:
    task = trainable(name, rows[name], kind)
    opened: list[Path] = []
    monkeypatch.setattr("transformers.modeling_utils.safe_open", counted(opened), raising=True)
    served = task.served()
    assert bool(opened) == isinstance(kind, Full)  # other kinds leave the base's weights alone: they are not read anew
    monkeypatch.undo()
    ours, fresh = weights(served), weights(load_served(name, find_base("debug", task=name), device="cpu"))
    assert ours.keys() == fresh.keys()
    assert all(torch.equal(ours[key], fresh[key]) for key in fresh)


def counted(opened: list[Path]) -> Any:
    """`safe_open` that notes which files are opened."""

    def opening(path: Any, *args: Any, **options: Any) -> Any:
        opened.append(Path(path))
        return safe_open(path, *args, **options)

    return opening


def test_a_card_and_its_method_lead_to_a_row() -> None:
    assert task_of("text").name == task_of("text", "lora").name == "text"
    assert task_of("align", "projection").name == "align"
    assert task_of("align", "head").name == "head"
    assert task_of("translate", "lora").name == task_of("translate").name == "translate"
    assert task_of("translate", "prompt").name == "prompt"
    with pytest.raises(KeyError):
        task_of("sing")


@pytest.mark.parametrize("row", TASKS.values(), ids=TASKS)
def test_every_name_in_a_row_leads_somewhere(row: Task) -> None:
    for name in (row.served, row.trainable, row.usage, row.check):
        assert not name or callable(resolve(name))
    assert row.takes in TASKS
    assert {*row.headline, row.validation} - {""} <= METRICS.keys()
    assert bool(kinds_of(row.name)) == bool(row.usage) == bool(row.headline) == bool(row.validation)
    assert find_base("debug", task=row.name).name == row.debug
