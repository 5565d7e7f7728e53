"""Speech recognisers: what every architecture offers to serving and to training, and the table of architectures.

A base of the task `transcribe` is loaded for one of two lives: as a `Recogniser`, which transcribes with any number of
adapters, or as a `TrainableRecogniser`, which learns one.
"""

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Mapping, Sequence
from importlib import import_module
from inspect import isabstract
from pathlib import Path
from typing import Any, ClassVar, Literal, Self

import torch
from torch import Tensor, nn

from kauli.models.adapters.kinds.base import AdapterKind
from kauli.models.bases.find import Base
from kauli.models.engine.malloc import keep_freed_memory
from kauli.models.engine.stream import stream
from kauli.models.errors import UsageError
from kauli.models.files import read_json
from kauli.models.media.decode import RATE
from kauli.models.requests import Chunk, Progress, TranscriptionRequest

ARCHITECTURES = {
    "whisper": {
        "served": "kauli.models.speech.whisper:WhisperTask",
        "trainable": "kauli.models.speech.whisper_training:TrainableWhisper",
    },
    "wav2vec2": {
        "served": "kauli.models.speech.ctc:CtcTask",
        "trainable": "kauli.models.speech.ctc_training:TrainableCtc",
    },
}
"""A configuration's `model_type` -> the classes of both lives, imported when they are asked for."""
SLOTS = 16
"""Clips of one pass."""

Row = Mapping[str, Any]
"""An example: `samples` ((n,) float32 at 16 kHz), `text` and `language`."""


class SpeechModel(ABC):
    """A loaded base: what serving and training share."""

    life: ClassVar[Literal["served", "trainable"]]
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
        device = device or ("cuda" if torch.cuda.is_available() else "cpu")
        if device == "cpu":
            keep_freed_memory()
        chosen: type[Self] = _class_for(base, cls.life) if isabstract(cls) else cls
        return chosen.read(base, torch.device(device), dtype or served_dtype(device), **options)

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


class Recogniser(SpeechModel):
    """Transcribes clips, each with its own adapter. Belongs to one thread at a time."""

    life = "served"
    slots: int
    _loaded: dict[str, Any]
    """The adapters by their keys."""

    @abstractmethod
    def languages(self, adapter: str | None = None) -> tuple[str, ...]:
        """The language tags that the base knows, or those that a loaded adapter was trained on."""

    def adapters(self) -> list[str]:
        """The keys of the loaded adapters."""
        return list(self._loaded)

    def check_new(self, key: str) -> None:
        """Raise ValueError where an adapter is loaded under this key."""
        if key in self._loaded:
            raise ValueError(f"adapter {key!r} is loaded already")

    @abstractmethod
    def read_adapter(self, folder: Path) -> Any:
        """The contents of a checked adapter folder, for `put_adapter`; KauliError where they do not fit the base."""

    @abstractmethod
    def put_adapter(self, key: str, loaded: Any) -> None:
        """Load what `read_adapter` returned under a key (such as `transcribe-be@3`); ValueError where it is taken."""

    def add_adapter(self, key: str, folder: Path) -> None:
        """`read_adapter` and `put_adapter` at once."""
        self.put_adapter(key, self.read_adapter(folder))

    @abstractmethod
    def remove_adapter(self, key: str) -> None:
        """Unload an adapter, which no request may be using."""

    @abstractmethod
    def bits(
        self, rows: Sequence[Row], adapter: str | None, full_window: bool | None = None
    ) -> list[tuple[float, int]]:
        """For each row the bits that its transcript costs, -log2 of its likelihood, and the transcript's UTF-8 bytes.

        `full_window` is that of `TranscriptionRequest`.
        """

    @abstractmethod
    def prepare(self) -> None:
        """Build the engine now, before anything else runs in another thread."""

    @property
    @abstractmethod
    def busy(self) -> bool:
        """Whether `step` has something to do."""

    @abstractmethod
    def prompt_tokens(self, request: TranscriptionRequest) -> list[int]:
        """The tokens before the transcript, for `submit`; none where the architecture has no prompt."""

    @abstractmethod
    def submit(self, request: TranscriptionRequest, adapter: str | None, tokens: list[int] | None = None) -> list[Any]:
        """Queue a clip with an adapter (None: the base alone); its tickets.

        Raises UsageError for a clip longer than `seconds`, a language that neither base nor adapter knows, and an
        option that the architecture lacks.
        """

    @abstractmethod
    def step(self) -> list[tuple[Any, Progress]]:
        """One pass of what is queued: tickets with what the pass added to their transcripts."""

    def generate(
        self,
        requests: Sequence[TranscriptionRequest],
        adapters: Sequence[str | None],
        cancelled: Callable[[int], bool] | None = None,
    ) -> Iterator[list[Chunk]]:
        """Transcribe clips together, each with its own adapter; yields the chunks of each pass."""
        return stream(self, requests, adapters, cancelled)

    def check_length(self, request: TranscriptionRequest) -> None:
        """Raise UsageError for a clip longer than `seconds`."""
        if len(request.samples) > self.seconds * RATE:
            raise UsageError(
                f"the clip has {len(request.samples) / RATE:.1f} seconds; {self.base.name} takes {self.seconds:g} at "
                "most: cut the audio into shorter clips."
            )


class TrainableRecogniser(SpeechModel):
    """Learns one adapter: `add_languages`, `attach`, losses of `collate`d examples by `trained`, `save`."""

    life = "trainable"
    _attached = False

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

    def attach(self, kind: AdapterKind) -> None:
        """Put an adapter of this kind on the model, ready to train."""
        self.model = kind.attach(self.model, self.base.reference)
        self._attached = True

    @abstractmethod
    def start_from(self, folder: Path) -> None:
        """Give the attached adapter the weights of an adapter folder of the same kind and shape, else KauliError."""

    @abstractmethod
    def save(self, folder: Path) -> None:
        """Write the adapter as a folder."""

    @property
    @abstractmethod
    def trained(self) -> nn.Module:
        """The module to train: called with a batch it returns the losses of its targets in nats."""

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

    @abstractmethod
    def served(self) -> Recogniser:
        """The base as a `Recogniser`, on the same weights; read anew only where training changed them.

        The adapter is taken off, so that this object cannot be used afterwards.
        """


def served_dtype(device: torch.device | str) -> torch.dtype:
    """The precision in which a base is served on a device."""
    return torch.bfloat16 if str(device).startswith("cuda") else torch.float32


def _class_for(base: Base, life: str) -> Any:
    kind = read_json(base.folder / "config.json").get("model_type")
    if kind not in ARCHITECTURES:
        raise UsageError(
            f"'{base.name}' is a model of the kind '{kind}'; the task 'transcribe' takes {', '.join(ARCHITECTURES)}."
        )
    module, _, attribute = ARCHITECTURES[kind][life].partition(":")
    return getattr(import_module(module), attribute)
