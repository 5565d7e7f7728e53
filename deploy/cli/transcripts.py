"""Transcripts as `kauli transcribe` prints them: text, subtitles, OpenAI's JSON."""

import json
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

from kauli.models.errors import UsageError, nearest
from kauli.models.progress import note

if TYPE_CHECKING:
    from kauli.serving.routing import Route
    from kauli.serving.transcript import Transcript

FORMATS = ("text", "json", "verbose_json", "srt", "vtt")


def check_format(form: str, count: int) -> None:
    """Raise UsageError for a format that is not in `FORMATS`, or that holds the transcript of one file only."""
    if form not in FORMATS:
        raise UsageError(f"--format '{form}' is unknown: use {', '.join(FORMATS)}.{nearest(form, FORMATS)}")
    if form in ("srt", "vtt") and count > 1:
        raise UsageError(f"--format {form} writes the subtitles of one file, not of {count}: give one file.")


def as_result(path: Path, transcript: "Transcript", route: "Route", words: bool) -> dict[str, Any]:
    """A transcript with its segments, and their words if wanted; what is missing in it is noted on stderr."""
    from kauli.models.speech.chunking import as_text

    segments = transcript.segments
    if not segments:
        note(f"{path}: the transcript is empty")
    for span in transcript.cut_off:
        note(f"{path}: the transcript from {span.start:.1f} to {span.end:.1f} s is truncated")
    return {
        "file": str(path), "text": as_text(segments), "model": route.model, "base": route.base,
        "adapter": route.adapter, "language": transcript.language, "seconds": round(transcript.clip.seconds, 3),
        "segments": [
            {key: value for key, value in asdict(segment).items() if words or key != "words"} for segment in segments
        ],
        "warnings": list(transcript.clip.warnings),
    }  # fmt: skip


def rendered(results: Sequence[dict[str, Any]], form: str) -> str:
    """Results in one of `FORMATS`; several files are one line each, or a JSON list. Subtitles need words."""
    from pydantic import TypeAdapter

    from kauli.models.speech.chunking import Segment
    from kauli.models.speech.subtitles import as_srt, as_vtt, cues

    if form in ("srt", "vtt"):
        shown = cues(TypeAdapter(list[Segment]).validate_python(results[0]["segments"]))
        return as_srt(shown) if form == "srt" else as_vtt(shown)
    if form == "text":
        return "\n".join(f"{one['file']}\t{one['text']}" if len(results) > 1 else one["text"] for one in results)
    several = [{**({"file": one["file"]} if len(results) > 1 else {}), **_openai(one, form)} for one in results]
    return json.dumps(several if len(several) > 1 else several[0], ensure_ascii=False, indent=2)


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
