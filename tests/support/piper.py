"""Small voices as Piper's exporter writes them: the names of modules on the graph's nodes, and of most weights."""

import json
import re
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import torch
from onnx import helper, numpy_helper
from torch import nn

SYMBOLS = "_^$ !,.?abdefhijklmnopstuvwz"
_MODULES = (
    (r"text_encoder\.embed_tokens", "enc_p.emb"), (r"embed_speaker", "emb_g"), (r"text_encoder\.project", "enc_p.proj"),
    (r"text_encoder\.encoder\.layers\.(\d+)\.attention\.(.)_proj", r"enc_p.encoder.attn_layers.\1.conv_\2"),
    (r"text_encoder\.encoder\.layers\.(\d+)\.attention\.out_proj", r"enc_p.encoder.attn_layers.\1.conv_o"),
    (r"text_encoder\.encoder\.layers\.(\d+)\.attention", r"enc_p.encoder.attn_layers.\1"),
    (r"text_encoder\.encoder\.layers\.(\d+)\.layer_norm", r"enc_p.encoder.norm_layers_1.\1"),
    (r"text_encoder\.encoder\.layers\.(\d+)\.final_layer_norm", r"enc_p.encoder.norm_layers_2.\1"),
    (r"text_encoder\.encoder\.layers\.(\d+)\.feed_forward\.(conv_.)", r"enc_p.encoder.ffn_layers.\1.\2"),
    (r"flow\.flows\.(\d+)\.conv_(pre|post)", r"flow.flows.\1.\2"),
    (r"flow\.flows\.(\d+)\.wavenet", r"flow.flows.\1.enc"),
    (r"duration_predictor\.(flows\.\d+\.)?conv_(pre|proj)$", r"dp.\1\2"),
    (r"duration_predictor\.(flows\.\d+\.)?conv_dds\.convs_dilated", r"dp.\1convs.convs_sep"),
    (r"duration_predictor\.(flows\.\d+\.)?conv_dds\.convs_pointwise", r"dp.\1convs.convs_1x1"),
    (r"duration_predictor\.(flows\.\d+\.)?conv_dds\.norms_", r"dp.\1convs.norms_"),
    (r"duration_predictor", "dp"), (r"decoder\.upsampler", "dec.ups"), (r"decoder", "dec"),
)  # fmt: skip


def piper_name(module: str) -> str:
    """The name in Piper of a module of transformers."""
    for pattern, theirs in _MODULES:
        found, count = re.subn(f"^{pattern}", theirs, module)
        if count:
            break
    else:
        raise AssertionError(module)
    # Flips stand between the couplings, and one flow of the durations is for training alone
    found = re.sub(r"^flow\.flows\.(\d+)", lambda one: f"flow.flows.{2 * int(one[1])}", found)
    return re.sub(r"^dp\.flows\.(\d+)", lambda one: f"dp.flows.{2 * int(one[1]) - 1 if one[1] != '0' else 0}", found)


def write_piper(model: Any, folder: Path, **facts: Any) -> tuple[Path, Path]:
    """A model's weights as an ONNX file, whose graph computes nothing, and its settings."""
    nodes, stored = [], []

    def store(name: str, values: Any) -> str:
        stored.append(numpy_helper.from_array(np.ascontiguousarray(values.detach().numpy()), name))
        return name

    for name, module in model.named_modules():
        own = dict(module.named_parameters(recurse=False))
        if not own:
            continue
        theirs = piper_name(name)
        if isinstance(module, nn.Embedding):
            # Exported under the name of another input
            nodes.append(helper.make_node("Gather", [store(f"sid{len(nodes)}", own["weight"]), "input"], [theirs],
                                          name=f"/{theirs.replace('.', '/', 1)}/Gather"))  # fmt: skip
        elif isinstance(module, nn.Conv1d | nn.ConvTranspose1d | nn.Linear):
            weight = own["weight"][..., None] if isinstance(module, nn.Linear) else own["weight"]
            anonymous = ".enc.in_layers" in theirs or ".enc.res_skip" in theirs
            inputs = ["x", store(f"onnx::Conv_{len(nodes)}" if anonymous else f"{theirs}.weight", weight)]
            inputs += [store(f"{theirs}.bias", own["bias"])] if "bias" in own else []
            kind = "ConvTranspose" if isinstance(module, nn.ConvTranspose1d) else "Conv"
            attributes: dict[str, Any] = {"kernel_shape": [weight.shape[2]], "dilations": [1], "strides": [1]}
            if not isinstance(module, nn.Linear):
                attributes |= {"dilations": list(module.dilation), "strides": list(module.stride)}
            place = re.sub(r"\.(?=[a-z])", "/", theirs)
            nodes.append(helper.make_node(kind, inputs, [f"y{len(nodes)}"], name=f"/{place}/{kind}", **attributes))
        elif isinstance(module, nn.LayerNorm):
            store(f"{theirs}.gamma", own["weight"])
            store(f"{theirs}.beta", own["bias"])
        elif "translate" in own:
            store(f"{theirs}.m", own["translate"])
            store("/dp/flows.0/Exp_output_0", torch.exp(-own["log_scale"]))
        else:
            for key, values in own.items():
                store(f"{theirs}.{key}", values)
    graph = helper.make_graph(nodes, "voice", [], [], initializer=stored)
    path, settings = folder / "voice.onnx", folder / "voice.onnx.json"
    onnx.save(helper.make_model(graph), str(path))
    content = {
        "audio": {"sample_rate": 16_000}, "espeak": {"voice": "be"}, "dataset": "Small",
        "phoneme_id_map": {symbol: [number] for number, symbol in enumerate(SYMBOLS)},
        "inference": {"noise_scale": 0.5, "noise_w": 0.6, "length_scale": 1.25},
    }  # fmt: skip
    settings.write_text(json.dumps(content | facts), encoding="utf-8")
    return path, settings
