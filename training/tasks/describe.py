"""The task `describe` in training: a connector and an adapter learn to put images, or images with audio, into words."""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Annotated, Any, Literal, Self

import torch
from pydantic import Field, model_validator
from torch import nn

from kauli.models.adapters.card import EncoderReference, EvaluationSettings, PromptReference
from kauli.models.adapters.kinds.base import AdapterKind
from kauli.models.adapters.kinds.lora import Lora
from kauli.models.bases.find import Base
from kauli.models.errors import UsageError
from kauli.models.frozen import FrozenModel
from kauli.models.requests import Media
from kauli.models.tasks import load_trainable
from kauli.models.text.connector import Connector, PartSettings
from kauli.models.text.describe import TrainableDescribe
from kauli.models.text.picture_memory import PictureMemory
from kauli.training.augment.audio import AudioAugmentation
from kauli.training.augment.base import Augmentation
from kauli.training.augment.image import ImageAugmentation, warn_of_risk
from kauli.training.augment.table import augmentations
from kauli.training.data.dataset import Dataset
from kauli.training.evaluation.certify import Answered
from kauli.training.evaluation.describe import answered_descriptions, described_rows, evaluate_describe
from kauli.training.evaluation.fusion import evaluate_fusion, rows_with_both
from kauli.training.evaluation.request import EvalRequest
from kauli.training.evaluation.results import EvalResult
from kauli.training.features.fusion import (
    PLACES,
    audio_features,
    audio_settings,
    augmented_audio,
    fused_rows,
    load_audio_encoder,
    show,
    shown_in,
)
from kauli.training.features.images import image_rows, instructed, load_tower, part_settings, with_media
from kauli.training.features.left_out import LeftOut
from kauli.training.features.neighbour_captions import captioned
from kauli.training.features.room import Room
from kauli.training.recipe import method_of
from kauli.training.tasks.base import Examples, Learner, Row, TrainingTask
from kauli.training.tasks.rows import check_rows, made_up_rows, sample
from kauli.training.tasks.spelling import spelling_warnings
from kauli.training.tasks.text import AnswerRecipe, TextLearner, replayed

CONNECTOR = "connector."  # what its parameters' names begin with, in `TrainableDescribe.trained`


class AudioInput(FrozenModel):
    """How audio comes before the language model, beside images."""

    encoder: str = "whisper-base"
    """The base of the task `transcribe` whose encoder is used."""
    stack: int = Field(default=4, ge=1, le=16)
    """The number of frames, of 20 ms each, that make one feature in the prompt."""
    hidden_dim: int = Field(default=1024, ge=1)
    """The width of the connector's hidden layer."""
    drop_image_prob: float = Field(default=0.5, ge=0, le=1)
    """The share of the views, after each row's first, that have audio alone."""
    drop_audio_prob: float = Field(default=0.1, ge=0, le=1)
    """The share of those views that have the image alone."""
    max_chars_per_second: float = Field(default=25.0, gt=0)
    """Rows whose text is longer cannot be what the audio holds: they are left out with a note."""

    @model_validator(mode="after")
    def _shares(self) -> Self:
        if self.drop_image_prob + self.drop_audio_prob > 1:
            raise ValueError("drop_image_prob and drop_audio_prob are shares of the same views: together at most 1")
        return self


class DescribeSection(FrozenModel):
    """How images come before the language model, for the task `describe`."""

    encoder: str = "kauli-towers"
    """The base of the task `align` whose image encoder is used."""
    grid: int = Field(default=2, ge=0, le=16)
    """An image is the mean of its feature map, and the map averaged to grid x grid."""
    hidden_dim: int = Field(default=1024, ge=1)
    """The width of the connector's hidden layer."""
    learning_rate: float = Field(default=1e-3, gt=0)
    """Of the connector; `train.learning_rate` is the adapter's."""
    connector_warmup: float = Field(default=0.25, ge=0, lt=1)
    """The share of the budget in which the connector is trained alone, before the adapter joins."""
    views: int = Field(default=1, ge=1, le=32)
    """Views of each image in an epoch: the image itself, and augmented ones."""
    examples: int = Field(default=0, ge=0, le=16)
    """Captions of the nearest training images, never of the same group, that each prompt shows; the adapter keeps the
    images' features and captions for it."""
    audio: AudioInput | None = None
    """With it, rows have an image and audio; null: images alone."""
    prompt: str | None = None
    """The instruction of all examples, with `{language}` for the language's English name; null: each row's own."""


class DescribeRecipe(AnswerRecipe):
    """A recipe of the task `describe`."""

    task: Literal["describe"] = "describe"
    method: Annotated[AdapterKind, method_of("describe")] = Lora()
    augment: tuple[Annotated[Augmentation, augmentations("image", "audio")], ...] = ()
    """Augmentations of images, and of audio where there is some, applied in this order."""
    describe: DescribeSection
    """The encoders and the connector."""

    @model_validator(mode="after")
    def _augmented_views(self) -> Self:
        for one in self.augment:
            if isinstance(one, AudioAugmentation) and self.describe.audio is None:
                raise ValueError(f"augment: '{one.kind}' changes audio: it needs describe.audio")
        if self.augment and self.describe.views == 1:
            raise ValueError("augment needs describe.views of 2 or more: the first view is the image as it is")
        return self

    @model_validator(mode="after")
    def _captions_of_images(self) -> Self:
        if self.describe.examples and self.describe.audio is not None:
            raise ValueError("describe.examples: captions of similar images are for rows without audio: leave one out")
        return self

    @property
    def image_augment(self) -> tuple[ImageAugmentation, ...]:
        """Those of `augment` that change images."""
        return tuple(one for one in self.augment if isinstance(one, ImageAugmentation))

    @property
    def audio_augment(self) -> tuple[AudioAugmentation, ...]:
        """Those of `augment` that change audio."""
        return tuple(one for one in self.augment if isinstance(one, AudioAugmentation))


class DescribeLearner(TextLearner):
    """A language model that learns to read an encoder's features, through a connector that learns with it."""

    def __init__(
        self, task: TrainableDescribe, recipe: DescribeRecipe, examples: Examples, parts: Mapping[str, PartSettings],
        pictures: PictureMemory | None = None,
    ) -> None:  # fmt: skip
        """`task` holds the bare base; the rows have their `media`, of the kinds that `parts` of the connector take.

        `pictures` are what the adapter keeps for the captions in its prompts.
        """
        super().__init__(task, recipe, examples)
        self.parts, self.pictures = parts, pictures

    def save(self, folder: Path) -> None:
        """With the pictures."""
        super().save(folder)
        if self.pictures is not None:
            self.pictures.save(folder)

    def attach(self, start: Path | None) -> None:
        self.task.add_connector(self.parts, [*self.examples.train, *self.examples.replay])
        super().attach(start)

    def groups(self, parameters: Mapping[str, nn.Parameter]) -> list[dict[str, Any]]:
        """The connector from the beginning, the adapter after `connector_warmup`."""
        connector = [value for name, value in parameters.items() if name.startswith(CONNECTOR)]
        adapter = [value for name, value in parameters.items() if not name.startswith(CONNECTOR)]
        section = self.recipe.describe
        return [
            {"params": adapter, "peak": self.recipe.train.learning_rate, "start": section.connector_warmup},
            {"params": connector, "peak": section.learning_rate, "start": 0.0},
        ]


class DescribeTraining(TrainingTask):
    """Images, or images with audio, put into words."""

    name = "describe"
    recipe = DescribeRecipe

    def rows(self, recipe: DescribeRecipe, dataset: Dataset, base: Base) -> Examples:
        """Rows with an image and a text, and with audio where the recipe takes it; English images for replay."""
        section, audio, notes = recipe.describe, recipe.describe.audio, list[str]()
        room = Room(base, recipe.train.max_length, media=1 + section.grid**2 + (PLACES if audio else 0))
        sides, counts = list[list[Row]](), list[int]()
        for split in ("train", "validation"):
            left_out = LeftOut(split, dataset.place)
            if audio is None:
                found = image_rows(dataset, split, recipe.language, left_out=left_out)
            else:
                heard = fused_rows(dataset, split, recipe.language, None, audio.max_chars_per_second)
                found, left_out = heard.rows, heard.left_out
            fits = {row["id"] for row in room.fitting(instructed(found, section.prompt), left_out)}
            sides.append([row for row in found if row["id"] in fits])
            notes += left_out.notes(len(sides[-1]))
            counts.append(left_out.count)
        what = "image with a text" if audio is None else "image with audio and a text"
        notes += check_rows(recipe, sides, what, notes)
        replay, told = replayed(recipe, lambda: image_rows(dataset, "train", ["en"]))
        notes += told
        if recipe.image_augment and (warning := warn_of_risk(sides[0], recipe.image_augment)):
            notes.append(warning)
        return Examples(sides[0], sample(sides[1]), replay, dataset.sha256, tuple(notes), counts[0], dataset.place)

    def dummy_rows(self) -> list[Row]:
        """A colour and a tone."""
        return made_up_rows("image", "audio")

    def learner(self, recipe: DescribeRecipe, base: Base, examples: Examples, device: str) -> Learner:
        """The encoders run once, before the language model is trained on their features."""
        section, parts = recipe.describe, dict[str, PartSettings]()
        task = load_trainable(self.name, base, device=device, dtype=torch.float32)
        tower = load_tower(section.encoder, device)
        parts["image"] = part_settings(section, tower)
        train = with_media(examples.train, tower, section.grid, recipe.image_augment, section.views)
        validation = with_media(examples.validation, tower, section.grid)
        replay = with_media(examples.replay, tower, section.grid) if examples.replay else []
        if section.audio is not None:
            encoder = load_audio_encoder(section.audio.encoder, device)
            parts["audio"] = audio_settings(section.audio, encoder)
            stack, changes = section.audio.stack, recipe.audio_augment
            clips: list[Media] = []
            for view in range(section.views):
                clips += augmented_audio(examples.train, encoder, stack, changes, view)
            train = [
                show(_with(row, one), shown_in(row, place // len(examples.train), section.audio))
                for place, (row, one) in enumerate(zip(train, clips, strict=True))
            ]
            audio = audio_features(examples.validation, encoder, stack)
            validation = [_with(row, one) for row, one in zip(validation, audio, strict=True)]
        train, validation, replay = (instructed(rows, section.prompt) for rows in (train, validation, replay))
        pictures = None
        if section.examples:
            pictures = PictureMemory.of(train[: len(examples.train)], tower.sha256, section.examples)
            train = captioned(train, pictures, task, recipe.train.max_length, own=False)
            validation = captioned(validation, pictures, task, recipe.train.max_length)
        chosen = replace(examples, train=train, validation=validation, replay=replay)
        return DescribeLearner(task, recipe, chosen, parts, pictures)

    def warnings(self, recipe: DescribeRecipe, base: Base, examples: Examples) -> list[str]:
        """Where the base cannot spell a language."""
        return spelling_warnings(base, examples.train)

    def check_measurable(self, request: EvalRequest) -> None:
        """Images, with audio where the recipe takes it."""
        if request.max_chars_per_second is None:
            described_rows(request)
        else:
            rows_with_both(request)

    def evaluate(self, request: EvalRequest) -> EvalResult:
        """New concepts and new images; with audio, the same in noise."""
        connector = Connector.load(request.folder)
        audio = connector is not None and "audio" in connector.settings
        return evaluate_fusion(request) if audio else evaluate_describe(request)

    def answered(self, request: EvalRequest) -> list[Answered]:
        """Descriptions of images."""
        connector = Connector.load(request.folder)
        if connector is not None and "audio" in connector.settings:
            raise UsageError("answers about audio get no certificate: the adapter takes audio")
        return answered_descriptions(request)

    def card_fields(self, recipe: DescribeRecipe, rows: Sequence[Row] = ()) -> dict[str, Any]:
        """Encoders by the medium, the instruction, the limit of speech."""
        section = recipe.describe
        encoders = {"image": section.encoder, **({"audio": section.audio.encoder} if section.audio else {})}
        limit = section.audio.max_chars_per_second if section.audio else None
        return {
            "encoders": {medium: EncoderReference(base=name) for medium, name in encoders.items()},
            "prompt": PromptReference(instruction=section.prompt),
            "evaluation": EvaluationSettings(max_chars_per_second=limit),
        }


def _with(row: Row, media: Media) -> Row:
    return {**row, "media": (*row["media"], media)}
