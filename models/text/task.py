"""The text task: a causal language model and its adapters, from examples to loss and from requests to streamed text.

How a conversation becomes tokens is in `kauli.models.text.prompts`. An adapter with a connector takes media in
its prompts as well (`kauli.models.text.describe` trains such).
"""

import math
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Self

import torch
from peft import PeftModel
from peft.utils import load_peft_weights, set_peft_model_state_dict
from torch import Tensor, nn
from torch.nn import functional
from transformers import AutoModelForCausalLM, AutoTokenizer, PreTrainedModel, PreTrainedTokenizerBase
from transformers.utils.logging import disable_progress_bar

from kauli.models.adapters.delta import LinearDelta
from kauli.models.bases.find import Base
from kauli.models.engine.detokenize import TokenBytes
from kauli.models.engine.engine import Engine, Generation, Part, Progress, Ticket
from kauli.models.engine.lora_batch import LoraBatch
from kauli.models.engine.malloc import keep_freed_memory
from kauli.models.engine.packing import ATTENTION, FEATURE, Batch, Document, MediaFeatures, pack
from kauli.models.engine.sampling import Sampling
from kauli.models.engine.stream import stream
from kauli.models.errors import KauliError, UsageError
from kauli.models.languages import nfc
from kauli.models.requests import DEFAULT_TOKENS, Chunk, Media, TextRequest
from kauli.models.text.connector import Connector, Fused
from kauli.models.text.prompts import Prompts

# Raised inside peft, which asks transformers by an old name; nobody can do anything about it.
warnings.filterwarnings("ignore", message="`is_gradient_checkpointing` is deprecated", category=FutureWarning)
disable_progress_bar()  # type: ignore[no-untyped-call]  # of loading: two seconds are over before it is read

SLOTS = 16
"""Answers generated at a time, unless the caller says otherwise."""

Row = Mapping[str, Any]
"""An example; this task reads `prompt`, `text` and, where there are any, `media`."""


@dataclass
class _Full:
    """A base whose every weight was trained: a model and an engine of its own."""

    model: PreTrainedModel
    engine: Engine


@dataclass(frozen=True)
class LoadedTextAdapter:
    """An adapter that was read: its terms by layer, or a fully fine-tuned model; and its connector, if it has one."""

    weights: dict[str, LinearDelta] | PreTrainedModel
    connector: Connector | None = None


class TextTask:
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
        self.base = base
        self.tokenizer = tokenizer
        self.token_bytes = TokenBytes(tokenizer)
        self.model: PreTrainedModel | PeftModel = model
        model.train(False)
        self.slots = slots
        self.window = min(window or self.context, self.context)
        self._lora: LoraBatch | None = None  # made with the first adapter or request: training needs neither
        self._shared: Engine | None = None
        self._full: dict[str, _Full] = {}
        self.connector: Connector | None = None
        """The one in training."""
        self._connectors: dict[str, Connector] = {}
        end = tokenizer.eos_token_id
        if end is None:
            raise UsageError(f"base '{base.name}' has no end token in its tokenizer: it can't be trained to stop.")
        self.end = int(end)
        self.prompts = Prompts(tokenizer, base.template, self.end)
        configured = model.generation_config.eos_token_id if model.generation_config else None
        others = configured if isinstance(configured, list) else [configured]
        self.ends = frozenset({self.end, *(int(token) for token in others if token is not None)})

    @classmethod
    def load(
        cls,
        base: Base,
        device: str | None = None,
        dtype: torch.dtype | None = None,
        slots: int = SLOTS,
        window: int | None = None,
    ) -> Self:
        """The base from its folder; by default on the GPU in bf16 where there is one, else on the CPU in fp32."""
        device = device or ("cuda" if torch.cuda.is_available() else "cpu")
        dtype = dtype or (torch.bfloat16 if device.startswith("cuda") else torch.float32)
        if device == "cpu":
            keep_freed_memory()
        model = _load_model(base.folder, dtype).to(device)  # type: ignore[arg-type]  # transformers wraps `to`
        model.name_or_path = base.reference  # PEFT writes it into the adapter, and a path of this machine helps nobody
        tokenizer = AutoTokenizer.from_pretrained(base.folder, local_files_only=True)
        return cls(model, tokenizer, base, slots, window)

    @property
    def device(self) -> torch.device:
        """Where the model is."""
        return next(self.model.parameters()).device

    @property
    def context(self) -> int:
        """The most tokens that a prompt and its answer may have together."""
        return int(getattr(self.model.config, "max_position_embeddings", 2048))

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
                    f"the connector in {folder} leads to {connector.hidden} numbers, the embeddings of base "
                    f"'{self.base.name}' have {wanted}."
                )
            connector.to(self.device)
        if (folder / "model.safetensors").exists():
            model: PreTrainedModel = _load_model(folder, self.model.dtype).to(self.device)  # type: ignore[arg-type]
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
            assert not isinstance(self.model, PeftModel), "adapters are loaded into a base that is not in training"
            self._lora = LoraBatch(self.model, self.slots)
        return self._lora

    def prompt_tokens(self, request: TextRequest) -> list[int]:
        """The tokens before the answer; see `kauli.models.text.prompts.Prompts.tokens`."""
        return self.prompts.tokens(request)

    # Training and scoring

    @property
    def trained(self) -> nn.Module:
        """What training computes with: the model, with the connector before it where there is one."""
        return self.model if self.connector is None else Fused(self.model, self.connector)

    def start_from(self, folder: Path) -> None:
        """Give the adapter in training the weights of an adapter folder of the same kind and shape.

        Of a connector the kinds of media that both have are taken over. Raises KauliError where a tensor is missing or
        too many.
        """
        weights = load_peft_weights(str(folder), device=str(self.device))
        try:
            result: Any = set_peft_model_state_dict(self.model, weights, adapter_name="default")
        except RuntimeError as error:  # a shape that is not that of its place
            raise KauliError(f"the adapter in {folder} does not fit base '{self.base.name}': {error}") from error
        lost = [name for name in result.missing_keys if ".default." in name] + list(result.unexpected_keys)
        if lost:
            raise KauliError(
                f"the adapter in {folder} does not fit base '{self.base.name}': tensor {lost[0]} has no counterpart."
            )
        theirs = Connector.load(folder)
        if self.connector is None or theirs is None:
            return
        for kind in self.connector.settings.keys() & theirs.settings.keys():
            if theirs.settings[kind] != self.connector.settings[kind]:
                text = f"the connector in {folder} is of another encoder or shape for {kind} than the recipe's"
                raise UsageError(f"start_from: {text}.")
            self.connector.parts[kind].load_state_dict(theirs.parts[kind].state_dict())

    def save(self, folder: Path) -> None:
        """Write the adapter in training as a PEFT folder, or the whole model's weights after full fine-tuning."""
        if self.connector is not None:
            self.connector.save(folder)
        if isinstance(self.model, PeftModel):
            # "auto" would ask the hub whether the vocabulary grew.
            self.model.save_pretrained(str(folder), save_embedding_layers=False)
        else:
            self.model.save_pretrained(str(folder))

    def encode(self, rows: Sequence[Row], max_length: int | None = None) -> list[Document]:
        """The tokens of each row: prompt, answer, end token; cut to `max_length` (default: the context)."""
        limit = min(max_length or self.context, self.context)
        return [self.prompts.document(row, limit) for row in rows]

    def collate(self, documents: Sequence[Document]) -> Batch:
        """Packed without attention between documents; shapes at `kauli.models.engine.packing.Batch`."""
        return pack(documents)

    def loss(self, batch: Batch) -> Tensor:
        """The mean cross-entropy in nats over the batch's answer tokens, end tokens included; a scalar."""
        return answer_losses(self.trained, batch.to(self.device)).mean()

    def bits(self, rows: Sequence[Row], adapter: str | None, pack_tokens: int = 2048) -> list[tuple[float, int]]:
        """For each row the bits that its text costs the model, and the text's UTF-8 bytes (after NFC).

        The end token is not counted: bits per byte are the text's alone. A text cut at the context counts the bytes
        that are left.
        """
        full = self._full.get(adapter) if adapter is not None else None
        model: nn.Module = self.model if full is None else full.model
        if connector := self._connectors.get(adapter or ""):
            model = Fused(model, connector)
        return self._bits(model, rows, pack_tokens, adapter if full is None else None)

    def current_bits(self, rows: Sequence[Row], pack_tokens: int = 2048) -> list[tuple[float, int]]:
        """As `bits`, of the model as it stands, for example in training."""
        return self._bits(self.trained, rows, pack_tokens)

    @torch.inference_mode()
    def _bits(
        self, model: nn.Module, rows: Sequence[Row], pack_tokens: int, adapter: str | None = None
    ) -> list[tuple[float, int]]:
        documents = self.encode(rows)
        if not isinstance(model, Fused) and any(document.media for document in documents):
            raise UsageError(f"{adapter or self.base.name} takes no pictures or recordings: it has no connector.")
        bits = [0.0] * len(rows)
        for part in _parts([len(document.tokens) for document in documents], pack_tokens):
            batch = pack([documents[index] for index in part]).to(self.device)
            tokens, scored = batch.input_ids.shape[1], len(batch.answer_positions)
            with self._adapters().apply([(adapter, tokens)], kept=[(adapter, scored)]) if adapter else nullcontext():
                losses = answer_losses(model, batch)[~batch.answer_ends].double() / math.log(2)
            owners = batch.answer_document[~batch.answer_ends]
            sums = torch.zeros(len(part), dtype=torch.float64, device=self.device).index_add(0, owners, losses)
            for index, value in zip(part, sums.tolist(), strict=True):
                bits[index] = value
        return [(value, self._bytes(row, doc)) for value, row, doc in zip(bits, rows, documents, strict=True)]

    def _bytes(self, row: Row, document: Document) -> int:
        if document.ended:
            return len(nfc(row["text"]).encode())
        return sum(len(self.token_bytes(token)) for token in document.tokens[document.answer_start :])

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
                raise UsageError(f"{adapter or self.base.name} takes no {one.kind}s: it has no connector for them.")
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
            model = self.model
            assert not isinstance(model, PeftModel), "a task in training does not generate"
            self._shared = self._new_engine(model, self._adapters())
        return self._shared

    def _engines(self) -> list[Engine]:
        shared = [] if self._shared is None else [self._shared]
        return shared + [full.engine for full in self._full.values()]

    def _new_engine(self, model: PreTrainedModel, lora: LoraBatch | None) -> Engine:
        return Engine(model, self.token_bytes, self.ends, lora, slots=self.slots, context=self.window)


def answer_losses(model: nn.Module, batch: Batch) -> Tensor:
    """The cross-entropy of each answer token of a pack in nats, (M,); logits are computed at no other position."""
    logits = model(**batch.model_inputs()).logits[0]
    return functional.cross_entropy(logits.float(), batch.answer_ids, reduction="none")


def _load_model(folder: Path, dtype: torch.dtype) -> PreTrainedModel:
    model: PreTrainedModel = AutoModelForCausalLM.from_pretrained(
        folder, dtype=dtype, attn_implementation=ATTENTION, local_files_only=True, use_safetensors=True
    )
    return model


def _parts(lengths: Sequence[int], limit: int) -> Iterator[list[int]]:
    """Indices in runs of at most `limit` tokens, longest first; a longer one stands alone."""
    part: list[int] = []
    total = 0
    for index in sorted(range(len(lengths)), key=lambda index: -lengths[index]):
        if part and total + lengths[index] > limit:
            yield part
            part, total = [], 0
        part.append(index)
        total += lengths[index]
    if part:
        yield part
