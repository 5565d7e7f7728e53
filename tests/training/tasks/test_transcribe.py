"""Audio from recipe to registry on the debug base: what is dropped, learned, measured, promoted, held back."""

import json
import math
from dataclasses import replace
from itertools import permutations
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import soundfile
import torch

from kauli.models.adapters.registry import Registry
from kauli.models.bases.find import find_base
from kauli.models.errors import UsageError
from kauli.models.tasks import load_trainable
from kauli.training.data.dataset import load_data
from kauli.training.evaluation.request import EvalRequest
from kauli.training.evaluation.run import evaluate
from kauli.training.evaluation.transcribe import choose_window, evaluate_transcribe
from kauli.training.features.audio import audio_rows
from kauli.training.features.language_texts import language_texts
from kauli.training.recipe_file import parse_recipe
from kauli.training.tasks.base import Examples
from kauli.training.tasks.transcribe import TranscribeLearner, TranscribeRecipe
from kauli.training.train import train

WORDS = ("кот", "дом", "лес", "мора")


def tone(seconds: float, pitch: float) -> Any:
    return 0.3 * np.sin(2 * np.pi * pitch * np.arange(int(16_000 * seconds)) / 16_000)


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> str:
    """60 clips, one of them of a long text, one of noise that is no file."""
    folder = tmp_path_factory.mktemp("audio")
    rows = []
    for number in range(60):
        word = WORDS[number % 4]
        soundfile.write(folder / f"{number}.wav", tone(0.4 + 0.005 * number, 200 + 400 * (number % 4)), 16_000)
        rows.append({"audio": f"{number}.wav", "text": f"{word} {number}", "language": "be", "source": "mine"})
    rows[7]["text"] = "слова " * 20
    (folder / "8.wav").write_bytes(b"RIFF and no more")
    (folder / "rows.jsonl").write_text("\n".join(json.dumps(row) for row in rows))
    return str(folder / "rows.jsonl")


def recipe(data: str, **changes: Any) -> TranscribeRecipe:
    content = {
        "name": "transcribe-x", "task": "transcribe", "base": "debug", "language": "be", "data": data,
        "method": {"kind": "lora", "rank": 4, "targets": "all-linear"}, "transcribe": {},
        "augment": [{"kind": "speed"}, {"kind": "noise"}, {"kind": "gain"}, {"kind": "spec_augment"}],
        "train": {"steps": 8, "batch_tokens": 400, "max_length": 300, "validate_every": 4, "learning_rate": 0.005},
    }  # fmt: skip
    parsed = parse_recipe({**content, **changes})
    assert isinstance(parsed, TranscribeRecipe)
    return parsed


def test_audio_that_cannot_hold_its_text_is_dropped_with_a_message(data: str) -> None:
    found = audio_rows(load_data(data, ["be"]), None, ["be"], 25)
    assert len(found.rows) == 58
    assert dict(found.left_out.counts) == {"that can't be read": 1, "with more than 25 characters a second": 1}
    [message] = found.notes()
    assert message.startswith("all splits: 2 of 60 clips left out (")
    assert all(len(np.asarray(row["samples"])) == len(row["samples"]) and "audio" not in row for row in found.rows)


def test_where_all_were_dropped_the_error_says_why(data: str) -> None:
    base = find_base("debug", task="transcribe")
    with pytest.raises(UsageError, match=r"no transcribed audio in be.*3 of 3 rows left out: .* than 1 characters"):
        evaluate_transcribe(EvalRequest(Path(data), base, load_data(data, ["be"]), ("be",), max_chars_per_second=1))


def test_a_run_is_published_and_measured_again_alike(data: str, tmp_path: Path) -> None:
    result = train(recipe(data), str(tmp_path), use_ray=False)
    assert result.adapter == "transcribe-x@1"
    assert {"cer", "wer", "looped", "bits_per_byte"} <= result.metrics.keys()
    evaluation = result.evaluation
    assert evaluation.base_metrics is not None
    assert evaluation.metrics["bits_per_byte"] < evaluation.base_metrics["bits_per_byte"]  # type: ignore[operator]
    assert set(evaluation.baselines) == {"whole_window"}
    card = Registry(str(tmp_path)).card("transcribe-x@1")
    assert (card.task, card.language) == ("transcribe", ["be"])
    folder = Registry(str(tmp_path)).fetch("transcribe-x@1")
    assert json.loads((folder / "speech.json").read_text()) == {"languages": ["be"], "window": 0.0}
    assert any(note.startswith("Clips are taken at their own length: bits per byte") for note in card.notes)
    again = evaluate("transcribe-x@1", str(tmp_path), out=tmp_path / "report.html")
    assert again.metrics == pytest.approx(result.metrics)
    page = (tmp_path / "report.html").read_text()
    assert "Character error rate" in page
    assert "graphemes" in page


@pytest.mark.parametrize(
    ("right_from", "window", "name"),
    [
        (0.0, 0.0, "at their own length"),
        (0.5, 0.5, "filled up to 0.5 s"),
        (1.0, 0.0, "at their own length"),
        (4.0, 0.0, "at their own length"),
    ],
)
def test_an_adapter_gets_the_shortest_window_that_the_next_one_does_not_improve(
    right_from: float, window: float, name: str, tmp_path: Path
) -> None:
    class Young:
        """Is sure of what is right in windows of `right_from` seconds and more."""

        seconds = 4.0

        def set_window(self, folder: Path, seconds: float) -> None:
            self.window = seconds

        def add_adapter(self, key: str, folder: Path) -> None: ...

        def remove_adapter(self, key: str) -> None: ...

        def bits(self, rows: Any, adapter: str) -> Any:
            return [(10.0 if self.window >= right_from else 20.0, 6) for _ in rows]

    rows = [{"id": str(n), "group": str(n), "language": "be", "samples": [], "text": "кот"} for n in range(12)]
    young = Young()
    assert choose_window(young, rows, tmp_path).startswith(f"Clips are taken {name}: bits per byte of 12")
    assert young.window == window


def test_an_adapter_that_says_nothing_does_not_become_latest(
    data: str, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("kauli.training.evaluation.transcribe.transcribe", lambda task, rows, *how: [""] * len(rows))
    result = train(recipe(data), str(tmp_path), use_ray=False)
    assert list(result.aliases) == []
    assert "does not become 'latest': on validation" in capsys.readouterr().err


def test_a_recipe_without_audio_says_so(tmp_path: Path) -> None:
    (tmp_path / "rows.jsonl").write_text("\n".join(json.dumps({"text": f"a {n}", "language": "be"}) for n in range(50)))
    with pytest.raises(UsageError, match="no audio with a text in its 'train' split for be"):
        train(recipe(str(tmp_path / "rows.jsonl")), str(tmp_path), use_ray=False)


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"transcribe": None}, "transcribe: Input should be a valid dictionary"),
        ({"prompt": "Describe."}, "unknown key 'prompt'"),
        ({"objective": {"regulariser": "replay", "weight": 0.1}}, "unknown key 'objective'"),
        ({"augment": [{"kind": "flip"}]}, "no kind 'flip' for this task. Allowed: .*, spec_augment"),
        ({"task": "text"}, "unknown key 'transcribe'"),
        ({"method": {"kind": "projection"}}, "no kind 'projection' for this task. Allowed: lora, full"),
        ({"speech": {"related": {}}}, "'speech.related' is now 'transcribe.init_from_languages'"),
        ({"train": {"repeat": {"mine": 2}}}, "'train.repeat' is now 'train.source_weights'"),
    ],
)
def test_a_recipe_that_does_not_fit_together_is_refused(changes: dict[str, Any], says: str) -> None:
    with pytest.raises(UsageError, match=says):
        recipe("x", **changes)


def learner(**changes: Any) -> TranscribeLearner:
    rows = [
        {
            "id": str(at),
            "samples": tone(0.4 + 0.1 * at, 300 * (at + 1)).astype(np.float32),
            "text": word,
            "language": "be",
        }
        for at, word in enumerate(WORDS)
    ]
    made = TranscribeLearner(
        load_trainable("transcribe", find_base("debug", task="transcribe"), device="cpu"),
        recipe("x", **changes),
        Examples(rows, rows, (), "x"),
    )
    torch.manual_seed(0)
    made.attach(None)
    return made


def test_views_are_new_at_each_step_and_the_same_when_it_is_taken_up_again() -> None:
    made = learner()

    def mels(seed: int) -> list[torch.Tensor]:
        torch.manual_seed(seed)
        return [mel for batch, _ in made.batches([0, 1, 2, 3], 0, 1) for mel in batch.mels]

    first, again, other = mels(1), mels(1), mels(2)
    assert all(torch.equal(one, two) for one, two in zip(first, again, strict=True))
    assert any(one.shape != two.shape or not torch.equal(one, two) for one, two in zip(first, other, strict=True))


def test_clips_are_concatenated_in_new_pairs_each_once_with_both_transcripts() -> None:
    made = learner(augment=[], transcribe={"concat_prob": 0.5})
    kept = set()
    for step in permutations(range(4)):
        (batch, weight), *others = made.batches(step, 0, 1)
        assert (weight, others) == (1.0, [])
        texts = []
        for clip, mel in enumerate(batch.mels):
            answer = batch.answer_ids[(batch.answer_document == clip) & ~batch.answer_ends]
            texts.append(made.task.tokenizer.decode(answer).split())
            wanted = sum(len(made.clips[WORDS.index(word)].samples) for word in texts[-1])
            assert mel.shape[1] == 2 * math.ceil(wanted / 320)
        assert sorted(word for words in texts for word in words) == sorted(WORDS)
        order = " ".join(WORDS[place] for place in step)
        assert all(" ".join(words) in order for words in texts)
        assert batch.answer_ends.sum() == len(texts)
        assert made.num_targets(step) == len(batch.answer_ids)
        kept |= {tuple(words) for words in texts}
    assert {1, 2, 3, 4} >= {len(words) for words in kept} >= {1, 2, 3}
    assert len([words for words in kept if len(words) == 2]) > 6


def test_clips_of_two_languages_or_too_long_together_are_not_joined() -> None:
    made = learner(transcribe={"concat_prob": 0.99})
    seconds = [len(clip.samples) / 16_000 for clip in made.clips]
    made.clips[1] = replace(made.clips[1], language="ru")
    made.task.model.config.max_source_positions = int(50 * (seconds[0] + seconds[2]))  # the speed may be 0.9
    for step in permutations(range(4)):
        assert all(len(batch.mels) == 4 for batch, _ in made.batches(step, 0, 1))


@pytest.mark.parametrize("concat_prob", [0.0, 0.6])
def test_one_worker_two_workers_and_small_packs_have_the_same_gradient(concat_prob: float) -> None:
    gradients = []
    for world, micro in ((1, 2048), (2, 2048), (1, 300)):
        train_keys = {"steps": 1, "batch_tokens": 400, "micro_tokens": micro, "max_length": 300}
        made = learner(augment=[], train=train_keys, transcribe={"concat_prob": concat_prob})
        parameters = [p for p in made.trained.parameters() if p.requires_grad]
        module, targets = made.objective(), made.num_targets([0, 1, 2, 3])
        for rank in range(world):
            for batch, weight in made.batches([0, 1, 2, 3], rank, world):
                (module(batch).sum() * (weight / targets)).backward()
        gradients.append(torch.cat([p.grad.flatten() for p in parameters if p.grad is not None]))
    assert gradients[0].norm() > 0
    for other in gradients[1:]:
        assert torch.allclose(gradients[0], other, atol=1e-5)


def test_a_language_model_is_made_chosen_kept_and_measured(data: str, tmp_path: Path) -> None:
    own = [row["text"] for row in audio_rows(load_data(data, ["be"]), "test", ["be"], 25.0).rows]
    more = [{"text": f"{word} {number}"} for word in WORDS for number in range(60)]
    (tmp_path / "more.jsonl").write_text("\n".join(json.dumps(row) for row in more))
    section = {"order": 4, "beams": 3, "texts": [str(tmp_path / "more.jsonl")]}
    result = train(recipe(data, transcribe={"language_model": section}), str(tmp_path / "store"), use_ray=False)
    registry = Registry(str(tmp_path / "store"))
    card, folder = registry.card("transcribe-x@1"), registry.fetch("transcribe-x@1")
    model = card.language_models["be"]
    assert model.cer < model.greedy_cer
    assert model.order == 4
    assert 0 < model.texts < len(more)
    assert (folder / "lm.be.safetensors").is_file()
    assert any(note.startswith(f"Language model of be: {model.texts} texts") for note in card.notes)
    assert "Transcripts are searched with an n-gram model" in (folder / "README.md").read_text()
    greedy = result.evaluation.baselines["greedy"]
    assert greedy.total()["cer"].value() != result.metrics["cer"]
    others = [load_data(str(tmp_path / "more.jsonl"), ["be"])]
    texts = language_texts(load_data(data, ["be"]), "be", others)
    assert len(texts) == model.texts
    assert not set(own) & set(texts)  # what is tested is in no language model


def test_a_language_model_that_cannot_be_made_is_told(
    data: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("kauli.training.evaluation.language_model.FEWEST_TEXTS", 1000)
    result = train(recipe(data, transcribe={"language_model": {}}), str(tmp_path), use_ray=False)
    card = Registry(str(tmp_path)).card(str(result.adapter))
    assert card.language_models == {}
    assert any(note.startswith("No language model for be: ") for note in card.notes)
    ctc = recipe(data, base="debug-wav2vec2", augment=[], transcribe={"language_model": {}})
    with pytest.raises(UsageError, match=r"transcribe\.language_model: debug-wav2vec2 is a CTC model"):
        train(ctc, str(tmp_path / "other"), use_ray=False)
