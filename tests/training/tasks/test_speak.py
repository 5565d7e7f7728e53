"""The task `speak` in training: which clips are left out, what a step holds, why an adapter is not promoted."""

import io
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import soundfile
import torch

from kauli.models.adapters.registry import Registry
from kauli.models.bases.find import find_base
from kauli.models.errors import UsageError
from kauli.models.speech.vits_adapter import read_settings
from kauli.training.data.dataset import Dataset
from kauli.training.data.schema import write_parquet
from kauli.training.evaluation import speak as evaluation
from kauli.training.evaluation.judges import Judge, understood
from kauli.training.evaluation.speak import choose_noise, judged_rows, worse_speech
from kauli.training.recipe import Recipe
from kauli.training.recipe_file import parse_recipe
from kauli.training.tasks.speak import SpeakTraining
from support.speech_adapters import publish_transcribe
from support.voices import trained_voice


def recipe_of(**changes: Any) -> Recipe:
    return parse_recipe(
        {
            "name": "mine", "task": "speak", "base": "debug", "language": "be", "speak": {"judges": ["debug-whisper"]},
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
        recipe = recipe_of(speak={"judges": ["debug-whisper"], "concat_prob": chance})
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


class Listening(Judge):
    """Hears what `heard` says of a clip, which is the key of the adapter that spoke it; "all": its text."""

    def transcripts(self, clips: Sequence[Any], rows: Sequence[Mapping[str, Any]]) -> list[str]:
        return [
            row["text"] if self.task[clip] == "all" else self.task[clip]
            for clip, row in zip(clips, rows, strict=True)
        ]  # fmt: skip


def test_an_adapter_is_promoted_where_every_judge_understands_it_better(
    monkeypatch: pytest.MonkeyPatch, task: SpeakTraining
) -> None:
    rows = [{**row, "id": str(at), "group": str(at)} for at, row in enumerate(task.dummy_rows())]
    monkeypatch.setattr(evaluation, "speak", lambda served, row, key: (key, 0.0))
    better, same, worse = (
        Listening(name, {"adapter": mine, None: base})
        for name, mine, base in (("debug-1", "all", ""), ("debug-2", "", ""), ("debug-3", "", "all"))
    )
    assert worse_speech(None, "adapter", rows, [better]) is None
    told = "debug-2 does not understand it better than its base on 8 validation texts: phoneme error +0.000"
    assert told in str(worse_speech(None, "adapter", rows, [same]))
    assert told in str(worse_speech(None, "adapter", rows, [better, same]))
    assert "debug-3 does not" in str(worse_speech(None, "adapter", rows, [worse]))

    class Hearing:
        def overall(self, clip: str | None) -> float:
            return 2.5 if clip else 3.0

    monkeypatch.setattr(evaluation, "listening", lambda judge: Hearing())
    unclean = worse_speech(None, "adapter", rows, [better])
    assert unclean == "its speech sounds less clean than its base's: DNSMOS 2.50, base 3.00"


def test_the_noise_is_that_which_costs_the_judge_least(
    monkeypatch: pytest.MonkeyPatch, task: SpeakTraining, tmp_path: Path
) -> None:
    spoken = trained_voice("be")
    spoken.save(tmp_path)
    served = spoken.served()
    costs = dict(zip(evaluation.NOISES, (3, 1, 2, 4), strict=True))

    def speak(task: Any, row: Any, key: str) -> tuple[float, float]:
        return task._mixer[key].settings.noise, 0.0

    class Costly(Judge):
        def bits(self, clips: Sequence[Any], rows: Sequence[Mapping[str, Any]]) -> list[tuple[float, int]]:
            return [(costs[noise], 1) for noise in clips]

    monkeypatch.setattr(evaluation, "speak", speak)
    told = choose_noise(served, tmp_path, [{"text": "вада", "language": "be"}], Costly("ear", None))
    assert read_settings(tmp_path).noise == 0.3
    assert told.startswith(
        "Noise 0.3 was chosen on 1 validation texts, by their bits per byte to ear: 0: 3.000, 0.3: 1"
    )
    assert served.adapters() == []


def test_texts_that_nobody_recorded_are_heard_too(task: SpeakTraining, tmp_path: Path) -> None:
    texts = ["Гэта сказ без запісу.", "З лічбай 5 тут.", "Знак % тут.", "Кот.", "Гэта сказ без запісу."]
    rows = [
        {"id": str(at), "group": str(at), "language": "be", "text": text, "split": "validation", "synthetic": False}
        for at, text in enumerate([*texts, "Запіс з голасам тут."])
    ]
    write_parquet(rows, tmp_path / "rows.parquet")
    data = Dataset("texts", [tmp_path / "rows.parquet"], ["be"])
    recorded = [{"id": "r", "group": "r", "language": "be", "text": "запіс з голасам тут."}]
    assert [row["text"] for row in judged_rows(data, ["be"], recorded)] == ["запіс з голасам тут.", texts[0]]


def test_an_adapter_of_the_registry_listens_and_another_name_is_refused(tmp_path: Path) -> None:
    publish_transcribe(tmp_path, "hear", "be", 1)
    registry = Registry(str(tmp_path))
    judge = Judge.load("hear@1", {}, registry)
    assert (judge.name, judge.adapter, judge.languages) == ("hear@1", "hear@1", ("be",))
    clip, row = np.zeros(8000, np.float32), {"text": "вада", "language": "be"}
    [(bits, count)] = judge.bits([clip], [row])
    assert count == 8
    assert bits == judge.task.bits([{**row, "samples": clip}], "hear@1")[0][0]
    assert bits != Judge.load("debug-whisper").bits([clip], [row])[0][0]
    with pytest.raises(UsageError, match=r"speak\.judges: 'heer' is no adapter here, and as a base"):
        Judge.load("heer", {}, registry)


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
    recipe = recipe_of(speak={"judges": ["debug-whisper"], "consent": consent})
    learner: Any = task.learner(recipe, base, task.rows(recipe, dataset, base), "cpu")
    learner.attach(None)
    learner.save(tmp_path / "adapter")
    assert read_settings(tmp_path / "adapter").consent == consent
    rows = task.rows(recipe, dataset, base).train
    assert task.card_fields(recipe, rows)["voice"].model_dump() == {"consent": consent, "synthetic": 0.0}
    licensed = task.rows(recipe_of(), data(tmp_path, task), base).train
    assert task.card_fields(recipe_of(), licensed)["voice"].consent == "as the licences of the recordings say: CC0-1.0"
    assert len(task.rows(recipe_of(), data(tmp_path, task, licence=None, synthetic=True), base).train) == 8


def test_silent_clips_are_left_out(task: SpeakTraining, tmp_path: Path) -> None:
    silence = io.BytesIO()
    soundfile.write(silence, np.full(8000, 0.001), 16_000, format="WAV")
    dataset = data(tmp_path, task, audio=silence.getvalue(), only=3)
    examples = task.rows(recipe_of(), dataset, find_base("debug", task="speak"))
    assert len(examples.train) == 7
    assert any("in which hardly anyone speaks" in note for note in examples.notes)


def test_clipped_clips_are_told(task: SpeakTraining, tmp_path: Path) -> None:
    clipped = io.BytesIO()
    loud = np.clip(4 * np.sin(np.arange(16_000) / 20), -1, 1)
    soundfile.write(clipped, loud, 16_000, format="WAV")
    dataset = data(tmp_path, task, audio=clipped.getvalue(), only=3)
    examples = task.rows(recipe_of(), dataset, find_base("debug", task="speak"))
    assert len(examples.train) == 8
    assert any(note.startswith("1 clips are clipped or cut off: `kauli data check`") for note in examples.notes)


def test_a_judge_that_does_not_know_the_language_is_refused_before_training() -> None:
    known = find_base("debug", task="transcribe").name
    with pytest.raises(UsageError, match=r"debug-whisper does not know Kyrgyz \(ky\): name a related language"):
        Judge.load(known).check(["ky"])
    Judge.load(known, {"ky": "be"}).check(["ky"])


def test_a_recipe_may_not_change_more_than_the_text_encoder(task: SpeakTraining, tmp_path: Path) -> None:
    base = find_base("debug", task="speak")
    recipe = recipe_of(method={"kind": "lora", "targets": ["q_proj", "conv_pre"]})
    learner: Any = task.learner(recipe, base, task.rows(recipe, data(tmp_path, task), base), "cpu")
    with pytest.raises(UsageError, match=r"method\.targets: '.*conv_pre' is no part of the text encoder"):
        learner.attach(None)
