"""Requests to models and their answers: plain values without torch, that travel between processes."""

from dataclasses import dataclass
from typing import Any, Self

DEFAULT_TOKENS = 128
"""New tokens of a request that does not set a number."""

MARK = "\ufffc"
"""Marks the position of an image or of audio in a text (Unicode's object replacement character)."""


@dataclass(frozen=True)
class Media:
    """The encoder's features of an image or of audio."""

    kind: str
    """"image" or "audio"."""
    features: Any
    """(n, width) numpy floats: n positions of the prompt."""


@dataclass(frozen=True)
class Message:
    """One turn of a conversation; `role` is system, user or assistant. `MARK` is where media belong."""

    role: str
    content: str


@dataclass(frozen=True)
class TextRequest:
    """What to generate: an answer to `messages`, or a continuation of the raw text `prompt` (which may be empty)."""

    messages: tuple[Message, ...] | None = None
    prompt: str | tuple[int, ...] | None = None
    """Its tokens are taken as they are; a text gets in front what stands before a document."""
    max_tokens: int | None = None
    """New tokens at most, 0 with `echo` alone; None: the adapter's own number, else `DEFAULT_TOKENS`."""
    temperature: float = 0.0
    top_p: float = 1.0
    top_k: int = 0
    seed: int | None = None
    stop: tuple[str, ...] = ()
    min_tokens: int = 0
    ignore_eos: bool = False
    min_p: float = 0.0
    repetition_penalty: float = 1.0
    frequency_penalty: float = 0.0
    presence_penalty: float = 0.0
    logit_bias: tuple[tuple[int, float], ...] = ()
    """Tokens, and what is added to their scores."""
    no_repeat: int | None = None
    """Length of token runs that may not occur twice in an answer; 0: no limit; None: the adapter's own."""
    n: int = 1
    """Number of answers."""
    logprobs: int | None = None
    """None: none; k: the log probabilities of the chosen tokens and of the k likeliest at each place."""
    echo: bool = False
    """Whether the first progress of the first answer has the tokens of `prompt`."""
    media: tuple[Media, ...] = ()
    """Media for the marks of the messages or the prompt, in their order."""
    language: str | None = None
    """The tag of the answer's language, where it is known."""
    captions: tuple[str, ...] | None = None
    """Captions of similar pictures that the prompt shows; None: those that the adapter's memory finds."""

    @classmethod
    def of_prompt(cls, prompt: str | None, media: tuple[Media, ...] = (), **options: Any) -> Self:
        """The request of an example's `prompt`: one user message; None is a document from its start.

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
    """A word of a transcript with its punctuation, and its time in seconds from the start of the clip."""

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
    echo: tuple[TokenLogprob, ...] = ()
    """The prompt's tokens, in the first progress; without `logprobs` their log probabilities are NaN, and that of the
    first one always is: nothing is before it."""
    words: tuple[Word, ...] = ()
    """Of the last progress of a transcript whose words were asked for."""
    language: str | None = None
    """Of a transcript: its language's BCP-47 tag, as asked for or as detected; None: unknown."""
    no_speech_prob: float | None = None
    """Of a transcript with `logprobs`: the probability that nothing is spoken; None: the model has none."""


@dataclass(frozen=True)
class Chunk(Progress):
    """A `Progress` of answer `index` to request `row` of a batch."""

    row: int = 0
    index: int = 0


@dataclass(frozen=True)
class BeamSearch:
    """How one request is searched."""

    size: int
    """Answers that are kept at each step."""
    scorer: Any = None
    """A language model: a `NextTokens` of `kauli.models.engine.beams`; None: without."""
    weight: float = 0.0
    bonus: float = 0.0
    """Added for each token but the one that ends the answer."""
    bias: Any = None
    """Hot words, a second language model with the weight 1 (`kauli.models.speech.hot_words`); None: without."""


@dataclass(frozen=True)
class TranscriptionRequest:
    """What to transcribe: one clip, short enough for its base (Whisper takes 30 seconds)."""

    samples: Any
    """(n,) numpy float32, mono, 16,000 a second."""
    language: str | None = None
    """A BCP-47 tag; None: the adapter's own, or the one that the base detects."""
    prompt: str | None = None
    """Earlier transcript, or words that may occur: Whisper continues in its style."""
    max_tokens: int | None = None
    """None: as many as the clip's duration allows."""
    temperature: float = 0.0
    seed: int | None = None
    full_window: bool | None = None
    """Whether the clip is padded with silence to the base's whole window; None: as its adapter says, and for the base
    it is."""
    logprobs: int | None = None
    """None: none; k: the log probabilities of the chosen tokens and of the k likeliest at each place."""
    words: bool = False
    """Whether word times are wanted, for which Whisper's decoder reads the transcript once more."""
    ignore_eos: bool = False
    """Whether generation continues to `max_tokens`, for benchmarks."""
    beam: BeamSearch | None = None
    """How Whisper searches; None: with the adapter's language model where it has one, else greedily. Temperatures
    above 0 are sampled without either."""
    language_model: bool = True
    """Whether the adapter's language model is used, where it has one for the language."""
    hot_words: tuple[str, ...] = ()
    """Words that are likely in the clip, which the search is drawn to."""
    n: int = 1
    """One transcript; for the service, which counts answers."""


@dataclass(frozen=True)
class SpeechRequest:
    """What to speak."""

    text: str
    language: str | None = None
    """A BCP-47 tag; None: the voice's own."""
    voice: str | None = None
    """None: the first of the base."""
    speed: float = 1.0
    seed: int = 0
    """Of the noise in a voice: the same request gives the same sound."""
    lexicon: tuple[tuple[str, str], ...] = ()
    """Words and their pronunciation in the IPA."""


@dataclass(frozen=True)
class Voice:
    """A speaker that a base or eSpeak offers."""

    id: str
    language: str
    """That of its recordings; others get its accent. "mul": none more than another."""
    licence: str
    consent: str
    """Under which its recordings were given."""
    synthetic: bool
    """Whether it imitates no person."""


@dataclass(frozen=True)
class Spoken:
    """A sentence as sound."""

    samples: Any
    """(n,) numpy float32, mono, 24,000 a second, with the silence after it."""
    text: str
    words: tuple[Word, ...] = ()
    """Times are from the start of the sentence."""
