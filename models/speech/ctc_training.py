"""A CTC model in training: new letters join the head, attention adapters continue the base's own."""

import json
from collections.abc import Mapping, Sequence
from copy import deepcopy
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from peft import PeftModel
from safetensors.torch import save_file
from torch import Tensor, nn
from torch.nn import functional

from kauli.models.adapters.kinds.attention_adapter import ADAPTER_LAYER, adapter_layers, adapter_parameters
from kauli.models.adapters.peft_weights import without_peft
from kauli.models.bases.find import Base
from kauli.models.engine.generative import SLOTS
from kauli.models.engine.precision import place
from kauli.models.errors import UsageError
from kauli.models.progress import note
from kauli.models.speech.ctc import SECONDS, CtcBase, CtcTask
from kauli.models.speech.ctc_adapter import (
    ADAPTER,
    HEAD,
    SETTINGS,
    Settings,
    new_head,
    read_adapter_layers,
    read_head,
    read_settings,
)
from kauli.models.speech.ctc_batch import own_frames
from kauli.models.speech.ctc_model import CtcBatch, encode, fewest_samples, frame_count, frames_needed, losses
from kauli.models.speech.task import Row, TrainableRecogniser, Trained
from kauli.models.speech.vocabulary import Vocabulary, find_code


@dataclass(frozen=True)
class CtcExample:
    """An example: its samples, and its transcript's letters."""

    samples: Any
    """(n,) numpy float32 at 16 kHz."""
    tokens: list[int]
    frames: int
    language: str


class TrainableCtc(CtcBase, TrainableRecogniser):
    """A CTC model that learns an adapter, on one device."""

    def __init__(self, model: Any, extractor: Any, base: Base) -> None:
        super().__init__(model, extractor, base)
        self._own_head, self._own_layers = model.lm_head, self._heads[None].attention
        self._before = self._heads[None]
        self.letters = self._before.letters
        """Of the head in training."""
        self._languages: tuple[str, ...] = ()
        self._init_from: str | None = None

    @property
    def trained(self) -> nn.Module:
        """The module to train: called with a `CtcBatch` it returns the losses (N,) of its clips in nats."""
        return Trained(lambda batch: losses(self._bare, batch, self.letters.blank), model=self.model)

    def add_languages(
        self, tags: Sequence[str], init_from: Mapping[str, Sequence[str]], texts: Sequence[str] = ()
    ) -> None:
        """Set the languages to train, and the letters: the base's, followed by the others in `texts`.

        A letter that the base knows is initialised by its weights in the head, another by zeros. A language that an
        MMS has an adapter for is initialised by it; `init_from` has no part in it, any language can be trained.
        """
        self._languages = tuple(tags)
        self._init_from = find_code(tags[0], self._codes) if len(tags) == 1 else None
        self._before = own = self._head_of(self._init_from)
        for layer, module in zip(adapter_layers(self._bare), own.attention, strict=False):
            layer.adapter_layer = deepcopy(module)  # the base's own stays as it is, for `served`
        self.letters = own.letters.with_those_of(texts)
        self._set_head(new_head(own, self.letters))

    def _set_head(self, head: nn.Linear) -> None:
        self._bare.lm_head = head
        self._bare.config.vocab_size = head.out_features

    def start_from(self, folder: Path) -> None:
        """Give the attached adapter the weights of an adapter folder of the same kind and shape, else KauliError.

        A letter that both know gets its weights; other letters keep their initial ones.
        """
        settings = read_settings(folder)
        if isinstance(self.model, PeftModel):
            given = read_head(folder / HEAD, self._bare, settings.letters)
            super().start_from(folder)
        else:
            dim = adapter_layers(self._bare)[0].adapter_layer.linear_1.out_features
            given = read_adapter_layers(folder / ADAPTER, self._bare, settings.letters, dim)
            for layer, module in zip(adapter_layers(self._bare), given.attention, strict=True):
                layer.adapter_layer.load_state_dict(module.state_dict())  # type: ignore[union-attr]
        head = self._bare.lm_head
        with torch.no_grad():
            for place, token in enumerate(self.letters.tokens):
                if token in given.letters.tokens:
                    other = given.letters.tokens.index(token)
                    head.weight[place], head.bias[place] = given.weight[other], given.bias[other]

    def save(self, folder: Path) -> None:
        """Write the adapter: attention adapters under MMS's names, a PEFT folder with the head beside it, or the whole
        model; and its letters in speech.json.
        """
        folder.mkdir(parents=True, exist_ok=True)
        own = {name: value.detach().cpu().contiguous() for name, value in adapter_parameters(self._bare).items()}
        lora, dim = isinstance(self.model, PeftModel), None
        if lora or self.changes_base:
            super().save(folder)
        else:
            save_file(own, folder / ADAPTER)
            dim = int(adapter_layers(self._bare)[0].adapter_layer.linear_1.out_features)
        if lora:
            save_file({name: value for name, value in own.items() if ADAPTER_LAYER not in name}, folder / HEAD)
        letters = self.letters
        settings = Settings(
            languages=self._languages, vocabulary=letters.tokens, blank=letters.blank, space=letters.space, dim=dim,
            begins=self._init_from if lora else None,
        )  # fmt: skip
        content = json.dumps(settings.model_dump(mode="json", by_alias=True), ensure_ascii=False, indent=1)
        (folder / SETTINGS).write_text(content + "\n", encoding="utf-8")

    @property
    def changes_base(self) -> bool:
        """Whether the model is fine-tuned as a whole, neither by PEFT nor by attention adapters."""
        trained = {name for name, value in self._bare.named_parameters() if value.requires_grad}
        return super().changes_base and not trained <= adapter_parameters(self._bare).keys()

    def encode(self, rows: Sequence[Row]) -> list[CtcExample]:
        """Rows as examples; a clip too short for its transcript is left out, with a note.

        Raises UsageError where none is left.
        """
        examples = [self._example(row) for row in rows]
        kept = [one for one in examples if frames_needed(one.tokens) <= one.frames]
        if examples and not kept:
            raise UsageError(
                f"all {len(examples)} clips are too short for their transcripts: {self.base.name} writes one letter "
                f"a frame, {self.window / SECONDS:.0f} a second. Check the data: kauli data check."
            )
        if len(kept) < len(examples):
            note(f"{len(examples) - len(kept)} of {len(examples)} clips are too short for their transcripts: left out")
        return kept

    def _example(self, row: Row) -> CtcExample:
        samples = max(fewest_samples(self._bare.config), len(row["samples"]))
        frames = min(self.window, frame_count(self._bare.config, samples))
        return CtcExample(row["samples"], self.letters.encode(row["text"])[0], frames, row["language"])

    def concatenated(self, examples: Sequence[CtcExample]) -> CtcExample:
        """Examples of one language as one: their samples and their letters, one after another, with spaces between."""
        space = self.letters.places.get(" ")
        between = [] if space is None else [space]
        tokens = [token for one in examples for token in [*between, *one.tokens]][len(between) :]
        samples = np.concatenate([one.samples for one in examples])
        return CtcExample(samples, tokens, sum(one.frames for one in examples), examples[0].language)

    def collate(self, examples: Sequence[CtcExample], inputs: Sequence[Tensor] | None = None) -> CtcBatch:
        return CtcBatch(
            tuple(inputs if inputs is not None else (self.model_input(one.samples) for one in examples)),
            torch.tensor([token for one in examples for token in one.tokens], dtype=torch.long),
            torch.tensor([len(one.tokens) for one in examples], dtype=torch.long),
        )

    def num_targets(self, example: CtcExample) -> int:
        """The letters of the transcript, so that the mean loss is one per letter; at least 1."""
        return max(1, len(example.tokens))

    def current_bits(self, rows: Sequence[Row]) -> list[tuple[float, int]]:
        """As `CtcTask.bits`, of the model in its present state: before `attach` with the base's own letters."""
        letters, head = (self.letters, self._bare.lm_head) if self._attached else (self._before.letters, self._before)

        def logits(part: Sequence[Row]) -> tuple[list[Tensor], list[Vocabulary]]:
            waves = [self.model_input(row["samples"]).to(self.device) for row in part]
            found = functional.linear(encode(self._bare, waves), head.weight, head.bias)
            return own_frames(self._bare, found, waves), [letters] * len(part)

        return self._bits(rows, logits, SLOTS)

    def served(self) -> CtcTask:
        """The base as a `CtcTask` on the same weights; read anew after full fine-tuning, which changed them."""
        if self.changes_base:
            return CtcTask.load(self.base, str(self.device))
        without_peft(self.model)
        self._set_head(self._own_head)
        for layer, module in zip(adapter_layers(self._bare), self._own_layers, strict=False):
            layer.adapter_layer = module
        return CtcTask(self._bare.to(place(str(self.device))[1]), self.extractor, self.base)
