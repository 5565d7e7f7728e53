"""CTC models for the task `transcribe`: wav2vec2 and MMS, with attention adapters, LoRA or all weights of a language.

A clip's frames are encoded once, and the likeliest letter of each frame gives the transcript: nothing streams within a
clip. Clips with different adapters share a pass: the encoder's layers are computed for all rows, an adapter's own part
and its head for its rows (`kauli.models.speech.ctc_batch`).

Transcripts are normalised (`kauli.models.speech.vocabulary.normalised`): lower case, no punctuation.
"""

from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, Self

import numpy as np
import torch
from torch import Tensor
from transformers import Wav2Vec2FeatureExtractor
from transformers.utils.logging import disable_progress_bar

from kauli.models.bases.find import Base
from kauli.models.engine.generative import SLOTS
from kauli.models.errors import KauliError, UsageError
from kauli.models.media.decode import RATE
from kauli.models.requests import Progress, TranscriptionRequest
from kauli.models.speech.ctc_adapter import (
    CtcHead,
    LoadedCtcAdapter,
    built_in,
    load_model,
    read_adapter,
    read_adapter_layers,
)
from kauli.models.speech.ctc_batch import ClipTicket, CtcRunner, answer, cost, next_part
from kauli.models.speech.ctc_model import fewest_samples, frame_count
from kauli.models.speech.task import Recogniser, Row, SpeechModel
from kauli.models.speech.vocabulary import Vocabulary, find_code, read_vocabularies, tag_of

disable_progress_bar()  # type: ignore[no-untyped-call]

SECONDS = 30.0


class CtcBase(SpeechModel):
    """A loaded wav2vec2 with a CTC head, its vocabularies, and the adapters that it brings for languages (MMS)."""

    input_kind = "wave"
    pads = False

    def __init__(self, model: Any, extractor: Any, base: Base) -> None:
        self.base, self.model, self.extractor = base, model, extractor
        self._bare = model
        """The model without what PEFT puts around it."""
        model.train(False).requires_grad_(False)
        model.freeze_feature_encoder()  # else it asks for gradients of the wave itself
        self._vocabularies = read_vocabularies(base.folder, model.config.pad_token_id or 0)
        files = {path.name for path in base.folder.glob("adapter.*.safetensors")}
        self._codes = tuple(code for code in self._vocabularies if f"adapter.{code}.safetensors" in files)
        self._heads: dict[str | None, CtcHead] = {None: built_in(model, next(iter(self._vocabularies.values()), None))}

    @classmethod
    def read(cls, base: Base, device: torch.device, dtype: torch.dtype, **options: Any) -> Self:
        model = load_model(base.folder, dtype).to(device)
        model.name_or_path = base.reference
        extractor = Wav2Vec2FeatureExtractor.from_pretrained(base.folder, local_files_only=True)
        return cls(model, extractor, base, **options)

    @property
    def seconds(self) -> float:
        return SECONDS

    @property
    def window(self) -> int:
        """The most letters of a transcript: the frames of the longest clip."""
        return frame_count(self._bare.config, int(SECONDS * RATE))

    def model_input(self, samples: Any) -> Tensor:
        """(n,) float32: the samples normalised as the model takes them; those beyond `seconds` are cut off."""
        audio = np.asarray(samples, dtype=np.float32)[: int(SECONDS * RATE)]
        audio = np.pad(audio, (0, max(0, fewest_samples(self._bare.config) - len(audio))))
        found = self.extractor(audio, sampling_rate=RATE, padding="do_not_pad", return_tensors="pt")
        out: Tensor = found["input_values"][0]
        return out

    def _head_of(self, code: str | None) -> CtcHead:
        """The base's own adapter of a language, None for the one that is built in; KauliError where it has none."""
        if code not in self._heads:
            if code not in self._codes:
                raise KauliError(
                    f"{self.base.name} has no adapter.{code}.safetensors, on which the adapter was trained: use the "
                    "base that its card names."
                )
            path = self.base.folder / f"adapter.{code}.safetensors"
            self._heads[code] = read_adapter_layers(path, self._bare, self._vocabularies[code])
        return self._heads[code]

    @torch.inference_mode()
    def _bits(
        self, rows: Sequence[Row], logits: Callable[[Sequence[Row]], tuple[list[Tensor], list[Vocabulary]]],
        at_once: int,
    ) -> list[tuple[float, int]]:  # fmt: skip
        order = sorted(range(len(rows)), key=lambda index: len(rows[index]["samples"]))
        out = [(0.0, 0)] * len(rows)
        for start in range(0, len(order), at_once):
            part = order[start : start + at_once]
            for index, frames, letters in zip(part, *logits([rows[index] for index in part]), strict=True):
                out[index] = cost(frames, rows[index]["text"], letters)
        return out


class CtcTask(CtcBase, Recogniser):
    """A CTC model that transcribes with any number of adapters, on one device. Belongs to one thread at a time."""

    def __init__(self, model: Any, extractor: Any, base: Base, slots: int = SLOTS) -> None:
        CtcBase.__init__(self, model, extractor, base)
        known = dict.fromkeys(tag for code in self._codes if (tag := tag_of(code)))
        Recogniser.__init__(self, slots, known)
        self._waiting: deque[ClipTicket] = deque()

    def read_adapter(self, folder: Path) -> LoadedCtcAdapter:
        return read_adapter(folder, self._bare, self._layers(), self._head_of)

    def put_adapter(self, key: str, loaded: LoadedCtcAdapter) -> None:
        lora = None if loaded.deltas is None else key
        super().put_adapter(key, replace(loaded, head=replace(loaded.head, lora=lora)))

    def _new_runner(self, model: Any) -> CtcRunner:
        return CtcRunner(model, self.slots)

    def _chosen(self, adapter: str | None, language: str | None) -> tuple[CtcRunner, CtcHead]:
        """What computes a clip; without an adapter, by the base's own of the language, else by the one built in."""
        if adapter is not None:
            return self._runner_of(adapter)[0], self._loaded[adapter].head
        return self._shared(), self._head_of(find_code(language, self._codes) if language else None)

    def bits(
        self, rows: Sequence[Row], adapter: str | None, full_window: bool | None = None
    ) -> list[tuple[float, int]]:
        """See `Recogniser.bits`; the transcripts are normalised."""
        self._check_window(full_window)

        def logits(part: Sequence[Row]) -> tuple[list[Tensor], list[Vocabulary]]:
            chosen = [self._chosen(adapter, row["language"]) for row in part]
            found = chosen[0][0].logits([self.model_input(row["samples"]) for row in part], [one for _, one in chosen])
            return found, [head.letters for _, head in chosen]

        return self._bits(rows, logits, self.slots)

    @property
    def busy(self) -> bool:
        return bool(self._waiting)

    def _queued_first(self, requests: Sequence[TranscriptionRequest]) -> Sequence[int]:
        """Short clips first: a pass then pads little."""
        return sorted(range(len(requests)), key=lambda row: len(requests[row].samples))

    def submit(
        self, request: TranscriptionRequest, adapter: str | None, tokens: list[int] | None = None
    ) -> list[ClipTicket]:
        """See `Recogniser`; prompt and temperature have no effect: a CTC model has neither."""
        self._check(request)
        if request.beam is not None or request.hot_words:
            what = "beam" if request.beam is not None else "hot_words"
            raise UsageError(f"{self.base.name} is a CTC model and searches no beam: leave {what} out.")
        runner, head = self._chosen(adapter, request.language)
        wave = self.model_input(request.samples)
        language, frames = self._language_of(request, adapter), frame_count(self._bare.config, len(wave))
        tickets = [ClipTicket(request, language, wave, runner, head, frames) for _ in range(request.n)]
        self._waiting += tickets
        return tickets

    @torch.inference_mode()
    def step(self) -> list[tuple[ClipTicket, Progress]]:
        """One pass of waiting clips, first come first served; each gets its whole transcript."""
        ended = [(ticket, Progress("", 0, "cancelled")) for ticket in self._waiting if ticket.cancelled]
        self._waiting = deque(ticket for ticket in self._waiting if not ticket.cancelled)
        part = next_part(list(self._waiting), self.slots)
        self._waiting = deque(ticket for ticket in self._waiting if ticket not in part)
        if not part:
            return ended
        waves = [ticket.wave for ticket in part]
        found = part[0].runner.logits(waves, [ticket.head for ticket in part])
        return ended + [(ticket, answer(ticket, logits)) for ticket, logits in zip(part, found, strict=True)]
