"""Answers to the client, whole or as server-sent events, in OpenAI's shapes."""

import json
import math
import time
import uuid
from collections.abc import AsyncGenerator, Mapping, Sequence
from dataclasses import asdict
from types import MappingProxyType
from typing import Any

from fastapi.responses import JSONResponse

from kauli.models.adapters.certificate import Certificate, figures_of
from kauli.models.requests import TextRequest, TokenLogprob
from kauli.serving.events import Event, Failed, Piece, Refused
from kauli.serving.routing import Route

Pieces = AsyncGenerator[tuple[int, Event]]
"""The events of several requests, each with the number of its request."""


def route_headers(route: Route) -> dict[str, str]:
    """The adapter and language that answer, and that the answer is generated."""
    headers = {"X-Kauli-Provenance": "ai-generated"}
    if route.adapter:
        headers["X-Kauli-Adapter"] = route.adapter
    if route.language:
        headers["X-Kauli-Language"] = route.language
    return headers


def error_body(failed: Failed) -> dict[str, Any]:
    """OpenAI's error object: `{"error": {"message", "type", "param", "code"}}`."""
    kinds = {401: "authentication_error", 403: "permission_error", 429: "rate_limit_error"}
    kind = kinds.get(failed.status, "invalid_request_error" if failed.status < 500 else "server_error")
    return {"error": {"message": failed.message, "type": kind, "param": failed.param, "code": failed.code}}


def error_response(failed: Failed) -> JSONResponse:
    """The answer to a refused request."""
    headers = {"Retry-After": str(failed.retry_after)} if failed.status in (429, 503) else None
    return JSONResponse(error_body(failed), failed.status, headers)


class AnswerFormat:
    """The form of an endpoint's answers to `requests`, which differ in nothing but the prompt: chat or completions."""

    def __init__(
        self, chat: bool, model: str, requests: Sequence[TextRequest], logprobs: bool = False,
        certified: tuple[Certificate, str] | None = None,
    ) -> None:  # fmt: skip
        """`logprobs`: whether they are shown; `certified`: what is known of the answers, and their language."""
        self._chat, self._requests, self._logprobs, self._certified = chat, requests, logprobs, certified
        self._n = requests[0].n
        name = f"{'chatcmpl' if chat else 'cmpl'}-{uuid.uuid4().hex}"
        self.head: dict[str, Any] = {"id": name, "created": int(time.time()), "model": model}

    async def whole(self, pieces: Pieces, prompt_tokens: Sequence[int]) -> dict[str, Any]:
        """The body of a plain answer; raises Refused where one of its requests fails."""
        count = self._n * len(prompt_tokens)
        texts, finishes, tokens = [""] * count, ["stop"] * count, 0
        logprobs: list[list[TokenLogprob]] = [[] for _ in range(count)]
        async for request, event in pieces:
            if isinstance(event, Failed):
                raise Refused(event)
            if isinstance(event, Piece):
                place = request * self._n + event.index
                for echoing in self._echoing(request, event):
                    texts[echoing] = self._echo(request, event)
                    logprobs[echoing] += event.echo
                texts[place] += event.text
                logprobs[place] += event.logprobs
                tokens += event.tokens
                finishes[place] = event.finish or finishes[place]
        choices = []
        for place in range(count):
            found = self._logprobs_of(logprobs[place], 0)
            choice: dict[str, Any] = {"index": place, "logprobs": found, "finish_reason": finishes[place]}
            choice |= self._certificate(place, texts[place], logprobs[place], finishes[place])
            if self._chat:
                choice["message"] = {"role": "assistant", "content": texts[place], "refusal": None}
            else:
                choice["text"] = texts[place]
            choices.append(choice)
        kind = "chat.completion" if self._chat else "text_completion"
        return {**self.head, "object": kind, "choices": choices, "usage": _usage(prompt_tokens, tokens)}

    async def streamed(self, pieces: Pieces, prompt_tokens: Sequence[int], with_usage: bool) -> AsyncGenerator[bytes]:
        """Server-sent events, the last one [DONE]; or an error event as the last one."""
        tokens = 0
        offsets = [0] * (self._n * len(prompt_tokens))
        texts: list[str] = [""] * len(offsets)
        logprobs: list[list[TokenLogprob]] = [[] for _ in offsets]
        # As few chunks as possible: each passes the proxy by itself.
        data = b""
        if self._chat:
            opening = {"role": "assistant", "content": ""}
            data = b"".join(self._event(place, opening, [], None, 0) for place in range(len(offsets)))
        async for request, event in pieces:
            if isinstance(event, Failed):
                yield data + sse(error_body(event))
                return
            if not isinstance(event, Piece):
                continue
            tokens += event.tokens
            place = request * self._n + event.index
            for echoing in self._echoing(request, event):
                text = self._echo(request, event)
                data += self._event(echoing, {"text": text}, event.echo, None, 0)
                offsets[echoing] += len(text)
            texts[place] += event.text
            logprobs[place] += event.logprobs
            if event.text or (event.logprobs and self._logprobs):
                delta = {"content": event.text} if self._chat else {"text": event.text}
                data += self._event(place, delta, event.logprobs, None, offsets[place])
                offsets[place] += len(event.text)
            if event.finish:
                known = self._certificate(place, texts[place], logprobs[place], event.finish)
                data += self._event(place, {} if self._chat else {"text": ""}, [], event.finish, 0, known)
            if data:
                yield data
                data = b""
        if with_usage:
            data += sse({**self._stream_head(), "choices": [], "usage": _usage(prompt_tokens, tokens)})
        yield data + sse("[DONE]")

    def _certificate(
        self, place: int, text: str, logprobs: Sequence[TokenLogprob], finish: str
    ) -> dict[str, dict[str, Any]]:
        """`certificate` of an answer that has one: how good it is expected to be."""
        if self._certified is None:
            return {}
        certificate, language = self._certified
        request = self._requests[place // self._n]
        source = request.messages[-1].content if request.messages else request.prompt
        costs = [one.logprob for one in logprobs if not math.isnan(one.logprob)]
        figures = figures_of(
            text, costs, language, cut=finish == "length",
            source=source if isinstance(source, str) and not request.media else None,
        )  # fmt: skip
        return {"certificate": asdict(certificate.assess(figures))}

    def _echoing(self, request: int, event: Piece) -> Sequence[int]:
        """The places of the answers that begin with the prompt which the first of them has brought."""
        return range(request * self._n, (request + 1) * self._n) if event.echo else ()

    def _echo(self, request: int, event: Piece) -> str:
        prompt = self._requests[request].prompt
        return (
            prompt if isinstance(prompt, str) else b"".join(one.bytes for one in event.echo).decode("utf-8", "ignore")
        )

    def _event(
        self, place: int, delta: dict[str, str], logprobs: Sequence[TokenLogprob], finish: str | None, offset: int,
        known: Mapping[str, Any] = MappingProxyType({}),
    ) -> bytes:  # fmt: skip
        found = self._logprobs_of(logprobs, offset) if logprobs else None
        choice: dict[str, Any] = {"index": place, "logprobs": found, "finish_reason": finish, **known}
        choice |= {"delta": delta} if self._chat else delta
        return sse({**self._stream_head(), "choices": [choice], "usage": None})

    def _stream_head(self) -> dict[str, Any]:
        return {**self.head, "object": "chat.completion.chunk" if self._chat else "text_completion"}

    def _logprobs_of(self, tokens: Sequence[TokenLogprob], offset: int) -> dict[str, Any] | None:
        if not self._logprobs:
            return None
        if self._chat:
            content = [_entry(one) | {"top_logprobs": [_entry(other) for other in one.top]} for one in tokens]
            return {"content": content, "refusal": None}
        offsets, data = [], b""
        for one in tokens:
            offsets.append(offset + len(data.decode("utf-8", "ignore")))
            data += one.bytes
        return {
            "tokens": [_shown(one.bytes) for one in tokens],
            "token_logprobs": [None if math.isnan(one.logprob) else one.logprob for one in tokens],
            "top_logprobs": [
                None if math.isnan(one.logprob) else {_shown(other.bytes): other.logprob for other in (one, *one.top)}
                for one in tokens
            ],
            "text_offset": offsets,
        }


def _entry(one: TokenLogprob) -> dict[str, Any]:
    return {"token": _shown(one.bytes), "logprob": one.logprob, "bytes": list(one.bytes)}


def _shown(data: bytes) -> str:
    """A token as text; as its bytes in OpenAI's notation where it is a part of a character."""
    try:
        return data.decode()
    except UnicodeDecodeError:
        return "bytes:" + "".join(f"\\x{byte:02x}" for byte in data)


def _usage(prompt_tokens: Sequence[int], completion_tokens: int) -> dict[str, int]:
    total = sum(prompt_tokens)
    return {
        "prompt_tokens": total, "completion_tokens": completion_tokens, "total_tokens": total + completion_tokens,
    }  # fmt: skip


def sse(data: dict[str, Any] | str) -> bytes:
    """One server-sent event."""
    text = data if isinstance(data, str) else json.dumps(data, ensure_ascii=False, separators=(",", ":"))
    return f"data: {text}\n\n".encode()
