"""One real run of the service on Ray Serve, asked through the real `openai` client."""

import base64
import io
import json
import os
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import Future
from dataclasses import replace
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import openai
import psutil
import pytest
import torch
from openai import DefaultHttpxClient, OpenAI
from transformers import AutoTokenizer

from kauli.deploy.cli.demo import Demo
from kauli.deploy.cli.demo_lessons import lessons
from kauli.deploy.cli.demo_output import Story
from kauli.models.adapters.registry import Registry
from kauli.models.bases.find import find_base
from kauli.models.errors import UsageError
from kauli.models.media.decode import decode_image
from kauli.models.requests import MARK, TextRequest
from kauli.models.speech.chunking import as_text
from kauli.models.text.task import TextTask
from kauli.models.vision.align import AlignTask
from kauli.serving.app import Service, start
from kauli.serving.settings import ServeArgs
from support.picture_adapters import CLASSES, data_uri, described_here, large_png, png, publish_describe, publish_head
from support.speech_adapters import (
    encoded,
    publish_hearing,
    publish_transcribe,
    said_here,
    transcribed_here,
    wav,
    words,
)

pytestmark = pytest.mark.ray
Publish = Callable[[Path, str, str, int], str]
QUESTION: list[Any] = [{"role": "user", "content": "Habari"}]


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


@pytest.fixture(scope="module")
def storage(publish: Publish, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("KAULI_HOME", str(tmp_path_factory.mktemp("home")))
        folder = tmp_path_factory.mktemp("store")
        publish(folder, "text-sw", "sw", 1)
        publish_describe(folder, "describe-sw", "sw", 2)
        shots = AlignTask.load(find_base("debug", task="align")).embed_images(
            [decode_image(png(colour)) for colour in ("red", "blue")]
        )
        publish_head(folder, "topic-sw", "sw", shots, torch.tensor([0, 1]))
        publish_transcribe(folder, "transcribe-be", "be", 3)
        publish_hearing(folder, "describe-be", "be", 4)
        yield folder


@pytest.fixture(scope="module")
def service(storage: Path) -> Iterator[Service]:
    share = {"num_cpus": 0.2}  # so that a training finds free ones
    running = start(
        ServeArgs(
            storage=str(storage), port=free_port(), threads=1, max_tokens=1000, cors_origins=["https://app.example"],
            text=share, image=share, audio=share,
        )
    )  # fmt: skip
    yield running
    running.stop()


@pytest.fixture
def client(service: Service) -> OpenAI:
    return OpenAI(
        base_url=f"{service.url}/v1", api_key="none", max_retries=0, timeout=60,
        http_client=DefaultHttpxClient(trust_env=False),
    )  # fmt: skip


def complete(client: OpenAI, model: str, **options: Any) -> Any:
    return client.chat.completions.create(model=model, messages=QUESTION, **{"max_tokens": 12} | options)


def test_base_and_adapter_answer_as_in_this_process(client: OpenAI, storage: Path) -> None:
    task = TextTask.load(find_base("debug"))
    task.add_adapter("text-sw@1", Registry(str(storage)).fetch("text-sw@1"))
    answers = {}
    for adapter in (None, "text-sw@1"):
        chunks = task.generate([TextRequest.of_prompt("Habari", max_tokens=12)], [adapter])
        answers[adapter] = "".join(chunk.text for step in chunks for chunk in step)
    assert complete(client, "debug-text").choices[0].message.content == answers[None]
    chosen = client.chat.completions.with_raw_response.create(
        model="text", messages=QUESTION, max_tokens=12, extra_body={"language": "sw"}
    )
    assert chosen.headers["X-Kauli-Adapter"] == "text-sw@1"
    assert chosen.parse().choices[0].message.content == answers["text-sw@1"]
    assert answers[None] != answers["text-sw@1"]


def test_streaming(client: OpenAI) -> None:
    plain = complete(client, "text-sw")
    chunks = list(complete(client, "text-sw", stream=True, stream_options={"include_usage": True}))
    text = "".join(chunk.choices[0].delta.content or "" for chunk in chunks if chunk.choices)
    assert text == plain.choices[0].message.content
    assert chunks[-1].usage == plain.usage
    assert [c.choices[0].finish_reason for c in chunks if c.choices and c.choices[0].finish_reason] == ["length"]


def show(client: OpenAI, uri: str, **options: Any) -> Any:
    content = [{"type": "image_url", "image_url": {"url": uri}}, {"type": "text", "text": "Ni nini?"}]
    return client.chat.completions.with_raw_response.create(
        model="describe", messages=[{"role": "user", "content": content}],  # type: ignore[list-item, misc]
        max_tokens=12, extra_body={"language": "sw", "ignore_eos": True}, **options,
    )  # fmt: skip


def test_a_picture_is_described_as_in_this_process(client: OpenAI, storage: Path) -> None:
    expected, tokens = described_here(storage, "describe-sw@1", f"{MARK}Ni nini?", ["red"])
    first, second = (show(client, data_uri(png("red"))) for _ in range(2))
    assert first.headers["X-Kauli-Adapter"] == "describe-sw@1"
    assert first.parse().choices[0].message.content == expected
    assert first.parse().usage.prompt_tokens == tokens
    assert second.headers["Server-Timing"].startswith("encoder;desc=hit")
    assert show(client, data_uri(large_png())).parse().choices[0].message.content
    with pytest.raises(openai.BadRequestError, match="remote images are not fetched"):
        show(client, "https://example.org/a.png")
    with pytest.raises(openai.BadRequestError, match="truncated"):
        show(client, data_uri(png("red")[:-20]))


def test_pictures_and_texts_in_one_space(client: OpenAI, service: Service) -> None:
    found = client.embeddings.create(model="embed", input=["gari", data_uri(png("red"))])
    task = AlignTask.load(find_base("debug", task="align"))
    expected = torch.cat([task.embed_texts(["gari"]), task.embed_images([decode_image(png("red"))])])
    assert np.allclose([one.embedding for one in found.data], expected.numpy(), atol=1e-5)
    http = httpx.Client(base_url=service.url, trust_env=False, timeout=30)
    body = {"model": "classify", "language": "sw", "input": [data_uri(png("blue")), data_uri(png("red"))]}
    labels = [one["label"] for one in http.post("/v1/classify", json=body).json()["data"]]
    assert labels == [CLASSES[1], CLASSES[0]]
    assert http.get("/health").json()["encoder"]["misses"] >= 2
    assert {"debug-clip", "topic-sw", "describe-sw"} <= {model.id for model in client.models.list()}


def test_recordings_are_transcribed_as_in_this_process(client: OpenAI, storage: Path, service: Service) -> None:
    create: Any = client.audio.transcriptions.create
    long = encoded(words(4))
    for content in (wav(0.5), long):
        expected = as_text(transcribed_here(storage, "transcribe-be@1", content, language="be"))
        file = ("clip.wav", content)
        assert create(file=file, model="transcribe", language="be").text == expected
        events = list(create(file=file, model="transcribe-be", stream=True))
        assert "".join(event.delta for event in events[:-1]) == events[-1].text == expected
    verbose = create(file=("long.wav", long), model="transcribe-be", response_format="verbose_json")
    assert (verbose.language, verbose.duration, len(verbose.segments) > 1) == ("be", 8.0, True)
    base = create(file=("clip.wav", wav(0.5)), model="debug-whisper", language="tt")
    assert base.text == as_text(transcribed_here(storage, None, wav(0.5), language="tt"))
    with pytest.raises(openai.BadRequestError, match="this is an image"):
        create(file=("clip.wav", png("red")), model="transcribe", language="be")
    with pytest.raises(openai.NotFoundError, match="kauli train transcribe-be --set language=sw"):
        create(file=("clip.wav", wav(0.5)), model="transcribe", language="sw")
    assert "hits" in httpx.get(f"{service.url}/health", trust_env=False).json()["speech"]


def test_a_recording_and_a_picture_are_answered_as_in_this_process(client: OpenAI, storage: Path) -> None:
    audio = {"data": base64.b64encode(wav(0.5)).decode(), "format": "wav"}
    content: Any = [
        {"type": "input_audio", "input_audio": audio},
        {"type": "image_url", "image_url": {"url": data_uri(png("red"))}},
        {"type": "text", "text": "Ni nini?"},
    ]
    found = client.chat.completions.create(
        model="describe", messages=[{"role": "user", "content": content}], max_tokens=12,
        extra_body={"language": "be", "ignore_eos": True},
    )  # fmt: skip
    expected, tokens = said_here(storage, "describe-be@1", f"{MARK}{MARK}Ni nini?", [wav(0.5), png("red")])
    assert found.choices[0].message.content == expected
    assert found.usage is not None
    assert found.usage.prompt_tokens == tokens


def test_errors_reach_the_client(client: OpenAI, service: Service) -> None:
    with pytest.raises(openai.NotFoundError, match="Did you mean 'text-sw'"):
        complete(client, "text-ws")
    with pytest.raises(openai.BadRequestError, match="the context holds"):
        client.chat.completions.create(model="text", messages=[{"role": "user", "content": "word " * 3000}])
    with pytest.raises(openai.PermissionDeniedError):
        complete(client, "text", extra_headers={"Host": "evil.example"})
    assert httpx.get(f"{service.url}/health", trust_env=False).json()["status"] == "ok"


def test_histories_and_scored_prompts_of_the_client(client: OpenAI) -> None:
    """What the client's own objects write comes back; a prompt is scored alike as text, as tokens and in a stream."""
    answer = complete(client, "text-sw").choices[0].message
    history = [*QUESTION, answer.model_dump(), *QUESTION]
    plain = [*QUESTION, {"role": "assistant", "content": answer.content}, *QUESTION]
    found = client.chat.completions.with_raw_response.create(
        model="text-sw", messages=history, max_tokens=6, store=True, response_format={"type": "text"}, tools=[]
    )
    assert found.headers["X-Kauli-Ignored"] == "store"
    assert (
        found.parse().choices == client.chat.completions.create(model="text-sw", messages=plain, max_tokens=6).choices
    )
    ids = AutoTokenizer.from_pretrained(find_base("debug").folder)("Habari", add_special_tokens=False).input_ids
    options: dict[str, Any] = {"model": "text-sw", "echo": True, "logprobs": 1}
    whole = client.completions.create(prompt=[ids, ids], max_tokens=0, **options)
    assert [choice.text for choice in whole.choices] == ["Habari"] * 2
    scores = whole.choices[0].logprobs.token_logprobs  # type: ignore[union-attr]
    assert (scores[0], len(scores)) == (None, len(ids))  # type: ignore[index, arg-type]
    streamed = list(client.completions.create(prompt=ids, max_tokens=3, stream=True, **options))
    assert streamed[0].choices[0].logprobs.token_logprobs == pytest.approx(scores, abs=1e-4)  # type: ignore[union-attr]


def test_a_web_page_asks_through_the_proxy(service: Service) -> None:
    asks = {"Origin": "https://app.example", "Access-Control-Request-Method": "POST"}
    first = httpx.options(f"{service.url}/v1/chat/completions", headers=asks, trust_env=False)
    assert (first.status_code, first.headers["Access-Control-Allow-Origin"]) == (200, "https://app.example")


def test_the_service_says_where_its_log_is(service: Service) -> None:
    logs = {str(path) for path in Path(service.logs).glob("worker-*.err")}
    replicas = [one for one in psutil.process_iter(["name"]) if "ServeReplica" in (one.info["name"] or "")]
    assert replicas
    assert {os.path.realpath(f"/proc/{one.pid}/fd/2") for one in replicas} & logs


def test_many_at_once(client: OpenAI) -> None:
    expected = {model: complete(client, model).choices[0].message.content for model in ("text", "text-sw")}
    answers: list[tuple[str, str]] = []

    def ask(model: str) -> None:
        answers.append((model, complete(client, model).choices[0].message.content))

    threads = [threading.Thread(target=ask, args=(model,)) for model in ("text", "text-sw") * 8]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(answers) == sorted([*expected.items()] * 8)


def test_a_new_adapter_answers_without_a_restart(client: OpenAI, storage: Path, publish: Publish) -> None:
    spec = publish(storage, "text-ka", "ka", 2)
    time.sleep(1)  # a name that is unknown reads the registry again, twice a second at most
    assert complete(client, "text-ka").model == spec
    assert complete(client, "text", extra_body={"language": "ka"}).model == spec
    assert {"text-sw", "text-ka", "debug-text"} <= {model.id for model in client.models.list()}


def test_completions_and_several_answers(client: OpenAI) -> None:
    body = client.completions.create(model="text-sw", prompt=["one", "two"], n=2, max_tokens=5, logprobs=1)
    assert [choice.index for choice in body.choices] == [0, 1, 2, 3]
    assert body.choices[0].text == body.choices[1].text != body.choices[2].text
    assert body.choices[0].logprobs is not None
    chat = complete(client, "text-sw", n=2, temperature=1.0, seed=3, logprobs=True, top_logprobs=1)
    assert len({choice.message.content for choice in chat.choices}) == 2
    assert chat.choices[0].logprobs.content[0].top_logprobs


def test_adapters_come_and_go_under_load(client: OpenAI, service: Service, storage: Path, publish: Publish) -> None:
    expected = complete(client, "text-sw", max_tokens=40).choices[0].message.content
    answers: list[str] = []
    stop = threading.Event()

    def traffic() -> None:
        while not stop.is_set():
            answers.append(complete(client, "text-sw", max_tokens=40).choices[0].message.content)

    threads = [threading.Thread(target=traffic) for _ in range(3)]
    for thread in threads:
        thread.start()
    try:
        spec = publish(storage, "text-yo", "yo", 6)
        http = httpx.Client(base_url=service.url, trust_env=False, timeout=30)
        loaded = http.post("/v1/adapters", json={"adapter": "text-yo"})
        assert loaded.json().get("id") == spec, loaded.text
        first = complete(client, "text-yo").choices[0].message.content
        assert {entry["id"]: entry["loaded"] for entry in http.get("/v1/adapters").json()["data"]}[spec]
        assert http.delete(f"/v1/adapters/{spec}").status_code == 200
        assert complete(client, "text-yo").choices[0].message.content == first  # loaded anew when it is asked for
        Registry(str(storage)).remove(spec)
        until = time.monotonic() + 60
        while time.monotonic() < until:
            try:
                complete(client, "text-yo")
            except openai.NotFoundError:
                break
            time.sleep(0.2)
        else:
            pytest.fail("an adapter that is gone still answers after 60 seconds")
    finally:
        stop.set()
        for thread in threads:
            thread.join()
    assert len(answers) > 3
    assert set(answers) == {expected}


def test_pages_and_docs(service: Service) -> None:
    for path in ("/", "/docs", "/openapi.json"):
        assert httpx.get(f"{service.url}{path}", trust_env=False).status_code == 200


def test_a_client_that_leaves_frees_its_row(client: OpenAI, service: Service, storage: Path, publish: Publish) -> None:
    """Another answer of the same length, which began earlier, is still being written when the row is free.

    A slow machine may ask too late, when both have ended: then again. A row that is not freed is never seen free first.
    """
    left = publish(storage, "text-zu", "zu", 7)
    http = httpx.Client(base_url=service.url, trust_env=False, timeout=60)

    def in_use() -> dict[str, int]:
        return {entry["id"]: entry["in_use"] for entry in http.get("/v1/adapters").json()["data"]}

    def freed_first() -> bool:
        options: dict[str, Any] = {"max_tokens": 1000, "stream": True, "extra_body": {"ignore_eos": True}}
        with complete(client, "text-sw@1", **options) as earlier:
            next(iter(earlier))
            stream = complete(client, left, **options)
            next(iter(stream))
            began = in_use()[left] == 1
            stream.close()
            while (now := in_use())[left]:
                time.sleep(0.01)
            return began and now["text-sw@1"] == 1

    assert http.post("/v1/adapters", json={"adapter": left}).status_code == 200
    assert any(freed_first() for _ in range(10))


def test_the_demo_teaches_adapters_that_appear_in_the_running_service(
    service: Service, storage: Path, tmp_path: Path
) -> None:
    """Each lesson of the first round on debug bases and a handful of rows, trained on the service's own Ray."""
    rows: list[dict[str, Any]] = [
        {
            "id": str(n),
            "language": "en",
            "text": f"neno {n}",
            "split": ("train", "train", "train", "validation", "test")[n % 5],
        }
        for n in range(40)
    ]
    for n in range(len(rows)):
        (tmp_path / f"{n}.wav").write_bytes(wav(0.5 + 0.01 * n, 200 + 10 * n))
        (tmp_path / f"{n}.png").write_bytes(png(f"rgb({6 * n}, {255 - 6 * n}, 99)"))
    media = {
        "transcribe": [{**row, "audio": f"{n}.wav"} for n, row in enumerate(rows)],
        "head": [{**row, "image": f"{n}.png", "text": CLASSES[n % 2]} for n, row in enumerate(rows)],
        "text": [{**row, "prompt": f"word {n}"} for n, row in enumerate(rows)],
    }
    out = io.StringIO()
    demo = Demo(Story(out), str(storage), minutes=1)
    ready: Future[Service] = Future()
    ready.set_result(service)
    for lesson in lessons([], later=False):
        (tmp_path / f"{lesson.name}.jsonl").write_text("\n".join(map(json.dumps, media[lesson.name])))
        keys = ["base=debug", "language=en", f"name=demo-{lesson.name}", f"data={tmp_path / lesson.name}.jsonl"]
        keys += ["method.shots=2"] if lesson.name == "head" else ["train.steps=2", "train.validate_every=2"]
        demo.teach(replace(lesson, overrides=tuple(keys)), ready, then="")
    told = out.getvalue()
    assert [f"demo-{name}@1 answers in the service" in told for name in media] == [True] * 3
    assert "Character error rate" in told
    assert "Accuracy" in told
    assert "on 8 held-out prompts; its base" in told
    ends = ("Its answers are no better than", "Better, but none", "  reference  ")
    assert sum(told.count(end) for end in ends) == 3
    names = {model["id"] for model in httpx.get(f"{service.url}/v1/models", trust_env=False).json()["data"]}
    assert {"demo-transcribe", "demo-head", "demo-text"} <= names


def test_a_second_service_on_the_port_is_refused(service: Service, storage: Path) -> None:
    port = int(service.url.rpartition(":")[2])
    with pytest.raises(UsageError, match="is a service running there already"):
        start(ServeArgs(storage=str(storage), port=port))


@pytest.mark.parametrize("proxy", ["python", "haproxy"])
def test_the_command_with_either_proxy(storage: Path, proxy: str) -> None:
    """`kauli serve` as a process: on loopback only, one at a port; answers that have begun end before it stops."""
    port = str(free_port())
    environment = os.environ | {"KAULI_PROXY": proxy, "KAULI_STORAGE": str(storage), "KAULI_PORT": port}
    command = [str(Path(sys.executable).parent / "kauli"), "serve"]
    process = subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, text=True)
    try:
        assert process.stdout is not None
        url = process.stdout.readline().strip()  # printed once the service is healthy
        assert url == f"http://127.0.0.1:{port}"
        listening = [c.laddr for c in psutil.net_connections("tcp") if c.status == "LISTEN"]
        assert {address.ip for address in listening if address.port == int(port)} == {"127.0.0.1"}
        second = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=60, check=False)
        assert second.returncode == 2
        assert "is a service running there already" in second.stderr
        client = OpenAI(base_url=f"{url}/v1", api_key="-", http_client=DefaultHttpxClient(trust_env=False))
        plain = complete(client, "text-sw").choices[0].message.content
        chunks = list(complete(client, "text-sw", stream=True))
        assert "".join(chunk.choices[0].delta.content or "" for chunk in chunks if chunk.choices) == plain
        if proxy == "python":  # HAProxy cuts streams when the application goes
            stream = complete(client, "text-sw", max_tokens=250, stream=True, extra_body={"ignore_eos": True})
            next(iter(stream))
            process.terminate()
            assert [chunk.choices[0].finish_reason for chunk in stream if chunk.choices][-1] == "length"
    finally:
        process.terminate()
        process.wait(timeout=60)
