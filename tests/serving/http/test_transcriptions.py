"""Recordings transcribed over HTTP: every format and option, streams, many at once; by the `openai` client too."""

import asyncio
import json
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
import openai
import pytest
from fastapi.testclient import TestClient

from kauli.models.bases.find import find_base
from kauli.models.media.decode import RATE
from kauli.models.speech.chunking import as_text
from kauli.models.speech.guards import compression_ratio
from kauli.models.speech.subtitles import as_srt, as_vtt, cues
from kauli.models.speech.whisper import WhisperTask
from kauli.serving.workers.transcriber import Transcriber
from support.audio_service import CLIP, PATH, House, answer, chat, hear, open_house, spoken
from support.settings import worker_args
from support.speech_adapters import encoded, publish_transcribe, sound, transcribed_here, wav, words

LONG = encoded(words(3))


@pytest.fixture(scope="module")
def house(publish: Callable[..., str], tmp_path_factory: pytest.TempPathFactory) -> Iterator[House]:
    with open_house(publish, tmp_path_factory) as opened:
        yield opened


@pytest.fixture(scope="module")
def client(house: House) -> TestClient:
    return house.client()


@pytest.fixture(scope="module")
def user(client: TestClient) -> openai.OpenAI:
    return openai.OpenAI(base_url="http://127.0.0.1:8000/v1", api_key="none", max_retries=0, http_client=client)


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
