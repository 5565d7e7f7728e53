"""Whisper as CTranslate2 ships it (one `model.bin`) -> a folder that transformers loads.

The format is CTranslate2's model specification, version 6: a header, the variables with their shapes, the aliases.
"""

import json
import struct
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from kauli.models.errors import KauliError

_DTYPES = {0: np.float32, 1: np.int8, 2: np.int16, 3: np.int32, 4: np.float16}
_HEADS = {384: 6, 512: 8, 768: 12, 1024: 16, 1280: 20}  # of tiny to large, by their width
_NORM = {"gamma": "weight", "beta": "bias"}


def convert_whisper(model: Path, tokenizer: Path, settings: Path, out: Path) -> None:
    """Write the model that CTranslate2 keeps in `model` as a transformers folder `out`, in float16 as it is there.

    Args:
        model: CTranslate2's model.bin.
        tokenizer: its tokenizer.json.
        settings: its config.json, which lists the tokens that are never generated.
        out: an empty folder.

    Raises KauliError where the file is no such model, or where a variable finds no place or a place no variable.
    """
    import torch
    from safetensors.torch import save_file
    from transformers import (
        GenerationConfig,
        WhisperConfig,
        WhisperFeatureExtractor,
        WhisperForConditionalGeneration,
        WhisperTokenizer,
    )

    variables = read_ctranslate2(model)
    tensors = {name: torch.from_numpy(value.copy()) for name, value in _renamed(variables).items()}
    vocabulary, width = tensors["model.decoder.embed_tokens.weight"].shape
    layers = {side: len({name.split(".")[3] for name in tensors if f"{side}.layers." in name}) for side in _SIDES}
    config = WhisperConfig(
        vocab_size=vocabulary, d_model=width, encoder_layers=layers["encoder"], decoder_layers=layers["decoder"],
        encoder_attention_heads=_HEADS[width], decoder_attention_heads=_HEADS[width], encoder_ffn_dim=4 * width,
        decoder_ffn_dim=4 * width, num_mel_bins=tensors["model.encoder.conv1.weight"].shape[1],
        max_source_positions=len(tensors["model.encoder.embed_positions.weight"]),
        max_target_positions=len(tensors["model.decoder.embed_positions.weight"]),
        pad_token_id=50257, bos_token_id=50257, eos_token_id=50257, decoder_start_token_id=50258,
        architectures=["WhisperForConditionalGeneration"], dtype="float16",
    )  # fmt: skip
    with torch.device("meta"):
        wanted = {
            name: value.shape
            for name, value in WhisperForConditionalGeneration(config).state_dict().items()
            if name != "proj_out.weight"  # the embeddings themselves
        }
    found = {name: value.shape for name, value in tensors.items()}
    if found != wanted:
        wrong = sorted(name for name in found.keys() | wanted.keys() if found.get(name) != wanted.get(name))
        raise KauliError(
            f"{model.name} is not the Whisper that is expected: {wrong[0]} is missing or of another shape."
        )
    save_file(
        {name: value.half().contiguous() for name, value in tensors.items()},
        out / "model.safetensors",
        {"format": "pt"},
    )
    config.save_pretrained(out)
    text = WhisperTokenizer(tokenizer_file=str(tokenizer), pad_token="<|endoftext|>")
    text.save_pretrained(out)
    sound = WhisperFeatureExtractor(feature_size=config.num_mel_bins)  # type: ignore[no-untyped-call]
    sound.save_pretrained(out)
    known = text.get_vocab()
    names = {token: place for token, place in known.items() if token.startswith("<|") and token.endswith("|>")}
    decoding = json.loads(settings.read_text(encoding="utf-8"))
    GenerationConfig(  # type: ignore[no-untyped-call]
        eos_token_id=50257, pad_token_id=50257, decoder_start_token_id=50258, max_length=config.max_target_positions,
        suppress_tokens=decoding["suppress_ids"], begin_suppress_tokens=decoding["suppress_ids_begin"],
        lang_to_id={token: place for token, place in names.items() if place in set(decoding["lang_ids"])},
        task_to_id={word: names[f"<|{word}|>"] for word in ("transcribe", "translate")},
        no_timestamps_token_id=names["<|notimestamps|>"], is_multilingual=True,
    ).save_pretrained(out)  # fmt: skip


def read_ctranslate2(path: Path) -> dict[str, np.ndarray[Any, Any]]:
    """The variables of a CTranslate2 model file by name. Raises KauliError where the file is none."""
    content = path.read_bytes()
    place = 0

    def number(code: str) -> int:
        nonlocal place
        size = struct.calcsize(f"<{code}")
        value: int = struct.unpack_from(f"<{code}", content, place)[0]
        place += size
        return value

    def text() -> str:
        nonlocal place
        length = number("H")
        value = content[place : place + length - 1].decode()  # without its final zero
        place += length
        return value

    out: dict[str, np.ndarray[Any, Any]] = {}
    try:
        version, kind = number("I"), text()
        if version != 6 or kind != "WhisperSpec":
            raise KauliError(f"{path.name} is a {kind} of version {version}, not a WhisperSpec of version 6.")
        number("I")  # the revision of the specification
        for _ in range(number("I")):
            name = text()
            shape = [number("I") for _ in range(number("B"))]
            dtype, size = _DTYPES[number("B")], number("I")
            out[name] = np.frombuffer(content, dtype, size // np.dtype(dtype).itemsize, place).reshape(shape)
            place += size
    except (struct.error, UnicodeDecodeError, KeyError, ValueError) as error:
        raise KauliError(f"{path.name} is no CTranslate2 model, or is truncated: {error!r}.") from error
    return out


_SIDES = ("encoder", "decoder")


def _renamed(variables: Mapping[str, np.ndarray[Any, Any]]) -> dict[str, np.ndarray[Any, Any]]:
    """The variables under transformers' names; KauliError for one that has none."""
    out: dict[str, np.ndarray[Any, Any]] = {}
    for name, value in variables.items():
        found = _place(name, value)
        if found is None:
            raise KauliError(f"the variable {name} has no counterpart in transformers' Whisper.")
        out |= found
    return out


def _place(name: str, value: np.ndarray[Any, Any]) -> dict[str, np.ndarray[Any, Any]] | None:
    side, _, rest = name.partition("/")
    if side not in _SIDES:
        # Numbers that say how many heads there are, and the like
        return {} if value.ndim == 0 or value.size <= 1 or side.startswith("alignment") else None
    at = f"model.{side}."
    whole = {
        "position_encodings/encodings": "embed_positions.weight", "embeddings/weight": "embed_tokens.weight",
        "conv1/weight": "conv1.weight", "conv1/bias": "conv1.bias", "conv2/weight": "conv2.weight",
        "conv2/bias": "conv2.bias", "layer_norm/gamma": "layer_norm.weight", "layer_norm/beta": "layer_norm.bias",
    }  # fmt: skip
    if rest in whole:
        return {at + whole[rest]: value}
    if rest == "projection/weight":
        return {}  # the embeddings once more
    if not rest.startswith("layer_"):
        return {} if value.size <= 1 else None
    layer, part, *inner = rest.split("/")
    at += f"layers.{layer.removeprefix('layer_')}."
    if part == "ffn":
        module = {"layer_norm": "final_layer_norm", "linear_0": "fc1", "linear_1": "fc2"}[inner[0]]
        return {f"{at}{module}.{_NORM.get(inner[1], inner[1])}": value}
    attention = {"self_attention": "self_attn", "attention": "encoder_attn"}.get(part)
    if attention is None or value.size <= 1:
        return {} if value.size <= 1 else None
    if inner[0] == "layer_norm":
        return {f"{at}{attention}_layer_norm.{_NORM[inner[1]]}": value}
    heads = {
        "self_attn": {"linear_0": ("q_proj", "k_proj", "v_proj"), "linear_1": ("out_proj",)},
        "encoder_attn": {"linear_0": ("q_proj",), "linear_1": ("k_proj", "v_proj"), "linear_2": ("out_proj",)},
    }[attention].get(inner[0])
    if heads is None:
        return None
    parts = np.split(value, len(heads))
    # CTranslate2 keeps a bias of zeros for k, which has none.
    if inner[1] == "bias" and "k_proj" in heads and parts[heads.index("k_proj")].any():
        raise KauliError(f"{name} holds a bias for the keys, which transformers' Whisper has no place for.")
    return {
        f"{at}{attention}.{head}.{inner[1]}": piece
        for head, piece in zip(heads, parts, strict=True)
        if (head, inner[1]) != ("k_proj", "bias")
    }
