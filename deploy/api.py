"""Kauli in Python: the objects of the `kauli` command, for programs and notebooks.

    from kauli.deploy.api import adapters, evaluate, load, train

    with load("text-sw") as sw:
        print(sw.generate("Habari?"))

Every function raises `kauli.models.errors.UsageError` for wrong use and `KauliError`, its parent, where something
failed; the message says what to do. `storage` is a folder or a URI, by default that of the command.
"""

import weakref
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from threading import Thread, current_thread, main_thread
from typing import TYPE_CHECKING, Annotated, Any, Self, Unpack

import numpy as np
from pydantic import ConfigDict, Field, TypeAdapter, ValidationError, with_config
from typing_extensions import TypedDict  # pydantic takes no other on Python 3.11

from kauli.deploy.cli.media import read_audio
from kauli.deploy.cli.speak import format_of
from kauli.deploy.cli.translate import translate_file, translate_text
from kauli.deploy.sources import AudioSource, ImageSource, audio_bytes, image_bytes
from kauli.models.adapters.listing import AdapterRow, list_adapters
from kauli.models.adapters.registry import Registry
from kauli.models.documents.document import DocumentOptions
from kauli.models.errors import UsageError, whole
from kauli.models.files import write_atomically
from kauli.models.media.encode import RATE, encoded
from kauli.models.paths import default_storage
from kauli.models.requests import MARK, Message, SpeechRequest, TextRequest, Word
from kauli.models.speech.chunking import Segment, as_text
from kauli.models.speech.subtitles import as_srt, as_vtt, cues
from kauli.serving.backends import Attachment
from kauli.serving.local import Local
from kauli.serving.routing import Route
from kauli.serving.speech import provenance
from kauli.serving.tasks import TASKS

if TYPE_CHECKING:
    from kauli.serving.transcript import Transcript
    from kauli.serving.translation import Draft
    from kauli.training.evaluation.results import EvalResult
    from kauli.training.train import TrainResult


@with_config(ConfigDict(extra="forbid"))
class Sampling(TypedDict, total=False):
    """How text is generated; what is left out has the command's default."""

    max_tokens: Annotated[int, Field(ge=1)]
    """New tokens at most; by default the adapter's own number, else 128; of `describe` 64."""
    no_repeat: Annotated[int, Field(ge=0, le=64)]
    """Length of token runs that may not occur twice, 0: no limit; by default the adapter's own."""
    temperature: Annotated[float, Field(ge=0, le=5)]
    """0 is greedy."""
    top_p: Annotated[float, Field(ge=0, le=1)]
    top_k: Annotated[int, Field(ge=0)]
    seed: int | None
    """For temperatures above 0."""
    stop: tuple[str, ...]
    """Texts that end the answer."""
    repetition_penalty: Annotated[float, Field(gt=0)]


@dataclass(frozen=True)
class Transcription:
    """The transcript of an audio file."""

    text: str
    segments: tuple[Segment, ...]
    """The text's parts with `start` and `end` in seconds, and their words."""
    language: str | None
    """As asked for, else as detected; None: unknown."""
    seconds: float
    """Of the audio."""
    warnings: tuple[str, ...] = ()
    """A sentence for each thing about the audio or the transcript that its reader should know."""

    @property
    def words(self) -> tuple[Word, ...]:
        """All words, with `text`, `start` and `end` in seconds."""
        return tuple(word for segment in self.segments for word in segment.words)

    def as_srt(self) -> str:
        """Subtitles in the format SubRip."""
        return as_srt(cues(self.segments))

    def as_vtt(self) -> str:
        """Subtitles in the format WebVTT."""
        return as_vtt(cues(self.segments))


@dataclass(frozen=True)
class SpokenText:
    """A text as speech."""

    samples: np.ndarray
    """(n,) float32, with a watermark."""
    rate: int
    """Samples a second."""
    voice: str
    language: str
    words: tuple[Word, ...]
    """With `text`, `start` and `end` in seconds."""
    unread: tuple[str, ...]
    """Letters of the text that are not read."""

    @property
    def seconds(self) -> float:
        """Its length."""
        return len(self.samples) / self.rate

    def save(self, path: str | Path) -> None:
        """Write an audio file, whose suffix chooses the format: .wav, .mp3, .opus, .flac, .aac or .pcm."""
        form = format_of(Path(path))
        write_atomically(Path(path), encoded(self.samples, form, provenance(self.voice, self.language)))


class Model:
    """A base, with an adapter or without, loaded once and kept until `close`; for several threads, too."""

    def __init__(self, local: Local, route: Route) -> None:
        self._local, self._route = local, route
        weakref.finalize(self, _let_go, local)  # a cell that is run again drops the model of its last run

    @property
    def adapter(self) -> str | None:
        """`name@version`; None for a base."""
        return self._route.adapter

    @property
    def base(self) -> str:
        """The base's name."""
        return self._route.base

    @property
    def language(self) -> str | None:
        """The language's BCP-47 tag, where one is known."""
        return self._route.language

    def generate(self, prompt: str | Sequence[Mapping[str, str]], **options: Unpack[Sampling]) -> str:
        """The answer to a prompt, or to a conversation of messages `{"role", "content"}`."""
        return self._local.generate(self._route, _request(prompt, options)).text

    def stream(self, prompt: str | Sequence[Mapping[str, str]], **options: Unpack[Sampling]) -> Iterator[str]:
        """The same answer piece by piece; leaving the iteration ends it."""
        yield from self._local.stream(self._route, _request(prompt, options))

    def describe(
        self, image: ImageSource | None = None, audio: AudioSource | None = None, prompt: str | None = None, *,
        rerank: int = 1, **options: Unpack[Sampling],
    ) -> str:  # fmt: skip
        """The description of an image, of audio or of both.

        Args:
            image: path, bytes, or an image of Pillow.
            audio: path, bytes, or (samples, rate).
            prompt: None is the instruction that the adapter was trained with.
            rerank: of so many candidates the one most similar to the image is the answer.
            options: as of `generate`.
        """
        attached = [Attachment("image", image_bytes(image))] if image is not None else []
        attached += [Attachment("audio", audio_bytes(audio))] if audio is not None else []
        if not attached:
            raise UsageError("nothing to describe: give image=, audio=, or both")
        if rerank > 1 and image is None:
            raise UsageError("rerank compares candidates with an image: give image=")
        asked = None if prompt is None else whole(prompt, "the prompt")
        return self._local.describe(self._route, attached, asked, rerank=rerank, **_checked(options)).text

    def transcribe(self, audio: AudioSource, prompt: str | None = None) -> Transcription:
        """The transcript of audio: path, bytes, or (samples, rate).

        `prompt` is the text before the audio, or names and words that may occur.
        """
        asked = None if prompt is None else whole(prompt, "the prompt")
        _, clip = read_audio(Path(audio) if isinstance(audio, str | Path) else audio_bytes(audio))
        return _transcription(self._local.transcribe(self._route, [clip], asked, words=True)[0])

    def speak(
        self, text: str, voice: str | None = None, *, speed: float = 1.0, seed: int = 0,
        lexicon: Mapping[str, str] | None = None,
    ) -> SpokenText:  # fmt: skip
        """A text as speech; `lexicon` has the IPA of words."""
        request = SpeechRequest(
            whole(text, "the text"), self._route.language, voice, speed, seed, tuple((lexicon or {}).items())
        )
        said, samples = self._local.speak(self._route, request)
        words = tuple(word for segment in said.segments for word in segment.words)
        return SpokenText(samples, RATE, said.voice.id, said.language, words, said.unread)

    def translate(self, text: str, to: str, source: str | None = None, memory: Sequence[str] = ()) -> "Draft":
        """The translation of a text, with its mark; `source` None: the language is detected.

        `memory` are names of memories, whose pairs the prompt shows; an addition counts at once.
        """
        asked = whole(text, "the text")
        return translate_text(self._local, asked, source, to, memory, self._route.model)[0]

    def translate_file(
        self, path: str | Path, out: str | Path, to: str, source: str | None = None, memory: Sequence[str] = ()
    ) -> dict[str, Any]:
        """Translate a document in its own format into another file; what `kauli translate --json` prints."""
        options = DocumentOptions(source, to)
        return translate_file(self._local, Path(path), Path(out), options, memory, self._route.model)

    def embed(self, texts: Sequence[str] = (), images: Sequence[ImageSource] = ()) -> np.ndarray:
        """(N, dim) float32: texts, then images, as vectors of length 1: their products are similarities."""
        if isinstance(texts, str):
            raise UsageError('texts is one text: give a list, texts=["..."]')
        inputs: list[str | bytes] = [*(whole(text, "a text") for text in texts), *map(image_bytes, images)]
        if not inputs:
            raise UsageError("nothing to embed: give texts=[...] or images=[...]")
        return self._local.embed(self._route, inputs)

    def classify(
        self, text: str | None = None, image: ImageSource | None = None, classes: Sequence[str] = ()
    ) -> list[tuple[str, float]]:
        """The classes of a text or an image with their probabilities, the likeliest first.

        They are those of the adapter's head; a base takes the names in `classes`.
        """
        if text is not None and image is None:
            one: str | bytes = whole(text, "the text")
        elif image is not None and text is None:
            one = image_bytes(image)
        else:
            raise UsageError("give either a text or image= to classify")
        return self._local.classify(self._route, [one], classes)[0]

    def close(self) -> None:
        """Free the memory of the weights."""
        self._local.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *error: object) -> None:
        self.close()

    def __repr__(self) -> str:
        return f"<kauli model {self._route.model} on {self.base}{f', {self.language}' if self.language else ''}>"


def load(
    model: str | Path, *, language: str | None = None, task: str | None = None, storage: str | Path | None = None,
    allow_base: bool = False,
) -> Model:  # fmt: skip
    """Load what answers: an adapter (`text-sw`, `text-sw@1`), a task with a language (`text`, `sw`), or a base.

    Args:
        model: the name; of a base also a Hugging Face id or a folder.
        language: BCP-47 tag; for a task it chooses the adapter.
        task: what a base of a hub id or folder is for (text, transcribe, embed) [text].
        storage: where the adapters are.
        allow_base: take the bare base where no adapter of a task fits the language.
    """
    local = Local(str(storage or default_storage()))
    try:
        named, exact = (task, str(model)) if task else local.meant(str(model))
        # A voice speaks every language: without an adapter with an accent
        return Model(local, local.choose(named, exact, language, allow_base or TASKS[named].promoted))
    except BaseException:
        local.close()
        raise


def train(
    recipe: str | Path, *, storage: str | Path | None = None, accept_terms: bool = False, restart: bool = False,
    use_ray: bool = True, **keys: Any,
) -> "TrainResult":  # fmt: skip
    """Train an adapter by a recipe's name or file, evaluate it and publish it, as `kauli train` does.

    Keyword arguments change keys of the recipe: `language="ka"`, `name="text-ka"`, `**{"train.steps": 100}`.
    """
    import yaml

    from kauli.training.recipe_file import load_recipe
    from kauli.training.train import train as run

    values = {key: str(value) if isinstance(value, Path) else value for key, value in keys.items()}
    written = {key: yaml.safe_dump(value, default_flow_style=True) for key, value in values.items()}
    overrides = ["=".join((key, text.removesuffix("...\n"))) for key, text in written.items()]
    where = str(storage or default_storage())
    loaded = load_recipe(str(recipe), overrides)
    return run(loaded, where, accept_terms=accept_terms, restart=restart, use_ray=use_ray)


def evaluate(
    adapter: str, *, data: str | Path | None = None, split: str = "test", out: str | Path | None = None,
    limit: int | None = None, storage: str | Path | None = None,
) -> "EvalResult":  # fmt: skip
    """Evaluate an adapter beside its base on held-out rows, as `kauli eval` does; `out` gets a report in HTML.

    `print(result.summary())` shows the figures; a notebook shows the result as a table.
    """
    from kauli.training.evaluation.run import evaluate as run

    source, page = None if data is None else str(data), None if out is None else Path(out)
    return run(adapter, str(storage or default_storage()), data=source, split=split, out=page, limit=limit)


def adapters(storage: str | Path | None = None) -> list[AdapterRow]:
    """All versions in the registry, names in order, newest versions first, as `kauli adapters list` shows them."""
    return list_adapters(Registry(str(storage or default_storage())))


def _let_go(local: Local) -> None:
    """Close what a dropped model has, also at the program's end; in another thread where this may be one of its own."""
    if current_thread() is main_thread():
        local.close()
    else:
        Thread(target=local.close, daemon=True).start()


def _checked(options: Mapping[str, Any]) -> dict[str, Any]:
    """Options of generation; UsageError for an unknown one or a value that is not allowed."""
    given = dict(options)
    if isinstance(given.get("stop"), str):
        given["stop"] = (given["stop"],)
    try:
        return dict(TypeAdapter(Sampling).validate_python(given))
    except ValidationError as error:
        first = error.errors(include_url=False)[0]
        key = str(first["loc"][0])
        if first["type"] == "extra_forbidden":
            raise UsageError(f"unknown option '{key}'. Known: {', '.join(Sampling.__annotations__)}") from None
        raise UsageError(f"{key}={given[key]!r}: {first['msg']}") from None


def _request(prompt: str | Sequence[Mapping[str, str]], options: Mapping[str, Any]) -> TextRequest:
    checked = _checked(options)
    if isinstance(prompt, str):
        return TextRequest.of_prompt(whole(prompt, "the prompt"), **checked)
    messages = []
    for place, message in enumerate(prompt):
        role, content = message.get("role"), message.get("content")
        if role not in ("system", "user", "assistant") or not isinstance(content, str):
            shape = '{"role": "system", "user" or "assistant", "content": a text}'
            raise UsageError(f"message {place} is {dict(message)!r}: it must be {shape}")
        messages.append(Message(role, whole(content, f"message {place}").replace(MARK, "")))
    if not messages:
        raise UsageError("no messages: give a prompt, or at least one message")
    return TextRequest(tuple(messages), **checked)


def _transcription(found: "Transcript") -> Transcription:
    segments = tuple(found.segments)
    return Transcription(as_text(segments), segments, found.language, round(found.clip.seconds, 3), found.warnings)
