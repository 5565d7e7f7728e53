"""The task `speak` in training: which clips are left out, what a step holds, why an adapter is not promoted."""

import io
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import soundfile
import torch

from kauli.models.bases.find import find_base
from kauli.models.errors import UsageError
from kauli.models.speech.vits_adapter import read_settings
from kauli.training.data.dataset import Dataset
from kauli.training.data.schema import write_parquet
from kauli.training.evaluation import speak as evaluation
from kauli.training.evaluation.request import EvalRequest
from kauli.training.evaluation.speak import check_judge, understood, worse_speech
from kauli.training.recipe import Recipe
from kauli.training.recipe_file import parse_recipe
from kauli.training.tasks.speak import SpeakTraining


def recipe_of(**changes: Any) -> Recipe:
    return parse_recipe(
        {
            "name": "mine", "task": "speak", "base": "debug", "language": "be", "speak": {"judge": "debug-whisper"},
            "train": {"steps": 2, "batch_tokens": 600, "max_length": 200}, **changes,
        }
    )  # fmt: skip


@pytest.fixture(scope="module")
def task() -> SpeakTraining:
    return SpeakTraining()


def data(
    folder: Path, task: SpeakTraining, texts: Sequence[str] = (), only: int | None = None, **columns: Any
) -> Dataset:  # fmt: skip
    """The dummy rows twice; `texts` replace those of the first training rows, `columns` values of all or one."""
    rows = [
        {"licence": "CC0-1.0", "synthetic": False, **row, "id": f"{split}-{at}", "group": f"{at}", "split": split}
        for split in ("train", "validation")
        for at, row in enumerate(task.dummy_rows())
    ]
    for row, text in zip(rows, texts, strict=False):
        row["text"] = text
    for at, row in enumerate(rows):
        row |= columns if only in (None, at) else {}
    write_parquet(rows, folder / "rows.parquet")
    return Dataset("dummy", [folder / "rows.parquet"], ["be"])


def test_texts_that_a_reader_may_say_otherwise_are_left_out(task: SpeakTraining, tmp_path: Path) -> None:
    dataset = data(tmp_path, task, ["25", "5 $", "x" * 100])
    examples = task.rows(recipe_of(), dataset, find_base("debug", task="speak"))
    assert len(examples.train) == 5
    assert examples.left_out == 3
    notes = " ".join(examples.notes)
    assert "2 with digits or currency, which a reader may say in other words" in notes
    assert "1 with more than 25 characters a second" in notes


def test_a_language_that_espeak_has_not_is_refused(task: SpeakTraining, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="eSpeak has no voice for Yoruba"):
        task.rows(recipe_of(language="yo"), data(tmp_path, task), find_base("debug", task="speak"))


def test_clips_are_concatenated_with_their_texts_each_once(task: SpeakTraining, tmp_path: Path) -> None:
    base = find_base("debug", task="speak")
    for chance in (0.0, 0.99):
        recipe = recipe_of(speak={"judge": "debug-whisper", "concat_prob": chance})
        learner: Any = task.learner(recipe, base, task.rows(recipe, data(tmp_path, task), base), "cpu")
        torch.manual_seed(0)
        step = list(range(8))
        [(batch, _)] = learner.batches(step, 0, 1)
        assert (len(batch.frames) == 8) == (chance == 0)
        assert sum(one.shape[1] for one in batch.frames) == sum(learner.lengths)
        assert sum(one.numel() for one in batch.frames) == learner.num_targets(step)
        assert max(one.shape[1] for one in batch.frames) <= 200
        tokens = [learner.voice.symbols.tokens(one[0].symbols) for one in learner.clips]
        inner = sum(len(one) - 3 for one in tokens)  # without the marks at the ends
        joints = 8 - len(batch.frames)
        assert sum(batch.lengths) == inner + 3 * len(batch.frames) + 2 * joints  # a space and its blank each


def test_a_judge_that_understands_no_better_keeps_an_adapter_from_latest(
    monkeypatch: pytest.MonkeyPatch, task: SpeakTraining
) -> None:
    rows = [{**row, "id": str(at), "group": str(at)} for at, row in enumerate(task.dummy_rows())]
    heard = {"adapter": "", None: ""}
    monkeypatch.setattr(evaluation, "load_judge", lambda name: None)
    monkeypatch.setattr(evaluation, "speak", lambda served, row, key: (key, 0.0))

    def transcripts(judge: Any, clips: list[Any], rows: list[Any], instead: Any) -> list[str]:
        return [row["text"] if heard[clip] == "all" else heard[clip] for clip, row in zip(clips, rows, strict=True)]

    monkeypatch.setattr(evaluation, "transcripts", transcripts)
    same = worse_speech(None, "adapter", rows, "debug-whisper", {})
    assert same is not None
    assert (
        "debug-whisper does not understand it better than its base on 8 validation texts: phoneme error +0.000" in same
    )
    heard["adapter"] = "all"
    assert worse_speech(None, "adapter", rows, "debug-whisper", {}) is None
    heard["adapter"], heard[None] = "", "all"
    assert worse_speech(None, "adapter", rows, "debug-whisper", {}) is not None

    class Hearing:
        def overall(self, clip: str | None) -> float:
            return 2.5 if clip else 3.0

    monkeypatch.setattr(evaluation, "listening", lambda judge: Hearing())
    heard["adapter"], heard[None] = "all", ""
    unclean = worse_speech(None, "adapter", rows, "debug-whisper", {})
    assert unclean == "its speech sounds less clean than its base's: DNSMOS 2.50, base 3.00"


def test_errors_of_a_listener_are_at_most_the_text() -> None:
    found = understood(["вада", "вада", "вада"], ["вада", "вода", "вада вада вада вада вада"], "be")
    assert found["round_trip_cer"] == [[0, 4], [1, 4], [4, 4]]
    assert found["phoneme_error"][0][0] == 0
    assert all(wrong <= count for wrong, count in found["phoneme_error"])
    assert [one for one, _ in found["looped"]] == [0, 0, 1]


def test_recordings_without_a_licence_need_consent(task: SpeakTraining, tmp_path: Path) -> None:
    base = find_base("debug", task="speak")
    dataset = data(tmp_path, task, licence=None)
    with pytest.raises(
        UsageError, match=r"8 recordings of 'starter' name no licence: say by whose leave they are used"
    ):
        task.rows(recipe_of(), dataset, base)
    consent = "the reader agreed in writing"
    recipe = recipe_of(speak={"judge": "debug-whisper", "consent": consent})
    learner: Any = task.learner(recipe, base, task.rows(recipe, dataset, base), "cpu")
    learner.attach(None)
    learner.save(tmp_path / "adapter")
    assert read_settings(tmp_path / "adapter").consent == consent
    assert len(task.rows(recipe_of(), data(tmp_path, task, licence=None, synthetic=True), base).train) == 8


def test_silent_clips_are_left_out(task: SpeakTraining, tmp_path: Path) -> None:
    silence = io.BytesIO()
    soundfile.write(silence, np.full(8000, 0.001), 16_000, format="WAV")
    dataset = data(tmp_path, task, audio=silence.getvalue(), only=3)
    examples = task.rows(recipe_of(), dataset, find_base("debug", task="speak"))
    assert len(examples.train) == 7
    assert any("in which hardly anyone speaks" in note for note in examples.notes)


def test_a_judge_that_does_not_know_the_language_is_refused_before_training() -> None:
    known = find_base("debug", task="transcribe").name
    request = EvalRequest(Path(), find_base("debug", task="speak"), Dataset("none", [], []), ("ky",), judge=known)
    with pytest.raises(UsageError, match=r"debug-whisper does not know Kyrgyz \(ky\): name a related language"):
        check_judge(request)
    check_judge(replace(request, base_languages={"ky": "be"}))


def test_a_recipe_may_not_change_more_than_the_text_encoder(task: SpeakTraining, tmp_path: Path) -> None:
    base = find_base("debug", task="speak")
    recipe = recipe_of(method={"kind": "lora", "targets": ["q_proj", "conv_pre"]})
    learner: Any = task.learner(recipe, base, task.rows(recipe, data(tmp_path, task), base), "cpu")
    with pytest.raises(UsageError, match=r"method\.targets: '.*conv_pre' is no part of the text encoder"):
        learner.attach(None)
