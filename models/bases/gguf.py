"""GGUF files turned into ordinary safetensors folders, once: reading GGUF takes minutes, and nothing else needs it."""

import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from kauli.models.errors import KauliError
from kauli.models.files import sha256_file


def join_parts(parts: Sequence[Path], out: Path, sha256: str) -> Path:
    """Write the bytes of `parts`, in order, to `out` and check the whole against `sha256`."""
    with out.open("wb") as whole:
        for part in parts:
            whole.write(part.read_bytes())
    found = sha256_file(out)
    if found != sha256:
        raise KauliError(f"the joined {out.name} has SHA-256 {found}, and {sha256} is expected.")
    return out


def convert_gguf(gguf: Path, out: Path, template: str | None) -> None:
    """Dequantise a causal LM and its tokenizer from `gguf` into the folder `out`, as bfloat16 safetensors.

    `template` is the chat template to keep with the tokenizer; None keeps the one inside the file, if any.
    Needs about 8 bytes of memory a parameter and one to three minutes.
    """
    import torch
    from gguf import GGUFReader
    from tokenizers import pre_tokenizers
    from transformers import AutoModelForCausalLM, AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(gguf.parent, gguf_file=gguf.name)
    kind = GGUFReader(gguf).get_field("tokenizer.ggml.pre")
    if kind is not None and kind.contents() == "smollm":
        # The loader leaves out that SmolLM takes digits one by one before all else: "a  5" came out in other tokens.
        tokenizer.backend_tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
            [pre_tokenizers.Digits(individual_digits=True), pre_tokenizers.ByteLevel(add_prefix_space=False)]
        )
    if template is not None:
        tokenizer.chat_template = template
    loaded = AutoModelForCausalLM.from_pretrained(gguf.parent, gguf_file=gguf.name, dtype=torch.float32)
    # The loaded object refuses to be saved ("quantized with gguf"), although its weights are dequantised: its tensors
    # go into a plain model of the same shape.
    config = loaded.config
    del config.quantization_config
    config.dtype = torch.bfloat16
    config._name_or_path = ""  # it holds a path of this machine
    tokenizer.model_max_length = config.max_position_embeddings
    plain: Any = type(loaded)(config)
    plain.load_state_dict(loaded.state_dict())
    plain.generation_config = loaded.generation_config
    del loaded
    plain.to(torch.bfloat16).save_pretrained(out)
    tokenizer.save_pretrained(out)
    for path in out.iterdir():
        with path.open("rb") as handle:  # on the disk before the folder is renamed into place
            os.fsync(handle.fileno())
