"""VITS: a row of a batch equals the row alone, the output equals that of transformers, and a seed fixes the noise."""

import json
from pathlib import Path

import pytest
import torch
from transformers import VitsConfig, VitsModel, VitsTokenizer

from kauli.models.bases.find import find_base
from kauli.models.errors import UsageError
from kauli.models.speech.sounds import Symbols
from kauli.models.speech.vits_model import Utterance, latents, read_vits, samples_per_frame, sound

CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def model() -> VitsModel:
    return read_vits(find_base("debug", task="speak").folder, CPU)


def test_a_batch_gives_each_row_what_it_gets_alone(model: VitsModel) -> None:
    rows = [Utterance([5, 0, 9, 0, 11, 0] * times, seed=times, speed=0.5 + times / 4) for times in (1, 5, 3)]
    for row, together in zip(rows, latents(model, rows), strict=True):
        [alone] = latents(model, [row])
        assert torch.equal(alone.durations, together.durations)
        assert torch.allclose(alone.frames, together.frames, atol=1e-4)
        assert len(sound(model, together)) == int(together.durations.sum()) * samples_per_frame(model)


def test_without_noise_it_is_what_transformers_computes(model: VitsModel) -> None:
    tokens = [5, 0, 9, 0, 11, 0, 20]
    old = model.noise_scale, model.noise_scale_duration
    model.noise_scale = model.noise_scale_duration = 0.0
    try:
        with torch.inference_mode():
            theirs = model(torch.tensor([tokens])).waveform[0]
    finally:
        model.noise_scale, model.noise_scale_duration = old
    [latent] = latents(model, [Utterance(tokens, noise=0, duration_noise=0)])
    assert torch.allclose(sound(model, latent), theirs, atol=1e-5)


def test_the_seed_is_the_noise_and_speed_is_length(model: VitsModel) -> None:
    tokens = [5, 0, 9, 0, 11, 0] * 8
    one, same, other = (sound(model, latents(model, [Utterance(tokens, seed=seed)])[0]) for seed in (1, 1, 2))
    assert torch.equal(one, same)
    assert one.shape != other.shape or not torch.allclose(one, other)
    slow, fast = (latents(model, [Utterance(tokens, speed=speed)])[0].durations.sum() for speed in (0.5, 2.0))
    assert 1.8 * fast < slow


def letters_folder(folder: Path, **settings: object) -> Path:
    """A model of the shape of MMS-TTS, which reads letters."""
    vocabulary = {letter: number for number, letter in enumerate("|abcdehilmnorstuy' -")}
    (folder / "vocab.json").write_text(json.dumps(vocabulary))
    options: dict[str, object] = {"phonemize": False, "is_uroman": False, "normalize": True, "add_blank": True}
    tokenizer = VitsTokenizer(str(folder / "vocab.json"), pad_token="|", unk_token="|", **(options | settings))
    tokenizer.save_pretrained(folder)
    config = VitsConfig(
        vocab_size=len(vocabulary), hidden_size=16, num_hidden_layers=1, ffn_dim=16, flow_size=8,
        prior_encoder_num_flows=2, prior_encoder_num_wavenet_layers=1, posterior_encoder_num_wavenet_layers=1,
        duration_predictor_num_flows=2, upsample_initial_channel=16, upsample_rates=[8, 4],
        upsample_kernel_sizes=[16, 8], resblock_kernel_sizes=[3], resblock_dilation_sizes=[[1, 3]],
        spectrogram_bins=9,
    )  # fmt: skip
    VitsModel(config).save_pretrained(folder)
    return folder


def test_a_folder_that_reads_letters_is_read_as_its_tokenizer_does(tmp_path: Path) -> None:
    base = find_base(str(letters_folder(tmp_path)), task="speak")
    symbols = Symbols.read(base.folder, base.name)
    tokenizer = VitsTokenizer.from_pretrained(tmp_path)
    for text in ("habari", "Habari ya asubuhi", "it's"):
        assert symbols.tokens(symbols.letters(text)) == tokenizer(text).input_ids
    model = read_vits(base.folder, CPU)
    assert not any("parametrizations" in name for name, _ in model.named_parameters())
    assert len(sound(model, latents(model, [Utterance(symbols.tokens("habari"))])[0]))


@pytest.mark.parametrize("key", ["phonemize", "is_uroman"])
def test_a_folder_that_needs_another_program_is_refused(key: str, tmp_path: Path) -> None:
    folder = letters_folder(tmp_path, **{key: True})
    with pytest.raises(UsageError, match=rf"needs its text prepared by another program \('{key}' in tokenizer_config"):
        Symbols.read(folder, "mine")


def test_another_model_is_no_voice(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="is a model of the kind 'llama'; the task 'speak' takes vits"):
        find_base(str(find_base("debug").folder), task="speak")
