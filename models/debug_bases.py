"""Bases of random weights, for tests and for trying a recipe: the real classes, two layers, a tokenizer of bytes."""

from pathlib import Path
from typing import Any, Literal

Shape = Literal["llama", "gemma3", "qwen3"]

CHATML = (
    "{% for message in messages %}<|im_start|>{{ message['role'] }}\n{{ message['content'] }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
PLAIN = "{% for message in messages %}{{ message['content'] }}\n{% endfor %}"


def build_debug_text(shape: Shape, out: Path) -> None:
    """Write a causal LM of `shape` (2 layers, 64 wide, 4 heads, 259 tokens) and its tokenizer into the folder `out`.

    The weights depend on nothing but `shape`; the caller's random state is left alone.
    """
    import torch

    tokenizer = _byte_tokenizer(begins=shape == "gemma3")
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = _model(shape, vocab_size=len(tokenizer))
    model.to(torch.bfloat16).save_pretrained(out)
    tokenizer.chat_template = PLAIN if shape == "gemma3" else CHATML
    tokenizer.save_pretrained(out)


def _model(shape: Shape, vocab_size: int) -> Any:
    from transformers import (
        Gemma3ForCausalLM,
        Gemma3TextConfig,
        LlamaConfig,
        LlamaForCausalLM,
        Qwen3Config,
        Qwen3ForCausalLM,
    )

    size: dict[str, Any] = {
        "vocab_size": vocab_size,
        "hidden_size": 64,
        "intermediate_size": 128,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "head_dim": 16,
        "max_position_embeddings": 2048,
        # Wider than the usual 0.02, so that the next token clearly depends on those before it.
        "initializer_range": 0.1,
        "pad_token_id": 0,
        "bos_token_id": 1,
        "eos_token_id": 2,
    }
    match shape:
        case "llama":
            return LlamaForCausalLM(LlamaConfig(**size, tie_word_embeddings=False))
        case "qwen3":
            return Qwen3ForCausalLM(Qwen3Config(**size, tie_word_embeddings=False))
        case "gemma3":
            layers = ["sliding_attention", "full_attention"]
            config = Gemma3TextConfig(**size, sliding_window=16, layer_types=layers, query_pre_attn_scalar=16)
            return Gemma3ForCausalLM(config)


def _byte_tokenizer(begins: bool) -> Any:
    """Ids 0-2 are specials, 3-258 the bytes in order; `begins` puts a beginning mark before each text, as Gemma's."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors
    from transformers import PreTrainedTokenizerFast

    pad, bos, eos = ("<pad>", "<bos>", "<eos>") if begins else ("<|endoftext|>", "<|im_start|>", "<|im_end|>")
    # The byte-level alphabet: printable bytes stand for themselves, the others for the characters from 256 on.
    printable = {*range(33, 127), *range(161, 173), *range(174, 256)}
    others = iter(range(256, 512))
    letters = [chr(byte if byte in printable else next(others)) for byte in range(256)]
    vocabulary = {pad: 0, bos: 1, eos: 2} | {letter: byte + 3 for byte, letter in enumerate(letters)}
    tokenizer = Tokenizer(models.BPE(vocab=vocabulary, merges=[]))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    tokenizer.decoder = decoders.ByteLevel()
    if begins:
        tokenizer.post_processor = processors.TemplateProcessing(
            single=f"{bos} $A", pair=f"{bos} $A {bos} $B", special_tokens=[(bos, 1)]
        )
    return PreTrainedTokenizerFast(  # type: ignore[no-untyped-call]
        tokenizer_object=tokenizer, pad_token=pad, bos_token=bos, eos_token=eos, model_max_length=2048
    )
