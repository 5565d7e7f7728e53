"""Mixtures of adapters as a request's model: who answers, what is refused, what the cache keeps; over HTTP as well."""

import asyncio
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from fastapi.testclient import TestClient
from peft import LoraConfig

from kauli.models.adapters.card import Decoding, read_card
from kauli.models.adapters.mixture import MixtureError
from kauli.models.adapters.registry import Registry
from kauli.models.bases.find import find_base
from kauli.models.requests import TextRequest
from kauli.models.text.task import TextTask
from kauli.serving.events import Event, Failed, Piece
from kauli.serving.http.app import create_app
from kauli.serving.routing import Catalogue, UnknownLanguage, UnknownModel
from kauli.serving.settings import ServeArgs
from kauli.serving.workers.text import TextGenerator
from support.random_adapters import EVERY
from support.settings import worker_args
from support.text_adapters import publish_random, publish_translator

QUESTION = TextRequest.of_prompt("Habari", max_tokens=12)
MIXED = "text-be@1*0.25+text-sw@2*0.75"


@pytest.fixture(scope="module")
def store(storage: Path) -> Path:
    """With adapters that do not go together with `text-sw`, and one of another rank on other layers."""
    base = find_base("debug")
    publish_random(storage, "text-wide", "xh", 5, base, LoraConfig(r=9, target_modules=EVERY))
    publish_random(storage, "text-qwen", "zu", 6, find_base("debug-qwen"))
    publish_random(storage, "text-dora", "zu", 7, base, LoraConfig(r=2, target_modules=["q_proj"], use_dora=True))
    publish_translator(storage, "translate-am", "am", base)
    publish_translator(storage, "translate-sw", "sw", base)
    return storage


@pytest.fixture(scope="module")
def generator(store: Path) -> Iterator[TextGenerator]:
    running = TextGenerator(TextTask.load(find_base("debug"), slots=4), worker_args(store, max_adapters=4))
    yield running
    running.close()


def catalogue_of(store: Path, *bases: str) -> Catalogue:
    return Catalogue(Registry(str(store)), {"text": [find_base(base) for base in bases or ("debug",)]}, 0)


@pytest.fixture(scope="module")
def client(store: Path, generator: TextGenerator) -> TestClient:
    app = create_app({"text": {"debug-text": generator}}, catalogue_of(store), ServeArgs(storage=str(store)))
    return TestClient(app, base_url="http://127.0.0.1:8000", raise_server_exceptions=False)


async def collect(generator: TextGenerator, adapter: str | None) -> list[Event]:
    return [event async for event in generator.stream(QUESTION, adapter)]


def said(events: list[Event]) -> str:
    assert not isinstance(events[-1], Failed), events[-1]
    return "".join(event.text for event in events if isinstance(event, Piece))


# Who answers


@pytest.mark.parametrize(
    ("model", "language", "key", "answers_in"),
    [
        ("text-sw*0.6+text-wide*0.4", None, "text-sw@2*0.6+text-wide@1*0.4", None),
        ("text-wide*.40 + text-sw@2*0.60", "sw", "text-sw@2*0.6+text-wide@1*0.4", "sw"),
        ("text-sw@1*1e-2+text-be*-1.0+text-many*2", "be-tarask", "text-be@1*-1+text-many@1*2+text-sw@1*0.01", "be"),
        ("text-sw@1*0.5", None, "text-sw@1*0.5", "sw"),
        ("text-sw@1*1+text-sw@2*0", None, "text-sw@1*1+text-sw@2*0", "sw"),
    ],
)
def test_a_mixture_has_one_key_and_all_languages(
    store: Path, model: str, language: str | None, key: str, answers_in: str | None
) -> None:
    route = catalogue_of(store).route(model, language)
    assert (route.base, route.adapter, route.language) == ("debug-text", key, answers_in)
    assert catalogue_of(store).route(key, language) == route
    assert catalogue_of(store).certificate(route) is None


BAD: list[tuple[str, type[Exception], str]] = [
    ("text-sw+text-be", MixtureError, r"'text-sw' in .* is not NAME\*WEIGHT: write a mixture as text-zu\*0.6"),
    ("text-sw*0.5+", MixtureError, r"'' in .* is not NAME\*WEIGHT"),
    ("*0.5", MixtureError, r"is not NAME\*WEIGHT"),
    ("text-sw*half", MixtureError, "the weight 'half' is no decimal number such as 0.6"),
    ("text-sw*nan+text-be*1", MixtureError, "the weight 'nan' is no decimal number"),
    ("text-sw*inf+text-be*1", MixtureError, "the weight 'inf' is no decimal number"),
    ("text-sw*1e9+text-be*1", MixtureError, "the weight '1e9' is no decimal number"),
    ("text-sw*0.5*2", MixtureError, r"the weight '0.5\*2' is no decimal number"),
    ("text-sw*10.5+text-be*1", MixtureError, "the weight 10.5 is not allowed: give -10 to 10"),
    ("text-sw*0+text-be*-0.0", MixtureError, "all weights are 0, which is the base alone"),
    ("+".join(f"text-a{at}*1" for at in range(9)), MixtureError, "9 adapters: a mixture has 1 to 8"),
    ("text-sw*0.5+text-sw@2*0.5", MixtureError, "'text-sw@2' is in the mixture twice.*sum of its weights"),
    ("../etc*0.5", UnknownModel, "not served"),
    ("text-ws*0.5+text-be*0.5", UnknownModel, "model 'text-ws' is not served. Did you mean 'text-sw'"),
    ("text-sw@9*0.5+text-be*0.5", UnknownModel, "no version or alias '9'"),
    ("text*0.5+text-be*0.5", UnknownModel, "model 'text' is not served"),
    (
        "text-sw*0.5+text-qwen*0.5",
        MixtureError,
        "text-qwen@1 is made for the base debug-qwen .* text-sw@2 for debug-text",
    ),
    (
        "text-sw*0.5+translate-am*0.5",
        MixtureError,
        "for the task 'text', translate-am@1 for 'translate': only adapters",
    ),
]


@pytest.mark.parametrize(("model", "error", "told"), BAD)
def test_what_is_no_mixture_is_refused(store: Path, model: str, error: type[Exception], told: str) -> None:
    with pytest.raises(error, match=told):
        catalogue_of(store, "debug", "debug-qwen").route(model)


def test_the_language_must_be_one_of_theirs(store: Path) -> None:
    with pytest.raises(UnknownLanguage, match="is for be, sw, not for 'ka'"):
        catalogue_of(store).route(MIXED, "ka")


def test_translators_are_mixed_with_all_their_pairs(store: Path) -> None:
    route, card = catalogue_of(store).route_pair("translate-sw*0.5+translate-am*0.5", "en", "am")
    assert (route.adapter, route.language) == ("translate-am@1*0.5+translate-sw@1*0.5", "am")
    assert card.translation is not None
    assert card.translation.pairs == [("en", "am"), ("am", "en"), ("en", "sw"), ("sw", "en")]


def test_what_lies_beside_a_lora_is_named(tmp_path: Path) -> None:
    base = find_base("debug")
    card = read_card(Path(__file__).parents[1] / "fixtures" / "adapters" / "describe-image")
    own = card.base.model_copy(update={"sha256": base.sha256, "name": base.name})
    for name in ("describe-a", "describe-b"):
        folder = tmp_path / "adapters" / name / "1"
        folder.mkdir(parents=True)
        (folder / "card.json").write_text(card.model_copy(update={"name": name, "version": 1, "base": own}).to_json())
    with pytest.raises(MixtureError, match=r"describe-a@1 has connector.json, connector.safetensors beside its LoRA"):
        catalogue_of(tmp_path).route("describe-a*0.5+describe-b*0.5")


# Answers


def test_mixtures_in_a_batch_answer_as_they_do_alone(store: Path, generator: TextGenerator) -> None:
    other = "text-sw@2*1.5+text-wide@1*-0.5"
    adapters = [None, MIXED, other, "text-sw@2", "text-be@1"]

    async def all_at_once() -> list[list[Event]]:
        return await asyncio.gather(*(collect(generator, adapter) for adapter in adapters * 3))

    together = [said(events) for events in asyncio.run(all_at_once())]
    alone = [said(asyncio.run(collect(generator, adapter))) for adapter in adapters]
    assert together == alone * 3
    assert len(set(alone)) == len(adapters)
    assert said(asyncio.run(collect(generator, "text-be@1*0+text-sw@2*1"))) == alone[3]


def test_the_cache_keeps_and_evicts_mixtures_like_adapters(store: Path) -> None:
    task = TextTask.load(find_base("debug"), slots=2)
    generator = TextGenerator(task, worker_args(store, max_adapters=2))

    async def loaded() -> list[str]:
        until = time.monotonic() + 20
        while any(entry["in_use"] for entry in await generator.adapters()):  # the worker's thread counts a use back
            assert time.monotonic() < until
            await asyncio.sleep(0.01)
        return [entry["adapter"] for entry in await generator.adapters()]

    async def all_of_it() -> None:
        first = said(await collect(generator, MIXED))
        await collect(generator, "text-sw@2")
        assert await loaded() == [MIXED, "text-sw@2"]
        await collect(generator, MIXED)
        await collect(generator, "text-wide@1")
        assert await loaded() == [MIXED, "text-wide@1"]
        await collect(generator, "text-sw@1*2")
        assert sorted(task.adapters()) == sorted(await loaded()) == ["text-sw@1*2", "text-wide@1"]
        assert said(await collect(generator, MIXED)) == first
        await loaded()
        assert await generator.unload("text-be@1")  # it is not loaded itself, but a part of what is
        assert await loaded() == ["text-sw@1*2"]
        assert not await generator.unload("text-be@1")
        assert all(entry["in_use"] == 0 for entry in await generator.adapters())

    asyncio.run(all_of_it())
    generator.close()


def test_the_loosest_guards_of_the_parents_hold(store: Path, tmp_path: Path) -> None:
    for name, seed, own in (
        ("text-a", 1, Decoding(no_repeat=6, max_tokens=20, tokens_per_prompt_token=2.0)),
        ("text-b", 2, Decoding(no_repeat=9, max_tokens=50, tokens_per_prompt_token=1.5)),
        ("text-c", 3, Decoding()),
    ):
        publish_random(tmp_path, name, "sw", seed, find_base("debug"), decoding=own)
    catalogue = catalogue_of(tmp_path)
    mixed = Decoding(no_repeat=9, max_tokens=50, tokens_per_prompt_token=2.0)
    assert catalogue.card("text-a*1+text-b*1").decoding == mixed
    assert catalogue.card("text-a*1+text-c*1").decoding == Decoding()
    task, registry = TextTask.load(find_base("debug")), Registry(str(tmp_path))
    read = [task.read_adapter(registry.fetch(name)) for name in ("text-a@1", "text-b@1")]
    assert task.mix_adapters([(one, 1.0) for one in read]).decoding == mixed


# Over HTTP


def ask(client: TestClient, model: str, **changes: Any) -> Any:
    body = {"model": model, "messages": [{"role": "user", "content": "Habari"}], "max_tokens": 12, **changes}
    return client.post("/v1/chat/completions", json=body)


def test_http_answers_with_a_mixture_and_says_which(client: TestClient, generator: TextGenerator) -> None:
    response = ask(client, "text-sw*0.750+text-be*.25", language="be")
    assert response.status_code == 200, response.text
    assert response.headers["X-Kauli-Adapter"] == MIXED
    assert response.headers["X-Kauli-Language"] == "be"
    assert response.json()["model"] == MIXED
    assert response.json()["choices"][0]["message"]["content"] == said(asyncio.run(collect(generator, MIXED)))
    plain = client.post("/v1/completions", json={"model": MIXED, "prompt": "Habari", "max_tokens": 4})
    assert plain.headers["X-Kauli-Adapter"] == MIXED
    assert client.post("/v1/adapters", json={"adapter": "text-be*0.25+text-sw*0.75"}).json()["id"] == MIXED
    held = {entry["id"]: entry for entry in client.get("/v1/adapters").json()["data"]}
    assert (held[MIXED]["loaded"], held[MIXED]["parent"]) == (True, "debug-text")
    card = client.get(f"/v1/adapters/{MIXED}").json()
    assert (card["id"], card["language"]) == (MIXED, ["be", "sw"])
    assert client.delete(f"/v1/adapters/{MIXED}").status_code == 200


@pytest.mark.parametrize(
    ("model", "status", "told"),
    [
        ("text-sw*x+text-be*1", 400, "the weight 'x' is no decimal number"),
        ("text-sw*1+text-zz*1", 404, "model 'text-zz' is not served"),
        ("text-sw*1+text-dora*1", 400, "these adapters can't be mixed: model.layers.0.self_attn.q_proj is scaled"),
        ("text-sw*1+translate-am*1", 400, "only adapters of one task can be mixed"),
    ],
)
def test_http_refuses_with_one_clear_error(client: TestClient, model: str, status: int, told: str) -> None:
    response = ask(client, model)
    error = response.json()["error"]
    assert (response.status_code, error["param"]) == (status, "model")
    assert told in error["message"]


def test_a_picture_is_refused_by_a_mixture(client: TestClient) -> None:
    picture = {"type": "image_url", "image_url": {"url": "data:image/png;base64,AAAA"}}
    response = ask(client, MIXED, messages=[{"role": "user", "content": [picture]}])
    assert (response.status_code, response.json()["error"]["code"]) == (400, "no_pictures")


def test_a_revoked_parent_takes_the_mixture_along(tmp_path: Path) -> None:
    for name, seed in (("text-zu", 1), ("text-xh", 2)):
        publish_random(tmp_path, name, name[-2:], seed, find_base("debug"))
    generator = TextGenerator(TextTask.load(find_base("debug")), worker_args(tmp_path))
    args = ServeArgs(storage=str(tmp_path), refresh_s=0)
    app = create_app({"text": {"debug-text": generator}}, catalogue_of(tmp_path), args)
    client = TestClient(app, base_url="http://127.0.0.1:8000")
    model = "text-zu*0.6+text-xh*0.4"
    assert ask(client, model).status_code == 200
    assert client.post("/v1/adapters/revoke", json={"adapter": "text-xh@1", "why": "no consent"}).status_code == 200
    assert asyncio.run(generator.adapters()) == []
    response = ask(client, model)
    assert response.status_code == 404
    assert "text-xh@1 was revoked on" in response.json()["error"]["message"]
    failed = asyncio.run(collect(generator, "text-xh@1*0.4+text-zu@1*0.6"))[-1]  # a replica that has not heard of it
    assert isinstance(failed, Failed)
    assert "was revoked on" in failed.message
    generator.close()
