"""Small open_clip checkpoints of the shapes that the hub has."""

from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file


def checkpoint(folder: Path, shape: str) -> Path:
    """A small checkpoint as open_clip saves its own of that shape, random weights."""
    import json

    import open_clip

    from kauli.models.bases.debug import _byte_tokenizer

    folder.mkdir()
    _byte_tokenizer(begins=False).save_pretrained(folder)
    if shape == "xlm-roberta-ViT":
        from transformers import XLMRobertaConfig

        XLMRobertaConfig(
            vocab_size=259, hidden_size=32, num_hidden_layers=2, num_attention_heads=2, intermediate_size=64,
            max_position_embeddings=130, pad_token_id=0, initializer_range=0.1,
        ).save_pretrained(folder)  # fmt: skip
        # hf_proj_type is open_clip's default for these: two layers
        text = {"hf_model_name": "org/xlm-roberta-tiny", "hf_pooler_type": "mean_pooler", "hf_proj_type": "mlp"}
        text |= {"hf_tokenizer_name": "org/xlm-roberta-tiny", "context_length": 64}
        model_cfg: dict[str, Any] = {
            "embed_dim": 24,
            "vision_cfg": {"layers": 2, "width": 32, "head_width": 16, "patch_size": 8, "image_size": 32},
        }  # fmt: skip
        local = {**text, "hf_model_name": str(folder), "hf_model_pretrained": False}
    else:
        text = {
            "width": 32, "heads": 2, "layers": 2, "context_length": 16, "vocab_size": 259, "pool_type": "last",
            "no_causal_mask": True, "proj_bias": True, "hf_tokenizer_name": str(folder),
            "tokenizer_kwargs": {"clean": "canonicalize"},
        }  # fmt: skip
        model_cfg = {
            "embed_dim": 64, "init_logit_bias": -10, "custom_text": True,
            "vision_cfg": {
                "timm_model_name": "test_vit", "timm_pool": "map", "timm_proj": "none", "image_size": 160,
                "timm_model_pretrained": False,
            },
        }  # fmt: skip
        local = dict(text)
    torch.manual_seed(1)
    parts = {key: value for key, value in model_cfg.items() if key != "custom_text"}
    model = open_clip.CustomTextCLIP(**parts, text_cfg=local)
    save_file({name: value.contiguous() for name, value in model.state_dict().items()}, folder / "model.safetensors")
    config = {"model_cfg": model_cfg | {"text_cfg": text}, "preprocess_cfg": {"mean": [0.5] * 3, "std": [0.5] * 3}}
    (folder / "open_clip_config.json").write_text(json.dumps(config))
    return folder
