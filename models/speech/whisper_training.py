"""A Whisper in training: a language without a token gets a new embedding, which is trained with the adapter."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.torch import load_file, save_file
from torch import nn

from kauli.models.adapters.peft_weights import without_peft
from kauli.models.bases.find import Base
from kauli.models.engine.generative import SLOTS
from kauli.models.engine.precision import place
from kauli.models.errors import UsageError
from kauli.models.speech.task import Row, TrainableRecogniser, Trained
from kauli.models.speech.whisper import WhisperBase, WhisperTask
from kauli.models.speech.whisper_adapter import LANGUAGES, SETTINGS
from kauli.models.speech.whisper_model import WhisperExample, packed_losses


class TrainableWhisper(WhisperBase, TrainableRecogniser):
    """A Whisper that learns an adapter, on one device."""

    def __init__(self, model: Any, tokenizer: Any, extractor: Any, base: Base) -> None:
        super().__init__(model, tokenizer, extractor, base)
        self.language_embeddings = nn.ParameterDict()
        """Embeddings (W,) of the languages that the base has no token for."""
        self._languages: tuple[str, ...] = ()

    @property
    def trained(self) -> nn.Module:
        """The module to train: called with a `WhisperBatch` it returns the losses (A,) of its tokens in nats."""
        embeddings = self.language_embeddings
        return Trained(
            lambda batch: packed_losses(self.model, batch, embeddings.__getitem__),
            model=self.model, languages=embeddings,
        )  # fmt: skip

    def add_languages(
        self, tags: Sequence[str], init_from: Mapping[str, Sequence[str]], texts: Sequence[str] = ()
    ) -> None:
        """Set the languages to train; one without a token is initialised by the mean of its `init_from` languages.

        `texts` have no part in it: Whisper's tokens write any text. Raises UsageError where a language has neither a
        token nor related languages that have one.
        """
        self._languages = tuple(tags)
        table = self.model.get_decoder().embed_tokens.weight.detach()
        for tag in tags:
            if self._token_of(tag) is not None:
                continue
            names = init_from.get(tag, ())
            unknown = [name for name in names if self._token_of(name) is None]
            if not names or unknown:
                wrong = f"'{unknown[0]}' is none of them" if unknown else "none are named"
                raise UsageError(
                    f"{self.base.name} has no token for '{tag}', which is then initialised from languages that it "
                    f"knows, and {wrong}: set transcribe.init_from_languages, such as {{{tag}: [kk, tt, uz]}}. "
                    f"It knows {', '.join(sorted(self._language_tokens))}."
                )
            places = torch.tensor([self._token_of(name) for name in names], device=table.device)
            self.language_embeddings[tag] = nn.Parameter(table[places].float().mean(0))

    def start_from(self, folder: Path) -> None:
        super().start_from(folder)
        if (folder / LANGUAGES).is_file():
            for tag, value in load_file(folder / LANGUAGES).items():
                if tag in self.language_embeddings:
                    self.language_embeddings[tag].data.copy_(value)

    def save(self, folder: Path) -> None:
        """Write the adapter as a PEFT folder, or the whole model's weights after full fine-tuning."""
        folder.mkdir(parents=True, exist_ok=True)
        (folder / SETTINGS).write_text(json.dumps({"languages": list(self._languages)}) + "\n", encoding="utf-8")
        embeddings = {tag: value.detach().cpu().contiguous() for tag, value in self.language_embeddings.items()}
        if embeddings:
            save_file(embeddings, folder / LANGUAGES)
        super().save(folder)

    def concatenated(self, examples: Sequence[WhisperExample]) -> WhisperExample:
        if len(examples) == 1:
            return examples[0]
        first = examples[0]
        answers = [token for one in examples for token in one.tokens[one.answer_start :] if token != self.end]
        tokens = [*first.tokens[: first.answer_start], *answers, self.end]
        return replace(first, samples=np.concatenate([one.samples for one in examples]), tokens=tokens)

    def num_targets(self, example: WhisperExample) -> int:
        """The tokens to predict: the transcript's and the end token."""
        return len(example.tokens) - example.answer_start

    def current_bits(self, rows: Sequence[Row]) -> list[tuple[float, int]]:
        """As `WhisperTask.bits`, of the model in its present state.

        Clips are padded to the whole window, for which the base was made, until an adapter is attached.
        """
        return self._bits(rows, self.trained, 0.0 if self._attached else self.seconds, SLOTS)

    def served(self) -> WhisperTask:
        """The base as a `WhisperTask` on the same weights; read anew after full fine-tuning, which changed them."""
        if self.changes_base:
            return WhisperTask.load(self.base, str(self.device))
        model: Any = without_peft(self.model).to(place(str(self.device))[1])
        return WhisperTask(model, self.tokenizer, self.extractor, self.base)
