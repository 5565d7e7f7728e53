"""Bases of random weights, for tests and for trying a recipe: the real classes, two layers, a tokenizer of bytes."""

import json
from pathlib import Path
from typing import Any, Literal

from kauli.models.bases.folder import PLAIN
from kauli.models.bases.piper_import import VOICE

Shape = Literal["llama", "gemma3", "qwen3", "clip", "whisper", "wav2vec2", "vits"]

CHATML = (
    "{% for message in messages %}<|im_start|>{{ message['role'] }}\n{{ message['content'] }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)


def build_debug(shape: Shape, out: Path) -> None:
    """Write the debug base of `shape` into the folder `out`; the same bits every time."""
    if shape == "clip":
        build_debug_clip(out)
    elif shape == "whisper":
        build_debug_whisper(out)
    elif shape == "wav2vec2":
        build_debug_wav2vec2(out)
    elif shape == "vits":
        build_debug_vits(out)
    else:
        build_debug_text(shape, out)


def build_debug_clip(out: Path) -> None:
    """Write an open_clip model (a ViT for 32 pixels and a BERT, both 2 layers and 64 wide) into `out`."""
    import torch
    from open_clip import CustomTextCLIP
    from safetensors.torch import save_file
    from transformers import BertConfig

    tokenizer = _byte_tokenizer(begins=False)
    tokenizer.save_pretrained(out)
    BertConfig(
        vocab_size=len(tokenizer), hidden_size=64, num_hidden_layers=2, num_attention_heads=4, intermediate_size=128,
        max_position_embeddings=128, pad_token_id=0, initializer_range=0.1,
    ).save_pretrained(out)  # fmt: skip
    config: dict[str, Any] = {
        "model_cfg": {
            "embed_dim": 32,
            "vision_cfg": {"layers": 2, "width": 64, "head_width": 16, "patch_size": 8, "image_size": 32},
            "text_cfg": {
                "hf_model_name": "kauli/debug-clip", "hf_pooler_type": "mean_pooler", "hf_proj_type": "linear",
                "hf_tokenizer_name": "kauli/debug-clip", "context_length": 128,
            },
        },
        "preprocess_cfg": {
            "size": [32, 32], "mean": [0.5] * 3, "std": [0.25] * 3, "interpolation": "bicubic",
            "resize_mode": "longest", "fill_color": 255,
        },
    }  # fmt: skip
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        parts = config["model_cfg"]
        local = {**parts["text_cfg"], "hf_model_name": str(out), "hf_model_pretrained": False}
        model = CustomTextCLIP(parts["embed_dim"], parts["vision_cfg"], local)
    tensors = {name: value.contiguous() for name, value in model.state_dict().items() if "position_ids" not in name}
    save_file(tensors, out / "open_clip_model.safetensors")
    (out / "open_clip_config.json").write_text(json.dumps(config, indent=2) + "\n", encoding="utf-8")


def build_debug_whisper(out: Path) -> None:
    """Write a Whisper (2 + 2 layers, 64 wide, 4 seconds, 16 mel bins) that knows five languages into `out`."""
    import torch
    from tokenizers import AddedToken
    from transformers import (
        GenerationConfig,
        WhisperConfig,
        WhisperFeatureExtractor,
        WhisperForConditionalGeneration,
        WhisperTokenizer,
    )

    letters = _byte_letters()
    vocabulary = {letter: place for place, letter in enumerate(letters)}
    end, start = len(letters), len(letters) + 1
    languages = {f"<|{tag}|>": start + 1 + place for place, tag in enumerate(("en", "be", "kk", "tt", "uz"))}
    after = start + 1 + len(languages)
    names = ["<|translate|>", "<|transcribe|>", "<|startoflm|>", "<|startofprev|>", "<|nospeech|>", "<|notimestamps|>"]
    tokens = {"<|endoftext|>": end, "<|startoftranscript|>": start, **languages}
    tokens |= {name: after + place for place, name in enumerate(names)}
    tokenizer = WhisperTokenizer(vocab=vocabulary | {"<|endoftext|>": end}, merges=[], pad_token="<|endoftext|>")
    tokenizer.add_tokens([AddedToken(name, special=True) for name in sorted(tokens, key=tokens.__getitem__)])
    assert all(tokenizer.convert_tokens_to_ids(name) == place for name, place in tokens.items())
    tokenizer.save_pretrained(out)
    sound = WhisperFeatureExtractor(feature_size=16, chunk_length=4)  # type: ignore[no-untyped-call]
    sound.save_pretrained(out)
    config = WhisperConfig(
        vocab_size=len(tokenizer), d_model=64, encoder_layers=2, decoder_layers=2, encoder_attention_heads=4,
        decoder_attention_heads=4, encoder_ffn_dim=128, decoder_ffn_dim=128, num_mel_bins=16, max_source_positions=200,
        max_target_positions=128, pad_token_id=end, bos_token_id=end, eos_token_id=end, decoder_start_token_id=start,
        init_std=0.1,
    )  # fmt: skip
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = WhisperForConditionalGeneration(config)
    model.generation_config = GenerationConfig(  # type: ignore[no-untyped-call]
        eos_token_id=end, pad_token_id=end, decoder_start_token_id=start, max_length=128, lang_to_id=languages,
        task_to_id={"translate": tokens["<|translate|>"], "transcribe": tokens["<|transcribe|>"]},
        no_timestamps_token_id=tokens["<|notimestamps|>"], is_multilingual=True,
    )  # fmt: skip
    model.save_pretrained(out)


def build_debug_wav2vec2(out: Path) -> None:
    """Write a wav2vec2 CTC model (2 layers, 64 wide, 50 frames a second) with the letters a to z into `out`."""
    import torch
    from transformers import Wav2Vec2Config, Wav2Vec2FeatureExtractor, Wav2Vec2ForCTC

    tokens = ["<pad>", "<s>", "</s>", "<unk>", "|", "'", *(chr(place) for place in range(ord("a"), ord("z") + 1))]
    (out / "vocab.json").write_text(json.dumps({token: place for place, token in enumerate(tokens)}), encoding="utf-8")
    Wav2Vec2FeatureExtractor().save_pretrained(out)  # type: ignore[no-untyped-call]
    config = Wav2Vec2Config(
        vocab_size=len(tokens), hidden_size=64, num_hidden_layers=2, num_attention_heads=4, intermediate_size=128,
        # A first filter of 10 ms, where the real ones have six layers for as much
        conv_dim=(32, 32), conv_kernel=(160, 4), conv_stride=(80, 4), feat_extract_norm="layer",
        num_conv_pos_embeddings=16, num_conv_pos_embedding_groups=4, do_stable_layer_norm=True, initializer_range=0.1,
        mask_time_prob=0.0, layerdrop=0.0, hidden_dropout=0.0, attention_dropout=0.0, activation_dropout=0.0,
        feat_proj_dropout=0.0, final_dropout=0.0, pad_token_id=0, bos_token_id=1, eos_token_id=2,
    )  # fmt: skip
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = Wav2Vec2ForCTC(config)
    model.save_pretrained(out)


def build_debug_vits(out: Path) -> None:
    """Write a VITS (2 layers, 32 wide, 16 kHz) that reads the IPA's commonest sounds, as a voice of Piper, into `out`.

    Its sound is noise, of about as many frames as a real voice has.
    """
    import torch
    from transformers import VitsConfig, VitsModel

    symbols = {symbol: number for number, symbol in enumerate("_^$ !,.:;?abdefhijklmnopstuvwxzðŋɐɑɔəɛɡɪɾʃʊʌʒʔˈˌːθᵻ")}
    config = VitsConfig(
        vocab_size=len(symbols), hidden_size=32, num_hidden_layers=2, num_attention_heads=2, ffn_dim=64, flow_size=16,
        prior_encoder_num_flows=2, prior_encoder_num_wavenet_layers=2, posterior_encoder_num_wavenet_layers=2,
        duration_predictor_num_flows=2, duration_predictor_filter_channels=32, depth_separable_num_layers=2,
        upsample_initial_channel=32, upsample_rates=[8, 8, 4], upsample_kernel_sizes=[16, 16, 8],
        resblock_kernel_sizes=[3, 5], resblock_dilation_sizes=[[1, 2], [2, 6]], spectrogram_bins=65,
        sampling_rate=16_000,
    )  # fmt: skip
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = VitsModel(config)
        durations: Any = model.duration_predictor
        torch.nn.init.constant_(durations.flows[0].translate, 2.0)  # some three frames a symbol
        model.save_pretrained(out)
    voice = {"symbols": symbols, "trained": sorted(symbols), "espeak": "en-us", "name": "debug", "speakers": {}}
    (out / VOICE).write_text(json.dumps(voice, ensure_ascii=False), encoding="utf-8")


def build_debug_text(shape: Shape, out: Path) -> None:
    """Write a causal LM of `shape` (2 layers, 64 wide, 4 heads, 259 tokens) and its tokenizer into the folder `out`.

    The weights depend on nothing but `shape`; the caller's random state is left alone.
    """
    import torch
    from transformers import AutoModelForCausalLM

    tokenizer = _byte_tokenizer(begins=shape == "gemma3")
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        config = _text_config(shape, vocab_size=len(tokenizer))
        model: Any = AutoModelForCausalLM.from_config(config)  # type: ignore[no-untyped-call]
    model.to(torch.bfloat16).save_pretrained(out)
    tokenizer.chat_template = PLAIN if shape == "gemma3" else CHATML
    tokenizer.save_pretrained(out)


def _text_config(shape: Shape, vocab_size: int) -> Any:
    from transformers import AutoConfig

    own: dict[str, Any] = {"tie_word_embeddings": False}
    if shape == "gemma3":
        layers = ["sliding_attention", "full_attention"]
        own = {"sliding_window": 16, "layer_types": layers, "query_pre_attn_scalar": 16}
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
    return AutoConfig.for_model("gemma3_text" if shape == "gemma3" else shape, **size, **own)


def _byte_tokenizer(begins: bool) -> Any:
    """Ids 0-2 are specials, 3-258 the bytes in order; `begins` puts a beginning mark before each text, as Gemma's."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors
    from transformers import PreTrainedTokenizerFast

    pad, bos, eos = ("<pad>", "<bos>", "<eos>") if begins else ("<|endoftext|>", "<|im_start|>", "<|im_end|>")
    vocabulary = {pad: 0, bos: 1, eos: 2} | {letter: byte + 3 for byte, letter in enumerate(_byte_letters())}
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


def _byte_letters() -> list[str]:
    """The letters by which byte-level BPE writes the bytes 0 to 255."""
    from transformers.convert_slow_tokenizer import bytes_to_unicode

    return [letter for _, letter in sorted(bytes_to_unicode().items())]  # type: ignore[no-untyped-call]
