"""The task `speak` in training: recorded clips teach a voice how a language sounds."""

import random
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any, Literal

import regex
import torch
from pydantic import Field
from torch import Tensor

from kauli.models.adapters.card import EvaluationSettings, VoiceReference
from kauli.models.adapters.kinds.base import AdapterKind
from kauli.models.adapters.kinds.lora import Lora
from kauli.models.bases.find import Base
from kauli.models.errors import UsageError
from kauli.models.frozen import FrozenModel
from kauli.models.speech.espeak import espeak_voice
from kauli.models.speech.sounds import Symbols
from kauli.models.speech.vits_training import TARGETS, TrainableVoice, VoiceExample
from kauli.models.tasks import load_trainable
from kauli.training.data.dataset import Dataset
from kauli.training.data.media_check import QUIET, media_facts
from kauli.training.evaluation.judges import Judge
from kauli.training.evaluation.request import ADAPTER, EvalRequest
from kauli.training.evaluation.results import EvalResult
from kauli.training.evaluation.speak import (
    CHOOSING,
    choose_noise,
    evaluate_speak,
    judged_rows,
    judges_of,
    spoken_rows,
    worse_speech,
)
from kauli.training.features.audio import audio_rows
from kauli.training.features.left_out import LeftOut
from kauli.training.features.voices import VIEWS, Listener, voice_frames
from kauli.training.loop.checkpoint import TrainState
from kauli.training.loop.session import Run
from kauli.training.posterior import posterior_of
from kauli.training.recipe import Recipe, method_of
from kauli.training.tasks.base import Examples, Fitted, Learner, Row, TrainingTask
from kauli.training.tasks.rows import check_rows, made_up_rows, weighted

_WRITTEN = regex.compile(r"[\p{N}\p{Sc}%]")  # which a reader may say in ways that eSpeak does not


class SpeakSection(FrozenModel):
    """Which clips are learned, and how, for the task `speak`."""

    max_chars_per_second: float = Field(default=25.0, gt=0)
    """Rows whose text is longer cannot be what the audio holds: they are left out with a note."""
    concat_prob: float = Field(default=0.5, ge=0, lt=1)
    """The probability that a clip is concatenated with the next of its step and language, and their texts too: a voice
    that learned single words alone does not speak sentences."""
    judges: tuple[str, ...] = Field(default=("whisper-base",), min_length=1)
    """What listens to the speech: bases for `transcribe`, or adapters of that task as NAME@VERSION. The first gives the
    figures of the evaluation; all of them must understand an adapter better than its base before it is promoted."""
    judge_languages: dict[str, str] = Field(default={})
    """A language that a judge does not know -> a related one in which it is asked to write."""
    consent: str | None = None
    """By whose leave the recordings are used; needed for recordings whose rows name no licence."""


class SpeakRecipe(Recipe):
    """A recipe of the task `speak`."""

    task: Literal["speak"] = "speak"
    method: Annotated[AdapterKind, method_of("speak")] = Lora(rank=16, alpha=16, targets=TARGETS)
    speak: SpeakSection
    """The clips."""


class SpeakLearner(Learner):
    """A voice that learns clips. A clip weighs its latent frames, some 86 a second.

    What the posterior encoder hears in the clips is computed before the first step and cached.
    """

    def __init__(self, task: TrainableVoice, recipe: SpeakRecipe, examples: Examples, listener: Listener) -> None:
        super().__init__(task, recipe, examples)
        self.voice = task
        budget = recipe.train
        rows, other = weighted(examples.train, budget.source_weights), examples.validation
        task.learn_sounds([(row["text"], row["language"]) for row in rows], recipe.language)
        task.synthetic = sum(bool(row["synthetic"]) for row in rows) / max(1, len(rows))
        task.consent = recipe.speak.consent
        frames = voice_frames(listener, task.base.sha256, [*rows, *other])
        left_out = LeftOut("train", examples.place)
        self.clips: list[list[VoiceExample]] = []
        """The draws of each clip."""
        for row in rows:
            drawn = self._examples(row, frames)
            if not task.fits(drawn[0]):
                left_out.add(row["id"], "with fewer frames than symbols")
            elif len(drawn[0].frames) > budget.max_length:
                left_out.add(row["id"], "longer than train.max_length", f"{len(drawn[0].frames)} frames")
            else:
                self.clips.append(drawn)
        if not self.clips:
            raise UsageError(
                f"train.max_length {budget.max_length}: none of {len(rows)} clips is left to train on; a second has "
                "some 86 frames. Set train.max_length, train.batch_tokens and train.micro_tokens higher."
            )
        self.lengths = [len(one[0].frames) for one in self.clips]
        self.notes = tuple(left_out.notes(len(self.clips), "clips"))
        pairs = [tuple(self._examples(row, frames, bare)[0] for bare in (True, False)) for row in other]
        pairs = [pair for pair in pairs if all(map(task.fits, pair))]
        self._validation = {bare: [pair[at] for pair in pairs] for at, bare in enumerate((True, False))}
        if not pairs:
            raise UsageError(f"data '{recipe.data}': no clip of its 'validation' split has as many frames as symbols.")

    def _examples(self, row: Row, frames: dict[str, Tensor], bare: bool = False) -> list[VoiceExample]:
        symbols = self.voice.symbols_of(row["text"], row["language"], bare)
        return [VoiceExample(symbols, one, row["language"]) for one in frames[row["audio_key"]]]

    def num_targets(self, step: Sequence[int]) -> int:
        return sum(self.clips[place][0].frames.numel() for place in step)

    def batches(self, step: Sequence[int], rank: int, world: int) -> list[tuple[Any, float]]:
        parts = self._concatenated(step)
        lengths = [sum(self.lengths[place] for place in places) for places in parts]
        views = torch.randint(0, VIEWS, (len(self.clips),)).tolist()  # the loop has seeded torch
        return [
            (self.voice.collate([self._whole(parts[at], views) for at in numbers]).to(self.device), weight)
            for numbers, weight in self.packs(range(len(parts)), lengths, rank, world)
        ]

    def _concatenated(self, step: Sequence[int]) -> list[tuple[int, ...]]:
        """The clips of a step, those together that are concatenated: alike on all ranks, each clip once."""
        draw = random.Random(f"{self.recipe.train.seed} {list(step)}")
        parts: list[tuple[int, ...]] = []
        for place in step:
            alike = bool(parts) and self.clips[parts[-1][0]][0].language == self.clips[place][0].language
            total = sum(self.lengths[one] for one in (*parts[-1], place)) if parts else 0
            joined = draw.random() < self.recipe.speak.concat_prob
            if alike and joined and total <= self.recipe.train.max_length:
                parts[-1] += (place,)
            else:
                parts.append((place,))
        return parts

    def _whole(self, places: Sequence[int], views: Sequence[int]) -> VoiceExample:
        clips = [self.clips[place][views[place]] for place in places]
        symbols, frames = " ".join(one.symbols for one in clips), torch.cat([one.frames for one in clips])
        return VoiceExample(symbols, frames, clips[0].language)

    def validate(self, rank: int, world: int, bare: bool) -> Tensor:
        """Nats and numbers of the validation clips' frames; of the bare base with the nearest sounds that it knows."""
        sums = torch.zeros(2, dtype=torch.float64)
        for cost in self.voice.current_costs(self._validation[bare][rank::world]):
            sums += torch.tensor(cost, dtype=torch.float64)
        return sums


class SpeakTraining(TrainingTask):
    """A language spoken by the voice of a base."""

    name = "speak"
    proved = False
    recipe = SpeakRecipe

    def rows(self, recipe: SpeakRecipe, dataset: Dataset, base: Base) -> Examples:
        """Rows with audio and a text without digits."""
        for tag in recipe.language:
            espeak_voice(tag)
        if not Symbols.read(base.folder, base.name).phonemes:
            raise UsageError(f"'{base.name}' reads letters: adapters are for voices of Piper, such as piper-vits.")
        limit, notes, sides, count, told = recipe.speak.max_chars_per_second, list[str](), [], 0, 0
        for split in ("train", "validation"):
            found = audio_rows(dataset, split, recipe.language, limit)
            facts = media_facts(dataset, "audio", split, recipe.language)
            peaks = {row["id"]: facts[row["id"]].peak or 0.0 for row in found.rows}
            left_out = LeftOut(split, dataset.place)
            kept = []
            for row in found.rows:
                if peaks[row["id"]] < QUIET:
                    left_out.add(row["id"], "in which hardly anyone speaks", f"its peak is {peaks[row['id']]:.3f}")
                elif _WRITTEN.search(row["text"]):
                    left_out.add(row["id"], "with digits or currency, which a reader may say in other words")
                else:
                    kept.append(row)
                    told += bool(split == "train" and (facts[row["id"]].warning or ""))
            notes += [*found.notes(), *left_out.notes(len(kept), "clips")]
            count += (left_out.count + found.left_out.count) * (split == "train")
            sides.append(kept)
        if told:
            notes.append(f"{told} clips are clipped or cut off: `kauli data check` names them; they teach such a sound")
        notes += check_rows(recipe, sides, "audio with a text", notes)
        unnamed = sum(not row["licence"] and not row["synthetic"] for row in sides[0])
        if unnamed and not (recipe.speak.consent or "").strip():
            raise UsageError(
                f"{unnamed} recordings of '{recipe.data}' name no licence: say by whose leave they are used, such as "
                "--set 'speak.consent=the reader agreed in writing, 3 May 2026', or give the rows a licence."
            )
        validation = sorted(sides[1], key=lambda row: str(row["id"]))
        return Examples(sides[0], validation, (), dataset.sha256, tuple(notes), count, dataset.place)

    def dummy_rows(self) -> list[Row]:
        """A tone and a word."""
        return made_up_rows("audio")

    def learner(self, recipe: SpeakRecipe, base: Base, examples: Examples, device: str) -> Learner:
        """A voice, and what its posterior encoder hears in the clips."""
        folder = posterior_of(base)
        task = load_trainable(self.name, base, device=device, dtype=torch.float32)
        return SpeakLearner(task, recipe, examples, Listener(task.model, folder))

    def fit(self, run: Run, folder: Path) -> Fitted | None:
        """Train; then choose the noise of its speech."""
        fitted = super().fit(run, folder)
        if fitted is None:
            return None
        assert isinstance(run.recipe, SpeakRecipe)
        section = run.recipe.speak
        judge = Judge.load(section.judges[0], section.judge_languages, run.registry)
        rows = judged_rows(run.dataset, run.recipe.language, fitted.examples.validation, CHOOSING)
        run.tell(choose_noise(fitted.served, folder, rows, judge))
        return fitted

    def check_measurable(self, request: EvalRequest) -> None:
        """Audio with a text, in languages that the judge knows."""
        spoken_rows(request)
        for judge in judges_of(request):
            judge.check(request.tags)

    def evaluate(self, request: EvalRequest) -> EvalResult:
        """How well a recogniser understands the speech, and how clean it sounds."""
        return evaluate_speak(request)

    def fault(self, request: EvalRequest, state: TrainState, examples: Examples) -> str | None:
        """Also where a judge understands the speech no better than the base's, or it sounds less clean."""
        found = super().fault(request, state, examples)
        rows = judged_rows(request.dataset, request.tags, examples.validation)
        return found or worse_speech(request.served, ADAPTER, rows, judges_of(request))

    def card_fields(self, recipe: SpeakRecipe, rows: Sequence[Row] = ()) -> dict[str, Any]:
        """The limit of speech, what listens, and by whose leave the recordings are used."""
        licences = sorted({row["licence"] for row in rows if row["licence"]})
        consent = recipe.speak.consent or f"as the licences of the recordings say: {', '.join(licences) or 'none'}"
        synthetic = sum(bool(row["synthetic"]) for row in rows) / max(1, len(rows))
        return {
            "voice": VoiceReference(consent=consent, synthetic=synthetic) if rows else None,
            "evaluation": EvaluationSettings(
                max_chars_per_second=recipe.speak.max_chars_per_second,
                judges=recipe.speak.judges,
                base_languages=recipe.speak.judge_languages,
            ),
        }
