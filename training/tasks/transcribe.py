"""The task `transcribe` in training: audio clips, augmented anew in each step, and the losses of their transcripts."""

import random
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Annotated, Any, Literal

import numpy as np
import torch
from pydantic import Field

from kauli.models.adapters.card import EvaluationSettings, LanguageModelReference
from kauli.models.adapters.kinds.base import AdapterKind
from kauli.models.adapters.kinds.lora import Lora
from kauli.models.bases.find import Base
from kauli.models.errors import UsageError
from kauli.models.frozen import FrozenModel
from kauli.models.media.decode import RATE
from kauli.models.speech.language_model import MOST_BEAMS
from kauli.models.speech.task import TrainableRecogniser
from kauli.models.tasks import load_trainable
from kauli.training.augment.audio import AudioAugmentation, SpecAugment, Speed, augmented_mel, augmented_wave
from kauli.training.augment.table import augmentations
from kauli.training.data.dataset import Dataset, load_data
from kauli.training.evaluation.certify import Answered
from kauli.training.evaluation.language_model import choose_language_model
from kauli.training.evaluation.request import ADAPTER, EvalRequest
from kauli.training.evaluation.results import EvalResult
from kauli.training.evaluation.transcribe import (
    answered_transcripts,
    check_transcripts,
    choose_window,
    evaluate_transcribe,
    transcribed_rows,
)
from kauli.training.features.audio import audio_rows
from kauli.training.features.language_texts import language_texts
from kauli.training.features.left_out import LeftOut
from kauli.training.features.stored import StoredAudio
from kauli.training.loop.checkpoint import TrainState
from kauli.training.loop.session import Run
from kauli.training.recipe import Recipe, method_of
from kauli.training.tasks.base import Examples, Fitted, Learner, Row, TrainingTask
from kauli.training.tasks.rows import check_rows, made_up_rows, weighted


class LanguageModelSection(FrozenModel):
    """A language model of transcripts, made of the data's training texts."""

    order: int = Field(default=5, ge=2, le=8)
    """Tokens in the longest n-grams."""
    beams: int = Field(default=4, ge=1, le=MOST_BEAMS)
    """Answers that are kept at each step of the search."""
    texts: tuple[str, ...] = ()
    """Further data sets whose training texts are learned."""


class TranscribeSection(FrozenModel):
    """Which audio is learned, and how, for the task `transcribe`."""

    init_from_languages: dict[str, tuple[str, ...]] = Field(default={})
    """A language that the base has no token for -> languages that it knows, whose mean embedding initialises it."""
    max_chars_per_second: float = Field(default=25.0, gt=0)
    """Rows whose transcript is longer cannot be what the audio holds: they are left out with a note."""
    concat_prob: float = Field(default=0.5, ge=0, lt=1)
    """The probability that a clip is concatenated with the next of its step and language, and their transcripts too.
    An adapter that was trained on single sentences alone stops after the first sentence."""
    language_model: LanguageModelSection | None = None
    """The language model that transcripts are searched with, of each language; kept where it makes fewer errors on
    validation clips. None: no language model."""


class TranscribeRecipe(Recipe):
    """A recipe of the task `transcribe`."""

    task: Literal["transcribe"] = "transcribe"
    method: Annotated[AdapterKind, method_of("transcribe")] = Lora()
    augment: tuple[Annotated[AudioAugmentation, augmentations("audio")], ...] = ()
    """Augmentations of audio, applied in this order."""
    transcribe: TranscribeSection
    """The audio."""


class TranscribeLearner(Learner):
    """A recogniser that learns transcripts. A clip weighs its frames and its tokens, 50 and about 10 a second.

    Samples stay in the data set: they are read and decoded for the step that needs them.
    """

    def __init__(self, task: TrainableRecogniser, recipe: TranscribeRecipe, examples: Examples) -> None:
        super().__init__(task, recipe, examples)
        if task.input_kind == "wave" and any(isinstance(one, SpecAugment) for one in recipe.augment):
            raise UsageError(
                f"augment: spec_augment masks a spectrogram, and {task.base.name} takes the wave itself: remove it."
            )
        if task.input_kind == "wave" and recipe.transcribe.language_model is not None:
            raise UsageError(
                f"transcribe.language_model: {task.base.name} is a CTC model, which searches no beam: remove it."
            )
        budget = recipe.train
        rows = weighted(examples.train, budget.source_weights)
        task.add_languages(recipe.language, recipe.transcribe.init_from_languages, [row["text"] for row in rows])
        clips = task.encode(rows)
        left_out = LeftOut("train", examples.place)
        self.clips = [clip for clip in clips if self._weight(clip) <= budget.max_length]
        for clip in clips:
            if self._weight(clip) > budget.max_length and isinstance(clip.samples, StoredAudio):
                left_out.add(clip.samples.id, "longer than train.max_length", f"{self._weight(clip)} frames and tokens")
        self.lengths = [self._weight(clip) for clip in self.clips]
        self._slowest = min([1.0, *(min(one.factors) for one in recipe.augment if isinstance(one, Speed))])
        self.notes = tuple(left_out.notes(len(self.clips), "clips"))
        if not self.clips:
            raise UsageError(
                f"train.max_length {budget.max_length}: all {len(clips)} examples are longer (the shortest has "
                f"{min(map(self._weight, clips))} frames and tokens), so that none is left to train on. Set "
                "train.max_length, train.batch_tokens and train.micro_tokens higher."
            )

    def num_targets(self, step: Sequence[int]) -> int:
        return sum(self.task.num_targets(self._whole(places)) for places in self._concatenated(step))

    def batches(self, step: Sequence[int], rank: int, world: int) -> list[tuple[Any, float]]:
        parts = self._concatenated(step)
        lengths = [sum(self.lengths[at] for at in places) for places in parts]
        # The loop has seeded torch for this step and rank: a resumed run draws the same views.
        seeds = torch.randint(0, 2**62, (len(self.clips),)).tolist()
        return [
            (self._batch([parts[number] for number in numbers], seeds), weight)
            for numbers, weight in self.packs(range(len(parts)), lengths, rank, world)
        ]

    def _concatenated(self, step: Sequence[int]) -> list[tuple[int, ...]]:
        """The clips of a step, those together that are concatenated: alike on all ranks, each clip once."""
        chance = self.recipe.transcribe.concat_prob
        draw = random.Random(f"{self.recipe.train.seed} {list(step)}")
        parts: list[tuple[int, ...]] = []
        for place in step:
            if parts and draw.random() < chance and self._fit([*parts[-1], place]):
                parts[-1] += (place,)
            else:
                parts.append((place,))
        return parts

    def _fit(self, places: Sequence[int]) -> bool:
        """Whether the base can take these clips as one, at their slowest."""
        clips = [self.clips[place] for place in places]
        seconds = sum(len(clip.samples) for clip in clips) / RATE / self._slowest
        alike = len({clip.language for clip in clips}) == 1
        return alike and seconds <= self.task.seconds and len(self._whole(places).tokens) <= self.task.window

    def _whole(self, places: Sequence[int]) -> Any:
        """The tokens of clips as one, without their samples, which need not be read for it."""
        nothing = np.zeros(0, dtype=np.float32)
        return self.task.concatenated([replace(self.clips[place], samples=nothing) for place in places])

    def _batch(self, parts: Sequence[Sequence[int]], seeds: Sequence[int]) -> Any:
        """Each clip augmented by itself, then those concatenated that are one."""
        augment = self.recipe.augment
        clips, inputs = [], []
        for places in parts:
            one = []
            for place in places:
                samples = torch.as_tensor(np.asarray(self.clips[place].samples))
                one.append(replace(self.clips[place], samples=augmented_wave(samples, augment, seeds[place]).numpy()))
            clips.append(self.task.concatenated(one))
            inputs.append(augmented_mel(self.task.model_input(clips[-1].samples), augment, seeds[places[0]]))
        return self.task.collate(clips, inputs).to(self.device)

    def _weight(self, clip: Any) -> int:
        return int(clip.frames + len(clip.tokens))


class TranscribeTraining(TrainingTask):
    """Speech put into text."""

    name = "transcribe"
    recipe = TranscribeRecipe

    def rows(self, recipe: TranscribeRecipe, dataset: Dataset, base: Base) -> Examples:
        """Rows with audio and a text; what is left out is noted. Validation takes all of them."""
        limit = recipe.transcribe.max_chars_per_second
        train, other = (audio_rows(dataset, split, recipe.language, limit) for split in ("train", "validation"))
        notes = [*train.notes(), *other.notes()]
        notes += check_rows(recipe, (train.rows, other.rows), "audio with a text", notes)
        validation = sorted(other.rows, key=lambda row: str(row["id"]))
        left_out = train.left_out.count
        return Examples(train.rows, validation, (), dataset.sha256, tuple(notes), left_out, dataset.place)

    def dummy_rows(self) -> list[Row]:
        """A tone and a word."""
        return made_up_rows("audio")

    def learner(self, recipe: TranscribeRecipe, base: Base, examples: Examples, device: str) -> Learner:
        """A recogniser of the base's architecture."""
        return TranscribeLearner(load_trainable(self.name, base, device=device, dtype=torch.float32), recipe, examples)

    def fit(self, run: Run, folder: Path) -> Fitted | None:
        """Train; then choose what the base allows: the window that clips are padded to, and a language model."""
        fitted = super().fit(run, folder)
        if fitted is None or not fitted.served.pads:
            return fitted
        served, rows = fitted.served, fitted.examples.validation
        run.tell(choose_window(served, rows, folder))
        served.add_adapter(ADAPTER, folder)
        if served.window_of(ADAPTER):  # the training's own figure is that of clips at their own length
            bits, sizes = zip(*served.bits(rows, ADAPTER), strict=True)
            fitted.state.best_validation = sum(bits) / sum(sizes)
        served.remove_adapter(ADAPTER)
        assert isinstance(run.recipe, TranscribeRecipe)
        section = run.recipe.transcribe.language_model
        return fitted if section is None else self._with_language_models(fitted, run, folder, section)

    def _with_language_models(self, fitted: Fitted, run: Run, folder: Path, section: LanguageModelSection) -> Fitted:
        """With a language model of each language in the adapter's folder, where it helps."""
        found = dict[str, LanguageModelReference]()
        others = {tag: [load_data(name, [tag]) for name in section.texts] for tag in run.recipe.language}
        for tag in run.recipe.language:
            texts = language_texts(run.dataset, tag, others[tag])
            figures = choose_language_model(
                fitted.served, fitted.examples.validation, folder, texts, tag, section.order, section.beams, run.tell
            )
            found |= {tag: figures} if figures else {}
        return replace(fitted, found={**fitted.found, "language_models": found})

    def check_measurable(self, request: EvalRequest) -> None:
        """Audio with a transcript."""
        transcribed_rows(request)

    def evaluate(self, request: EvalRequest) -> EvalResult:
        """Character and word error rate."""
        return evaluate_transcribe(request)

    def answered(self, request: EvalRequest) -> list[Answered]:
        """Transcripts of clips."""
        return answered_transcripts(request)

    def fault(self, request: EvalRequest, state: TrainState, examples: Examples) -> str | None:
        """Also where the transcripts of validation loop, or are one text for all."""
        found = check_transcripts(request.served, examples.validation)
        return super().fault(request, state, examples) if found is None else f"on validation {found}"

    def card_fields(self, recipe: TranscribeRecipe, rows: Sequence[Row] = ()) -> dict[str, Any]:
        """The limit of speech, and the language to ask the base for where it does not know the recipe's."""
        section = recipe.transcribe
        known = {tag: names[0] for tag, names in section.init_from_languages.items() if names}
        return {
            "evaluation": EvaluationSettings(max_chars_per_second=section.max_chars_per_second, base_languages=known)
        }
