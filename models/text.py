"""The text task: a causal language model and its adapters, from examples to loss and from requests to streamed text.

This file owns how a conversation becomes tokens, for training, evaluation and serving alike.
"""

import math
import threading
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

import torch
from peft import PeftConfig, PeftModel
from peft.utils import load_peft_weights, set_peft_model_state_dict
from torch import Tensor, nn
from torch.nn import functional
from transformers import AutoModelForCausalLM, AutoTokenizer, DynamicCache, PreTrainedModel, PreTrainedTokenizerBase
from transformers.utils.logging import disable_progress_bar

from kauli.models.bases import Base
from kauli.models.errors import KauliError, UsageError
from kauli.models.languages import nfc
from kauli.models.memory import keep_freed_memory
from kauli.models.packing import ATTENTION, Batch, Document, pack
from kauli.models.sampling import Sampler
from kauli.models.tokens import TextStream, TokenBytes

# Raised inside peft, which asks transformers by an old name; nobody can do anything about it.
warnings.filterwarnings("ignore", message="`is_gradient_checkpointing` is deprecated", category=FutureWarning)
disable_progress_bar()  # type: ignore[no-untyped-call]  # of loading: two seconds are over before it is read

PLAIN_TEMPLATE = "{% for message in messages %}{{ message['content'] }}\n{% endfor %}"
"""For a base without a chat template: each message on a line of its own, the answer after the last."""

Row = Mapping[str, Any]
"""An example; this task reads `prompt` and `text`."""


@dataclass(frozen=True)
class Message:
    """One turn of a conversation; `role` is system, user or assistant."""

    role: str
    content: str


@dataclass(frozen=True)
class TextRequest:
    """What to generate: an answer to `messages`, or the continuation of the raw text `prompt` (which may be empty)."""

    messages: tuple[Message, ...] | None = None
    prompt: str | None = None
    max_tokens: int = 128
    temperature: float = 0.0
    top_p: float = 1.0
    top_k: int = 0
    seed: int | None = None
    stop: tuple[str, ...] = ()
    min_tokens: int = 0
    ignore_eos: bool = False
    repetition_penalty: float = 1.0

    @classmethod
    def of_prompt(cls, prompt: str | None, **options: Any) -> Self:
        """The request that an example's `prompt` stands for: one user message, or a document from its beginning."""
        if prompt is None:
            return cls(prompt="", **options)
        return cls(messages=(Message("user", prompt),), **options)


@dataclass(frozen=True)
class Chunk:
    """Some text of row `row` of a batch, whole characters only; the row's last chunk says why it ended."""

    row: int
    text: str
    tokens: int
    finish: str | None = None
    """None, or "stop" (end token or stop string), "length" (`max_tokens` or the context), "cancelled"."""


class TextTask:
    """A causal language model with any number of adapters, on one device. Not for several threads at once."""

    def __init__(self, model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, base: Base) -> None:
        self.base = base
        self.tokenizer = tokenizer
        self.template: str = base.template or tokenizer.chat_template or PLAIN_TEMPLATE
        self.token_bytes = TokenBytes(tokenizer)
        self.model: PreTrainedModel | PeftModel = model
        model.train(False)
        self._lora: dict[str, str] = {}  # key -> PEFT's name: a module's name may hold no dot, a key does
        self._full: dict[str, PreTrainedModel] = {}
        self._count = 0
        self._lock = threading.Lock()
        end = tokenizer.eos_token_id
        if end is None:
            raise UsageError(f"base '{base.name}' has no end token in its tokenizer: it can't be trained to stop.")
        self.end = int(end)
        configured = model.generation_config.eos_token_id if model.generation_config else None
        others = configured if isinstance(configured, list) else [configured]
        self.ends = frozenset({self.end, *(int(token) for token in others if token is not None)})

    @classmethod
    def load(cls, base: Base, device: str | None = None, dtype: torch.dtype | None = None) -> Self:
        """The base from its folder; by default on the GPU in bf16 where there is one, else on the CPU in fp32."""
        device = device or ("cuda" if torch.cuda.is_available() else "cpu")
        dtype = dtype or (torch.bfloat16 if device.startswith("cuda") else torch.float32)
        if device == "cpu":
            keep_freed_memory()
        model = _load_model(base.folder, dtype).to(device)  # type: ignore[arg-type]  # transformers wraps `to`
        model.name_or_path = base.reference  # PEFT writes it into the adapter, and a path of this machine helps nobody
        return cls(model, AutoTokenizer.from_pretrained(base.folder, local_files_only=True), base)

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
        return [*self._lora, *self._full]

    def add_adapter(self, key: str, folder: Path) -> None:
        """Load a checked adapter folder under a key (such as `text-sw@3`).

        Raises KauliError where its tensors and its configuration don't fit each other or the base: a tensor that
        finds no place would otherwise be an adapter that silently does nothing.
        """
        if key in self.adapters():
            raise ValueError(f"adapter {key!r} is loaded already")
        if (folder / "model.safetensors").exists():
            self._full[key] = _load_model(folder, self.model.dtype).to(self.device).eval()  # type: ignore[arg-type]
            return
        name = f"a{self._count}"
        self._count += 1
        config = PeftConfig.from_pretrained(str(folder))
        config.inference_mode = True
        with self._lock:
            if isinstance(self.model, PeftModel):
                self.model.add_adapter(name, config)
            else:
                self.model = PeftModel(self.model, config, adapter_name=name)
            try:
                self._fill(name, folder)
            except KauliError:
                self._drop(name)
                raise
            self._lora[key] = name
            self.model.eval()

    def _fill(self, name: str, folder: Path) -> None:
        """Set the weights of PEFT's adapter `name`; KauliError where a tensor is missing or too many."""
        weights = load_peft_weights(str(folder), device=str(self.device))
        try:
            result: Any = set_peft_model_state_dict(self.model, weights, adapter_name=name)
        except RuntimeError as error:  # a shape that is not that of its place
            raise KauliError(f"the adapter in {folder} does not fit base '{self.base.name}': {error}") from error
        lost = [tensor for tensor in result.missing_keys if f".{name}." in tensor] + list(result.unexpected_keys)
        if lost:
            raise KauliError(
                f"the adapter in {folder} does not fit base '{self.base.name}': tensor {lost[0]} has no counterpart."
            )

    def remove_adapter(self, key: str) -> None:
        """Forget an adapter's weights."""
        if self._full.pop(key, None) is None:
            with self._lock:
                self._drop(self._lora.pop(key))

    def _drop(self, name: str) -> None:
        """Delete PEFT's adapter `name`; with the last one its layers go too, since PEFT can't run with none."""
        assert isinstance(self.model, PeftModel)
        if len(self.model.peft_config) > 1:
            self.model.delete_adapter(name)
        else:
            self.model = self.model.unload()

    def _apply(self, keys: Sequence[str | None]) -> tuple[nn.Module, AbstractContextManager[Any], dict[str, Any]]:
        """The model for a batch, the context to run it in, and what to pass to its forward, for each row's adapter."""
        if keys[0] in self._full:
            return self._full[keys[0]], nullcontext(), {}
        if not isinstance(self.model, PeftModel):
            return self.model, nullcontext(), {}
        if set(keys) == {None}:
            return self.model, self.model.disable_adapter(), {}
        if len(set(keys)) == 1:
            assert keys[0] is not None
            self.model.set_adapter(self._lora[keys[0]])
            return self.model, nullcontext(), {}
        return self.model, nullcontext(), {"adapter_names": [self._lora[key] if key else "__base__" for key in keys]}

    # Tokens

    def prompt_tokens(self, request: TextRequest) -> list[int]:
        """The tokens before the answer; never empty."""
        if request.messages is None:
            return self._document_start() + self._plain_tokens(request.prompt or "")
        text = self.tokenizer.apply_chat_template(
            [{"role": message.role, "content": nfc(message.content)} for message in request.messages],
            chat_template=self.template,
            add_generation_prompt=True,
            tokenize=False,
        )
        start: list[int] = self.tokenizer(
            ""
        ).input_ids  # what the tokenizer puts before any text, such as Gemma's <bos>
        tokens = self._plain_tokens(str(text))
        return tokens if tokens[: len(start)] == start else start + tokens

    def _plain_tokens(self, text: str) -> list[int]:
        tokens: list[int] = self.tokenizer(text, add_special_tokens=False).input_ids
        return tokens

    def _document_start(self) -> list[int]:
        """What stands before a text without a prompt: the tokenizer's own start, or the separator of pretraining."""
        start: list[int] = self.tokenizer("").input_ids
        if start:
            return start
        separator = self.tokenizer.convert_tokens_to_ids("<|endoftext|>")
        unknown = separator is None or separator == self.tokenizer.unk_token_id
        return [separator if isinstance(separator, int) and not unknown else self.end]

    # Training and scoring

    def start_from(self, folder: Path) -> None:
        """Give the adapter in training the weights of an adapter folder of the same kind and shape."""
        self._fill("default", folder)

    def save(self, folder: Path) -> None:
        """Write the adapter in training as a PEFT folder, or the whole model's weights after full fine-tuning."""
        if isinstance(self.model, PeftModel):
            # "auto" would ask the hub whether the vocabulary grew.
            self.model.save_pretrained(str(folder), save_embedding_layers=False)
        else:
            self.model.save_pretrained(str(folder))

    def encode(self, rows: Sequence[Row], max_length: int | None = None) -> list[Document]:
        """The tokens of each row: prompt, answer, end token; cut to `max_length` (default: the context)."""
        limit = min(max_length or self.context, self.context)
        documents = []
        for row in rows:
            prompt = self.prompt_tokens(TextRequest.of_prompt(row["prompt"]))
            answer = [*self._plain_tokens(nfc(row["text"])), self.end]
            if len(prompt) > limit // 2 and len(prompt) + len(answer) > limit:
                prompt = prompt[-(limit // 2) :]  # a long prompt gives way: at least half of the room is the answer's
            tokens = prompt + answer
            documents.append(Document(tokens[:limit], len(prompt), len(tokens) <= limit))
        return documents

    def collate(self, documents: Sequence[Document]) -> Batch:
        """Packed without attention between documents; shapes at `kauli.models.packing.Batch`."""
        return pack(documents)

    def loss(self, batch: Batch) -> Tensor:
        """The mean cross-entropy in nats over the batch's answer tokens, end tokens included; a scalar."""
        return answer_losses(self.model, batch.to(self.device)).mean()

    def bits(self, rows: Sequence[Row], adapter: str | None, pack_tokens: int = 2048) -> list[tuple[float, int]]:
        """For each row the bits that its text costs the model, and the text's UTF-8 bytes (after NFC).

        The end token is not counted: bits per byte are the text's alone. A text cut at the context counts the bytes
        that are left.
        """
        model, context, options = self._apply([adapter])
        with context:
            return self._bits(model, options, rows, pack_tokens)

    def current_bits(self, rows: Sequence[Row], pack_tokens: int = 2048) -> list[tuple[float, int]]:
        """As `bits`, of the model as it stands, for example in training."""
        return self._bits(self.model, {}, rows, pack_tokens)

    @torch.inference_mode()
    def _bits(
        self, model: nn.Module, options: dict[str, Any], rows: Sequence[Row], pack_tokens: int
    ) -> list[tuple[float, int]]:
        documents = self.encode(rows)
        bits = [0.0] * len(rows)
        for part in _parts([len(document.tokens) for document in documents], pack_tokens):
            batch = pack([documents[index] for index in part]).to(self.device)
            losses = answer_losses(model, batch, **options)[~batch.answer_ends].double() / math.log(2)
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

    def generate(
        self,
        requests: Sequence[TextRequest],
        adapters: Sequence[str | None],
        cancelled: Callable[[int], bool] | None = None,
    ) -> Iterator[list[Chunk]]:
        """Answer a batch, each row with its own adapter (None: the base alone); yields the chunks of each step.

        A row leaves the batch when it ends, or when `cancelled(row)` says so before a step. Rows of a fully fine-tuned
        adapter run as a batch of their own. Raises UsageError for a prompt that leaves no room in the context.
        """
        prompts = [self.prompt_tokens(request) for request in requests]
        for prompt in prompts:
            if len(prompt) >= self.context:
                raise UsageError(
                    f"the prompt has {len(prompt)} tokens; the context of {self.base.name} holds {self.context}."
                )
        full = {key for key in adapters if key in self._full}
        batches = [[row for row, key in enumerate(adapters) if key == name] for name in sorted(full)]
        batches.append([row for row, key in enumerate(adapters) if key not in full])
        for rows in filter(None, batches):
            yield from self._generate(rows, prompts, requests, adapters, cancelled or (lambda row: False))

    @torch.inference_mode()
    def _generate(
        self,
        rows: list[int],
        prompts: list[list[int]],
        requests: Sequence[TextRequest],
        adapters: Sequence[str | None],
        cancelled: Callable[[int], bool],
    ) -> Iterator[list[Chunk]]:
        states = {row: _RowState(requests[row], prompts[row], self) for row in rows}
        longest = max(len(prompts[row]) for row in rows)
        padded = [[self.end] * (longest - len(prompts[row])) + prompts[row] for row in rows]
        input_ids = torch.tensor(padded, device=self.device)
        mask = torch.tensor(
            [[0] * (longest - len(prompts[row])) + [1] * len(prompts[row]) for row in rows], device=self.device
        )
        cache = DynamicCache(config=self.model.config)
        while rows:
            positions = (mask.cumsum(1) - 1).clamp(min=0)[:, -input_ids.shape[1] :]
            # The adapters are set anew for every step: between two steps another batch may have run.
            with self._lock:
                model, context, options = self._apply([adapters[row] for row in rows])
                with context:
                    logits = model(
                        input_ids=input_ids,
                        attention_mask=mask,
                        position_ids=positions,
                        past_key_values=cache,
                        use_cache=True,
                        logits_to_keep=1,
                        **options,
                    ).logits[:, -1]
            chunks = [states[row].step(row, logits[place], cancelled(row)) for place, row in enumerate(rows)]
            yield [chunk for chunk in chunks if chunk.text or chunk.tokens or chunk.finish]
            alive = [place for place, chunk in enumerate(chunks) if chunk.finish is None]
            if len(alive) < len(rows):
                rows = [rows[place] for place in alive]
                if not rows:
                    return
                kept = torch.tensor(alive, device=self.device)
                cache.batch_select_indices(kept)
                mask = mask[kept]
            input_ids = torch.tensor([[states[row].last] for row in rows], device=self.device)
            mask = torch.cat([mask, mask.new_ones(len(rows), 1)], dim=1)


class _RowState:
    """How far one row of a batch has come."""

    def __init__(self, request: TextRequest, prompt: list[int], task: TextTask) -> None:
        self._limit = min(request.max_tokens, task.context - len(prompt))
        self._ends = frozenset() if request.ignore_eos else task.ends
        self._stream = TextStream(task.token_bytes, request.stop)
        self._seen = set(prompt) if request.repetition_penalty != 1.0 else set()
        self._track = request.repetition_penalty != 1.0
        self._sampler = Sampler(
            temperature=request.temperature,
            top_p=request.top_p,
            top_k=request.top_k,
            seed=request.seed,
            repetition_penalty=request.repetition_penalty,
            min_tokens=request.min_tokens,
            ends=task.ends,
            ignore_ends=request.ignore_eos,
        )
        self._count = 0
        self.last = 0

    def step(self, row: int, logits: Tensor, cancelled: bool) -> Chunk:
        """The chunk after one more token, drawn from logits (vocabulary,)."""
        if cancelled:
            return Chunk(row, "", 0, "cancelled")
        self.last = self._sampler.choose(logits, self._seen, self._count)
        if self._track:
            self._seen.add(self.last)
        self._count += 1
        if self.last in self._ends:
            return Chunk(row, self._stream.close(), 1, "stop")
        text = self._stream.push(self.last)
        if self._stream.stopped:
            return Chunk(row, text, 1, "stop")
        if self._count >= self._limit:
            return Chunk(row, text + self._stream.close(), 1, "length")
        return Chunk(row, text, 1)


def answer_losses(model: nn.Module, batch: Batch, **options: Any) -> Tensor:
    """The cross-entropy of each answer token of a pack in nats, (M,); logits are computed at no other position."""
    logits = model(**batch.model_inputs(), **options).logits[0]
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
