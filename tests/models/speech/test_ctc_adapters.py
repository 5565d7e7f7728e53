"""Adapters of CTC models: they write what they learned, in one batch too, with times of words; damage is refused."""

import shutil
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

from kauli.models.adapters.folder import check_files
from kauli.models.bases.find import Base, find_base
from kauli.models.errors import KauliError, UsageError
from kauli.models.media.decode import RATE
from kauli.models.requests import TranscriptionRequest
from kauli.models.speech.ctc_batch import CtcRunner
from support.ctc import METHODS, PITCHES, ROWS, TEXTS, changed, costs, fit, load, say, settings, trainable, transcribe


@pytest.fixture(scope="module")
def base() -> Base:
    return find_base("debug-wav2vec2", task="transcribe")


@pytest.fixture(scope="module")
def trained(base: Base, tmp_path_factory: pytest.TempPathFactory) -> dict[str, tuple[Path, list[tuple[float, int]]]]:
    """Of each method the adapter's folder, and what the rows cost when it was saved."""
    found = {}
    for kind in METHODS:
        task = trainable(base)
        task.add_languages(["be"], {}, TEXTS)
        # How many steps it takes differs between machines, which round differently
        assert fit(task, kind, 200, until=0.005)[-1] <= 0.005
        folder = tmp_path_factory.mktemp(kind) / "adapter"
        task.save(folder)
        found[kind] = folder, task.current_bits(ROWS)
    return found


@pytest.mark.parametrize("kind", METHODS)
def test_eight_clips_are_learned_and_the_saved_adapter_writes_the_same(
    base: Base, trained: dict[str, tuple[Path, list[tuple[float, int]]]], kind: str
) -> None:
    folder, before = trained[kind]
    check_files(folder)
    task = load(base)
    task.add_adapter("x@1", folder)
    bits = task.bits(ROWS, "x@1")
    assert costs(bits) == pytest.approx(costs(before), rel=1e-3, abs=1e-3)
    assert [size for _, size in bits] == [len(text.encode()) for text in TEXTS]
    assert transcribe(task, ["x@1"] * 8) == list(TEXTS)
    assert task.languages("x@1") == ("be",)
    task.remove_adapter("x@1")
    assert task.adapters() == []


def test_rows_of_one_batch_have_their_own_adapters(
    base: Base, trained: dict[str, tuple[Path, list[tuple[float, int]]]]
) -> None:
    alone: dict[str | None, list[str]] = {None: transcribe(load(base), [None] * 8)}
    task = load(base)
    for kind, (folder, _) in trained.items():
        task.add_adapter(kind, folder)
        # Half learned, so that a mistake would show in the text
        half = folder.parent / "half"
        shutil.copytree(folder, half, dirs_exist_ok=True)
        for path in half.glob("*.safetensors"):
            save_file({name: 0.7 * value for name, value in load_file(path).items()}, path, {"format": "pt"})
        task.add_adapter(f"half-{kind}", half)
    for key in task.adapters():
        one = load(base)
        one.add_adapter(key, trained[key.removeprefix("half-")][0].parent / ("half" if "half" in key else "adapter"))
        alone[key] = transcribe(one, [key] * 8)
    assert len({tuple(texts) for texts in alone.values()}) >= 4
    keys = [None, "half-lora", "attention", "full", "half-attention", "half-full", "lora", "half-attention"]
    assert transcribe(task, keys) == [alone[key][row] for row, key in enumerate(keys)]


def test_requests_are_cancelled_cut_and_asked_several_times(
    base: Base, trained: dict[str, tuple[Path, list[tuple[float, int]]]]
) -> None:
    task = load(base)
    task.prepare()
    assert task.prompt_tokens(TranscriptionRequest(ROWS[0]["samples"])) == []
    task.add_adapter("x", trained["attention"][0])
    request = TranscriptionRequest(ROWS[0]["samples"], max_tokens=4, logprobs=0, n=2)
    first, second = task.submit(request, "x")
    (gone,) = task.submit(replace(request, n=1), None)
    gone.cancelled = True
    assert task.busy
    found = dict(task.step())
    assert not task.busy
    assert found[gone].finish == "cancelled"
    assert found[first] == found[second]
    assert (found[first].text, found[first].tokens, found[first].finish) == ("mama", 4, "length")
    assert b"".join(one.bytes for one in found[first].logprobs) == b"mama"
    assert all(-3 < one.logprob <= 0 for one in found[first].logprobs)
    assert found[first].language == "be"
    with pytest.raises(UsageError, match=r"31\.0 seconds; debug-wav2vec2 takes 30 at most"):
        task.submit(TranscriptionRequest(np.zeros(16_000 * 31, np.float32)), None)
    (chunks,) = task.generate([request], ["x"], cancelled=lambda row: True)
    assert [chunk.finish for chunk in chunks] == ["cancelled"] * 2


def logits_by_pitch(runner: Any, waves: Sequence[torch.Tensor], heads: Sequence[Any]) -> list[torch.Tensor]:
    """The logits of a model that writes each letter in the frames of its tone, unlike one that learned eight clips."""
    out = []
    for wave, head in zip(waves, heads, strict=True):
        letters = head.letters
        frames = wave.numpy()[: len(wave) // 320 * 320].reshape(-1, 320)
        spectrum = np.abs(np.fft.rfft(frames * np.hanning(320), 4096))
        pitch = spectrum.argmax(1) * RATE / 4096
        quiet = [bool(frame.std() < 0.3) for frame in frames]
        found = torch.zeros(len(frames), len(letters.tokens))
        for at, row in enumerate(found):
            if not quiet[at]:
                nearest = np.abs(np.array(list(PITCHES.values())) - pitch[at]).argmin()
                row[letters.places[list(PITCHES)[nearest]]] = 9
            elif at > 0 and all(quiet[at - 1 : at + 2]):
                row[letters.places[" "]] = 9
            else:
                row[letters.blank] = 9
        out.append(found)
    return out


def test_words_have_the_times_of_their_letters(base: Base, trained: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(CtcRunner, "logits", logits_by_pitch)
    task = load(base)
    task.add_adapter("a@1", trained["attention"][0])
    for text in TEXTS[:6]:
        (chunk,) = next(task.generate([TranscriptionRequest(say(text), "be", words=True)], ["a@1"]))
        assert chunk.text == text
        assert [word.text for word in chunk.words] == text.split()
        at = 0
        for word in chunk.words:
            at = text.index(word.text, at)
            # A letter is 50 ms of 70, behind 25 at the beginning
            assert word.start == pytest.approx(0.025 + 0.07 * at, abs=0.021), (text, chunk.words)
            at += len(word.text)
            assert word.end == pytest.approx(0.025 + 0.07 * at - 0.02, abs=0.021), (text, chunk.words)
    (cut,) = next(task.generate([TranscriptionRequest(say("mama ab"), "be", max_tokens=6, words=True)], ["a@1"]))
    assert [word.text for word in cut.words] == ["mama", "a"]
    (plain,) = next(task.generate([TranscriptionRequest(say("mama ab"), "be")], ["a@1"]))
    assert plain.words == ()


@pytest.mark.parametrize(
    ("damage", "says"),
    [
        (lambda folder: (folder / "speech.json").unlink(), "speech.json is missing"),
        (
            lambda folder: settings(folder, vocabulary=["<pad>", "|"]),
            r"lm_head\.bias is \(33,\), the place for it \(2",
        ),
        (lambda folder: settings(folder, vocabulary=7), "not that of a CTC adapter: vocabulary"),
        (lambda folder: settings(folder, blank=99), "blank at 99, beyond its 33 letters"),
        (lambda folder: settings(folder, dim=8), r"linear_1\.bias is \(16,\), the place for it \(8,\)"),
        (lambda folder: tensors(folder, lambda name, value: value[:, :-1] if value.ndim == 2 else value), "not fit"),
        (lambda folder: tensors(folder, lambda name, value: None if "layers.1." in name else value), "is missing"),
        (lambda folder: tensors(folder, lambda name, value: value * torch.inf), "not finite"),
    ],
)
def test_a_folder_that_does_not_fit_is_refused(
    base: Base, trained: dict[str, tuple[Path, list[tuple[float, int]]]], tmp_path: Path, damage: Any, says: str
) -> None:
    folder = shutil.copytree(trained["attention"][0], tmp_path / "adapter")
    damage(folder)
    with pytest.raises(KauliError, match=says):
        load(base).add_adapter("x", folder)


def tensors(folder: Path, change: Any) -> None:
    path = folder / "attention_adapter.safetensors"
    found = {name: change(name, value) for name, value in load_file(path).items()}
    save_file({name: value.contiguous() for name, value in found.items() if value is not None}, path)


def test_a_model_of_another_shape_is_refused(
    base: Base, trained: dict[str, tuple[Path, list[tuple[float, int]]]], tmp_path: Path
) -> None:
    folder = shutil.copytree(trained["full"][0], tmp_path / "adapter")
    with pytest.raises(KauliError, match=r"conv_stride is \[80, 4\], the base's \[80, 2\]"):
        load(changed(base, tmp_path / "base", conv_stride=(80, 2))).add_adapter("x", folder)
    tensors = load_file(folder / "model.safetensors")
    save_file({name: value for name, value in tensors.items() if "layers.0" not in name}, folder / "model.safetensors")
    with pytest.raises(KauliError, match="is incomplete"):
        load(base).add_adapter("x", folder)


@pytest.mark.parametrize("kind", ["attention", "lora"])
def test_training_starts_from_another_adapter(
    base: Base, trained: dict[str, tuple[Path, list[tuple[float, int]]]], kind: str
) -> None:
    folder, before = trained[kind]
    task = trainable(base)
    task.add_languages(["ky"], {}, [*TEXTS, "ың"])
    task.attach(METHODS[kind][0])
    task.start_from(folder)
    # The same but for what the new letters take of the likelihood
    assert sum(costs(task.current_bits(ROWS))) < sum(costs(before)) + 8 * 40
    other = trained["lora" if kind == "attention" else "attention"][0]
    with pytest.raises(KauliError, match="is missing"):
        task.start_from(other)
