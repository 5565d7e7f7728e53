"""The key-value cache of continuous batching: a row of memory for each slot, read in place, and attention over it.

Nothing is copied from step to step. A pass is one row of tokens: first one token for each decoding slot, then the
prompts' chunks, each of which may start anywhere in its slot. Shape letters: T tokens of the pass, S slots, C positions
that a slot has room for, H heads, H_kv key-value heads, D head size.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import accumulate

import torch
from torch import Tensor
from torch.nn import functional
from transformers.integrations.sdpa_attention import repeat_kv

_FIRST_ROOM = 256  # positions; doubled when a request needs more


@dataclass(frozen=True)
class Span:
    """Tokens that enter slot `slot` in this pass, at positions `start` to `end`."""

    slot: int
    start: int
    end: int


class SlotCache:
    """Keys and values of `slots` sequences of up to `context` tokens, for every layer that asks."""

    def __init__(self, slots: int, context: int, device: torch.device) -> None:
        self.slots, self.context, self.device = slots, context, device
        self.room = min(_FIRST_ROOM, context)
        self._layers: dict[int, tuple[Tensor, Tensor]] = {}  # each (S x C, H_kv, D)

    def reserve(self, positions: int) -> None:
        """Make room for sequences of this many tokens; grows by doubling, so that copies are rare."""
        room = self.room
        while room < positions:
            room = min(2 * room, self.context)
        if room > self.room:
            for layer in self._layers:
                self._layers[layer] = tuple(  # type: ignore[assignment]
                    _grown(old, self.slots, self.room, room) for old in self._layers[layer]
                )
            self.room = room

    def shrink(self) -> None:
        """Free the memory of long sequences; only while no slot is in use."""
        if self.room > min(_FIRST_ROOM, self.context):
            self._layers.clear()
            self.room = min(_FIRST_ROOM, self.context)

    def erase(self, slot: int) -> None:
        """Zero a slot whose contents are not finite: masked positions have weight 0, and 0 x NaN is NaN."""
        for pair in self._layers.values():
            for tensor in pair:
                tensor[slot * self.room : (slot + 1) * self.room] = 0

    def copy(self, source: int, target: int, positions: int) -> None:
        """Let `target` begin with the first `positions` of `source`."""
        for pair in self._layers.values():
            for tensor in pair:
                begin, end = target * self.room, source * self.room
                tensor[begin : begin + positions] = tensor[end : end + positions]

    def write(self, layer: int, key: Tensor, value: Tensor, places: Tensor) -> tuple[Tensor, Tensor]:
        """Put key and value (1, H_kv, T, D) into `places` (T,) of slot x C; returns both as (S, C, H_kv, D)."""
        if layer not in self._layers:
            H, D = key.shape[1], key.shape[3]
            # Zeros, not empty: masked values must be finite.
            self._layers[layer] = (
                key.new_zeros(self.slots * self.room, H, D), value.new_zeros(self.slots * self.room, H, D)
            )  # fmt: skip
        keys, values = self._layers[layer]
        keys.index_copy_(0, places, key[0].transpose(0, 1))
        values.index_copy_(0, places, value[0].transpose(0, 1))
        shape = (self.slots, self.room, *keys.shape[1:])
        return keys.view(shape), values.view(shape)


class SlotMemory:
    """What each slot's tokens attend to beside each other, such as an encoder's output; written once a request."""

    def __init__(self, slots: int) -> None:
        self.lengths = [0] * slots
        self._layers: list[tuple[Tensor, Tensor]] = []  # each (S, room, H, D)

    def put(self, slot: int, layers: Sequence[tuple[Tensor, Tensor]]) -> None:
        """Give a slot keys and values (F, H, D) for every layer."""
        count = len(layers[0][0])
        if not self._layers or count > self._layers[0][0].shape[1]:
            room = max(count, 2 * self._layers[0][0].shape[1] if self._layers else 64)
            grown = [
                tuple(part.new_zeros(len(self.lengths), room, *part.shape[1:]) for part in pair) for pair in layers
            ]
            for old, new in zip(self._layers, grown, strict=False):
                for before, after in zip(old, new, strict=True):
                    after[:, : before.shape[1]] = before
            self._layers = grown  # type: ignore[assignment]
        for own, pair in zip(self._layers, layers, strict=True):
            for whole, part in zip(own, pair, strict=True):
                whole[slot, :count] = part
                whole[slot, count:] = 0  # values of an earlier, longer one need not be finite
        self.lengths[slot] = count

    def layer(self, layer: int) -> tuple[Tensor, Tensor]:
        """Keys and values (S, room, H, D); values behind a slot's length are finite and without meaning."""
        return self._layers[layer]


class SlotPass:
    """One pass over the cache: the places of its tokens, and their attention. Given to the model as `slot_pass`."""

    def __init__(self, cache: SlotCache, decoding: Sequence[Span], prompts: Sequence[Span], dtype: torch.dtype) -> None:
        self._cache, self._dtype = cache, dtype
        device = cache.device
        spans = [*decoding, *prompts]
        starts = torch.tensor([span.start for span in spans], device=device)
        counts = torch.tensor([span.end - span.start for span in spans], device=device)
        slots = torch.tensor([span.slot for span in spans], device=device)
        total = sum(span.end - span.start for span in spans)
        first = (counts.cumsum(0) - counts).repeat_interleave(counts, output_size=total)
        offsets = torch.arange(total, device=device) - first
        self.positions = starts.repeat_interleave(counts, output_size=total) + offsets
        """(T,): each token's position in its sequence."""
        self._places = slots.repeat_interleave(counts, output_size=total) * cache.room + self.positions
        self._decoding = len(decoding)
        self._high = max((span.slot for span in decoding), default=-1) + 1
        self._length = max((span.end for span in decoding), default=0)
        self._slots = slots[: self._decoding]
        self._whole = [span.slot for span in decoding] == list(range(self._high))
        # Slots between that don't decode now attend to their position 0, and the result is not used.
        self._at = torch.zeros(self._high, dtype=torch.long, device=device)
        self._at[self._slots] = starts[: self._decoding]
        self._spans = list(prompts)
        self._chunks = [(chunks, rows.to(device)) for chunks, rows in _like_long(prompts, self._decoding)]
        self._masks: dict[tuple[int | None, int | None], Tensor] = {}
        self._memory_masks: dict[SlotMemory, Tensor] = {}

    def attend(
        self, layer: int, query: Tensor, key: Tensor, value: Tensor, scaling: float | None, window: int | None
    ) -> Tensor:
        """query (1, H, T, D), key and value (1, H_kv, T, D) -> (1, T, H, D); `window` of sliding attention."""
        keys, values = self._cache.write(layer, key, value, self._places)
        queries = query[0].transpose(0, 1).contiguous()  # (T, H, D)
        out = torch.empty_like(queries)
        if self._decoding:
            out[: self._decoding] = self._decode(queries[: self._decoding], keys, values, scaling, window)
        for group in range(len(self._chunks)):
            self._prefill(out, queries, keys, values, group, scaling, window)
        return out[None]

    def attend_memory(self, layer: int, query: Tensor, memory: SlotMemory) -> Tensor:
        """query (1, H, T, D) -> (1, T, H, D): each token over the memory of its own slot."""
        keys, values = memory.layer(layer)
        queries = query[0].transpose(0, 1)  # (T, H, D)
        out = torch.empty_like(queries)
        if self._decoding:
            valid = self._memory_mask(memory, keys.dtype)
            longest = valid.shape[-1]
            attended = functional.scaled_dot_product_attention(
                self._by_slot(queries[: self._decoding])[:, :, None],
                keys[: self._high, :longest].transpose(1, 2),
                values[: self._high, :longest].transpose(1, 2),
                attn_mask=valid,
            )
            out[: self._decoding] = self._in_order(attended[:, :, 0])
        first = self._decoding
        for span in self._spans:
            last, length = first + span.end - span.start, memory.lengths[span.slot]
            attended = functional.scaled_dot_product_attention(
                queries[None, first:last].transpose(1, 2),
                keys[None, span.slot, :length].transpose(1, 2),
                values[None, span.slot, :length].transpose(1, 2),
            )
            out[first:last] = attended[0].transpose(0, 1)
            first = last
        return out[None]

    def _decode(
        self, queries: Tensor, keys: Tensor, values: Tensor, scaling: float | None, window: int | None
    ) -> Tensor:
        """queries (decoding, H, D), one for each slot that decodes."""
        queries = self._by_slot(queries)
        attended = functional.scaled_dot_product_attention(
            # The heads that share keys become queries of one head: nothing is repeated.
            queries.view(len(queries), keys.shape[2], -1, queries.shape[2]),
            keys[: self._high, : self._length].transpose(1, 2),
            values[: self._high, : self._length].transpose(1, 2),
            attn_mask=self._mask(window, self._at[:, None], self._length, None),
            scale=scaling,
        )
        return self._in_order(attended.flatten(1, 2))

    def _by_slot(self, queries: Tensor) -> Tensor:
        """(decoding, H, D) -> (high, H, D) in the order of the slots: keys are read in place."""
        if self._whole:
            return queries
        return queries.new_zeros(self._high, *queries.shape[1:]).index_copy_(0, self._slots, queries)

    def _in_order(self, attended: Tensor) -> Tensor:
        """(high, H, D) -> (decoding, H, D), back in the order of the pass."""
        return attended if self._whole else attended[self._slots]

    def _prefill(
        self,
        out: Tensor,
        queries: Tensor,
        keys: Tensor,
        values: Tensor,
        group: int,
        scaling: float | None,
        window: int | None,
    ) -> None:
        """Chunks of similar length at once: indices (N, L) of their tokens, short ones padded with their last."""
        chunks, indices = self._chunks[group]
        groups = queries.shape[1] // keys.shape[2]
        length = max(chunk.end for chunk in chunks)
        if len(chunks) == 1:
            slot = chunks[0].slot
            k, v = keys[slot : slot + 1, :length], values[slot : slot + 1, :length]
        else:
            slots = torch.tensor([chunk.slot for chunk in chunks], device=keys.device)
            k, v = keys[slots, :length], values[slots, :length]
        attended = functional.scaled_dot_product_attention(
            queries[indices].transpose(1, 2),
            repeat_kv(k.transpose(1, 2), groups),
            repeat_kv(v.transpose(1, 2), groups),
            attn_mask=self._mask(window, self.positions[indices], length, group),
            scale=scaling,
        )
        # Padding holds the same as the last token's own place, so that writing it twice changes nothing.
        out[indices] = attended.transpose(1, 2)

    def _memory_mask(self, memory: SlotMemory, dtype: torch.dtype) -> Tensor:
        """(high, 1, 1, longest): 0 where a slot's memory is, else minus infinity; made once a pass."""
        if memory not in self._memory_masks:
            lengths = self._at.new_tensor(memory.lengths[: self._high])
            longest = int(lengths[self._slots].max())
            # Slots that don't decode now attend to their first place, so that no softmax is over nothing.
            valid = torch.arange(longest, device=lengths.device) < lengths.clamp(min=1)[:, None]
            mask = torch.zeros(valid.shape, dtype=dtype, device=lengths.device)
            self._memory_masks[memory] = mask.masked_fill_(~valid, float("-inf"))[:, None, None]
        return self._memory_masks[memory]

    def _mask(self, window: int | None, positions: Tensor, length: int, group: int | None) -> Tensor:
        """(N, 1, L, length): 0 where a token at `positions` (N, L) attends, else minus infinity; made once a pass."""
        if (group, window) not in self._masks:
            # A float mask: SDPA would make one of a boolean mask anew in every layer.
            distance = positions[..., None] - torch.arange(length, device=positions.device)
            valid = distance >= 0 if window is None else (distance >= 0) & (distance < window)
            mask = torch.zeros(valid.shape, dtype=self._dtype, device=positions.device)
            self._masks[group, window] = mask.masked_fill_(~valid, float("-inf"))[:, None]
        return self._masks[group, window]


def by_length(lengths: Sequence[int]) -> list[list[int]]:
    """Indices of sequences in groups of similar length, longest first: each is computed at its longest's length.

    Up to a third of padding costs less than one more call of the attention kernel; very short ones are one group.
    """
    groups: list[list[int]] = []
    for index in sorted(range(len(lengths)), key=lambda index: -lengths[index]):
        longest = lengths[groups[-1][0]] if groups else 0
        if groups and (lengths[index] * 4 >= longest * 3 or longest <= 32):
            groups[-1].append(index)
        else:
            groups.append([index])
    return groups


def _grown(old: Tensor, slots: int, before: int, after: int) -> Tensor:
    new = old.new_zeros(slots, after, *old.shape[1:])
    new[:, :before] = old.view(slots, before, *old.shape[1:])
    return new.flatten(0, 1)


def _like_long(prompts: Sequence[Span], first: int) -> list[tuple[list[Span], Tensor]]:
    """Chunks in groups of similar length, with the indices of their tokens in the pass."""
    lengths = [span.end - span.start for span in prompts]
    begins = list(accumulate(lengths, initial=first))
    made = []
    for group in by_length(lengths):
        longest = lengths[group[0]]
        rows = [[begins[index] + min(offset, lengths[index] - 1) for offset in range(longest)] for index in group]
        made.append(([prompts[index] for index in group], torch.tensor(rows)))
    return made
