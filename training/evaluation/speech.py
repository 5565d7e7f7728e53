"""Transcripts measured: adapter beside base, on held-out recordings, by character and word error rate.

The base is heard as it was made to be, with its clip filled up to its whole window; the adapter hears clips at their
own length, as it was trained. The baseline `whole_window` is the adapter with the whole window, or `base_own_length`
the base alone without: they say what the shorter input costs or gains.
"""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from kauli.models.bases.find import Base
from kauli.models.errors import UsageError
from kauli.models.languages import check_tag
from kauli.models.progress import bar
from kauli.models.requests import TranscriptionRequest
from kauli.models.speech.loops import collapsed
from kauli.models.speech.whisper import WhisperTask
from kauli.models.tasks import load_task
from kauli.training.data.dataset import Dataset
from kauli.training.evaluation.error_rates import NORMALISATION, score_transcripts
from kauli.training.evaluation.results import EvalResult, Sample, Scores
from kauli.training.evaluation.run import whole_groups
from kauli.training.evaluation.scorers import SYNTHETIC, Tally, clean, score_bits, sentence_chrf
from kauli.training.features.recordings import recording_rows

Row = Mapping[str, Any]
ADAPTER = "adapter"
FASTEST = 25.0
"""Characters a second, where no recipe says another limit."""


def evaluate_speech(
    folder: Path | None,
    base: Base,
    dataset: Dataset,
    languages: Sequence[str],
    *,
    fastest: float = FASTEST,
    related: Mapping[str, Sequence[str]] | None = None,
    split: str = "test",
    seed: int = 0,
    scored: int | None = None,
) -> EvalResult:
    """Evaluate the adapter in `folder` (None: the base alone) on the recordings of a split.

    Args:
        folder: an adapter.
        base: the speech recogniser.
        dataset: with recordings.
        languages: of the rows.
        fastest: characters a second above which a row is dropped, as in training.
        related: a language that the base does not know -> its relatives, the first of which the base is asked for.
        split: of the data.
        seed: of the intervals.
        scored: cut the split to about so many rows of whole groups, for a quick look.

    Raises:
        UsageError: no recordings in the split, or a language that the base does not know and no relatives of it.
    """
    tags = tuple(check_tag(tag) for tag in languages)
    found = recording_rows(dataset, split, tags, fastest)
    rows: list[Row] = list(found.rows)
    said = found.said()
    if not rows:
        text = f"the data has no transcribed recordings in {', '.join(tags)} in its '{split}' split"
        raise UsageError(f"{text}; {said}." if said else f"{text}.")
    notes = [NORMALISATION, *([said] if said else [])]
    if scored is not None and len(rows) > scored:
        every, rows = len(rows), whole_groups(rows, scored)
        notes.append(f"measured on {len(rows)} of the split's {every} rows")
    task = load_task("transcribe", base)
    asked: dict[str, tuple[str | None, bool | None]] = {"base": (None, None)}
    windowed = isinstance(task, WhisperTask)  # others hear any length as it is
    if folder is not None:
        task.add_adapter(ADAPTER, folder)
        asked = {ADAPTER: (ADAPTER, None), **asked, **({"whole_window": (ADAPTER, True)} if windowed else {})}
    elif windowed:
        asked["base_own_length"] = (None, False)
    instead = _substitutes(task, tags, related or {})
    notes += [f"{base.name} does not know {tag} and was asked for {other}" for tag, other in instead.items()]
    for_base: list[Row] = [{**row, "language": instead.get(row["language"], row["language"])} for row in rows]
    texts, systems = {}, {}
    for name, (adapter, full) in asked.items():
        given = for_base if adapter is None else rows
        texts[name] = transcribe(task, given, adapter, full)
        systems[name] = _scores(rows, texts[name], task.bits(given, adapter, full_window=full))
    main = ADAPTER if folder is not None else "base"
    if fault := collapsed(texts[main], [str(row["text"]) for row in rows]):
        notes.append(f"NOT SOUND: {fault}")
    return EvalResult(
        adapter=None if folder is None else folder.name,
        base=base.name,
        languages=tags,
        split=split,
        seed=seed,
        examples=len(rows),
        groups=len({row["group"] for row in rows}),
        generated=len(rows),
        scores=systems[main],
        base_scores=systems["base"] if folder is not None else None,
        baselines={name: scores for name, scores in systems.items() if name not in (ADAPTER, "base")},
        samples=_samples(rows, texts["base"], texts.get(ADAPTER)),
        signatures={},
        data={"name": dataset.name, "sha256": dataset.sha256},
        notes=tuple(notes),
        task="transcribe",
    )


def transcribe(
    task: Any, rows: Sequence[Row], adapter: str | None = None, full_window: bool | None = None
) -> list[str]:
    """The greedy transcript of each row's `samples`."""
    requests = [TranscriptionRequest(row["samples"], row["language"], full_window=full_window) for row in rows]
    texts = [""] * len(requests)
    with bar("Transcribing", len(requests)) as advance:
        for chunks in task.generate(requests, [adapter] * len(requests)):
            for chunk in chunks:
                texts[chunk.row] += chunk.text
                if chunk.finish:
                    advance()
    return [clean(text) for text in texts]


def check_transcripts(folder: Path, base: Base, rows: Sequence[Row]) -> str | None:
    """What is wrong with an adapter's transcripts of these rows (loops, one text for all); None where nothing is."""
    task = load_task("transcribe", base)
    task.add_adapter(ADAPTER, folder)
    return collapsed(transcribe(task, rows, ADAPTER), [str(row["text"]) for row in rows])


def _substitutes(task: Any, tags: Sequence[str], related: Mapping[str, Sequence[str]]) -> dict[str, str]:
    """The language to ask the base for in place of one that it has no word for."""
    known = task.speaks()
    unknown = [tag for tag in tags if tag not in known and tag.split("-")[0] not in known]
    return {tag: related[tag][0] for tag in unknown if related.get(tag)}


def _scores(rows: Sequence[Row], texts: Sequence[str], bits: Sequence[tuple[float, int]]) -> Scores:
    by_language: dict[str, dict[str, Tally]] = {}
    for tag, synthetic in sorted({(row["language"], bool(row["synthetic"])) for row in rows}):
        places = [
            place for place, row in enumerate(rows) if row["language"] == tag and bool(row["synthetic"]) == synthetic
        ]
        mine = [rows[place] for place in places]
        found = score_transcripts([texts[place] for place in places], [row["text"] for row in mine], mine)
        found["bits_per_byte"] = score_bits(mine, [bits[place] for place in places])
        prefix = SYNTHETIC if synthetic else ""
        by_language.setdefault(tag, {}).update({prefix + name: one for name, one in found.items()})
    return Scores(by_language)


def _samples(rows: Sequence[Row], base: Sequence[str], adapter: Sequence[str] | None) -> tuple[Sample, ...]:
    samples = []
    for place, row in enumerate(rows):
        answer = base[place] if adapter is None else adapter[place]
        samples.append(
            Sample(
                id=row["id"],
                language=row["language"],
                source=row["source"] or "unnamed",
                prompt="(recording)",
                reference=clean(row["text"]),
                base=base[place],
                adapter=None if adapter is None else answer,
                chrf=sentence_chrf(answer, clean(row["text"])),
            )
        )
    return tuple(samples)
