"""Transcripts measured: adapter beside base, on held-out audio, by character and word error rate.

A Whisper base is measured as it was trained, with the clip padded to its whole window; the adapter as it is served,
with the window that `choose_window` found. The baselines `whole_window` and `own_length` are the adapter with other
windows: they show what the shorter or longer input costs or gains. `greedy` is the adapter without its language model.
"""

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from kauli.models.media.decode import RATE
from kauli.models.requests import TranscriptionRequest
from kauli.models.speech.loops import collapsed
from kauli.models.tasks import TASKS
from kauli.training.evaluation.certify import Answered, answered
from kauli.training.evaluation.error_rates import NORMALISATION
from kauli.training.evaluation.request import ADAPTER, MAX_CHARS_PER_SECOND, EvalRequest
from kauli.training.evaluation.results import EvalResult, paired
from kauli.training.evaluation.rows import some_groups
from kauli.training.evaluation.scorers import Row, Tally, clean, score_bits
from kauli.training.evaluation.systems import BASE, Answering, System, Systems, generate
from kauli.training.features.audio import AudioRows, audio_rows

GREEDY = "greedy"
WINDOW_CLIPS = 48
"""Validation clips, about, by which an adapter's window is chosen."""


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
    if task.pads and request.scored is None:  # a quick look spares the other windows
        others = [("whole_window", True, task.seconds), ("own_length", False, 0.0)]
        compared += [
            System(name, rows, ADAPTER, {"full_window": full})
            for name, full, seconds in others if seconds != task.window_of(ADAPTER)
        ]  # fmt: skip
    texts = systems.compare(task, compared, rows, rows)
    if task.searches(ADAPTER):  # the bits of a transcript are the same
        greedy = System(GREEDY, rows, ADAPTER, {"language_model": False})
        systems.add_texts(GREEDY, rows, systems.answers(task, [greedy], rows)[GREEDY])
    if fault := collapsed([clean(text) for text in texts[ADAPTER]], [str(row["text"]) for row in rows]):
        systems.notes.append(f"NOT SOUND: {fault}")
    systems.show(rows, texts, ["(audio)"] * len(rows))
    return systems.result(rows, len(rows))


def answered_transcripts(request: EvalRequest) -> list[Answered]:
    """About `request.limit` clips transcribed and scored for a certificate."""
    rows, _ = some_groups(transcribed_rows(request).rows, request.limit, request.split)
    task = request.task("transcribe")

    def known(row: Row) -> dict[str, float]:
        return {"seconds": len(row["samples"]) / RATE}

    def ask(row: Row) -> TranscriptionRequest:
        return replace(request_for(row), logprobs=0)

    return answered(task, ADAPTER, TASKS["transcribe"].certified, rows, ask, lambda row: str(row["text"]), known)


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


def choose_window(served: Any, rows: Sequence[Row], folder: Path) -> str:
    """Write to an adapter's folder the window that its clips are padded to; returns a sentence about it.

    An adapter learns clips of their own length, and a young one has not learned them yet: its base knows long windows
    alone. It gets the shortest window on which the next longer one does not improve beyond chance (bits per byte, 95 %
    interval of the difference over groups), of none, an eighth, a quarter and the whole. The shorter the window, the
    less is computed.
    """
    rows, _ = some_groups(rows, WINDOW_CLIPS, "validation")
    found: dict[float, Tally] = {}
    chosen = 0.0
    for window in (0.0, served.seconds / 8, served.seconds / 4, served.seconds):
        served.set_window(folder, window)
        served.add_adapter(ADAPTER, folder)
        found[window] = score_bits(rows, served.bits(rows, ADAPTER))
        served.remove_adapter(ADAPTER)
        if window and not paired(found[window], found[chosen]).high < 0:
            break
        chosen = window
    served.set_window(folder, chosen)
    figures = ", ".join(f"{tally.value():.3f} {_window_name(window)}" for window, tally in found.items())
    return f"Clips are taken {_window_name(chosen)}: bits per byte of {len(rows)} validation clips {figures}"


def _window_name(seconds: float) -> str:
    return f"filled up to {seconds:g} s" if seconds else "at their own length"


def request_for(row: Row, full_window: bool | None = None, language_model: bool = True) -> TranscriptionRequest:
    """The request that a row makes: without temperature, with the adapter's language model where it has one."""
    return TranscriptionRequest(row["samples"], row["language"], full_window=full_window, language_model=language_model)


ANSWERING = Answering("transcribe", ("transcript",), request_for, length=None, together=False)
