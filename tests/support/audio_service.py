"""A service of random weights that takes recordings, and the requests with recordings that tests send to it."""

import base64
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from fastapi.testclient import TestClient

from kauli.models.adapters.registry import Registry
from kauli.models.bases.find import find_base
from kauli.models.speech.whisper import WhisperTask
from kauli.models.text.task import TextTask
from kauli.serving.http.app import create_app
from kauli.serving.routing import Catalogue
from kauli.serving.settings import ServeArgs
from kauli.serving.workers.image_encoder import ImageEncoder
from kauli.serving.workers.text import TextGenerator
from kauli.serving.workers.transcriber import Transcriber
from support.picture_adapters import publish_describe
from support.settings import worker_args
from support.speech_adapters import publish_hearing, publish_transcribe, wav

PATH = "/v1/audio/transcriptions"
CLIP = wav(0.5)


@dataclass(frozen=True)
class House:
    """A service's parts, on a store with adapters of every kind."""

    storage: Path
    generator: TextGenerator
    encoder: ImageEncoder
    transcriber: Transcriber

    def app(self, *, audio: bool = True, transcribes: bool = True, tasks: Any = None, **settings: Any) -> Any:
        args = ServeArgs(storage=str(self.storage), refresh_s=0, **settings)
        options: dict[str, Any] = {"tasks": tasks} if tasks else {}
        base, recogniser = find_base("debug"), find_base("debug", task="transcribe")
        bases = {"text": [base]} | ({"audio": [recogniser]} if transcribes else {})
        workers: dict[str, Any] = {"text": {base.name: self.generator}, "image": {"debug-clip": self.encoder}}
        workers |= {"audio": {recogniser.name: self.transcriber}} if audio else {}
        return create_app(workers, Catalogue(Registry(args.storage), bases, 0, **options), args)

    def client(self, **settings: Any) -> TestClient:
        app = self.app(**settings)
        return TestClient(app, base_url="http://127.0.0.1:8000", raise_server_exceptions=False)


@contextmanager
def open_house(publish: Callable[..., str], tmp_path_factory: pytest.TempPathFactory) -> Iterator[House]:
    """The parts on a new store with adapters of every kind, beside a new $KAULI_HOME; closed at the end."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("KAULI_HOME", str(tmp_path_factory.mktemp("home")))
        storage = tmp_path_factory.mktemp("store")
        publish(storage, "text-sw", "sw", 1)
        publish_transcribe(storage, "transcribe-be", "be", 1)
        publish_transcribe(storage, "transcribe-ky", "ky", 2)
        publish_describe(storage, "describe-am", "am", 2)
        publish_hearing(storage, "describe-sw", "sw", 3)
        publish_hearing(storage, "describe-other", "ka", 4, tower="0" * 64)
        args = worker_args(storage, max_adapters=4)
        generator = TextGenerator(TextTask.load(find_base("debug"), slots=4), args)
        encoder = ImageEncoder(args, find_base("debug", task="align"), False)
        task = WhisperTask.load(find_base("debug", task="transcribe"), slots=4)
        transcriber = Transcriber(task, args)
        yield House(storage, generator, encoder, transcriber)
        for one in (generator, encoder, transcriber):
            one.close()


def hear(client: TestClient, content: bytes = CLIP, **fields: Any) -> Any:
    """What the service answers to an upload; a field of None is left out."""
    values = {"model": "transcribe", "language": "be"} | fields
    kind = values.pop("content_type", "audio/wav")
    data = {name: value for name, value in values.items() if value is not None}
    return client.post(PATH, files={"file": ("clip.wav", content, kind)}, data=data)


def spoken(content: bytes = CLIP, kind: str = "wav") -> dict[str, Any]:
    return {"type": "input_audio", "input_audio": {"data": base64.b64encode(content).decode(), "format": kind}}


def chat(client: TestClient, *parts: dict[str, Any], **changes: Any) -> Any:
    body = {"model": "describe-sw", "max_tokens": 12, "ignore_eos": True}
    body["messages"] = [{"role": "user", "content": list(parts)}]
    return client.post("/v1/chat/completions", json=body | changes)


def answer(response: Any) -> str:
    assert response.status_code == 200, response.text
    return str(response.json()["choices"][0]["message"]["content"])
