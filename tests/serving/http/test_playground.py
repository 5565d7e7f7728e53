"""The playground's files: what is served at `/`, its size and headers, its words, the endpoints that it asks."""

import json
import re
from collections.abc import Iterator
from importlib.resources import files
from pathlib import Path
from typing import Any

import pytest
from fastapi import FastAPI
from fastapi.testclient import TestClient

from kauli.models.bases.find import find_base
from kauli.serving.http.app import create_app
from kauli.serving.settings import hash_key
from support.audio_service import CLIP, House, hear, open_house
from support.text_adapters import publish_translator
from support.translations import backends

FOLDER = files("kauli.serving.http").joinpath("playground")
LANGUAGES = {"en", "sw", "am", "fr", "ar"}
SOURCES = {one.name: one.read_text("utf-8") for one in FOLDER.iterdir()}
WORDS: dict[str, dict[str, str]] = json.loads(SOURCES["words.json"])
SCRIPTS = {name: text for name, text in SOURCES.items() if name.endswith(".js")}


@pytest.fixture(scope="module")
def house(publish: Any, tmp_path_factory: pytest.TempPathFactory) -> Iterator[House]:
    with open_house(publish, tmp_path_factory) as found:
        yield found


@pytest.fixture(scope="module")
def client(house: House) -> TestClient:
    return house.client()


def app_of(folder: Path, **settings: Any) -> FastAPI:
    publish_translator(folder, "translate-am", "am", find_base("debug"))
    found, _ = backends(folder, lambda prompt: "መልስ", **settings)
    return create_app(found.workers, found.catalogue, found.args)


def test_the_page_and_its_files(client: TestClient) -> None:
    page = client.get("/")
    assert page.headers["content-type"].startswith("text/html")
    named = set(re.findall(r'(?:href|src)="(playground/[^"]+)"', page.text))
    assert named == {f"playground/{name}" for name in ("icon.svg", "style.css", "words.json", "app.js")}
    kinds = {"css": "text/css", "js": "text/javascript", "json": "application/json", "svg": "image/svg+xml"}
    for name, text in SOURCES.items():
        if name != "index.html":
            found = client.get(f"/playground/{name}")
            assert (found.status_code, found.text) == (200, text)
            assert found.headers["content-type"].startswith(kinds[name.rpartition(".")[2]])
    assert client.get("/playground/nothing.js").status_code == 404
    assert client.get("/playground/../pages.py").status_code == 404


def test_the_whole_page_weighs_less_than_200_kilobytes() -> None:
    assert sum(len(text.encode()) for text in SOURCES.values()) <= 200_000


def test_nothing_is_run_but_files_of_the_service(client: TestClient) -> None:
    for path in ("/", "/playground/app.js", "/playground/style.css"):
        policy = client.get(path).headers["Content-Security-Policy"]
        rules = {name: rest for name, _, rest in (one.strip().partition(" ") for one in policy.split(";"))}
        assert (rules["default-src"], rules["script-src"], rules["style-src"]) == ("'none'", "'self'", "'self'")
        assert (rules["connect-src"], rules["frame-ancestors"]) == ("'self'", "'none'")
        assert rules["require-trusted-types-for"] == "'script'"
        assert "unsafe" not in policy
    page = SOURCES["index.html"]
    assert re.findall(r"<script(?![^>]*\bsrc=)|<style|\son\w+=|\sstyle=", page) == []


def test_what_the_browser_has_is_not_sent_again(client: TestClient) -> None:
    first = client.get("/playground/app.js")
    assert first.headers["Cache-Control"] == "no-cache"
    again = client.get("/playground/app.js", headers={"If-None-Match": first.headers["ETag"]})
    assert (again.status_code, again.content) == (304, b"")
    assert "Content-Security-Policy" in again.headers
    other = client.get("/playground/api.js", headers={"If-None-Match": first.headers["ETag"]})
    assert (other.status_code, other.headers["ETag"] != first.headers["ETag"]) == (200, True)


def test_no_file_names_another_site() -> None:
    for name, text in SOURCES.items():
        found = re.findall(r"(?:https?:)?//[a-z0-9.-]+\.[a-z]+[^\s\"']*", text)
        assert [one for one in found if "www.w3.org/2000/svg" not in one] == [], name


def test_texts_never_become_html() -> None:
    for name, text in SCRIPTS.items():
        found = re.findall(r"innerHTML|outerHTML|insertAdjacentHTML|document\.write|eval\(|new Function|srcdoc", text)
        assert found == [], name


def test_every_word_is_there_in_every_language() -> None:
    for key, row in WORDS.items():
        assert set(row) == LANGUAGES, key
        assert all(text.strip() for text in row.values()), key
        places = {tag: set(re.findall(r"\{\w+\}", text)) for tag, text in row.items()}
        assert all(found == places["en"] for found in places.values()), key
        if re.search("[a-z]{3}", row["en"].replace("API", "")) and key != "ableIn":
            assert re.search(r"[\u1200-\u137f]", row["am"]), key
            assert re.search(r"[\u0600-\u06ff]", row["ar"]), key


def words_used() -> set[str]:
    """The keys that the scripts and the page name."""
    calls = r"""(?:\bt\(|\bwork\(|\bfield\(|\bword\w*: |data-word[a-z-]*=)["'](\w+)["']"""
    found = {key for text in SOURCES.values() for key in re.findall(calls, text)}
    return found | {match for text in SCRIPTS.values() for match in re.findall(r'\bid: "(\w+)"', text)}


def test_every_word_that_is_used_is_in_the_table() -> None:
    used = words_used()
    assert len(used) > 100
    assert used - set(WORDS) == set()
    everything = "\n".join(SOURCES[name] for name in SOURCES if name != "words.json")
    marks = {"exact", "fuzzy", "drafted", "red", "yellow", "green"}  # named by the service
    leads = {f"{tab}Lead" for tab in re.findall(r'\bid: "(\w+)"', everything)}
    assert [key for key in WORDS if not re.search(rf"\b{key}\b", everything) and key not in marks | leads] == []


def test_every_endpoint_that_is_asked_exists(client: TestClient, tmp_path: Path) -> None:
    paths = set(client.app.openapi()["paths"]) | {"/docs", "/health"}  # type: ignore[attr-defined]
    paths |= set(app_of(tmp_path).openapi()["paths"])
    asked = {one for text in SCRIPTS.values() for one in re.findall(r"""["'`](v1/[^"'`?]+)["'`]""", text)}
    asked = {f"/{re.sub(r'[$][{][^}]+[}]', '{spec}', one)}" for one in asked}
    assert len(asked) > 8
    assert asked - paths == set()


def test_keys_are_asked_for_by_the_endpoints_not_by_the_page(tmp_path: Path) -> None:
    app = app_of(tmp_path, host="0.0.0.0", key_hashes=(hash_key("one"),))
    client = TestClient(app, base_url="http://127.0.0.1:8000", raise_server_exceptions=False)
    for name in ("", *(f"playground/{name}" for name in SOURCES if name != "index.html")):
        assert client.get(f"/{name}").status_code == 200
    assert client.get("/v1/service").status_code == 401
    assert client.get("/v1/service", headers={"Authorization": "Bearer one"}).status_code == 200
    assert client.get("/playground/none").status_code == 401


def test_the_service_says_what_it_can_do(client: TestClient, house: House) -> None:
    found = client.get("/v1/service").json()
    assert {"text", "describe", "transcribe"} <= set(found["tasks"])
    assert not {"speak", "embed"} & set(found["tasks"])
    assert found["workers"] == ["audio", "image", "text"]
    languages = {one["id"]: one for one in found["languages"]}
    assert languages["be"] == {
        "id": "be", "name": "беларуская", "english": "Belarusian", "direction": "ltr", "tasks": ["transcribe"],
    }  # fmt: skip
    assert languages["sw"]["tasks"] == ["describe", "text"]
    assert found["limits"]["max_audio_seconds"] == 600.0
    fewer = house.client(tasks=["text"]).get("/v1/service").json()
    assert (fewer["tasks"], sorted(one["id"] for one in fewer["languages"])) == (["text"], ["sw"])


def test_models_say_what_they_take_and_translate(client: TestClient, tmp_path: Path) -> None:
    models = {one["id"]: one for one in client.get("/v1/models").json()["data"]}
    assert (models["text-sw"]["answers"], models["text-sw"]["media"]) == ("text", [])
    assert (models["describe-sw"]["answers"], models["describe-sw"]["media"]) == ("describe", ["audio", "image"])
    other = TestClient(app_of(tmp_path), base_url="http://127.0.0.1:8000").get("/v1/models").json()["data"]
    assert next(one for one in other if one["parent"])["pairs"] == [["en", "am"], ["am", "en"]]


def test_a_card_of_an_adapter(client: TestClient) -> None:
    found = client.get("/v1/adapters/text-sw@1").json()
    assert (found["id"], found["parent"], found["language"]) == ("text-sw@1", "debug-text", ["sw"])
    assert found == client.get("/v1/adapters/text-sw").json()
    assert (found["metrics"], found["data"], found["training"]) == ([], None, None)
    missing = client.get("/v1/adapters/text-xx")
    assert missing.status_code == 404
    assert "model 'text-xx' is not served" in missing.json()["error"]["message"]
    assert client.get("/v1/adapters/text-sw@7").status_code == 404


@pytest.mark.parametrize(("kind", "beginning"), [("eaf", "<?xml"), ("textgrid", 'File type = "ooTextFile"')])
def test_a_transcript_for_annotation(client: TestClient, kind: str, beginning: str) -> None:
    found = hear(client, CLIP, response_format=kind)
    assert found.status_code == 200, found.text
    assert found.text.startswith(beginning)
    plain = hear(client, CLIP, response_format="text").text.strip()
    shown = {"eaf": lambda text: text.replace("&", "&amp;").replace("<", "&lt;"), "textgrid": lambda text: text}
    assert shown[kind](plain)[:8] in found.text
    assert ("clip.wav" in found.text) == (kind == "eaf")
