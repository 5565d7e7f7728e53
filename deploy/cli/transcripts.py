"""Transcripts as `kauli transcribe` prints them: text, subtitles, OpenAI's JSON."""

import json
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

from kauli.models.errors import UsageError, nearest
from kauli.models.progress import note

if TYPE_CHECKING:
    from kauli.models.speech.chunking import Segment
    from kauli.serving.routing import Route
    from kauli.serving.transcript import Transcript

FORMATS = ("text", "json", "verbose_json", "srt", "vtt", "eaf", "textgrid")
ONE_FILE = ("srt", "vtt", "eaf", "textgrid")
"""Those that hold the transcript of one file."""


def check_format(form: str, count: int) -> None:
    """Raise UsageError for a format that is not in `FORMATS`, or that holds the transcript of one file only."""
    if form not in FORMATS:
        raise UsageError(f"--format '{form}' is unknown: use {', '.join(FORMATS)}.{nearest(form, FORMATS)}")
    if form in ONE_FILE and count > 1:
        raise UsageError(f"--format {form} writes the transcript of one file, not of {count}: give one file.")


def as_result(path: Path, transcript: "Transcript", route: "Route", words: bool) -> dict[str, Any]:
    """A transcript with its segments, and their words if wanted; what is wrong with it is noted on stderr."""
    from kauli.models.speech.chunking import as_text

    segments = transcript.segments
    if not segments:
        note(f"{path}: the transcript is empty")
    for warning in transcript.warnings[len(transcript.clip.warnings) :]:  # those of the file are noted already
        note(f"{path}: {warning}")
    for one in segments:
        if one.certificate and one.certificate.colour == "red":
            note(f"{path}: from {one.start:.1f} to {one.end:.1f} s: {one.certificate.words}")
    return {
        "file": str(path), "text": as_text(segments), "model": route.model, "base": route.base,
        "adapter": route.adapter, "language": transcript.language, "seconds": round(transcript.clip.seconds, 3),
        "segments": [
            {key: value for key, value in asdict(segment).items() if words or key != "words"} for segment in segments
        ],
        "warnings": list(transcript.warnings),
    }  # fmt: skip


def rendered(results: Sequence[dict[str, Any]], form: str, into: Path | None = None) -> str:
    """Results in one of `FORMATS`; several files are one line each, or a JSON list. Subtitles need words.

    `into` is a file of ELAN or Praat that gets the transcript as one more tier.

    A file that failed has a result with its `error`: a JSON list holds it, a text leaves it out.
    """
    from kauli.models.speech.subtitles import as_srt, as_vtt, cues

    if form in ("srt", "vtt"):
        shown = cues(_segments(results[0]))
        return as_srt(shown) if form == "srt" else as_vtt(shown)
    if form in ("eaf", "textgrid"):
        return _annotated(results[0], form, into)
    if form == "text":
        whole = [one for one in results if "error" not in one]
        return "\n".join(f"{one['file']}\t{one['text']}" if len(results) > 1 else one["text"] for one in whole)
    several = [{**({"file": one["file"]} if len(results) > 1 else {}), **_openai(one, form)} for one in results]
    return json.dumps(several if len(several) > 1 else several[0], ensure_ascii=False, indent=2)


def _annotated(result: dict[str, Any], form: str, into: Path | None) -> str:
    from kauli.models.documents.tiers import elan_of, textgrid_of

    spans = [(one["start"], one["end"], one["text"].strip()) for one in result["segments"]]
    try:
        given, name = (into.read_bytes(), into.name) if into else (None, "")
    except OSError as error:
        raise UsageError(f"--into {into} can't be read: {error.strerror}") from None
    if form == "eaf":
        return elan_of(spans, Path(result["file"]).name, given, name).decode()
    return textgrid_of(spans, result["seconds"], given, name).decode()


def _segments(result: dict[str, Any]) -> "list[Segment]":
    from pydantic import TypeAdapter

    from kauli.models.speech.chunking import Segment

    return TypeAdapter(list[Segment]).validate_python(result["segments"])


def _openai(result: dict[str, Any], form: str) -> dict[str, Any]:
    """The fields of OpenAI's transcriptions."""
    from kauli.serving.transcript import verbose_json

    if "error" in result:
        return {"error": result["error"]}
    if form == "json":
        return {"text": result["text"]}
    segments = _segments(result)
    words = any(segment.words for segment in segments)
    return verbose_json(segments, result["language"], result["seconds"], result["warnings"], words=words)
