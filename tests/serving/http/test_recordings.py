"""Recordings in chat: answered beside pictures as in this process, kept for the second time, refused."""

from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import openai
import pytest
from fastapi.testclient import TestClient

from kauli.models.media.decode import RATE
from kauli.models.requests import MARK
from support.audio_service import CLIP, PATH, House, answer, chat, open_house, spoken
from support.picture_adapters import data_uri, png
from support.speech_adapters import encoded, said_here, sound, wav


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


def image(colour: str) -> dict[str, Any]:
    return {"type": "image_url", "image_url": {"url": data_uri(png(colour))}}


def text(words_: str) -> dict[str, Any]:
    return {"type": "text", "text": words_}


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


def test_the_openai_client_speaks_in_a_conversation(house: House, user: openai.OpenAI) -> None:
    messages: Any = [{"role": "user", "content": [spoken(), text("Nini?")]}]
    found = user.chat.completions.create(
        model="describe", messages=messages, max_tokens=12, extra_body={"language": "sw", "ignore_eos": True}
    )
    assert found.choices[0].message.content == said_here(house.storage, "describe-sw@1", MARK + "Nini?", [CLIP])[0]
