"""A Piper voice (one ONNX file and its JSON) -> a folder with a `VitsModel` of transformers that sounds the same.

The exporter of Piper keeps the names of most weights, and gives the nodes of the graph the names of their modules: the
weights of a convolution are found by its node, whatever their own names are. What only training needs (the posterior
encoder and a part of the duration predictor) is not in the file, and not in the folder.
"""

import json
import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from kauli.models.errors import UsageError
from kauli.models.files import read_json

VOICE = "voice.json"
"""Beside the weights: the symbols that the voice reads and how it was trained."""
_UNTRAINED_SPREADS = 5.0
_NAMES = (
    (r"enc_p\.emb\.", "text_encoder.embed_tokens."),
    (r"emb_g\.", "embed_speaker."),
    (r"enc_p\.proj\.", "text_encoder.project."),
    (r"enc_p\.encoder\.attn_layers\.(\d+)\.conv_([qkv])\.", r"text_encoder.encoder.layers.\1.attention.\2_proj."),
    (r"enc_p\.encoder\.attn_layers\.(\d+)\.conv_o\.", r"text_encoder.encoder.layers.\1.attention.out_proj."),
    (r"enc_p\.encoder\.attn_layers\.(\d+)\.emb_rel_", r"text_encoder.encoder.layers.\1.attention.emb_rel_"),
    (r"enc_p\.encoder\.norm_layers_1\.(\d+)\.", r"text_encoder.encoder.layers.\1.layer_norm."),
    (r"enc_p\.encoder\.norm_layers_2\.(\d+)\.", r"text_encoder.encoder.layers.\1.final_layer_norm."),
    (r"enc_p\.encoder\.ffn_layers\.(\d+)\.", r"text_encoder.encoder.layers.\1.feed_forward."),
    (r"flow\.flows\.(\d+)\.(pre|post)\.", r"flow.flows.\1.conv_\2."),
    (r"flow\.flows\.(\d+)\.enc\.", r"flow.flows.\1.wavenet."),
    (r"dp\.(flows\.\d+\.)?(pre|proj)\.", r"duration_predictor.\1conv_\2."),
    (r"dp\.(flows\.\d+\.)?convs\.convs_sep\.", r"duration_predictor.\1conv_dds.convs_dilated."),
    (r"dp\.(flows\.\d+\.)?convs\.convs_1x1\.", r"duration_predictor.\1conv_dds.convs_pointwise."),
    (r"dp\.(flows\.\d+\.)?convs\.norms_", r"duration_predictor.\1conv_dds.norms_"),
    (r"dp\.flows\.0\.m$", "duration_predictor.flows.0.translate"),
    (r"dp\.flows\.0\.logs$", "duration_predictor.flows.0.log_scale"),
    (r"dp\.cond\.", "duration_predictor.cond."),
    (r"dec\.ups\.", "decoder.upsampler."),
    (r"dec\.", "decoder."),
)


def convert_piper(model: Path, settings: Path, out: Path) -> None:
    """Write the voice into the folder `out`. Raises UsageError for a file that holds no VITS of Piper."""
    import torch
    from safetensors.torch import save_file

    weights, convolutions = _read(model)
    facts = _facts(settings)
    config = _config(weights, convolutions, facts)
    tensors = {}
    for name, values in weights.items():
        place = _place(name)
        # A linear layer of transformers where Piper has a convolution of width 1
        values = values[..., 0] if ".attention." in place and values.ndim == 3 and "emb_rel" not in place else values
        tensors[place] = torch.from_numpy(np.array(values, np.float32))
    save_file(tensors, out / "model.safetensors", metadata={"format": "pt"})
    config.save_pretrained(out)
    used = {number for numbers in facts["phoneme_id_map"].values() for number in numbers}
    voice = {
        "symbols": {symbol: numbers[0] for symbol, numbers in facts["phoneme_id_map"].items()},
        "trained": _trained(weights["enc_p.emb.weight"], facts["phoneme_id_map"], used),
        "espeak": facts["espeak"]["voice"],
        "name": str(facts.get("dataset") or model.name.split(".")[0]).lower(),
        "speakers": facts.get("speaker_id_map") or {},
    }
    (out / VOICE).write_text(json.dumps(voice, ensure_ascii=False, indent=1) + "\n", encoding="utf-8")


def _read(path: Path) -> tuple[dict[str, Any], dict[str, Any]]:
    """All weights by Piper's own names, and the attributes of each convolution by its module."""
    import onnx
    from google.protobuf.message import DecodeError
    from onnx import numpy_helper

    try:
        graph = onnx.load(str(path)).graph
    except (DecodeError, OSError) as error:
        raise UsageError(f"{path.name} is no ONNX file: {error}.") from None
    stored = {one.name: numpy_helper.to_array(one) for one in graph.initializer}
    found: dict[str, Any] = {
        name: values for name, values in stored.items() if re.match(r"(enc_p|flow|dp|dec)\.", name)
    }
    convolutions: dict[str, Any] = {}
    for node in graph.node:
        module = node.name.strip("/").rpartition("/")[0].replace("/", ".")
        if node.op_type == "Gather" and module in ("enc_p.emb", "emb_g"):
            found[f"{module}.weight"] = stored[node.input[0]]  # exported under another input's name
        if node.op_type in ("Conv", "ConvTranspose") and len(node.input) > 1 and node.input[1] in stored:
            found[f"{module}.weight"] = stored[node.input[1]]
            if len(node.input) > 2:
                found[f"{module}.bias"] = stored[node.input[2]]
            convolutions[module] = {one.name: list(one.ints) for one in node.attribute}
    folded = stored.get("/dp/flows.0/Exp_output_0")  # exp(-logs) became a constant
    if folded is not None:
        found["dp.flows.0.logs"] = -np.log(folded)
    needed = (
        "enc_p.emb.weight",
        "enc_p.proj.weight",
        "flow.flows.0.pre.weight",
        "dp.proj.weight",
        "dec.conv_pre.weight",
    )
    if missing := [name for name in needed if name not in found]:
        raise UsageError(
            f"{path.name} is no VITS voice of Piper: it has no weights {', '.join(missing)}. Give a voice's .onnx file "
            "with its .onnx.json."
        )
    return found, convolutions


def _facts(path: Path) -> dict[str, Any]:
    facts: dict[str, Any] = read_json(path)
    lacking = [key for key in ("audio", "espeak", "phoneme_id_map") if key not in facts]
    if lacking:
        raise UsageError(f"{path.name} is no settings file of a Piper voice: it has no {', '.join(lacking)}.")
    return facts


def _config(weights: Mapping[str, Any], convolutions: Mapping[str, Mapping[str, Any]], facts: Mapping[str, Any]) -> Any:
    """The configuration that the shapes of the weights tell."""
    from transformers import VitsConfig

    vocabulary, hidden = weights["enc_p.emb.weight"].shape
    relative = weights["enc_p.encoder.attn_layers.0.emb_rel_k"].shape
    inner = weights["enc_p.encoder.ffn_layers.0.conv_1.weight"].shape
    first = weights["flow.flows.0.enc.in_layers.0.weight"].shape
    ups = [convolutions[f"dec.ups.{at}"] for at in range(_count(weights, r"dec\.ups\.(\d+)\.weight"))]
    blocks = _count(weights, r"dec\.resblocks\.(\d+)\.convs1?\.0\.weight") // len(ups)
    name = "convs" if "dec.resblocks.0.convs.0.weight" in weights else "convs1"
    dilations = [
        [convolutions[f"dec.resblocks.{block}.{name}.{at}"]["dilations"][0]
         for at in range(_count(weights, rf"dec\.resblocks\.{block}\.{name}\.(\d+)\.weight"))]
        for block in range(blocks)
    ]  # fmt: skip
    spread = facts.get("inference", {})
    # `exported` and `resblock_type` are for `ExportedVits`
    own: dict[str, Any] = {"exported": True, "resblock_type": 2 if name == "convs" else 1}
    return VitsConfig(
        vocab_size=vocabulary, hidden_size=hidden, num_attention_heads=hidden // relative[2],
        num_hidden_layers=_count(weights, r"enc_p\.encoder\.attn_layers\.(\d+)\.conv_q\.weight"),
        window_size=(relative[1] - 1) // 2, ffn_dim=inner[0], ffn_kernel_size=inner[2],
        flow_size=weights["enc_p.proj.weight"].shape[0] // 2,
        prior_encoder_num_flows=_count(weights, r"flow\.flows\.(\d+)\.pre\.weight"),
        prior_encoder_num_wavenet_layers=_count(weights, r"flow\.flows\.0\.enc\.in_layers\.(\d+)\.weight"),
        wavenet_kernel_size=first[2], wavenet_dilation_rate=_dilation_rate(convolutions),
        # One of them is for training alone, and not in the file
        duration_predictor_num_flows=_count(weights, r"dp\.flows\.(\d+)\.pre\.weight") + 1,
        duration_predictor_flow_bins=(weights["dp.flows.3.proj.weight"].shape[0] + 1) // 3,
        duration_predictor_kernel_size=weights["dp.convs.convs_sep.0.weight"].shape[2],
        depth_separable_num_layers=_count(weights, r"dp\.convs\.convs_sep\.(\d+)\.weight"),
        upsample_initial_channel=weights["dec.conv_pre.weight"].shape[0],
        upsample_rates=[one["strides"][0] for one in ups],
        upsample_kernel_sizes=[one["kernel_shape"][0] for one in ups],
        resblock_kernel_sizes=[weights[f"dec.resblocks.{block}.{name}.0.weight"].shape[2] for block in range(blocks)],
        resblock_dilation_sizes=dilations,
        num_speakers=weights["emb_g.weight"].shape[0] if "emb_g.weight" in weights else 1,
        speaker_embedding_size=weights["emb_g.weight"].shape[1] if "emb_g.weight" in weights else 0,
        sampling_rate=facts["audio"]["sample_rate"], noise_scale=spread.get("noise_scale", 0.667),
        noise_scale_duration=spread.get("noise_w", 0.8), speaking_rate=1 / spread.get("length_scale", 1.0),
        architectures=["VitsModel"], **own,
    )  # fmt: skip


def _dilation_rate(convolutions: Mapping[str, Mapping[str, Any]]) -> int:
    second = convolutions.get("flow.flows.0.enc.in_layers.1")
    return int(second["dilations"][0]) if second else 1


def _place(name: str) -> str:
    """The name in transformers of a weight of Piper's."""
    name = name.replace(".gamma", ".weight").replace(".beta", ".bias")
    # Between the couplings of Piper are flips, which have numbers as well; so has the one for training alone.
    name = re.sub(r"^flow\.flows\.(\d+)", lambda found: f"flow.flows.{int(found[1]) // 2}", name)
    name = re.sub(r"^dp\.flows\.(\d+)", lambda found: f"dp.flows.{(int(found[1]) + 1) // 2}", name)
    for pattern, ours in _NAMES:
        found, count = re.subn(f"^{pattern}", ours, name)
        if count:
            return found
    raise UsageError(f"the voice has a weight '{name}' that kauli does not know: it is no VITS of Piper.")


def _count(weights: Mapping[str, Any], pattern: str) -> int:
    return len(set(_matches(weights, pattern)))


def _matches(weights: Mapping[str, Any], pattern: str) -> Iterator[str]:
    for name in weights:
        if found := re.fullmatch(pattern, name):
            yield found[1]


def _trained(rows: Any, symbols: Mapping[str, list[int]], used: set[int]) -> list[str]:
    """The symbols whose rows have left the start of training, where all have the same spread.

    Rows that no symbol has show that start; a voice without such rows counts as trained on all its symbols.
    """
    lengths = np.linalg.norm(rows, axis=1)
    untouched = [lengths[number] for number in range(len(rows)) if number not in used]
    if len(untouched) < 8:
        return sorted(symbols)
    limit = np.mean(untouched) + _UNTRAINED_SPREADS * np.std(untouched)
    return sorted(symbol for symbol, numbers in symbols.items() if lengths[numbers[0]] > limit)
