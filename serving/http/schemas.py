"""The HTTP requests, by OpenAI's names and shapes."""

from collections.abc import Iterator, Sequence
from typing import Annotated, Any, ClassVar, Literal

from pydantic import Field, field_validator

from kauli.models.languages import nfc
from kauli.models.requests import MARK, TextRequest
from kauli.serving.backends import RERANK_TEMPERATURE
from kauli.serving.http.bodies import NO_EFFECT, NOT_SERVED, ApiError, Body, JsonBody, Lenient, check_limits
from kauli.serving.http.messages import ChatMessage, ImagePart, MediaInput, conversation
from kauli.serving.http.payloads import is_data_uri
from kauli.serving.settings import ServeArgs

_INPUTS = "a text or a list of texts, where an image is a data: URI"


class StreamOptions(Lenient):
    """Whether the last chunk of a stream carries the usage."""

    include_usage: bool | None = None
    include_obfuscation: bool | None = None


class _Generation(JsonBody):
    """The fields of both chat and completions. Decoding is greedy unless `temperature` is given."""

    no_effect = NO_EFFECT
    not_served = NOT_SERVED

    model: Annotated[str, Field(min_length=1, max_length=1024)]
    """A task, a base, an adapter, or a mixture of adapters (`text-zu*0.6+text-xh*0.4`)."""
    max_tokens: Annotated[int, Field(ge=0)] | None = None
    temperature: Annotated[float, Field(ge=0, le=5)] | None = None
    top_p: Annotated[float, Field(gt=0, le=1)] | None = None
    top_k: Annotated[int, Field(ge=-1)] | None = None
    """-1 and 0: all tokens."""
    min_p: Annotated[float, Field(ge=0, le=1)] = 0.0
    seed: Annotated[int, Field(ge=-(2**63), lt=2**63)] | None = None
    """-1: none."""
    n: Annotated[int, Field(ge=1)] | None = None
    stop: list[str] = Field(default=[])
    repetition_penalty: Annotated[float, Field(gt=0, le=10)] = 1.0
    frequency_penalty: Annotated[float, Field(ge=-2, le=2)] = 0.0
    presence_penalty: Annotated[float, Field(ge=-2, le=2)] = 0.0
    logit_bias: dict[Annotated[int, Field(ge=0)], Annotated[float, Field(ge=-100, le=100)]] = Field(default={})
    """Tokens of the model, which an OpenAI tokenizer doesn't know, and what is added to their scores."""
    stream: bool = False
    stream_options: StreamOptions | None = None
    # Ours
    language: Annotated[str, Field(max_length=64)] | None = None
    """A BCP-47 tag; with a task as the model it chooses the adapter."""
    allow_base: bool = False
    """Let the base answer without an adapter when none serves the language."""
    min_tokens: Annotated[int, Field(ge=0)] = 0
    no_repeat: Annotated[int, Field(ge=0, le=64)] | None = None
    """Length of token runs that may not occur twice in an answer; 0: any may; by default the adapter's own."""
    ignore_eos: bool = False

    @field_validator("stop", mode="before", json_schema_input_type=str | list[str] | None)
    @classmethod
    def _stops(cls, value: Any) -> list[str]:
        stops = [value] if isinstance(value, str) else value
        if not isinstance(stops, list) or any(not isinstance(stop, str) for stop in stops):
            raise ValueError("give a text or a list of texts")
        return [nfc(stop) for stop in stops if stop]

    def ignored(self) -> Iterator[str]:
        """Of the stream's options, too."""
        yield from super().ignored()
        yield from self.stream_options.ignored("stream_options") if self.stream_options else ()

    def _options(self, args: ServeArgs, wanted: int | None, logprobs: int | None, reranked: int = 1) -> dict[str, Any]:
        """The fields of `TextRequest` but its prompt; raises ApiError for values over the service's limits."""
        check_limits(
            ("max_tokens", wanted or 0, "max_tokens", args.max_tokens),
            ("min_tokens", self.min_tokens, "max_tokens", args.max_tokens),
            ("n", self.n or 1, "max_answers", args.max_answers),
            ("rerank", reranked, "max_answers", args.max_answers),
            ("stop", len(self.stop), "max_stops", args.max_stops),
            ("logit_bias", len(self.logit_bias), "max_logit_biases", args.max_logit_biases),
            ("top_logprobs" if isinstance(self, ChatRequest) else "logprobs", logprobs or 0, "max_logprobs",
             args.max_logprobs),
        )  # fmt: skip
        if any(len(stop) > args.max_stop_characters for stop in self.stop):
            text = f"this service allows {args.max_stop_characters} characters of each (setting max_stop_characters)"
            raise ApiError(400, f"stop: {text}", "value_too_large", "stop")
        if wanted is not None and self.min_tokens > wanted:
            text = f"min_tokens {self.min_tokens} is above max_tokens {wanted}"
            raise ApiError(400, text, "invalid_value", "min_tokens")
        return {
            "max_tokens": wanted, "temperature": self.temperature or 0.0,
            "seed": None if self.seed in (None, -1) else self.seed % 2**63,
            "top_p": 1.0 if self.top_p is None else self.top_p, "top_k": max(0, self.top_k or 0), "min_p": self.min_p,
            "n": self.n or 1, "stop": tuple(self.stop), "min_tokens": self.min_tokens, "ignore_eos": self.ignore_eos,
            "repetition_penalty": self.repetition_penalty, "frequency_penalty": self.frequency_penalty,
            "presence_penalty": self.presence_penalty, "logit_bias": tuple(sorted(self.logit_bias.items())),
            "logprobs": logprobs, "no_repeat": self.no_repeat,
        }  # fmt: skip


class VoiceId(Body):
    """A voice as newer clients name it."""

    id: Annotated[str, Field(min_length=1, max_length=256)]


VoiceName = Annotated[str, Field(min_length=1, max_length=256)] | VoiceId
Speed = Annotated[float, Field(ge=0.25, le=4)]


class SpokenOptions(Body):
    """How an answer is spoken."""

    voice: VoiceName | None = None
    format: Literal["wav", "mp3", "flac", "opus", "aac", "pcm16"] = "wav"
    speed: Speed = 1.0

    @property
    def voice_id(self) -> str | None:
        """Its name."""
        return self.voice.id if isinstance(self.voice, VoiceId) else self.voice


class ChatRequest(_Generation):
    """The body of POST /v1/chat/completions."""

    not_served: ClassVar = {
        name: harmless for name, harmless in NOT_SERVED.items() if name not in ("audio", "modalities")
    }

    modalities: Annotated[list[Literal["text", "audio"]], Field(min_length=1)] | None = None
    """With "audio" the answer is spoken as well."""
    audio: SpokenOptions | None = None
    messages: Annotated[list[ChatMessage], Field(min_length=1)]
    max_tokens: Annotated[int, Field(ge=1)] | None = None
    max_completion_tokens: Annotated[int, Field(ge=1)] | None = None
    logprobs: bool = False
    top_logprobs: Annotated[int, Field(ge=0)] | None = None
    # Ours
    rerank: Annotated[int, Field(ge=1)] | None = None
    """Generate N candidates and return the one most similar to the image."""

    @property
    def spoken(self) -> SpokenOptions | None:
        """How the answer is spoken; None: it is not."""
        return (self.audio or SpokenOptions()) if "audio" in (self.modalities or ()) else None

    def ignored(self) -> Iterator[str]:
        """Of the messages, too."""
        yield from super().ignored()
        for number, message in enumerate(self.messages):
            yield from message.ignored(f"messages.{number}")

    def media(self) -> list[MediaInput]:
        """The images and audio clips in their order."""
        found = []
        for number, message in enumerate(self.messages):
            for place, part in message.media_parts():
                param = f"messages.{number}.content.{place}"
                if isinstance(part, ImagePart):
                    found.append(MediaInput("image", part.image_url.url, param))
                else:
                    found.append(MediaInput("audio", part.input_audio.data, param))
        return found

    def images(self) -> list[MediaInput]:
        """The images in their order."""
        return [one for one in self.media() if one.kind == "image"]

    def requests(self, args: ServeArgs) -> list[TextRequest]:
        """The request for the worker, still without its media.

        Raises ApiError for values over the service's limits, or that contradict each other.
        """
        check_limits(("messages", len(self.messages), "max_messages", args.max_messages))
        images = self.images()
        clips = len(self.media()) - len(images)
        if len(images) > args.max_images:
            text = f"{len(images)} images; this service allows {args.max_images}"
            raise ApiError(400, text, "too_many_images", "messages")
        if clips > args.max_audio_clips:
            text = f"{clips} audio clips; this service allows {args.max_audio_clips}"
            raise ApiError(400, text, "too_many_recordings", "messages")
        if self.spoken is not None:
            if (self.n or 1) > 1 or self.rerank:
                raise ApiError(400, "one answer is spoken: leave n and rerank out", "invalid_value", "modalities")
            if self.stream and self.spoken.format != "pcm16":
                text = f"a stream is spoken as pcm16, not as {self.spoken.format}"
                raise ApiError(400, text, "invalid_value", "audio.format")
        if self.top_logprobs is not None and not self.logprobs:
            raise ApiError(400, "top_logprobs needs logprobs: true", "invalid_value", "top_logprobs")
        messages = conversation(self.messages)
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

    prompt: list[str | tuple[int, ...]]
    """Texts, or tokens of the model, which are taken as they are."""
    logprobs: Annotated[int, Field(ge=0)] | None = None
    echo: bool = False
    """Whether an answer begins with its prompt; with `logprobs` the prompt's tokens are scored."""
    best_of: Annotated[int, Field(ge=1)] | None = None

    @field_validator("prompt", mode="before", json_schema_input_type=str | list[str] | list[int] | list[list[int]])
    @classmethod
    def _prompts(cls, value: Any) -> Any:
        prompts = [value] if isinstance(value, str) or _are_tokens(value) else value
        if not isinstance(prompts, list) or not prompts:
            raise ValueError("give a text, a list of tokens, or a list of texts or of lists of tokens")
        for place, prompt in enumerate(prompts):
            if not isinstance(prompt, str) and not _are_tokens(prompt):
                raise ValueError(f"prompt {place} is neither a text nor a list of one token (an integer) or more")
        return [nfc(one.replace(MARK, "")) if isinstance(one, str) else tuple(one) for one in prompts]

    def requests(self, args: ServeArgs) -> list[TextRequest]:
        """The requests for the worker, one for each prompt; raises ApiError for values over the service's limits."""
        check_limits(("prompt", len(self.prompt), "max_prompts", args.max_prompts))
        if self.best_of not in (None, self.n or 1):
            text = f"best_of {self.best_of} is not served: leave it out, and ask for n answers"
            raise ApiError(400, text, "unsupported_parameter", "best_of")
        if self.max_tokens == 0 and not self.echo:
            raise ApiError(400, "max_tokens 0 asks for nothing without echo: true", "invalid_value", "max_tokens")
        options = self._options(args, self.max_tokens, self.logprobs)
        scores = len(self.prompt) * options["n"] * (1 + (self.logprobs or 0))
        if self.echo and self.logprobs is not None and scores > args.max_echoes:
            most = f"this service allows {args.max_echoes} (setting max_echoes)"
            text = f"echo: prompts x n x (logprobs + 1) is {scores}; {most}"
            raise ApiError(400, text, "value_too_large", "echo")
        return [TextRequest(prompt=prompt, echo=self.echo, **options) for prompt in self.prompt]


def _are_tokens(value: Any) -> bool:
    return isinstance(value, list) and bool(value) and all(type(one) is int for one in value)


class _Inputs(JsonBody):
    """The fields of both embeddings and classification."""

    model: Annotated[str, Field(min_length=1, max_length=256)]
    input: str | list[str]
    """Texts, and images as data: URIs."""

    @field_validator("input", mode="before", json_schema_input_type=str | list[str])
    @classmethod
    def _texts(cls, value: Any) -> Any:
        values = value if isinstance(value, list) else [value]
        if values and all(type(one) is int or _are_tokens(one) for one in values):
            text = "tokens are not served here, since each model has a tokenizer of its own: send texts"
            raise ValueError(f"{text} (LangChain: OpenAIEmbeddings(check_embedding_ctx_length=False))")
        if not values or any(not isinstance(one, str) for one in values):
            raise ValueError(f"give {_INPUTS}")
        if any(not one.strip() for one in values):
            raise ValueError(f"an input is empty: give {_INPUTS}")
        return value

    def inputs(self, args: ServeArgs) -> list[str | MediaInput]:
        """The texts and images in their order; raises ApiError where they are too many, or the texts too long."""
        values = [self.input] if isinstance(self.input, str) else self.input
        check_limits(("input", len(values), "max_inputs", args.max_inputs))
        check_texts([value for value in values if not _is_image(value)], args, "input")
        one = isinstance(self.input, str)
        return [
            MediaInput("image", value, "input" if one else f"input.{place}") if _is_image(value) else value
            for place, value in enumerate(values)
        ]


def _is_image(value: str) -> bool:
    return value.startswith("data:image/") or is_data_uri(value)


class EmbeddingRequest(_Inputs):
    """The body of POST /v1/embeddings; an input that is a data: URI is an image."""

    encoding_format: Literal["float", "base64"] = "float"
    dimensions: Annotated[int, Field(ge=1)] | None = None
    """Only the base's own number is allowed."""


class ClassifyRequest(_Inputs):
    """The body of POST /v1/classify; an input that is a data: URI is an image."""

    language: Annotated[str, Field(max_length=64)] | None = None
    """A BCP-47 tag; with model "classify" it chooses the adapter."""
    classes: Annotated[list[Annotated[str, Field(min_length=1, max_length=512)]], Field(min_length=2)] | None = None
    """Names or descriptions to choose from without a trained head."""

    @field_validator("classes")
    @classmethod
    def _distinct(cls, value: list[str] | None) -> list[str] | None:
        if value is not None and not all(name.strip() for name in value):
            raise ValueError("a class has no name")
        if value is not None and len(set(value)) < len(value):
            raise ValueError("give classes with different names")
        return value

    def inputs(self, args: ServeArgs) -> list[str | MediaInput]:
        """As for embeddings; raises ApiError for too many classes, too."""
        check_limits(("classes", len(self.classes or ()), "max_classes", args.max_classes))
        return super().inputs(args)


def check_texts(texts: Sequence[str], args: ServeArgs, param: str) -> None:
    """Raise ApiError for texts that are longer than a request without media may be."""
    size = sum(len(text.encode()) for text in texts)
    if size > args.max_body_bytes:
        text = f"the texts have {size} bytes; this service allows {args.max_body_bytes}"
        raise ApiError(413, text, "body_too_large", param)


class AdapterRequest(JsonBody):
    """The body of POST /v1/adapters."""

    adapter: Annotated[str, Field(min_length=1, max_length=1024)]
    """NAME, NAME@VERSION or NAME@ALIAS, or a mixture of such; never a path."""


class RevocationRequest(AdapterRequest):
    """The body of POST /v1/adapters/revoke."""

    why: Annotated[str, Field(min_length=1, max_length=1000)]
    """Shown to whoever asks for it."""
