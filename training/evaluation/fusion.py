"""Does the image help the transcript? An adapter for images with audio, measured with both, with either, and in noise.

Metrics in noise have the prefix `noise_10db_` or `noise_0db_`: pink noise over the audio at that ratio of speech to
noise, drawn three times for each clip. The baselines are the same adapter with the audio alone (`no_image`), the image
alone (`no_audio`), and the audio with another row's image (`wrong_image`).
"""

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from kauli.models.errors import KauliError
from kauli.models.metrics import NOISE_LEVELS, noise_prefix
from kauli.models.text.connector import Connector
from kauli.training.evaluation.describe import NO_IMAGE, NO_OTHER, WRONG_IMAGE, request_for, wrong_images
from kauli.training.evaluation.request import ADAPTER, MAX_CHARS_PER_SECOND, EvalRequest
from kauli.training.evaluation.results import EvalResult
from kauli.training.evaluation.scorers import Row, clean
from kauli.training.evaluation.systems import BASE, Answering, System, Systems
from kauli.training.evaluation.transcribe import measured_of
from kauli.training.features.audio import AudioRows
from kauli.training.features.fusion import PLACES, audio_features, fused_rows, load_audio_encoder, show
from kauli.training.features.images import load_tower, with_media, without_media
from kauli.training.features.room import Room

NO_AUDIO = "no_audio"
NOISE_SEEDS = 3


def evaluate_fusion(request: EvalRequest) -> EvalResult:
    """Evaluate an adapter whose connector has a part for images and one for audio; its base is shown neither.

    Raises:
        UsageError: the split has no rows with an image, audio and a text.
        KauliError: an encoder here is not the one that the adapter was trained with.
    """
    found = rows_with_both(request)
    systems = Systems(request, ANSWERING, found.left_out)
    rows, systems.notes = measured_of(request, found)
    encoders = _Encoders(request.folder)
    described = with_media(rows, encoders.image, encoders.grid)
    task = request.task("describe")
    base: list[str] = []
    for level in (None, *NOISE_LEVELS):
        prefix = "" if level is None else noise_prefix(level)
        both: list[Row] = []
        for draw in range(1 if level is None else NOISE_SEEDS):
            audio = audio_features(rows, encoders.audio, encoders.stack, level, draw)
            both += [
                {**row, "id": f"{row['id']} {draw}", "media": (*row["media"], one)}
                for row, one in zip(described, audio, strict=True)
            ]
        texts = systems.compare(task, _systems(both, systems.notes, clean_audio=level is None), both, both, prefix)
        base = texts.get(BASE, base)
        if level is None or level == min(NOISE_LEVELS):
            prompts = [
                f"{row['prompt'] or ''} (audio alone: {clean(alone)})"
                for row, alone in zip(rows, texts[NO_IMAGE], strict=False)  # of several draws the first
            ]
            systems.show(rows, {**texts, BASE: base}, prompts, "" if level is None else f", {level:g} dB")
    for name in (BASE, NO_AUDIO):  # without audio, noise changes nothing
        same = {tag: dict(values) for tag, values in systems.tables[name].items()}
        for level in NOISE_LEVELS:
            systems.add(name, same, noise_prefix(level))
    return systems.result(rows, len(rows))


def rows_with_both(request: EvalRequest) -> AudioRows:
    """The rows with an image, audio and a text; UsageError, with the reasons, where there is none."""
    fastest = request.max_chars_per_second or MAX_CHARS_PER_SECOND
    found = fused_rows(request.dataset, request.split, request.tags, request.instruction, fastest)
    rows = Room(request.base, media=PLACES).fitting(found.rows, found.left_out)
    if not rows:
        raise request.nothing("images with audio", found.left_out)
    return replace(found, rows=rows)


class _Encoders:
    """The image and audio encoder that the adapter's connector names; KauliError where they are other ones here."""

    def __init__(self, folder: Path) -> None:
        connector = Connector.load(folder)
        if connector is None or not {"image", "audio"} <= connector.settings.keys():
            raise KauliError(f"the adapter in {folder} has no connector for both images and audio.")
        image, audio = connector.settings["image"], connector.settings["audio"]
        self.grid, self.stack = image.grid, audio.stack
        self.image, self.audio = load_tower(image.encoder), load_audio_encoder(audio.encoder)
        for one, settings in ((self.image, image), (self.audio, audio)):
            if one.sha256 != settings.sha256:
                raise KauliError(
                    f"the encoder of {settings.encoder} is not the one that {folder.name} was trained with."
                )


def _systems(both: Sequence[Row], notes: list[str], *, clean_audio: bool) -> list[System]:
    found = [System(ADAPTER, both, ADAPTER), System(NO_IMAGE, [show(row, "audio") for row in both], ADAPTER)]
    if (wrong := wrong_images(both)) is not None:
        found.append(System(WRONG_IMAGE, _beside(wrong, both), ADAPTER))
    elif clean_audio:
        notes.append(NO_OTHER)
    if clean_audio:
        found += [System(NO_AUDIO, [show(row, "image") for row in both], ADAPTER), System(BASE, without_media(both))]
    return found


def _beside(images: Sequence[Row], clips: Sequence[Row]) -> list[Row]:
    """Rows with the images of some and the audio of others."""
    return [
        {**row, "media": (*show(other, "image")["media"], *show(row, "audio")["media"])}
        for row, other in zip(clips, images, strict=True)
    ]


ANSWERING = Answering("describe", ("description", "transcript"), request_for)
