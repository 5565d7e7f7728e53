"""Transcripts measured: adapter beside base, on held-out audio, by character and word error rate.

A Whisper base is measured as it was trained, with the clip padded to its whole window; the adapter on clips of their
own length, as it was trained. The baseline `whole_window` is the adapter with the padded clip: it shows what the
shorter input costs or gains.
"""

from collections.abc import Sequence
from typing import Any

from kauli.models.requests import TranscriptionRequest
from kauli.models.speech.loops import collapsed
from kauli.training.evaluation.error_rates import NORMALISATION
from kauli.training.evaluation.request import ADAPTER, MAX_CHARS_PER_SECOND, EvalRequest
from kauli.training.evaluation.results import EvalResult
from kauli.training.evaluation.rows import some_groups
from kauli.training.evaluation.scorers import Row, clean
from kauli.training.evaluation.systems import BASE, Answering, System, Systems, generate
from kauli.training.features.audio import AudioRows, audio_rows


def evaluate_transcribe(request: EvalRequest) -> EvalResult:
    """Evaluate an adapter beside its base on the audio of a split.

    Raises:
        UsageError: no audio in the split, or a language that the base does not know and no other to ask it for.
        KauliError: a damaged adapter, or one of another base.
    """
    found = transcribed_rows(request)
    systems = Systems(request, ANSWERING, found.left_out)
    rows, systems.notes = measured_of(request, found)
    task = request.task("transcribe")
    known = task.languages()
    unknown = [tag for tag in request.tags if tag not in known and tag.split("-")[0] not in known]
    instead = {tag: request.base_languages[tag] for tag in unknown if tag in request.base_languages}
    systems.notes += [f"{request.base.name} does not know {tag} and was asked for {instead[tag]}" for tag in instead]
    for_base: list[Row] = [{**row, "language": instead.get(row["language"], row["language"])} for row in rows]
    compared = [System(ADAPTER, rows, ADAPTER), System(BASE, for_base)]
    if task.pads:
        compared.append(System("whole_window", rows, ADAPTER, {"full_window": True}))
    texts = systems.compare(task, compared, rows, rows)
    if fault := collapsed([clean(text) for text in texts[ADAPTER]], [str(row["text"]) for row in rows]):
        systems.notes.append(f"NOT SOUND: {fault}")
    systems.show(rows, texts, ["(audio)"] * len(rows))
    return systems.result(rows, len(rows))


def transcribed_rows(request: EvalRequest) -> AudioRows:
    """The rows with audio and a transcript; UsageError, with the reasons, where there is none."""
    fastest = request.max_chars_per_second or MAX_CHARS_PER_SECOND
    found = audio_rows(request.dataset, request.split, request.tags, fastest)
    if not found.rows:
        raise request.nothing("transcribed audio", found.left_out)
    return found


def measured_of(request: EvalRequest, found: AudioRows) -> tuple[list[Row], list[str]]:
    """Those of the rows with audio that are measured, and the notes on them."""
    rows, cut = some_groups(found.rows, request.scored, request.split)
    return rows, [NORMALISATION, *cut]


def transcribe(
    served: Any, rows: Sequence[Row], adapter: str | None = None, full_window: bool | None = None
) -> list[str]:
    """The greedy transcript of each row's `samples`."""
    texts = generate(served, [request_for(row, full_window) for row in rows], [adapter] * len(rows))
    return [clean(text) for text in texts]


def check_transcripts(served: Any, rows: Sequence[Row], adapter: str = ADAPTER) -> str | None:
    """What is wrong with a loaded adapter's transcripts of these rows (loops, one text for all); None: nothing."""
    return collapsed(transcribe(served, rows, adapter), [str(row["text"]) for row in rows])


def request_for(row: Row, full_window: bool | None = None) -> TranscriptionRequest:
    """The greedy request that a row makes."""
    return TranscriptionRequest(row["samples"], row["language"], full_window=full_window)


ANSWERING = Answering("transcribe", ("transcript",), request_for, length=None, together=False)
