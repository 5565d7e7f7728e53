"""Audio over HTTP: transcribed in every format, part of conversations, refused; by the `openai` client too."""

import asyncio
import base64
import json
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import openai
import pytest
from fastapi.testclient import TestClient
from starlette.exceptions import HTTPException

from kauli.models.adapters.registry import Registry
from kauli.models.bases.find import find_base
from kauli.models.media.decode import RATE
from kauli.models.requests import MARK
from kauli.models.speech.chunking import as_text
from kauli.models.speech.guards import compression_ratio
from kauli.models.speech.subtitles import as_srt, as_vtt, cues
from kauli.models.speech.whisper import WhisperTask
from kauli.models.text.task import TextTask
from kauli.serving.http.app import create_app
from kauli.serving.http.auth import Access
from kauli.serving.routing import Catalogue
from kauli.serving.settings import ServeArgs
from kauli.serving.workers.image_encoder import ImageEncoder
from kauli.serving.workers.text import TextGenerator
from kauli.serving.workers.transcriber import Transcriber
from support.picture_adapters import data_uri, png, publish_describe
from support.settings import worker_args
from support.speech_adapters import (
    encoded,
    publish_hearing,
    publish_transcribe,
    said_here,
    sound,
    transcribed_here,
    wav,
    words,
)

PATH = "/v1/audio/transcriptions"
CLIP = wav(0.5)
LONG = encoded(words(3))


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


@pytest.fixture(scope="module")
def house(publish: Callable[..., str], tmp_path_factory: pytest.TempPathFactory) -> Iterator[House]:
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


@pytest.fixture(scope="module")
def client(house: House) -> TestClient:
    return house.client()


@pytest.fixture(scope="module")
def user(client: TestClient) -> openai.OpenAI:
    return openai.OpenAI(base_url="http://127.0.0.1:8000/v1", api_key="none", max_retries=0, http_client=client)


def hear(client: TestClient, content: bytes = CLIP, **fields: Any) -> Any:
    """What the service answers to an upload; a field of None is left out."""
    values = {"model": "transcribe", "language": "be"} | fields
    kind = values.pop("content_type", "audio/wav")
    data = {name: value for name, value in values.items() if value is not None}
    return client.post(PATH, files={"file": ("clip.wav", content, kind)}, data=data)


def here(house: House, spec: str | None, content: bytes = CLIP, **options: Any) -> str:
    return as_text(transcribed_here(house.storage, spec, content, **options))


# Transcripts


def test_an_adapter_transcribes_as_in_this_process(house: House, client: TestClient) -> None:
    response = hear(client, language="be-tarask")
    assert response.status_code == 200, response.text
    content = response.json()
    assert all("from 0.0 to 0.5 s" in warning for warning in content.pop("warnings"))  # of a model of random weights
    assert content == {
        "text": here(house, "transcribe-be@1", language="be"),
        "usage": {"type": "duration", "seconds": 0.5},
    }
    assert response.headers["X-Kauli-Adapter"] == "transcribe-be@1"
    assert response.headers["X-Kauli-Language"] == "be"
    assert response.headers["X-Kauli-Provenance"] == "ai-generated"
    named = hear(client, model="transcribe-ky", language=None)
    assert named.json()["text"] == here(house, "transcribe-ky@1")
    assert named.headers["X-Kauli-Language"] == "ky"


def test_the_base_hears_the_language_where_none_is_named(house: House, client: TestClient) -> None:
    for model in ("transcribe", "debug-whisper"):
        response = hear(client, model=model, language=None)
        assert response.json()["text"] == here(house, None)
        assert "X-Kauli-Adapter" not in response.headers
        assert response.headers["X-Kauli-Language"] in ("en", "be", "kk", "tt", "uz")
    assert hear(client, language="tt", allow_base="true").json()["text"] == here(house, None, language="tt")
    assert hear(client, model="debug-whisper", language="tt").headers["X-Kauli-Language"] == "tt"


def test_every_format_of_a_long_recording(house: House, client: TestClient) -> None:
    segments = transcribed_here(house.storage, "transcribe-be@1", LONG, language="be", words=True)
    assert len(segments) > 1
    shown = cues(segments)
    texts = {form: hear(client, LONG, response_format=form) for form in ("json", "text", "srt", "vtt", "verbose_json")}
    assert texts["json"].json()["text"] == as_text(segments)
    assert texts["text"].text == as_text(segments) + "\n"
    assert texts["srt"].text == as_srt(shown)
    assert texts["vtt"].text == as_vtt(shown)
    assert texts["vtt"].headers["content-type"].startswith("text/vtt")
    verbose = texts["verbose_json"].json()
    assert (verbose["task"], verbose["language"], verbose["duration"]) == ("transcribe", "be", 6.0)
    assert verbose["text"] == as_text(segments)
    assert verbose["warnings"] == texts["json"].json()["warnings"]
    found = [(one["id"], one["start"], one["end"], one["text"]) for one in verbose["segments"]]
    assert found == [(at, round(one.start, 3), round(one.end, 3), one.text) for at, one in enumerate(segments)]
    for one in verbose["segments"]:
        assert one["avg_logprob"] < 0
        assert one["tokens"]
        assert 0 <= one["no_speech_prob"] <= 1
        assert one["compression_ratio"] == compression_ratio(one["text"])
    assert "words" not in verbose


def test_words_have_their_times_when_they_are_asked_for(house: House, client: TestClient) -> None:
    segments = transcribed_here(house.storage, "transcribe-be@1", LONG, language="be", words=True)
    expected = [{"word": one.text, "start": one.start, "end": one.end} for part in segments for one in part.words]
    words = hear(client, LONG, response_format="verbose_json", **{"timestamp_granularities[]": "word"}).json()
    assert words["words"] == expected
    assert "segments" not in words
    assert "".join("".join(one["word"] for one in expected).split()) == "".join(words["text"].split())
    assert all(0 <= one["start"] <= one["end"] <= 6.0 for one in expected)
    for name in ("timestamp_granularities[]", "timestamp_granularities"):
        both = hear(client, LONG, response_format="verbose_json", **{name: ["word", "segment"]})
        assert both.json()["words"] == expected
        assert len(both.json()["segments"]) == len(segments)


def test_warnings_of_the_recording_reach_the_client(client: TestClient) -> None:
    clipped = encoded(np.clip(5 * sound(1), -1, 1))
    warning, *_ = hear(client, clipped, response_format="verbose_json").json()["warnings"]
    assert "clipped" in warning


def test_hum_has_no_transcript_and_guards_can_be_set(client: TestClient) -> None:
    times = np.arange(2 * RATE) / RATE
    hum = encoded((0.02 * np.sin(2 * np.pi * 50 * times)).astype(np.float32))
    found = hear(client, hum, language=None, model="debug-whisper", response_format="verbose_json").json()
    assert (found["text"], found["segments"], found["language"]) == ("", [], None)
    assert found["warnings"] == ["the transcript from 0.0 to 2.0 s is empty: steady noise near silence"]
    *deltas, done = streamed(hear(client, hum, stream="true"))
    assert (deltas, done["text"], done["warnings"]) == ([], "", found["warnings"])
    assert hear(client, hum, no_speech_threshold="1").json()["text"]
    # A threshold that any text is above
    lost = hear(client, no_speech_threshold="0", logprob_threshold="0").json()
    assert lost["text"] == ""
    assert "is left out: nothing seems to be spoken" in lost["warnings"][0]


def test_fields_of_other_clients_are_taken(house: House, client: TestClient) -> None:
    alone = here(house, None)
    assert hear(client, language="auto").json()["text"] == alone
    found = hear(client, language=None, user="me", chunking_strategy="auto", **{"include[]": "logprobs"}).json()
    assert found["text"] == alone
    assert "".join(bytes(one["bytes"]).decode() for one in found["logprobs"]).strip() == alone
    assert all(one["logprob"] <= 0 for one in found["logprobs"])
    assert hear(client, content_type="text/plain", language=None).json()["text"] == alone


def test_formats_of_files(house: House, client: TestClient) -> None:
    for kind, subtype in (("FLAC", None), ("OGG", "VORBIS"), ("MP3", None)):
        content = encoded(sound(1), kind, subtype=subtype)
        response = hear(client, content, content_type="application/octet-stream")
        assert response.json()["text"] == here(house, "transcribe-be@1", content, language="be")


def streamed(response: Any) -> list[dict[str, Any]]:
    assert response.headers["content-type"].startswith("text/event-stream"), response.text
    lines = [line.removeprefix("data: ") for line in response.text.split("\n\n") if line]
    assert lines.pop() == "[DONE]"
    return [json.loads(line) for line in lines]


@pytest.mark.parametrize("content", [CLIP, LONG], ids=["clip", "long"])
def test_a_stream_says_the_same_as_the_whole(client: TestClient, content: bytes) -> None:
    whole = hear(client, content).json()
    response = hear(client, content, stream="true")
    assert response.headers["X-Kauli-Adapter"] == "transcribe-be@1"
    *deltas, done = streamed(response)
    assert {event["type"] for event in deltas} == {"transcript.text.delta"}
    assert "".join(event["delta"] for event in deltas) == whole["text"]
    assert done == {"type": "transcript.text.done", "languages": [{"code": "be"}], **whole}
    assert len(deltas) > 1


def test_a_prompt_a_seed_and_a_temperature_are_used(house: House, client: TestClient) -> None:
    assert hear(client, prompt="dzień").json()["text"] == here(house, "transcribe-be@1", language="be", prompt="dzień")
    warm = [hear(client, temperature="1", seed=str(seed)).json()["text"] for seed in (1, 1, 2)]
    assert warm[0] == here(house, "transcribe-be@1", language="be", temperature=1.0, seed=1)
    assert warm[0] == warm[1] != warm[2]


def test_hot_words_and_the_language_model_are_options(
    house: House, client: TestClient, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("kauli.models.speech.hot_words.BONUS", 30.0)  # of random weights, which want nothing
    text = hear(client, hotwords="жаба, Абебе").json()["text"]
    assert text == here(house, "transcribe-be@1", language="be", hot_words=("жаба", "Абебе"), logprobs=0)
    assert {"жаба", "абебе"} & set(text.lower().split())
    timed = hear(client, hotwords="жаба", response_format="verbose_json").json()["segments"][0]
    assert timed["avg_logprob"] < 0  # the recogniser's own
    plain = hear(client, language_model="false").json()["text"]
    assert plain == here(house, "transcribe-be@1", language="be")


def test_forty_at_once_with_adapters_and_the_base(client: TestClient) -> None:
    asked = [("transcribe-be", "be"), ("transcribe-ky", "ky"), ("debug-whisper", "en"), ("debug-whisper", None)]
    alone = [hear(client, model=model, language=language).json()["text"] for model, language in asked]
    assert len(set(alone)) >= 3
    with ThreadPoolExecutor(40) as pool:
        together = [pool.submit(hear, client, model=model, language=language) for model, language in asked * 10]
        assert [one.result().json()["text"] for one in together] == alone * 10


def test_who_leaves_a_stream_frees_the_slot(house: House) -> None:
    """Straight through ASGI: the client sends its form, reads the first event, and is gone."""
    left = threading.Event()
    steps = [0]

    class Slow(WhisperTask):
        def step(self) -> Any:
            time.sleep(0.05)
            steps[0] += 1
            return super().step()

    task = Slow.load(find_base("debug", task="transcribe"), slots=1)
    transcriber = Transcriber(task, worker_args(house.storage))
    app = House(house.storage, house.generator, house.encoder, transcriber).app()
    head = b'--x\r\nContent-Disposition: form-data; name="%s"\r\n\r\n%s\r\n'
    file = b'--x\r\nContent-Disposition: form-data; name="file"; filename="a.wav"\r\n\r\n' + wav(3) + b"\r\n--x--\r\n"
    fields = ((b"model", b"debug-whisper"), (b"language", b"be"), (b"stream", b"true"))
    body = b"".join(head % pair for pair in fields) + file
    sent = [{"type": "http.request", "body": body, "more_body": False}]

    async def receive() -> Any:
        if sent:
            return sent.pop()
        while not left.is_set():
            await asyncio.sleep(0.01)
        return {"type": "http.disconnect"}

    async def send(message: Any) -> None:
        if message.get("body"):
            left.set()

    headers = [(b"host", b"localhost"), (b"content-type", b"multipart/form-data; boundary=x")]
    scope = {
        "type": "http", "asgi": {"version": "3.0", "spec_version": "2.3"}, "http_version": "1.1", "method": "POST",
        "path": PATH, "raw_path": PATH.encode(), "query_string": b"", "headers": headers, "scheme": "http",
    }  # fmt: skip

    async def run() -> None:
        await app(scope, receive, send)
        until = time.monotonic() + 5
        while task.busy and time.monotonic() < until:
            await asyncio.sleep(0.02)

    asyncio.run(run())
    assert not task.busy
    assert steps[0] < 60  # the whole would have taken more than a hundred
    transcriber.close()


# What is refused


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


# Recordings in chat


def spoken(content: bytes = CLIP, kind: str = "wav") -> dict[str, Any]:
    return {"type": "input_audio", "input_audio": {"data": base64.b64encode(content).decode(), "format": kind}}


def image(colour: str) -> dict[str, Any]:
    return {"type": "image_url", "image_url": {"url": data_uri(png(colour))}}


def text(words_: str) -> dict[str, Any]:
    return {"type": "text", "text": words_}


def chat(client: TestClient, *parts: dict[str, Any], **changes: Any) -> Any:
    body = {"model": "describe-sw", "max_tokens": 12, "ignore_eos": True}
    body["messages"] = [{"role": "user", "content": list(parts)}]
    return client.post("/v1/chat/completions", json=body | changes)


def answer(response: Any) -> str:
    assert response.status_code == 200, response.text
    return str(response.json()["choices"][0]["message"]["content"])


def test_a_recording_is_answered_as_in_this_process(house: House, client: TestClient) -> None:
    response = chat(client, spoken(), text("Nini?"), model="describe", language="sw")
    expected, tokens = said_here(house.storage, "describe-sw@1", MARK + "Nini?", [CLIP])
    assert answer(response) == expected
    assert response.json()["usage"]["prompt_tokens"] == tokens
    assert response.headers["X-Kauli-Adapter"] == "describe-sw@1"
    assert answer(chat(client, spoken(wav(1, 700)), text("Nini?"))) != expected


def test_pictures_and_recordings_stand_in_any_order(house: House, client: TestClient) -> None:
    other = encoded(sound(0.7, 500), "FLAC")
    parts = [text("moja"), spoken(), image("red"), text("mbili"), spoken(other, "flac")]
    expected, tokens = said_here(
        house.storage, "describe-sw@1", f"moja{MARK}{MARK}mbili{MARK}", [CLIP, png("red"), other]
    )
    response = chat(client, *parts)
    assert answer(response) == expected
    assert response.json()["usage"]["prompt_tokens"] == tokens
    swapped = chat(client, parts[0], parts[2], parts[1], parts[3], parts[4])
    assert answer(swapped) != expected


def test_the_second_time_is_a_hit(client: TestClient) -> None:
    clip = spoken(wav(1.3, 900))
    before = client.get("/health").json()["speech"]
    timings = [chat(client, clip).headers["Server-Timing"] for _ in range(2)]
    assert [timing.split(";")[1] for timing in timings] == ["desc=miss", "desc=hit"]
    after = client.get("/health").json()["speech"]
    assert (after["hits"] - before["hits"], after["misses"] - before["misses"]) == (1, 1)


@pytest.mark.parametrize(
    ("parts", "changes", "status", "code", "param", "words"),
    [
        ([text("x"), spoken(b"")], {}, 400, "invalid_audio", "messages.0.content.1", "empty"),
        ([spoken(encoded(np.zeros(RATE)))], {}, 400, "invalid_audio", "messages.0.content.0", "silent"),
        ([spoken(wav(5))], {}, 400, "invalid_audio", "messages.0.content.0", "4.0 are allowed"),
        ([spoken()] * 5, {}, 400, "too_many_recordings", "messages", "allows 4"),
        ([spoken()], {"model": "describe-am"}, 400, "no_recordings", "model", "such as 'describe-"),
        ([spoken()], {"model": "debug-text"}, 400, "no_recordings", "model", "such as 'describe-"),
        ([spoken()], {"model": "describe-other"}, 503, "wrong_encoder", "model", "setting audio.base: debug-whisper"),
        ([text("x")], {"model": "transcribe-be"}, 400, "invalid_value", "model", PATH),
        ([text("x")], {"model": "debug-whisper"}, 400, "invalid_value", "model", PATH),
    ],
)
def test_conversations_that_are_refused(
    client: TestClient, parts: Any, changes: Any, status: int, code: str, param: str, words: str
) -> None:
    response = chat(client, *parts, **changes)
    error = response.json()["error"]
    assert (response.status_code, error["code"], error["param"]) == (status, code, param), error
    assert words in error["message"]


def test_only_users_speak(client: TestClient) -> None:
    response = chat(client, messages=[{"role": "assistant", "content": [spoken()]}])
    assert response.status_code == 400
    assert "user's message" in response.json()["error"]["message"]


# What is served


def test_models_and_adapters_are_listed_loaded_and_unloaded(client: TestClient) -> None:
    models = {model["id"]: model for model in client.get("/v1/models").json()["data"]}
    assert models["debug-whisper"]["task"] == "transcribe"
    be = models["transcribe-be"]
    assert (be["parent"], be["language"], be["root"]) == ("debug-whisper", ["be"], "transcribe-be@1")
    loaded = client.post("/v1/adapters", json={"adapter": "transcribe-ky"}).json()
    assert (loaded["id"], loaded["parent"]) == ("transcribe-ky@1", "debug-whisper")
    assert {entry["id"]: entry["loaded"] for entry in client.get("/v1/adapters").json()["data"]}["transcribe-ky@1"]
    assert client.delete("/v1/adapters/transcribe-ky@1").status_code == 200
    assert hear(client, model="transcribe-ky", language="ky").status_code == 200
    assert client.get("/health").json()["status"] == "ok"


def test_a_new_adapter_answers_without_a_restart(house: House, client: TestClient) -> None:
    assert hear(client, language="kk").status_code == 404
    spec = publish_transcribe(house.storage, "transcribe-kk", "kk", 5)
    response = hear(client, language="kk")
    assert response.headers["X-Kauli-Adapter"] == spec
    assert response.json()["text"] == here(house, spec, language="kk")


def test_a_service_that_does_not_transcribe_says_so(house: House) -> None:
    for client in (house.client(audio=False, transcribes=False), house.client(transcribes=False)):
        response = hear(client)
        assert (response.status_code, response.json()["error"]["code"]) == (404, "model_not_found")
        assert "kauli fetch whisper-base" in response.json()["error"]["message"]
        assert "debug-whisper" not in {model["id"] for model in client.get("/v1/models").json()["data"]}
    assert answer(chat(house.client(transcribes=False), spoken()))  # an encoder is enough to talk
    deaf = chat(house.client(audio=False, transcribes=False), spoken())
    assert (deaf.status_code, deaf.json()["error"]["code"]) == (503, "unavailable")
    assert "kauli fetch debug-whisper" in deaf.json()["error"]["message"]
    large = chat(house.client(audio=False, transcribes=False), spoken(bytes(10_000_000)))
    assert large.status_code == 413


def test_docs_show_the_form(client: TestClient) -> None:
    page = client.get("/docs").text
    for shown in (PATH, "response_format", "timestamp_granularities[]", "allow_base", "input_audio", "file"):
        assert shown in page
    schema = client.get("/openapi.json").json()["paths"][PATH]["post"]["requestBody"]["content"]
    assert schema["multipart/form-data"]["schema"]["required"] == ["file", "model"]


# The openai client


def test_the_openai_client_transcribes_in_every_way(house: House, user: openai.OpenAI) -> None:
    expected = here(house, "transcribe-be@1", language="be")
    create: Any = user.audio.transcriptions.create
    file = ("clip.wav", CLIP)
    plain = create(file=file, model="transcribe", language="be")
    assert plain.text == expected
    assert (plain.usage.type, plain.usage.seconds) == ("duration", 0.5)
    verbose = create(
        file=file, model="transcribe-be", response_format="verbose_json", timestamp_granularities=["segment"]
    )
    assert (verbose.text, verbose.language, verbose.duration) == (expected, "be", 0.5)
    assert [(one.id, one.start, one.text) for one in verbose.segments] == [(0, 0.0, expected)]
    timed = create(file=file, model="transcribe-be", response_format="verbose_json", timestamp_granularities=["word"])
    assert "".join("".join(one.word for one in timed.words).split()) == "".join(expected.split())
    assert all(0 <= one.start <= one.end <= 0.5 for one in timed.words)
    assert create(file=file, model="transcribe-be", response_format="text").strip() == expected
    for form in ("srt", "vtt"):
        assert expected.split()[0] in create(file=file, model="transcribe-be", response_format=form)
    events = list(create(file=file, model="transcribe", language="be", stream=True))
    assert "".join(event.delta for event in events[:-1]) == events[-1].text == expected
    assert [event.type for event in events[-2:]] == ["transcript.text.delta", "transcript.text.done"]
    base = create(file=file, model="transcribe", language="tt", extra_body={"allow_base": True})
    assert base.text == here(house, None, language="tt")


def test_the_openai_client_gets_errors_as_its_own(user: openai.OpenAI) -> None:
    create: Any = user.audio.transcriptions.create
    with pytest.raises(openai.NotFoundError, match="whisper-1"):
        create(file=("clip.wav", CLIP), model="whisper-1")
    with pytest.raises(openai.BadRequestError, match="silent"):
        create(file=("clip.wav", encoded(np.zeros(RATE))), model="transcribe", stream=True)
    with pytest.raises(openai.BadRequestError, match="'letter'"):
        create(
            file=("clip.wav", CLIP), model="transcribe", response_format="verbose_json",
            timestamp_granularities=["letter"],
        )  # fmt: skip


def test_the_openai_client_speaks_in_a_conversation(house: House, user: openai.OpenAI) -> None:
    messages: Any = [{"role": "user", "content": [spoken(), text("Nini?")]}]
    found = user.chat.completions.create(
        model="describe", messages=messages, max_tokens=12, extra_body={"language": "sw", "ignore_eos": True}
    )
    assert found.choices[0].message.content == said_here(house.storage, "describe-sw@1", MARK + "Nini?", [CLIP])[0]
