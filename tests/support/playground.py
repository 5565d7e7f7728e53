"""A running service for the playground's tests, with every task on debug bases; and what tests do on its page."""

import json
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import uvicorn
from fastapi import FastAPI

from kauli.models.adapters.card import DataReference, Training
from kauli.models.adapters.certificate import Certificate, Linear
from kauli.models.adapters.registry import Registry
from kauli.models.bases.find import find_base
from kauli.models.media.decode import decode_image
from kauli.models.speech.speak import SpeakTask
from kauli.models.speech.whisper import WhisperTask
from kauli.models.text.task import TextTask
from kauli.models.vision.align import AlignTask
from kauli.serving.http.app import create_app
from kauli.serving.routing import Catalogue
from kauli.serving.settings import ServeArgs
from kauli.serving.workers.image_encoder import ImageEncoder
from kauli.serving.workers.memory import MemoryWorker
from kauli.serving.workers.speaker import Speaker
from kauli.serving.workers.text import TextGenerator
from kauli.serving.workers.transcriber import Transcriber
from support.browser import Page
from support.memories import LetterEmbedder
from support.picture_adapters import png, publish_describe, publish_head
from support.ranks import free_port
from support.settings import worker_args
from support.speech_adapters import publish_hearing, publish_transcribe
from support.text_adapters import publish_random, publish_translator

CERTIFICATE = Certificate(
    metric="chrf3", green=60, yellow=30, segments=200, groups=80, expected=Linear(intercept=45, weights={}),
    bound=Linear(intercept=31, weights={}), seen={}, coverage=0.91, rank_correlation=0.6, usual=(45.0, 10.0),
)  # fmt: skip


@dataclass
class House:
    """The parts of the service on a store with adapters of every task."""

    storage: Path
    workers: dict[str, dict[str, Any]]
    bases: dict[str, list[Any]]

    def app(self, workers: dict[str, dict[str, Any]] | None = None, **settings: Any) -> FastAPI:
        """The application; `workers` stand in the place of the own ones."""
        args = ServeArgs(storage=str(self.storage), max_tokens=96, refresh_s=0, **settings)
        return create_app(workers or self.workers, Catalogue(Registry(args.storage), self.bases, 0), args)


@contextmanager
def open_house(storage: Path) -> Iterator[House]:
    """The parts, closed at the end. Speech needs packaged weights: the network of the watermark."""
    text, clip = find_base("debug"), find_base("debug", task="align")
    hearing, voice = find_base("debug", task="transcribe"), find_base("debug", task="speak")
    data = DataReference(name="starter", sha256="0" * 64, rows=420, groups=120, languages=["sw"])
    training = Training(
        steps=40, seconds=95.0, tokens=9000, machine="2 cores", seed=1,
        curve=[[0, 5.1, 5.0], [10, 3.9, None], [20, 3.2, 3.4], [40, 2.7, 2.9]],
    )  # fmt: skip
    figures: dict[str, Any] = {
        "metrics": {"chrf": 31.5, "bits_per_byte": 1.42}, "base_metrics": {"chrf": 12.0, "bits_per_byte": 2.1},
        "intervals": {"chrf": [28.0, 34.9], "bits_per_byte": [1.38, 1.47]}, "data": data, "training": training,
        "certificates": {"sw": CERTIFICATE},
    }  # fmt: skip
    publish_random(storage, "text-sw", "sw", 1, text, **figures)
    publish_random(storage, "text-sw", "sw", 2, text, **figures)
    publish_random(storage, "text-ar", "ar", 3, text)
    publish_translator(storage, "translate-am", "am", text)
    publish_describe(storage, "describe-sw", "sw", 2)
    publish_hearing(storage, "describe-am", "am", 3)
    publish_transcribe(storage, "transcribe-be", "be", 1)
    shots = AlignTask.load(clip).embed_images([decode_image(png(colour)) for colour in ("red", "blue")])
    publish_head(storage, "topic-sw", "sw", shots, torch.tensor([0, 1]))
    Registry(str(storage)).set_alias("text-sw", 1, "prod")
    args = worker_args(storage, max_adapters=4)
    workers: dict[str, dict[str, Any]] = {
        "text": {text.name: TextGenerator(TextTask.load(text, slots=4), args)},
        "image": {clip.name: ImageEncoder(args, clip, True)},
        "audio": {hearing.name: Transcriber(WhisperTask.load(hearing, slots=4), args)},
        "memory": {"kauli-towers": MemoryWorker(LetterEmbedder(), args)},  # type: ignore[arg-type]
        "voice": {voice.name: Speaker(SpeakTask.load(voice, device="cpu", slots=2), args)},
    }
    bases = {"text": [text], "image": [clip], "audio": [hearing], "voice": [voice]}
    house = House(storage, workers, bases)
    try:
        yield house
    finally:
        for found in workers.values():
            for worker in found.values():
                worker.close()


class Running:
    """An application behind a port of this machine, which can be stopped and started again."""

    def __init__(self, app: FastAPI, port: int | None = None) -> None:
        self.app, self.port = app, port or free_port()
        self.url = f"http://127.0.0.1:{self.port}"
        self.start()

    def start(self) -> None:
        """Serve until `stop`."""
        config = uvicorn.Config(self.app, "127.0.0.1", self.port, log_level="warning", timeout_graceful_shutdown=1)
        self._server = uvicorn.Server(config)
        self._thread = threading.Thread(target=self._server.run, daemon=True)
        self._thread.start()
        wait_for(lambda: self._server.started, "the service did not start")

    def stop(self) -> None:
        """End what is under way after a second, and close the port."""
        self._server.should_exit = True
        self._thread.join(10)


def wait_for(condition: Callable[[], Any], otherwise: str, seconds: float = 30.0) -> Any:
    """What `condition` gives once it is true. Raises AssertionError, which says `otherwise`."""
    until = time.monotonic() + seconds
    while not (found := condition()):
        assert time.monotonic() < until, otherwise
        time.sleep(0.05)
    return found


def saved(path: Path) -> str:
    """What the browser has saved in a file."""
    wait_for(path.exists, f"{path} was not saved")
    return path.read_text("utf-8")


def show(page: Page, tab: str) -> str:
    """Open a tab; returns the selector of its panel."""
    page.click(f"#tab-{tab}")
    page.wait(f"!document.querySelector('#panel-{tab}').hidden")
    return f"#panel-{tab}"


def text(page: Page, selector: str) -> str:
    """What is shown in the element."""
    return str(page.run(f"document.querySelector({json.dumps(selector)}).innerText"))


def language(page: Page, typed: str) -> None:
    """Choose a language in the picker, by the keyboard."""
    page.fill("#language", typed)
    page.wait("!document.querySelector('#languages').hidden")
    page.press("Enter")


def tabs(page: Page) -> list[str]:
    """The tabs that are shown, by name."""
    found = page.run("[...document.querySelectorAll('[role=tab]')].map((one) => one.id.slice(4))")
    return list(found)
