"""Several documents in one row without attention between them: no padding is computed.

The linear layers, which are nearly all of the work, compute one row of all tokens; only attention is computed document
by document, in buckets of similar length, so that a batch costs what its tokens cost. Shape letters: T tokens of the
pack, N documents of a bucket, L the bucket's longest, H heads, D head size, M answer tokens.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from itertools import accumulate
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable
from torch.nn import functional
from transformers import AttentionInterface, AttentionMaskInterface
from transformers.integrations.sdpa_attention import repeat_kv, sdpa_attention_forward
from transformers.masking_utils import sdpa_mask

from kauli.models.engine.kv_cache import SlotPass, by_length
from kauli.models.requests import Media

ATTENTION = "kauli_packed"
"""The `attn_implementation` that a model must be loaded with: SDPA, and packed attention where a pack is given."""

FEATURE = -1
"""The token of a prompt in whose place a connector puts the embedding of an encoder's feature."""


class Document(NamedTuple):
    """The tokens of one example; those from `answer_start` on are trained and scored."""

    tokens: list[int]
    answer_start: int
    ended: bool
    """Whether the last token is the end token (it is not where the answer was truncated)."""
    media: tuple[Media, ...] = ()
    """Media for the places of `FEATURE`, in their order."""
    spans: tuple[tuple[int, int], ...] = ()
    """Of the tokens before the answer those that are trained as well: (first, last + 1), each first over 0."""

    @property
    def targets(self) -> list[int]:
        """The places of all tokens that are trained."""
        return [*(at for span in self.spans for at in range(*span)), *range(self.answer_start, len(self.tokens))]


class MediaFeatures(NamedTuple):
    """The encoder's features of one kind in a pack, F of them."""

    values: Tensor
    """(F, width) float32."""
    places: Tensor
    """(F,): the number of each among the features of its own image or clip."""
    positions: Tensor
    """(F,): the position of each in the pack."""


@dataclass(frozen=True)
class Buckets:
    """The positions of each document's tokens in the pack, documents of similar length together."""

    shapes: tuple[tuple[int, int], ...]
    """(N, L) of each bucket."""
    positions: Tensor
    """(sum of N x L,): indices into the pack's T tokens; a short document is padded with its first index."""
    inverse: Tensor
    """(T,): for each token of the pack its place among all the buckets' N x L places, laid end to end."""


@dataclass(frozen=True)
class Batch:
    """Packed documents, ready for the model."""

    input_ids: Tensor
    """(1, T) int64."""
    position_ids: Tensor
    """(1, T) int64, counted from 0 in each document."""
    buckets: Buckets
    answer_positions: Tensor
    """(M,): the positions whose next token is a target."""
    answer_ids: Tensor
    """(M,): those next tokens."""
    answer_document: Tensor
    """(M,): the index of the document that each belongs to."""
    answer_ends: Tensor
    """(M,) bool: whether it is a document's end token, which is trained but not scored as text."""
    media: Mapping[str, MediaFeatures] = field(default_factory=dict)
    """Kind -> its features."""

    def to(self, device: torch.device | str) -> "Batch":
        """The same batch on another device."""
        moved: dict[str, Any] = {name: part.to(device) for name, part in vars(self).items() if isinstance(part, Tensor)}
        moved["buckets"] = Buckets(
            self.buckets.shapes, self.buckets.positions.to(device), self.buckets.inverse.to(device)
        )
        moved["media"] = {kind: MediaFeatures(*(part.to(device) for part in its)) for kind, its in self.media.items()}
        return replace(self, **moved)

    def model_inputs(self) -> dict[str, Any]:
        """The keyword arguments of the model's forward; its logits then have the shape (1, M, vocabulary).

        With `media` the model is a `kauli.models.text.connector.Fused`.
        """
        media = {"media": self.media} if self.media else {}
        return {
            **media,
            "input_ids": self.input_ids,
            "position_ids": self.position_ids,
            # transformers passes a mask of four dimensions on unchanged: none of T x T is built.
            "attention_mask": self.input_ids.new_ones(1, 1, 1, 1, dtype=torch.bool),
            "logits_to_keep": self.answer_positions,
            "packed_buckets": self.buckets,
            "use_cache": False,
        }


def pack(documents: Sequence[Document]) -> Batch:
    """One row of all documents, in their order. Every document has at least one token before its answer."""
    lengths = [len(document.tokens) for document in documents]
    starts = accumulate(lengths, initial=0)
    positions, ids, owners, ends = [], [], [], []
    ids_row = torch.tensor([[token for document in documents for token in document.tokens]])
    for index, (document, start) in enumerate(zip(documents, starts, strict=False)):
        assert 1 <= document.answer_start < len(document.tokens), "a document needs a token before its answer"
        for offset in document.targets:
            positions.append(start + offset - 1)
            ids.append(document.tokens[offset])
            owners.append(index)
            ends.append(document.ended and offset == len(document.tokens) - 1)
    return Batch(
        input_ids=ids_row.clamp(min=0),
        position_ids=torch.cat([torch.arange(length) for length in lengths])[None],
        buckets=into_buckets(lengths),
        answer_positions=torch.tensor(positions),
        answer_ids=torch.tensor(ids),
        answer_document=torch.tensor(owners),
        answer_ends=torch.tensor(ends),
        media=_features(documents, ids_row[0] == FEATURE),
    )


def _features(documents: Sequence[Document], marked: Tensor) -> dict[str, MediaFeatures]:
    """The features of all documents by kind; `marked` (T,) is true at their positions."""
    media = [one for document in documents for one in document.media]
    positions = torch.split(marked.nonzero()[:, 0], [len(one.features) for one in media])
    found = {}
    for kind in dict.fromkeys(one.kind for one in media):
        mine = [index for index, one in enumerate(media) if one.kind == kind]
        found[kind] = MediaFeatures(
            torch.cat([torch.as_tensor(media[index].features).float() for index in mine]),
            torch.cat([torch.arange(len(media[index].features)) for index in mine]),
            torch.cat([positions[index] for index in mine]),
        )
    return found


def into_buckets(lengths: Sequence[int], together: bool = False) -> Buckets:
    """The buckets of documents of these lengths, packed in this order: by length, or (`together`) a single one."""
    starts = list(accumulate(lengths, initial=0))
    groups = [list(range(len(lengths)))] if together else by_length(lengths)
    inverse = torch.empty(starts[-1], dtype=torch.long)
    positions, place = [], 0
    for group in groups:
        longest = max(lengths[index] for index in group)
        bucket = torch.empty(len(group), longest, dtype=torch.long)
        for row, index in enumerate(group):
            start, length = starts[index], lengths[index]
            bucket[row, :length] = torch.arange(start, start + length)
            bucket[row, length:] = start
            inverse[start : start + length] = torch.arange(place, place + length)
            place += longest
        positions.append(bucket)
    shapes = tuple((bucket.shape[0], bucket.shape[1]) for bucket in positions)
    return Buckets(shapes, torch.cat([bucket.flatten() for bucket in positions]), inverse)


def in_buckets(tokens: Tensor, buckets: Buckets) -> list[Tensor]:
    """Tokens of a pack (T, ...) -> one (N, L, ...) for each bucket; padding holds a document's first token."""
    laid: Tensor = _ToBuckets.apply(tokens, buckets.positions, buckets.inverse)
    parts = torch.split(laid, [N * L for N, L in buckets.shapes])
    return [part.view(*shape, *part.shape[1:]) for part, shape in zip(parts, buckets.shapes, strict=True)]


def out_of_buckets(parts: Sequence[Tensor], buckets: Buckets) -> Tensor:
    """One (N, L, ...) for each bucket -> the tokens of the pack (T, ...)."""
    out: Tensor = _FromBuckets.apply(torch.cat([part.flatten(0, 1) for part in parts]), buckets.inverse)
    return out


def true_places(buckets: Buckets) -> list[Tensor]:
    """(N, L) bool for each bucket: true where a token is, false for padding."""
    places = torch.arange(len(buckets.positions), device=buckets.positions.device)
    parts = torch.split(buckets.inverse[buckets.positions] == places, [N * L for N, L in buckets.shapes])
    return [part.view(*shape, *part.shape[1:]) for part, shape in zip(parts, buckets.shapes, strict=True)]


class _ToBuckets(torch.autograd.Function):
    """(T, ...) -> (N x L of all buckets, ...). Each token has one true place, and its gradient is gathered from there.

    That is far cheaper than the scattered sum of `index_select`'s own backward. The padding of a short document
    gets no gradient: their outputs are dropped, and the causal mask hides their keys.
    """

    @staticmethod
    def forward(ctx: Any, tokens: Tensor, positions: Tensor, inverse: Tensor) -> Tensor:
        ctx.save_for_backward(inverse)
        return tokens.index_select(0, positions)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None, None]:
        return grad.index_select(0, ctx.saved_tensors[0]), None, None


class _FromBuckets(torch.autograd.Function):
    """(N x L of all buckets, ...) -> (T, ...), the other way round."""

    @staticmethod
    def forward(ctx: Any, places: Tensor, inverse: Tensor) -> Tensor:
        ctx.save_for_backward(inverse)
        ctx.places = len(places)
        return places.index_select(0, inverse)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None]:
        return grad.new_zeros(ctx.places, *grad.shape[1:]).index_copy_(0, ctx.saved_tensors[0], grad), None


def packed_attention(
    module: torch.nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    dropout: float = 0.0,
    scaling: float | None = None,
    packed_buckets: Buckets | None = None,
    slot_pass: SlotPass | None = None,
    sliding_window: int | None = None,
    **kwargs: Any,
) -> tuple[Tensor, None]:
    """Causal attention within each document of a pack, or over slots; without either transformers' own SDPA.

    query (1, H, T, D), key and value (1, H_kv, T, D); returns (1, T, H, D), as transformers' attention functions do.
    """
    if slot_pass is not None:
        layer: Any = module.layer_idx
        return slot_pass.attend(layer, query, key, value, scaling, sliding_window), None
    if packed_buckets is None:
        output: tuple[Tensor, None] = sdpa_attention_forward(
            module, query, key, value, attention_mask, dropout=dropout, scaling=scaling, **kwargs
        )
        return output
    groups = query.shape[1] // key.shape[1]
    places = [in_buckets(tensor[0].transpose(0, 1), packed_buckets) for tensor in (query, key, value)]
    outputs = []
    for q, k, v in zip(*([part.transpose(1, 2) for part in parts] for parts in places), strict=True):
        L = q.shape[2]
        # Padding is behind the document, where no query of it attends: the causal mask is enough.
        mask = None
        if sliding_window is not None and sliding_window < L:
            distance = torch.arange(L, device=q.device)[:, None] - torch.arange(L, device=q.device)
            mask = (distance >= 0) & (distance < sliding_window)
        k, v = repeat_kv(k, groups), repeat_kv(v, groups)
        attended = functional.scaled_dot_product_attention(
            q, k, v, attn_mask=mask, dropout_p=dropout, is_causal=mask is None, scale=scaling
        )
        outputs.append(attended.transpose(1, 2))
    return out_of_buckets(outputs, packed_buckets)[None], None


AttentionInterface.register(ATTENTION, packed_attention)
AttentionMaskInterface.register(ATTENTION, sdpa_mask)
