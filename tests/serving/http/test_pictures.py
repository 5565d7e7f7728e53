"""Images over HTTP: described, embedded, classified, reranked, refused."""

import base64
import json
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from fastapi.testclient import TestClient

from kauli.models.adapters.registry import Registry
from kauli.models.bases.find import find_base
from kauli.models.media.decode import decode_image
from kauli.models.requests import MARK
from kauli.models.text.task import TextTask
from kauli.models.vision.align import AlignTask
from kauli.serving.http.app import create_app
from kauli.serving.routing import Catalogue
from kauli.serving.settings import ServeArgs
from kauli.serving.workers.image_encoder import ImageEncoder
from kauli.serving.workers.text import TextGenerator
from support.picture_adapters import CLASSES, data_uri, described_here, large_png, png, publish_describe, publish_head
from support.settings import worker_args

RED, BLUE = data_uri(png("red")), data_uri(png("blue"))
QUESTION = "Ni nini?"


@dataclass(frozen=True)
class House:
    """A service's parts, on a store with adapters of every kind."""

    storage: Path
    generator: TextGenerator
    encoder: ImageEncoder

    def client(self, *, image: bool = True, aligned: bool = True, tasks: Any = None, **settings: Any) -> TestClient:
        args = ServeArgs(storage=str(self.storage), max_tokens=64, refresh_s=0, **settings)
        base, clip = find_base("debug"), find_base("debug", task="align")
        options = {"tasks": tasks} if tasks else {}
        bases = {"text": [base]} | ({"image": [clip]} if aligned else {})
        workers: dict[str, Any] = {"text": {base.name: self.generator}}
        workers |= {"image": {clip.name: self.encoder}} if image else {}
        app = create_app(workers, Catalogue(Registry(args.storage), bases, 0, **options), args)
        return TestClient(app, base_url="http://127.0.0.1:8000", raise_server_exceptions=False)


@pytest.fixture(scope="module")
def house(publish: Callable[..., str], tmp_path_factory: pytest.TempPathFactory) -> Iterator[House]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("KAULI_HOME", str(tmp_path_factory.mktemp("home")))
        storage = tmp_path_factory.mktemp("store")
        publish(storage, "text-sw", "sw", 1)
        publish_describe(storage, "describe-sw", "sw", 2)
        publish_describe(storage, "describe-am", "am", 3, grid=2)
        publish_describe(storage, "describe-other", "ka", 4, tower="0" * 64)
        base = find_base("debug", task="align")
        task = AlignTask.load(base)
        shots = task.embed_images([decode_image(png(colour)) for colour in ("red", "blue")])
        publish_head(storage, "topic-sw", "sw", shots, torch.tensor([0, 1]))
        args = worker_args(storage, max_adapters=4)
        generator = TextGenerator(TextTask.load(find_base("debug"), slots=4), args)
        encoder = ImageEncoder(args, base, True)
        yield House(storage, generator, encoder)
        generator.close()
        encoder.close()


@pytest.fixture(scope="module")
def client(house: House) -> TestClient:
    return house.client()


def image(uri: str) -> dict[str, Any]:
    return {"type": "image_url", "image_url": {"url": uri}}


def text(words: str) -> dict[str, Any]:
    return {"type": "text", "text": words}


def show(client: TestClient, *parts: dict[str, Any], **changes: Any) -> Any:
    body = {"model": "describe", "language": "sw", "max_tokens": 12, "ignore_eos": True}
    body["messages"] = [{"role": "user", "content": list(parts) or [image(RED), text(QUESTION)]}]
    return client.post("/v1/chat/completions", json=body | changes)


def said(response: Any) -> str:
    assert response.status_code == 200, response.text
    return str(response.json()["choices"][0]["message"]["content"])


# Chat


def test_a_picture_is_described_as_in_this_process(house: House, client: TestClient) -> None:
    response = show(client)
    expected, tokens = described_here(house.storage, "describe-sw@1", MARK + QUESTION, ["red"])
    assert said(response) == expected
    assert response.headers["X-Kauli-Adapter"] == "describe-sw@1"
    assert response.headers["X-Kauli-Language"] == "sw"
    assert response.json()["usage"]["prompt_tokens"] == tokens
    assert said(show(client, image(BLUE), text(QUESTION))) != expected


def test_pictures_and_texts_come_in_any_order(house: House, client: TestClient) -> None:
    parts = [text("moja"), image(RED), text("mbili"), text(f"tatu{MARK}"), image(BLUE)]
    expected, tokens = described_here(
        house.storage, "describe-am@1", f"moja{MARK}mbili\ntatu{MARK}", ["red", "blue"], 2
    )
    response = show(client, *parts, model="describe-am", language=None)
    assert said(response) == expected
    assert response.json()["usage"]["prompt_tokens"] == tokens


def test_the_second_time_is_a_hit(client: TestClient) -> None:
    green = image(data_uri(png("green")))
    before = client.get("/health").json()["encoder"]
    timings = [show(client, green).headers["Server-Timing"] for _ in range(2)]
    assert [timing.split(";")[1] for timing in timings] == ["desc=miss", "desc=hit"]
    after = client.get("/health").json()["encoder"]
    assert (after["hits"] - before["hits"], after["misses"] - before["misses"]) == (1, 1)
    assert show(client, text("hakuna")).headers.get("Server-Timing") is None


def test_a_stream_says_the_same(client: TestClient) -> None:
    whole = said(show(client))
    response = show(client, stream=True)
    events = [json.loads(line[6:]) for line in response.text.split("\n\n") if line.startswith("data: {")]
    pieces = (choice["delta"].get("content", "") for event in events for choice in event["choices"])
    assert "".join(pieces) == whole
    assert response.headers["Server-Timing"].startswith("encoder;desc=hit")


def test_connectors_and_plain_adapters_in_one_batch_say_what_each_says_alone(client: TestClient) -> None:
    asked: list[tuple[tuple[dict[str, Any], ...], dict[str, Any]]] = [
        ((image(RED), text(QUESTION)), {"model": "describe-sw"}),
        ((image(BLUE), text(QUESTION)), {"model": "describe-sw"}),
        ((image(BLUE), text("Habari")), {"model": "describe-am", "language": None}),
        ((text(QUESTION),), {"model": "text-sw"}),
        ((text(QUESTION),), {"model": "describe-sw"}),
        ((text(QUESTION),), {"model": "debug-text"}),
    ]
    alone = [said(show(client, *parts, **changes)) for parts, changes in asked]
    assert len(set(alone)) == len(asked)
    with ThreadPoolExecutor(6) as pool:
        together = [pool.submit(show, client, *parts, **changes) for parts, changes in asked * 2]
        assert [said(one.result()) for one in together] == alone * 2


@pytest.mark.parametrize(
    ("parts", "changes", "status", "code", "param", "words"),
    [
        ([image("https://example.org/a.png")], {}, 400, "invalid_image", "messages.0.content.0", "not fetched"),
        ([image("file:///etc/passwd")], {}, 400, "invalid_image", "messages.0.content.0", "not fetched"),
        ([text("x"), image(data_uri(png("red")[:-20]))], {}, 400, "invalid_image", "messages.0.content.1", "truncated"),
        ([image(data_uri(b"<svg/>", "image/svg+xml"))], {}, 400, "invalid_image", "messages.0.content.0", "SVG"),
        ([image(data_uri(b"<svg/>"))], {}, 400, "invalid_image", "messages.0.content.0", "SVG"),
        ([image("data:image/png;base64,aGVsbG8=")], {}, 400, "invalid_image", "messages.0.content.0", ""),
        ([image("data:image/png;base64,@@@@")], {}, 400, "invalid_image", "messages.0.content.0", "base64"),
        ([image(RED)] * 5, {}, 400, "too_many_images", "messages", "allows 4"),
        ([image(RED)], {"model": "text-sw"}, 400, "no_pictures", "model", "'text-sw@1' takes no images"),
        ([image(RED)], {"model": "debug-text"}, 400, "no_pictures", "model", "'debug-text' takes no images"),
        ([image(RED)], {"model": "describe-other", "language": None}, 503, "wrong_encoder", "model", "debug-clip"),
        ([image(RED)], {"language": None}, 400, "invalid_value", None, "needs a language (am, ka, sw)"),
        ([image(RED)], {"language": "be"}, 404, "language_not_served", "language", "kauli train describe-multi"),
        ([text("x")], {"model": "topic-sw"}, 400, "invalid_value", "model", "/v1/classify"),
        ([text("x")], {"model": "debug-clip"}, 400, "invalid_value", "model", "/v1/embeddings"),
        ([image(RED)], {"rerank": 9}, 400, "value_too_large", "rerank", ""),
        ([image(RED)], {"rerank": 2, "n": 2}, 400, "invalid_value", "rerank", "exactly one image"),
        ([image(RED)], {"rerank": 2, "stream": True}, 400, "invalid_value", "rerank", "not for streams"),
        ([image(RED), image(BLUE)], {"rerank": 2}, 400, "invalid_value", "rerank", "exactly one image"),
        ([text("x")], {"rerank": 2}, 400, "invalid_value", "rerank", "exactly one image"),
        ([text("word " * 3000), image(RED)], {}, 400, "context_length_exceeded", "messages", "tokens"),
    ],
)
def test_refusals(
    client: TestClient,
    parts: list[Any],
    changes: dict[str, Any],
    status: int,
    code: str,
    param: str | None,
    words: str,
) -> None:
    response = show(client, *parts, **changes)
    error = response.json()["error"]
    assert (response.status_code, error["code"], error["param"]) == (status, code, param), error
    assert words in error["message"]


def test_only_users_show_pictures(client: TestClient) -> None:
    response = show(client, messages=[{"role": "system", "content": [image(RED)]}])
    assert response.status_code == 400
    assert "user's message" in response.json()["error"]["message"]


def test_a_picture_of_eight_megabytes_fits(client: TestClient) -> None:
    content = large_png()
    assert 7.9e6 < len(content) < 8 * 2**20
    assert said(show(client, image(data_uri(content)), text(QUESTION)))
    large = show(client, image("data:image/png;base64," + "A" * 13_000_000))
    assert (large.status_code, large.json()["error"]["code"]) == (413, "body_too_large")


# Reranking


def test_reranking_gives_the_answer_nearest_to_the_picture(client: TestClient) -> None:
    options = {"seed": 3, "temperature": 1.5}
    samples = show(client, n=5, **options).json()["choices"]
    texts = [choice["message"]["content"] for choice in samples]
    assert len(set(texts)) == 5
    task = AlignTask.load(find_base("debug", task="align"))
    near = task.embed_texts(texts) @ task.embed_images([decode_image(png("red"))])[0]
    response = show(client, rerank=5, **options).json()
    assert [choice["index"] for choice in response["choices"]] == [0]
    assert response["choices"][0]["message"]["content"] == texts[int(near.argmax())]
    assert response["kauli"] == {"reranked": 5}
    assert response["usage"]["completion_tokens"] == 5 * 12  # all that was made, not only what is shown
    assert said(show(client, rerank=3, seed=3)) != said(show(client, rerank=3, seed=4))  # warm by default


# Embeddings


def embed(client: TestClient, value: Any, **changes: Any) -> Any:
    return client.post("/v1/embeddings", json={"model": "embed", "input": value} | changes)


def test_texts_and_pictures_have_one_space(client: TestClient) -> None:
    body = embed(client, ["gari", RED]).json()
    task = AlignTask.load(find_base("debug", task="align"))
    expected = torch.cat([task.embed_texts(["gari"]), task.embed_images([decode_image(png("red"))])])
    assert np.allclose([one["embedding"] for one in body["data"]], expected.numpy(), atol=1e-5)
    assert [(one["object"], one["index"]) for one in body["data"]] == [("embedding", 0), ("embedding", 1)]
    assert (body["object"], body["model"]) == ("list", "debug-clip")
    assert body["usage"] == {"prompt_tokens": 4, "total_tokens": 4}
    packed = embed(client, "gari", encoding_format="base64", model="debug-clip", dimensions=32).json()["data"]
    vector = np.frombuffer(base64.b64decode(packed[0]["embedding"]), dtype="<f4")
    assert np.allclose(vector, expected[0].numpy(), atol=1e-6)


@pytest.mark.parametrize(
    ("value", "changes", "status", "param", "words"),
    [
        ("", {}, 400, "input", "empty"),
        ([], {}, 400, None, ""),
        (["x"] * 65, {}, 400, None, ""),
        ([1, 2], {}, 400, None, ""),
        ("x", {"dimensions": 8}, 400, "dimensions", "gives 32"),
        ("x", {"model": "text-embedding-3-small"}, 404, "model", "is not served"),
        ("x", {"model": "text-sw"}, 400, "model", "use model 'debug-clip'"),
        ("x", {"model": "topic-sw"}, 400, "model", "cannot produce embeddings"),
        (data_uri(png("red")[:-20]), {}, 400, "input", "truncated"),
        (["x", data_uri(png("red")[:-20])], {}, 400, "input.1", "truncated"),
        (["x", "data:image/png,abc"], {}, 400, "input.1", "must begin like"),
        ("x", {"encoding": "float"}, 400, "encoding", "Did you mean 'encoding_format'"),
        ("long " * 250_000, {}, 413, "input", "bytes"),
    ],
)
def test_embeddings_that_are_refused(
    client: TestClient, value: Any, changes: dict[str, Any], status: int, param: str | None, words: str
) -> None:
    response = embed(client, value, **changes)
    error = response.json()["error"]
    assert response.status_code == status, error
    assert words in error["message"]
    assert param is None or error["param"] == param


# Classification


def classify(client: TestClient, value: Any, **changes: Any) -> Any:
    return client.post("/v1/classify", json={"model": "topic-sw", "input": value} | changes)


def test_a_head_classifies(client: TestClient) -> None:
    response = classify(client, [BLUE, RED])
    body = response.json()
    assert [one["label"] for one in body["data"]] == [CLASSES[1], CLASSES[0]]
    first = body["data"][0]["probabilities"]
    assert {one["label"] for one in first} == set(CLASSES)
    assert sum(one["probability"] for one in first) == pytest.approx(1)
    assert (body["object"], body["model"]) == ("list", "topic-sw@1")
    assert response.headers["X-Kauli-Adapter"] == "topic-sw@1"
    by_language = classify(client, BLUE, model="classify", language="sw")
    again = by_language.json()["data"][0]["probabilities"]
    assert [one["label"] for one in again] == [one["label"] for one in first]
    assert again[0]["probability"] == pytest.approx(first[0]["probability"], abs=1e-5)
    assert classify(client, BLUE, model="classify").json()["model"] == "topic-sw@1"  # the only head there is


def test_classes_need_no_head(client: TestClient) -> None:
    for model in ("debug-clip", "embed", "classify"):
        body = classify(client, ["gari", RED], model=model, classes=["gari", "nyumba"]).json()
        assert body["model"] == "debug-clip"
        assert body["data"][0]["label"] == "gari"
        assert len(body["data"][1]["probabilities"]) == 2


@pytest.mark.parametrize(
    ("changes", "status", "param", "words"),
    [
        ({"model": "debug-clip"}, 400, "classes", "needs classes"),
        ({"classes": ["a", "b"]}, 400, "classes", "has its own classes"),
        ({"model": "embed", "classes": ["a", "a"]}, 400, "classes", "different names"),
        ({"model": "embed", "classes": ["a"]}, 400, "classes", ""),
        ({"model": "text-sw"}, 400, "model", "use model 'debug-clip'"),
        ({"model": "classify", "language": "am"}, 404, "language", "Languages: sw"),
        ({"input": data_uri(b"no")}, 400, "input", "unknown type"),
    ],
)
def test_classifications_that_are_refused(
    client: TestClient, changes: dict[str, Any], status: int, param: str, words: str
) -> None:
    response = classify(client, "neno", **changes)
    error = response.json()["error"]
    assert (response.status_code, error["param"]) == (status, param), error
    assert words in error["message"]


# What is served


def test_models_and_adapters_are_listed(client: TestClient) -> None:
    models = {model["id"]: model for model in client.get("/v1/models").json()["data"]}
    assert models["debug-clip"]["task"] == "align"
    assert models["topic-sw"]["parent"] == "debug-clip"
    assert models["describe-sw"]["task"] == "describe"
    assert client.post("/v1/adapters", json={"adapter": "topic-sw"}).json()["parent"] == "debug-clip"
    assert {e["id"]: e["loaded"] for e in client.get("/v1/adapters").json()["data"]}["topic-sw@1"]
    assert client.delete("/v1/adapters/topic-sw@1").status_code == 200
    assert client.post("/v1/adapters", json={"adapter": "debug-clip"}).status_code == 400


def test_without_an_aligned_base(house: House) -> None:
    client = house.client(aligned=False)
    for response in (embed(client, "x"), classify(client, "x"), show(client, rerank=2)):
        assert response.status_code == 404
        message = response.json()["error"]["message"]
        assert "No image-text embedding model is served; run `kauli fetch kauli-clip`" in message
    assert said(show(client))  # towers are enough to describe
    assert "debug-clip" not in {model["id"] for model in client.get("/v1/models").json()["data"]}


def test_without_an_encoder(house: House) -> None:
    client = house.client(image=False, aligned=False, tasks=("text",))
    response = show(client)
    assert response.status_code == 404
    assert "the task 'describe' is not served here" in response.json()["error"]["message"]
    named = show(client, model="describe-sw")
    assert "is not served here: text" in named.json()["error"]["message"]
    assert show(client, model="text-sw").json()["error"]["code"] == "no_pictures"
    assert client.get("/health").json()["status"] == "ok"
    assert "describe-sw" not in {model["id"] for model in client.get("/v1/models").json()["data"]}


def test_docs_show_everything(client: TestClient) -> None:
    page = client.get("/docs").text
    for words in ("/v1/embeddings", "/v1/classify", "rerank", "encoding_format", "classes", "image_url"):
        assert words in page
