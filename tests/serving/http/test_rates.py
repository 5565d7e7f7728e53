"""Limits of requests, and adapters that may no longer be used."""

from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

import pytest
from fastapi.testclient import TestClient

from kauli.models.adapters.registry import Registry
from kauli.models.bases.find import find_base
from kauli.models.text.task import TextTask
from kauli.serving.http.app import create_app
from kauli.serving.http.rates import Rates
from kauli.serving.routing import Catalogue
from kauli.serving.settings import ServeArgs, hash_key
from kauli.serving.workers.text import TextGenerator
from support.settings import worker_args
from support.text_adapters import publish_random

HELLO = {"messages": [{"role": "user", "content": "Habari"}], "max_tokens": 2}


@pytest.fixture(scope="module")
def generator(storage: Path) -> Iterator[TextGenerator]:
    with closing(TextGenerator(TextTask.load(find_base("debug"), slots=4), worker_args(storage))) as running:
        yield running


def client_of(storage: Path, generator: TextGenerator, *, refresh_s: float = 0, **settings: object) -> TestClient:
    args = ServeArgs(storage=str(storage), max_tokens=64, refresh_s=refresh_s, **settings)  # type: ignore[arg-type]
    base = find_base("debug")
    catalogue = Catalogue(Registry(str(storage)), {"text": [base]}, refresh_s)
    app = create_app({"text": {base.name: generator}}, catalogue, args)
    return TestClient(app, base_url="http://127.0.0.1:8000", raise_server_exceptions=False)


def test_a_bucket_fills_with_time_and_holds_no_more_than_a_minute() -> None:
    rates = Rates(per_minute=2)
    assert [rates.wait("a", now=0), rates.wait("a", now=0)] == [0, 0]
    assert rates.wait("a", now=0) == pytest.approx(30)
    assert rates.wait("b", now=0) == 0
    assert rates.wait("a", now=15) == pytest.approx(15)
    assert rates.wait("a", now=30) == 0
    assert [rates.wait("a", now=10_000) for _ in range(3)] == [0, 0, pytest.approx(30)]


def test_each_key_has_its_own_limit(storage: Path, generator: TextGenerator) -> None:
    keys = tuple(map(hash_key, ("one", "two")))
    client = client_of(storage, generator, host="0.0.0.0", key_hashes=keys, requests_per_minute=2)

    def ask(key: str) -> int:
        headers = {"Authorization": f"Bearer {key}"}
        return client.post("/v1/chat/completions", json={"model": "text", **HELLO}, headers=headers).status_code

    assert [ask("one"), ask("one"), ask("one"), ask("two")] == [200, 200, 429, 200]
    headers = {"Authorization": "Bearer one"}
    refused = client.post("/v1/chat/completions", json={"model": "text", **HELLO}, headers=headers)
    assert refused.json()["error"]["message"] == "too many requests; retry in 30 s (setting requests_per_minute)"
    assert refused.json()["error"]["type"] == "rate_limit_error"
    assert refused.headers["Retry-After"] == "30"
    assert client.get("/v1/models", headers=headers).status_code == 200
    assert ask("three") == 401


def test_a_revoked_adapter_stops_answering_and_its_reason_is_told(tmp_path: Path) -> None:
    store = tmp_path / "store"
    with closing(TextGenerator(TextTask.load(find_base("debug"), slots=4), worker_args(store))) as generator:
        check_revocation(store, generator)


def check_revocation(store: Path, generator: TextGenerator) -> None:
    for seed in (1, 2):
        publish_random(store, "text-zu", "zu", seed, find_base("debug"))
    client = client_of(store, generator)
    other = client_of(store, generator)  # another replica

    def ask(model: str, of: TestClient = client) -> tuple[int, str]:
        body = {"model": model, **HELLO} | ({"language": "zu"} if model == "text" else {})
        found = of.post("/v1/chat/completions", json=body)
        return found.status_code, found.headers.get("X-Kauli-Adapter") or found.json()["error"]["message"]

    def revoke(adapter: str, why: str = "the speaker withdrew consent") -> list[str]:
        found = client.post("/v1/adapters/revoke", json={"adapter": adapter, "why": why})
        assert found.status_code == 200, found.text
        return [one["id"] for one in found.json()["data"]]

    assert revoke("text-zu@2") == ["text-zu@2"]
    for replica in (client, other):
        status, text = ask("text-zu@2", replica)
        assert status == 404
        assert text.startswith("text-zu@2 was revoked on 2")
        assert text.endswith(": the speaker withdrew consent")
        assert ask("text-zu@1", replica) == (200, "text-zu@1")
    assert revoke("text-zu") == ["text-zu@1"]
    assert [ask(model, other)[0] for model in ("text-zu", "text-zu@1", "text")] == [404, 404, 404]
    assert "was revoked on" in ask("text-zu", other)[1]
    assert "text-zu" not in other.get("/v1/models").text
    assert client.post("/v1/adapters/revoke", json={"adapter": "text-xx", "why": "x"}).status_code == 400


def test_revoking_needs_an_admin_key(storage: Path, generator: TextGenerator) -> None:
    keys = {"key_hashes": (hash_key("user"),), "admin_key_hashes": (hash_key("admin"),)}
    client = client_of(storage, generator, host="0.0.0.0", **keys)
    body = {"adapter": "text-be", "why": "x"}
    refused = client.post("/v1/adapters/revoke", json=body, headers={"Authorization": "Bearer user"})
    assert (refused.status_code, refused.json()["error"]["code"]) == (403, "admin_key_needed")
    assert Registry(str(storage)).revoked("text-be") == {}
