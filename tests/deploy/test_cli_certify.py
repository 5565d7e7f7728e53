"""`kauli certify` on bases of random weights: what is published, and the certificate of every answer after it."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from fastapi.testclient import TestClient

from kauli.models.adapters.registry import Registry
from kauli.models.bases.find import find_base
from kauli.models.requests import TextRequest
from kauli.models.tasks import load_served
from kauli.models.text.task import TextTask
from kauli.serving.http.app import create_app
from kauli.serving.routing import Catalogue
from kauli.serving.settings import ServeArgs
from kauli.serving.workers.text import TextGenerator
from support.cli import fails, run
from support.settings import worker_args
from support.speech_adapters import publish_transcribe, wav
from support.text_adapters import publish_random, publish_translator

ROWS = 64
PROMPT = "word 7"


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Pairs, prompts and clips; every third row is for validation."""
    folder = tmp_path_factory.mktemp("data")
    for kind in ("pairs", "prompts", "clips"):
        rows: list[dict[str, Any]] = []
        for at in range(3 * ROWS):
            row = {
                "id": str(at), "group": f"g{at}", "language": "am", "text": f"ቃል {at}" + " ሌላ" * (at % 3),
                "split": ("train", "validation", "test")[at % 3],
            }  # fmt: skip
            if kind == "pairs":
                row |= {"input": f"word {at}", "input_language": "en"}
            elif kind == "prompts":
                row |= {"prompt": f"word {at}"}
            else:
                row |= {"audio": f"{at}.wav", "language": "be", "text": f"слова {at}"}
                (folder / f"{at}.wav").write_bytes(wav(0.5 + 0.005 * (at % 40), 200 + 3 * at))
            rows.append(row)
        text = "\n".join(json.dumps(row, ensure_ascii=False) for row in rows)
        (folder / f"{kind}.jsonl").write_text(text, encoding="utf-8")
    return folder


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory, data: Path) -> Iterator[Path]:
    """A storage with an adapter of each kind, certified."""
    folder = tmp_path_factory.mktemp("store")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("KAULI_STORAGE", str(folder))
        base = find_base("debug")
        publish_translator(folder, "translate-am", "am", base)
        publish_random(folder, "text-am", "am", 3, base)
        publish_transcribe(folder, "transcribe-be", "be", 4)
        Registry(str(folder)).set_alias("text-am", 1, "latest")
        yield folder


def certified(name: str, data: Path, kind: str, *more: str) -> dict[str, Any]:
    result = run("certify", name, "--data", str(data / f"{kind}.jsonl"), "--rows", str(ROWS), "--json", *more)
    assert result.exit_code == 0, result.output
    found: dict[str, Any] = json.loads(result.stdout)
    return found


@pytest.fixture(scope="module")
def text(store: Path, data: Path) -> dict[str, Any]:
    return certified("text-am", data, "prompts")


def test_a_new_version_has_the_same_weights_and_certificates(store: Path, text: dict[str, Any]) -> None:
    registry = Registry(str(store))
    assert text["adapter"] == "text-am@2"
    assert text["aliases"] == ["latest"]
    assert registry.resolve("text-am@latest") == ("text-am", 2)
    old, new = registry.card("text-am@1"), registry.card("text-am@2")
    weights = {name: digest for name, digest in old.files.items() if name.endswith(".safetensors")}
    assert weights
    assert weights.items() <= new.files.items()
    assert not old.certificates
    certificate = new.certificates["am"]
    assert (certificate.metric, certificate.segments, certificate.green) == ("chrf3", ROWS, 53)
    assert "## Certificates" in run("adapters", "show", "text-am@2").stdout


def test_a_chat_answer_has_the_certificate_of_its_own_figures(store: Path, text: dict[str, Any]) -> None:
    from kauli.models.adapters.certificate import figures_of

    card = Registry(str(store)).card("text-am@2")
    base = find_base("debug")
    task = load_served("text", base)
    task.add_adapter("own", Registry(str(store)).fetch("text-am@2"))
    answer, costs, finish = "", [], ""
    for chunks in task.generate([TextRequest.of_prompt(PROMPT, max_tokens=12, logprobs=0)], ["own"]):
        for chunk in chunks:
            answer += chunk.text
            costs += [one.logprob for one in chunk.logprobs]
            finish = chunk.finish or finish
    figures = figures_of(answer, costs, "am", source=PROMPT, cut=finish == "length")
    expected = card.certificates["am"].assess(figures)

    worker = TextGenerator(TextTask.load(base, slots=4), worker_args(store, max_adapters=4))
    try:
        catalogue = Catalogue(Registry(str(store)), {"text": [base]})
        app = create_app({"text": {base.name: worker}}, catalogue, ServeArgs(storage=str(store)))
        client = TestClient(app, base_url="http://127.0.0.1:8000")
        body = {"model": "text-am", "messages": [{"role": "user", "content": PROMPT}], "max_tokens": 12}
        [choice] = client.post("/v1/chat/completions", json=body).json()["choices"]
        assert choice["logprobs"] is None  # they were not asked for
        found = choice["certificate"]
        assert found["expected"] == pytest.approx(expected.expected, abs=0.05)
        assert found["bound"] == pytest.approx(expected.bound, abs=0.05)
        assert (found["metric"], found["colour"]) == ("chrf3", expected.colour)
        lines = client.post("/v1/chat/completions", json=body | {"stream": True}).text.splitlines()
        events = [json.loads(line[6:]) for line in lines if line.startswith("data: {")]
        assert [one["choices"][0]["certificate"] for one in events if "certificate" in one["choices"][0]] == [found]
        older = client.post("/v1/chat/completions", json=body | {"model": "text-am@1"}).json()
        assert "certificate" not in older["choices"][0]
    finally:
        worker.close()


def test_a_translation_and_a_document(store: Path, data: Path, tmp_path: Path) -> None:
    found = certified("translate-am", data, "pairs", "--green", "40", "--yellow", "20")
    assert set(found["certificates"]) == {"am", "en"}
    assert found["certificates"]["am"]["green"] == 40
    draft = json.loads(run("translate", "word 7", "--to", "am", "--from", "en", "--json").stdout)
    assert draft["certificate"]["metric"] == "chrf3"
    assert draft["certificate"]["colour"] in ("green", "yellow", "red")
    (tmp_path / "a.po").write_text(
        'msgid ""\nmsgstr "Content-Type: text/plain; charset=UTF-8\\n"\n\n'
        + "".join(f'msgid "word {at}"\nmsgstr ""\n\n' for at in range(10))
    )
    out = tmp_path / "b.po"
    command = ("translate", str(tmp_path / "a.po"), "--to", "am", "--from", "en", "--out", str(out), "--json")
    result = run(*command)
    assert result.exit_code == 0, result.output
    judged = json.loads(result.stdout)["certificate"]
    assert judged["segments"] == 10 == sum(judged["colours"].values())
    assert "expected, at least" in out.read_text(encoding="utf-8")
    assert "Expected chrF3" in result.stderr


def test_a_transcript(store: Path, data: Path) -> None:
    found = certified("transcribe-be", data, "clips")
    assert found["certificates"]["be"]["metric"] == "cer"
    result = run("transcribe", str(data / "1.wav"), "--language", "be", "--json")
    assert result.exit_code == 0, result.output
    assert '"certificate"' in result.stdout


def test_prod_asks_for_a_certificate(store: Path, text: dict[str, Any]) -> None:
    fails(2, "text-am@1 has no certificate", "adapters", "promote", "text-am@1", "prod")
    assert run("adapters", "promote", "text-am@2", "prod").exit_code == 0
    assert run("adapters", "promote", "text-am@1", "prod", "--without-certificate").exit_code == 0
    assert '"without_certificate": true' in (store / "adapters/text-am/aliases/prod.json").read_text()
    assert run("adapters", "promote", "text-am@1", "old").exit_code == 0  # other aliases need none


def test_what_cannot_be_certified(store: Path, data: Path, tmp_path: Path) -> None:
    prompts = str(data / "prompts.jsonl")
    few = "too little validation data for a certificate of text-am@1: am 20 rows of 20 groups; 60 rows of 30 groups"
    fails(2, few, "certify", "text-am@1", "--data", prompts, "--rows", "20")
    fails(2, "green is at least yellow", "certify", "text-am@1", "--data", prompts, "--rows", str(ROWS),
          "--green", "10", "--yellow", "20")  # fmt: skip
    fails(2, "give both --green and --yellow", "certify", "text-am@1", "--data", prompts, "--green", "10")
    fails(2, "names no training data: name a data set with --data", "certify", "text-am@1")
