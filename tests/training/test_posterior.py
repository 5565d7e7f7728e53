"""The posterior encoder of a voice: it learns, a killed run resumes with the same result, and it is made once."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from kauli.deploy.cli.commands import bring_base
from kauli.models.bases.find import find_base
from kauli.models.errors import UsageError
from kauli.models.media.decode import RATE
from kauli.models.speech.posterior import WEIGHTS, at_frames
from kauli.models.speech.speak import SpeakTask
from kauli.training import posterior
from kauli.training.features.voices import VIEWS, Listener, trimmed, voice_frames
from kauli.training.posterior import SMALL, posterior_of

TEXTS = [("sw", text) for text in ("Habari za asubuhi, rafiki.", "Watoto wanacheza nje.", "Maji ni uhai wa watu.")]


@pytest.fixture
def few_texts(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Texts that need no data set, in a new home."""
    monkeypatch.setenv("KAULI_HOME", str(tmp_path / "home"))
    monkeypatch.setattr(posterior, "_texts", lambda effort: TEXTS * 4)


@pytest.mark.usefixtures("few_texts")
def test_it_learns_and_goes_on_after_a_kill_with_the_same_result(monkeypatch: pytest.MonkeyPatch) -> None:
    base, effort = find_base("debug", task="speak"), replace(SMALL, seconds=8.0, steps=30, save_every=5)
    whole = load_file(posterior_of(base, effort) / WEIGHTS)

    pieces, calls = posterior._pieces, 0

    def killed(*arguments: Any) -> Any:
        nonlocal calls
        calls += 1
        if calls == 18:
            raise KeyboardInterrupt
        return pieces(*arguments)

    other = replace(effort, languages=("sw", "sw"))  # another folder, the same texts and seed
    monkeypatch.setattr(posterior, "_pieces", killed)
    with pytest.raises(KeyboardInterrupt):
        posterior_of(base, other)
    monkeypatch.setattr(posterior, "_pieces", pieces)
    monkeypatch.setattr(posterior, "_shard", lambda *arguments: pytest.fail("speech is there"))
    resumed = posterior_of(base, other)
    assert not list(resumed.parent.glob("*.work"))
    for name, value in load_file(resumed / WEIGHTS).items():
        assert torch.equal(value, whole[name]), name
    assert posterior_of(base, other) == resumed  # made once


@pytest.mark.usefixtures("few_texts")
def test_clips_become_frames_once_and_alike_in_any_company(monkeypatch: pytest.MonkeyPatch) -> None:
    base = find_base("debug", task="speak")
    task, folder = SpeakTask.load(base, "cpu"), posterior_of(base, replace(SMALL, seconds=4.0, steps=5))
    clips = [np.sin(np.arange(RATE * (at + 2) // 4) / (at + 3)) for at in range(3)]
    rows = [{"audio_key": f"{at:012x}{'0' * 52}", "samples": clip} for at, clip in enumerate(clips)]
    listener = Listener(task.model, folder)
    found = voice_frames(listener, base.sha256, rows)
    [alone] = listener.drawn([trimmed(rows[1]["samples"])], [1])
    views, _, width = found[rows[1]["audio_key"]].shape
    assert (views, width) == (VIEWS, task.model.config.flow_size)
    torch.testing.assert_close(found[rows[1]["audio_key"]].transpose(0, 1).flatten(1), alone, atol=1e-4, rtol=1e-3)
    monkeypatch.setattr(Listener, "drawn", lambda *arguments: pytest.fail("the frames are cached"))
    again = voice_frames(Listener(task.model, folder), base.sha256, rows)
    assert all(torch.equal(again[key], value) for key, value in found.items())


def test_states_are_taken_at_the_middle_of_each_frame() -> None:
    states = torch.arange(100.0)[:, None]  # two seconds, of which each state is its number
    found = at_frames(states, 4, frame_rate=10.0)[0]
    assert found.tolist() == pytest.approx([2.0, 7.0, 12.0, 17.0])  # 0.05 s is at 2.5 states, the middle of state 2
    faster = at_frames(states, 4, frame_rate=10.0, speed=2.0)[0]
    assert faster.tolist() == pytest.approx([0.75, 3.25, 5.75, 8.25])


def test_silence_before_and_after_speech_is_cut_off() -> None:
    speech = np.sin(np.arange(RATE) / 5)
    clip = np.concatenate([np.zeros(RATE), speech, np.zeros(2 * RATE)])
    found = trimmed(clip)
    assert RATE < len(found) < 1.2 * RATE
    assert np.sqrt(np.mean(found**2)) == pytest.approx(posterior.LEVEL, rel=1e-3)
    assert len(trimmed(np.zeros(RATE))) == RATE


@pytest.mark.usefixtures("few_texts")
def test_it_is_fetched_by_its_name(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(posterior, "VOICE", "debug-vits")
    monkeypatch.setattr(posterior, "HEARING", "debug-whisper")
    found = bring_base("speak-base", accept_terms=False)
    assert found.name == "speak-base"
    assert found.folder == posterior_of(find_base("debug", task="speak"))
    assert {path.name for path in found.folder.iterdir()} == {"posterior.json", "posterior.safetensors"}


def test_a_base_that_reads_letters_learns_no_adapter(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("KAULI_HOME", str(tmp_path))
    monkeypatch.setattr(SpeakTask, "load", classmethod(lambda cls, base: _Lettered()))
    with pytest.raises(UsageError, match=r"'debug-vits' is no voice of Piper with one speaker"):
        posterior_of(find_base("debug", task="speak"))


class _Lettered:
    class symbols:
        phonemes = False
