"""The generator as a plain class: its queue, its adapters, what ends a request, and that nothing leaks."""

import asyncio
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import aclosing
from pathlib import Path
from typing import Any

import pytest

from kauli.models.adapters.registry import Registry
from kauli.models.bases.find import find_base
from kauli.models.requests import TextRequest
from kauli.models.text.task import TextTask
from kauli.serving.events import Event, Failed, Piece, Started
from kauli.serving.workers.text import TextGenerator
from support.settings import worker_args


@pytest.fixture(scope="module")
def generator(storage: Path) -> Iterator[TextGenerator]:
    running = TextGenerator(TextTask.load(find_base("debug"), slots=4), worker_args(storage, max_adapters=4))
    yield running
    running.close()


# The generator


async def collect(generator: TextGenerator, request: TextRequest, adapter: str | None) -> list[Event]:
    return [event async for event in generator.stream(request, adapter)]


def said(events: list[Event]) -> str:
    return "".join(event.text for event in events if isinstance(event, Piece))


def test_many_requests_each_get_their_own_adapter(storage: Path, generator: TextGenerator) -> None:
    question = TextRequest.of_prompt("Habari", max_tokens=12)
    adapters = [None, "text-sw@1", "text-sw@2", "text-be@1", "text-many@1"]

    async def all_at_once() -> list[list[Event]]:
        return await asyncio.gather(*(collect(generator, question, adapter) for adapter in adapters * 2))

    together = [said(events) for events in asyncio.run(all_at_once())]
    alone = []
    for adapter in adapters:
        task = TextTask.load(find_base("debug"))
        if adapter:
            task.add_adapter(adapter, Registry(str(storage)).fetch(adapter))
        request = TextRequest.of_prompt("Habari", max_tokens=12)
        alone.append("".join(chunk.text for chunks in task.generate([request], [adapter]) for chunk in chunks))
    assert together == alone * 2
    assert len(set(alone)) == len(adapters)


def test_a_damaged_adapter_fails_its_own_request_only(
    storage: Path, generator: TextGenerator, publish: Callable[..., str]
) -> None:
    spec = publish(storage, "text-bad", "yo", 5)
    weights = storage / "adapters" / "text-bad" / "1" / "adapter_model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-1] + b"x")

    async def both() -> list[list[Event]]:
        question = TextRequest.of_prompt("Hi", max_tokens=3)
        return await asyncio.gather(collect(generator, question, spec), collect(generator, question, None))

    bad, good = asyncio.run(both())
    assert [type(event) for event in bad] == [Failed]
    assert isinstance(bad[0], Failed)
    assert (bad[0].status, bad[0].code) == (503, "adapter_failed")
    assert isinstance(good[-1], Piece)
    assert good[-1].finish == "length"


def test_the_queue_is_bounded_and_leaving_frees_the_row(storage: Path) -> None:
    class Slow(TextTask):
        steps = 0

        def step(self) -> Any:
            self.steps += 1
            time.sleep(0.02)
            return super().step()

    task = Slow.load(find_base("debug"), slots=1)
    generator = TextGenerator(task, worker_args(storage, max_queue=1))
    endless = TextRequest.of_prompt("Hi", max_tokens=900, ignore_eos=True)

    async def run() -> tuple[list[Event], int]:
        async with aclosing(generator.stream(endless, None)) as first:
            assert isinstance(await anext(first), Started)
            waiting = asyncio.create_task(collect(generator, TextRequest.of_prompt("Hi", max_tokens=1), None))
            await asyncio.sleep(0.1)
            refused = await collect(generator, endless, None)
        began = task.steps
        assert isinstance((await waiting)[-1], Piece)
        return refused, task.steps - began

    refused, waited = asyncio.run(run())
    assert isinstance(refused[0], Failed)
    assert (refused[0].status, refused[0].code) == (429, "queue_full")
    assert waited < 100  # the request that left would have taken 900
    generator.close()
    assert isinstance(asyncio.run(collect(generator, endless, None))[0], Failed)


def test_deadline(storage: Path) -> None:
    generator = TextGenerator(TextTask.load(find_base("debug")), worker_args(storage, deadline_s=0.05))
    events = asyncio.run(collect(generator, TextRequest.of_prompt("Hi", max_tokens=900, ignore_eos=True), None))
    generator.close()
    assert isinstance(events[-1], Failed)
    assert events[-1].status == 504


def test_a_failing_batch_does_not_end_the_service(storage: Path) -> None:
    task = TextTask.load(find_base("debug"))
    real, broken = task.step, threading.Event()

    def step() -> Any:
        if broken.is_set():
            raise RuntimeError("out of memory")
        return real()

    task.step = step  # type: ignore[method-assign]
    generator = TextGenerator(task, worker_args(storage))
    question = TextRequest.of_prompt("Hi", max_tokens=2)
    broken.set()
    failed = asyncio.run(collect(generator, question, None))[-1]
    assert isinstance(failed, Failed)
    assert failed.status == 500
    assert "memory" not in failed.message  # a stranger is not told what broke inside
    broken.clear()
    assert isinstance(asyncio.run(collect(generator, question, None))[-1], Piece)
    assert asyncio.run(generator.check()) is None
    generator.close()


def test_adapters_come_and_go_by_use(storage: Path) -> None:
    task = TextTask.load(find_base("debug"), slots=2)
    generator = TextGenerator(task, worker_args(storage, max_adapters=2))
    question = TextRequest.of_prompt("Hi", max_tokens=3)

    async def run() -> None:
        for adapter in ("text-sw@1", "text-sw@2", "text-be@1"):  # the third pushes out the first
            await collect(generator, question, adapter)
        assert [entry["adapter"] for entry in await generator.adapters()] == ["text-sw@2", "text-be@1"]
        endless = generator.stream(TextRequest.of_prompt("Hi", max_tokens=1500, ignore_eos=True), "text-sw@2")
        async with aclosing(endless):
            assert isinstance(await anext(endless), Started)
            assert await generator.unload("text-sw@2")  # in use: it stays until the answer is over
            assert "text-sw@2" in task.adapters()
            assert await generator.load("text-many@1") is None
        until = time.monotonic() + 10
        while "text-sw@2" in task.adapters() and time.monotonic() < until:
            await asyncio.sleep(0.01)
        assert sorted(task.adapters()) == ["text-many@1"] or sorted(task.adapters()) == ["text-be@1", "text-many@1"]
        assert not await generator.unload("text-sw@2")
        assert await generator.load("text-nowhere@1") is not None
        assert all(entry["in_use"] == 0 for entry in await generator.adapters())

    asyncio.run(run())
    generator.close()


def test_many_adapters_through_a_small_cache_are_never_mixed_up(storage: Path) -> None:
    generator = TextGenerator(TextTask.load(find_base("debug"), slots=2), worker_args(storage, max_adapters=2))
    adapters = [None, "text-sw@1", "text-sw@2", "text-be@1", "text-many@1"]
    question = TextRequest.of_prompt("Habari", max_tokens=8)

    async def run() -> list[str]:
        alone = [said(await collect(generator, question, adapter)) for adapter in adapters]
        streams = (collect(generator, question, adapter) for adapter in adapters * 5)
        assert [said(events) for events in await asyncio.gather(*streams)] == alone * 5
        return alone

    assert len(set(asyncio.run(run()))) == len(adapters)
    generator.close()


def test_several_answers_and_logprobs(generator: TextGenerator) -> None:
    request = TextRequest.of_prompt("Hi", max_tokens=5, n=3, temperature=1.0, seed=4, logprobs=2, ignore_eos=True)
    events = asyncio.run(collect(generator, request, "text-sw@1"))
    pieces = [event for event in events if isinstance(event, Piece)]
    assert sorted(piece.index for piece in pieces if piece.finish) == [0, 1, 2]
    assert len({"".join(p.text for p in pieces if p.index == index) for index in range(3)}) > 1
    assert all(len(one.top) == 2 for piece in pieces for one in piece.logprobs)
    assert sum(len(piece.logprobs) for piece in pieces) == 15


def test_a_prompt_that_the_template_refuses(storage: Path) -> None:
    task = TextTask.load(find_base("debug"))
    task.prompts.template = "{{ raise_exception('only users may speak') }}"
    generator = TextGenerator(task, worker_args(storage))
    event = asyncio.run(collect(generator, TextRequest.of_prompt("Hi"), None))[0]
    generator.close()
    assert isinstance(event, Failed)
    assert event.status == 400
    assert "only users may speak" in event.message


def test_what_texts_cost_beside_requests_that_run(storage: Path, generator: TextGenerator) -> None:
    task = TextTask.load(find_base("debug"))
    task.add_adapter("text-sw@1", Registry(str(storage)).fetch("text-sw@1"))
    texts = ["Habari", "ሰላም"]
    rows = [{"prompt": "Hi", "text": text} for text in texts]

    async def beside() -> tuple[Any, Any, list[Event]]:
        long = asyncio.ensure_future(collect(generator, TextRequest.of_prompt("Habari", max_tokens=60), None))
        found = [await generator.costs("Hi", texts, adapter) for adapter in ("text-sw@1", None)]
        return found[0], found[1], await long

    adapted, bare, events = asyncio.run(beside())
    assert [bits for bits, _ in adapted] == pytest.approx([bits for bits, _ in task.bits(rows, "text-sw@1")], rel=1e-4)
    assert [bits for bits, _ in bare] == pytest.approx([bits for bits, _ in task.bits(rows, None)], rel=1e-4)
    assert [size for _, size in adapted] == [6, 9]
    assert said(events)
    missing = asyncio.run(generator.costs("Hi", texts, "nobody@1"))
    assert isinstance(missing, Failed)
    assert all(one["in_use"] == 0 for one in asyncio.run(generator.adapters()))
