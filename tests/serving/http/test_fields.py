"""Fields of OpenAI's API that clients send: taken where they change nothing, else refused by their names."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml
from fastapi.testclient import TestClient

from kauli.models.adapters.registry import Registry
from kauli.models.bases.find import find_base
from kauli.models.requests import TextRequest
from kauli.models.text.task import TextTask
from kauli.serving.http.app import create_app
from kauli.serving.routing import Catalogue
from kauli.serving.settings import ServeArgs
from kauli.serving.workers.image_encoder import ImageEncoder
from kauli.serving.workers.text import TextGenerator
from support.settings import worker_args

USER = {"role": "user", "content": "Habari"}
HELLO = {"model": "debug-text", "messages": [USER], "max_tokens": 6, "ignore_eos": True}


@pytest.fixture(scope="module")
def workers(storage: Path) -> Iterator[dict[str, Any]]:
    args = worker_args(storage, max_adapters=4)
    text, image = find_base("debug"), find_base("debug", task="align")
    generator = TextGenerator(TextTask.load(text, slots=4), args)
    encoder = ImageEncoder(args, image, True)
    yield {"text": {text.name: generator}, "image": {image.name: encoder}}
    generator.close()
    encoder.close()


def application(storage: Path, workers: dict[str, Any], **settings: Any) -> TestClient:
    args = ServeArgs(storage=str(storage), max_tokens=64, refresh_s=0, **settings)
    bases = {"text": [find_base("debug")], "image": [find_base("debug", task="align")]}
    app = create_app(workers, Catalogue(Registry(str(storage)), bases, 0), args)
    return TestClient(app, base_url="http://127.0.0.1:8000", raise_server_exceptions=False)


@pytest.fixture(scope="module")
def client(storage: Path, workers: dict[str, Any]) -> TestClient:
    return application(storage, workers)


def chat(client: TestClient, **changes: Any) -> Any:
    return client.post("/v1/chat/completions", json=HELLO | changes)


def complete(client: TestClient, **changes: Any) -> Any:
    return client.post("/v1/completions", json={"model": "debug-text", "prompt": "Habari", "max_tokens": 4} | changes)


def refused(response: Any) -> tuple[int, str, str]:
    error = response.json()["error"]
    return response.status_code, error["param"], error["message"]


@pytest.mark.parametrize(
    ("changes", "ignored"),
    [
        ({"response_format": {"type": "text"}}, None),
        ({"tools": [], "functions": [], "tool_choice": "none", "function_call": "auto", "modalities": ["text"]}, None),
        ({"parallel_tool_calls": False, "store": True}, "parallel_tool_calls, store"),
        ({"service_tier": "auto", "metadata": {"a": "b"}, "user": "u"}, "service_tier, metadata, user"),
        ({"safety_identifier": "u1", "prompt_cache_key": "k"}, "safety_identifier, prompt_cache_key"),
        ({"reasoning_effort": "low", "verbosity": "low"}, "reasoning_effort, verbosity"),
        ({"stop": "", "seed": -1, "top_k": -1, "logit_bias": {}, "frequency_penalty": 0, "min_p": 0}, None),
        ({"stream_options": {"include_usage": None, "chunk": 1}}, "stream_options.chunk"),
        ({"messages": [USER | {"id": "m1", "x": None, "annotations": [], "a\n": 1}]}, "messages.0.id, messages.0.a?"),
        (
            {"messages": [USER | {"content": [{"type": "text", "text": "Habari", "cache_control": {"t": 1}}]}]},
            "messages.0.content.0.cache_control",
        ),
        ({"messages": [USER | {f"x{number}": 1 for number in range(20)}]}, None),
        ({name: None for name in (
            "response_format", "tools", "tool_choice", "service_tier", "store", "metadata", "stream", "stream_options",
            "stop", "n", "seed", "temperature", "top_p", "logprobs", "top_logprobs", "frequency_penalty", "logit_bias",
            "presence_penalty", "audio", "modalities", "prediction", "repetition_penalty", "allow_base", "language",
        )}, None),
    ],
)  # fmt: skip
def test_what_changes_nothing_is_taken(client: TestClient, changes: dict[str, Any], ignored: str | None) -> None:
    plain, found = chat(client), chat(client, **changes)
    assert found.status_code == 200, found.text
    assert found.json()["choices"] == plain.json()["choices"]
    header = found.headers.get("X-Kauli-Ignored")
    if len(changes.get("messages", [{}])[0]) == 22:
        assert header.endswith("messages.0.x15, and 4 more")
    else:
        assert header == ignored


@pytest.mark.parametrize(
    ("changes", "param", "message"),
    [
        ({"response_format": {"type": "json_object"}}, "response_format",
         'response_format json_object is not served: leave it out, or send {"type": "text"}'),
        ({"tools": [{"type": "function"}]}, "tools", "tools are not served: leave it out, or send []"),
        ({"tool_choice": "required"}, "tool_choice", "tool_choice required is not served"),
        ({"modalities": ["text", "video"]}, "modalities.1", "modalities.1: Input should be 'text' or 'audio'"),
        ({"web_search_options": {}}, "web_search_options", "web_search_options are not served: leave it out"),
        ({"logit_bias": {"999999": 1}}, "messages", "token 999999 is unknown: the tokens of this model are 0 to"),
        ({"logit_bias": {"a": 1}}, "logit_bias.a", "valid integer"),
        ({"stop": 5}, "stop", "stop: give a text or a list of texts"),
        ({"encoding_format": "float"}, "encoding_format", "unknown field 'encoding_format'."),
        ({"max_token": 3}, "max_token", "Did you mean 'max_tokens'?"),
        ({"messages": [USER] * 257}, "messages", "has 257 entries; this service allows 256 (setting max_messages)"),
        ({"messages": [{"role": "user", "content": None}]}, "messages.0", "content is missing"),
        ({"messages": [{"role": "user", "content": 5}]}, "messages.0.content", "give a text, or a list of parts"),
        ({"messages": [{"role": "user", "content": [5]}]}, "messages.0.content", "content part '5' is not served"),
        ({"messages": [{"role": "user", "content": [{"type": "text", "text": 5}]}]}, "messages.0.content.0.text",
         "messages.0.content.0.text: Input should be a valid string"),
        ({"messages": [{"role": "user", "content": [{"type": "image_url", "image_url": "http://x"}]}]}, "model",
         "takes no images"),
        ({"messages": [{"role": "user", "content": "a \ud83d"}]}, "messages.0.content", "half a surrogate pair"),
        ({"user": "\ude00"}, "user", "half a surrogate pair"),
        ({"metadata": {"\ude00": "x"}}, "metadata", "half a surrogate pair"),
        ({"messages": None}, "messages", "this field is missing"),
    ],
)  # fmt: skip
def test_what_is_not_served_is_named(client: TestClient, changes: dict[str, Any], param: str, message: str) -> None:
    # As escapes: no client's own encoder writes half a pair
    body = json.dumps(HELLO | changes)
    response = client.post("/v1/chat/completions", content=body, headers={"Content-Type": "application/json"})
    status, where, text = refused(response)
    assert (status, where) == (400, param)
    assert message in text
    assert ("Did you mean" in text) == ("Did you mean" in message)


def test_half_a_character_is_refused_on_every_endpoint(client: TestClient) -> None:
    for path, name in (
        ("completions", "prompt"),
        ("embeddings", "input"),
        ("classify", "input"),
        ("adapters", "adapter"),
    ):
        body = json.dumps({"model": "text", name: "\ud83d x"})
        response = client.post(f"/v1/{path}", content=body, headers={"Content-Type": "application/json"})
        assert refused(response)[:2] == (400, name)
        assert response.json()["error"]["code"] == "invalid_unicode"


def test_histories_of_other_services_are_read(client: TestClient) -> None:
    answer = {
        "role": "assistant",
        "content": "x",
        "refusal": None,
        "annotations": [],
        "audio": None,
        "tool_calls": None,
    }
    plain = chat(client, messages=[USER, {"role": "assistant", "content": "x"}, USER]).json()["choices"]
    assert chat(client, messages=[USER, answer | {"reasoning_content": "..."}, USER]).json()["choices"] == plain
    call = {"id": "c", "type": "function", "function": {"name": "f", "arguments": "{}"}}
    tools = [
        USER,
        {"role": "assistant", "content": None, "tool_calls": [call]},
        {"role": "tool", "tool_call_id": "c", "content": "5"},
        {"role": "function", "name": "f", "content": [{"type": "text", "text": "6"}]},
        {"role": "user", "content": "Na?"},
    ]
    found = chat(client, messages=tools)
    as_text = [USER, {"role": "assistant", "content": ""}, {"role": "user", "content": "5\n6\nNa?"}]
    assert found.json()["choices"] == chat(client, messages=as_text).json()["choices"]
    assert found.headers["X-Kauli-Ignored"] == "messages.1.tool_calls, messages.2.tool_call_id"
    refusal = {"role": "assistant", "content": None, "refusal": "x"}
    assert chat(client, messages=[USER, refusal, USER]).json()["choices"] == plain
    part = {"role": "assistant", "content": [{"type": "refusal", "refusal": "x"}]}
    assert chat(client, messages=[USER, part, USER]).json()["choices"] == plain


def test_penalties_and_biases_change_what_is_said(client: TestClient) -> None:
    """A bias of 100 fixes every token, and a penalty on what was said breaks a loop."""
    fixed = complete(client, logit_bias={"75": 100}, max_tokens=6, ignore_eos=True, logprobs=0).json()["choices"][0]
    assert len(set(fixed["logprobs"]["tokens"])) == 1
    broken = complete(
        client,
        logit_bias={"75": 2.0},
        frequency_penalty=2,
        presence_penalty=2,
        max_tokens=8,
        ignore_eos=True,
        logprobs=0,
    ).json()["choices"][0]
    assert len(set(broken["logprobs"]["tokens"])) > 1
    # With the likeliest token alone left, any temperature gives it
    warm = complete(client, temperature=2.0, min_p=1.0, seed=5).json()["choices"]
    assert warm == complete(client).json()["choices"]


def test_prompts_of_tokens_are_scored(client: TestClient) -> None:
    """In OpenAI's shape, and the same whether streamed or not; the values are compared in the engine's tests."""
    task = TextTask.load(find_base("debug"))
    ids = task.tokenizer("Habari ya leo", add_special_tokens=False).input_ids
    options: dict[str, Any] = {"prompt": [ids, ids[:3]], "echo": True, "logprobs": 2, "n": 2}
    body = complete(client, **options).json()
    assert [choice["text"][:3] for choice in body["choices"]] == ["Hab"] * 4
    first, second = (choice["logprobs"] for choice in body["choices"][:2])
    assert second["token_logprobs"][1 : len(ids)] == pytest.approx(first["token_logprobs"][1 : len(ids)], abs=1e-4)
    assert "".join(first["tokens"][: len(ids)]) == "Habari ya leo"
    assert len(first["tokens"]) == len(first["token_logprobs"]) == len(first["top_logprobs"]) == len(ids) + 4
    assert (first["token_logprobs"][0], first["top_logprobs"][0]) == (None, None)
    assert all(value <= 0 for value in first["token_logprobs"][1:])
    assert first["text_offset"][:3] == [0, 1, 2]
    assert body["usage"]["prompt_tokens"] == len(ids) + 3
    texts, scores = [""] * 4, [[] for _ in range(4)]  # type: ignore[var-annotated]
    for line in complete(client, **options, stream=True).text.split("\n\n"):
        if line.startswith("data: {"):
            for choice in json.loads(line.removeprefix("data: "))["choices"]:
                texts[choice["index"]] += choice["text"]
                scores[choice["index"]] += choice["logprobs"]["token_logprobs"] if choice["logprobs"] else []
    assert texts == [choice["text"] for choice in body["choices"]]
    for streamed, choice in zip(scores, body["choices"], strict=True):  # batches differ, and with them the last digits
        assert streamed[0] is None
        assert streamed[1:] == pytest.approx(choice["logprobs"]["token_logprobs"][1:], abs=1e-4)
    alone = complete(client, prompt=ids, echo=True, logprobs=2, max_tokens=0).json()
    scored = alone["choices"][0]["logprobs"]["token_logprobs"]
    assert scored[1:] == pytest.approx(first["token_logprobs"][1 : len(ids)], abs=1e-4)
    assert (alone["choices"][0]["finish_reason"], alone["usage"]["completion_tokens"]) == ("length", 0)


def test_a_text_is_echoed_as_it_is_without_what_stands_before_a_document(client: TestClient) -> None:
    task = TextTask.load(find_base("debug"))
    start = str(task.tokenizer.decode(task.prompt_tokens(TextRequest(prompt=""))))
    found = complete(client, prompt="Na é", echo=True, logprobs=0, max_tokens=0).json()["choices"][0]
    assert found["text"] == "".join(found["logprobs"]["tokens"][:3]) + "é" == "Na é"
    written = complete(client, prompt=f"{start}Na", echo=True, max_tokens=1).json()
    assert written["choices"][0]["text"].startswith(f"{start}Na")
    assert written["choices"][0]["logprobs"] is None
    assert complete(client, prompt="Na", echo=True, max_tokens=1).json()["usage"] == written["usage"]


@pytest.mark.parametrize(
    ("changes", "param", "message"),
    [
        ({"prompt": ["a"] * 17}, "prompt", "prompt has 17 entries; this service allows 16 (setting max_prompts)"),
        ({"prompt": []}, "prompt", "give a text, a list of tokens, or a list of texts"),
        ({"prompt": [[]]}, "prompt", "prompt 0 is neither a text nor a list of one token"),
        ({"prompt": ["a", True]}, "prompt", "prompt 1 is neither"),
        ({"prompt": [1, 999999]}, "prompt", "token 999999 is unknown: the tokens of this model are 0 to"),
        ({"max_tokens": 0}, "max_tokens", "max_tokens 0 asks for nothing without echo: true"),
        ({"best_of": 3}, "best_of", "best_of 3 is not served"),
        ({"suffix": "x"}, "suffix", "suffix x is not served: leave it out"),
        ({"logprobs": 21}, "logprobs", "logprobs is 21; this service allows 20 (setting max_logprobs)"),
        ({"prompt": ["a"] * 13, "echo": True, "logprobs": 4}, "echo", "is 65; this service allows 64 (setting max_ech"),
    ],
)
def test_prompts_that_cannot_be_are_named(
    client: TestClient, changes: dict[str, Any], param: str, message: str
) -> None:
    status, where, text = refused(complete(client, **changes))
    assert (status, where) == (400, param)
    assert message in text


def embed(client: TestClient, value: Any, **changes: Any) -> Any:
    return client.post("/v1/embeddings", json={"model": "debug-clip", "input": value} | changes)


def test_inputs_to_embed(client: TestClient) -> None:
    assert "input has 65 entries; this service allows 64" in refused(embed(client, ["a"] * 65))[2]
    for tokens in ([1, 2], [[1], [2, 3]]):
        assert "tokens are not served here" in refused(embed(client, tokens))[2]
    for wrong in ([], [["a"]], {"a": 1}, [2, "a"]):
        assert "give a text or a list of texts" in refused(embed(client, wrong))[2]
    assert "Did you mean" not in refused(embed(client, "a", response_format="x"))[2]
    found = embed(client, ["short", "word " * 500], user="u", encoding_format=None, dimensions=None)
    assert found.headers["X-Kauli-Truncated"] == "input.1"
    assert "X-Kauli-Truncated" not in embed(client, ["short", "a"]).headers
    many = client.post(
        "/v1/classify", json={"model": "classify", "input": "a", "classes": [str(i) for i in range(257)]}
    )
    assert "classes has 257 entries; this service allows 256 (setting max_classes)" in refused(many)[2]


def test_web_pages_ask_where_the_settings_name_them(storage: Path, workers: dict[str, Any], client: TestClient) -> None:
    page, other = "https://app.example", "https://evil.example"
    asks = {"Access-Control-Request-Method": "POST", "Access-Control-Request-Headers": "content-type, authorization"}
    assert client.options("/v1/chat/completions", headers={"Origin": page} | asks).status_code == 403
    named = application(storage, workers, cors_origins=[page])
    first = named.options("/v1/chat/completions", headers={"Origin": page} | asks)
    assert (first.status_code, first.headers["Access-Control-Allow-Origin"]) == (200, page)
    assert "authorization" in first.headers["Access-Control-Allow-Headers"]
    assert named.options("/v1/chat/completions", headers={"Origin": other} | asks).status_code == 400
    found = named.post("/v1/chat/completions", json=HELLO, headers={"Origin": page})
    assert (found.status_code, found.headers["Access-Control-Allow-Origin"]) == (200, page)
    wrong = named.post("/v1/chat/completions", json=HELLO, headers={"Origin": other})
    assert (wrong.status_code, "cors_origins" in wrong.text) == (403, True)
    assert "Access-Control-Allow-Origin" not in wrong.headers
    keyed = application(storage, workers, cors_origins=["*"], host="0.0.0.0", key_hashes=["0" * 64])
    assert keyed.options("/v1/models", headers={"Origin": other} | asks).status_code == 200
    unknown = keyed.get("/v1/models", headers={"Origin": other})
    assert (unknown.status_code, unknown.headers["Access-Control-Allow-Origin"]) == (401, "*")


def test_every_limit_is_a_setting() -> None:
    shown = yaml.safe_load((Path(__file__).parents[3] / "deploy" / "local.yaml").read_text("utf-8"))
    limits = {name for name in ServeArgs.model_fields if name.startswith("max_")}
    assert limits <= shown.keys()
    assert {"max_messages", "max_prompts", "max_inputs", "max_stops", "max_classes", "max_logprobs"} <= limits
