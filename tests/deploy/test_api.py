"""The Python API: what the command answers, from a program and inside a running event loop, loaded once."""

import asyncio
import io
import json
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from kauli.deploy import api
from kauli.deploy.api import Transcription, adapters, evaluate, load, train
from kauli.models.errors import UsageError
from kauli.serving import local
from support.cli import run
from support.picture_adapters import CLASSES, png, publish_describe, publish_head
from support.speech_adapters import encoded, publish_transcribe, words
from support.text_adapters import publish_random

ASKED = "Habari ya leo?"


@pytest.fixture(autouse=True, scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    from kauli.models.bases.find import find_base

    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("KAULI_HOME", str(tmp_path_factory.mktemp("home")))
        folder = tmp_path_factory.mktemp("store")
        patch.setenv("KAULI_STORAGE", str(folder))
        patch.setenv("KAULI_IMAGE_BASE", "debug-clip")
        publish_random(folder, "text-sw", "sw", 1, find_base("debug"))
        publish_describe(folder, "describe-sw", "sw", 1)
        publish_transcribe(folder, "transcribe-be", "be", 1)
        yield folder


@pytest.fixture(scope="module")
def text() -> Iterator[api.Model]:
    with load("text-sw") as model:
        yield model


@pytest.fixture(scope="module")
def speech() -> Iterator[api.Model]:
    with load("transcribe", language="be") as model:
        yield model


def test_it_answers_as_the_command_does_and_inside_a_running_loop(text: api.Model) -> None:
    said = json.loads(run("generate", ASKED, "--model", "text-sw", "--max-tokens", "12", "--json").stdout)

    async def cell() -> tuple[str, str]:
        return text.generate(ASKED, max_tokens=12), "".join(text.stream(ASKED, max_tokens=12))

    assert asyncio.run(cell()) == (said["text"], said["text"])
    assert text.generate([{"role": "user", "content": ASKED}], max_tokens=12) == said["text"]
    assert (text.adapter, text.base, text.language) == ("text-sw@1", "debug-text", "sw")
    assert "text-sw@1" in repr(text)
    drawn = [text.generate(ASKED, max_tokens=12, temperature=2.0, seed=seed) for seed in (1, 1, 2)]
    assert drawn[0] == drawn[1] != drawn[2]


def test_weights_are_loaded_once_and_let_go_at_the_end(monkeypatch: pytest.MonkeyPatch) -> None:
    built = []
    monkeypatch.setattr(local, "resolve", lambda name, real=local.resolve: built.append(name) or real(name))
    with load("text", language="sw") as model:
        first = model.stream(ASKED, max_tokens=400)
        next(first)  # left in the middle
        assert model.generate(ASKED, max_tokens=4) == model.generate(ASKED, max_tokens=4)
        assert model.adapter == "text-sw@1"
    assert len(built) == 1
    with pytest.raises(UsageError, match="closed: load it again"):
        model.generate(ASKED)
    first.close()  # type: ignore[attr-defined]


def test_a_model_that_is_dropped_frees_its_weights() -> None:
    before = threading.enumerate()
    model = load("debug")
    assert len(list(load("debug").stream(ASKED, max_tokens=4, seed=1))) > 0  # it lives as long as its stream
    del model
    assert [thread for thread in threading.enumerate() if thread not in before and thread.name == "generator"] == []


def test_a_program_may_end_without_closing() -> None:
    code = f"from kauli.deploy.api import load; m = load('debug'); s = m.stream({ASKED!r}, max_tokens=400); next(s)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=120)
    assert (done.returncode, "Traceback" in done.stderr) == (0, False)


def test_an_image_is_taken_as_path_bytes_or_picture(tmp_path: Path) -> None:
    (tmp_path / "red.png").write_bytes(png("red"))
    with load("describe", language="sw") as model:
        found = {
            model.describe(one, max_tokens=6)
            for one in (tmp_path / "red.png", str(tmp_path / "red.png"), png("red"), Image.new("RGB", (40, 40), "red"))
        }
        assert len(found) == 1
        assert model.describe(png("red"), prompt="nini?", max_tokens=6, rerank=2, seed=1) is not None
        with pytest.raises(UsageError, match="give image=, audio=, or both"):
            model.describe()
        with pytest.raises(UsageError, match="a path, bytes or already decoded, not int"):
            model.describe(3)  # type: ignore[arg-type]


def test_a_picture_is_upright_and_may_have_any_mode() -> None:
    turned = io.BytesIO()
    exif = Image.Exif()
    exif[0x0112] = 6
    half = Image.new("RGB", (40, 40), "red")
    half.paste("blue", (0, 0, 20, 40))
    half.save(turned, "PNG", exif=exif)
    with load("debug-clip") as model:
        rows = model.embed(images=[turned.getvalue(), Image.open(turned), half, half.convert("CMYK").convert("RGB")])
        assert rows[0] == pytest.approx(rows[1], abs=1e-5)
        assert rows[0] != pytest.approx(rows[2], abs=1e-3)
        large = Image.new("RGB", (4000, 3000), "red")
        assert model.embed(images=[half.convert("CMYK"), half.convert("F"), large]).shape == (3, rows.shape[1])
        assert large.size == (4000, 3000)


def test_audio_is_taken_in_every_form(speech: api.Model, tmp_path: Path) -> None:
    samples = words(3)
    (tmp_path / "clip.wav").write_bytes(encoded(samples))
    found: Transcription = speech.transcribe(tmp_path / "clip.wav")
    assert (found.language, found.seconds) == ("be", 6.0)
    assert found.text == " ".join(segment.text for segment in found.segments)
    assert found.text.split() == [word.text for word in found.words]
    assert found.as_srt().startswith("1\n00:00:0")
    assert found.as_vtt().startswith("WEBVTT")
    whole = np.round(samples * 32767).astype(np.int16)
    for same in ((samples, 16000), encoded(samples), (whole, 16000), (np.stack([samples, samples]), 16000.0)):
        assert speech.transcribe(same).text == found.text
    with pytest.raises(UsageError, match=r"audio of float32 \(0,\) at the rate 16000"):
        speech.transcribe((samples[:0], 16000))
    with pytest.raises(UsageError, match=r"none\.wav: No such file"):
        speech.transcribe("none.wav")


def test_texts_and_images_are_embedded_and_classified(store: Path) -> None:
    pictures = [Image.new("RGB", (40, 40), colour) for colour in ("red", "blue")]
    with load("debug-clip") as base:
        rows = base.embed(["mbwa"], pictures)
        assert np.linalg.norm(rows, axis=1) == pytest.approx(1, abs=1e-4)
        ranked = base.classify(image=pictures[0], classes=["mbwa", "paka"])
        assert sum(share for _, share in ranked) == pytest.approx(1)
        with pytest.raises(UsageError, match="needs classes to choose from"):
            base.classify("mbwa")
    publish_head(store, "head-colours", "sw", torch.from_numpy(rows[1:]), torch.tensor([0, 1]))
    with load("head-colours") as head:
        assert [head.classify(image=one)[0][0] for one in pictures] == list(CLASSES)
        with pytest.raises(UsageError, match="has its own classes"):
            head.classify("mbwa", classes=["a", "b"])


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"max_tokens": 0}, "max_tokens=0: Input should be greater than or equal to 1"),
        ({"temperature": "warm"}, "temperature='warm'"),
        ({"temprature": 1.0}, "unknown option 'temprature'. Known: max_tokens"),
    ],
)
def test_a_wrong_option_is_named(text: api.Model, options: dict[str, Any], said: str) -> None:
    with pytest.raises(UsageError, match=said):
        text.generate(ASKED, **options)


def test_wrong_use_is_a_sentence(text: api.Model) -> None:
    with pytest.raises(UsageError, match="'text-sw@1' cannot transcribe; use model 'transcribe'"):
        text.transcribe(encoded(words(1)))
    with pytest.raises(UsageError, match="takes no images"):
        text.describe(png("red"))
    with pytest.raises(UsageError, match=r"the prompt is not valid Unicode \(character 4\)"):
        text.generate("caf\udce9")
    with pytest.raises(UsageError, match=r"message 0 is .*'tool'.*it must be"):
        text.generate([{"role": "tool", "content": "x"}])
    with pytest.raises(UsageError, match="there is no adapter 'nobody'"):
        load("nobody")
    with pytest.raises(UsageError, match="'ky'"):
        load("text", language="ky")


def test_a_recipe_is_trained_evaluated_and_listed(tmp_path: Path) -> None:
    rows = [{"prompt": f"swali {at}", "text": f"jibu la swali namba {at} hapa", "language": "no"} for at in range(40)]
    (tmp_path / "mine.jsonl").write_text("\n".join(map(json.dumps, rows)))
    keys = {"train.steps": 2, "train.minutes": None, "train.source_weights": {}, "objective": {}, "scale.gpu": False}
    made = train(
        "text-sw", data=tmp_path / "mine.jsonl", language="no", name="text-mine", base="debug", use_ray=False,
        storage=tmp_path / "store", **keys,
    )  # fmt: skip
    assert made.adapter == "text-mine@1"
    result = evaluate("text-mine", limit=1, storage=tmp_path / "store")
    assert result.metrics["bits_per_byte"] == pytest.approx(made.metrics["bits_per_byte"])
    assert "bits_per_byte" in result.summary()
    assert result._repr_html_().count("<tr>") == 1 + len(result.metrics)
    assert len(repr(result)) < 1000
    [row] = adapters(tmp_path / "store")
    assert (row.adapter, row.language, row.score) == ("text-mine@1", ("no",), made.metrics["bits_per_byte"])
    with pytest.raises(UsageError, match=r"unknown key 'train\.stpes'"):
        train("text-sw", **{"train.stpes": 1})
