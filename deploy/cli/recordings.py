"""Commands about recordings: transcribing them, and what an adapter of the task describe hears in one."""

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from kauli.models.errors import KauliError, UsageError
from kauli.models.progress import note

if TYPE_CHECKING:
    from kauli.models.adapters.registry import Registry
    from kauli.models.bases.find import Base
    from kauli.models.media.decode import Recording
    from kauli.models.requests import Media, TranscriptionRequest, Word
    from kauli.models.speech.chunking import Segment
    from kauli.models.text.connector import PartSettings
    from kauli.serving.routing import Route

SPEECH = "whisper-base"
FORMATS = ("text", "json", "verbose_json", "srt", "vtt")
# A file of one's own may be longer than what a service takes; it is held in memory, 230 MB an hour.
_MOST_SECONDS, _MOST_BYTES, _MOST_SAMPLES = 7200.0, 2**31, 2_000_000_000


@dataclass
class _Heard:
    """What was heard in the spans of a recording."""

    texts: list[str]
    words: list[tuple["Word", ...]]
    language: str | None
    cut_off: list[int] = field(default_factory=list)
    """The spans whose text went on beyond what the base writes at once."""


def read_recording(path: Path) -> "Recording":
    """The recording in a file; raises UsageError where it can't be read or is none that kauli takes.

    What is odd about it is said on stderr.
    """
    from kauli.models.media.decode import AudioLimits, MediaError, decode_audio

    limits = AudioLimits(max_bytes=_MOST_BYTES, max_seconds=_MOST_SECONDS, max_samples=_MOST_SAMPLES)
    try:
        if path.stat().st_size > _MOST_BYTES:
            raise UsageError(f"recording {path}: it is larger than {_MOST_BYTES >> 30} GiB. Compress it, or cut it.")
        recording = decode_audio(path.read_bytes(), limits)
    except OSError as error:
        raise UsageError(
            f"recording {path}: {error.strerror or error}. Give the path of a WAV, FLAC, Ogg or MP3 file."
        ) from None
    except MediaError as error:
        raise UsageError(f"recording {path}: {error}") from None
    for warning in recording.warnings:
        note(f"{path}: {warning}")
    return recording


def transcribe(
    files: Sequence[Path], model: str, language: str | None, prompt: str | None, storage: str, words: bool = False
) -> list[dict[str, Any]]:
    """Transcribe recordings in this process, all together, with the adapter that the service would choose.

    Where none serves the language it is the base alone; without a language the base hears which it is. Long recordings
    are cut at pauses. A result's segments are the parts that were heard at once, with their `words` if wanted.
    """
    from kauli.models.adapters.folder import check_base
    from kauli.models.adapters.registry import Registry
    from kauli.models.requests import TranscriptionRequest
    from kauli.models.speech.chunking import LONGEST, LONGEST_LEARNED, as_text, cut, join
    from kauli.models.tasks import load_task

    registry = Registry(storage)
    recordings = [read_recording(path) for path in files]
    base, route = choose_recogniser(registry, model, language)
    task = load_task("transcribe", base)
    if route.adapter:
        folder = registry.fetch(route.adapter)
        check_base(registry.card(route.adapter), base)
        task.add_adapter(route.adapter, folder)
    longest = min(LONGEST_LEARNED if route.adapter else LONGEST, task.seconds)
    spans = [cut(recording.samples, longest) for recording in recordings]
    total = sum(recording.seconds for recording in recordings)
    note(f"{route.model} transcribes {total:.1f} s{f' ({route.language})' if route.language else ''}")
    requests = [
        [TranscriptionRequest(span.of(recording.samples), route.language, prompt, words=words) for span in parts]
        for recording, parts in zip(recordings, spans, strict=True)
    ]
    results = []
    for path, recording, parts, heard in zip(
        files, recordings, spans, _transcribed(task, requests, route.adapter), strict=True
    ):
        segments = join(heard.texts, parts, heard.words if words else ())
        if not segments:
            note(f"{path}: no words were heard")
        for at in heard.cut_off:
            note(f"{path}: what {base.name} wrote from {parts[at].start:.1f} to {parts[at].end:.1f} s was cut off")
        results.append(
            {
                "file": str(path), "text": as_text(segments), "model": route.model, "base": route.base,
                "adapter": route.adapter, "language": heard.language, "seconds": round(recording.seconds, 3),
                "segments": [_as_dict(segment, words) for segment in segments], "warnings": list(recording.warnings),
            }
        )  # fmt: skip
    return results


def choose_recogniser(registry: "Registry", model: str, language: str | None) -> tuple["Base", "Route"]:
    """The base for speech, and who answers on it: a base, an adapter, or for "transcribe" what fits the language."""
    from kauli.models.bases.find import find_base, known_bases
    from kauli.models.languages import check_tag, fallback_chain
    from kauli.serving.routing import Catalogue, newest_cards, public_name

    def found(name: str) -> "Base":
        return find_base(name, task="transcribe", allow_noncommercial=True)

    tag = check_tag(language) if language else None
    if model == "debug" or "/" in model or model in known_bases():
        base = found(model)
        model = public_name(base)
    elif model == "transcribe":
        cards = [card for card in newest_cards(registry) if card.task == "transcribe"]
        wanted = fallback_chain(tag) if tag else []
        base = found(next((card.base.name for one in wanted for card in cards if one in card.language), SPEECH))
    else:
        card = registry.card(model)
        if card.task != "transcribe":
            raise UsageError(
                f"{card.spec} transcribes nothing, it is an adapter of the task {card.task}: give --language, or an "
                "adapter of the task transcribe with --model (kauli adapters list)."
            )
        base = found(card.base.name)
    catalogue = Catalogue(registry, (), speech=base, tasks=("transcribe",))
    return base, catalogue.route(model, tag, allow_base=True)


def rendered(results: Sequence[dict[str, Any]], form: str) -> str:
    """Transcripts in one of `FORMATS`; of several files one line for each, or a JSON list. Subtitles need words."""
    from kauli.models.requests import Word
    from kauli.models.speech.chunking import Segment
    from kauli.models.speech.subtitles import as_srt, as_vtt, cues

    if form in ("srt", "vtt"):
        shown = cues(
            [
                Segment(**{**one, "words": tuple(Word(**word) for word in one["words"])})
                for one in results[0]["segments"]
            ]
        )
        return as_srt(shown) if form == "srt" else as_vtt(shown)
    if form == "text":
        return "\n".join(f"{one['file']}\t{one['text']}" if len(results) > 1 else one["text"] for one in results)
    several = [{**({"file": one["file"]} if len(results) > 1 else {}), **_openai(one, form)} for one in results]
    return json.dumps(several if len(several) > 1 else several[0], ensure_ascii=False, indent=2)


def check_format(form: str, count: int) -> None:
    """Raise UsageError for a format that is none of `FORMATS`, or that holds the transcript of one file only."""
    from kauli.models.errors import nearest

    if form not in FORMATS:
        raise UsageError(f"--format '{form}' is unknown: use {', '.join(FORMATS)}.{nearest(form, FORMATS)}")
    if form in ("srt", "vtt") and count > 1:
        raise UsageError(f"--format {form} writes the subtitles of one recording, not of {count}: give one file.")


def hear(path: Path, samples: Any, part: "PartSettings", adapter: str) -> "Media":
    """What an adapter's connector takes of a recording's samples; UsageError where it is too long for its encoder."""
    import numpy as np

    from kauli.models.bases.find import find_base
    from kauli.models.media.decode import RATE
    from kauli.models.requests import Media
    from kauli.models.speech.audio_tower import AudioTower

    tower = AudioTower.load(find_base(part.encoder, task="transcribe", allow_noncommercial=True))
    if tower.sha256 != part.sha256:
        raise KauliError(f"the encoder of {part.encoder} is not the one that {adapter} was trained with.")
    if len(samples) > tower.task.seconds * RATE:
        raise UsageError(
            f"recording {path}: it lasts {len(samples) / RATE:.1f} s, and {adapter} hears {tower.task.seconds:g} at "
            f"once: cut it (ffmpeg -i IN -t {tower.task.seconds:g} OUT.wav), or write it down with kauli transcribe."
        )
    return Media("audio", tower.features([samples], part.stack)[0].numpy().astype(np.float16))


def _openai(result: dict[str, Any], form: str) -> dict[str, Any]:
    """The fields of OpenAI's transcriptions."""
    if form == "json":
        return {"text": result["text"]}
    segments = [{"id": number, **segment} for number, segment in enumerate(result["segments"])]
    words = [
        {"word": word["text"], "start": word["start"], "end": word["end"]}
        for segment in segments
        for word in segment.pop("words", ())
    ]
    return {
        "task": "transcribe", "language": result["language"], "duration": result["seconds"], "text": result["text"],
        "segments": segments, **({"words": words} if words else {}), "warnings": result["warnings"],
    }  # fmt: skip


def _as_dict(segment: "Segment", words: bool) -> dict[str, Any]:
    found = asdict(segment)
    if not words:
        del found["words"]
    return found


def _transcribed(
    task: Any, recordings: Sequence[Sequence["TranscriptionRequest"]], adapter: str | None
) -> list[_Heard]:
    """The spans of all recordings, side by side; the language that is heard in a recording's first is that of all."""
    from kauli.models.progress import bar

    found = [_Heard([""] * len(spans), [()] * len(spans), spans[0].language) for spans in recordings]
    firsts = [(number, 0) for number, heard in enumerate(found) if heard.language is None]
    every = [(number, at) for number, spans in enumerate(recordings) for at in range(len(spans))]
    others = sorted(set(every) - set(firsts))
    with bar("Transcribing", len(every)) as advance:
        for places in (firsts, others):
            tickets: dict[Any, tuple[int, int]] = {}
            for number, at in places:
                request = replace(recordings[number][at], language=found[number].language)
                tickets |= dict.fromkeys(task.submit(request, adapter), (number, at))
            while task.busy:
                for ticket, progress in task.step():
                    number, at = tickets[ticket]
                    heard = found[number]
                    heard.texts[at] += progress.text
                    if progress.finish is None:
                        continue
                    advance()
                    heard.words[at] = progress.words
                    # Only Whisper hears which language it is
                    memory = getattr(ticket.generation, "memory", None)
                    heard.language = heard.language or getattr(memory, "language", None)
                    if progress.finish == "length":
                        heard.cut_off.append(at)
    return found
