"""CTranslate2's Whisper becomes transformers' own: every variable finds its place, and the texts are the engine's."""

import json
import struct
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

from kauli.models.bases.find import fetch_base, find_base
from kauli.models.bases.folder import check_recogniser
from kauli.models.bases.whisper_import import convert_whisper, read_ctranslate2
from kauli.models.errors import KauliError, UsageError
from kauli.models.media.decode import decode_audio
from kauli.training.data.dataset import load_data

# What CTranslate2 4.6 makes of these clips from the same log-mel spectrograms, greedily, in float32
ENGINE = {
    "be-tuxpaint-4620463fc37ff87b": "Чорная субь кьянка.",
    "be-tuxpaint-ad527064affd4391": "Качар!",
    "be-tuxpaint-f276b7db4b6601a4": "Великая блокидная шапля.",
    "be-tuxpaint-425a4b97da01423c": "корышневая куля.",
    "be-tuxpaint-aecc7df9c09a999c": "Матилёк Манарх",
    "be-tuxpaint-199d5f38ac467032": "Марскильев!",
}


def variables() -> dict[str, Any]:
    """A Whisper of one layer a side as CTranslate2 names its variables."""
    draw = np.random.default_rng(0)

    def some(*shape: int) -> Any:
        return draw.normal(size=shape).astype(np.float16)

    width, inner, out = 384, 1536, {}
    for side in ("encoder", "decoder"):
        attentions = ["self_attention", "attention"] if side == "decoder" else ["self_attention"]
        for part in attentions:
            sizes = [3 * width, width] if part == "self_attention" else [width, 2 * width, width]
            for number, size in enumerate(sizes):
                out[f"{side}/layer_0/{part}/linear_{number}/weight"] = some(size, width)
                bias = some(size)
                if size == 3 * width:
                    bias[width : 2 * width] = 0  # of k, which has none
                if size == 2 * width:
                    bias[:width] = 0
                out[f"{side}/layer_0/{part}/linear_{number}/bias"] = bias
        for part in [*attentions, "ffn"]:
            out |= {f"{side}/layer_0/{part}/layer_norm/{name}": some(width) for name in ("gamma", "beta")}
        out |= {f"{side}/layer_norm/{name}": some(width) for name in ("gamma", "beta")}
        for number, shape in enumerate(((inner, width), (width, inner))):
            out[f"{side}/layer_0/ffn/linear_{number}/weight"] = some(*shape)
            out[f"{side}/layer_0/ffn/linear_{number}/bias"] = some(shape[0])
        out[f"{side}/num_heads"] = np.int16(6)
    out["encoder/conv1/weight"], out["encoder/conv1/bias"] = some(width, 80, 3), some(width)
    out["encoder/conv2/weight"], out["encoder/conv2/bias"] = some(width, width, 3), some(width)
    out["encoder/position_encodings/encodings"] = some(1500, width)
    out["decoder/position_encodings/encodings"] = some(448, width)
    out["decoder/embeddings/weight"] = some(51865, width)
    return out


def write(path: Path, values: dict[str, Any]) -> Path:
    """A model.bin."""
    codes = {np.dtype(np.float16): 4, np.dtype(np.int16): 2, np.dtype(np.int8): 1}

    def text(value: str) -> bytes:
        return struct.pack("<H", len(value) + 1) + value.encode() + b"\0"

    content = struct.pack("<I", 6) + text("WhisperSpec") + struct.pack("<II", 3, len(values))
    for name, value in values.items():
        value = np.asarray(value)
        content += text(name) + struct.pack("<B", value.ndim) + b"".join(struct.pack("<I", n) for n in value.shape)
        content += struct.pack("<BI", codes[value.dtype], value.nbytes) + value.tobytes()
    path.write_bytes(content + struct.pack("<I", 0))
    return path


def test_a_file_is_read_as_it_was_written(tmp_path: Path) -> None:
    values = {"a/b": np.arange(6, dtype=np.float16).reshape(2, 3), "n": np.int16(8)}
    found = read_ctranslate2(write(tmp_path / "model.bin", values))
    assert found.keys() == values.keys()
    assert np.array_equal(found["a/b"], values["a/b"])
    assert found["n"] == 8


def test_what_is_truncated_or_something_else_is_refused(tmp_path: Path) -> None:
    path = write(tmp_path / "model.bin", {"a": np.zeros(50, np.float16)})
    path.write_bytes(path.read_bytes()[:40])
    with pytest.raises(KauliError, match="truncated"):
        read_ctranslate2(path)
    path.write_bytes(b"no model at all, but long enough to be read")
    with pytest.raises(KauliError, match=r"model\.bin"):
        read_ctranslate2(path)


def files(folder: Path) -> tuple[Path, Path]:
    """A tokenizer and the settings beside a model."""
    debug = find_base("debug", task="transcribe").folder
    (folder / "config.json").write_text(json.dumps({"suppress_ids": [1], "suppress_ids_begin": [2], "lang_ids": []}))
    return debug / "tokenizer.json", folder / "config.json"


def test_every_variable_finds_its_place(tmp_path: Path) -> None:
    values = variables()
    (tmp_path / "out").mkdir()
    convert_whisper(write(tmp_path / "model.bin", values), *files(tmp_path), tmp_path / "out")
    tensors = load_file(tmp_path / "out" / "model.safetensors")
    fused = torch.from_numpy(values["encoder/layer_0/self_attention/linear_0/weight"])
    for number, head in enumerate(("q_proj", "k_proj", "v_proj")):
        place = f"model.encoder.layers.0.self_attn.{head}.weight"
        assert torch.equal(tensors[place], fused[384 * number : 384 * (number + 1)])
    crossed = torch.from_numpy(values["decoder/layer_0/attention/linear_1/bias"])
    assert torch.equal(tensors["model.decoder.layers.0.encoder_attn.v_proj.bias"], crossed[384:])
    assert "model.decoder.layers.0.encoder_attn.k_proj.bias" not in tensors
    kept = sum(value.size for value in values.values() if np.asarray(value).ndim)
    assert sum(tensor.numel() for tensor in tensors.values()) == kept - 3 * 384  # the biases of zeros


@pytest.mark.parametrize("change", ["missing", "unknown", "biased"])
def test_a_variable_too_many_or_too_few_is_refused(tmp_path: Path, change: str) -> None:
    values = variables()
    if change == "missing":
        del values["encoder/conv2/bias"]
    elif change == "unknown":
        values["encoder/layer_0/self_attention/linear_9/weight"] = np.zeros((4, 4), np.float16)
    else:
        values["encoder/layer_0/self_attention/linear_0/bias"][:] = 1
    (tmp_path / "out").mkdir()
    with pytest.raises(KauliError):
        convert_whisper(write(tmp_path / "model.bin", values), *files(tmp_path), tmp_path / "out")


def test_other_models_are_refused(tmp_path: Path) -> None:
    save_file({"a": torch.zeros(1)}, tmp_path / "model.safetensors")
    messages = {"llama": "'llama'; the task 'transcribe' takes whisper, wav2vec2", "whisper": "no tokenizer"}
    for kind, message in messages.items():
        (tmp_path / "config.json").write_text(json.dumps({"model_type": kind}))
        with pytest.raises(UsageError, match=message):
            check_recogniser(tmp_path, "x")


@pytest.mark.weights
def test_the_packaged_whisper_writes_what_its_own_engine_writes() -> None:
    from kauli.models.speech.whisper import WhisperTask
    from kauli.training.evaluation.transcribe import transcribe

    base = fetch_base("whisper-base")
    rows = load_data("starter", ["be"]).rows(split="validation", languages=["be"], columns=["id", "language", "audio"])
    chosen = [{**row, "samples": decode_audio(row["audio"]).samples} for row in rows if row["id"] in ENGINE]
    texts = transcribe(WhisperTask.load(base, device="cpu"), chosen)
    assert {row["id"]: text for row, text in zip(chosen, texts, strict=True)} == ENGINE
