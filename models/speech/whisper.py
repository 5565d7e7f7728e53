"""The task `transcribe`: speech becomes text, by Whisper and its adapters or by a CTC model with attention adapters.

This file is Whisper; `kauli.models.speech.ctc` is the other architecture. Many clips, each with its own adapter on
encoder and decoder, are one pass: frames in one row through the encoder, tokens in one row through the decoder, by the
engine that generates text (`kauli.models.engine.engine`).
"""

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path
from typing import Any, Self

import numpy as np
import torch
from peft import PeftModel
from torch import Tensor, nn
from transformers import GenerationConfig, WhisperFeatureExtractor, WhisperTokenizer
from transformers.utils.logging import disable_progress_bar

from kauli.models.bases.find import Base
from kauli.models.engine.detokenize import TokenBytes
from kauli.models.engine.engine import Generation, Part, Progress, Ticket
from kauli.models.engine.malloc import keep_freed_memory
from kauli.models.engine.sampling import Sampling
from kauli.models.engine.stream import stream
from kauli.models.errors import UsageError
from kauli.models.languages import nfc
from kauli.models.requests import Chunk, TranscriptionRequest
from kauli.models.speech.chunking import pauses
from kauli.models.speech.whisper_adapter import (
    LoadedWhisperAdapter,
    begin_from,
    load_model,
    read_adapter,
    write_adapter,
)
from kauli.models.speech.whisper_decoder import ClipState, WhisperRunner
from kauli.models.speech.whisper_model import (
    LANGUAGE,
    Trained,
    WhisperBatch,
    WhisperExample,
    frame_count,
    packed,
    packed_losses,
)

disable_progress_bar()  # type: ignore[no-untyped-call]

RATE = 16_000
SLOTS = 16
NO_REPEAT = 16
"""Tokens: no run of so many stands twice in a transcript. An untrained base repeats a short clip's word without end."""
_TOKENS_AT_REST, _TOKENS_A_SECOND = 16, 40  # room for the fastest speech in a script of three tokens a letter

Row = Mapping[str, Any]
"""An example; this task reads `samples`, `text` and `language`."""


class WhisperTask:
    """A Whisper model with any number of adapters, on one device. Not for several threads at once."""

    def __init__(self, model: Any, tokenizer: Any, extractor: Any, base: Base, slots: int = SLOTS) -> None:
        self.base, self.model, self.tokenizer, self.slots = base, model, tokenizer, slots
        self._extractor = extractor
        self.token_bytes = TokenBytes(tokenizer)
        model.train(False)
        settings: GenerationConfig = model.generation_config
        known: dict[str, int] = getattr(settings, "lang_to_id", None) or {}
        self._language_tokens = {token.strip("<|>"): place for token, place in known.items()}
        if "jw" in self._language_tokens:  # Whisper's own word for Javanese
            self._language_tokens["jv"] = self._language_tokens["jw"]
        names = tokenizer.get_vocab()
        self.end = int(model.config.eos_token_id)
        tasks = getattr(settings, "task_to_id", None) or {}
        self._start = int(model.config.decoder_start_token_id)
        self._transcribe = tasks.get("transcribe", names.get("<|transcribe|>"))
        self._plain = getattr(settings, "no_timestamps_token_id", None) or names.get("<|notimestamps|>")
        self._before = names.get("<|startofprev|>")
        silent = set(getattr(settings, "suppress_tokens", None) or []) | set(range(self.end, model.config.vocab_size))
        self._silent = sorted(silent - {self.end})
        self._voice: WhisperRunner | None = None
        self._full: dict[str, WhisperRunner] = {}
        self._loaded: dict[str, LoadedWhisperAdapter] = {}
        self.languages = nn.ParameterDict()
        """Embeddings in training, of languages that the base has no token for."""
        self._speaks: tuple[str, ...] = ()

    @classmethod
    def load(cls, base: Base, device: str | None = None, dtype: torch.dtype | None = None, slots: int = SLOTS) -> Self:
        """The base from its folder; by default on the GPU in bf16 where there is one, else on the CPU in fp32."""
        device = device or ("cuda" if torch.cuda.is_available() else "cpu")
        dtype = dtype or (torch.bfloat16 if device.startswith("cuda") else torch.float32)
        if device == "cpu":
            keep_freed_memory()
        model = load_model(base.folder, dtype).to(device)
        model.name_or_path = base.reference
        tokenizer = WhisperTokenizer.from_pretrained(base.folder, local_files_only=True)
        extractor = WhisperFeatureExtractor.from_pretrained(base.folder, local_files_only=True)
        return cls(model, tokenizer, extractor, base, slots)

    @property
    def device(self) -> torch.device:
        """Where the model is."""
        device: torch.device = next(self.model.parameters()).device
        return device

    @property
    def window(self) -> int:
        """Tokens of a prompt and its answer together."""
        return int(self.model.config.max_target_positions)

    @property
    def seconds(self) -> float:
        """The longest clip that the base hears at once."""
        return float(self.model.config.max_source_positions) / 50

    def speaks(self, adapter: str | None = None) -> tuple[str, ...]:
        """The languages that the base has a token for, or those that an adapter was trained on."""
        return tuple(self._language_tokens) if adapter is None else self._loaded[adapter].speaks

    # Sound

    def mel(self, samples: Any, window: float = 0.0) -> Tensor:
        """(M, 2 F) float32: the log-mel spectrogram of samples (n,), filled up with silence to `window` seconds.

        What is longer than the base hears at once is cut.
        """
        most = int(self.seconds * RATE)
        sound = np.asarray(samples, dtype=np.float32)[:most]
        # To whole frames: an even number of columns, so that no clip sees what stands behind it in a batch
        wanted = min(most, math.ceil(max(640, len(sound), window * RATE) / 320) * 320)
        sound = np.pad(sound, (0, wanted - len(sound)))
        found = self._extractor(
            sound, sampling_rate=RATE, padding="do_not_pad", truncation=False, return_tensors="pt", device="cpu"
        )
        out: Tensor = found["input_features"][0]
        return out

    def frames(self, mels: Sequence[Tensor]) -> list[Tensor]:
        """The bare encoder's frames (F, W) of each spectrogram, float32 on the CPU."""
        return [part.float().cpu() for part in self._shared().frames(mels)]

    # Adapters

    def adapters(self) -> list[str]:
        """The keys of what is loaded."""
        return list(self._loaded)

    def read_adapter(self, folder: Path) -> LoadedWhisperAdapter:
        """What is in a checked adapter folder, for `put_adapter`; KauliError where it doesn't fit the base."""
        voice = self._shared()
        return read_adapter(folder, self.model, {**voice.encoding.layers, **voice.decoding.layers})

    def put_adapter(self, key: str, loaded: LoadedWhisperAdapter) -> None:
        """Take an adapter under a key (such as `transcribe-be@3`)."""
        if key in self._loaded:
            raise ValueError(f"adapter {key!r} is loaded already")
        if isinstance(loaded.weights, dict):
            voice = self._shared()
            for batch in (voice.encoding, voice.decoding):
                batch.add(key, {name: term for name, term in loaded.weights.items() if name in batch.layers})
        else:
            self._full[key] = self._new_voice(loaded.weights)
        self._loaded[key] = loaded

    def add_adapter(self, key: str, folder: Path) -> None:
        """`read_adapter` and `put_adapter` at once."""
        self.put_adapter(key, self.read_adapter(folder))

    def remove_adapter(self, key: str) -> None:
        """Forget an adapter's weights; it must not be in use."""
        del self._loaded[key]
        if self._full.pop(key, None) is None:
            voice = self._shared()
            voice.encoding.remove(key)
            voice.decoding.remove(key)

    def _shared(self) -> WhisperRunner:
        if self._voice is None:
            assert not isinstance(self.model, PeftModel), "a task in training does not transcribe"
            self._voice = self._new_voice(self.model)
        return self._voice

    def _new_voice(self, model: Any) -> WhisperRunner:
        return WhisperRunner(model, self.token_bytes, self._silent, self.slots, self._start, self._language_tokens)

    # Training and scoring

    @property
    def trained(self) -> nn.Module:
        """What training computes with: called with a `WhisperBatch` it returns the losses (A,) of its tokens."""
        return Trained(self.model, self.languages)

    def add_languages(
        self, tags: Sequence[str], related: Mapping[str, Sequence[str]], texts: Sequence[str] = ()
    ) -> None:
        """Say what is trained; a language without a token begins at the mean of its relatives' embeddings.

        `texts` are the transcripts, from which other architectures than Whisper take their letters. Raises UsageError
        where a language has neither a token nor known relatives.
        """
        self._speaks = tuple(tags)
        table = self.model.get_decoder().embed_tokens.weight.detach()
        for tag in tags:
            if self._token_of(tag) is not None:
                continue
            names = related.get(tag, ())
            unknown = [name for name in names if self._token_of(name) is None]
            if not names or unknown:
                wrong = f"'{unknown[0]}' is none of them" if unknown else "none are named"
                raise UsageError(
                    f"{self.base.name} has no token for '{tag}', which then begins at its relatives' mean, and "
                    f"{wrong}: set speech.related to languages that it knows, such as {{{tag}: [kk, tt, uz]}}. It "
                    f"knows {', '.join(sorted(self._language_tokens))}."
                )
            places = torch.tensor([self._token_of(name) for name in names], device=table.device)
            self.languages[tag] = nn.Parameter(table[places].float().mean(0))

    def start_from(self, folder: Path) -> None:
        """Give the adapter in training the weights of an adapter folder of the same kind and shape."""
        begin_from(folder, self.model, self.languages)

    def save(self, folder: Path) -> None:
        """Write the adapter in training as a PEFT folder, or the whole model's weights after full fine-tuning."""
        write_adapter(folder, self.model, self.languages, self._speaks)

    def encode(self, rows: Sequence[Row], max_length: int | None = None) -> list[WhisperExample]:
        """Each row's samples with the tokens of prompt, transcript and end; a transcript too long for the base is cut.

        `max_length` is taken for all tasks' sake: a clip can't be cut without cutting its words.
        """
        clips = []
        for row in rows:
            prompt = self.prompt_tokens(TranscriptionRequest(row["samples"], row["language"]))
            answer: list[int] = self.tokenizer(" " + nfc(row["text"]).strip(), add_special_tokens=False).input_ids
            tokens = [*prompt, *answer, self.end][: self.window]
            clips.append(WhisperExample(row["samples"], tokens, len(prompt), row["language"], str(row.get("id"))))
        return clips

    def joined(self, clips: Sequence[WhisperExample]) -> WhisperExample:
        """Clips of one language as one: their sounds and their transcripts, one after another."""
        if len(clips) == 1:
            return clips[0]
        first = clips[0]
        answers = [token for clip in clips for token in clip.tokens[clip.answer_start :] if token != self.end]
        tokens = [*first.tokens[: first.answer_start], *answers, self.end]
        return replace(first, samples=np.concatenate([clip.samples for clip in clips]), tokens=tokens)

    def collate(self, clips: Sequence[WhisperExample], mels: Sequence[Tensor] | None = None) -> WhisperBatch:
        """A batch; `mels` take the place of the clips' own spectrograms, say augmented ones."""
        found = mels if mels is not None else [self.mel(clip.samples) for clip in clips]
        return packed(clips, found, self.end)

    def terms(self, clip: WhisperExample) -> int:
        """How many losses a clip has: its transcript's tokens and the end token."""
        return len(clip.tokens) - clip.answer_start

    def loss(self, batch: WhisperBatch) -> Tensor:
        """The mean cross entropy in nats over the transcripts' tokens, end tokens included; a scalar."""
        found: Tensor = self.trained(batch.to(self.device))
        return found.mean()

    def bits(
        self, rows: Sequence[Row], adapter: str | None, full_window: bool | None = None
    ) -> list[tuple[float, int]]:
        """For each row the bits that its transcript costs, and the transcript's UTF-8 bytes (after NFC)."""
        full_window = self._whole(adapter) if full_window is None else full_window
        voice = self._full.get(adapter or "") or self._shared()
        key = None if adapter in self._full else adapter
        extra = self._loaded[adapter].languages if adapter else {}

        def losses(batch: WhisperBatch) -> Tensor:
            frames, tokens = sum(map(frame_count, batch.mels)), len(batch.input_ids)
            with ExitStack() as stack:
                stack.enter_context(voice.encoding.apply([(key, frames)]))
                stack.enter_context(voice.decoding.apply([(key, tokens)], kept=[(key, len(batch.answer_positions))]))
                return packed_losses(voice.model, batch, extra.__getitem__)

        return self._bits(rows, losses, full_window)

    def current_bits(self, rows: Sequence[Row], full_window: bool = False) -> list[tuple[float, int]]:
        """As `bits`, of the model as it stands, for example in training."""
        return self._bits(rows, self.trained, full_window)

    @torch.inference_mode()
    def _bits(
        self, rows: Sequence[Row], losses: Callable[[WhisperBatch], Tensor], full: bool
    ) -> list[tuple[float, int]]:
        clips = self.encode(rows)
        bits = [0.0] * len(rows)
        order = sorted(range(len(rows)), key=lambda index: clips[index].frames)
        for start in range(0, len(order), self.slots):
            part = order[start : start + self.slots]
            chosen = [clips[index] for index in part]
            batch = self.collate(chosen, [self.mel(clip.samples, self.seconds * full) for clip in chosen]).to(
                self.device
            )
            found = losses(batch)[~batch.answer_ends].double() / math.log(2)
            owners = batch.answer_document[~batch.answer_ends]
            sums = torch.zeros(len(part), dtype=torch.float64, device=self.device).index_add(0, owners, found)
            for index, value in zip(part, sums.tolist(), strict=True):
                bits[index] = value
        # Of what is left of a transcript that was cut; the space before it is no part of it
        sizes = [sum(len(self.token_bytes(token)) for token in clip.tokens[clip.answer_start :]) - 1 for clip in clips]
        return list(zip(bits, sizes, strict=True))

    # Transcribing

    def prepare(self) -> None:
        """Make the engine now; before anything else runs in another thread."""
        self._shared()

    @property
    def busy(self) -> bool:
        """Whether `step` has something to do."""
        return any(voice.busy for voice in self._voices())

    def prompt_tokens(self, request: TranscriptionRequest) -> list[int]:
        """The tokens before the transcript; -1 for a language without a token, or one that is yet to be heard."""
        before: list[int] = []
        if request.prompt and self._before is not None:
            said: list[int] = self.tokenizer(" " + nfc(request.prompt).strip(), add_special_tokens=False).input_ids
            before = [self._before, *said[-(self.window // 2 - 1) :]]
        start = [self._start]
        if self._language_tokens:
            token = self._token_of(request.language) if request.language else None
            start += [LANGUAGE if token is None else token, self._transcribe]
        return [*before, *start, *([self._plain] if self._plain is not None else [])]

    def _whole(self, adapter: str | None) -> bool:
        return adapter is None or not self._loaded[adapter].speaks

    def _token_of(self, tag: str) -> int | None:
        return self._language_tokens.get(tag) or self._language_tokens.get(tag.split("-")[0])

    def submit(
        self, request: TranscriptionRequest, adapter: str | None, tokens: list[int] | None = None
    ) -> list[Ticket]:
        """Queue a clip with an adapter (None: the base alone); its tickets.

        Raises UsageError for a clip longer than the base hears, and for a language that nothing here speaks.
        """
        if len(request.samples) > self.seconds * RATE:
            length = len(request.samples) / RATE
            raise UsageError(f"the clip has {length:.1f} seconds; {self.base.name} hears {self.seconds:g} at once.")
        speaks = self._loaded[adapter].speaks if adapter else ()
        language = request.language or (speaks[0] if len(speaks) == 1 else None)
        if language != request.language:
            request, tokens = replace(request, language=language), None
        prompt = tokens or self.prompt_tokens(request)
        voice = self._full.get(adapter or "") or self._shared()
        parts: list[Part] = [prompt]
        if language and LANGUAGE in prompt:
            extra = self._loaded[adapter].languages if adapter else {}
            if language not in extra:
                raise UsageError(
                    f"{adapter or self.base.name} does not know the language '{language}': name one of "
                    f"{', '.join(sorted({*self._language_tokens, *extra}))}."
                )
            at = prompt.index(LANGUAGE)
            parts = [prompt[:at], extra[language][None], prompt[at + 1 :]]
        full = self._whole(adapter) if request.full_window is None else request.full_window
        room = _TOKENS_AT_REST + int(_TOKENS_A_SECOND * len(request.samples) / RATE)
        generation = Generation(
            parts,
            None if adapter in self._full else adapter,
            min(request.max_tokens or room, room),
            Sampling(
                temperature=request.temperature, seed=request.seed, ignore_eos=request.ignore_eos, no_repeat=NO_REPEAT
            ),
            logprobs=request.logprobs,
            memory=ClipState(
                self.mel(request.samples, self.seconds * full),
                language,
                len(request.samples) / RATE,
                pauses(request.samples) if request.words else None,
            ),
        )
        return [voice.submit(generation)]

    def step(self) -> list[tuple[Ticket, Progress]]:
        """One pass of everything that is queued: the encoder for clips that come in, then the decoder for all."""
        return [found for voice in self._voices() if voice.busy for found in voice.step()]

    def generate(
        self,
        requests: Sequence[TranscriptionRequest],
        adapters: Sequence[str | None],
        cancelled: Callable[[int], bool] | None = None,
    ) -> Iterator[list[Chunk]]:
        """Transcribe clips together, each with its own adapter; yields the chunks of each pass."""
        return stream(self, requests, adapters, cancelled)

    def _voices(self) -> list[WhisperRunner]:
        return [*([self._voice] if self._voice else []), *self._full.values()]
