"""Voice adapters: what was trained is what is served, alone or mixed with others; damaged ones are refused."""

import json
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from kauli.models.bases.find import find_base
from kauli.models.errors import KauliError, UsageError
from kauli.models.requests import SpeechRequest
from kauli.models.speech.posterior import Posterior
from kauli.models.speech.speak import Job, SpeakTask
from kauli.models.speech.vits_adapter import SETTINGS, VOICE
from kauli.models.speech.vits_model import Utterance, latents
from kauli.models.speech.vits_training import TrainableVoice, VoiceExample
from support.voices import TEXTS, trained_voice


def task_of() -> SpeakTask:
    return SpeakTask.load(find_base("debug", task="speak"), device="cpu")


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    found = {}
    for seed, language in enumerate(TEXTS):
        found[language] = tmp_path_factory.mktemp(language)
        trained_voice(language, seed).save(found[language])
    return found


def utterance(task: SpeakTask, language: str, adapter: str | None) -> Utterance:
    request = SpeechRequest(TEXTS[language], language, "debug", seed=3)
    reading, tag = task.read(request, adapter)
    return task._utterance(Job(reading.sentences[0], request, tag, adapter=adapter))


def test_each_row_of_a_batch_sounds_as_alone_with_its_own_adapter(folders: dict[str, Path]) -> None:
    task = task_of()
    for language, folder in folders.items():
        task.add_adapter(language, folder)
    rows = [utterance(task, language, adapter) for language in TEXTS for adapter in (language, None)]
    rows.append(utterance(task, "sw", "be"))  # another language by the same adapter
    together = latents(task.model, rows, task._mixer)
    alone = [latents(task.model, [one], task._mixer)[0] for one in rows]
    for one, other in zip(together, alone, strict=True):
        assert one.durations.tolist() == other.durations.tolist()
        torch.testing.assert_close(one.frames, other.frames, atol=1e-4, rtol=1e-4)
    adapted, bare = alone[:2]
    assert adapted.frames.shape != bare.frames.shape or not torch.allclose(adapted.frames, bare.frames, atol=1e-2)
    without = task_of()
    [same] = latents(without.model, [utterance(without, "sw", None)])
    torch.testing.assert_close(same.frames, bare.frames)
    task.remove_adapter("sw")
    assert task.adapters() == ["be"]
    [again] = latents(task.model, [utterance(task, "sw", None)], task._mixer)
    torch.testing.assert_close(again.frames, bare.frames)


def test_what_is_served_is_what_was_trained(tmp_path: Path) -> None:
    voice = trained_voice("be")
    voice.save(tmp_path)
    symbols = voice.symbols_of(TEXTS["be"], "be")
    numbers = torch.tensor([voice.symbols.tokens(symbols)])
    mask = torch.ones(1, numbers.shape[1], 1)
    voice.model.eval()
    assert voice._durations is not None
    with torch.no_grad():
        wanted = voice._vits.text_encoder(numbers, mask)
        lengths = voice._durations(wanted.last_hidden_state, mask)
    task = task_of()
    task.add_adapter("be", tmp_path)
    reading, _ = task.read(SpeechRequest(TEXTS["be"], "be", "debug"), "be")
    assert " ".join(one.symbols for one in reading.sentences) == symbols
    with task._mixer.batch(["be"]), torch.no_grad():
        found = task.model.text_encoder(numbers, mask)
    torch.testing.assert_close(found.prior_means, wanted.prior_means, atol=1e-5, rtol=1e-4)
    torch.testing.assert_close(found.prior_log_variances, wanted.prior_log_variances, atol=1e-5, rtol=1e-4)
    own = task._mixer["be"].durations(found.last_hidden_state, mask)
    torch.testing.assert_close(own, lengths, atol=1e-5, rtol=1e-4)


def test_an_adapter_has_a_pace_of_its_own(folders: dict[str, Path]) -> None:
    task = task_of()
    task.add_adapter("sw", folders["sw"])
    [usual] = latents(task.model, [utterance(task, "sw", "sw")], task._mixer)
    task.model.config.speaking_rate = 2.0  # the base's: its adapter learned lengths as they were recorded
    [same] = latents(task.model, [utterance(task, "sw", "sw")], task._mixer)
    assert same.durations.tolist() == usual.durations.tolist()
    [fast] = latents(task.model, [replace(utterance(task, "sw", "sw"), speed=2.0)], task._mixer)
    assert sum(fast.durations) == pytest.approx(sum(usual.durations) / 2, abs=1)


def test_plain_peft_loads_the_lora_on_the_vits_of_transformers(folders: dict[str, Path]) -> None:
    from peft import PeftModel
    from transformers import VitsModel

    base = VitsModel.from_pretrained(find_base("debug", task="speak").folder)
    model = PeftModel.from_pretrained(base, str(folders["sw"]))
    tensors = load_file(folders["sw"] / "adapter_model.safetensors")
    name = next(key for key in tensors if "conv_1" in key and "lora_A" in key)
    found = dict(model.named_parameters())[name.replace("lora_A.weight", "lora_A.default.weight")]
    torch.testing.assert_close(found, tensors[name])


def test_training_takes_up_an_adapter_where_it_was(folders: dict[str, Path]) -> None:
    first, again = trained_voice("be", 1), trained_voice("be", 9)
    again.start_from(folders["be"])
    example = VoiceExample(again.symbols_of(TEXTS["be"], "be"), torch.randn(120, 16), "be")
    batch = again.collate([example])
    again.model.eval(), first.model.eval()
    torch.testing.assert_close(again.costs(batch)[0][0], first.costs(batch)[0][0])
    torch.testing.assert_close(again.costs(batch)[2], first.costs(batch)[2])


def damage_settings(folder: Path, **changes: Any) -> None:
    content = json.loads((folder / SETTINGS).read_text())
    (folder / SETTINGS).write_text(json.dumps({**content, **changes}))


def damage_tensor(folder: Path, name: str, change: Callable[[torch.Tensor], torch.Tensor], file: str = VOICE) -> None:
    tensors = load_file(folder / file)
    name = next(key for key in tensors if name in key)
    save_file({**tensors, name: change(tensors[name]).contiguous()}, folder / file)


LORA = "adapter_model.safetensors"


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda folder: (folder / SETTINGS).unlink(), "speak.json is missing, which lists the adapter's sounds"),
        (lambda folder: damage_settings(folder, noise=-1), "speak.json is damaged: noise: "),
        (lambda folder: damage_settings(folder, symbols=["ʘ"]), "does not fit the base, which has no symbol 'ʘ'"),
        (lambda folder: damage_settings(folder, symbols=["a"]), "voice.safetensors does not fit the base: symbols is"),
        (lambda folder: (folder / VOICE).unlink(), "does not fit the base: duration.convs.0.bias is missing"),
        (lambda folder: damage_tensor(folder, "out.bias", lambda one: one * float("nan")), "out.bias holds numbers"),
        (lambda folder: damage_tensor(folder, "lora_A", lambda one: one[:1], LORA), "lora_A has another shape"),
        (lambda folder: damage_tensor(folder, "lora_B", lambda one: one / 0, LORA), "numbers that are not finite"),
    ],
)  # fmt: skip
def test_a_damaged_adapter_is_refused(
    folders: dict[str, Path], tmp_path: Path, damage: Callable[[Path], Any], message: str
) -> None:
    folder = tmp_path / "adapter"
    shutil.copytree(folders["sw"], folder)
    damage(folder)
    with pytest.raises(KauliError, match=message):
        task_of().add_adapter("sw", folder)


def test_an_adapter_for_another_layer_is_refused(folders: dict[str, Path], tmp_path: Path) -> None:
    folder = tmp_path / "adapter"
    shutil.copytree(folders["sw"], folder)
    tensors = load_file(folder / LORA)
    save_file({**tensors, "base_model.model.decoder.conv_pre.lora_A.weight": torch.zeros(4, 16, 7)}, folder / LORA)
    with pytest.raises(KauliError, match=r"tensor .*decoder.conv_pre.lora_A.weight has no counterpart"):
        task_of().add_adapter("sw", folder)


def test_only_lora_trains_a_voice() -> None:
    from kauli.models.adapters.kinds.full import Full

    voice = TrainableVoice.load(find_base("debug", task="speak"), device="cpu")
    voice.learn_sounds([("moto", "sw")], ["sw"])
    with pytest.raises(UsageError, match=r"method\.kind full: adapters of voices are trained by lora"):
        voice.attach(Full())


def test_a_damaged_posterior_encoder_is_refused(tmp_path: Path) -> None:
    Posterior(8, 4, 16, "debug-whisper").save(tmp_path)
    torch.testing.assert_close(
        Posterior.read(tmp_path, torch.device("cpu")).first.weight.shape, torch.Size([16, 8, 1])
    )  # fmt: skip
    (tmp_path / "posterior.json").write_text('{"states": 9, "frames": 4, "width": 16, "hearing": "debug-whisper"}')
    with pytest.raises(KauliError, match=r"the posterior encoder in .* is damaged"):
        Posterior.read(tmp_path, torch.device("cpu"))
