"""Pictures and recordings of the same thing, for `describe`: which rows there are, and what each view of them shows."""

import hashlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch

from kauli.models.bases.find import find_base
from kauli.models.files import file_lock
from kauli.models.languages import display_name
from kauli.models.media.decode import content_key
from kauli.models.paths import kauli_home
from kauli.models.progress import bar
from kauli.models.requests import Media
from kauli.models.speech.audio_tower import AudioTower
from kauli.models.text.connector import PartSettings
from kauli.training.augment.audio import AudioAugmentation, augmented_wave, with_noise
from kauli.training.augment.image import view_seed
from kauli.training.data.dataset import Dataset
from kauli.training.features.pictures import load_tower, part_settings, store_features, with_media
from kauli.training.features.recordings import Recorded, recording_rows
from kauli.training.recipe import AudioInput, Recipe
from kauli.training.tasks.text import Examples

Row = dict[str, Any]
Shown = Literal["both", "image", "audio"]
PLACES = 64  # with an embedding of their own; 5 seconds at 80 ms each
ENCODED_AT_ONCE = 16


def fused_rows(dataset: Dataset, split: str, languages: Sequence[str], prompt: str | None, fastest: float) -> Recorded:
    """The rows with a picture, a recording (decoded to `samples`) and a text; `prompt` as in `picture_rows`.

    Rows get a `picture` and a `recording`, the SHA-256 of their bytes.
    """
    found = recording_rows(dataset, split, languages, fastest, pictured=True)
    for row in found.rows:
        row["picture"] = content_key(row["image"])
        row["recording"] = hashlib.sha256(row["samples"].tobytes()).hexdigest()
        row["own_prompt"] = row["prompt"]
        if prompt is not None:
            row["prompt"] = prompt.replace("{language}", display_name(row["language"])) or None
    return found


def fuse(
    recipe: Recipe, hearing: AudioInput, examples: Examples, device: str
) -> tuple[Examples, dict[str, PartSettings]]:
    """The examples with their media, several views of each row in training, and the parts of the connector."""
    fusion = recipe.fusion
    assert fusion is not None
    tower, ears = load_tower(fusion, device), load_audio_encoder(hearing, device)
    train = with_media(examples.train, tower, fusion.grid, recipe.picture_augment, fusion.views)
    clean = recording_features(examples.train, ears, hearing.stack)
    changed: list[Sequence[Media]] = [clean]
    for view in range(1, fusion.views):
        changed.append(_augmented(examples.train, ears, hearing.stack, recipe.speech_augment, view))
    rows = []
    for place, row in enumerate(train):
        view, number = divmod(place, len(examples.train))
        rows.append(show({**row, "media": (*row["media"], changed[view][number])}, _parts_of(row, view, hearing)))
    validation = with_media(examples.validation, tower, fusion.grid)
    heard = recording_features(examples.validation, ears, hearing.stack)
    validation = [{**row, "media": (*row["media"], one)} for row, one in zip(validation, heard, strict=True)]
    replay = with_media(examples.replay, tower, fusion.grid) if examples.replay else ()
    return replace(examples, train=rows, validation=validation, replay=replay), {
        "image": part_settings(fusion, tower),
        "audio": audio_settings(hearing, ears),
    }


def show(row: Mapping[str, Any], shown: Shown) -> Row:
    """The row with both its media, or with one of them."""
    media = row["media"]
    return {**row, "media": media if shown == "both" else tuple(one for one in media if one.kind == shown)}


def load_audio_encoder(hearing: AudioInput, device: str | None = None) -> AudioTower:
    """The encoder of recordings that a recipe names."""
    return AudioTower.load(find_base(hearing.encoder, task="transcribe", allow_noncommercial=True), device)


def audio_settings(hearing: AudioInput, ears: AudioTower) -> PartSettings:
    """What a recipe's hearing makes of an encoder."""
    return PartSettings(
        encoder=hearing.encoder, sha256=ears.sha256, width=ears.width(hearing.stack), places=PLACES,
        stack=hearing.stack, inner=hearing.inner,
    )  # fmt: skip


def recording_features(
    rows: Sequence[Mapping[str, Any]], ears: AudioTower, stack: int, noise_db: float | None = None, seed: int = 0
) -> list[Media]:
    """Each row's recording as the encoder hears it, with pink noise at a signal-to-noise ratio where one is given."""
    if noise_db is None:
        return _cached(rows, ears, stack, "clean", lambda samples, key: samples)

    def noisy(samples: Any, key: str) -> Any:
        return with_noise(torch.as_tensor(samples), noise_db, view_seed(key, seed)).numpy()

    return _cached(rows, ears, stack, f"noise {noise_db:g} {seed}", noisy)


def _augmented(
    rows: Sequence[Mapping[str, Any]],
    ears: AudioTower,
    stack: int,
    augmentations: Sequence[AudioAugmentation],
    view: int,
) -> list[Media]:
    spec = f"view {view} {[one.model_dump(mode='json') for one in augmentations]}"

    def changed(samples: Any, key: str) -> Any:
        return augmented_wave(torch.as_tensor(samples), augmentations, view_seed(key, view)).numpy()

    return _cached(rows, ears, stack, spec, changed)


def _cached(
    rows: Sequence[Mapping[str, Any]], ears: AudioTower, stack: int, spec: str, change: Callable[[Any, str], Any]
) -> list[Media]:
    """Features are computed once and kept under `<home>/cache/features`, by encoder, stack, change and recording."""
    name = hashlib.sha256(f"{ears.sha256} {stack} {spec}".encode()).hexdigest()[:24]
    folder = kauli_home() / "cache" / "features" / f"audio-{name}"
    recordings = {row["recording"]: row["samples"] for row in rows}

    def place(key: str) -> Path:
        return folder / f"{key}.npy"

    with file_lock(kauli_home() / "locks" / f"features-audio-{name}.lock"):
        folder.mkdir(parents=True, exist_ok=True)
        missing = [key for key in sorted(recordings) if not place(key).is_file()]
        with bar("Encoding recordings", len(missing)) as advance:
            for start in range(0, len(missing), ENCODED_AT_ONCE):
                part = missing[start : start + ENCODED_AT_ONCE]
                heard = ears.features([change(recordings[key], key) for key in part], stack)
                for key, found in zip(part, heard, strict=True):
                    store_features(place(key), found.numpy().astype(np.float16))
                advance(len(part))
    known = {key: Media("audio", np.load(place(key), allow_pickle=False)) for key in recordings}
    return [known[row["recording"]] for row in rows]


def _parts_of(row: Mapping[str, Any], view: int, hearing: AudioInput) -> Shown:
    """What a view shows: its first both, later ones by chance, the same at every call."""
    chance = view_seed(f"{row['id']} shown", view) / 2**63
    if view == 0 or chance >= hearing.unseen + hearing.unheard:
        return "both"
    return "audio" if chance < hearing.unseen else "image"
