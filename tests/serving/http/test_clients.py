"""Other people's clients against the application on a real socket: LangChain, litellm and lm-evaluation-harness.

The `openai` client itself is in `tests/serving/test_serve_ray.py`. The libraries are imported in the tests: they take
seconds.
"""

import json
import socket
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import openai
import pytest
import torch
import uvicorn
from transformers import AutoModelForCausalLM

from kauli.models.adapters.registry import Registry
from kauli.models.bases.find import Base, find_base
from kauli.models.requests import TextRequest
from kauli.models.speech.whisper import WhisperTask
from kauli.models.text.task import TextTask
from kauli.serving.http.app import create_app
from kauli.serving.routing import Catalogue
from kauli.serving.settings import ServeArgs
from kauli.serving.workers.image_encoder import ImageEncoder
from kauli.serving.workers.text import TextGenerator
from kauli.serving.workers.transcriber import Transcriber
from support.settings import worker_args
from support.speech_adapters import transcribed_here, wav

MESSAGES = [{"role": "user", "content": "Habari"}]


@pytest.fixture(scope="module")
def base() -> Base:
    return find_base("debug")


@pytest.fixture(scope="module")
def url(storage: Path, base: Base) -> Iterator[str]:
    """The address of the service's paths under /v1."""
    args = worker_args(storage, max_adapters=4)
    bases = {"text": base, "image": find_base("debug", task="align"), "audio": find_base("debug", task="transcribe")}
    workers: dict[str, Any] = {
        "text": TextGenerator(TextTask.load(base, slots=4), args),
        "image": ImageEncoder(args, bases["image"], True),
        "audio": Transcriber(WhisperTask.load(bases["audio"]), args),
    }
    catalogue = Catalogue(Registry(str(storage)), {kind: [one] for kind, one in bases.items()}, 0)
    settings = ServeArgs(storage=str(storage), max_tokens=64, refresh_s=0)
    app = create_app({kind: {bases[kind].name: one} for kind, one in workers.items()}, catalogue, settings)
    server = uvicorn.Server(uvicorn.Config(app, log_level="error"))
    with socket.socket() as listening, pytest.MonkeyPatch.context() as patch:
        listening.bind(("127.0.0.1", 0))
        thread = threading.Thread(target=server.run, args=([listening],))
        thread.start()
        while not server.started:
            time.sleep(0.01)
        patch.setenv("NO_PROXY", "127.0.0.1")
        patch.setenv("LITELLM_LOCAL_MODEL_COST_MAP", "True")  # else its import asks another site
        yield f"http://127.0.0.1:{listening.getsockname()[1]}/v1"
        server.should_exit = True
        thread.join()
    for worker in workers.values():
        worker.close()


def said(base: Base, messages: list[dict[str, str]]) -> str:
    """What the base answers in this process, greedily, in six tokens."""
    from kauli.models.requests import Message

    task = TextTask.load(base)
    asked = tuple(Message(one["role"], one["content"]) for one in messages)
    chunks = task.generate([TextRequest(asked, max_tokens=6)], [None])
    return "".join(chunk.text for step in chunks for chunk in step)


def test_langchain_talks_and_streams(url: str, base: Base) -> None:
    from langchain_core.messages import AIMessage, HumanMessage, ToolMessage
    from langchain_openai import ChatOpenAI

    chat = ChatOpenAI(base_url=url, api_key="-", model=base.name, max_completion_tokens=6, temperature=0)  # type: ignore[arg-type]
    expected = said(base, MESSAGES)
    assert chat.invoke("Habari").content == expected
    assert "".join(str(piece.content) for piece in chat.stream("Habari")) == expected
    call = AIMessage("", tool_calls=[{"name": "f", "args": {}, "id": "c"}])
    history = [
        HumanMessage("Habari"),
        chat.invoke("Habari"),
        HumanMessage("a"),
        call,
        ToolMessage("5", tool_call_id="c"),
    ]
    assert chat.invoke(history).response_metadata["finish_reason"] == "length"
    with pytest.raises(openai.BadRequestError, match="tools are not served: leave it out"):
        chat.bind_tools([{"name": "f", "description": "", "parameters": {"type": "object", "properties": {}}}]).invoke(
            "a"
        )


def test_langchain_embeds_texts_and_not_the_tokens_of_another_model(url: str) -> None:
    from langchain_openai import OpenAIEmbeddings

    embeddings = OpenAIEmbeddings(
        base_url=url,
        api_key="-",
        model="debug-clip",
        check_embedding_ctx_length=False,  # type: ignore[arg-type]
    )
    client = openai.OpenAI(base_url=url, api_key="-")
    expected = [one.embedding for one in client.embeddings.create(model="debug-clip", input=["red", "blue"]).data]
    for found, vector in zip(embeddings.embed_documents(["red", "blue"]), expected, strict=True):
        assert found == pytest.approx(vector, abs=1e-6)
    # By default it sends what tiktoken makes of the texts, whose vocabulary it fetches from another site first
    with pytest.raises(openai.BadRequestError, match="check_embedding_ctx_length=False"):
        client.embeddings.create(model="debug-clip", input=[[1151], [12481]])


def test_litellm_talks_streams_embeds_and_transcribes(url: str, storage: Path, base: Base) -> None:
    import litellm

    where: dict[str, Any] = {"api_base": url, "api_key": "-"}
    asked: dict[str, Any] = where | {"messages": MESSAGES, "max_tokens": 6}
    expected = said(base, MESSAGES)
    for provider in ("openai", "hosted_vllm"):
        answer: Any = litellm.completion(f"{provider}/{base.name}", **asked)
        assert answer.choices[0].message.content == expected
    pieces: Any = litellm.completion(f"openai/{base.name}", stream=True, **asked)
    assert "".join(piece.choices[0].delta.content or "" for piece in pieces) == expected
    text: Any = litellm.text_completion(
        prompt="Habari", model=f"text-completion-openai/{base.name}", max_tokens=6, **where
    )
    assert text.choices[0].finish_reason in ("length", "stop")
    vectors: Any = litellm.embedding("openai/debug-clip", input=["red", "blue"], **where)
    assert [len(one["embedding"]) for one in vectors.data] == [32, 32]
    clip = wav(0.5)
    transcript: Any = litellm.transcription("openai/debug-whisper", file=("clip.wav", clip), language="tt", **where)
    assert transcript.text == transcribed_here(storage, None, clip, language="tt")[0].text.strip()


ROWS = [
    {"question": "Habari ya", "choices": ["leo", "jana", "é"], "answer": 0},
    {"question": "Mbwa ni", "choices": ["mnyama", "mti"], "answer": 0},
    {"question": "Maji ya", "choices": ["moto", "baridi sana"], "answer": 1},
]
TASK = """
task: {name}
dataset_path: json
dataset_kwargs: {{data_files: {data}}}
test_split: train
output_type: {kind}
doc_to_text: "{text}"
doc_to_target: "{target}"
metric_list: [{{metric: {metric}, aggregation: {aggregation}, higher_is_better: true}}]
"""


@pytest.fixture(scope="module")
def tasks(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with three tasks of the harness on `ROWS`."""
    folder = tmp_path_factory.mktemp("tasks")
    (folder / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in ROWS))
    kinds = (
        ("choice", "multiple_choice", "{{question}}", "{{answer}}", "acc", "mean", 'doc_to_choice: "{{choices}}"'),
        ("say", "generate_until", "{{question}}", "{{choices[answer]}}", "exact_match", "mean",
         'generation_kwargs: {until: ["\\n"], max_gen_toks: 8}'),
        ("score", "loglikelihood_rolling", "", "{{question}}", "bits_per_byte", "bits_per_byte", ""),
    )  # fmt: skip
    for name, kind, text, target, metric, aggregation, more in kinds:
        page = TASK.format(
            name=name, data=folder / "rows.jsonl", kind=kind, text=text, target=target, metric=metric,
            aggregation=aggregation,
        )  # fmt: skip
        (folder / f"{name}.yaml").write_text(page + more)
    return folder


@pytest.mark.parametrize("tokenized", [True, False])
def test_lm_evaluation_harness_scores_and_generates(
    url: str, base: Base, tasks: Path, tokenized: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The log-likelihoods are those of transformers' full pass, for prompts of tokens and of texts, alone and two by
    two; a text gets in front what stands before a document.
    """
    monkeypatch.setenv("HF_HOME", str(tasks / "home"))
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    import lm_eval
    from lm_eval.tasks import TaskManager

    settings = {
        "model": base.name, "base_url": f"{url}/completions", "tokenizer": str(base.folder), "max_length": 512,
        "tokenizer_backend": "huggingface", "tokenized_requests": tokenized,
    }  # fmt: skip
    found: Any = lm_eval.simple_evaluate(
        "local-completions", settings, tasks=["choice", "say", "score"], batch_size=2 if tokenized else 1,
        task_manager=TaskManager(include_path=str(tasks), include_defaults=False), bootstrap_iters=0, log_samples=True,
    )  # fmt: skip
    model: Any = AutoModelForCausalLM.from_pretrained(base.folder, dtype=torch.float32)
    task = TextTask.load(base)

    def scored(before: list[int], text: str) -> tuple[float, bool]:
        ids = task.tokenizer(text, add_special_tokens=False).input_ids
        with torch.no_grad():
            scores = torch.log_softmax(model(torch.tensor([before + ids])).logits[0].float(), -1)
        rows = scores[len(before) - 1 : -1]
        values = rows[range(len(ids)), ids]
        return float(values.sum()), bool((values == rows.max(-1).values).all())

    start = [] if tokenized else task.prompt_tokens(TextRequest(prompt=""))
    ids = task.tokenizer
    for row, sample in zip(ROWS, found["samples"]["choice"], strict=True):
        before = start + ids(row["question"], add_special_tokens=False).input_ids
        expected = [scored(before, f" {choice}") for choice in row["choices"]]  # type: ignore[attr-defined]
        assert [one[0][0] for one in sample["resps"]] == pytest.approx([one[0] for one in expected], abs=1e-3)
        assert [one[0][1] for one in sample["resps"]] == [one[1] for one in expected]
        best = max(range(len(expected)), key=lambda place: expected[place][0])
        assert sample["acc"] == float(best == row["answer"])
    for row, sample in zip(ROWS, found["samples"]["score"], strict=True):
        prefix = ids.bos_token_id if ids.bos_token_id is not None else ids.eos_token_id
        # What is read before a document is there once, also where the harness has written it itself
        own = [] if not start or start == [prefix] else start
        assert sample["resps"][0][0] == pytest.approx(scored([*own, prefix], str(row["question"]))[0], abs=1e-3)
    for row, sample in zip(ROWS, found["samples"]["say"], strict=True):
        prompt: Any = tuple(ids(row["question"]).input_ids) if tokenized else row["question"]
        stop = ("\n", ids.eos_token)
        chunks = task.generate([TextRequest(prompt=prompt, max_tokens=8, stop=stop)], [None])
        assert sample["resps"][0][0] == "".join(chunk.text for step in chunks for chunk in step)
