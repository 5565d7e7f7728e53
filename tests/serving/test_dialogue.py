"""Voice to voice: a recording transcribed, answered or translated and spoken, whole and streamed, by debug bases."""

import asyncio
import base64
import json
from collections.abc import AsyncGenerator, Callable, Iterator
from contextlib import ExitStack, closing
from pathlib import Path
from typing import Any

import pytest
from fastapi.testclient import TestClient

from kauli.models.adapters.registry import Registry
from kauli.models.bases.find import find_base
from kauli.models.media.decode import decode_audio
from kauli.models.requests import SpeechRequest
from kauli.models.speech.speak import SpeakTask
from kauli.models.speech.whisper import WhisperTask
from kauli.models.text.task import TextTask
from kauli.serving.dialogue import Asked, Dialogue, _parts, aloud
from kauli.serving.events import Refused
from kauli.serving.http.app import create_app
from kauli.serving.routing import Catalogue
from kauli.serving.settings import ServeArgs
from kauli.serving.workers.speaker import Speaker
from kauli.serving.workers.text import TextGenerator
from kauli.serving.workers.transcriber import Transcriber
from support.settings import worker_args
from support.speech_adapters import publish_transcribe, wav
from support.text_adapters import publish_translator

pytestmark = pytest.mark.weights  # the network of the watermark
PATH = "/v1/audio/dialogue"
CLIP = wav(0.6)
House = tuple[Path, dict[str, Any]]


@pytest.fixture(scope="module")
def house(
    publish: Callable[..., str], tmp_path_factory: pytest.TempPathFactory
) -> Iterator[tuple[Path, dict[str, Any]]]:
    storage = tmp_path_factory.mktemp("store")
    publish(storage, "text-be", "be", 1)
    publish_transcribe(storage, "transcribe-be", "be", 1)
    publish_translator(storage, "translate-be", "be", find_base("debug"))
    args = worker_args(storage, max_adapters=4)
    with ExitStack() as stack:
        found = {
            "text": TextGenerator(TextTask.load(find_base("debug"), slots=4), args),
            "audio": Transcriber(WhisperTask.load(find_base("debug", task="transcribe"), slots=4), args),
            "voice": Speaker(SpeakTask.load(find_base("debug", task="speak"), device="cpu"), args),
        }
        for one in found.values():
            stack.enter_context(closing(one))
        yield storage, found


@pytest.fixture(scope="module")
def client(house: House) -> TestClient:
    return client_of(house, ("text", "audio", "voice"))


def client_of(house: House, running: tuple[str, ...], **settings: Any) -> TestClient:
    storage, workers = house
    args = ServeArgs(storage=str(storage), refresh_s=0, **settings)
    tasks = {"text": "text", "audio": "transcribe", "voice": "speak"}
    bases = {name: [find_base("debug", task=tasks[name])] for name in running}
    catalogue = Catalogue(Registry(str(storage)), bases, 0)
    app = create_app({name: {bases[name][0].name: workers[name]} for name in running}, catalogue, args)
    return TestClient(app, base_url="http://127.0.0.1:8000", raise_server_exceptions=False)


def talk(client: TestClient, content: bytes = CLIP, **fields: Any) -> Any:
    values = {"language": "be", "max_tokens": 8} | fields
    values = {name: str(value) for name, value in values.items() if value is not None}
    return client.post(PATH, files={"file": ("a.wav", content)}, data=values)


def test_an_answer_comes_with_what_was_heard_and_who_did_it(client: TestClient) -> None:
    found = talk(client).json()
    alone = client.post(
        "/v1/audio/transcriptions", files={"file": ("a.wav", CLIP)}, data={"model": "transcribe", "language": "be"}
    ).json()
    assert found["transcript"] == alone["text"]
    assert found["models"] == {"transcribe": "transcribe-be@1", "text": "text-be@1", "speak": "debug-vits"}
    body = {"model": "text-be", "max_tokens": 8, "messages": [{"role": "user", "content": found["transcript"]}]}
    assert found["text"] == client.post("/v1/chat/completions", json=body).json()["choices"][0]["message"]["content"]
    assert (found["language"], found["spoken_language"]) == ("be", "be")
    if found["seconds"]:
        assert abs(decode_audio(base64.b64decode(found["audio"])).seconds - found["seconds"]) < 0.2


def test_a_translation_is_spoken_in_its_language(client: TestClient) -> None:
    found = talk(client, target="en", response_format="wav").json()
    assert found["models"] == {"transcribe": "transcribe-be@1", "translate": "translate-be@1", "speak": "debug-vits"}
    assert (found["language"], found["spoken_language"], found["format"]) == ("be", "en", "wav")


def test_a_stream_tells_each_step(client: TestClient) -> None:
    answer = talk(client, stream="true", response_format="pcm")
    lines = [line.removeprefix("data: ") for line in answer.text.split("\n\n") if line]
    assert lines[-1] == "[DONE]"
    events = [json.loads(line) for line in lines[:-1]]
    assert events[0]["type"] == "transcript.text.done"
    assert events[-1]["type"] == "response.completed"
    assert "".join(one["delta"] for one in events if one["type"].endswith("text.delta")) == events[-1]["text"]
    audio = b"".join(base64.b64decode(one["audio"]) for one in events if one["type"] == "speech.audio.delta")
    assert len(audio) / 48_000 == pytest.approx(events[-1]["seconds"], abs=0.01)


@pytest.mark.parametrize(
    ("fields", "status", "words"),
    [
        ({"voice": "alloy"}, 400, "there is no voice 'alloy'"),
        ({"response_format": "mp4"}, 400, "'mp4' is no audio format"),
        ({"language": "xx"}, 400, "unknown language 'xx'"),
        ({"target": "yo"}, 404, "nothing translates 'be' to 'yo' here"),
        ({"max_tokens": 5000}, 400, "max_tokens is 5000; this service allows 1024"),
        ({"speeed": 1}, 400, "unknown field 'speeed'. Did you mean 'speed'?"),
    ],
)
def test_refusals(client: TestClient, fields: dict[str, Any], status: int, words: str) -> None:
    answer = talk(client, **fields)
    assert answer.status_code == status, answer.text
    assert words in answer.json()["error"]["message"]


def test_a_file_that_is_no_audio_and_services_that_do_not_run(client: TestClient, house: House) -> None:
    assert talk(client, b"no audio").status_code == 400
    assert "kauli fetch piper-vits" in talk(client_of(house, ("text", "audio"))).text
    assert "kauli fetch whisper-base" in talk(client_of(house, ("text", "voice"))).text


async def pieces(*texts: str) -> AsyncGenerator[str]:
    for text in texts:
        yield text
        await asyncio.sleep(0)


async def collected(parts: AsyncGenerator[Any]) -> list[Any]:
    return [part async for part in parts]


def heard(speaker: Speaker, *texts: str, **fields: Any) -> tuple[list[Any], Dialogue]:
    async def listen() -> tuple[list[Any], Dialogue]:
        told = Dialogue(Asked("sw"))
        request = SpeechRequest("", "sw", **fields)
        return [part async for part in aloud(pieces(*texts), speaker, request, told)], told

    return asyncio.run(listen())


def test_sentences_are_spoken_while_the_answer_is_written(house: House) -> None:
    speaker = house[1]["voice"]
    texts = ("Habari za asubuhi, ", "rafiki. Wato", "to wanacheza ", "leo. *** ", "你好吗朋友们大家好。 Ndiyo.")
    parts, told = heard(speaker, *texts)
    assert [part for part in parts if isinstance(part, str)] == list(texts)
    assert sum(not isinstance(part, str) for part in parts) == 3
    assert told.unread[:2] == ["你", "好"]
    assert told.seconds == pytest.approx(sum(len(part) for part in parts if not isinstance(part, str)) / 24_000)
    with pytest.raises(Refused, match="no voice 'alloy'"):
        heard(speaker, "Habari za asubuhi. Ndiyo.", voice="alloy")

    with pytest.raises(Refused, match="eSpeak has no voice for Yoruba"):  # not passed over, sentence by sentence
        asyncio.run(collected(aloud(pieces("Habari."), speaker, SpeechRequest("", "yo"), Dialogue(Asked("yo")))))

    async def broken() -> AsyncGenerator[str]:
        yield "Habari. "
        raise RuntimeError("lost")

    async def listen() -> None:
        async for _ in aloud(broken(), speaker, SpeechRequest("", "sw"), Dialogue(Asked("sw"))):
            pass

    with pytest.raises(RuntimeError, match="lost"):
        asyncio.run(listen())


MESSAGES = [{"role": "user", "content": "qa"}]


def chat(client: TestClient, **fields: Any) -> Any:
    body = {"model": "text-be", "messages": MESSAGES, "max_tokens": 8, "ignore_eos": True}
    return client.post("/v1/chat/completions", json=body | {"modalities": ["text", "audio"]} | fields)


def test_an_answer_of_a_chat_is_spoken(client: TestClient) -> None:
    plain = chat(client, modalities=["text"]).json()["choices"][0]["message"]
    assert "audio" not in plain
    found = chat(client, audio={"voice": "debug", "format": "flac"}).json()["choices"][0]["message"]
    assert found["content"] == found["audio"]["transcript"] == plain["content"]
    assert found["audio"]["id"].startswith("audio_")
    assert base64.b64decode(found["audio"]["data"])[:4] == b"fLaC"


def test_a_streamed_answer_of_a_chat_is_spoken(client: TestClient) -> None:
    answer = chat(client, stream=True, audio={"voice": {"id": "debug"}, "format": "pcm16"})
    lines = [line.removeprefix("data: ") for line in answer.text.split("\n\n") if line]
    assert lines[-1] == "[DONE]"
    assert lines.count("[DONE]") == 1
    chunks = [json.loads(line)["choices"][0] for line in lines[:-1]]
    text = "".join(one["delta"].get("content", "") for one in chunks)
    assert text == chat(client, modalities=["text"]).json()["choices"][0]["message"]["content"]
    audio = [one["delta"]["audio"]["data"] for one in chunks if "audio" in one["delta"]]
    spoken = client.post("/v1/audio/speech", json={"input": text, "language": "be", "response_format": "pcm"})
    assert bool(audio) == (spoken.status_code == 200)
    for fields, words in (
        ({"stream": True}, "a stream is spoken as pcm16, not as wav"), ({"n": 2}, "one answer is spoken"),
        ({"audio": {"voice": "alloy"}}, "there is no voice 'alloy'"), ({"modalities": ["video"]}, "modalities"),
    ):  # fmt: skip
        refused = chat(client, **fields)
        assert refused.status_code == 400
        assert words in refused.json()["error"]["message"]


def test_an_answer_is_cut_at_sentences() -> None:
    assert _parts("Habari za leo rafiki. Sawa") == ["Habari za leo rafiki. ", "Sawa"]
    assert _parts("Ndiyo. Habari za leo rafiki? Sawa") == ["Ndiyo. Habari za leo rafiki? ", "Sawa"]
    assert _parts("ሰዎች ሁሉ ነጻ ሆነው የተወለዱ ናቸው። ሰላም") == ["ሰዎች ሁሉ ነጻ ሆነው የተወለዱ ናቸው። ", "ሰላም"]
    assert _parts("Dr. Smith has 3.5") == ["Dr. Smith has 3.5"]
