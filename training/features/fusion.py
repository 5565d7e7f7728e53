"""Images with audio of the same thing, for `describe`: which rows there are, and what each view of them shows."""

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from functools import lru_cache
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
import torch
from torch import Tensor

from kauli.models.bases.find import find_base
from kauli.models.engine.precision import place
from kauli.models.requests import Media
from kauli.models.speech.audio_tower import AudioTower
from kauli.models.text.connector import PartSettings
from kauli.training.augment.audio import AudioAugmentation, augmented_wave, with_noise
from kauli.training.augment.base import view_seed
from kauli.training.data.dataset import Dataset
from kauli.training.features.audio import AudioRows, audio_rows
from kauli.training.features.cache import cached_features
from kauli.training.features.images import instructed

if TYPE_CHECKING:
    from kauli.training.tasks.describe import AudioInput

Row = dict[str, Any]
Shown = Literal["both", "image", "audio"]
PLACES = 64  # with an embedding of their own; 5 seconds at 80 ms each
ENCODED_AT_ONCE = 16


def fused_rows(dataset: Dataset, split: str, languages: Sequence[str], prompt: str | None, fastest: float) -> AudioRows:
    """The rows with an image, audio and a text; `prompt` as in `instructed`, the rest as in `audio_rows`."""
    found = audio_rows(dataset, split, languages, fastest, with_image=True)
    return replace(found, rows=instructed(found.rows, prompt))


def show(row: Mapping[str, Any], shown: Shown) -> Row:
    """The row with both its media, or with one of them."""
    media = row["media"]
    return {**row, "media": media if shown == "both" else tuple(one for one in media if one.kind == shown)}


def load_audio_encoder(encoder: str, device: str | None = None) -> AudioTower:
    """The audio encoder of a base that a recipe or a connector names; its weights are read once a process."""
    return _tower(find_base(encoder, task="transcribe", allow_noncommercial=True), str(place(device)[0]))


_tower = lru_cache(maxsize=2)(AudioTower.load)


def audio_settings(section: "AudioInput", encoder: AudioTower) -> PartSettings:
    """The part of the connector for the audio of an encoder."""
    return PartSettings(
        encoder=section.encoder, sha256=encoder.sha256, width=encoder.width(section.stack), places=PLACES,
        stack=section.stack, inner=section.hidden_dim,
    )  # fmt: skip


def audio_features(
    rows: Sequence[Mapping[str, Any]], encoder: AudioTower, stack: int, noise_db: float | None = None, seed: int = 0
) -> list[Media]:
    """The encoder's features of each row's audio, with pink noise at a signal-to-noise ratio where one is given."""
    if noise_db is None:
        return _features(rows, encoder, stack, "clean", lambda one, key: one)
    spec = f"noise {noise_db:g} {seed}"
    return _features(rows, encoder, stack, spec, lambda one, key: with_noise(one, noise_db, view_seed(key, seed)))


def augmented_audio(
    rows: Sequence[Mapping[str, Any]], encoder: AudioTower, stack: int, changes: Sequence[AudioAugmentation], view: int
) -> list[Media]:
    """The same of view number `view` of each row's audio; view 0 is the audio as it is."""
    if view == 0:
        return audio_features(rows, encoder, stack)
    spec = f"view {view} {json.dumps([one.model_dump(mode='json') for one in changes], sort_keys=True)}"
    return _features(rows, encoder, stack, spec, lambda one, key: augmented_wave(one, changes, view_seed(key, view)))


def _features(
    rows: Sequence[Mapping[str, Any]],
    encoder: AudioTower,
    stack: int,
    spec: str,
    change: Callable[[Tensor, str], Tensor],
) -> list[Media]:
    samples = {row["audio_key"]: row["samples"] for row in rows}
    keys = {f"{audio_key} {spec}": audio_key for audio_key in sorted(samples)}

    def encode(part: list[str]) -> list[Tensor]:
        clips = [change(torch.as_tensor(np.asarray(samples[keys[key]])), keys[key]).numpy() for key in part]
        return [one.half() for one in encoder.features(clips, stack)]

    found = cached_features("audio", f"{encoder.sha256} {stack}", list(keys), encode, ENCODED_AT_ONCE)
    known = {keys[key]: Media("audio", features.numpy()) for key, features in found.items()}
    return [known[row["audio_key"]] for row in rows]


def shown_in(row: Mapping[str, Any], view: int, section: "AudioInput") -> Shown:
    """The media of a view: both in the first, later by chance, the same at every call."""
    chance = view_seed(f"{row['id']} shown", view) / 2**63
    if view == 0 or chance >= section.drop_image_prob + section.drop_audio_prob:
        return "both"
    return "audio" if chance < section.drop_image_prob else "image"
