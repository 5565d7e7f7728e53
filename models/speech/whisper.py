"""Whisper for the task `transcribe`: many clips, each with its own adapter on encoder and decoder, share a pass.

Clips are packed, not padded: the frames of all clips are one row for the encoder, the tokens of all transcripts one row
for the decoder, which the text engine runs (`kauli.models.engine.engine`).
"""

import hashlib
import json
import math
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import replace
from functools import cached_property
from pathlib import Path
from typing import Any, Self

import numpy as np
import torch
from torch import Tensor
from transformers import GenerationConfig, WhisperFeatureExtractor, WhisperTokenizer
from transformers.utils.logging import disable_progress_bar

from kauli.models.bases.find import Base
from kauli.models.engine.detokenize import TokenBytes
from kauli.models.engine.generative import SLOTS
from kauli.models.engine.packing import Document, pack
from kauli.models.engine.sampling import Sampling
from kauli.models.engine.ticket import Generation, Part, Ticket
from kauli.models.errors import UsageError
from kauli.models.languages import nfc
from kauli.models.media.decode import RATE
from kauli.models.requests import BeamSearch, TranscriptionRequest
from kauli.models.speech.chunking import pauses
from kauli.models.speech.hot_words import HotWords
from kauli.models.speech.task import Recogniser, Row, SpeechModel
from kauli.models.speech.whisper_adapter import LoadedWhisperAdapter, load_model, read_adapter, set_window
from kauli.models.speech.whisper_decoder import ClipState, WhisperRunner
from kauli.models.speech.whisper_model import LANGUAGE, WhisperBatch, WhisperExample, frame_count, packed_losses

disable_progress_bar()  # type: ignore[no-untyped-call]

NO_REPEAT = 16
"""Tokens: no run of this length occurs twice in a transcript. An untrained base repeats the word of a short clip."""
BEAMS = 4
"""Answers that a search keeps at each step where no adapter says otherwise."""
_TOKENS_AT_REST, _TOKENS_A_SECOND = 16, 40  # room for the fastest speech in a script of three tokens a letter


class WhisperBase(SpeechModel):
    """A loaded Whisper: weights, tokens and spectrograms."""

    input_kind = "spectrogram"
    pads = True

    def __init__(self, model: Any, tokenizer: Any, extractor: Any, base: Base) -> None:
        self.base, self.model, self.tokenizer, self.extractor = base, model, tokenizer, extractor
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
        self._no_timestamps = getattr(settings, "no_timestamps_token_id", None) or names.get("<|notimestamps|>")
        self._before_prompt = names.get("<|startofprev|>")
        self._no_speech: int | None = names.get("<|nospeech|>", names.get("<|nocaptions|>"))

    @classmethod
    def read(cls, base: Base, device: torch.device, dtype: torch.dtype, **options: Any) -> Self:
        model = load_model(base.folder, dtype).to(device)
        model.name_or_path = base.reference
        tokenizer = WhisperTokenizer.from_pretrained(base.folder, local_files_only=True)
        extractor = WhisperFeatureExtractor.from_pretrained(base.folder, local_files_only=True)
        return cls(model, tokenizer, extractor, base, **options)

    @cached_property
    def tokenizer_sha256(self) -> str:
        """Of the tokens and their numbers."""
        return hashlib.sha256(json.dumps(sorted(self.tokenizer.get_vocab().items())).encode()).hexdigest()

    @property
    def window(self) -> int:
        """Tokens of a prompt and its transcript together."""
        return int(self.model.config.max_target_positions)

    @property
    def seconds(self) -> float:
        """The longest clip that the encoder takes."""
        return float(self.model.config.max_source_positions) / 50

    def model_input(self, samples: Any, window: float = 0.0) -> Tensor:
        """(M, 2 F) float32: the log-mel spectrogram of samples (n,), padded with silence to `window` seconds.

        Samples beyond `seconds` are cut off.
        """
        most = int(self.seconds * RATE)
        audio = np.asarray(samples, dtype=np.float32)[:most]
        # To whole frames: an even number of columns, so that no clip's frames depend on its neighbour in a batch
        wanted = min(most, math.ceil(max(640, len(audio), window * RATE) / 320) * 320)
        audio = np.pad(audio, (0, wanted - len(audio)))
        found = self.extractor(
            audio, sampling_rate=RATE, padding="do_not_pad", truncation=False, return_tensors="pt", device="cpu"
        )
        out: Tensor = found["input_features"][0]
        return out

    def prompt_tokens(self, request: TranscriptionRequest) -> list[int]:
        """The tokens before the transcript; -1 for a language without a token, or one that is yet to be detected."""
        before: list[int] = []
        if request.prompt and self._before_prompt is not None:
            text: list[int] = self.tokenizer(" " + nfc(request.prompt).strip(), add_special_tokens=False).input_ids
            before = [self._before_prompt, *text[-(self.window // 2 - 1) :]]
        start = [self._start]
        if self._language_tokens:
            token = self._token_of(request.language) if request.language else None
            start += [LANGUAGE if token is None else token, self._transcribe]
        return [*before, *start, *([self._no_timestamps] if self._no_timestamps is not None else [])]

    def encode(self, rows: Sequence[Row]) -> list[WhisperExample]:
        """Rows as examples: samples, and the tokens of prompt, transcript and end, truncated to `window`."""
        examples = []
        for row in rows:
            prompt = self.prompt_tokens(TranscriptionRequest(row["samples"], row["language"]))
            answer: list[int] = self.tokenizer(" " + nfc(row["text"]).strip(), add_special_tokens=False).input_ids
            tokens = [*prompt, *answer, self.end][: self.window]
            examples.append(WhisperExample(row["samples"], tokens, len(prompt), row["language"]))
        return examples

    def collate(self, examples: Sequence[WhisperExample], inputs: Sequence[Tensor] | None = None) -> WhisperBatch:
        documents = [
            Document([max(token, 0) for token in one.tokens], one.answer_start, one.tokens[-1] == self.end)
            for one in examples
        ]
        tokens = [(token, one.language) for one in examples for token in one.tokens]
        return WhisperBatch(
            **vars(pack(documents)),
            mels=tuple(inputs if inputs is not None else (self.model_input(one.samples) for one in examples)),
            lengths=tuple(len(one.tokens) for one in examples),
            languages=tuple((position, tag) for position, (token, tag) in enumerate(tokens) if token == LANGUAGE),
        )

    def _token_of(self, tag: str) -> int | None:
        return self._language_tokens.get(tag) or self._language_tokens.get(tag.split("-")[0])

    @torch.inference_mode()
    def _bits(
        self, rows: Sequence[Row], losses: Callable[[WhisperBatch], Tensor], window: float, at_once: int
    ) -> list[tuple[float, int]]:
        examples = self.encode(rows)
        bits = [0.0] * len(rows)
        order = sorted(range(len(rows)), key=lambda index: examples[index].frames)
        for start in range(0, len(order), at_once):
            part = order[start : start + at_once]
            chosen = [examples[index] for index in part]
            inputs = [self.model_input(example.samples, window) for example in chosen]
            batch = self.collate(chosen, inputs).to(self.device)
            found = losses(batch)[~batch.answer_ends].double() / math.log(2)
            owners = batch.answer_document[~batch.answer_ends]
            sums = torch.zeros(len(part), dtype=torch.float64, device=self.device).index_add(0, owners, found)
            for index, value in zip(part, sums.tolist(), strict=True):
                bits[index] = value
        # The bytes of a truncated transcript are those that are left; the space before it is not part of it
        sizes = [sum(len(self.token_bytes(token)) for token in one.tokens[one.answer_start :]) - 1 for one in examples]
        return list(zip(bits, sizes, strict=True))


class WhisperTask(WhisperBase, Recogniser):
    """A Whisper that transcribes with any number of adapters, on one device. Belongs to one thread at a time."""

    encodes = True

    def __init__(self, model: Any, tokenizer: Any, extractor: Any, base: Base, slots: int = SLOTS) -> None:
        WhisperBase.__init__(self, model, tokenizer, extractor, base)
        Recogniser.__init__(self, slots, self._language_tokens)
        suppressed = set(getattr(model.generation_config, "suppress_tokens", None) or [])
        self._suppressed = sorted((suppressed | set(range(self.end, model.config.vocab_size))) - {self.end})

    def frames(self, spectrograms: Sequence[Tensor]) -> list[Tensor]:
        """The encoder's frames (F, W) of each spectrogram without any adapter, float32 on the CPU."""
        return [part.float().cpu() for part in self._shared().frames(spectrograms)]

    def read_adapter(self, folder: Path) -> LoadedWhisperAdapter:
        return read_adapter(folder, self.model, self._layers(), self.tokenizer_sha256)

    def _new_runner(self, model: Any) -> WhisperRunner:
        return WhisperRunner(
            model, self.token_bytes, self._suppressed, self.slots, self._start, self._language_tokens, self._no_speech
        )

    def bits(
        self, rows: Sequence[Row], adapter: str | None, full_window: bool | None = None
    ) -> list[tuple[float, int]]:
        """See `Recogniser.bits`; the transcripts are in NFC."""
        runner, key = self._runner_of(adapter)

        def losses(batch: WhisperBatch) -> Tensor:
            frames, tokens = sum(map(frame_count, batch.mels)), batch.input_ids.shape[1]
            with ExitStack() as stack:
                stack.enter_context(runner.encoding.apply([(key, frames)]))
                stack.enter_context(runner.decoding.apply([(key, tokens)], kept=[(key, len(batch.answer_positions))]))
                return packed_losses(runner.model, batch, lambda tag: self._embedding(tag, adapter))

        return self._bits(rows, losses, self._padding(adapter, full_window), self.slots)

    def _padding(self, adapter: str | None, full_window: bool | None) -> float:
        """Seconds that shorter clips are padded to; where nothing is asked for, the base's or the adapter's own."""
        own = self.seconds if adapter is None else min(self.seconds, self._loaded[adapter].window)
        return own if full_window is None else self.seconds * full_window

    def window_of(self, adapter: str) -> float:
        return self._padding(adapter, None)

    def searches(self, adapter: str) -> bool:
        return bool(self._loaded[adapter].language_models)

    def set_window(self, folder: Path, seconds: float) -> None:
        set_window(folder, seconds)

    def submit(
        self, request: TranscriptionRequest, adapter: str | None, tokens: list[int] | None = None
    ) -> list[Ticket]:
        self._check(request)
        language = self._language_of(request, adapter)
        beam = self._beam(request, language, adapter)
        if language != request.language:
            request, tokens = replace(request, language=language), None
        prompt = tokens or self.prompt_tokens(request)
        runner, key = self._runner_of(adapter)
        parts: list[Part] = [prompt]
        if language and LANGUAGE in prompt:
            at = prompt.index(LANGUAGE)
            parts = [prompt[:at], self._embedding(language, adapter)[None], prompt[at + 1 :]]
        seconds = len(request.samples) / RATE
        room = _TOKENS_AT_REST + int(_TOKENS_A_SECOND * seconds)
        spectrogram = self.model_input(request.samples, self._padding(adapter, request.full_window))
        sampling = Sampling(
            temperature=request.temperature, seed=request.seed, ignore_eos=request.ignore_eos, no_repeat=NO_REPEAT
        )
        memory = ClipState(spectrogram, language, seconds, pauses(request.samples) if request.words else None)
        limit = min(request.max_tokens or room, room)
        generation = Generation(parts, key, limit, sampling, logprobs=request.logprobs, beam=beam, memory=memory)
        return [runner.engine.submit(generation)]

    def _beam(self, request: TranscriptionRequest, language: str | None, adapter: str | None) -> BeamSearch | None:
        """How a request is searched; None: token by token."""
        if (beam := request.beam) is not None:
            if not 1 <= beam.size <= self.slots:
                raise UsageError(f"beam.size is {beam.size}: 1 to {self.slots}, the slots of the engine, are allowed.")
            if request.temperature or request.logprobs:
                raise UsageError("a beam takes temperature 0 and no likeliest tokens: leave them out, or the beam.")
            return beam
        if request.temperature or request.logprobs:
            return None
        bias = self._hot_words(request.hot_words) if request.hot_words else None
        models = self._loaded[adapter].language_models if adapter and request.language_model else {}
        if language in models:
            return models[language].search(self.slots, bias)  # type: ignore[no-any-return]
        return None if bias is None else BeamSearch(min(BEAMS, self.slots), bias=bias)

    def _hot_words(self, words: Sequence[str]) -> HotWords:
        """Each as it is spelled, and with a capital as at the beginning of a sentence."""
        spellings = dict.fromkeys(nfc(one).strip() for word in words for one in (word, word[:1].upper() + word[1:]))
        return HotWords([self.tokenizer(f" {one}", add_special_tokens=False).input_ids for one in spellings if one])

    def _embedding(self, language: str, adapter: str | None) -> Tensor:
        """That of a language without a token, from the adapter."""
        embeddings: dict[str, Tensor] = self._loaded[adapter].language_embeddings if adapter else {}
        if language not in embeddings:
            raise UsageError(
                f"{adapter or self.base.name} does not know the language '{language}': name one of "
                f"{', '.join(sorted({*self._language_tokens, *embeddings}))}."
            )
        return embeddings[language]
