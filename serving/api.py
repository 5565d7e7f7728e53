"""The HTTP requests, responses and errors, by OpenAI's names and shapes."""

import json
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, field_validator

from kauli.models.languages import nfc
from kauli.serving.events import Ask, Failed


class ApiError(Exception):
    """A request that can't be answered; becomes OpenAI's error object with an HTTP status."""

    def __init__(
        self, status: int, message: str, code: str, param: str | None = None, headers: dict[str, str] | None = None
    ) -> None:
        super().__init__(message)
        self.status = status
        self.message = message
        self.code = code
        self.param = param
        self.headers = dict(headers or {})
        if status == 429:
            self.headers.setdefault("Retry-After", "2")

    @classmethod
    def of(cls, failed: Failed) -> "ApiError":
        """The error that a generator's `Failed` stands for."""
        return cls(failed.status, failed.message, failed.code, failed.param)

    def body(self) -> dict[str, Any]:
        """`{"error": {"message", "type", "param", "code"}}`."""
        kinds = {401: "authentication_error", 403: "permission_error", 429: "rate_limit_error"}
        kind = kinds.get(self.status, "invalid_request_error" if self.status < 500 else "server_error")
        return {"error": {"message": self.message, "type": kind, "param": self.param, "code": self.code}}


class _Strict(BaseModel):
    model_config = ConfigDict(extra="forbid")


class TextPart(_Strict):
    """A piece of a message's content; this service takes text only."""

    type: Literal["text"]
    text: str


class ChatMessage(_Strict):
    """One turn of the conversation."""

    role: Literal["system", "developer", "user", "assistant"]
    content: str | Annotated[list[TextPart], Field(min_length=1)]
    name: str | None = None
    refusal: None = None  # a client that sends back what it got has it

    @field_validator("content", mode="before")
    @classmethod
    def _text_only(cls, value: Any) -> Any:
        for part in value if isinstance(value, list) else []:
            if isinstance(part, dict) and part.get("type") != "text":
                raise ValueError(f"content part {part.get('type')!r} is not served: this service takes text parts only")
        return value

    def text(self) -> str:
        """The content as one string in NFC."""
        content = self.content
        return nfc(content if isinstance(content, str) else "\n".join(part.text for part in content))


class StreamOptions(_Strict):
    """Whether the last chunk of a stream carries the usage."""

    include_usage: bool = False
    include_obfuscation: bool | None = None


class ChatRequest(_Strict):
    """The body of POST /v1/chat/completions. Decoding is greedy unless `temperature` says otherwise."""

    model: Annotated[str, Field(min_length=1, max_length=256)]
    messages: Annotated[list[ChatMessage], Field(min_length=1, max_length=256)]
    max_tokens: Annotated[int, Field(ge=1)] | None = None
    max_completion_tokens: Annotated[int, Field(ge=1)] | None = None
    temperature: Annotated[float, Field(ge=0, le=5)] | None = None
    top_p: Annotated[float, Field(gt=0, le=1)] | None = None
    top_k: Annotated[int, Field(ge=0)] | None = None
    seed: Annotated[int, Field(ge=0, lt=2**63)] | None = None
    stop: str | list[str] | None = None
    repetition_penalty: Annotated[float, Field(gt=0, le=10)] = 1.0
    stream: bool | None = False
    stream_options: StreamOptions | None = None
    # Of OpenAI's fields, only the value that changes nothing
    n: Literal[1] | None = None
    logprobs: Literal[False] | None = None
    frequency_penalty: Annotated[float, Field(ge=0, le=0)] | None = None
    presence_penalty: Annotated[float, Field(ge=0, le=0)] | None = None
    # Ours
    language: Annotated[str, Field(max_length=64)] | None = None
    """A BCP-47 tag; with model "text" it chooses the adapter."""
    allow_base: bool = False
    """Let the bare base answer when no adapter serves the language."""
    min_tokens: Annotated[int, Field(ge=0)] = 0
    ignore_eos: bool = False
    # Who asks makes no difference to the answer
    user: str | None = None
    metadata: dict[str, str] | None = None
    store: Literal[False] | None = None

    @field_validator("stop")
    @classmethod
    def _few_short_stops(cls, value: str | list[str] | None) -> list[str]:
        stops = [value] if isinstance(value, str) else value or []
        if len(stops) > 8 or any(not 1 <= len(stop) <= 128 for stop in stops):
            raise ValueError("give at most 8 strings of 1 to 128 characters")
        return [nfc(stop) for stop in stops]

    def ask(self, max_tokens: int) -> Ask:
        """The request for a generator; raises ApiError for more than `max_tokens` new tokens."""
        wanted = self.max_completion_tokens or self.max_tokens
        for name, value in (("max_tokens", wanted or 0), ("min_tokens", self.min_tokens)):
            if value > max_tokens:
                raise ApiError(400, f"{name} is {value}; this service allows {max_tokens}", "value_too_large", name)
        if wanted and self.min_tokens > wanted:
            text = f"min_tokens {self.min_tokens} is above max_tokens {wanted}"
            raise ApiError(400, text, "invalid_value", "min_tokens")
        roles = {"developer": "system"}
        return Ask(
            messages=tuple((roles.get(message.role, message.role), message.text()) for message in self.messages),
            max_tokens=wanted, temperature=self.temperature or 0.0, top_p=1.0 if self.top_p is None else self.top_p,
            top_k=self.top_k or 0, seed=self.seed, stop=tuple(self.stop or ()), min_tokens=self.min_tokens,
            ignore_eos=self.ignore_eos, repetition_penalty=self.repetition_penalty,
        )  # fmt: skip


def completion(
    request_id: str, created: int, model: str, text: str, finish: str, usage: dict[str, int]
) -> dict[str, Any]:
    """The body of a plain answer."""
    message = {"role": "assistant", "content": text, "refusal": None}
    choice = {"index": 0, "message": message, "logprobs": None, "finish_reason": finish}
    return {
        "id": request_id, "object": "chat.completion", "created": created, "model": model, "choices": [choice],
        "usage": usage,
    }  # fmt: skip


def stream_chunk(
    request_id: str, created: int, model: str, delta: dict[str, str] | None, finish: str | None = None,
    usage: dict[str, int] | None = None,
) -> dict[str, Any]:  # fmt: skip
    """One event of a streamed answer; `delta` None is the last chunk, which carries only the usage."""
    choices = [] if delta is None else [{"index": 0, "delta": delta, "logprobs": None, "finish_reason": finish}]
    return {
        "id": request_id, "object": "chat.completion.chunk", "created": created, "model": model, "choices": choices,
        "usage": usage,
    }  # fmt: skip


def usage_of(prompt_tokens: int, completion_tokens: int) -> dict[str, int]:
    """OpenAI's usage block."""
    return {
        "prompt_tokens": prompt_tokens, "completion_tokens": completion_tokens,
        "total_tokens": prompt_tokens + completion_tokens,
    }  # fmt: skip


def sse(data: dict[str, Any] | str) -> bytes:
    """One server-sent event."""
    text = data if isinstance(data, str) else json.dumps(data, ensure_ascii=False, separators=(",", ":"))
    return f"data: {text}\n\n".encode()
