"""Whisper's computation over packs: clips at their own length, without padding to 30 seconds, adapters by row.

Modules and weights are those of transformers' `WhisperForConditionalGeneration` (Radford et al. 2022, arXiv
2212.04356); only the order of computation differs. Linear layers take one row of all frames or tokens, attention is
computed clip by clip.

Shape letters: M mel bins, F frames of a pack (50 a second), T tokens of a pack, H heads, D head size, W width.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from types import SimpleNamespace
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from kauli.models.engine.kv_cache import SlotMemory, SlotPass
from kauli.models.engine.packing import Batch, Buckets, in_buckets, into_buckets, out_of_buckets, true_places

FRAMES_PER_SECOND = 50
LANGUAGE = -1
"""Among a prompt's tokens: the place of a language that is yet to be detected, or has no token."""
MEMORY_LAYERS = ("k_proj", "v_proj")
"""Layers of the decoder that read the encoder's frames instead of the decoder's tokens."""

Memory = list[tuple[Tensor, Tensor]]
"""For each layer of the decoder the keys and values (F, H, D) of one clip's frames."""


def encoder_side(name: str) -> bool:
    """Whether the layer of this name computes on frames; the others compute on tokens."""
    parts = name.split(".")
    return "encoder" in parts or ("encoder_attn" in parts and parts[-1] in MEMORY_LAYERS)


def frame_count(mel: Tensor) -> int:
    """The encoder's frames of a log-mel spectrogram (M, 2 F)."""
    return mel.shape[1] // 2


def encode(encoder: Any, mels: Sequence[Tensor], layers: list[Tensor] | None = None) -> Tensor:
    """Clips' log-mel spectrograms, each (M, 2 F_i) -> the frames of all, (1, F, W).

    A clip's frames do not depend on the others. At 30 seconds they are those of transformers. The states after each
    layer, (1, F, W) as well, are added to `layers`.
    """
    longest = max(mel.shape[1] for mel in mels)
    # Convolutions read zeros after each clip, as after the longest; an even length keeps them out of its frames.
    padded = torch.stack([functional.pad(mel, (0, longest - mel.shape[1])) for mel in mels])
    x = functional.gelu(encoder.conv1(padded.to(encoder.conv1.weight)))
    x = functional.gelu(encoder.conv2(x)).transpose(1, 2)
    lengths = [frame_count(mel) for mel in mels]
    x = torch.cat(
        [clip[:length] + encoder.embed_positions.weight[:length] for clip, length in zip(x, lengths, strict=True)]
    )
    x = x[None]
    buckets = into_buckets(lengths)
    buckets = Buckets(buckets.shapes, buckets.positions.to(x.device), buckets.inverse.to(x.device))
    masks = [None if bool(true.all()) else true[:, None, None] for true in true_places(buckets)]

    def attend(query: Tensor, key: Tensor, value: Tensor) -> Tensor:
        parts = [in_buckets(one, buckets) for one in (query, key, value)]
        out = [
            functional.scaled_dot_product_attention(
                q.transpose(1, 2), k.transpose(1, 2), v.transpose(1, 2), attn_mask=mask
            )
            for q, k, v, mask in zip(*parts, masks, strict=True)
        ]
        return out_of_buckets([one.transpose(1, 2) for one in out], buckets)

    for layer in encoder.layers:
        attention, heads = layer.self_attn, layer.self_attn.num_heads
        y = layer.self_attn_layer_norm(x)
        q, k, v = (
            one(y)[0].unflatten(-1, (heads, -1)) for one in (attention.q_proj, attention.k_proj, attention.v_proj)
        )
        x = x + _dropped(layer, attention.out_proj(attend(q, k, v).flatten(1)[None]))
        x = x + _feed(layer, x)
        if layers is not None:
            layers.append(x)
    out: Tensor = encoder.layer_norm(x)
    return out


def keys_and_values(decoder: Any, frames: Tensor) -> Memory:
    """What the decoder attends to, from frames (1, F, W)."""
    found = []
    for attention in (layer.encoder_attn for layer in decoder.layers):
        shape = (attention.num_heads, -1)
        found.append(
            (attention.k_proj(frames)[0].unflatten(-1, shape), attention.v_proj(frames)[0].unflatten(-1, shape))
        )
    return found


def memories(decoder: Any, frames: Tensor, lengths: Sequence[int]) -> list[Memory]:
    """What the decoder attends to, for each clip, from the frames (1, F, W) of all."""
    layers = [[torch.split(one, list(lengths)) for one in pair] for pair in keys_and_values(decoder, frames)]
    return [[(keys[clip], values[clip]) for keys, values in layers] for clip in range(len(lengths))]


def decode(
    decoder: Any,
    embedded: Tensor,
    positions: Tensor,
    attend: Callable[[int, Tensor, Tensor, Tensor], Tensor],
    look: Callable[[int, Tensor], Tensor],
) -> Tensor:
    """Token embeddings (1, T, W) at positions (T,) -> the last hidden states (1, T, W).

    Args:
        decoder: `model.model.decoder`.
        embedded: tokens, or other embeddings in their place.
        positions: of each token in its own sequence.
        attend: (layer, query, key, value, each (1, T, H, D)) -> (1, T, H, D), over a sequence's own tokens.
        look: (layer, query (1, T, H, D)) -> (1, T, H, D), over its clip's frames.
    """
    x = embedded + decoder.embed_positions.weight[positions]
    for number, layer in enumerate(decoder.layers):
        attention, heads = layer.self_attn, layer.self_attn.num_heads
        y = layer.self_attn_layer_norm(x)
        q, k, v = (one(y).unflatten(-1, (heads, -1)) for one in (attention.q_proj, attention.k_proj, attention.v_proj))
        x = x + _dropped(layer, attention.out_proj(attend(number, q, k, v).flatten(2)))
        attention = layer.encoder_attn
        y = attention.q_proj(layer.encoder_attn_layer_norm(x)).unflatten(-1, (heads, -1))
        x = x + _dropped(layer, attention.out_proj(look(number, y).flatten(2)))
        x = x + _feed(layer, x)
    out: Tensor = decoder.layer_norm(x)
    return out


def _feed(layer: Any, x: Tensor) -> Tensor:
    y = layer.activation_fn(layer.fc1(layer.final_layer_norm(x)))
    return _dropped(layer, layer.fc2(functional.dropout(y, layer.activation_dropout, layer.training)))


def _dropped(layer: Any, x: Tensor) -> Tensor:
    return functional.dropout(x, layer.dropout, layer.training)


@dataclass(frozen=True)
class WhisperExample:
    """An example: its samples, and the tokens of prompt and transcript."""

    samples: Any
    """(n,) numpy float32 at 16 kHz."""
    tokens: list[int]
    answer_start: int
    language: str

    @property
    def frames(self) -> int:
        """About how many frames the encoder makes of it."""
        return max(1, len(self.samples) // 320)


@dataclass(frozen=True, kw_only=True)
class WhisperBatch(Batch):
    """Clips and their transcripts, packed: N clips, T decoder tokens."""

    mels: tuple[Tensor, ...]
    """N times (M, 2 F_i) float32."""
    lengths: tuple[int, ...]
    """Decoder tokens of each clip."""
    languages: tuple[tuple[int, str], ...]
    """Positions among the T tokens where a language's embedding takes the place of a token, with its tag."""

    def to(self, device: torch.device | str) -> "WhisperBatch":
        """The same batch on another device."""
        mels = tuple(mel.to(device) for mel in self.mels)
        return WhisperBatch(**{**vars(self), **vars(super().to(device)), "mels": mels})


def packed_losses(model: Any, batch: WhisperBatch, languages: Callable[[str], Tensor]) -> Tensor:
    """The cross entropy of each target in nats, (A,), by a `WhisperForConditionalGeneration`.

    `languages` gives the embedding (W,) of a language that has no token.
    """
    encoder, decoder = model.get_encoder(), model.get_decoder()
    frames = encode(encoder, batch.mels)
    counts = [frame_count(mel) for mel in batch.mels]
    own, theirs = (
        Buckets(one.shapes, one.positions.to(frames.device), one.inverse.to(frames.device))
        for one in (into_buckets(batch.lengths, together=True), into_buckets(counts, together=True))
    )
    real = true_places(theirs)[0][:, None, None]
    keys = [[in_buckets(one, theirs)[0].transpose(1, 2) for one in pair] for pair in keys_and_values(decoder, frames)]

    def attend(layer: int, query: Tensor, key: Tensor, value: Tensor) -> Tensor:
        q, k, v = (in_buckets(one[0], own)[0].transpose(1, 2) for one in (query, key, value))
        out = functional.scaled_dot_product_attention(q, k, v, is_causal=True)
        return out_of_buckets([out.transpose(1, 2)], own)[None]

    def look(layer: int, query: Tensor) -> Tensor:
        q = in_buckets(query[0], own)[0].transpose(1, 2)
        out = functional.scaled_dot_product_attention(q, keys[layer][0], keys[layer][1], attn_mask=real)
        return out_of_buckets([out.transpose(1, 2)], own)[None]

    embedded = decoder.embed_tokens(batch.input_ids)
    if batch.languages:
        places = torch.tensor([position for position, _ in batch.languages], device=embedded.device)
        found = torch.stack([languages(tag) for _, tag in batch.languages])
        embedded = embedded.index_copy(1, places, found[None].to(embedded))
    hidden = decode(decoder, embedded, batch.position_ids[0], attend, look)
    logits = model.proj_out(hidden[0, batch.answer_positions])
    return functional.cross_entropy(logits.float(), batch.answer_ids, reduction="none")


class SlotDecoder(nn.Module):
    """Whisper's decoder as the model of an `Engine`: the tokens of many slots in one row.

    `suppressed` are the tokens that are never generated.
    """

    def __init__(self, model: Any, slots: int, suppressed: Sequence[int]) -> None:
        super().__init__()
        self._whisper = model
        self._memory = SlotMemory(slots)
        self.register_buffer("_suppressed", torch.tensor(sorted(suppressed), dtype=torch.long), persistent=False)

    def get_input_embeddings(self) -> nn.Module:
        """The embeddings of the decoder's tokens."""
        out: nn.Module = self._whisper.get_decoder().embed_tokens
        return out

    def remember(self, slot: int, memory: Any) -> None:
        """Let a slot's tokens attend to a clip, whose `layers` come from `memories`."""
        self._memory.put(slot, memory.layers)

    def forward(
        self, inputs_embeds: Tensor, position_ids: Tensor, slot_pass: SlotPass, logits_to_keep: Tensor, **_: Any
    ) -> Any:
        """(1, T, W) -> an object with `logits` (1, K, vocabulary) of the tokens to keep."""

        def attend(layer: int, query: Tensor, key: Tensor, value: Tensor) -> Tensor:
            q, k, v = (one.transpose(1, 2) for one in (query, key, value))
            return slot_pass.attend(layer, q, k, v, None, None)

        def look(layer: int, query: Tensor) -> Tensor:
            return slot_pass.attend_memory(layer, query.transpose(1, 2), self._memory)

        hidden = decode(self._whisper.get_decoder(), inputs_embeds, position_ids[0], attend, look)
        logits = self._whisper.proj_out(hidden[:, logits_to_keep])
        # Finite: numbers that are not mean a broken adapter
        return SimpleNamespace(logits=logits.index_fill(2, self._suppressed, -1e9))
