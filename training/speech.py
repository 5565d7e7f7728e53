"""What the train loop needs to know of speech: clips, augmented anew each time, and the losses of their transcripts."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, cast

import torch
from torch import Tensor, nn

from kauli.models.errors import UsageError
from kauli.training.augment_speech import augmented_mel, augmented_wave
from kauli.training.learner import Examples
from kauli.training.merged_lora import merge_while_training
from kauli.training.methods import FewShot
from kauli.training.plan import Plan, micro_batches, share_out
from kauli.training.recipe import Recipe


class SpeechLearner:
    """A speech recogniser that learns transcripts. A clip weighs its frames and its tokens, 50 and some 10 a second."""

    def __init__(self, task: Any, recipe: Recipe, examples: Examples) -> None:
        """`task` holds the bare base; the rows of `examples` have their `samples`."""
        self.task, self._recipe, self._examples = task, recipe, examples
        self.device = task.device
        if task.mel(torch.zeros(16_000).numpy()).ndim == 1 and any(
            one.kind == "spec_augment" for one in recipe.augment
        ):
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
        return sum(self.task.terms(self.clips[index]) for index in step)

    def batches(self, step: Sequence[int], rank: int, world: int) -> list[tuple[Any, float]]:
        share = share_out(step, self.lengths, world)[rank]
        packs = micro_batches(share, self.lengths, self._recipe.train.micro_tokens)
        weighted = [(indices, 1.0) for indices in packs] or [([step[0]], 0.0)]
        # The loop has seeded torch for this step and rank: a run that goes on hears the same views.
        seeds = torch.randint(0, 2**62, (len(self.clips),)).tolist() if self._recipe.augment else []
        return [
            (self._batch([(self.clips[index], seeds[index] if seeds else None) for index in indices]), weight)
            for indices, weight in weighted
        ]

    def _batch(self, clips: Sequence[tuple[Any, int | None]]) -> Any:
        mels = [self._heard(clip, seed) for clip, seed in clips]
        return self.task.collate([clip for clip, _ in clips], mels).to(self.device)

    def _heard(self, clip: Any, seed: int | None) -> Tensor:
        """The clip as the model's input, augmented where there is a seed."""
        if seed is None:
            return self.task.mel(clip.samples)  # type: ignore[no-any-return]
        augment = self._recipe.speech_augment
        samples = augmented_wave(torch.as_tensor(clip.samples), augment, seed)
        return augmented_mel(self.task.mel(samples.numpy()), augment, seed)

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
