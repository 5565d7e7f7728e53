"""A language model that answers: requests become streamed text, each with its own adapter, for `text` and `describe`.

An adapter with a connector takes images and audio in its prompts as well. Training is in `kauli.models.text.training`.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from torch import nn
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from kauli.models.adapters.delta import LinearDelta
from kauli.models.bases.find import Base
from kauli.models.engine.engine import Engine, Generation, Part, Ticket
from kauli.models.engine.lora_batch import LoraBatch
from kauli.models.engine.packing import FEATURE, MediaFeatures
from kauli.models.engine.sampling import Sampling
from kauli.models.engine.stream import stream
from kauli.models.errors import KauliError, UsageError
from kauli.models.requests import DEFAULT_TOKENS, Chunk, Media, Progress, TextRequest
from kauli.models.text.connector import Connector, Fused
from kauli.models.text.language_model import LanguageModel, Row, load_model

SLOTS = 16
"""Answers generated at a time, unless the caller says otherwise."""


@dataclass
class _Full:
    """A fully fine-tuned base: a model with its own engine."""

    model: PreTrainedModel
    engine: Engine


@dataclass(frozen=True)
class LoadedTextAdapter:
    """An adapter that was read: its deltas by layer, or a fully fine-tuned model; and its connector, if it has one."""

    weights: dict[str, LinearDelta] | PreTrainedModel
    connector: Connector | None = None


class TextTask(LanguageModel):
    """A causal language model with any number of adapters, on one device. Not for several threads at once.

    It generates `slots` answers at a time, each of up to `window` tokens with its prompt (default: the context).
    """

    def __init__(
        self,
        model: PreTrainedModel,
        tokenizer: PreTrainedTokenizerBase,
        base: Base,
        slots: int = SLOTS,
        window: int | None = None,
    ) -> None:
        super().__init__(model, tokenizer, base)
        self.slots = slots
        self.window = min(window or self.context, self.context)
        self._lora: LoraBatch | None = None  # made with the first adapter or request: scoring the base needs none
        self._shared: Engine | None = None
        self._full: dict[str, _Full] = {}
        self._connectors: dict[str, Connector] = {}
        configured = model.generation_config.eos_token_id if model.generation_config else None
        others = configured if isinstance(configured, list) else [configured]
        self.ends = frozenset({self.end, *(int(token) for token in others if token is not None)})

    # Adapters

    def adapters(self) -> list[str]:
        """The keys of what is loaded."""
        return [*(self._lora.keys() if self._lora else []), *self._full]

    def read_adapter(self, folder: Path) -> LoadedTextAdapter:
        """What is in a checked adapter folder, for `put_adapter`; after `prepare` it may run beside `step`.

        Raises KauliError where its tensors and its configuration don't fit each other or the base, or where it is of
        a kind that can't be served.
        """
        connector = Connector.load(folder)
        if connector is not None:
            wanted = self.model.get_input_embeddings().embedding_dim
            if connector.hidden != wanted:
                raise KauliError(
                    f"the connector in {folder} maps to {connector.hidden} dimensions, the embeddings of base "
                    f"'{self.base.name}' have {wanted}: it was made for another base."
                )
            connector.to(self.device)
        if (folder / "model.safetensors").exists():
            model: PreTrainedModel = load_model(folder, self.model.dtype).to(self.device)  # type: ignore[arg-type]
            model.train(False)
            return LoadedTextAdapter(model, connector)
        return LoadedTextAdapter(self._adapters().read(folder), connector)

    def put_adapter(self, key: str, loaded: LoadedTextAdapter) -> None:
        """Take an adapter under a key (such as `text-sw@3`)."""
        if key in self.adapters():
            raise ValueError(f"adapter {key!r} is loaded already")
        if isinstance(loaded.weights, PreTrainedModel):
            # Wrapped like the base: few tokens are computed faster so
            self._full[key] = _Full(loaded.weights, self._new_engine(loaded.weights, LoraBatch(loaded.weights, 1)))
        else:
            self._adapters().add(key, loaded.weights)
        if loaded.connector is not None:
            self._connectors[key] = loaded.connector

    def add_adapter(self, key: str, folder: Path) -> None:
        """`read_adapter` and `put_adapter` at once."""
        self.put_adapter(key, self.read_adapter(folder))

    def remove_adapter(self, key: str) -> None:
        """Forget an adapter's weights; it must not be in use."""
        self._connectors.pop(key, None)
        if self._full.pop(key, None) is None:
            self._adapters().remove(key)

    def _adapters(self) -> LoraBatch:
        if self._lora is None:
            self._lora = LoraBatch(self.model, self.slots)
        return self._lora

    def prompt_tokens(self, request: TextRequest) -> list[int]:
        """The tokens before the answer; see `kauli.models.text.prompts.Prompts.tokens`."""
        return self.prompts.tokens(request)

    # Scoring

    def bits(self, rows: Sequence[Row], adapter: str | None, pack_tokens: int = 2048) -> list[tuple[float, int]]:
        """For each row the bits that its text costs the model, and the text's UTF-8 bytes (after NFC).

        The end token is not counted: bits per byte are the text's alone. A text truncated at the context counts the
        bytes that are left.
        """
        name = adapter or self.base.name
        full = self._full.get(adapter or "")
        model: nn.Module = self.model if full is None else full.model
        if connector := self._connectors.get(adapter or ""):
            model = Fused(model, connector)
        if adapter is None or full is not None:
            return self._score(model, rows, pack_tokens, name)
        lora = self._adapters()
        return self._score(
            model, rows, pack_tokens, name,
            lambda tokens, scored: lora.apply([(adapter, tokens)], kept=[(adapter, scored)]),
        )  # fmt: skip

    # Generation

    def prepare(self) -> None:
        """Make the engine now; before anything else runs in another thread."""
        self._engine()

    @property
    def busy(self) -> bool:
        """Whether `step` has something to do."""
        return any(engine.busy for engine in self._engines())

    def submit(self, request: TextRequest, adapter: str | None, tokens: list[int] | None = None) -> list[Ticket]:
        """Queue a request with an adapter (None: the base alone); a ticket for each of its `n` answers.

        `tokens` are its `prompt_tokens` where they are known. Raises UsageError for a prompt that leaves no room in
        the context.
        """
        prompt = tokens or self.prompt_tokens(request)
        if len(prompt) >= self.window:
            raise UsageError(
                f"the prompt has {len(prompt)} tokens; the context of {self.base.name} holds {self.window} here."
            )
        engine = self._full[adapter].engine if adapter in self._full else self._engine()
        sampling = Sampling(
            request.temperature, request.top_p, request.top_k, request.seed, request.repetition_penalty,
            request.min_tokens, request.ignore_eos, request.no_repeat,
        )  # fmt: skip
        generation = Generation(
            self._parts(prompt, request.media, adapter),
            None if adapter in self._full else adapter,
            request.max_tokens or DEFAULT_TOKENS,
            sampling,
            request.stop,
            request.logprobs,
        )
        return [engine.submit(replace(generation, index=index)) for index in range(request.n)]

    @torch.inference_mode()
    def _parts(self, tokens: list[int], media: Sequence[Media], adapter: str | None) -> list[Part]:
        """A prompt as the engine takes it: tokens, and embeddings of media in the place of their marks."""
        if not media:
            return [tokens]
        connector = self._connectors.get(adapter or "")
        parts: list[Part] = []
        for one in media:
            if connector is None or one.kind not in connector.settings:
                raise UsageError(
                    f"{adapter or self.base.name} takes no {one.kind}: it has no connector for that kind of media."
                )
            at, count = tokens.index(FEATURE), len(one.features)
            values = torch.as_tensor(one.features).float().to(self.device)
            places = torch.arange(count, device=self.device)
            parts += [tokens[:at], connector(one.kind, MediaFeatures(values, places, places))]
            tokens = tokens[at + count :]
        return [part for part in [*parts, tokens] if len(part)]

    def step(self) -> list[tuple[Ticket, Progress]]:
        """One pass of everything that is queued; see `kauli.models.engine.engine.Engine.step`."""
        return [found for engine in self._engines() if engine.busy for found in engine.step()]

    def generate(
        self,
        requests: Sequence[TextRequest],
        adapters: Sequence[str | None],
        cancelled: Callable[[int], bool] | None = None,
    ) -> Iterator[list[Chunk]]:
        """Answer requests together, each row with its own adapter; yields the chunks of each pass.

        A row ends early when `cancelled(row)` says so before a pass. Raises UsageError as `submit` does.
        """
        return stream(self, requests, adapters, cancelled)

    def _engine(self) -> Engine:
        if self._shared is None:
            self._shared = self._new_engine(self.model, self._adapters())
        return self._shared

    def _engines(self) -> list[Engine]:
        shared = [] if self._shared is None else [self._shared]
        return shared + [full.engine for full in self._full.values()]

    def _new_engine(self, model: PreTrainedModel, lora: LoraBatch | None) -> Engine:
        return Engine(model, self.token_bytes, self.ends, lora, slots=self.slots, context=self.window)
