"""The endpoints /v1/chat/completions and /v1/completions: conversations and raw text, answered whole or streamed."""

import asyncio
from collections.abc import AsyncGenerator, Sequence
from contextlib import aclosing, suppress
from dataclasses import replace

from fastapi import FastAPI
from fastapi.responses import JSONResponse, StreamingResponse

from kauli.serving.backends import Backends
from kauli.serving.events import Event, Failed, Refused, Started
from kauli.serving.http.answers import AnswerFormat, Pieces, route_headers
from kauli.serving.http.bodies import ignored_header
from kauli.serving.http.media import encode, rerank
from kauli.serving.http.schemas import ChatRequest, CompletionRequest
from kauli.serving.http.spoken_chat import SpokenChat


def add_chat(app: FastAPI, backends: Backends) -> None:
    """Add the endpoints."""

    @app.post("/v1/chat/completions", response_model=None)
    async def chat_completions(body: ChatRequest) -> JSONResponse | StreamingResponse:
        """An answer to a conversation, whole or streamed; users may send images as data: URIs, and audio."""
        return await _answer(body, backends)

    @app.post("/v1/completions", response_model=None)
    async def completions(body: CompletionRequest) -> JSONResponse | StreamingResponse:
        """The continuation of a text, whole or streamed."""
        return await _answer(body, backends)


async def _answer(body: ChatRequest | CompletionRequest, backends: Backends) -> JSONResponse | StreamingResponse:
    requests = body.requests(backends.args)
    route = await backends.route("text", body.model, body.language, body.allow_base)
    headers = route_headers(route) | ignored_header(body)
    if isinstance(body, ChatRequest):
        if body.rerank:
            backends.aligned()
        requests[0], timing = await encode(backends, requests[0], body, route)
        headers |= {"Server-Timing": timing} if timing else {}
    requests = [replace(request, language=route.language) for request in requests]
    spoken = body.spoken if isinstance(body, ChatRequest) else None
    voice = await SpokenChat.of(backends, route.language, spoken) if spoken else None
    certified = await asyncio.to_thread(backends.catalogue.certificate, route)
    shown = requests[0].logprobs is not None
    if certified and not shown:
        requests = [replace(request, logprobs=0) for request in requests]
    streams = [backends.of(route).stream(request, route.adapter, not body.stream) for request in requests]
    try:
        # The first event decides the status, which a stream has to send before its text.
        prompt_tokens = [_started(event) for event in await asyncio.gather(*(anext(stream) for stream in streams))]
    except BaseException:
        await _close(streams)
        raise
    answers = AnswerFormat(isinstance(body, ChatRequest), route.model, requests, shown, certified)
    pieces = _together(streams)
    if body.stream:
        with_usage = bool(body.stream_options and body.stream_options.include_usage)
        headers |= {"Cache-Control": "no-cache", "X-Accel-Buffering": "no"}
        if voice is not None:
            heard: asyncio.Queue[str | None] = asyncio.Queue()
            pieces = voice.listening(pieces, heard)
            answer = voice.streamed(answers.streamed(pieces, prompt_tokens, with_usage), heard, answers.head)
        else:
            answer = answers.streamed(pieces, prompt_tokens, with_usage)
        answer = _closing(pieces, answer)
        return StreamingResponse(answer, media_type="text/event-stream", headers=headers)
    async with aclosing(pieces):
        whole = await answers.whole(pieces, prompt_tokens)
    if isinstance(body, ChatRequest) and body.rerank:
        whole = await rerank(backends, whole, body)
    if voice is not None:
        whole = await voice.whole(whole)
    return JSONResponse(whole, headers=headers)


def _started(event: Event) -> int:
    if isinstance(event, Failed):
        raise Refused(event)
    if not isinstance(event, Started):
        raise RuntimeError("a worker began without Started")
    return event.prompt_tokens


async def _together(streams: Sequence[AsyncGenerator[Event]]) -> Pieces:
    """The events of all streams as they come; closes the streams at its end."""
    if len(streams) == 1:
        async with aclosing(streams[0]):
            async for event in streams[0]:
                yield 0, event
        return
    queue: asyncio.Queue[tuple[int, Event] | None] = asyncio.Queue()

    async def pump(number: int, stream: AsyncGenerator[Event]) -> None:
        try:
            async with aclosing(stream):
                async for event in stream:
                    queue.put_nowait((number, event))
        finally:
            queue.put_nowait(None)

    pumps = [asyncio.create_task(pump(number, stream)) for number, stream in enumerate(streams)]
    try:
        running = len(pumps)
        while running:
            found = await queue.get()
            if found is None:
                running -= 1
            else:
                yield found
        for one in pumps:
            one.result()  # an exception of a stream is ours
    finally:
        for one in pumps:
            one.cancel()
        await asyncio.gather(*pumps, return_exceptions=True)


async def _close(streams: Sequence[AsyncGenerator[Event]]) -> None:
    for stream in streams:
        with suppress(RuntimeError):  # it is still at its first event, which ends with the request
            await stream.aclose()


async def _closing(pieces: Pieces, answer: AsyncGenerator[bytes]) -> AsyncGenerator[bytes]:
    """`answer`, made from `pieces`, which are closed with it: a client that has left must free its slot now, not when
    the garbage is collected.
    """
    async with aclosing(pieces):
        async for data in answer:
            yield data
