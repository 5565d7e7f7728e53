"""The HTTP requests and errors, by OpenAI's names and shapes."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, field_validator, model_validator

from kauli.models.errors import nearest
from kauli.models.languages import nfc
from kauli.models.requests import MARK, Message, TextRequest
from kauli.serving.backends import RERANK_TEMPERATURE
from kauli.serving.events import Failed, Refused
from kauli.serving.settings import ServeArgs

MOST_STOPS, MOST_PROMPTS, MOST_INPUTS, MOST_CLASSES, MOST_RERANKED = 8, 16, 64, 256, 8
IMAGE = "data:image/"
"""The beginning of an input that is an image and not a text."""


class ApiError(Refused):
    """A request that the HTTP side itself refuses, before a worker has it."""

    def __init__(self, status: int, message: str, code: str, param: str | None = None) -> None:
        super().__init__(Failed(status, message, code, param))


def invalid_body(errors: Sequence[Any], known: Iterable[str]) -> ApiError:
    """The error that pydantic's `errors` of a body stand for; `known` are the fields that it may have."""
    first = errors[0]
    place = [str(part) for part in first["loc"] if part != "body"]
    if first["type"] == "json_invalid":
        return ApiError(400, f"the body is not valid JSON: {first['ctx']['error']}", "invalid_json")
    param = ".".join(place) or None
    if first["type"] == "extra_forbidden" and len(place) == 1:
        return ApiError(400, f"unknown field '{place[0]}'.{nearest(place[0], known)}", "unknown_field", param)
    message = first["msg"].removeprefix("Value error, ")
    return ApiError(400, f"{param}: {message}" if param else message, "invalid_value", param)


class Body(BaseModel):
    """A body, or a part of one: an unknown field is an error."""

    model_config = ConfigDict(extra="forbid")


class TextPart(Body):
    """A piece of text in a message's content."""

    type: Literal["text"]
    text: str


class ImageUrl(Body):
    """An image as a data: URI; remote addresses are not fetched."""

    url: str
    detail: Literal["auto", "low", "high"] | None = None
    """Changes nothing: the encoder has one resolution."""


class ImagePart(Body):
    """An image in a message's content."""

    type: Literal["image_url"]
    image_url: ImageUrl


class InputAudio(Body):
    """Audio: the base64 of a whole file, and its format."""

    data: str
    format: str
    """wav, flac, ogg, opus or mp3."""


class AudioPart(Body):
    """Audio in a message's content."""

    type: Literal["input_audio"]
    input_audio: InputAudio


ContentPart = Annotated[TextPart | ImagePart | AudioPart, Field(discriminator="type")]


@dataclass(frozen=True)
class MediaInput:
    """An image or an audio clip of a request; `kind` is the worker that encodes it."""

    kind: str
    data: str
    """Of an image its data: URI, of audio the base64 of the file."""
    param: str
    """Its place in the request, for errors."""
    format: str = ""
    """Of audio, as the request says."""


class ChatMessage(Body):
    """One turn of the conversation."""

    role: Literal["system", "developer", "user", "assistant"]
    content: str | Annotated[list[ContentPart], Field(min_length=1)]
    name: str | None = None
    refusal: None = None  # in answers that a client sends back

    @field_validator("content", mode="before")
    @classmethod
    def _served_parts(cls, value: Any) -> Any:
        for part in value if isinstance(value, list) else []:
            if isinstance(part, dict) and part.get("type") not in ("text", "image_url", "input_audio"):
                text = f"content part {part.get('type')!r} is not served: text, image_url and input_audio are"
                raise ValueError(text)
        return value

    @model_validator(mode="after")
    def _only_users_send_media(self) -> "ChatMessage":
        if self.role != "user" and self.media_parts():
            text = f"images and audio must be in a user's message, not in one of the role '{self.role}'"
            raise ValueError(text)
        return self

    def media_parts(self) -> list[tuple[int, ImagePart | AudioPart]]:
        """The images and audio clips with their places in the content."""
        parts = [] if isinstance(self.content, str) else self.content
        return [(place, part) for place, part in enumerate(parts) if not isinstance(part, TextPart)]

    def text(self) -> str:
        """The content as one string in NFC, with `MARK` in the place of media; adjacent texts are lines."""
        if isinstance(self.content, str):
            return nfc(self.content.replace(MARK, ""))
        out, line = "", False
        for part in self.content:
            if isinstance(part, TextPart):
                out, line = out + "\n" * line + part.text.replace(MARK, ""), True
            else:
                out, line = out + MARK, False
        return nfc(out)


class StreamOptions(Body):
    """Whether the last chunk of a stream carries the usage."""

    include_usage: bool = False
    include_obfuscation: bool | None = None


class _Generation(Body):
    """The fields of both chat and completions. Decoding is greedy unless `temperature` is given."""

    model: Annotated[str, Field(min_length=1, max_length=256)]
    max_tokens: Annotated[int, Field(ge=1)] | None = None
    temperature: Annotated[float, Field(ge=0, le=5)] | None = None
    top_p: Annotated[float, Field(gt=0, le=1)] | None = None
    top_k: Annotated[int, Field(ge=0)] | None = None
    seed: Annotated[int, Field(ge=0, lt=2**63)] | None = None
    n: Annotated[int, Field(ge=1)] | None = None
    stop: str | list[str] | None = None
    repetition_penalty: Annotated[float, Field(gt=0, le=10)] = 1.0
    stream: bool | None = False
    stream_options: StreamOptions | None = None
    # Of OpenAI's fields, only the value that changes nothing
    frequency_penalty: Annotated[float, Field(ge=0, le=0)] | None = None
    presence_penalty: Annotated[float, Field(ge=0, le=0)] | None = None
    logit_bias: Annotated[dict[str, float], Field(max_length=0)] | None = None
    # Ours
    language: Annotated[str, Field(max_length=64)] | None = None
    """A BCP-47 tag; with a task as the model it chooses the adapter."""
    allow_base: bool = False
    """Let the base answer without an adapter when none serves the language."""
    min_tokens: Annotated[int, Field(ge=0)] = 0
    ignore_eos: bool = False
    # Accepted, and not used
    user: str | None = None

    @field_validator("stop")
    @classmethod
    def _few_short_stops(cls, value: str | list[str] | None) -> list[str]:
        stops = [value] if isinstance(value, str) else value or []
        if len(stops) > MOST_STOPS or any(not 1 <= len(stop) <= 128 for stop in stops):
            raise ValueError(f"give at most {MOST_STOPS} strings of 1 to 128 characters")
        return [nfc(stop) for stop in stops]

    def _options(self, args: ServeArgs, wanted: int | None, logprobs: int | None, reranked: int = 1) -> dict[str, Any]:
        """The fields of `TextRequest` but its prompt; raises ApiError for values over the service's limits."""
        limits = (
            ("max_tokens", wanted or 0, args.max_tokens), ("min_tokens", self.min_tokens, args.max_tokens),
            ("n", self.n or 1, args.max_answers), ("rerank", reranked, args.max_answers),
        )  # fmt: skip
        for name, value, most in limits:
            if value > most:
                raise ApiError(400, f"{name} is {value}; this service allows {most}", "value_too_large", name)
        if wanted and self.min_tokens > wanted:
            text = f"min_tokens {self.min_tokens} is above max_tokens {wanted}"
            raise ApiError(400, text, "invalid_value", "min_tokens")
        return {
            "max_tokens": wanted, "temperature": self.temperature or 0.0, "seed": self.seed,
            "top_p": 1.0 if self.top_p is None else self.top_p, "top_k": self.top_k or 0, "n": self.n or 1,
            "stop": tuple(self.stop or ()), "min_tokens": self.min_tokens, "ignore_eos": self.ignore_eos,
            "repetition_penalty": self.repetition_penalty, "logprobs": logprobs,
        }  # fmt: skip


class ChatRequest(_Generation):
    """The body of POST /v1/chat/completions."""

    messages: Annotated[list[ChatMessage], Field(min_length=1, max_length=256)]
    max_completion_tokens: Annotated[int, Field(ge=1)] | None = None
    logprobs: bool | None = None
    top_logprobs: Annotated[int, Field(ge=0, le=20)] | None = None
    metadata: dict[str, str] | None = None
    store: Literal[False] | None = None
    # Ours
    rerank: Annotated[int, Field(ge=1, le=MOST_RERANKED)] | None = None
    """Generate N candidates and return the one most similar to the image."""

    def media(self) -> list[MediaInput]:
        """The images and audio clips in their order."""
        found = []
        for number, message in enumerate(self.messages):
            for place, part in message.media_parts():
                param = f"messages.{number}.content.{place}"
                if isinstance(part, ImagePart):
                    found.append(MediaInput("image", part.image_url.url, param))
                else:
                    found.append(MediaInput("audio", part.input_audio.data, param, part.input_audio.format))
        return found

    def images(self) -> list[MediaInput]:
        """The images in their order."""
        return [one for one in self.media() if one.kind == "image"]

    def requests(self, args: ServeArgs) -> list[TextRequest]:
        """The request for the worker, still without its media.

        Raises ApiError for values over the service's limits, or that contradict each other.
        """
        images = self.images()
        clips = len(self.media()) - len(images)
        if len(images) > args.max_images:
            text = f"{len(images)} images; this service allows {args.max_images}"
            raise ApiError(400, text, "too_many_images", "messages")
        if clips > args.max_audio_clips:
            text = f"{clips} audio clips; this service allows {args.max_audio_clips}"
            raise ApiError(400, text, "too_many_recordings", "messages")
        if self.top_logprobs is not None and not self.logprobs:
            raise ApiError(400, "top_logprobs needs logprobs: true", "invalid_value", "top_logprobs")
        roles = {"developer": "system"}
        messages = tuple(Message(roles.get(one.role, one.role), one.text()) for one in self.messages)
        check_texts([one.content for one in messages], args, "messages")
        wanted = self.max_completion_tokens or self.max_tokens
        top = (self.top_logprobs or 0) if self.logprobs else None
        options = self._options(args, wanted, top, self.rerank or 1)
        if self.rerank:
            if len(images) != 1 or self.stream or (self.n or 1) > 1:
                text = "rerank needs exactly one image and one answer (n: 1), and is not for streams"
                raise ApiError(400, text, "invalid_value", "rerank")
            temperature = RERANK_TEMPERATURE if self.temperature is None else self.temperature
            options |= {"n": self.rerank, "temperature": temperature}
        return [TextRequest(messages, **options)]


class CompletionRequest(_Generation):
    """The body of POST /v1/completions: raw text to continue, without a chat template."""

    prompt: str | Annotated[list[str], Field(min_length=1, max_length=MOST_PROMPTS)]
    logprobs: Annotated[int, Field(ge=0, le=20)] | None = None
    # Only the value that changes nothing
    echo: Literal[False] | None = None
    suffix: Literal[""] | None = None
    best_of: Literal[1] | None = None

    def requests(self, args: ServeArgs) -> list[TextRequest]:
        """The requests for the worker, one for each prompt; raises ApiError for values over the service's limits."""
        options = self._options(args, self.max_tokens, self.logprobs)
        prompts = [self.prompt] if isinstance(self.prompt, str) else self.prompt
        return [TextRequest(prompt=nfc(prompt.replace(MARK, "")), **options) for prompt in prompts]


class _Inputs(Body):
    """The fields of both embeddings and classification."""

    model: Annotated[str, Field(min_length=1, max_length=256)]
    input: str | Annotated[list[str], Field(min_length=1, max_length=MOST_INPUTS)]
    """Texts, and images as data: URIs."""
    user: str | None = None

    @field_validator("input")
    @classmethod
    def _not_empty(cls, value: Any) -> Any:
        if any(not one.strip() for one in ([value] if isinstance(value, str) else value)):
            raise ValueError("an input is empty: give a text, or an image as a data: URI")
        return value

    def inputs(self, args: ServeArgs) -> list[str | MediaInput]:
        """The texts and images in their order; raises ApiError where the texts are too long."""
        values = [self.input] if isinstance(self.input, str) else self.input
        check_texts([value for value in values if not value.startswith(IMAGE)], args, "input")
        one = isinstance(self.input, str)
        return [
            MediaInput("image", value, "input" if one else f"input.{place}") if value.startswith(IMAGE) else value
            for place, value in enumerate(values)
        ]


class EmbeddingRequest(_Inputs):
    """The body of POST /v1/embeddings; an input that begins with `data:image/` is an image."""

    encoding_format: Literal["float", "base64"] = "float"
    dimensions: Annotated[int, Field(ge=1)] | None = None
    """Only the base's own number is allowed."""


class ClassifyRequest(_Inputs):
    """The body of POST /v1/classify; an input that begins with `data:image/` is an image."""

    language: Annotated[str, Field(max_length=64)] | None = None
    """A BCP-47 tag; with model "classify" it chooses the adapter."""
    classes: Annotated[list[Annotated[str, Field(min_length=1, max_length=512)]], Field(min_length=2)] | None = None
    """Names or descriptions to choose from without a trained head."""

    @field_validator("classes")
    @classmethod
    def _distinct(cls, value: list[str] | None) -> list[str] | None:
        if value is not None and (len(set(value)) < len(value) or len(value) > MOST_CLASSES):
            raise ValueError(f"give 2 to {MOST_CLASSES} classes with different names")
        return value


def check_texts(texts: Sequence[str], args: ServeArgs, param: str) -> None:
    """Raise ApiError for texts that are longer than a request without media may be."""
    size = sum(len(text.encode()) for text in texts)
    if size > args.max_body_bytes:
        text = f"the texts have {size} bytes; this service allows {args.max_body_bytes}"
        raise ApiError(413, text, "body_too_large", param)


class AdapterRequest(Body):
    """The body of POST /v1/adapters."""

    adapter: Annotated[str, Field(min_length=1, max_length=256)]
    """NAME, NAME@VERSION or NAME@ALIAS; never a path."""
