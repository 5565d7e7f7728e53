"""A causal language model with its tokenizer: what serving and training share, the scoring of texts among it.

How a conversation becomes tokens is in `kauli.models.text.prompts`.
"""

import math
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import Any, Self

import torch
from torch import Tensor, nn
from torch.nn import functional
from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer, PreTrainedModel, PreTrainedTokenizerBase
from transformers.utils.logging import disable_progress_bar

from kauli.models.bases.find import Base
from kauli.models.engine.detokenize import TokenBytes
from kauli.models.engine.packing import ATTENTION, Batch, Document, pack
from kauli.models.engine.precision import place
from kauli.models.errors import UsageError
from kauli.models.languages import nfc
from kauli.models.text.connector import Fused
from kauli.models.text.prompts import Prompts

# Raised inside peft, which asks transformers by an old name; nobody can do anything about it.
warnings.filterwarnings("ignore", message="`is_gradient_checkpointing` is deprecated", category=FutureWarning)
disable_progress_bar()  # type: ignore[no-untyped-call]  # of loading: two seconds are over before it is read

Row = Mapping[str, Any]
"""An example; text tasks read `prompt`, `text` and, where there are any, `media`."""

_PACK_TOKENS = 2048  # of one forward pass of scoring; a longer row has its own


class LanguageModel:
    """A loaded base on one device. Not for several threads at once."""

    def __init__(self, model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, base: Base) -> None:
        self.base = base
        self.tokenizer = tokenizer
        self.token_bytes = TokenBytes(tokenizer)
        self.model: Any = model
        model.train(False)
        self.end = _end(tokenizer, base)
        self.prompts = Prompts(tokenizer, base.template, self.end, _vocabulary(model.config))

    @classmethod
    def load(cls, base: Base, device: str | None = None, dtype: torch.dtype | None = None, **options: Any) -> Self:
        """The base from its folder; device and precision as in `kauli.models.engine.precision.place`.

        `options` are those of the class.
        """
        where, precision = place(device, dtype)
        model = load_model(base.folder, precision).to(where)  # type: ignore[arg-type]  # transformers wraps `to`
        model.name_or_path = base.reference  # PEFT writes it into the adapter, and a path of this machine helps nobody
        return cls(model, load_tokenizer(base.folder), base, **options)

    @property
    def device(self) -> torch.device:
        """Where the model is."""
        device: torch.device = next(self.model.parameters()).device
        return device

    @property
    def context(self) -> int:
        """The most tokens that a prompt and its answer may have together."""
        return _context(self.model.config)

    def encode(self, rows: Sequence[Row], max_length: int | None = None) -> list[Document]:
        """The tokens of each row: prompt, answer, end token; truncated to `max_length` (default: the context)."""
        limit = min(max_length or self.context, self.context)
        return [self.prompts.document(row, limit) for row in rows]

    @torch.inference_mode()
    def _score(
        self,
        model: nn.Module,
        rows: Sequence[Row],
        name: str,
        adapted: Callable[[int, int], AbstractContextManager[None]] = lambda tokens, scored: nullcontext(),
    ) -> list[tuple[float, int]]:
        """For each row the bits that its text costs `model`, and the text's UTF-8 bytes (after NFC).

        Args:
            model: the language model, or a `Fused` one.
            rows: examples.
            name: of the model, for errors.
            adapted: (tokens of a pass, positions with logits) -> the context in which its adapter is applied.
        """
        documents = [one._replace(spans=()) for one in self.encode(rows)]  # answers alone are scored
        if not isinstance(model, Fused) and any(document.media for document in documents):
            raise UsageError(f"{name} takes no images or audio: it has no connector.")
        bits = [0.0] * len(rows)
        for part in _parts([len(document.tokens) for document in documents], _PACK_TOKENS):
            batch = pack([documents[index] for index in part]).to(self.device)
            with adapted(batch.input_ids.shape[1], len(batch.answer_positions)):
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


def answer_losses(model: nn.Module, batch: Batch) -> Tensor:
    """The cross-entropy of each answer token of a pack in nats, (M,); logits are computed at no other position."""
    logits = model(**batch.model_inputs()).logits[0]
    return functional.cross_entropy(logits.float(), batch.answer_ids, reduction="none")


def load_tokenizer(folder: Path) -> PreTrainedTokenizerBase:
    """The tokenizer in a folder, without a limit of its own: its callers know the context, and cut or refuse."""
    tokenizer: PreTrainedTokenizerBase = AutoTokenizer.from_pretrained(folder, local_files_only=True)
    tokenizer.deprecation_warnings["sequence-length-is-longer-than-the-specified-maximum"] = True
    return tokenizer


def load_prompts(base: Base) -> tuple[Prompts, int]:
    """How a base renders prompts, and its context in tokens, without its weights."""
    tokenizer = load_tokenizer(base.folder)
    config = AutoConfig.from_pretrained(base.folder, local_files_only=True)
    return Prompts(tokenizer, base.template, _end(tokenizer, base), _vocabulary(config)), _context(config)


def _context(config: Any) -> int:
    return int(getattr(config, "max_position_embeddings", 2048))


def _vocabulary(config: Any) -> int:
    return int(config.get_text_config().vocab_size)


def _end(tokenizer: PreTrainedTokenizerBase, base: Base) -> int:
    if tokenizer.eos_token_id is None:
        raise UsageError(f"base '{base.name}' has no end token in its tokenizer: it can't be trained to stop.")
    return int(tokenizer.eos_token_id)


def load_model(folder: Path, dtype: torch.dtype) -> PreTrainedModel:
    """The causal language model in a folder, on the CPU."""
    model: PreTrainedModel = AutoModelForCausalLM.from_pretrained(
        folder, dtype=dtype, attn_implementation=ATTENTION, local_files_only=True, use_safetensors=True
    )
    return model


def _parts(lengths: Sequence[int], limit: int) -> Iterator[list[int]]:
    """Indices in runs of at most `limit` tokens, longest first; a longer one has its own."""
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
