"""The transcriber as a plain class: mixed adapters, features for connectors, its bounds, and what ends a request."""

import asyncio
import threading
import time
from collections.abc import Iterator
from contextlib import aclosing
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from kauli.models.bases.find import find_base
from kauli.models.media.decode import decode_audio
from kauli.models.requests import TranscriptionRequest
from kauli.models.speech.audio_tower import AudioTower
from kauli.models.speech.chunking import as_text
from kauli.models.speech.task import Recogniser
from kauli.models.speech.whisper import WhisperTask
from kauli.serving.events import EncodedMedia, Event, Failed, MediaForm, Piece, Refused, Started
from kauli.serving.transcript import AT_ONCE, Transcript
from kauli.serving.workers.transcriber import Transcriber
from support.settings import worker_args
from support.speech_adapters import STACK, encoded, publish_transcribe, sound, transcribed_here, wav, words


@pytest.fixture(scope="module")
def storage(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("KAULI_HOME", str(tmp_path_factory.mktemp("home")))
        folder = tmp_path_factory.mktemp("store")
        publish_transcribe(folder, "transcribe-be", "be", 1)
        publish_transcribe(folder, "transcribe-ky", "ky", 2)
        yield folder


@pytest.fixture(scope="module")
def transcriber(storage: Path) -> Iterator[Transcriber]:
    running = Transcriber(load(), worker_args(storage, max_adapters=4))
    yield running
    running.close()


def load(slots: int = 4) -> WhisperTask:
    return WhisperTask.load(find_base("debug", task="transcribe"), slots=slots)


def form() -> MediaForm:
    return MediaForm("debug-whisper", AudioTower(load()).sha256, stack=STACK)


async def collect(transcriber: Transcriber, request: TranscriptionRequest, adapter: str | None) -> list[Event]:
    return [event async for event in transcriber.stream(request, adapter)]


def said(events: list[Event]) -> str:
    return "".join(event.text for event in events if isinstance(event, Piece)).strip()


# Transcripts


def test_two_adapters_and_the_base_in_one_batch_hear_what_each_hears_alone(
    storage: Path, transcriber: Transcriber
) -> None:
    asked = [(pitch, adapter) for pitch in (300, 500) for adapter in (None, "transcribe-be@1", "transcribe-ky@1")]

    async def all_at_once() -> list[list[Event]]:
        requests = (
            collect(transcriber, TranscriptionRequest(decode_audio(wav(1, pitch)).samples), spec)
            for pitch, spec in asked
        )
        return await asyncio.gather(
            *requests, *(collect(transcriber, TranscriptionRequest(sound(2)), None) for _ in range(2))
        )

    together = [said(events) for events in asyncio.run(all_at_once())]
    alone = [as_text(transcribed_here(storage, spec, wav(1, pitch))) for pitch, spec in asked]
    assert [" ".join(text.split()) for text in together[: len(asked)]] == alone
    assert len(set(alone)) >= 5


def test_the_language_is_said_asked_or_heard(transcriber: Transcriber) -> None:
    def language(adapter: str | None, **options: Any) -> str | None:
        last = asyncio.run(collect(transcriber, TranscriptionRequest(sound(1), **options), adapter))[-1]
        assert isinstance(last, Piece)
        return last.language

    assert language(None, language="tt") == "tt"
    assert language("transcribe-ky@1") == "ky"
    assert language(None) in load().languages()


def test_a_language_that_nobody_speaks_is_refused_before_it_begins(transcriber: Transcriber) -> None:
    [event] = asyncio.run(collect(transcriber, TranscriptionRequest(sound(1), language="sw"), None))
    assert isinstance(event, Failed)
    assert (event.status, event.param) == (400, "language")
    assert "debug-whisper does not know the language 'sw'" in event.message


def test_the_queue_is_bounded_and_leaving_frees_the_slot(storage: Path) -> None:
    class Slow(WhisperTask):
        steps = 0

        def step(self) -> Any:
            self.steps += 1
            time.sleep(0.05)
            return super().step()

    task = Slow.load(find_base("debug", task="transcribe"), slots=1)
    transcriber = Transcriber(task, worker_args(storage, max_queue=1))
    request = TranscriptionRequest(sound(3), ignore_eos=True)

    async def run() -> tuple[list[Event], int]:
        async with aclosing(transcriber.stream(request, None)) as first:
            assert isinstance(await anext(first), Started)
            waiting = asyncio.create_task(collect(transcriber, TranscriptionRequest(sound(1), max_tokens=1), None))
            await asyncio.sleep(0.1)
            refused = await collect(transcriber, request, None)
        began = task.steps
        assert isinstance((await waiting)[-1], Piece)
        return refused, task.steps - began

    refused, waited = asyncio.run(run())
    assert isinstance(refused[0], Failed)
    assert (refused[0].status, refused[0].code) == (429, "queue_full")
    assert waited < 20  # the first would have taken some 120 steps more
    transcriber.close()


def test_it_checks_itself_and_stops(storage: Path) -> None:
    transcriber = Transcriber(load(), worker_args(storage))
    assert asyncio.run(transcriber.check()) is None
    transcriber.close()
    assert asyncio.run(transcriber.check()) == "the thread of the generator has ended"
    after = asyncio.run(transcriber.features(wav(), form()))
    assert isinstance(after, Failed)
    assert after.status == 503


def test_a_ctc_recogniser_transcribes_and_gives_no_features(storage: Path) -> None:
    base = find_base("debug-wav2vec2", task="transcribe")
    transcriber = Transcriber(Recogniser.load(base, slots=4), worker_args(storage))
    events = asyncio.run(collect(transcriber, TranscriptionRequest(sound(1)), None))
    assert isinstance(events[0], Started)
    assert isinstance(events[-1], Piece)
    assert events[-1].finish == "stop"
    failed = asyncio.run(transcriber.features(wav(), form()))
    assert isinstance(failed, Failed)
    assert failed.code == "wrong_encoder"
    transcriber.close()


# EncodedMedia


def test_features_are_those_of_the_tower_and_the_second_time_a_hit(transcriber: Transcriber) -> None:
    clips = [wav(1), wav(2, 400), wav(1)]
    before = asyncio.run(transcriber.counts())

    async def at_once() -> list[EncodedMedia | Failed]:
        return await asyncio.gather(*(transcriber.features(clip, form()) for clip in clips))

    found = asyncio.run(at_once())
    tower = AudioTower(load())
    for clip, features in zip(clips, found, strict=True):
        assert isinstance(features, EncodedMedia)
        expected = tower.features([decode_audio(clip).samples], STACK)[0].half().numpy()
        assert features.values.shape == expected.shape
        assert np.allclose(features.values, expected, atol=2e-3)
    again = asyncio.run(transcriber.features(clips[1], form()))
    assert isinstance(again, EncodedMedia)
    assert again.cached
    after = asyncio.run(transcriber.counts())
    assert after["hits"] - before["hits"] == 1
    assert after["misses"] - before["misses"] == 3  # two of them waited for the same


def test_features_come_while_it_transcribes(transcriber: Transcriber) -> None:
    async def both() -> tuple[list[list[Event]], list[EncodedMedia | Failed]]:
        heard = asyncio.gather(*(collect(transcriber, TranscriptionRequest(sound(2)), None) for _ in range(6)))
        clips = [wav(1, 700 + at) for at in range(6)]
        features = await asyncio.gather(*(transcriber.features(clip, form()) for clip in clips))
        return await heard, features

    heard, features = asyncio.run(both())
    assert len({said(events) for events in heard}) == 1
    assert all(isinstance(one, EncodedMedia) for one in features)


@pytest.mark.parametrize(
    ("content", "changes", "status", "words"),
    [
        (b"", {}, 400, "empty"),
        (encoded(np.zeros(16_000)), {}, 400, "silent"),
        (wav(5), {}, 400, "4.0 are allowed"),
        (wav(1), {"tower": "0" * 64, "encoder": "whisper-base"}, 503, "setting audio.base: whisper-base"),
    ],
)
def test_features_that_are_refused(
    transcriber: Transcriber, content: bytes, changes: dict[str, str], status: int, words: str
) -> None:
    found = asyncio.run(transcriber.features(content, replace(form(), **changes)))
    assert isinstance(found, Failed)
    assert found.status == status
    assert words in found.message


def test_a_failing_encoder_fails_its_requests_only(storage: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    transcriber = Transcriber(load(), worker_args(storage))
    broken = threading.Event()
    real = AudioTower.features

    def features(self: AudioTower, recordings: Any, stack: int) -> Any:
        if broken.is_set():
            raise RuntimeError("out of memory")
        return real(self, recordings, stack)

    monkeypatch.setattr(AudioTower, "features", features)
    broken.set()
    failed = asyncio.run(transcriber.features(wav(), form()))
    assert isinstance(failed, Failed)
    assert failed.status == 500
    assert "memory" not in failed.message
    broken.clear()
    assert isinstance(asyncio.run(transcriber.features(wav(), form())), EncodedMedia)
    transcriber.close()


# Long recordings


async def transcribe(backend: Any, content: bytes, stream: bool, **options: Any) -> tuple[list[str], Transcript]:
    transcript = Transcript(backend, TranscriptionRequest(None, **options), None, 30.0)
    await transcript.cut(decode_audio(content))
    return [piece async for piece in transcript.pieces(stream)], transcript


@pytest.mark.parametrize(("samples", "least"), [(words(8), 2), (sound(9), 1)], ids=["pauses", "none"])
def test_a_long_recording_is_heard_in_spans_and_streams_what_it_says_whole(
    storage: Path, transcriber: Transcriber, samples: Any, least: int
) -> None:
    content = encoded(samples)
    pieces, whole = asyncio.run(transcribe(transcriber, content, False, language="be"))
    assert len(whole.spans) >= 3
    assert pieces == [as_text(transcribed_here(storage, None, content, language="be"))]
    streamed, _ = asyncio.run(transcribe(transcriber, content, True, language="be"))
    assert "".join(streamed) == pieces[0]
    # Where spans overlap, their text is certain only when both have ended, which may be at the same time.
    assert len([piece for piece in streamed if piece]) >= least


class Scripted:
    """A backend that says each span's text, for what a real one says only by chance."""

    def __init__(self, *texts: str, refuse: int = 0, status: int = 429) -> None:
        self._texts, self._refuse, self._status = texts, refuse, status
        self.heard: list[Any] = []
        self.running = self.most = 0

    async def longest(self) -> float:
        return 4.0

    async def stream(self, request: TranscriptionRequest, adapter: str | None, whole: bool = False) -> Any:
        place = len(self.heard)
        if self._refuse and place:
            self._refuse -= 1
            yield Failed(self._status, "try again", "queue_full")
            return
        self.heard.append(request)
        yield Started(3)
        self.running += 1
        self.most = max(self.most, self.running)
        try:
            text = self._texts[place % len(self._texts)]
            for at, letter in enumerate(text):
                await asyncio.sleep(0)
                yield Piece(letter, 1, "stop" if at == len(text) - 1 else None, language="be")
        finally:
            self.running -= 1


def test_words_that_two_spans_share_are_said_once_in_a_stream_too() -> None:
    backend = Scripted("one two three four", "three four five six", "five six seven")
    streamed, transcript = asyncio.run(transcribe(backend, encoded(sound(7.5)), True, language="be"))
    assert len(transcript.spans) == 3
    assert "".join(streamed) == as_text(transcript.segments) == "one two three four five six seven"


def test_a_stream_never_says_what_is_left_out_as_no_speech() -> None:
    class Unspoken(Scripted):
        async def stream(self, request: TranscriptionRequest, adapter: str | None, whole: bool = False) -> Any:
            async for event in super().stream(request, adapter, whole):
                yield replace(event, no_speech_prob=0.9) if isinstance(event, Piece) else event

    streamed, transcript = asyncio.run(transcribe(Unspoken("thank you " * 9), encoded(sound(7.5)), True, language="be"))
    assert "".join(streamed) == as_text(transcript.segments) == ""
    assert len(transcript.warnings) >= 3


@pytest.mark.parametrize(("adapter", "longest"), [(None, 28.0), ("transcribe-be@1", 15.0)])
def test_an_adapter_hears_less_at_once_than_the_base(adapter: str | None, longest: float) -> None:
    class Patient(Scripted):
        async def longest(self) -> float:
            return 30.0

    async def hear() -> list[float]:
        transcript = Transcript(Patient("a"), TranscriptionRequest(None, "be"), adapter, 30.0)  # type: ignore[arg-type]
        await transcript.cut(decode_audio(encoded(words(20))))
        async for _ in transcript.pieces(stream=False):
            pass
        return [span.end - span.start for span in transcript.spans]

    assert 2 / 3 * longest < max(asyncio.run(hear())) <= longest


def test_letters_wait_for_their_marks() -> None:
    streamed, _ = asyncio.run(transcribe(Scripted(" e\u0301\u0323a \u0438\u0306 "), wav(1), True, language="be"))
    assert "".join(streamed) == "\u1eb9\u0301a \u0439"
    assert streamed[0] == ""


def test_the_first_span_names_the_language_of_all() -> None:
    backend = Scripted("a")
    _, transcript = asyncio.run(transcribe(backend, encoded(words(5)), False))
    assert [request.language for request in backend.heard] == [None, "be", "be"][: len(transcript.spans)]
    assert transcript.language == "be"


def test_spans_are_few_at_a_time_and_ask_again_where_the_queue_is_full() -> None:
    content = encoded(sound(40))
    many = Scripted("a " * 50 + "b")
    asyncio.run(transcribe(many, content, False, language="be"))
    assert len(many.heard) > AT_ONCE == many.most
    refusing = Scripted("a", refuse=2)
    _, transcript = asyncio.run(transcribe(refusing, content, False, language="be"))
    assert len(refusing.heard) == len(transcript.spans) == len(many.heard)
    failing = Scripted("a", refuse=1, status=500)
    with pytest.raises(Refused, match="try again"):
        asyncio.run(transcribe(failing, encoded(sound(40)), True, language="be"))
    assert failing.running == 0


def test_a_transcript_that_takes_too_long_is_given_up(storage: Path) -> None:
    class Stuck(Scripted):
        async def stream(self, request: TranscriptionRequest, adapter: str | None, whole: bool = False) -> Any:
            yield Started(1)
            await asyncio.sleep(30)

    async def run() -> None:
        transcript = Transcript(Stuck("a"), TranscriptionRequest(None), None, 0.2)  # type: ignore[arg-type]
        await transcript.cut(decode_audio(wav(1)))
        async for _ in transcript.pieces(stream=True):
            pass

    with pytest.raises(Refused) as caught:
        asyncio.run(run())
    assert caught.value.failed.status == 504
