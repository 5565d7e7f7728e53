"""One real run of the service on Ray Serve, asked through the real `openai` client."""

import socket
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import openai
import pytest
import torch
from openai import DefaultHttpxClient, OpenAI
from peft import LoraConfig, get_peft_model
from transformers import AutoModelForCausalLM

from kauli.models.bases import find_base
from kauli.models.errors import UsageError
from kauli.models.plain_peft import from_peft
from kauli.models.registry import Registry
from kauli.models.requests import TextRequest
from kauli.models.text import TextTask
from kauli.serving.app import Service, start
from kauli.serving.settings import ServeArgs

pytestmark = pytest.mark.ray
QUESTION: list[Any] = [{"role": "user", "content": "Habari"}]


def publish(storage: Path, name: str, language: str, seed: int) -> str:
    base = find_base("debug")
    scratch = storage / "scratch" / f"{name}-{seed}"
    torch.manual_seed(seed)
    lora = LoraConfig(r=4, target_modules=["q_proj"])
    model = get_peft_model(AutoModelForCausalLM.from_pretrained(base.folder), lora)
    with torch.no_grad():
        for key, parameter in model.named_parameters():
            if "lora_B" in key:
                parameter.normal_(std=1.0)
    model.save_pretrained(scratch / "plain")
    card = from_peft(scratch / "plain", scratch / "ours", name=name, language=language, base=base)
    return Registry(str(storage)).publish(scratch / "ours", card).spec


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


@pytest.fixture(scope="module")
def storage(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("KAULI_HOME", str(tmp_path_factory.mktemp("home")))
        folder = tmp_path_factory.mktemp("store")
        publish(folder, "text-sw", "sw", 1)
        yield folder


@pytest.fixture(scope="module")
def service(storage: Path) -> Iterator[Service]:
    running = start(ServeArgs(storage=str(storage), port=free_port(), threads=1, max_tokens=1000))
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


def test_errors_reach_the_client(client: OpenAI, service: Service) -> None:
    with pytest.raises(openai.NotFoundError, match="Did you mean 'text-sw'"):
        complete(client, "text-ws")
    with pytest.raises(openai.BadRequestError, match="the context holds"):
        client.chat.completions.create(model="text", messages=[{"role": "user", "content": "word " * 3000}])
    with pytest.raises(openai.PermissionDeniedError):
        complete(client, "text", extra_headers={"Host": "evil.example"})
    assert httpx.get(f"{service.url}/health", trust_env=False).json()["status"] == "ok"


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


def test_a_new_adapter_answers_without_a_restart(client: OpenAI, storage: Path) -> None:
    spec = publish(storage, "text-ka", "ka", 2)
    began = time.monotonic()
    assert complete(client, "text-ka").model == spec
    assert complete(client, "text", extra_body={"language": "ka"}).model == spec
    assert time.monotonic() - began < 10
    assert {"text-sw", "text-ka", "debug-text"} <= {model.id for model in client.models.list()}


def test_a_client_that_leaves_frees_its_row(client: OpenAI) -> None:
    began = time.monotonic()
    complete(client, "text", max_tokens=1000, extra_body={"ignore_eos": True})
    whole = time.monotonic() - began
    stream = complete(client, "text", max_tokens=1000, extra_body={"ignore_eos": True}, stream=True)
    next(iter(stream))
    stream.close()
    began = time.monotonic()
    complete(client, "text", max_tokens=1)
    assert time.monotonic() - began < max(1.0, whole / 2)


def test_a_second_service_on_the_port_is_refused(service: Service, storage: Path) -> None:
    port = int(service.url.rpartition(":")[2])
    with pytest.raises(UsageError, match="is a service running there already"):
        start(ServeArgs(storage=str(storage), port=port))
