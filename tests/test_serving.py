"""The service without Ray: settings, who answers, the generator's queue, the application's answers and errors."""

import asyncio
import json
import threading
import time
from collections.abc import AsyncGenerator, Iterator
from contextlib import aclosing
from pathlib import Path
from typing import Any

import pytest
import torch
from fastapi.testclient import TestClient
from peft import LoraConfig, get_peft_model
from transformers import AutoModelForCausalLM

from kauli.models.bases import Base, find_base
from kauli.models.errors import UsageError
from kauli.models.plain_peft import from_peft
from kauli.models.registry import Registry
from kauli.models.requests import TextRequest
from kauli.models.text import TextTask
from kauli.serving.catalogue import Catalogue, UnknownLanguage, UnknownModel, choose_bases
from kauli.serving.events import Ask, Event, Failed, Piece, Started
from kauli.serving.generator import TextGenerator
from kauli.serving.ingress import create_app
from kauli.serving.settings import ServeArgs, load_settings

HELLO = {"model": "text", "messages": [{"role": "user", "content": "Habari"}], "max_tokens": 6}


def publish(storage: Path, base: Base, name: str, language: str, seed: int) -> str:
    """An adapter with random weights that change every answer; returns its spec."""
    scratch = storage / "scratch" / f"{name}-{seed}"
    torch.manual_seed(seed)
    model = get_peft_model(
        AutoModelForCausalLM.from_pretrained(base.folder), LoraConfig(r=4, target_modules=["q_proj", "v_proj"])
    )
    with torch.no_grad():
        for key, parameter in model.named_parameters():
            if "lora_B" in key:
                parameter.normal_(std=1.0)
    model.save_pretrained(scratch / "plain")
    card = from_peft(
        scratch / "plain", scratch / "ours", name=name, language=language.split(","), base=base, accept_base=True
    )
    return Registry(str(storage)).publish(scratch / "ours", card).spec


@pytest.fixture(scope="module")
def storage(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("KAULI_HOME", str(tmp_path_factory.mktemp("home")))
        folder = tmp_path_factory.mktemp("store")
        patch.setenv("KAULI_STORAGE", str(folder))
        base = find_base("debug")
        publish(folder, base, "text-sw", "sw", 1)
        publish(folder, base, "text-sw", "sw", 2)
        publish(folder, base, "text-be", "be", 3)
        publish(folder, base, "text-many", "am,ky,be", 4)
        yield folder


@pytest.fixture(scope="module")
def generator(storage: Path) -> Iterator[TextGenerator]:
    running = TextGenerator(TextTask.load(find_base("debug")), Registry(str(storage)), max_batch=4, max_adapters=4)
    yield running
    running.close()


def application(storage: Path, backend: Any, **settings: Any) -> TestClient:
    args = ServeArgs(storage=str(storage), max_tokens=64, refresh_s=0, **settings)
    base = find_base("debug")
    app = create_app({base.name: backend}, Catalogue(Registry(str(storage)), [base], args.refresh_s), args)
    return TestClient(app, base_url="http://127.0.0.1:8000", raise_server_exceptions=False)


@pytest.fixture(scope="module")
def client(storage: Path, generator: TextGenerator) -> TestClient:
    return application(storage, generator)


def ask(client: TestClient, **changes: Any) -> Any:
    return client.post("/v1/chat/completions", json=HELLO | changes)


class Scripted:
    """A backend that plays given events, for what a real one does only when it breaks."""

    def __init__(self, *events: Event) -> None:
        self._events = events

    async def stream(self, ask: Ask, adapter: str | None) -> AsyncGenerator[Event]:
        for event in self._events:
            yield event

    async def check(self) -> str | None:
        return "broken"


# Settings


def test_flag_beats_variable_beats_file_beats_default(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    config = tmp_path / "serve.yaml"
    config.write_text("port: 1001\nhost: localhost\nmax_queue: 3\n")
    monkeypatch.setenv("KAULI_PORT", "1002")
    monkeypatch.setenv("KAULI_STORAGE", "/from/variable")
    settings = load_settings(config, port=None)
    assert (settings.port, settings.host, settings.max_queue, settings.max_batch) == (1002, "localhost", 3, 16)
    assert settings.storage == "/from/variable"
    assert load_settings(config, port=1003).port == 1003


def test_shipped_settings_are_the_defaults(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("KAULI_STORAGE", raising=False)
    shipped = Path(__file__).parent.parent / "deploy" / "local.yaml"
    assert load_settings(shipped) == load_settings()


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("prot: 1", "Did you mean 'port'"),
        ("port: 70000", "port"),
        ("tasks: [speak]", "task 'speak' can't be served"),
        ("replicas: [2, 1]", "fewest, most"),
        ("max_adapters: 2", "below max_batch"),
        ("key_hashes: [secret]", "KAULI_API_KEYS"),
        ("- 1", "key: value"),
        ("a: [", "no readable YAML"),
        ("host: 0.0.0.0", "KAULI_API_KEYS"),
    ],
)
def test_bad_settings_are_named(tmp_path: Path, text: str, said: str) -> None:
    config = tmp_path / "serve.yaml"
    config.write_text(text)
    with pytest.raises(UsageError, match=said):
        load_settings(config)


def test_another_address_is_allowed_with_keys(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("KAULI_API_KEYS", "one, two")
    settings = load_settings(host="0.0.0.0")
    assert len(settings.key_hashes) == 2
    assert "one" not in settings.model_dump_json()
    assert settings.url == "http://127.0.0.1:8000"


# Who answers


def test_routes(storage: Path) -> None:
    base = find_base("debug")
    catalogue = Catalogue(Registry(str(storage)), choose_bases(Registry(str(storage))))

    def route(*words: Any) -> tuple[str | None, str | None]:
        found = catalogue.route(*words)
        assert found.base == base.name
        return found.adapter, found.language

    assert route("text") == (None, None)
    assert route(base.name, "sw") == (None, "sw")
    assert route("text", "swh_Latn") == ("text-sw@2", "sw")  # neither alias: the newest version
    assert route("text", "be-tarask") == ("text-be@1", "be")  # the chain; one language is nearer than three
    assert route("text", "am") == ("text-many@1", "am")
    assert route("text-sw@1") == ("text-sw@1", "sw")
    assert route("text-many") == ("text-many@1", None)
    assert route("text", "ka", True) == (None, "ka")


@pytest.mark.parametrize(
    ("model", "language", "error", "said"),
    [
        ("text-ws", None, UnknownModel, "Did you mean 'text-sw'"),
        ("text-sw@9", None, UnknownModel, "no version or alias '9'; it has 1, 2"),
        ("../../etc", None, UnknownModel, "not served"),
        ("text", "ka", UnknownLanguage, "kauli train text-sw --set language=ka"),
        ("text-sw", "am", UnknownLanguage, "is for sw, not for 'am'"),
        ("text", "swahilli", UsageError, "unknown language"),
    ],
)
def test_routes_to_nowhere(storage: Path, model: str, language: str | None, error: type[Exception], said: str) -> None:
    catalogue = Catalogue(Registry(str(storage)), [find_base("debug")])
    with pytest.raises(error, match=said):
        catalogue.route(model, language)


def test_aliases_and_new_adapters_are_seen(storage: Path, tmp_path: Path) -> None:
    base = find_base("debug")
    registry = Registry(str(tmp_path))
    catalogue = Catalogue(registry, [base], refresh_s=3600)
    assert catalogue.adapters() == []
    time.sleep(0.6)  # an unknown name may look at the registry again after half a second
    publish(tmp_path, base, "text-ka", "ka", 1)
    assert catalogue.route("text-ka").adapter == "text-ka@1"
    publish(tmp_path, base, "text-ka", "ka", 2)
    registry.set_alias("text-ka", 1, "prod")
    fresh = Catalogue(registry, [base], refresh_s=0)
    assert fresh.route("text-ka").adapter == "text-ka@1"
    assert fresh.route("text-ka@2").adapter == "text-ka@2"
    assert fresh.route("text", "ka").adapter == "text-ka@1"


def test_an_adapter_of_a_base_that_is_not_served(storage: Path) -> None:
    other = find_base("debug-qwen")
    with pytest.raises(UnknownModel, match=r"needs the base 'debug-text'.*--base debug-text"):
        Catalogue(Registry(str(storage)), [other]).route("text-sw")
    assert Catalogue(Registry(str(storage)), [other]).adapters() == []


# The generator


async def collect(generator: TextGenerator, ask: Ask, adapter: str | None) -> list[Event]:
    return [event async for event in generator.stream(ask, adapter)]


def said(events: list[Event]) -> str:
    return "".join(event.text for event in events if isinstance(event, Piece))


def test_many_requests_each_get_their_own_adapter(storage: Path, generator: TextGenerator) -> None:
    question = Ask((("user", "Habari"),), max_tokens=12)
    adapters = [None, "text-sw@1", "text-sw@2", "text-be@1", "text-many@1"]

    async def all_at_once() -> list[list[Event]]:
        return await asyncio.gather(*(collect(generator, question, adapter) for adapter in adapters * 2))

    together = [said(events) for events in asyncio.run(all_at_once())]
    alone = []
    for adapter in adapters:
        task = TextTask.load(find_base("debug"))
        if adapter:
            task.add_adapter(adapter, Registry(str(storage)).fetch(adapter))
        request = TextRequest.of_prompt("Habari", max_tokens=12)
        alone.append("".join(chunk.text for chunks in task.generate([request], [adapter]) for chunk in chunks))
    assert together == alone * 2
    assert len(set(alone)) == len(adapters)


def test_a_damaged_adapter_fails_its_own_request_only(storage: Path, generator: TextGenerator, tmp_path: Path) -> None:
    spec = publish(storage, find_base("debug"), "text-bad", "yo", 5)
    weights = storage / "adapters" / "text-bad" / "1" / "adapter_model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-1] + b"x")

    async def both() -> list[list[Event]]:
        question = Ask((("user", "Hi"),), max_tokens=3)
        return await asyncio.gather(collect(generator, question, spec), collect(generator, question, None))

    bad, good = asyncio.run(both())
    assert [type(event) for event in bad] == [Failed]
    assert isinstance(bad[0], Failed)
    assert (bad[0].status, bad[0].code) == (503, "adapter_failed")
    assert isinstance(good[-1], Piece)
    assert good[-1].finish == "length"


def test_the_queue_is_bounded_and_leaving_frees_the_row(storage: Path) -> None:
    class Slow(TextTask):
        def _generate(self, *args: Any, **options: Any) -> Any:
            for chunks in super()._generate(*args, **options):
                time.sleep(0.02)
                yield chunks

    generator = TextGenerator(Slow.load(find_base("debug")), Registry(str(storage)), max_batch=1, max_queue=1)
    endless = Ask((("user", "Hi"),), max_tokens=900, ignore_eos=True)

    async def run() -> tuple[list[Event], float]:
        async with aclosing(generator.stream(endless, None)) as first:
            assert isinstance(await anext(first), Started)
            waiting = asyncio.create_task(collect(generator, Ask((("user", "Hi"),), max_tokens=1), None))
            await asyncio.sleep(0.1)
            refused = await collect(generator, endless, None)
        began = time.monotonic()
        assert isinstance((await waiting)[-1], Piece)
        return refused, time.monotonic() - began

    refused, waited = asyncio.run(run())
    assert isinstance(refused[0], Failed)
    assert (refused[0].status, refused[0].code) == (429, "queue_full")
    assert waited < 5  # 900 tokens at 0.02 s would be 18 s
    generator.close()
    assert isinstance(asyncio.run(collect(generator, endless, None))[0], Failed)


def test_deadline(storage: Path) -> None:
    generator = TextGenerator(TextTask.load(find_base("debug")), Registry(str(storage)), deadline_s=0.05)
    events = asyncio.run(collect(generator, Ask((("user", "Hi"),), max_tokens=900, ignore_eos=True), None))
    generator.close()
    assert isinstance(events[-1], Failed)
    assert events[-1].status == 504


def test_a_failing_batch_does_not_end_the_service(storage: Path) -> None:
    task = TextTask.load(find_base("debug"))
    real, broken = task.generate, threading.Event()

    def generate(*args: Any, **options: Any) -> Any:
        if broken.is_set():
            raise RuntimeError("out of memory")
        return real(*args, **options)

    task.generate = generate  # type: ignore[method-assign]
    generator = TextGenerator(task, Registry(str(storage)))
    question = Ask((("user", "Hi"),), max_tokens=2)
    broken.set()
    failed = asyncio.run(collect(generator, question, None))[-1]
    assert isinstance(failed, Failed)
    assert failed.status == 500
    assert "memory" not in failed.message  # a stranger is not told what broke inside
    broken.clear()
    assert isinstance(asyncio.run(collect(generator, question, None))[-1], Piece)
    assert asyncio.run(generator.check()) is None
    generator.close()


# HTTP


def test_models(client: TestClient) -> None:
    models = {model["id"]: model for model in client.get("/v1/models").json()["data"]}
    assert models["debug-text"]["parent"] is None
    sw = models["text-sw"]
    assert (sw["parent"], sw["language"], sw["task"], sw["root"]) == ("debug-text", ["sw"], "text", "text-sw@2")
    assert client.get("/v1/models/text-sw").json() == sw
    assert client.get("/v1/models/none").status_code == 404


def test_plain_answer(client: TestClient) -> None:
    response = ask(client, model="text", language="sw", ignore_eos=True, min_tokens=6)
    body = response.json()
    assert response.status_code == 200
    assert response.headers["X-Kauli-Adapter"] == "text-sw@2"
    assert response.headers["X-Kauli-Language"] == "sw"
    assert body["model"] == "text-sw@2"
    assert body["choices"][0]["finish_reason"] == "length"
    assert body["usage"]["completion_tokens"] == 6
    assert body["usage"]["total_tokens"] == body["usage"]["prompt_tokens"] + 6
    base = ask(client, model="debug-text", ignore_eos=True)
    assert "X-Kauli-Adapter" not in base.headers
    assert base.json()["choices"][0]["message"]["content"] != body["choices"][0]["message"]["content"]


def test_stream_says_the_same_as_the_plain_answer(client: TestClient) -> None:
    plain = ask(client, model="text-sw@1", max_tokens=20).json()
    response = ask(client, model="text-sw@1", max_tokens=20, stream=True, stream_options={"include_usage": True})
    assert response.headers["content-type"].startswith("text/event-stream")
    lines = [line.removeprefix("data: ") for line in response.text.split("\n\n") if line]
    assert lines.pop() == "[DONE]"
    chunks = [json.loads(line) for line in lines]
    assert chunks[-1]["usage"] == plain["usage"]
    assert chunks[-1]["choices"] == []
    choices = [chunk["choices"][0] for chunk in chunks[:-1]]
    text = "".join(choice["delta"].get("content", "") for choice in choices)
    assert text == plain["choices"][0]["message"]["content"]
    assert [choice["finish_reason"] for choice in choices if choice["finish_reason"]] == ["length"]


def test_system_prompt_parts_and_sampling(client: TestClient) -> None:
    messages = [
        {"role": "developer", "content": "Answer in Swahili."},
        {"role": "user", "content": [{"type": "text", "text": "e\u0301"}, {"type": "text", "text": "b"}]},
    ]
    composed = [messages[0], {"role": "user", "content": "\u00e9\nb"}]
    options = {"temperature": 0.9, "top_p": 0.9, "seed": 7, "max_completion_tokens": 9}
    assert (
        ask(client, messages=messages, **options).json()["choices"]
        == ask(client, messages=composed, **options).json()["choices"]
    )


@pytest.mark.parametrize(
    ("changes", "status", "code", "param"),
    [
        ({"model": "gpt-4"}, 404, "model_not_found", "model"),
        ({"model": "../secret"}, 404, "model_not_found", "model"),
        ({"language": "ka"}, 404, "language_not_served", "language"),
        ({"language": "not a tag"}, 400, "invalid_value", None),
        ({"model": None}, 400, "invalid_value", "model"),
        ({"messages": []}, 400, "invalid_value", "messages"),
        ({"messages": "hello"}, 400, "invalid_value", "messages"),
        ({"messages": [{"role": "wizard", "content": "x"}]}, 400, "invalid_value", "messages.0.role"),
        ({"max_tokens": 65}, 400, "value_too_large", "max_tokens"),
        ({"max_tokens": 0}, 400, "invalid_value", "max_tokens"),
        ({"max_tokens": 3, "min_tokens": 4}, 400, "invalid_value", "min_tokens"),
        ({"n": 2}, 400, "invalid_value", "n"),
        ({"temperature": -1}, 400, "invalid_value", "temperature"),
        ({"stop": ["a"] * 9}, 400, "invalid_value", "stop"),
        ({"logprobs": True}, 400, "invalid_value", "logprobs"),
        ({"min_token": 3}, 400, "unknown_field", "min_token"),
        ({"messages": [{"role": "user", "content": "word " * 3000}]}, 400, "context_length_exceeded", "messages"),
    ],
)
def test_bad_requests(client: TestClient, changes: dict[str, Any], status: int, code: str, param: str | None) -> None:
    for stream in (False, True):
        response = ask(client, **changes, stream=stream)
        error = response.json()["error"]
        assert (response.status_code, error["code"], error["param"]) == (status, code, param)
        assert error["message"]
        assert error["type"] == "invalid_request_error"
    assert client.get("/health").json()["status"] == "ok"


def test_picture_part_is_refused(client: TestClient) -> None:
    content = [{"type": "image_url", "image_url": {"url": "http://example.org/a.png"}}]
    response = ask(client, messages=[{"role": "user", "content": content}])
    assert response.status_code == 400
    assert "text" in response.json()["error"]["message"]


def test_broken_bodies_and_paths(client: TestClient) -> None:
    post = client.post("/v1/chat/completions", content=b'{"model": ', headers={"content-type": "application/json"})
    assert (post.status_code, post.json()["error"]["code"]) == (400, "invalid_json")
    assert client.post("/v1/chat/completions", content=b"\xff").status_code == 400
    large = ask(client, messages=[{"role": "user", "content": "a" * 1_100_000}])
    assert (large.status_code, large.json()["error"]["code"]) == (413, "body_too_large")

    def pieces() -> Iterator[bytes]:  # no Content-Length to go by
        yield from (b"a" * 100_000 for _ in range(20))

    chunked = client.post("/v1/chat/completions", content=pieces())
    assert (chunked.status_code, chunked.json()["error"]["code"]) == (413, "body_too_large")
    missing = client.get("/v1/nothing")
    assert (missing.status_code, missing.json()["error"]["code"]) == (404, "not_found")
    assert client.get("/v1/chat/completions").status_code == 405


def test_host_and_origin_on_loopback(client: TestClient) -> None:
    assert client.get("/health", headers={"Host": "evil.example:8000"}).json()["error"]["code"] == "wrong_host"
    assert client.get("/health", headers={"Host": "localhost:8000"}).status_code == 200
    assert client.get("/health", headers={"Host": "[::1]:8000"}).status_code == 200

    def post(origin: str) -> int:
        return int(client.post("/v1/chat/completions", json=HELLO, headers={"Origin": origin}).status_code)

    assert [post("https://evil.example"), post("null"), post("http://localhost:3000")] == [403, 403, 200]


def test_keys(storage: Path, generator: TextGenerator, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("KAULI_API_KEYS", "first,second")
    client = application(storage, generator, host="0.0.0.0", key_hashes=load_settings().key_hashes)
    assert client.get("/health").status_code == 200
    for headers in ({}, {"Authorization": "Bearer third"}, {"Authorization": "Bearer "}, {"Authorization": "first"}):
        refused = client.get("/v1/models", headers=headers)
        assert (refused.status_code, refused.json()["error"]["code"]) == (401, "invalid_api_key")
    assert client.get("/v1/models", headers={"Authorization": "Bearer second"}).status_code == 200
    assert client.get("/v1/models", headers={"Authorization": "bearer first", "Host": "any"}).status_code == 200


def test_failures_of_a_backend(storage: Path) -> None:
    full = ask(application(storage, Scripted(Failed(429, "try again", "queue_full"))))
    assert full.status_code == 429
    assert full.headers["Retry-After"] == "2"
    assert full.json()["error"]["type"] == "rate_limit_error"
    halfway = Scripted(Started(3), Piece("ha", 1), Failed(500, "the generation failed", "internal_error"))
    client = application(storage, halfway)
    assert ask(client).status_code == 500
    lines = [line for line in ask(client, stream=True).text.split("\n\n") if line]
    assert json.loads(lines[-1].removeprefix("data: "))["error"]["code"] == "internal_error"
    assert "[DONE]" not in "".join(lines)
    assert client.get("/health").status_code == 503
    assert ask(application(storage, Scripted())).json()["error"]["code"] == "internal_error"
