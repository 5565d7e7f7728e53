"""Odd requests as people's clients send them: served as they are meant, or one 4xx that names field and way out."""

import base64
import json
from collections.abc import Iterator
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
from support.picture_adapters import data_uri, png, publish_describe
from support.settings import worker_args
from support.speech_adapters import wav

USER = {"role": "user", "content": "Habari"}
CHAT = {"model": "text-sw", "messages": [USER], "max_tokens": 2, "ignore_eos": True}
JSON = {"Content-Type": "application/json"}
IMAGE = data_uri(png("red"))
WAV = wav(0.5)
PART = "--a\r\nContent-Disposition: form-data; name="
CUT = f'{PART}"model"\r\n\r\ndebug-whisper\r\n{PART}"file"; filename="a.wav"\r\n\r\nRIFF'.encode()
FORM = {"model": "debug-whisper", "language": "be"}


@pytest.fixture(scope="module")
def client(storage: Path) -> Iterator[TestClient]:
    text, image, audio = find_base("debug"), find_base("debug", task="align"), find_base("debug", task="transcribe")
    publish_describe(storage, "describe-sw", "sw", 3)
    args = worker_args(storage, max_adapters=4)
    generator, encoder = TextGenerator(TextTask.load(text, slots=4), args), ImageEncoder(args, image, True)
    transcriber = Transcriber(WhisperTask.load(audio), args)
    workers = {"text": {text.name: generator}, "image": {image.name: encoder}, "audio": {audio.name: transcriber}}
    bases = {"text": [text], "image": [image], "audio": [audio]}
    settings = ServeArgs(storage=str(storage), max_tokens=64, refresh_s=0)
    app = create_app(workers, Catalogue(Registry(str(storage)), bases, 0), settings)
    yield TestClient(app, base_url="http://127.0.0.1:8000", raise_server_exceptions=False)
    for worker in (generator, encoder, transcriber):
        worker.close()


def refused(response: Any) -> tuple[int, str]:
    return response.status_code, response.json()["error"]["message"]


def chat(client: TestClient, changes: dict[str, Any]) -> Any:
    return client.post("/v1/chat/completions", content=json.dumps(CHAT | changes), headers=JSON)


def picture(address: Any) -> dict[str, Any]:
    part = {"type": "image_url", "image_url": address}
    return {
        "model": "describe-sw",
        "messages": [{"role": "user", "content": [part, {"type": "text", "text": "Nini?"}]}],
    }


@pytest.mark.parametrize(
    "changes",
    [
        {"messages": [{"role": "user", "content": ""}]},
        {"messages": [{"role": "user", "content": "a\0b"}]},
        {"messages": [USER | {"extra": json.loads("[" * 200 + "]" * 200)}]},
        {"max_tokens": "2"},
        {"max_tokens": 2.0},
        {"temperature": "0"},
        {"n": True},
        {"language": ""},
        {"stream": "false"},
        picture({"url": IMAGE}),
        picture(IMAGE),
        {
            "model": "describe-sw",
            "messages": [{"role": "user", "content": picture(IMAGE)["messages"][0]["content"][:1]}],
        },
    ],
)
def test_conversations_that_are_answered(client: TestClient, changes: dict[str, Any]) -> None:
    response = chat(client, changes)
    assert response.status_code == 200, response.text
    assert response.json()["usage"]["completion_tokens"] == 2


@pytest.mark.parametrize(
    ("changes", "status", "words"),
    [
        ({"messages": "Habari"}, 400, "messages: Input should be a valid list"),
        ({"messages": ["Habari"]}, 400, "messages.0: Input should be a JSON object"),
        ({"messages": [{"content": "x"}]}, 400, "messages.0.role: this field is missing"),
        ({"messages": [USER | {"role": "human"}]}, 400, "'tool' or 'function' (got 'human')"),
        ({"messages": [USER | {"content": {"type": "text", "text": "x"}}]}, 400, "give a text, or a list of parts"),
        ({"messages": [USER | {"content": [{"type": "input_text"}]}]}, 400, "content part 'input_text' is not served"),
        ({"temperature": "hot"}, 400, "temperature: Input should be a valid number"),
        ({"temperature": -1}, 400, "temperature: Input should be greater than or equal to 0 (got -1)"),
        ({"temperature": float("nan")}, 400, "temperature: Input should be"),
        ({"max_tokens": 10.5}, 400, "max_tokens: Input should be a valid integer, got a number with a fractional part"),
        ({"max_tokens": 10**30}, 400, "this service allows 64 (setting max_tokens)"),
        ({"seed": 2**70}, 400, "seed: Input should be less than"),
        ({"stop": [["a"]]}, 400, "stop: give a text or a list of texts"),
        ({"model": None}, 400, "model: this field is missing"),
        ({"model": ["text-sw"]}, 400, "model: Input should be a valid string"),
        ({"model": " Text-SW"}, 404, "model ' Text-SW' is not served. Did you mean 'text-sw'? Served: "),
        ({"model": "../../etc/passwd"}, 404, "model '../../etc/passwd' is not served"),
        ({"model": "text-sw@99"}, 404, "text-sw has no version or alias '99'; it has 1, 2"),
        ({"model": "x" * 1100}, 400, "at most 1024 characters"),
        ({"model": "text", "language": "Kiswahili"}, 400, "unknown language 'Kiswahili': give a BCP-47 tag"),
        ({"model": "text", "language": "fr"}, 404, "Train one with `kauli train text-sw --set language=fr"),
        (picture({"url": "https://example.org/a.png"}), 400, "remote images are not fetched: send a data: URI"),
        (picture({"url": "file:///etc/passwd"}), 400, "remote images are not fetched"),
        (picture({"url": IMAGE.partition(",")[2]}), 400, "send a data: URI (data:image/png;base64,...), not 'iVBOR"),
        (picture(None), 400, "image_url: Input should be a JSON object"),
        (picture({}), 400, "image_url.url: this field is missing"),
        (picture({"url": "data:image/png;base64,"}), 400, "the image is empty"),
        (picture({"url": IMAGE[:60] + "\n" + IMAGE[60:]}), 400, "is not valid base64"),
        (picture({"url": data_uri(b"<html>", "image/png")}), 400, "this is a web page, which is not"),
    ],
)  # fmt: skip
def test_conversations_that_are_refused(client: TestClient, changes: dict[str, Any], status: int, words: str) -> None:
    found, message = refused(chat(client, changes))
    assert found == status
    assert words in message


@pytest.mark.parametrize(
    ("content", "kind", "status", "words"),
    [
        (json.dumps(CHAT).encode("utf-16"), "application/json", 200, ""),
        (b"\xef\xbb\xbf" + json.dumps(CHAT).encode(), "application/json; charset=utf-8", 200, ""),
        (
            '{"model": "café"}'.encode("latin-1"),
            "application/json",
            400,
            "can't be read as JSON: send an object in UTF-8",
        ),
        (b"[" * 100_000, "application/json", 400, "not nested thousands deep"),
        (b'{"a":' * 50_000, "application/json", 400, "can't be read as JSON"),
        (
            b"{'model': 'x'}",
            "application/json",
            400,
            "not valid JSON: Expecting property name enclosed in double quotes",
        ),
        (b"", "application/json", 400, "the body is empty: send a JSON object"),
        (b"null", "application/json", 400, "the body must be a JSON object"),
        (b'"x"', "application/json", 400, "the body must be a JSON object"),
        (json.dumps([CHAT]).encode(), "application/json", 400, "the body must be a JSON object"),
        (json.dumps(CHAT).encode(), "text/plain", 415, "send it with the header Content-Type: application/json"),
        (b"model=text-sw", "application/x-www-form-urlencoded", 415, "Content-Type: application/json"),
    ],
)
def test_bodies(client: TestClient, content: bytes, kind: str, status: int, words: str) -> None:
    response = client.post("/v1/chat/completions", content=content, headers={"Content-Type": kind})
    assert response.status_code == status, response.text
    assert words in (response.json()["error"]["message"] if words else "")


@pytest.mark.parametrize(
    ("path", "body", "status", "words"),
    [
        ("chat/completions", {}, 404, "Not Found: POST /chat/completions. The paths of OpenAI's API begin with /v1"),
        ("v1/completions", {"messages": [USER]}, 400, "unknown field 'messages'"),
        ("v1/completions", {"prompt": [-1]}, 400, "token -1 is unknown: the tokens of this model are 0 to"),
        ("v1/completions", {"prompt": [True]}, 400, "prompt 0 is neither a text nor a list of one token"),
        ("v1/completions", {"prompt": "neno " * 5000}, 400, "the context holds 2048"),
        (
            "v1/embeddings",
            {"model": "debug-clip", "input": ""},
            400,
            "an input is empty: give a text or a list of texts",
        ),
        ("v1/embeddings", {"model": "debug-clip", "input": [["a"]]}, 400, "input: give a text or a list of texts"),
        ("v1/embeddings", {"model": "debug-clip", "input": [None]}, 400, "input: give a text or a list of texts"),
        ("v1/embeddings", {"model": "debug-clip", "input": 5}, 400, "send texts"),
        ("v1/embeddings", {"model": "debug-clip", "input": "a", "dimensions": 7}, 400, "dimensions 7 is not supported"),
        ("v1/embeddings", {"input": "a"}, 400, "cannot produce embeddings; use model 'debug-clip'"),
        (
            "v1/classify",
            {"model": "debug-clip", "input": "a", "classes": "a,b"},
            400,
            "classes: Input should be a valid",
        ),
        ("v1/classify", {"model": "debug-clip", "input": "a", "classes": ["a", " "]}, 400, "a class has no name"),
        ("v1/classify", {"model": "debug-clip", "input": "a", "classes": ["a", "a"]}, 400, "with different names"),
        ("v1/adapters", {"adapter": "/etc/passwd"}, 404, "model '/etc/passwd' is not served"),
        ("v1/adapters", {"adapter": "text"}, 400, "'text' is not an adapter"),
        ("v1/adapters", {"lora_name": "x", "lora_path": "/x"}, 400, "unknown field 'lora_name'"),
    ],
)
def test_other_endpoints(client: TestClient, path: str, body: dict[str, Any], status: int, words: str) -> None:
    own = {} if path == "v1/adapters" or "model" in body else {"model": "debug-text"}
    found, message = refused(client.post(f"/{path}", json=own | body))
    assert found == status
    assert words in message


@pytest.mark.parametrize(
    ("data", "files", "status", "words"),
    [
        (FORM, [("file", ("запіс (1).m4a", WAV, "audio/x-m4a"))], 200, ""),
        (FORM | {"temperature": "", "prompt": ""}, [("file", ("a.txt", WAV, "text/plain"))], 200, ""),
        (FORM, [("file", ("", WAV))], 400, "the field file must be a file (curl -F file=@clip.wav)"),
        (FORM, [("audio", ("a.wav", WAV))], 400, "the field audio must not be a file: send that in the field file"),
        (FORM, [("file", ("a.wav", WAV)), ("file", ("b.wav", WAV))], 400, "one file is transcribed, in the field file"),
        (FORM, [("file", ("a.wav", b""))], 400, "the audio is empty"),
        (FORM, [("file", ("a.wav", png("red")))], 400, "this is an image, which is not read: send WAV"),
        (FORM, [], 415, "send multipart/form-data with the fields file and model"),
        ({"model": ["debug-whisper", "x"]}, [("file", ("a.wav", WAV))], 400, "the field model is given twice"),
        ({"model": "debug-text"}, [("file", ("a.wav", WAV))], 400, "Model 'debug-text' cannot transcribe; use model"),
        ({"model": "whisper-1"}, [("file", ("a.wav", WAV))], 404, "model 'whisper-1' is not served. Did you mean"),
        (FORM | {"language": "Belarusian"}, [("file", ("a.wav", WAV))], 400, "unknown language 'Belarusian'"),
        (FORM | {"language": "sw"}, [("file", ("a.wav", WAV))], 400, "does not know the language 'sw': name one of be"),
        (FORM | {"response_format": "SRT"}, [("file", ("a.wav", WAV))], 400, "'eaf' or 'textgrid' (got 'SRT')"),
        (
            FORM | {"temperature": "warm"},
            [("file", ("a.wav", WAV))],
            400,
            "temperature: Input should be a valid number",
        ),
        (FORM | {"logprob_threshold": "nan"}, [("file", ("a.wav", WAV))], 400, "Input should be a finite number"),
        (FORM | {"no_speech_threshold": "1.5"}, [("file", ("a.wav", WAV))], 400, "less than or equal to 1 (got '1.5')"),
        (FORM | {"diarize": "true"}, [("file", ("a.wav", WAV))], 400, "unknown field 'diarize'"),
    ],
)
def test_forms(client: TestClient, data: dict[str, Any], files: list[Any], status: int, words: str) -> None:
    response = client.post("/v1/audio/transcriptions", data=data, files=files)
    assert response.status_code == status, response.text
    assert words in (response.json()["error"]["message"] if words else "")
    if not words:
        assert response.json()["usage"]["seconds"] == 0.5


def test_audio_that_is_sent_in_other_ways(client: TestClient) -> None:
    path = "/v1/audio/transcriptions"
    for content, kind, status, words in (
        (WAV, "audio/wav", 415, "the body is 'audio/wav': send multipart/form-data"),
        (json.dumps(FORM | {"file": base64.b64encode(WAV).decode()}), "application/json", 415, "send multipart"),
        (WAV, "multipart/form-data", 400, "Missing boundary in multipart"),
        (CUT, "multipart/form-data; boundary=a", 400, "the field file is missing"),
    ):  # fmt: skip
        found, message = refused(client.post(path, content=content, headers={"Content-Type": kind}))
        assert found == status
        assert words in message
