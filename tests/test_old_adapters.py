"""Adapters that the code before schema 2 published: they load by the registry, and answer as they did then.

`tests/fixtures/adapters/NAME/` is an adapter folder of each task and kind on a debug base, unchanged since it was
published; `answers.json` holds the hashes of its weights and what it answered. Debug bases are drawn anew by a seed.
"""

import hashlib
import io
import json
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from kauli.models.adapters.folder import check_base
from kauli.models.adapters.registry import Registry
from kauli.models.bases.find import find_base
from kauli.models.media.decode import decode_image
from kauli.models.requests import Media, TextRequest, TranscriptionRequest
from kauli.models.speech.audio_tower import AudioTower
from kauli.models.tasks import load_served, task_of
from kauli.models.vision.heads import Head
from kauli.models.vision.image_tower import ImageTower

FIXTURES = Path(__file__).parent / "fixtures" / "adapters"
ANSWERS = json.loads((FIXTURES / "answers.json").read_text(encoding="utf-8"))
COLOURS = ((230, 20, 20), (30, 40, 230), (10, 10, 10))


@pytest.fixture(scope="module")
def registry(tmp_path_factory: pytest.TempPathFactory) -> Registry:
    """A store in which each fixture is version 1 of its name, as it was published."""
    folder = tmp_path_factory.mktemp("store")
    for name in ANSWERS:
        shutil.copytree(FIXTURES / name, folder / "adapters" / name / "1")
    return Registry(str(folder))


def tone(seconds: float, pitch: float) -> Any:
    times = np.arange(int(16_000 * seconds)) / 16_000
    return (0.3 * np.sin(2 * np.pi * pitch * times)).astype(np.float32)


def images() -> list[Any]:
    """Three colours in a little noise."""
    found = []
    for colour in COLOURS:
        pixels = np.tile(np.array(colour, dtype=np.float64), (24, 24, 1))
        pixels += np.random.default_rng(900).normal(0, 12, pixels.shape)
        out = io.BytesIO()
        Image.fromarray(np.clip(pixels, 0, 255).astype(np.uint8)).save(out, "PNG")
        found.append(decode_image(out.getvalue()))
    return found


def generated(task: Any, requests: Sequence[Any]) -> list[str]:
    texts = [""] * len(requests)
    for step in task.generate(requests, ["a"] * len(requests)):
        for chunk in step:
            texts[chunk.row] += chunk.text
    return texts


def answers_of_text(folder: Path, base: Any) -> dict[str, Any]:
    task = load_served("text", base, device="cpu")
    task.add_adapter("a", folder)
    requests = [
        TextRequest.of_prompt(one, max_tokens=16, ignore_eos=True, no_repeat=0) for one in ("sema 3", None, "say")
    ]
    rows = [{"prompt": "sema 3", "text": "moto 3 maji"}, {"prompt": None, "text": "Bahari na upepo."}]
    return {"texts": generated(task, requests), "bits": task.bits(rows, "a")}


def answers_with_media(folder: Path, base: Any, audio: bool) -> dict[str, Any]:
    tower = ImageTower.load(find_base("debug", task="align"), "cpu")
    shown = [Media("image", one.numpy().astype(np.float16)) for one in tower.features(images(), 1)]
    media: list[tuple[Media, ...]] = [(one,) for one in shown]
    if audio:
        encoder = AudioTower.load(find_base("debug", task="transcribe"), "cpu")
        played = [
            Media("audio", one.numpy().astype(np.float16))
            for one in encoder.features([tone(0.6, 300), tone(0.5, 700)], 2)
        ]
        media += [(played[0],), (shown[0], played[1])]
    task = load_served("describe", base, device="cpu")
    task.add_adapter("a", folder)
    prompt = "Describe in Swahili."
    requests = [TextRequest.of_prompt(prompt, media=one, max_tokens=16, ignore_eos=True, no_repeat=0) for one in media]
    rows = [{"prompt": prompt, "text": "nyekundu 1", "media": one} for one in media]
    return {"texts": generated(task, requests), "bits": task.bits(rows, "a")}


def answers_in_one_space(folder: Path, base: Any) -> dict[str, Any]:
    task = load_served("align", base, device="cpu")
    task.add_adapter("a", folder)
    texts = task.embed_texts(["nyekundu 1", "blue 2"], "a")
    return {"images": task.embed_images(images(), "a").tolist(), "texts": texts.tolist()}


def answers_of_a_head(folder: Path, base: Any) -> dict[str, Any]:
    task, head = load_served("head", base, device="cpu"), Head.load(folder)
    return {
        "classes": list(head.classes),
        "images": head.probabilities(task.embed_images(images())).tolist(),
        "texts": head.probabilities(task.embed_texts(["nyekundu", "bluu"])).tolist(),
    }


def answers_of_speech(folder: Path, base: Any, language: str) -> dict[str, Any]:
    task = load_served("transcribe", base, device="cpu")
    task.add_adapter("a", folder)
    clips = [tone(0.6, 500), tone(0.9, 1100)]
    rows = [{"id": str(at), "samples": one, "text": "mama ab", "language": language} for at, one in enumerate(clips)]
    requests = [TranscriptionRequest(one, language, max_tokens=16) for one in clips]
    return {"texts": generated(task, requests), "bits": task.bits(rows, "a")}


@pytest.mark.parametrize("name", ANSWERS)
def test_an_adapter_of_the_former_code_answers_as_it_did(registry: Registry, name: str) -> None:
    card, folder = registry.card(name), registry.fetch(name)
    written = json.loads((FIXTURES / name / "card.json").read_text(encoding="utf-8"))
    assert (written["schema"], card.schema_version) == (1, 2)
    expected = dict(ANSWERS[name])
    for file, sha256 in expected.pop("weights").items():
        assert hashlib.sha256((folder / file).read_bytes()).hexdigest() == sha256
    row = task_of(card.task, card.method["kind"])
    base = find_base(card.base.name, task=card.task)
    check_base(card, base)
    match row.name:
        case "text":
            found = answers_of_text(folder, base)
        case "describe":
            found = answers_with_media(folder, base, audio="audio" in card.encoders)
        case "align":
            found = answers_in_one_space(folder, base)
        case "head":
            found = answers_of_a_head(folder, base)
        case _:
            found = answers_of_speech(folder, base, card.language[0])
    assert found.keys() == expected.keys()
    for key, value in expected.items():
        if isinstance(value[0], str):
            assert list(found[key]) == value, key
        else:
            assert np.allclose(found[key], value, rtol=1e-4, atol=1e-5), key


def test_old_cards_are_upgraded_to_typed_fields(registry: Registry) -> None:
    images, fused = registry.card("describe-image"), registry.card("describe-fused")
    assert {kind: one.base for kind, one in images.encoders.items()} == {"image": "debug-clip"}
    assert {kind: one.base for kind, one in fused.encoders.items()} == {"image": "debug-clip", "audio": "debug-whisper"}
    assert fused.prompt.instruction == "Describe in {language}."
    assert fused.evaluation.max_chars_per_second == 25.0
    speech = registry.card("whisper-lora")
    assert speech.evaluation.base_languages == {"ky": "kk"}
    validation = {name: registry.card(name).validation for name in ANSWERS}
    metrics = {name: one.metric for name, one in validation.items() if one is not None}
    assert metrics["align"] == "one_minus_mrr"
    assert metrics["head"] == "one_minus_macro_f1"
    assert {one for name, one in metrics.items() if name not in ("align", "head")} == {"bits_per_byte"}


def test_old_cards_are_not_rewritten(registry: Registry) -> None:
    for name in ANSWERS:
        registry.card(name)
        card = registry.fetch(name) / "card.json"
        assert card.read_bytes() == (FIXTURES / name / "card.json").read_bytes()
