"""/v1/translate, /v1/memory and LibreTranslate's paths: shapes, tenants by key, documents, errors, a public client."""

import base64
from collections.abc import Callable
from pathlib import Path
from typing import Any
from unittest.mock import patch

import pytest
from deep_translator import LibreTranslator  # type: ignore[import-untyped]
from fastapi.testclient import TestClient

from kauli.models.bases.find import find_base
from kauli.serving.http.app import create_app
from kauli.serving.settings import hash_key
from support.text_adapters import publish_translator
from support.translations import Answering, backends

KEYS = {"key_hashes": (hash_key("one"), hash_key("two"))}


@pytest.fixture(scope="module")
def adapters(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("storage")
    publish_translator(folder, "translate-am", "am", find_base("debug"))
    return folder


def service(
    folder: Path, answer: Callable[[str], str] = lambda prompt: "መልስ", **settings: Any
) -> tuple[TestClient, Answering]:
    found, worker = backends(folder, answer, **settings)
    app = create_app(found.workers, found.catalogue, found.args)
    return TestClient(app, base_url="http://127.0.0.1:8000", raise_server_exceptions=False), worker


@pytest.fixture
def client(adapters: Path) -> TestClient:
    return service(adapters)[0]


def ask(client: TestClient, **body: Any) -> Any:
    return client.post("/v1/translate", json={"source": "en", "target": "am", **body})


def add(client: TestClient, name: str, *pairs: tuple[str, str], **headers: str) -> Any:
    body = {"memory": name, "source": "en", "target": "am", "pairs": [{"source": a, "target": b} for a, b in pairs]}
    return client.post("/v1/memory", json=body, headers=headers)


def test_texts_and_their_marks(client: TestClient) -> None:
    add(client, "texts", ("Open %s", "%s ክፈት"))
    response = ask(client, text=["Open %s", "Close"], memory="texts")
    assert response.status_code == 200, response.text
    assert response.headers["X-Kauli-Adapter"] == "translate-am@1"
    body = response.json()
    assert {key: body[key] for key in ("object", "model", "source", "target")} == {
        "object": "translation", "model": "translate-am@1", "source": "en", "target": "am",
    }  # fmt: skip
    first, second = body["translations"]
    assert first == {"text": "%s ክፈት", "mark": "exact", "reasons": [], "score": 100.0, "examples": 0,
                     "certificate": None, "similar": {"source": "Open %s", "target": "%s ክፈት"}}  # fmt: skip
    assert (second["text"], second["mark"], second["examples"]) == ("መልስ", "drafted", 1)


def test_the_language_is_detected(client: TestClient) -> None:
    assert ask(client, text="ፋይሉን ክፈት", source="auto", target="en").json()["source"] == "am"
    assert ask(client, text="Open the file", source="auto").json()["source"] == "en"
    refused = ask(client, text="123", source="auto")
    assert (refused.status_code, refused.json()["error"]["param"]) == (400, "source")


PO = b'msgid ""\nmsgstr "Content-Type: text/plain; charset=UTF-8\\n"\n\nmsgid "Open %s"\nmsgstr ""\n'


def test_a_document(client: TestClient) -> None:
    document = {"name": "app.po", "content": base64.b64encode(PO).decode()}
    body = ask(client, document=document).json()
    assert body["marks"] == {"exact": 0, "fuzzy": 0, "drafted": 0, "red": 1}
    assert body["segments"][0]["reasons"] == ["%s is missing"]
    written = base64.b64decode(body["document"]["content"]).decode()
    assert '# %s is missing\n#, fuzzy\nmsgid "Open %s"\nmsgstr "መልስ"\n' in written


WIDE = base64.b64encode(b'text\n"' + b"a" * 200_000 + b'"').decode()
FRENCH = base64.b64encode(PO.replace(b"charset=UTF-8\\n", b"charset=UTF-8\\nLanguage: fr\\n")).decode()


@pytest.mark.parametrize(
    ("body", "message"),
    [
        ({}, "send either text or document"),
        ({"text": "a", "document": {"name": "a.po", "content": ""}}, "send either text or document"),
        ({"text": ["a"] * 65}, "text has 65"),
        ({"text": "a", "target": "sw"}, "nothing translates 'en' to 'sw' here. Served: en to am"),
        ({"text": "a", "target": "not a tag"}, "not a tag"),
        ({"text": "a", "memory": "nothing"}, "there is no memory 'nothing'"),
        ({"document": {"name": "a.po", "content": "!"}}, "document.content is not base64"),
        ({"document": {"name": "a.po", "content": "ሀሀሀሀ"}}, "document.content is not base64"),
        ({"document": {"name": "a.txt", "content": "QQ==", "encoding": "base64"}}, "there is no encoding 'base64'"),
        (
            {"document": {"name": "a.csv", "content": "dGV4dAoi" + "YWFh" * 60_000 + "Ig=="}},
            "a.csv row 2: field larger",
        ),
        ({"document": {"name": "a.po", "content": FRENCH}}, "says that its translations are in 'fr', not in 'am'"),
        ({"document": {"name": "a.doc", "content": ""}}, "a.doc: no document format has this suffix"),
        ({"document": {"name": "a.po", "content": "aGVsbG8="}}, "a.po line 1: this is no line of a PO file"),
        ({"text": "a", "colour": 1}, "unknown field 'colour'"),
    ],
)
def test_what_can_t_be_translated_is_one_error(client: TestClient, body: dict[str, Any], message: str) -> None:
    response = ask(client, **body)
    assert response.status_code in (400, 404)
    assert message in response.json()["error"]["message"]


def test_a_document_of_too_many_segments(adapters: Path) -> None:
    client, worker = service(adapters, max_segments=1)
    content = base64.b64encode(b"one\n\ntwo\n").decode()
    response = ask(client, document={"name": "a.txt", "content": content})
    assert (response.status_code, worker.asked) == (400, [])
    assert "2 segments; this service allows 1" in response.json()["error"]["message"]


def test_a_memory_is_filled_read_and_emptied(client: TestClient) -> None:
    added = add(client, "mine", ("a b", "ሀ"), ("c d", "ለ"))
    assert added.status_code == 200, added.text
    first, second = added.json()["ids"]
    listed = {one["id"]: one["pairs"] for one in client.get("/v1/memory").json()["data"]}
    assert listed["mine"] == [{"source": "en", "target": "am", "count": 2}]
    found = client.get("/v1/memory/mine", params={"containing": "C"}).json()["data"]
    assert [(one["id"], one["source"], one["target"]) for one in found] == [(second, "c d", "ለ")]
    assert client.delete(f"/v1/memory/mine/{first}").json()["deleted"]
    assert client.delete(f"/v1/memory/mine/{first}").status_code == 404
    assert len(client.get("/v1/memory/mine").json()["data"]) == 1
    assert client.delete("/v1/memory/mine").json() == {"id": "mine", "object": "memory", "deleted": True}
    assert "mine" not in {one["id"] for one in client.get("/v1/memory").json()["data"]}


def test_more_pairs_than_are_allowed_are_refused(adapters: Path) -> None:
    client, _ = service(adapters, max_segments=2)
    assert add(client, "many", ("a", "ሀ"), ("b", "ለ"), ("c", "መ")).status_code == 400
    assert [one["id"] for one in client.get("/v1/memory").json()["data"] if one["id"] == "many"] == []


def test_a_document_says_its_languages(client: TestClient) -> None:
    xliff = (
        '<xliff version="1.2"><file source-language="en" target-language="am"><body><trans-unit id="1">'
        "<source>1 2 3 A</source></trans-unit></body></file></xliff>"
    )
    document = {"name": "a.xlf", "content": base64.b64encode(xliff.encode()).decode()}
    body = ask(client, document=document, source="auto").json()
    assert (body["source"], body["target"]) == ("en", "am")


def test_half_a_surrogate_pair_is_refused(client: TestClient) -> None:
    for path, body in (("/v1/translate", '{"text": "\\ud83d", "source": "en", "target": "am"}'),
                       ("/translate", '{"q": "\\ud83d", "source": "en", "target": "am"}')):  # fmt: skip
        response = client.post(path, content=body, headers={"Content-Type": "application/json"})
        assert response.status_code == 400, response.text


def test_a_glossary_that_contradicts_itself_is_refused_and_nothing_is_kept(client: TestClient) -> None:
    pairs = [{"source": "file", "target": target, "kind": "term"} for target in ("ፋይል", "ሰነድ")]
    body = {"memory": "terms", "source": "en", "target": "am", "pairs": pairs}
    response = client.post("/v1/memory", json=body)
    assert response.status_code == 400
    assert "file" in response.json()["error"]["message"]
    assert client.get("/v1/memory/terms").json().get("data", []) == []


def test_a_key_sees_its_own_memories_alone(adapters: Path) -> None:
    client, _ = service(adapters, **KEYS)
    one, two = ({"Authorization": f"Bearer {key}"} for key in ("one", "two"))
    assert client.get("/v1/memory").status_code == 401
    add(client, "ours", ("Open", "የአንድ"), **one)
    add(client, "ours", ("Open", "የሁለት"), **two)

    def opened(headers: dict[str, str]) -> Any:
        body = {"source": "en", "target": "am", "text": "Open", "memory": "ours"}
        return client.post("/v1/translate", json=body, headers=headers).json()["translations"][0]["text"]

    assert (opened(one), opened(two)) == ("የአንድ", "የሁለት")
    client.delete("/v1/memory/ours", headers=one)
    assert [entry["id"] for entry in client.get("/v1/memory", headers=one).json()["data"]] == []
    assert opened(two) == "የሁለት"
    client.delete("/v1/memory/ours", headers=two)


def test_libretranslate(client: TestClient) -> None:
    body = {"q": "Open", "source": "en", "target": "am", "format": "text", "api_key": ""}
    assert client.post("/translate", json=body).json() == {"translatedText": "መልስ"}
    assert client.post("/translate", data=body).json() == {"translatedText": "መልስ"}
    several = client.post("/translate", json=body | {"q": ["Open", "Close"], "source": "auto"}).json()
    assert several["translatedText"] == ["መልስ", "መልስ"]
    assert several["detectedLanguage"]["language"] == "en"
    assert client.post("/detect", json={"q": "ፋይሉን ክፈት"}).json()[0]["language"] == "am"
    assert client.get("/languages").json() == [
        {"code": "am", "name": "Amharic", "targets": ["am", "en"]},
        {"code": "en", "name": "English", "targets": ["am", "en"]},
    ]
    form = {"q": ["Open", "Close"], "source": "en", "target": "am"}
    assert client.post("/translate", data=form).json() == {"translatedText": ["መልስ", "መልስ"]}
    for wrong in ({"target": "sw"}, {"q": ""}, {"format": "pdf"}, {"q": 5}, {"q": ["a", 5]}, {"q": []}, {"source": 1},
                  {"q": ["a"] * 1000}):  # fmt: skip
        response = client.post("/translate", json=body | wrong)
        assert response.status_code == 400
        assert response.json().keys() == {"error"}


def test_libretranslate_uses_the_memory_called_default(client: TestClient) -> None:
    add(client, "default", ("Open", "ክፈት"))
    try:
        body = {"q": "Open", "source": "en", "target": "am"}
        assert client.post("/translate", json=body).json() == {"translatedText": "ክፈት"}
        other = {"memory": "default", "source": "en", "target": "sw", "pairs": [{"source": "Open", "target": "Fungua"}]}
        client.delete("/v1/memory/default")
        assert client.post("/v1/memory", json=other).status_code == 200  # nothing in these languages: not used
        assert client.post("/translate", json=body).json() == {"translatedText": "መልስ"}
    finally:
        client.delete("/v1/memory/default")


def test_libretranslate_s_key_is_in_the_body(adapters: Path) -> None:
    client, _ = service(adapters, **KEYS)
    body = {"q": "Open", "source": "en", "target": "am"}
    assert client.post("/translate", json=body).status_code == 403
    assert client.post("/translate", json=body | {"api_key": "three"}).status_code == 403
    assert client.post("/translate", json=body | {"api_key": "one"}).json() == {"translatedText": "መልስ"}
    assert client.get("/languages").status_code == 403
    assert client.get("/languages", params={"api_key": "two"}).status_code == 200
    assert client.post("/v1/translate", json=body | {"api_key": "one"}).status_code == 401


def test_a_public_client_translates(adapters: Path) -> None:
    """deep-translator's LibreTranslate, whose HTTP goes to the application."""
    client, _ = service(adapters, **KEYS)

    def post(url: str, params: dict[str, str] | None = None, data: Any = None, **_: Any) -> Any:
        return client.post(url, params=params, data=data)

    with patch("deep_translator.libre.requests.post", post):
        # It knows a fixed list of languages, and checks them before it asks
        translator = LibreTranslator(source="en", target="en", custom_url="http://127.0.0.1:8000/", api_key="one")
        translator._target = "am"
        assert translator.translate("Open the file") == "መልስ"
