"""Voices of Piper: every weight in its place, whatever the shape; the real one sounds as its ONNX file does."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from transformers import VitsConfig

from kauli.models.bases.find import fetch_base, find_base, known_bases
from kauli.models.bases.packages import fetch_package
from kauli.models.bases.piper_import import convert_piper
from kauli.models.errors import UsageError
from kauli.models.speech.sounds import Symbols
from kauli.models.speech.vits_model import ExportedVits, Utterance, latents, read_vits, sound, voice_facts
from support.piper import SYMBOLS, write_piper

CPU = torch.device("cpu")


def small(**other: Any) -> ExportedVits:
    config = {
        "vocab_size": 40, "hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2, "ffn_dim": 48,
        "flow_size": 16, "prior_encoder_num_flows": 2, "prior_encoder_num_wavenet_layers": 3,
        "posterior_encoder_num_wavenet_layers": 1, "duration_predictor_num_flows": 4,
        "duration_predictor_flow_bins": 10, "depth_separable_num_layers": 3, "upsample_initial_channel": 32,
        "upsample_rates": [8, 4], "upsample_kernel_sizes": [16, 8], "resblock_kernel_sizes": [3, 5],
        "resblock_dilation_sizes": [[1, 2], [2, 6]], "resblock_type": 2, "sampling_rate": 16_000, "exported": True,
        "wavenet_dilation_rate": 2, "noise_scale": 0.5, "noise_scale_duration": 0.6, "speaking_rate": 0.8,
    }  # fmt: skip
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(1)
        model = ExportedVits(VitsConfig(**(config | other))).eval()
        for one in model.parameters():
            one.data += 0.02 * torch.randn_like(one)
    return model


@pytest.mark.parametrize(
    "other",
    [
        {}, {"resblock_type": 1, "resblock_dilation_sizes": [[1, 3, 5], [1, 3, 5]]},
        {"num_speakers": 3, "speaker_embedding_size": 8},
    ],
    ids=["medium", "high", "speakers"],
)  # fmt: skip
def test_every_weight_finds_its_place(other: dict[str, Any], tmp_path: Path) -> None:
    model = small(**other)
    names = {f"reader-{number}": number for number in range(other.get("num_speakers", 0))}
    convert_piper(*write_piper(model, tmp_path, speaker_id_map=names), tmp_path)
    found = read_vits(tmp_path, CPU)
    ours, theirs = found.state_dict(), model.state_dict()
    assert ours.keys() == theirs.keys()
    assert all(torch.allclose(ours[name], theirs[name], atol=1e-6) for name in theirs)
    for key in ("window_size", "ffn_kernel_size", "resblock_dilation_sizes", "upsample_rates", "noise_scale",
                "noise_scale_duration", "speaking_rate", "wavenet_dilation_rate", "num_speakers"):  # fmt: skip
        assert getattr(found.config, key) == getattr(model.config, key), key
    facts = voice_facts(tmp_path)
    assert (facts["espeak"], facts["name"], facts["speakers"]) == ("be", "small", names)
    utterance = Utterance([3, 9, 4, 0, 7], seed=5, speaker=max(names.values(), default=0))
    first, second = (sound(one, latents(one, [utterance])[0]) for one in (found, model))
    assert torch.allclose(first, second, atol=1e-4)


def test_symbols_that_training_never_saw_are_told_by_their_rows(tmp_path: Path) -> None:
    model = small(vocab_size=60)
    rows = torch.nn.functional.normalize(model.text_encoder.embed_tokens.weight.data, dim=1) * 0.4
    trained = [number for number, symbol in enumerate(SYMBOLS) if symbol in "aeioubdk. "]
    rows[trained] *= 2.5
    model.text_encoder.embed_tokens.weight.data = rows * (1 + 0.01 * torch.randn(60, 1))
    convert_piper(*write_piper(model, tmp_path), tmp_path)
    assert set(voice_facts(tmp_path)["trained"]) == set("aeioubdk. ")


def test_other_files_are_refused(tmp_path: Path) -> None:
    model, settings = write_piper(small(), tmp_path)
    broken = tmp_path / "broken.onnx"
    broken.write_bytes(model.read_bytes()[:1000])
    with pytest.raises(UsageError, match=r"broken.onnx is no (ONNX file|VITS voice of Piper)"):
        convert_piper(broken, settings, tmp_path)
    other = tmp_path / "other.json"
    other.write_text(json.dumps({"audio": {}}))
    with pytest.raises(
        UsageError, match=r"other.json is no settings file of a Piper voice: it has no espeak, phoneme_"
    ):
        convert_piper(model, other, tmp_path)


@pytest.mark.weights
def test_the_packaged_voice_sounds_as_its_onnx_file() -> None:
    """The same samples but for rounding (96 dB below the speech), without noise in both."""
    import onnxruntime

    base = fetch_base("piper-vits")
    symbols, model = Symbols.read(base.folder, base.name), read_vits(base.folder, CPU)
    piper = known_bases()["piper-vits"].piper
    assert piper is not None
    path = fetch_package(piper.model.package) / piper.model.file
    session = onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
    tokens = symbols.tokens("həlˈoʊ wˈɜːld, ðɪs ɪz ɐ vˈɔɪs. twˈɛnti fˈaɪv ˈæpəlz!")
    scales = np.array([0, 1, 0], np.float32)
    given = {"input": np.array([tokens]), "input_lengths": np.array([len(tokens)]), "scales": scales}
    theirs = session.run(None, given)[0].reshape(-1)
    [latent] = latents(model, [Utterance(tokens, noise=0, duration_noise=0)])
    ours = sound(model, latent).numpy()
    assert ours.shape == theirs.shape
    assert np.abs(ours - theirs).max() < 1e-4
    assert 10 * np.log10((theirs**2).sum() / ((ours - theirs) ** 2).sum()) > 80
    assert {"ɹ", "ə", "ŋ", "ˈ"} <= symbols.trained
    assert not {"ɣ", "ɨ", "ʲ", "y", "r"} & symbols.trained


def test_a_debug_voice_is_found_by_its_task() -> None:
    assert find_base("debug", task="speak").name == "debug-vits"
    with pytest.raises(UsageError, match=r"is for the task transcribe, not 'speak'. For 'speak': piper-vits"):
        find_base("whisper-base", task="speak")


def test_a_voice_of_ones_own_is_a_base_by_its_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("KAULI_HOME", str(tmp_path / "home"))
    model, settings = write_piper(small(), tmp_path)
    base = fetch_base(str(model))
    assert base.task == "speak"
    assert base == find_base(str(model), task="speak") == find_base(str(base.folder), task="speak")
    assert Symbols.read(base.folder, base.name).phonemes
    with pytest.raises(UsageError, match=r"is for the task|takes|is no base|causal language model"):
        find_base(str(model), task="text")
    settings.unlink()
    with pytest.raises(UsageError, match=r"\.onnx\.json is missing: a voice of Piper is an \.onnx file with"):
        find_base(str(model), task="speak")
