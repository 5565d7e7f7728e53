"""The FastAPI application: answers, shapes, errors, who may ask."""

import asyncio
import gzip
import json
from collections.abc import AsyncGenerator, Iterator
from pathlib import Path
from typing import Any

import pytest
from fastapi.testclient import TestClient
from starlette.exceptions import HTTPException

from kauli.models.adapters.registry import Registry
from kauli.models.bases.find import find_base
from kauli.models.requests import TextRequest
from kauli.models.text.task import TextTask
from kauli.serving.events import Event, Failed, Piece, Started
from kauli.serving.http.app import create_app
from kauli.serving.http.auth import Access
from kauli.serving.routing import Catalogue
from kauli.serving.settings import ServeArgs, load_settings
from kauli.serving.workers.text import TextGenerator
from support.settings import worker_args

HELLO = {"model": "text", "messages": [{"role": "user", "content": "Habari"}], "max_tokens": 6}


@pytest.fixture(scope="module")
def generator(storage: Path) -> Iterator[TextGenerator]:
    running = TextGenerator(TextTask.load(find_base("debug"), slots=4), worker_args(storage, max_adapters=4))
    yield running
    running.close()


def application(storage: Path, backend: Any, **settings: Any) -> TestClient:
    args = ServeArgs(storage=str(storage), max_tokens=64, refresh_s=0, **settings)
    base = find_base("debug")
    catalogue = Catalogue(Registry(str(storage)), {"text": [base]}, args.refresh_s)
    app = create_app({"text": {base.name: backend}}, catalogue, args)
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

    async def stream(self, request: TextRequest, adapter: str | None, whole: bool = False) -> AsyncGenerator[Event]:
        for event in self._events:
            yield event

    async def check(self) -> str | None:
        return "broken"


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
        ({"n": 9}, 400, "value_too_large", "n"),
        ({"n": 0}, 400, "invalid_value", "n"),
        ({"temperature": -1}, 400, "invalid_value", "temperature"),
        ({"stop": ["a"] * 9}, 400, "value_too_large", "stop"),
        ({"top_logprobs": 2}, 400, "invalid_value", "top_logprobs"),
        ({"logprobs": True, "top_logprobs": 21}, 400, "value_too_large", "top_logprobs"),
        ({"stop": ["x" * 200]}, 400, "value_too_large", "stop"),
        ({"temperature": "warm"}, 400, "invalid_value", "temperature"),
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


def test_other_parts_are_refused(client: TestClient) -> None:
    content = [{"type": "video_url", "video_url": {"url": ""}}]
    response = ask(client, messages=[{"role": "user", "content": content}])
    assert response.status_code == 400
    assert "'video_url' is not served" in response.json()["error"]["message"]


def test_broken_bodies_and_paths(client: TestClient) -> None:
    post = client.post("/v1/chat/completions", content=b'{"model": ', headers={"content-type": "application/json"})
    assert (post.status_code, post.json()["error"]["code"]) == (400, "invalid_json")
    unmarked = client.post("/v1/chat/completions", content=json.dumps(HELLO))
    assert (unmarked.status_code, "Content-Type: application/json" in unmarked.text) == (415, True)
    packed = client.post("/v1/completions", content=gzip.compress(b"{}"), headers={"Content-Encoding": "gzip"})
    assert (packed.status_code, packed.json()["error"]["message"]) == (
        415,
        "bodies in gzip are not read: send it uncompressed",
    )
    for body, message in ((b"", "the body is empty"), (b"[]", "must be a JSON object"), (b'"x"', "must be a JSON")):
        broken = client.post("/v1/embeddings", content=body, headers={"content-type": "application/json"})
        assert (broken.status_code, message in broken.json()["error"]["message"]) == (400, True)
    large = ask(client, messages=[{"role": "user", "content": "a" * 1_100_000}])
    assert (large.status_code, large.json()["error"]["code"]) == (413, "body_too_large")

    def pieces() -> Iterator[bytes]:  # no Content-Length to go by
        yield from (b"a" * 100_000 for _ in range(130))

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


def complete(client: TestClient, **changes: Any) -> Any:
    return client.post("/v1/completions", json={"model": "text-sw", "prompt": "Habari ya", "max_tokens": 6} | changes)


def test_completions_go_on_with_raw_text(client: TestClient, storage: Path) -> None:
    task = TextTask.load(find_base("debug"))
    task.add_adapter("a", Registry(str(storage)).fetch("text-sw@2"))
    chunks = task.generate([TextRequest(prompt="Habari ya", max_tokens=6)], ["a"])
    expected = "".join(chunk.text for step in chunks for chunk in step)
    body = complete(client).json()
    assert body["object"] == "text_completion"
    assert body["choices"][0]["text"] == expected
    lines = complete(client, stream=True).text.split("\n\n")
    events = [json.loads(line.removeprefix("data: ")) for line in lines if line.startswith("data: {")]
    assert "".join(choice["text"] for event in events for choice in event["choices"]) == expected


def test_several_prompts_and_answers_have_their_places(client: TestClient) -> None:
    prompts = ["one", "two", "three"]
    alone = [complete(client, prompt=prompt).json()["choices"][0]["text"] for prompt in prompts]
    body = complete(client, prompt=prompts, n=2).json()
    assert [choice["index"] for choice in body["choices"]] == list(range(6))
    assert [choice["text"] for choice in body["choices"]] == [text for text in alone for _ in range(2)]
    assert body["usage"]["prompt_tokens"] == sum(
        complete(client, prompt=prompt).json()["usage"]["prompt_tokens"] for prompt in prompts
    )
    lines = complete(client, prompt=prompts, n=2, stream=True).text.split("\n\n")
    texts = [""] * 6
    for line in lines:
        if line.startswith("data: {"):
            for choice in json.loads(line.removeprefix("data: "))["choices"]:
                texts[choice["index"]] += choice["text"]
    assert texts == [text for text in alone for _ in range(2)]
    full = complete(client, prompt=["fits", "word " * 3000])
    assert (full.status_code, full.json()["error"]["param"]) == (400, "prompt")
    assert complete(client).status_code == 200


def test_logprobs_have_openais_shapes(client: TestClient) -> None:
    body = ask(client, logprobs=True, top_logprobs=2, ignore_eos=True).json()["choices"][0]
    content = body["logprobs"]["content"]
    assert len(content) == 6
    assert (
        bytes(byte for one in content for byte in one["bytes"]).decode("utf-8", "ignore") == body["message"]["content"]
    )
    assert all(one["logprob"] <= 0 and len(one["top_logprobs"]) == 2 for one in content)
    assert content[0]["top_logprobs"][0]["logprob"] == pytest.approx(content[0]["logprob"])  # greedy
    assert "\ufffd" not in json.dumps(body, ensure_ascii=False)
    plain = complete(client, logprobs=1).json()["choices"][0]
    assert len(plain["logprobs"]["tokens"]) == len(plain["logprobs"]["token_logprobs"])
    assert plain["logprobs"]["text_offset"][0] == 0
    assert ask(client).json()["choices"][0]["logprobs"] is None


def test_adapters_are_listed_loaded_and_unloaded(client: TestClient) -> None:
    def loaded() -> dict[str, bool]:
        return {entry["id"]: entry["loaded"] for entry in client.get("/v1/adapters").json()["data"]}

    assert client.post("/v1/adapters", json={"adapter": "text-many"}).json()["id"] == "text-many@1"
    assert loaded()["text-many@1"]
    assert client.delete("/v1/adapters/text-many@1").status_code == 200
    assert loaded()["text-many@1"] is False
    for bad, status in (
        ("../../etc/passwd", 404),
        ("/etc/passwd", 404),
        ("text-nowhere", 404),
        ("", 400),
        ("text", 400),
    ):
        response = client.post("/v1/adapters", json={"adapter": bad})
        assert (response.status_code, "error" in response.json()) == (status, True)
    assert client.delete("/v1/adapters/none@1").status_code == 404
    assert client.delete("/v1/adapters/..%2f..%2fetc").status_code == 404


def test_pages_need_no_other_site(client: TestClient) -> None:
    home, docs = client.get("/"), client.get("/docs")
    for page in (home, docs):
        assert page.headers["content-type"].startswith("text/html")
        assert "default-src 'none'" in page.headers["Content-Security-Policy"]
        assert "http://" not in page.text
        assert "https://" not in page.text
    assert "/v1/chat/completions" in docs.text
    assert "repetition_penalty" in docs.text


def test_changing_adapters_needs_an_admin_key(
    storage: Path, generator: TextGenerator, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("KAULI_API_KEYS", "user")
    monkeypatch.setenv("KAULI_ADMIN_KEYS", "admin")
    settings = load_settings()
    client = application(
        storage, generator, host="0.0.0.0", key_hashes=settings.key_hashes, admin_key_hashes=settings.admin_key_hashes
    )

    def load(key: str) -> int:
        headers = {"Authorization": f"Bearer {key}"}
        return int(client.post("/v1/adapters", json={"adapter": "text-be"}, headers=headers).status_code)

    assert [load("stranger"), load("user"), load("admin")] == [401, 403, 200]
    assert client.get("/v1/adapters", headers={"Authorization": "Bearer user"}).status_code == 200
    assert client.get("/").status_code == 200
    assert client.get("/docs").status_code == 401


def test_a_slow_body_is_given_up() -> None:
    sent: list[Any] = []

    async def app(scope: Any, receive: Any, send: Any) -> None:
        await receive()

    async def receive() -> Any:
        await asyncio.sleep(10)

    async def send(message: Any) -> None:
        sent.append(message)

    access = Access(app, ServeArgs(body_timeout_s=0.05))
    scope = {"type": "http", "method": "POST", "path": "/v1/completions", "headers": [(b"host", b"localhost")]}
    with pytest.raises(HTTPException, match="did not arrive within"):
        asyncio.run(access(scope, receive, send))
