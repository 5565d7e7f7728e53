"""Does the picture help the speech? An adapter that sees and hears, measured with both, with either, and with noise.

Metrics under noise have the prefix `noise_10db_` or `noise_0db_`: pink noise over the recording at that ratio of speech
to noise, drawn three times for each. The baselines are the same adapter shown the recording alone (`no_image`), the
picture alone (`no_audio`), and the recording with another's picture (`wrong_image`).
"""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from kauli.models.bases.find import Base, find_base
from kauli.models.errors import KauliError, UsageError
from kauli.models.languages import check_tag
from kauli.models.tasks import load_task
from kauli.models.text.connector import Connector, PartSettings
from kauli.models.vision.image_tower import ImageTower
from kauli.training.data.dataset import Dataset
from kauli.training.evaluation.error_rates import NORMALISATION, score_transcripts
from kauli.training.evaluation.pictures import NO_OTHER, bits_by_language, by_language, describe, wrong_pictures
from kauli.training.evaluation.results import EvalResult, Sample, Scores
from kauli.training.evaluation.run import whole_groups
from kauli.training.evaluation.scorers import (
    NOISE_LEVELS,
    Tally,
    chrf_signature,
    clean,
    noise_prefix,
    score_generations,
    sentence_chrf,
)
from kauli.training.evaluation.speech import FASTEST
from kauli.training.features.fusion import fused_rows, load_audio_encoder, recording_features, show
from kauli.training.features.pictures import with_media, without_media
from kauli.training.recipe import AudioInput

Row = Mapping[str, Any]
ADAPTER, BASE = "adapter", "base"
NO_IMAGE, NO_AUDIO, WRONG_IMAGE = "no_image", "no_audio", "wrong_image"
NOISE_SEEDS = 3


def evaluate_fusion(
    folder: Path,
    base: Base,
    dataset: Dataset,
    languages: Sequence[str],
    prompt: str | None,
    *,
    fastest: float = FASTEST,
    split: str = "test",
    seed: int = 0,
    scored: int | None = None,
) -> EvalResult:
    """Evaluate the adapter in `folder`, whose connector has a part for pictures and one for recordings.

    Args:
        folder: the adapter.
        base: the language model; shown neither, as it can read neither.
        dataset: with rows that have a picture, a recording and a text.
        languages: of the rows.
        prompt: the instruction of the recipe, None for each row's own.
        fastest: characters a second above which a row is dropped, as in training.
        split: of the data.
        seed: of the intervals.
        scored: cut the split to about so many rows of whole groups, for a quick look.

    Raises:
        UsageError: no such rows in the split. KauliError: an encoder here is not the one that the adapter was made for.
    """
    tags = tuple(check_tag(tag) for tag in languages)
    connector = Connector.load(folder)
    if connector is None or not {"image", "audio"} <= connector.settings.keys():
        raise KauliError(f"the adapter in {folder} has no connector for both pictures and recordings.")
    found = fused_rows(dataset, split, tags, prompt, fastest)
    rows, said = found.rows, found.said()
    if not rows:
        text = f"the data has no pictures with recordings in {', '.join(tags)} in its '{split}' split"
        raise UsageError(f"{text}; {said}." if said else f"{text}.")
    notes = [NORMALISATION, *([said] if said else [])]
    if scored is not None and len(rows) > scored:
        notes.append(f"measured on about {scored} of {len(rows)} rows")
        rows = whole_groups(rows, scored)
    tower, ears = _encoders(connector.settings, folder)
    sound = connector.settings["audio"].stack
    pictured = with_media(rows, tower, connector.settings["image"].grid)
    task = load_task("describe", base)
    task.add_adapter(ADAPTER, folder)
    scores: dict[str, dict[str, dict[str, Tally]]] = {
        name: {tag: {} for tag in tags} for name in (ADAPTER, BASE, NO_IMAGE, NO_AUDIO, WRONG_IMAGE)
    }
    samples: list[Sample] = []
    of_base: Sequence[str] = ()
    for level in (None, *NOISE_LEVELS):
        prefix = "" if level is None else noise_prefix(level)
        both: list[Row] = []
        for draw in range(1 if level is None else NOISE_SEEDS):
            heard = recording_features(rows, ears, sound, level, draw)
            both += [
                {**row, "id": f"{row['id']} {draw}", "media": (*row["media"], one)}
                for row, one in zip(pictured, heard, strict=True)
            ]
        asked: dict[str, tuple[Sequence[Row], str | None]] = {
            ADAPTER: (both, ADAPTER),
            NO_IMAGE: ([show(row, "audio") for row in both], ADAPTER),
        }
        if (wrong := wrong_pictures(both)) is not None:
            asked[WRONG_IMAGE] = (_beside(wrong, both), ADAPTER)
        elif level is None:
            notes.append(NO_OTHER)
        if level is None:
            asked |= {NO_AUDIO: ([show(row, "image") for row in both], ADAPTER), BASE: (without_media(both), None)}
        texts = describe(task, both, asked)
        of_base = texts.get(BASE, of_base)
        for name, (shown, adapter) in asked.items():
            for tag, values in bits_by_language(task, shown, adapter).items():
                scores[name][tag] |= {prefix + metric: value for metric, value in values.items()}
            for tag, values in _generated(both, texts[name]).items():
                scores[name][tag] |= {prefix + metric: value for metric, value in values.items()}
        if level is None or level == min(NOISE_LEVELS):
            samples += _samples(rows, {**texts, BASE: of_base}, "" if level is None else f", {level:g} dB")
    for name in (BASE, NO_AUDIO):  # noise is nothing to who hears nothing
        for values in scores[name].values():
            values |= {noise_prefix(level) + metric: one for level in NOISE_LEVELS for metric, one in values.items()}
    return EvalResult(
        adapter=folder.name,
        base=base.name,
        languages=tags,
        split=split,
        seed=seed,
        examples=len(rows),
        groups=len({row["group"] for row in rows}),
        generated=len(rows),
        scores=Scores(scores[ADAPTER]),
        base_scores=Scores(scores[BASE]),
        baselines={
            name: Scores(scores[name]) for name in (NO_IMAGE, NO_AUDIO, WRONG_IMAGE) if any(scores[name].values())
        },
        samples=tuple(samples),
        signatures={"chrf": chrf_signature()},
        data={"name": dataset.name, "sha256": dataset.sha256},
        notes=tuple(notes),
        task="describe",
    )


def _encoders(parts: Mapping[str, PartSettings], folder: Path) -> tuple[ImageTower, Any]:
    image, audio = parts["image"], parts["audio"]
    tower = ImageTower.load(find_base(image.encoder, task="align", allow_noncommercial=True))
    ears = load_audio_encoder(AudioInput(encoder=audio.encoder))
    for one, settings in ((tower, image), (ears, audio)):
        if one.sha256 != settings.sha256:
            raise KauliError(f"the encoder of {settings.encoder} is not the one that {folder.name} was trained with.")
    return tower, ears


def _beside(pictures: Sequence[Row], recordings: Sequence[Row]) -> list[Row]:
    """Rows with the pictures of some and the recordings of others."""
    return [
        {**row, "media": (*show(other, "image")["media"], *show(row, "audio")["media"])}
        for row, other in zip(recordings, pictures, strict=True)
    ]


def _generated(rows: Sequence[Row], texts: Sequence[str]) -> dict[str, dict[str, Tally]]:
    answers = {row["id"]: clean(text) for row, text in zip(rows, texts, strict=True)}
    out: dict[str, dict[str, Tally]] = {}
    for tag, prefix, mine in by_language(rows):
        predictions = [answers[row["id"]] for row in mine]
        references = [clean(row["text"]) for row in mine]
        written = score_generations(predictions, references, mine)
        found = {name: written[name] for name in ("chrf", "exact")} | score_transcripts(predictions, references, mine)
        out.setdefault(tag, {}).update({prefix + name: one for name, one in found.items()})
    return out


def _samples(rows: Sequence[Row], texts: Mapping[str, Sequence[str]], where: str) -> list[Sample]:
    """One for each row, with the first of its texts; `where` tells a row's samples apart."""
    return [
        Sample(
            id=row["id"],
            language=row["language"],
            source=(row["source"] or "unnamed") + where,
            prompt=f"{row['prompt'] or ''} (recording alone: {clean(texts[NO_IMAGE][place])})",
            reference=clean(row["text"]),
            base=clean(texts[BASE][place]),
            adapter=clean(texts[ADAPTER][place]),
            chrf=sentence_chrf(texts[ADAPTER][place], clean(row["text"])),
            image=row["image"],
        )
        for place, row in enumerate(rows)
    ]
