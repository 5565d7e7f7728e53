"""Speech over HTTP: every format, streams, times of words, voices; by the `openai` client; and what is refused."""

import asyncio
import base64
import io
import json
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import openai
import pytest
import soundfile
from fastapi.testclient import TestClient

from kauli.models.adapters.registry import Registry
from kauli.models.bases.find import find_base
from kauli.models.media.decode import decode_audio
from kauli.models.media.encode import MEDIA_TYPES
from kauli.models.requests import SpeechRequest
from kauli.models.speech.speak import SpeakTask
from kauli.models.speech.watermark import THRESHOLD, watermark
from kauli.serving.events import Failed, SpeechStarted
from kauli.serving.http.app import create_app
from kauli.serving.routing import Catalogue
from kauli.serving.settings import ServeArgs
from kauli.serving.workers.speaker import Speaker
from support.settings import worker_args
from support.voices import publish_voice

pytestmark = pytest.mark.weights  # the network of the watermark
PATH = "/v1/audio/speech"
TEXT = "Habari za asubuhi, rafiki yangu. Watoto wanacheza."


@pytest.fixture(scope="module")
def speaker(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Speaker]:
    task = SpeakTask.load(find_base("debug", task="speak"), device="cpu", slots=2)
    found = Speaker(task, worker_args(tmp_path_factory.mktemp("store"), max_queue=3))
    yield found
    found.close()


def client_of(speaker: Speaker | None, **settings: Any) -> TestClient:
    storage = speaker._args.storage if speaker else "/nowhere"
    args = ServeArgs(storage=storage, refresh_s=0, **settings)
    base = find_base("debug", task="speak")
    catalogue = Catalogue(Registry(storage), {"voice": [base]} if speaker else {}, 0)
    workers = {"voice": {base.name: speaker}} if speaker else {}
    app = create_app(workers, catalogue, args)
    return TestClient(app, base_url="http://127.0.0.1:8000", raise_server_exceptions=False)


@pytest.fixture(scope="module")
def client(speaker: Speaker) -> TestClient:
    return client_of(speaker)


@pytest.fixture(scope="module")
def adapted(speaker: Speaker) -> str:
    """An adapter for Swahili that is better than its base, and one for Belarusian that is not."""
    registry = Registry(speaker._args.storage)
    publish_voice(Path(speaker._args.storage), "speak-be", "be", 2)
    spec = publish_voice(Path(speaker._args.storage), "speak-sw", "sw", 1)
    registry.set_alias("speak-sw", 1, "latest")
    return spec


def test_an_adapter_speaks_its_language_and_the_base_all_others(
    speaker: Speaker, client: TestClient, adapted: str
) -> None:
    by_adapter = say(client, input=TEXT, language="sw", response_format="wav")
    assert by_adapter.headers["x-kauli-adapter"] == adapted
    assert by_adapter.headers["x-kauli-voice"] == "debug"
    assert say(client, input=TEXT, response_format="wav").content == by_adapter.content  # its language is detected
    base = say(client, input=TEXT, language="sw", response_format="wav", model="debug-vits")
    assert "x-kauli-adapter" not in base.headers
    assert base.content != by_adapter.content
    assert say(client, input=TEXT, language="sw", response_format="wav", model=adapted).content == by_adapter.content
    for fields in ({"language": "ky"}, {"language": "be"}, {"language": "sw", "voice": "espeak"}):
        assert (
            "x-kauli-adapter"
            not in say(client, input="Салам" if fields["language"] != "sw" else TEXT, **fields).headers
        )
    named = say(client, input="Добры дзень", language="be", model="speak-be")
    assert named.headers["x-kauli-adapter"] == "speak-be@1"
    by_voice = say(client, input=TEXT, language="sw", response_format="wav", voice="speak-sw")
    assert by_voice.content == by_adapter.content
    voices = {one["id"]: one for one in client.get("/v1/audio/voices").json()["voices"]}
    assert list(voices) == ["debug", "espeak", "speak-be", "speak-sw"]
    assert voices["speak-sw"]["model"] == adapted
    assert [voices["speak-sw"][key] for key in ("language", "licence", "consent")] == ["sw", "CC0-1.0", "not recorded"]
    wrong = client.post(PATH, json={"input": TEXT, "language": "be", "model": adapted})
    assert wrong.status_code == 404
    assert "for sw, not for 'be'" in wrong.json()["error"]["message"]
    assert {one["adapter"]: one["in_use"] for one in asyncio.run(speaker.adapters())} == {adapted: 0, "speak-be@1": 0}


def say(client: TestClient, **fields: Any) -> Any:
    return client.post(PATH, json={"model": "speak", "input": TEXT, "language": "sw"} | fields)


@pytest.mark.parametrize("form", MEDIA_TYPES)
def test_every_format(client: TestClient, form: str) -> None:
    answer = say(client, response_format=form)
    assert answer.status_code == 200
    assert answer.headers["content-type"].startswith(MEDIA_TYPES[form])
    assert (answer.headers["X-Kauli-Language"], answer.headers["X-Kauli-Voice"]) == ("sw", "debug")
    assert answer.headers["X-Kauli-Provenance"] == "ai-generated"
    assert len(answer.content) > 1000
    if form in ("mp3", "opus", "flac", "wav"):
        assert (
            "AI-generated speech by Kauli; voice debug; language sw"
            in soundfile.SoundFile(io.BytesIO(answer.content)).comment
        )


def test_the_same_request_gives_the_same_bytes_and_every_one_is_marked(client: TestClient) -> None:
    first, same, other = (say(client, response_format="wav", seed=seed).content for seed in (0, 0, 1))
    assert first == same != other
    spoken = say(client, response_format="wav", voice="espeak").content
    assert watermark().score(decode_audio(spoken).samples, 16_000) > THRESHOLD
    fast, slow = (decode_audio(say(client, speed=speed).content).seconds for speed in (2, 0.5))
    assert 1.8 * fast < slow  # the pauses and frames of one symbol stay


def test_a_stream_is_the_file_in_parts(client: TestClient) -> None:
    whole = decode_audio(say(client, response_format="wav").content)
    with client.stream("POST", PATH, json={"input": TEXT, "language": "sw", "stream_format": "audio",
                                           "response_format": "pcm"}) as answer:  # fmt: skip
        data = b"".join(answer.iter_bytes())
    assert abs(len(data) / 2 / 24_000 - whole.seconds) < 0.01
    answer = say(client, response_format="pcm", stream_format="sse")
    assert answer.headers["content-type"].startswith("text/event-stream")
    events = [json.loads(line.removeprefix("data: ")) for line in answer.text.split("\n\n") if line]
    assert [one["type"] for one in events[:-1]] == ["speech.audio.delta"] * (len(events) - 1)
    assert len(events) == 3  # two sentences
    assert b"".join(base64.b64decode(one["audio"]) for one in events[:-1]) == data
    assert events[-1]["usage"] == {"input_tokens": len(TEXT), "output_tokens": 0, "total_tokens": len(TEXT)}


def test_times_of_words(client: TestClient) -> None:
    found = say(client, response_format="json").json()
    words = found["words"]
    assert " ".join(one["word"] for one in words) == TEXT
    assert all(one["start"] < one["end"] <= found["seconds"] for one in words)
    assert [one["start"] for one in words] == sorted(one["start"] for one in words)
    assert abs(decode_audio(base64.b64decode(found["audio"])).seconds - found["seconds"]) < 0.15
    subtitles = say(client, response_format="vtt")
    assert subtitles.headers["content-type"].startswith("text/vtt")
    assert subtitles.text.startswith("WEBVTT")
    assert "Watoto" in subtitles.text
    grid = say(client, response_format="textgrid").text
    assert 'name = "words@kauli"' in grid
    assert 'text = "rafiki"' in grid
    assert "00:00:00," in say(client, response_format="srt").text


def test_the_openai_client(client: TestClient, tmp_path: Path) -> None:
    user = openai.OpenAI(base_url="http://127.0.0.1:8000/v1", api_key="none", max_retries=0, http_client=client)
    with user.audio.speech.with_streaming_response.create(
        model="speak", voice="debug", input=TEXT, response_format="flac", instructions="Speak kindly.",
        extra_body={"language": "sw"},
    ) as answer:  # fmt: skip
        answer.stream_to_file(tmp_path / "a.flac")
        assert answer.headers["X-Kauli-Ignored"] == "instructions"
    assert soundfile.info(tmp_path / "a.flac").samplerate == 24_000


def test_voices_and_models(client: TestClient) -> None:
    voices = client.get("/v1/audio/voices").json()["voices"][:2]
    assert [one["id"] for one in voices] == ["debug", "espeak"]
    assert all(one["licence"] and one["consent"] and one["name"] for one in voices)
    assert [one["synthetic"] for one in voices] == [False, True]
    assert "debug-vits" in [one["id"] for one in client.get("/v1/models").json()["data"]]
    assert client.get("/health").json()["status"] == "ok"


def test_a_lexicon_and_what_is_not_read(client: TestClient) -> None:
    plain, other = (
        say(client, input="mama", response_format="wav", lexicon=one).content for one in ({}, {"mama": "bobo"})
    )
    assert plain != other
    answer = say(client, input="habari 你好", response_format="json")
    assert answer.json()["unread"] == ["你", "好"]
    own = say(client, input="habari 你好", response_format="wav", voice="espeak").content
    assert own == say(client, input="habari   ", response_format="wav", voice="espeak").content
    assert answer.headers["X-Kauli-Unread"] == "%E4%BD%A0%E5%A5%BD"


@pytest.mark.parametrize(
    ("fields", "words", "param"),
    [
        ({"input": ""}, "the text is empty", "input"),
        ({"input": "你好"}, "nothing to read in Swahili", "input"),
        ({"input": "a" * 5000}, "input has 5000 characters; this service speaks 4096", "input"),
        ({"voice": "alloy"}, "there is no voice 'alloy'. Voices: debug, espeak", "voice"),
        ({"voice": {"id": "alloy"}}, "there is no voice 'alloy'", "voice"),
        ({"response_format": "mp4"}, "response_format", "response_format"),
        ({"response_format": "vtt", "stream_format": "sse"}, "stream_format is for audio", "stream_format"),
        ({"voice": "espeak", "lexicon": {"a": "b"}}, "the voice espeak takes no pronunciations", "input"),
        ({"voice": "espeak", "input": "[a](/b/)"}, "the voice espeak takes no pronunciations", "input"),
        ({"speed": 9}, "speed", "speed"),
        ({"language": "yo"}, "eSpeak has no voice for Yoruba", "language"),
        ({"language": "xx"}, "unknown language 'xx'", None),
        ({"lexicon": {"a": "Ж"}}, "'Ж' in /Ж/ is no sound", "input"),
        ({"speeed": 1}, "unknown field 'speeed'. Did you mean 'speed'?", "speeed"),
        ({"input": "[pause:99s] a"}, "is too long: 10s at most", "input"),
    ],
)  # fmt: skip
def test_refusals(client: TestClient, fields: dict[str, Any], words: str, param: str | None) -> None:
    answer = say(client, **fields)
    assert answer.status_code == 400, answer.text
    error = answer.json()["error"]
    assert words in error["message"]
    assert param is None or error["param"] == param


def test_where_no_voice_is_served() -> None:
    for answer in (say(client_of(None)), client_of(None).get("/v1/audio/voices")):
        assert answer.status_code == 404
        assert "run `kauli fetch piper-vits`" in answer.json()["error"]["message"]


def test_texts_take_turns_and_a_client_that_leaves_frees_its_place(speaker: Speaker) -> None:
    async def told() -> tuple[list[int], int]:
        order: list[int] = []

        async def hear(number: int, text: str) -> None:
            async for event in speaker.stream(SpeechRequest(text, "sw")):
                assert not isinstance(event, Failed), event
                if not isinstance(event, SpeechStarted):
                    order.append(number)

        long = "Habari za leo. " * 12
        await asyncio.gather(hear(0, long), hear(1, long), hear(2, "Ndiyo."))
        leaving = speaker.stream(SpeechRequest(long, "sw"))
        await anext(leaving)
        await leaving.aclose()
        return order, speaker._open

    order, left = asyncio.run(told())
    assert order.index(2) < 8  # before the long ones end
    assert left == 0


def test_a_full_queue_and_a_failure_are_told(
    speaker: Speaker, client: TestClient, monkeypatch: pytest.MonkeyPatch
) -> None:
    held = threading.Event()
    real = speaker._task.speak

    def slow(jobs: Any) -> Any:
        held.wait(20)
        return real(jobs)

    monkeypatch.setattr(speaker._task, "speak", slow)
    threads = [threading.Thread(target=say, args=(client,)) for _ in range(5)]
    for one in threads:
        one.start()
    until = time.monotonic() + 20
    while speaker._open < 5 and time.monotonic() < until:
        time.sleep(0.01)
    answer = say(client)
    assert answer.status_code == 429
    assert answer.headers["Retry-After"] == "2"
    held.set()
    for one in threads:
        one.join()

    def broken(jobs: Any) -> Any:
        raise RuntimeError("no")

    monkeypatch.setattr(speaker._task, "speak", broken)
    assert say(client).status_code == 500
    monkeypatch.setattr(speaker._task, "speak", real)
    assert say(client).status_code == 200
