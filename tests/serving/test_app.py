"""Handles to deployments: how each method of a worker travels, without a cluster."""

import asyncio
from contextlib import aclosing
from typing import Any

import pytest
from ray.serve.exceptions import BackPressureError

from kauli.serving.app import Handle
from kauli.serving.events import TOO_MANY, Failed, Piece, Started


class Response:
    """What `remote` of a streaming handle gives."""

    def __init__(self, events: list[Any]) -> None:
        self._events = iter(events)
        self.cancelled = False

    def __aiter__(self) -> "Response":
        return self

    async def __anext__(self) -> Any:
        try:
            event = next(self._events)
        except StopIteration:
            raise StopAsyncIteration from None
        if isinstance(event, Exception):
            raise event
        return event

    def cancel(self) -> None:
        self.cancelled = True


class Deployment:
    """A handle of Ray Serve to two replicas that give scripted answers."""

    def __init__(self, *answers: Any, options: dict[str, Any] | None = None, root: "Deployment | None" = None) -> None:
        self.answers, self.given = list(answers), options or {}
        self.root = root or self
        self.configured, self.called = 0, list[tuple[Any, ...]]()
        self.response: Response | None = None

    def options(self, **given: Any) -> "Deployment":
        self.root.configured += 1
        return Deployment(options=given, root=self.root)

    def remote(self, *values: Any) -> Any:
        self.root.called.append((self.given["method_name"], *values))
        if self.given.get("stream"):
            self.root.response = Response(self.root.answers)
            return self.root.response

        async def answer() -> Any:
            found = self.root.answers.pop(0)
            if isinstance(found, Exception):
                raise found
            return found

        return answer()

    def broadcast(self, *values: Any) -> Any:
        self.called.append(("broadcast", *values))
        answers = self.answers

        class Results:
            async def results_async(self, timeout_s: float) -> list[Any]:
                return answers

        return Results()


def full() -> BackPressureError:
    return BackPressureError(num_queued_requests=3, max_queued_requests=2)


def test_a_method_is_called_by_its_name_on_a_handle_that_is_configured_once() -> None:
    deployment = Deployment("first", "second", full())
    handle = Handle(deployment)  # type: ignore[arg-type]
    configured = deployment.configured

    async def run() -> list[Any]:
        return [await handle.embed(["a"]), await handle.classify("head@1", ["b"]), await handle.embed(["c"])]

    assert asyncio.run(run()) == ["first", "second", TOO_MANY]
    assert deployment.called[:2] == [("call", "embed", ["a"]), ("call", "classify", "head@1", ["b"])]
    assert deployment.configured == configured  # each configuration registers metrics
    with pytest.raises(AttributeError):
        _ = handle._nothing


def test_what_never_changes_is_asked_once_and_not_remembered_when_refused() -> None:
    deployment = Deployment(full(), 30.0)
    handle = Handle(deployment)  # type: ignore[arg-type]

    async def run() -> list[Any]:
        return [await handle.longest() for _ in range(3)]

    assert asyncio.run(run()) == [TOO_MANY, 30.0, 30.0]


def test_leaving_a_stream_cancels_it_and_a_full_queue_is_429() -> None:
    deployment = Deployment(Started(3), Piece("a", 1), Piece("b", 1, "stop"))
    handle = Handle(deployment)  # type: ignore[arg-type]

    async def first() -> Any:
        async with aclosing(handle.stream("request", None, True)) as events:
            return await anext(events)

    assert asyncio.run(first()) == Started(3)
    assert deployment.called == [("stream", "stream", "request", None, True)]
    assert deployment.response is not None
    assert deployment.response.cancelled

    async def refused() -> list[Any]:
        return [event async for event in Handle(Deployment(full())).stream("request", None)]  # type: ignore[arg-type]

    assert asyncio.run(refused()) == [TOO_MANY]


def test_answers_of_all_replicas_become_one() -> None:
    used = [[{"adapter": "a@1", "in_use": 1}], [{"adapter": "a@1", "in_use": 2}, {"adapter": "b@1", "in_use": 0}]]
    counts = [
        {"hits": 1, "hit_ms": 4.0, "misses": 0, "miss_ms": 0.0},
        {"hits": 3, "hit_ms": 2.0, "misses": 2, "miss_ms": 9.0},
    ]
    failed = Failed(503, "damaged", "adapter_failed")

    def of(method: str, *answers: Any) -> Any:
        return asyncio.run(getattr(Handle(Deployment(*answers)), method)())  # type: ignore[arg-type]

    assert of("adapters", *used) == [{"adapter": "a@1", "in_use": 3}, {"adapter": "b@1", "in_use": 0}]
    assert of("counts", *counts) == {"hits": 4, "hit_ms": 2.5, "misses": 2, "miss_ms": 9.0}
    assert (of("load", None, failed), of("load", None, None)) == (failed, None)
    assert (of("unload", False, True), of("unload", False, False)) == (True, False)


def test_a_check_names_what_is_wrong() -> None:
    def check(answer: Any) -> Any:
        return asyncio.run(Handle(Deployment(answer)).check())  # type: ignore[arg-type]

    assert check(None) is None
    assert check("the thread has ended") == "the thread has ended"
    assert check(RuntimeError("gone\nTraceback")) == "RuntimeError: gone"
