"""What is asked of a text model and what comes back: plain values without torch, that travel between processes."""

from dataclasses import dataclass
from typing import Any, Self

DEFAULT_TOKENS = 128
"""New tokens of a request that names no number."""

NO_REPEAT = 6
"""Tokens: no run of so many stands twice in a description, in evaluation, on the command line and in the service."""

MARK = "\ufffc"
"""Stands in a text where a picture or a recording belongs (Unicode's object replacement character)."""


@dataclass(frozen=True)
class Media:
    """A picture or recording as its encoder sees it."""

    kind: str
    """"image"."""
    features: Any
    """(n, width) numpy floats: n places in the prompt."""


@dataclass(frozen=True)
class Message:
    """One turn of a conversation; `role` is system, user or assistant. `MARK` stands where media belong."""

    role: str
    content: str


@dataclass(frozen=True)
class TextRequest:
    """What to generate: an answer to `messages`, or the continuation of the raw text `prompt` (which may be empty)."""

    messages: tuple[Message, ...] | None = None
    prompt: str | None = None
    max_tokens: int | None = None
    """New tokens at most; None: `DEFAULT_TOKENS`, or what the context leaves."""
    temperature: float = 0.0
    top_p: float = 1.0
    top_k: int = 0
    seed: int | None = None
    stop: tuple[str, ...] = ()
    min_tokens: int = 0
    ignore_eos: bool = False
    repetition_penalty: float = 1.0
    no_repeat: int = 0
    """No run of so many tokens stands twice in an answer; 0: any may."""
    n: int = 1
    """How many answers."""
    logprobs: int | None = None
    """None: none; k: the log probabilities of the chosen tokens and of the k likeliest at each place."""
    media: tuple[Media, ...] = ()
    """What stands at the marks of the messages or the prompt, in their order."""

    @classmethod
    def of_prompt(cls, prompt: str | None, media: tuple[Media, ...] = (), **options: Any) -> Self:
        """The request that an example's `prompt` stands for: one user message, or a document from its beginning.

        Its media come first.
        """
        marks = MARK * len(media)
        if prompt is None:
            return cls(prompt=marks, media=media, **options)
        return cls(messages=(Message("user", marks + prompt.replace(MARK, "")),), media=media, **options)


@dataclass(frozen=True)
class TokenLogprob:
    """A token, its bytes (not always whole characters) and its natural log probability before temperature."""

    token: int
    bytes: bytes
    logprob: float
    top: tuple["TokenLogprob", ...] = ()
    """The likeliest tokens at this place, the likeliest first."""


@dataclass(frozen=True)
class Word:
    """A word of a transcript with its punctuation, and when it was said: seconds from the beginning of the clip."""

    text: str
    start: float
    end: float


@dataclass(frozen=True)
class Progress:
    """What a pass added to an answer: whole characters only; the last one says why it ended."""

    text: str
    tokens: int
    finish: str | None = None
    """None, or "stop" (end token or stop string), "length" (`max_tokens` or the context), "cancelled", "failed"."""
    logprobs: tuple[TokenLogprob, ...] = ()
    words: tuple[Word, ...] = ()
    """Of the last progress of a transcript whose words were asked for."""
    language: str | None = None
    """Of a transcript: its language's BCP-47 tag, as asked for or as detected; None: unknown."""


@dataclass(frozen=True)
class Chunk:
    """Some text of answer `index` to request `row`, whole characters only; its last chunk says why it ended."""

    row: int
    text: str
    tokens: int
    finish: str | None = None
    """None, or "stop" (end token or stop string), "length" (`max_tokens` or the context), "cancelled", "failed"."""
    index: int = 0
    logprobs: tuple[TokenLogprob, ...] = ()
    words: tuple[Word, ...] = ()
    """Of the last chunk of a transcript whose words were asked for: all of them."""


@dataclass(frozen=True)
class TranscriptionRequest:
    """What to transcribe: one clip, short enough for its base (`RECORDING_SECONDS` of Whisper's 30)."""

    samples: Any
    """(n,) numpy float32, mono, 16,000 a second."""
    language: str | None = None
    """A BCP-47 tag; None: the adapter's own, or what the base hears."""
    prompt: str | None = None
    """What was said before, or words that may come: Whisper goes on in its manner."""
    max_tokens: int | None = None
    """None: as many as can be said in the clip's time."""
    temperature: float = 0.0
    seed: int | None = None
    full_window: bool | None = None
    """Whether the clip is filled up with silence to the base's whole window, or heard at its own length; None: at its
    own length by adapters that were trained so, else in the whole window."""
    logprobs: int | None = None
    """None: none; k: the log probabilities of the chosen tokens and of the k likeliest at each place."""
    words: bool = False
    """Whether the words' times are asked for, for which Whisper's decoder reads the transcript once more."""
    ignore_eos: bool = False
    """Whether it goes on to `max_tokens`, for measurements."""
    n: int = 1
    """One transcript; there for the service, which counts answers."""
