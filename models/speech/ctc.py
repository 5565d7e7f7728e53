"""The task `transcribe` by a CTC model: wav2vec2 and MMS, with attention adapters, LoRA or all weights of a language.

A clip's frames are heard once, and the likeliest letter of each frame is its transcript, so that nothing here streams
within a clip. Clips with different adapters share one pass: the encoder's layers are computed for all rows, an
adapter's own part for its rows (`kauli.models.speech.ctc_batch`), the head too.

A transcript is taken as it is said (`kauli.models.speech.vocabulary.spoken`);
what that costs says `kauli.models.speech.ctc_batch.cost`.
"""

from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Self

import numpy as np
import torch
from peft import PeftModel
from torch import Tensor, nn
from torch.nn import functional
from transformers import Wav2Vec2FeatureExtractor
from transformers.utils.logging import disable_progress_bar

from kauli.models.bases.find import Base
from kauli.models.engine.engine import Progress
from kauli.models.engine.malloc import keep_freed_memory
from kauli.models.engine.stream import stream
from kauli.models.errors import KauliError, UsageError
from kauli.models.progress import note
from kauli.models.requests import Chunk, TranscriptionRequest
from kauli.models.speech.ctc_adapter import (
    CtcHead,
    LoadedCtcAdapter,
    Settings,
    begin_from,
    built_in,
    load_model,
    new_head,
    read_adapter,
    read_adapter_layers,
    write_settings,
    write_weights,
)
from kauli.models.speech.ctc_batch import ClipRequest, ClipTicket, CtcRunner, answer, cost, next_part, own_frames
from kauli.models.speech.ctc_model import (
    CtcBatch,
    adapter_layers,
    encode,
    fewest_samples,
    frame_count,
    frames_needed,
    losses,
)
from kauli.models.speech.vocabulary import Vocabulary, find_code, read_letters, tag_of

disable_progress_bar()  # type: ignore[no-untyped-call]

RATE = 16_000
SLOTS = 16
SECONDS = 30.0

Row = Mapping[str, Any]
"""An example; this task reads `samples`, `text` and `language`."""


@dataclass(frozen=True)
class CtcExample:
    """An example as it is learned: its sound, and its transcript's letters."""

    samples: Any
    """(n,) numpy float32 at 16 kHz."""
    tokens: list[int]
    frames: int
    language: str


class CtcTask:
    """A wav2vec2 CTC model with any number of adapters, on one device. Not for several threads at once."""

    def __init__(self, model: Any, extractor: Any, base: Base, slots: int = SLOTS) -> None:
        self.base, self.model, self.slots = base, model, slots
        self._extractor = extractor
        self._bare = model
        model.train(False).requires_grad_(False)
        model.freeze_feature_encoder()  # else it asks for gradients of the sound itself
        self._vocabularies = read_letters(base.folder, model.config.pad_token_id or 0)
        files = {path.name for path in base.folder.glob("adapter.*.safetensors")}
        self._codes = tuple(code for code in self._vocabularies if f"adapter.{code}.safetensors" in files)
        letters = next(iter(self._vocabularies.values()), None)
        self._own: dict[str | None, CtcHead] = {None: built_in(model, letters)}
        self._before = self._own[None]
        self.letters = self._before.letters
        """Of the model in training."""
        self._speaks: tuple[str, ...] = ()
        self._begins: str | None = None
        self._voice: CtcRunner | None = None
        self._loaded: dict[str, LoadedCtcAdapter] = {}
        self._voices: dict[str, CtcRunner] = {}
        self._waiting: deque[ClipTicket] = deque()

    @classmethod
    def load(cls, base: Base, device: str | None = None, dtype: torch.dtype | None = None, slots: int = SLOTS) -> Self:
        """The base from its folder; by default on the GPU in bf16 where there is one, else on the CPU in fp32."""
        device = device or ("cuda" if torch.cuda.is_available() else "cpu")
        dtype = dtype or (torch.bfloat16 if device.startswith("cuda") else torch.float32)
        if device == "cpu":
            keep_freed_memory()
        model = load_model(base.folder, dtype).to(device)
        model.name_or_path = base.reference
        extractor = Wav2Vec2FeatureExtractor.from_pretrained(base.folder, local_files_only=True)
        return cls(model, extractor, base, slots)

    @property
    def device(self) -> torch.device:
        """Where the model is."""
        return next(self._bare.parameters()).device  # type: ignore[no-any-return]

    @property
    def seconds(self) -> float:
        """The longest clip that is heard at once."""
        return SECONDS

    @property
    def window(self) -> int:
        """The most letters of a transcript: the frames of the longest clip."""
        return frame_count(self._bare.config, int(SECONDS * RATE))

    def speaks(self, adapter: str | None = None) -> tuple[str, ...]:
        """The languages that the base has adapters for, or those that an adapter was trained on."""
        if adapter is not None:
            return self._loaded[adapter].languages
        return tuple(dict.fromkeys(tag for code in self._codes if (tag := tag_of(code))))

    def mel(self, samples: Any, window: float = 0.0) -> Tensor:
        """(n,) float32: the samples as the model takes them, those over `seconds` cut. `window` is Whisper's."""
        sound = np.asarray(samples, dtype=np.float32)[: int(SECONDS * RATE)]
        sound = np.pad(sound, (0, max(0, fewest_samples(self._bare.config) - len(sound))))
        found = self._extractor(sound, sampling_rate=RATE, padding="do_not_pad", return_tensors="pt")
        out: Tensor = found["input_values"][0]
        return out

    # Adapters

    def adapters(self) -> list[str]:
        """The keys of what is loaded."""
        return list(self._loaded)

    def read_adapter(self, folder: Path) -> LoadedCtcAdapter:
        """What is in a checked adapter folder, for `put_adapter`; KauliError where it doesn't fit the base."""
        return read_adapter(folder, self._bare, self._shared().adapters.layers, self._speaker_of)

    def put_adapter(self, key: str, loaded: LoadedCtcAdapter) -> None:
        """Take an adapter under a key (such as `transcribe-be@3`)."""
        if key in self._loaded:
            raise ValueError(f"adapter {key!r} is loaded already")
        if loaded.terms is not None:
            self._shared().adapters.add(key, loaded.terms)
            loaded = replace(loaded, speaker=replace(loaded.speaker, lora=key))
        if loaded.model is not None:
            self._voices[key] = CtcRunner(loaded.model, self.slots)
        self._loaded[key] = loaded

    def add_adapter(self, key: str, folder: Path) -> None:
        """`read_adapter` and `put_adapter` at once."""
        self.put_adapter(key, self.read_adapter(folder))

    def remove_adapter(self, key: str) -> None:
        """Forget an adapter's weights; it must not be in use."""
        loaded = self._loaded.pop(key)
        self._voices.pop(key, None)
        if loaded.terms is not None:
            self._shared().adapters.remove(key)

    def _shared(self) -> CtcRunner:
        if self._voice is None:
            assert not self._learning, "a task in training does not transcribe"
            self._voice = CtcRunner(self._bare, self.slots)
        return self._voice

    def _speaker_of(self, code: str | None) -> CtcHead:
        """The base's own adapter of a language, None for the one that is built in; KauliError where it has none."""
        if code not in self._own:
            if code not in self._codes:
                raise KauliError(f"{self.base.name} has no adapter.{code}.safetensors, from which the adapter goes on.")
            path = self.base.folder / f"adapter.{code}.safetensors"
            self._own[code] = read_adapter_layers(path, self._bare, self._vocabularies[code])
        return self._own[code]

    # Training and scoring

    @property
    def _learning(self) -> bool:
        return any(value.requires_grad for value in self._bare.parameters())

    @property
    def trained(self) -> nn.Module:
        """What training computes with: called with a `CtcBatch` it returns the losses (N,) of its clips."""
        return _Trained(self.model, self._bare, self.letters.blank)

    def add_languages(
        self, tags: Sequence[str], related: Mapping[str, Sequence[str]], texts: Sequence[str] = ()
    ) -> None:
        """Say what is trained, and by which letters: the base's, and behind them what else stands in `texts`.

        A letter that the base knows begins at its weights in the head, another at zero; a language that an MMS has an
        adapter for, at that. `related` is Whisper's.
        """
        self._speaks = tuple(tags)
        self._begins = find_code(tags[0], self._codes) if len(tags) == 1 else None
        self._before = own = self._speaker_of(self._begins)
        for layer, module in zip(adapter_layers(self._bare), own.attention, strict=False):
            layer.adapter_layer = module
        self.letters = own.letters.with_those_of(texts)
        self._bare.lm_head = new_head(own, self.letters)
        self._bare.config.vocab_size = len(self.letters.tokens)

    def start_from(self, folder: Path) -> None:
        """Give the adapter in training the weights of an adapter folder of the same kind and shape.

        A letter that both know gets its weights; other letters keep what they begin with.
        """
        begin_from(folder, self.model, self._bare, self.letters)

    def save(self, folder: Path) -> None:
        """Write what was trained: attention adapters under MMS's names, a PEFT folder with the head beside it, or the
        whole model; and in speech.json the letters.
        """
        dim = write_weights(folder, self.model, self._bare)
        begins = self._begins if isinstance(self.model, PeftModel) else None
        write_settings(folder, Settings.of(self._speaks, self.letters, dim, begins))

    def encode(self, rows: Sequence[Row], max_length: int | None = None) -> list[CtcExample]:
        """Each row's samples with its transcript's letters; a clip too short for its transcript is left out, with a
        note. UsageError where none is left. `max_length` is taken for all tasks' sake.
        """
        clips = [self._clip(row) for row in rows]
        kept = [clip for clip in clips if frames_needed(clip.tokens) <= clip.frames]
        if clips and not kept:
            raise UsageError(
                f"all {len(clips)} recordings are too short for their transcripts: {self.base.name} writes one letter "
                f"a frame, {self.window / SECONDS:.0f} a second. Check the data: kauli data check."
            )
        if len(kept) < len(clips):
            note(f"{len(clips) - len(kept)} of {len(clips)} recordings are too short for their transcripts: left out")
        return kept

    def _clip(self, row: Row) -> CtcExample:
        samples = max(fewest_samples(self._bare.config), len(row["samples"]))
        frames = min(self.window, frame_count(self._bare.config, samples))
        return CtcExample(row["samples"], self.letters.encode(row["text"])[0], frames, row["language"])

    def joined(self, clips: Sequence[CtcExample]) -> CtcExample:
        """Clips of one language as one: their sounds and their letters, one after another, with a space between."""
        space = self.letters.places.get(" ")
        between = [] if space is None else [space]
        tokens = [token for clip in clips for token in [*between, *clip.tokens]][len(between) :]
        samples = np.concatenate([clip.samples for clip in clips])
        return CtcExample(samples, tokens, sum(clip.frames for clip in clips), clips[0].language)

    def collate(self, clips: Sequence[CtcExample], mels: Sequence[Tensor] | None = None) -> CtcBatch:
        """A batch; `mels` take the place of the clips' own sound, say augmented."""
        return CtcBatch(
            tuple(mels if mels is not None else (self.mel(clip.samples) for clip in clips)),
            torch.tensor([token for clip in clips for token in clip.tokens], dtype=torch.long),
            torch.tensor([len(clip.tokens) for clip in clips], dtype=torch.long),
        )

    def terms(self, clip: CtcExample) -> int:
        """What a clip counts in the mean that a step minimises: its letters, so that this is a loss per letter."""
        return max(1, len(clip.tokens))

    def loss(self, batch: CtcBatch) -> Tensor:
        """The mean negative log likelihood in nats per letter of the transcripts; a scalar."""
        found: Tensor = self.trained(batch.to(self.device)).sum() / batch.lengths.clamp(min=1).sum().to(self.device)
        return found

    def bits(
        self, rows: Sequence[Row], adapter: str | None, full_window: bool | None = None
    ) -> list[tuple[float, int]]:
        """For each row the bits that its transcript costs, as it is said, and its UTF-8 bytes.

        CTC hears clips at their own length alone, so that `full_window` changes nothing.
        """
        voice = self._voices.get(adapter or "") or self._shared()

        def logits(part: Sequence[Row]) -> tuple[list[Tensor], list[Vocabulary]]:
            speakers = [self._speaker(adapter, row["language"]) for row in part]
            found = voice.logits([self.mel(row["samples"]) for row in part], speakers)
            return found, [speaker.letters for speaker in speakers]

        return self._bits(rows, logits)

    def current_bits(self, rows: Sequence[Row], full_window: bool = False) -> list[tuple[float, int]]:
        """As `bits`, of the model as it stands: in training with its new letters, before with the base's own."""
        own = self._before
        letters, weight, bias = own.letters, own.weight, own.bias
        if self._learning:
            letters, weight, bias = self.letters, self._bare.lm_head.weight, self._bare.lm_head.bias

        def logits(part: Sequence[Row]) -> tuple[list[Tensor], list[Vocabulary]]:
            waves = [self.mel(row["samples"]).to(self.device) for row in part]
            found = functional.linear(encode(self._bare, waves), weight, bias)
            return own_frames(self._bare, found, waves), [letters] * len(part)

        return self._bits(rows, logits)

    @torch.inference_mode()
    def _bits(
        self, rows: Sequence[Row], logits: Callable[[Sequence[Row]], tuple[list[Tensor], list[Vocabulary]]]
    ) -> list[tuple[float, int]]:
        order = sorted(range(len(rows)), key=lambda index: len(rows[index]["samples"]))
        out = [(0.0, 0)] * len(rows)
        for start in range(0, len(order), self.slots):
            part = order[start : start + self.slots]
            for index, frames, letters in zip(part, *logits([rows[index] for index in part]), strict=True):
                out[index] = cost(frames, rows[index]["text"], letters)
        return out

    # Transcribing

    def prepare(self) -> None:
        """Make ready for adapters now; before anything else runs in another thread."""
        self._shared()

    @property
    def busy(self) -> bool:
        """Whether `step` has something to do."""
        return bool(self._waiting)

    def prompt_tokens(self, request: TranscriptionRequest) -> list[int]:
        """None: what a CTC model hears does not depend on what was said before."""
        return []

    def submit(
        self, request: TranscriptionRequest, adapter: str | None, tokens: list[int] | None = None
    ) -> list[ClipTicket]:
        """Queue a clip with an adapter; its tickets. Prompt, temperature and window of the request change nothing.

        Without an adapter it is the base's own of the language, where it has one, or the one built in. Raises
        UsageError for a clip longer than is heard at once.
        """
        if len(request.samples) > SECONDS * RATE:
            length = len(request.samples) / RATE
            raise UsageError(f"the clip has {length:.1f} seconds; {self.base.name} hears {SECONDS:g} at once.")
        voice = self._voices.get(adapter or "") or self._shared()
        speaker = self._speaker(adapter, request.language)
        wave = self.mel(request.samples)
        speaks = self._loaded[adapter].languages if adapter else ()
        language = request.language or (speaks[0] if len(speaks) == 1 else None)
        seconds = len(request.samples) / RATE
        hearing = ClipRequest(wave, adapter, language, request.max_tokens, request.logprobs, seconds, request.words)
        frames = frame_count(self._bare.config, len(wave))
        tickets = [ClipTicket(hearing, voice, speaker, frames) for _ in range(request.n)]
        self._waiting += tickets
        return tickets

    def _speaker(self, adapter: str | None, language: str | None) -> CtcHead:
        if adapter is not None:
            return self._loaded[adapter].speaker
        return self._speaker_of(find_code(language, self._codes) if language else None)

    @torch.inference_mode()
    def step(self) -> list[tuple[ClipTicket, Progress]]:
        """One pass of clips that wait, first come first; each is answered by it as a whole."""
        ended = [(ticket, Progress("", 0, "cancelled")) for ticket in self._waiting if ticket.cancelled]
        self._waiting = deque(ticket for ticket in self._waiting if not ticket.cancelled)
        part = next_part(list(self._waiting), self.slots)
        self._waiting = deque(ticket for ticket in self._waiting if ticket not in part)
        if not part:
            return ended
        waves = [ticket.generation.wave for ticket in part]
        found = part[0].voice.logits(waves, [ticket.speaker for ticket in part])
        return ended + [(ticket, answer(ticket, logits)) for ticket, logits in zip(part, found, strict=True)]

    def generate(
        self,
        requests: Sequence[TranscriptionRequest],
        adapters: Sequence[str | None],
        cancelled: Callable[[int], bool] | None = None,
    ) -> Iterator[list[Chunk]]:
        """Transcribe clips together, each with its own adapter; yields the chunks of each pass, short clips first."""
        order = sorted(range(len(requests)), key=lambda row: len(requests[row].samples))
        return stream(self, requests, adapters, cancelled, order)


class _Trained(nn.Module):
    """The model with the loss as its forward. `model` holds `bare` and what a method put around it."""

    def __init__(self, model: nn.Module, bare: Any, blank: int) -> None:
        super().__init__()
        self.model, self._bare, self._blank = model, [bare], blank  # in a list, so that no parameter has two names

    def forward(self, batch: CtcBatch) -> Tensor:
        """The losses (N,) of a batch's clips in nats."""
        return losses(self._bare[0], batch, self._blank)
