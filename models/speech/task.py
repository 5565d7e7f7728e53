"""Speech recognisers: what every architecture offers to serving and to training, and the table of architectures.

A base of the task `transcribe` is loaded for one of two lives: as a `Recogniser`, which transcribes with any number of
adapters, or as a `TrainableRecogniser`, which learns one.
"""

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from inspect import isabstract
from pathlib import Path
from typing import Any, ClassVar, Literal, Self

import torch
from torch import Tensor, nn

from kauli.models.adapters.peft_weights import PeftTrainable
from kauli.models.bases.find import Base
from kauli.models.engine.generative import Generative, LoadedAdapter
from kauli.models.engine.precision import place
from kauli.models.errors import UsageError
from kauli.models.files import read_json
from kauli.models.media.decode import RATE
from kauli.models.requests import TranscriptionRequest
from kauli.models.tasks import resolve

ARCHITECTURES = {
    "whisper": ("kauli.models.speech.whisper:WhisperTask", "kauli.models.speech.whisper_training:TrainableWhisper"),
    "wav2vec2": ("kauli.models.speech.ctc:CtcTask", "kauli.models.speech.ctc_training:TrainableCtc"),
}
"""A configuration's `model_type` -> the served and the trainable class, imported when they are asked for."""

Row = Mapping[str, Any]
"""An example: `samples` ((n,) float32 at 16 kHz), `text` and `language`."""


class SpeechModel(ABC):
    """A loaded base: what serving and training share."""

    input_kind: ClassVar[Literal["spectrogram", "wave"]]
    """What `model_input` returns: a log-mel spectrogram (M, 2 F) or the wave (n,)."""
    pads: ClassVar[bool]
    """Whether clips can be padded with silence to `seconds` (`TranscriptionRequest.full_window`)."""
    base: Base
    model: Any

    @classmethod
    def load(cls, base: Base, device: str | None = None, dtype: torch.dtype | None = None, **options: Any) -> Self:
        """The base from its folder; by default on the GPU in bf16 where there is one, else on the CPU in fp32.

        `Recogniser.load` and `TrainableRecogniser.load` choose the class by the base's architecture; `options` are
        those of its constructor (`slots`). Raises UsageError for a model of another architecture.
        """
        where, precision = place(device, dtype)
        chosen = cls
        if isabstract(cls):
            kind = read_json(base.folder / "config.json").get("model_type")
            if kind not in ARCHITECTURES:
                raise UsageError(
                    f"'{base.name}' is a model of the kind '{kind}'; the task 'transcribe' takes "
                    f"{', '.join(ARCHITECTURES)}."
                )
            chosen = resolve(ARCHITECTURES[kind][issubclass(cls, PeftTrainable)])
        return chosen.read(base, where, precision, **options)

    @classmethod
    @abstractmethod
    def read(cls, base: Base, device: torch.device, dtype: torch.dtype, **options: Any) -> Self:
        """The base from its folder, on this device in this precision."""

    @property
    def device(self) -> torch.device:
        """Where the model is."""
        device: torch.device = next(self.model.parameters()).device
        return device

    @property
    @abstractmethod
    def seconds(self) -> float:
        """The longest clip that the model takes."""

    @property
    @abstractmethod
    def window(self) -> int:
        """The most tokens of an example."""

    @abstractmethod
    def model_input(self, samples: Any) -> Tensor:
        """Samples (n,) as the model takes them, float32 (see `input_kind`); samples beyond `seconds` are cut off."""


@dataclass(frozen=True, kw_only=True)
class LoadedRecogniserAdapter(LoadedAdapter):
    """With its languages."""

    languages: tuple[str, ...] = ()
    """Those that it was trained on; empty for an adapter of plain PEFT."""


class Recogniser(SpeechModel, Generative):
    """Transcribes clips, each with its own adapter.

    `submit` raises UsageError for a clip longer than `seconds`, a language that neither base nor adapter knows, and a
    `full_window` that the architecture lacks.
    """

    encodes: ClassVar[bool] = False
    """Whether `frames` gives the encoder's frames of clips, for a connector."""

    def __init__(self, slots: int, known: Iterable[str]) -> None:
        """`known` are the language tags that the base knows."""
        super().__init__(slots)
        self._known = tuple(known)

    def languages(self, adapter: str | None = None) -> tuple[str, ...]:
        """The language tags that the base knows, or those that a loaded adapter was trained on."""
        return self._known if adapter is None else tuple(self._loaded[adapter].languages)

    def window_of(self, adapter: str) -> float:
        """Seconds that shorter clips are padded to for a loaded adapter; 0: they are taken at their own length."""
        return 0.0

    def searches(self, adapter: str) -> bool:
        """Whether a loaded adapter has a language model."""
        return False

    def set_window(self, folder: Path, seconds: float) -> None:
        """Write such a window into an adapter's folder, where the architecture `pads`."""
        raise NotImplementedError(f"{type(self).__name__} takes clips at their own length")

    def _language_of(self, request: TranscriptionRequest, adapter: str | None) -> str | None:
        """The language that is requested, or the only one of the adapter."""
        trained = self.languages(adapter) if adapter else ()
        return request.language or (trained[0] if len(trained) == 1 else None)

    def _layers(self) -> dict[str, nn.Linear]:
        return {name: layer for batch in self._shared().batches for name, layer in batch.layers.items()}

    @abstractmethod
    def bits(
        self, rows: Sequence[Row], adapter: str | None, full_window: bool | None = None
    ) -> list[tuple[float, int]]:
        """For each row the bits that its transcript costs, -log2 of its likelihood, and the transcript's UTF-8 bytes.

        `full_window` is that of `TranscriptionRequest`; UsageError where the architecture lacks it.
        """

    def _check(self, request: TranscriptionRequest) -> None:
        if len(request.samples) > self.seconds * RATE:
            raise UsageError(
                f"the clip has {len(request.samples) / RATE:.1f} seconds; {self.base.name} takes {self.seconds:g} at "
                "most: cut the audio into shorter clips."
            )
        self._check_window(request.full_window)

    def _check_window(self, full_window: bool | None) -> None:
        if full_window and not self.pads:
            raise UsageError(
                f"{self.base.name} takes clips at their own length: full_window must be false or left out."
            )


class Trained(nn.Module):
    """Modules whose parameters are trained, with `losses` of a batch as their forward."""

    def __init__(self, losses: Callable[[Any], Tensor], **modules: nn.Module) -> None:
        super().__init__()
        self._losses = losses
        for name, module in modules.items():
            self.add_module(name, module)

    def forward(self, batch: Any) -> Tensor:
        """The losses of the batch's targets in nats."""
        return self._losses(batch)


class TrainableRecogniser(PeftTrainable, SpeechModel):
    """Learns one adapter: `add_languages`, `attach`, losses of `collate`d examples by `trained`, `save`.

    `trained` is called with a batch and returns the losses of its targets in nats.
    """

    @abstractmethod
    def add_languages(
        self, tags: Sequence[str], init_from: Mapping[str, Sequence[str]], texts: Sequence[str] = ()
    ) -> None:
        """Set the languages to train; called once, before `encode` and `attach`.

        Args:
            tags: of the examples.
            init_from: a language that the base does not know -> related ones that it knows.
            texts: the transcripts, whose letters a model with a vocabulary of its own adds to it.

        Raises UsageError for a language that the base does not know and that has no related ones.
        """

    @abstractmethod
    def encode(self, rows: Sequence[Row]) -> list[Any]:
        """Rows as examples, which have `samples`, `tokens`, `frames` and `language`."""

    @abstractmethod
    def concatenated(self, examples: Sequence[Any]) -> Any:
        """Examples of one language as one: their samples and their transcripts, one after another."""

    @abstractmethod
    def num_targets(self, example: Any) -> int:
        """How much an example counts in the mean loss: its tokens to predict."""

    @abstractmethod
    def collate(self, examples: Sequence[Any], inputs: Sequence[Tensor] | None = None) -> Any:
        """A batch for `trained`; `inputs` replace the examples' own `model_input`, such as augmented ones."""

    @abstractmethod
    def current_bits(self, rows: Sequence[Row]) -> list[tuple[float, int]]:
        """As `Recogniser.bits`, of the model in its present state; before `attach` of the base as it was made."""
