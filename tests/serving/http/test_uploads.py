"""Uploads to be transcribed that are refused: recordings, forms, other bodies; too long, too many, too slow."""

import asyncio
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
import pytest
from fastapi.testclient import TestClient
from starlette.exceptions import HTTPException

from kauli.models.media.decode import RATE
from kauli.serving.http.auth import Access
from kauli.serving.settings import ServeArgs
from support.audio_service import CLIP, PATH, House, hear, open_house
from support.picture_adapters import png
from support.speech_adapters import encoded, sound, wav


@pytest.fixture(scope="module")
def house(publish: Callable[..., str], tmp_path_factory: pytest.TempPathFactory) -> Iterator[House]:
    with open_house(publish, tmp_path_factory) as opened:
        yield opened


@pytest.fixture(scope="module")
def client(house: House) -> TestClient:
    return house.client()


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (b"", "empty"),
        (encoded(np.zeros(RATE)), "silent"),
        (encoded(np.full(RATE, np.nan), subtype="FLOAT"), "not finite"),
        (png("red"), "an image"),
        (wav(0.05), "send a longer clip"),
        (CLIP[:30], "broken or truncated"),
        (b"<html></html>", "HTML"),
        (b"\0\0\0 ftypM4A " + bytes(64), "M4A audio is broken"),
    ],
    ids=["empty", "silent", "nan", "png", "short", "broken", "html", "m4a"],
)
def test_recordings_that_are_refused(client: TestClient, content: bytes, words: str) -> None:
    for stream in (None, "true"):
        response = hear(client, content, stream=stream)
        error = response.json()["error"]
        assert (response.status_code, error["code"], error["param"]) == (400, "invalid_audio", "file"), error
        assert words in error["message"]


@pytest.mark.parametrize(
    ("fields", "status", "code", "param", "words"),
    [
        ({"model": None}, 400, "invalid_value", "model", "this field is missing"),
        ({"model": "whisper-1"}, 404, "model_not_found", "model", "Served: debug-text, debug-whisper"),
        (
            {"model": "text-sw", "language": None},
            400,
            "invalid_value",
            "model",
            "cannot transcribe; use model 'transcribe'",
        ),
        ({"language": "sw"}, 404, "language_not_served", "language", "kauli train transcribe-be --set language=sw"),
        ({"language": "not a tag"}, 400, "invalid_value", None, "not a tag"),
        ({"model": "transcribe-be", "language": "tt"}, 404, "language_not_served", "language", "is for be"),
        ({"model": "debug-whisper", "language": "ky"}, 400, "invalid_value", "language", "does not know"),
        ({"response_format": "xml"}, 400, "invalid_value", "response_format", "verbose_json"),
        ({"temperature": "2"}, 400, "invalid_value", "temperature", "less than or equal to 1"),
        ({"stream": "true", "response_format": "srt"}, 400, "invalid_value", None, "response_format json"),
        ({"timestamp_granularities[]": "letter"}, 400, "invalid_value", "timestamp_granularities", "'letter'"),
        ({"timestamp_granularities[]": "word"}, 400, "invalid_value", None, "verbose_json"),
        ({"timestamp_granularities[]": "segment"}, 400, "invalid_value", None, "verbose_json"),
        ({"langage": "be"}, 400, "unknown_field", "langage", "Did you mean 'language'"),
        ({"include[]": "segments"}, 400, "invalid_value", "include.0", "logprobs"),
        ({"no_speech_threshold": "2"}, 400, "invalid_value", "no_speech_threshold", "less than or equal to 1"),
        ({"prompt": "x" * 70_000}, 400, "invalid_value", "file", "curl -F file=@clip.wav does"),
        ({"hotwords": ",".join(map(str, range(51)))}, 400, "invalid_value", "hotwords", "51 words: at most 50"),
        ({"hotwords": "a", "temperature": "0.5"}, 400, "invalid_value", None, "without a temperature"),
        ({"hotwords": "a" * 65}, 400, "invalid_value", "hotwords", "has 65 characters"),
    ],
)
def test_forms_that_are_refused(
    client: TestClient, fields: dict[str, Any], status: int, code: str, param: str | None, words: str
) -> None:
    response = hear(client, **fields)
    error = response.json()["error"]
    assert (response.status_code, error["code"], error["param"]) == (status, code, param), error
    assert words in error["message"]


def test_other_bodies_are_refused(client: TestClient) -> None:
    for kind, body in (("application/json", b'{"model": "transcribe"}'), ("audio/wav", CLIP), (None, b"")):
        response = client.post(PATH, content=body, headers={"content-type": kind} if kind else {})
        assert response.status_code == 415, response.text
        assert "send multipart/form-data" in response.json()["error"]["message"]
    form = {"model": (None, "transcribe")}
    assert "the field file is missing" in client.post(PATH, files=form).json()["error"]["message"]
    text = client.post(PATH, files=form | {"file": (None, "clip.wav")}).json()["error"]
    assert (text["param"], "must be a file" in text["message"]) == ("file", True)
    two = client.post(PATH, files=[("file", ("a.wav", CLIP)), ("file", ("b.wav", CLIP))])
    assert (two.status_code, "one file is transcribed" in two.json()["error"]["message"]) == (400, True)
    twice = client.post(PATH, files=[("file", ("a.wav", CLIP)), *[("model", (None, "transcribe"))] * 2])
    assert "given twice" in twice.json()["error"]["message"]
    broken = client.post(PATH, content=b"--x\r\nno", headers={"content-type": "multipart/form-data; boundary=x"})
    assert broken.status_code == 400
    unbounded = client.post(PATH, content=b"", headers={"content-type": "multipart/form-data"})
    assert (unbounded.status_code, "boundary" in unbounded.json()["error"]["message"]) == (400, True)


def test_sizes_and_lengths_are_bounded(house: House) -> None:
    client = house.client(max_audio_seconds=20)
    long = hear(client, encoded(sound(21)))
    assert (long.status_code, "20.0 are allowed" in long.json()["error"]["message"]) == (400, True)
    file = hear(client, CLIP + bytes(26_500_000))
    assert (file.status_code, file.json()["error"]["code"], file.json()["error"]["param"]) == (
        413, "body_too_large", "file",
    )  # fmt: skip
    body = hear(client, bytes(27_500_000))
    assert (body.status_code, body.json()["error"]["code"]) == (413, "body_too_large")

    def pieces() -> Iterator[bytes]:  # no Content-Length to go by
        yield b'--x\r\nContent-Disposition: form-data; name="file"; filename="a.wav"\r\n\r\n'
        yield from (bytes(1_000_000) for _ in range(28))

    endless = client.post(PATH, content=pieces(), headers={"content-type": "multipart/form-data; boundary=x"})
    assert (endless.status_code, endless.json()["error"]["code"]) == (413, "body_too_large")


def test_too_many_recordings_in_hand_are_refused(house: House) -> None:
    client = house.client(max_queue=1)
    began, go_on = threading.Event(), threading.Event()
    real = house.transcriber.longest

    async def longest() -> float:
        began.set()
        await asyncio.to_thread(go_on.wait, 10)
        return await real()

    with pytest.MonkeyPatch.context() as patch, ThreadPoolExecutor(1) as pool:
        patch.setattr(house.transcriber, "longest", longest)
        first = pool.submit(hear, client)
        assert began.wait(10)
        second = hear(client)
        go_on.set()
        assert first.result().status_code == 200
    assert (second.status_code, second.json()["error"]["code"]) == (429, "queue_full")
    assert second.headers["Retry-After"] == "2"
    assert hear(client).status_code == 200


def test_a_slow_upload_is_given_up() -> None:
    async def app(scope: Any, receive: Any, send: Any) -> None:
        await receive()

    async def receive() -> Any:
        await asyncio.sleep(10)

    async def send(message: Any) -> None: ...

    access = Access(app, ServeArgs(body_timeout_s=0.05), workers=("audio",))
    scope = {"type": "http", "method": "POST", "path": PATH, "headers": [(b"host", b"localhost")]}
    with pytest.raises(HTTPException, match="did not arrive within"):
        asyncio.run(access(scope, receive, send))
