"""Each task of the table on its debug base: learns, is saved and loaded, gives each row its own, pickles its parts."""

import io
import pickle
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from kauli.models.adapters.kinds.lora import Lora
from kauli.models.adapters.kinds.projection import Projection
from kauli.models.bases.find import find_base
from kauli.models.requests import Media, TextRequest, TranscriptionRequest
from kauli.models.tasks import TASKS, load_task
from kauli.models.text.connector import PartSettings

WORDS = ("moto", "maji", "mti", "jua", "mto", "bahari", "upepo", "mvua")
PARTS = {"image": PartSettings(encoder="made-up", sha256="0" * 64, width=24, places=3, grid=1, inner=16)}


def picture(seed: int) -> tuple[Media, ...]:
    """Features as an encoder might make them of a picture."""
    return (Media("image", torch.randn(3, 24, generator=torch.Generator().manual_seed(seed)).numpy()),)


def tone(pitch: int) -> Any:
    """Half a second of sound."""
    times = np.arange(8000 + 320 * pitch) / 16_000
    return (0.3 * np.sin(2 * np.pi * 200 * (pitch + 1) * times)).astype(np.float32)


ROWS: dict[str, list[dict[str, Any]]] = {
    "text": [{"prompt": f"say {word}", "text": word * 3} for word in WORDS],
    "describe": [{"prompt": "what?", "text": word * 3, "media": picture(at)} for at, word in enumerate(WORDS)],
    "transcribe": [{"samples": tone(at), "text": word, "language": "be"} for at, word in enumerate(WORDS)],
}
REQUESTS: dict[str, list[Any]] = {
    name: [TextRequest.of_prompt(row["prompt"], row.get("media", ()), max_tokens=12) for row in rows[:3]]
    for name, rows in ROWS.items()
    if name != "transcribe"
}
REQUESTS["transcribe"] = [TranscriptionRequest(row["samples"], "be", max_tokens=12) for row in ROWS["transcribe"][:3]]


def answers(task: Any, requests: list[Any], adapters: list[str | None]) -> list[str]:
    texts = [""] * len(requests)
    for chunks in task.generate(requests, adapters):
        for chunk in chunks:
            texts[chunk.row] += chunk.text
    return texts


@pytest.mark.parametrize("name", [name for name in TASKS if name != "align"])
def test_the_surface_of_a_task(name: str, tmp_path: Path) -> None:
    task = load_task(name, find_base("debug", task=name), device="cpu")
    features = task.encode(ROWS[name])
    batch = pickle.loads(pickle.dumps(task.collate(pickle.loads(pickle.dumps(features)))))
    torch.manual_seed(0)
    if name == "describe":
        task.add_connector(PARTS, ROWS[name])
    if name == "transcribe":
        task.add_languages(["be"], {})
    task.model = Lora(rank=4, targets="all-linear").attach(task.model, task.base.reference)  # type: ignore[arg-type]
    optimizer = torch.optim.AdamW([p for p in task.trained.parameters() if p.requires_grad], lr=0.01)
    losses = []
    for _ in range(30):
        loss = task.loss(batch)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(float(loss.detach()))
    assert losses[-1] < 0.6 * losses[0]
    task.save(tmp_path / "adapter")
    trained = sum(bits for bits, _ in task.current_bits(ROWS[name]))

    loaded = load_task(name, find_base("debug", task=name), device="cpu")
    loaded.add_adapter("mine@1", tmp_path / "adapter")
    scored = sum(bits for bits, _ in loaded.bits(ROWS[name], "mine@1"))
    assert scored == pytest.approx(trained, rel=1e-5)
    requests = pickle.loads(pickle.dumps(REQUESTS[name]))
    keys: list[str | None] = ["mine@1", "mine@1" if name == "describe" else None, "mine@1"]
    together = answers(loaded, requests, keys)
    assert together == [answers(loaded, [request], [key])[0] for request, key in zip(requests, keys, strict=True)]


def test_the_surface_of_align_which_embeds_and_generates_nothing(tmp_path: Path) -> None:
    rows = []
    for word, colour in zip(
        WORDS, ("red", "blue", "green", "yellow", "black", "orange", "purple", "pink"), strict=True
    ):
        content = io.BytesIO()
        Image.new("RGB", (32, 32), colour).save(content, "PNG")
        rows.append({"image": content.getvalue(), "text": word, "group": word})
    base = find_base("debug", task="align")
    task = load_task("align", base, device="cpu")
    batch = pickle.loads(pickle.dumps(task.collate(pickle.loads(pickle.dumps(task.encode(rows))))))
    task.model = Projection().attach(task.model, base.reference)
    optimizer = torch.optim.AdamW([p for p in task.model.parameters() if p.requires_grad], lr=0.01)
    losses = []
    for _ in range(60):
        loss = task.loss(batch)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(float(loss.detach()))
    assert losses[-1] < 0.6 * losses[0]
    task.save(tmp_path / "adapter")
    trained = torch.nn.functional.normalize(task.model.text(task.text_features(WORDS)), dim=-1).detach()

    loaded = load_task("align", base, device="cpu")
    loaded.add_adapter("mine@1", tmp_path / "adapter")
    together = loaded.embed_texts(WORDS, "mine@1")
    torch.testing.assert_close(together, trained, atol=1e-5, rtol=1e-4)
    torch.testing.assert_close(loaded.embed_texts(WORDS[3:4], "mine@1"), together[3:4], atol=1e-5, rtol=1e-4)
    assert not torch.allclose(loaded.embed_texts(WORDS), together, atol=1e-2)
