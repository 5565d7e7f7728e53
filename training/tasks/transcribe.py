"""What the train loop needs to know of speech: clips, augmented anew each time, and the losses of their transcripts."""

import random
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, cast

import torch
from torch import Tensor, nn

from kauli.models.errors import UsageError
from kauli.models.media.decode import RATE
from kauli.training.augment.audio import augmented_mel, augmented_wave
from kauli.training.methods import FewShot
from kauli.training.recipe import Recipe
from kauli.training.tasks.merged_lora import merge_while_training
from kauli.training.tasks.sampler import Plan, micro_batches, share_out
from kauli.training.tasks.text import Examples


class TranscribeLearner:
    """A speech recogniser that learns transcripts. A clip weighs its frames and its tokens, 50 and some 10 a second."""

    def __init__(self, task: Any, recipe: Recipe, examples: Examples) -> None:
        """`task` holds the bare base; the rows of `examples` have their `samples`."""
        self.task, self._recipe, self._examples = task, recipe, examples
        self.device = task.device
        if task.mel(torch.zeros(RATE).numpy()).ndim == 1 and any(one.kind == "spec_augment" for one in recipe.augment):
            raise UsageError(
                f"augment: {task.base.name} hears the wave itself, and spec_augment masks a spectrogram: leave it out."
            )
        budget = recipe.train
        rows = [row for row in examples.train for _ in range(budget.repeat.get(row.get("source") or "", 1))]
        assert recipe.speech is not None
        task.add_languages(recipe.language, recipe.speech.related, [row["text"] for row in rows])
        clips = task.encode(rows)
        self.clips = [clip for clip in clips if self._weight(clip) <= budget.max_length]
        self.cut = len(clips) - len(self.clips)
        self.lengths = [self._weight(clip) for clip in self.clips]
        self._slowest = min([1.0, *(min(one.factors) for one in recipe.augment if one.kind == "speed")])

    def attach(self, start: Path | None) -> None:
        task, method = self.task, self._recipe.method
        assert not isinstance(method, FewShot)
        attached: Any = method.attach(cast("Any", task.model), task.base.reference)
        task.model = attached
        if start is not None:
            task.start_from(start)
        merge_while_training(task.model)

    @property
    def trained(self) -> nn.Module:
        out: nn.Module = self.task.trained
        return out

    def objective(self) -> nn.Module:
        return self.trained

    def plan(self) -> Plan:
        return Plan(self.lengths, self._recipe.train.batch_tokens, self._recipe.train.seed)

    def groups(self, parameters: Mapping[str, nn.Parameter]) -> list[dict[str, Any]]:
        return [{"params": list(parameters.values()), "full": self._recipe.train.learning_rate, "begins": 0.0}]

    def terms(self, step: Sequence[int]) -> int:
        return sum(self.task.terms(self.task.joined([self.clips[at] for at in heard])) for heard in self._heard(step))

    def batches(self, step: Sequence[int], rank: int, world: int) -> list[tuple[Any, float]]:
        heard = self._heard(step)
        lengths = [sum(self.lengths[at] for at in places) for places in heard]
        share = share_out(range(len(heard)), lengths, world)[rank]
        packs = micro_batches(share, lengths, self._recipe.train.micro_tokens)
        weighted = [(numbers, 1.0) for numbers in packs] or [([0], 0.0)]
        # The loop has seeded torch for this step and rank: a run that goes on hears the same views.
        seeds = torch.randint(0, 2**62, (len(self.clips),)).tolist()
        return [(self._batch([heard[number] for number in numbers], seeds), weight) for numbers, weight in weighted]

    def _heard(self, step: Sequence[int]) -> list[tuple[int, ...]]:
        """The clips of a step, those together that are heard as one: alike on all ranks, each clip once."""
        assert self._recipe.speech is not None
        chance = self._recipe.speech.joined
        draw = random.Random(f"{self._recipe.train.seed} {list(step)}")
        heard: list[tuple[int, ...]] = []
        for place in step:
            if heard and draw.random() < chance and self._fit([*heard[-1], place]):
                heard[-1] += (place,)
            else:
                heard.append((place,))
        return heard

    def _fit(self, places: Sequence[int]) -> bool:
        """Whether the base can hear these clips at once, at their slowest."""
        clips = [self.clips[place] for place in places]
        seconds = sum(len(clip.samples) for clip in clips) / RATE / self._slowest
        alike = len({clip.language for clip in clips}) == 1
        return alike and seconds <= self.task.seconds and len(self.task.joined(clips).tokens) <= self.task.window

    def _batch(self, heard: Sequence[Sequence[int]], seeds: Sequence[int]) -> Any:
        """Each clip augmented by itself, then those that are heard as one joined."""
        augment = self._recipe.speech_augment
        clips, mels = [], []
        for places in heard:
            parts = []
            for place in places:
                samples = augmented_wave(torch.as_tensor(self.clips[place].samples), augment, seeds[place])
                parts.append(replace(self.clips[place], samples=samples.numpy()))
            clips.append(self.task.joined(parts))
            mels.append(augmented_mel(self.task.mel(clips[-1].samples), augment, seeds[places[0]]))
        return self.task.collate(clips, mels).to(self.device)

    def validate(self, rank: int, world: int, bare: bool) -> Tensor:
        """Bits and bytes of the validation transcripts; a bare base hears its full window, which it was made for."""
        rows = self._examples.validation[rank::world]
        sums = torch.zeros(2, dtype=torch.float64)
        for bits, count in self.task.current_bits(rows, full_window=bare):
            sums += torch.tensor([bits, count], dtype=torch.float64)
        return sums

    def save(self, folder: Path) -> None:
        self.task.save(folder)

    def _weight(self, clip: Any) -> int:
        return int(clip.frames + len(clip.tokens))
