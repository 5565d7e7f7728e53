"""CTC models are trained: from MMS's own adapters, from a bare encoder, by a recipe; the base comes back unchanged."""

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import soundfile
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM

from kauli.models.adapters.kinds.attention_adapter import AttentionAdapter
from kauli.models.adapters.registry import Registry
from kauli.models.bases.find import Base, find_base
from kauli.models.errors import KauliError, UsageError
from kauli.models.speech.ctc import CtcTask
from kauli.models.speech.ctc_batch import SPELLED
from kauli.models.speech.whisper import WhisperTask
from kauli.training.evaluation.run import evaluate
from kauli.training.recipe_file import parse_recipe
from kauli.training.tasks.base import Examples
from kauli.training.tasks.transcribe import TranscribeLearner, TranscribeRecipe
from kauli.training.train import train
from support.ctc import METHODS, ROWS, TEXTS, changed, costs, fit, load, save_mms, say, settings, trainable, transcribe


@pytest.fixture(scope="module")
def base() -> Base:
    return find_base("debug-wav2vec2", task="transcribe")


@pytest.fixture
def mms(base: Base, tmp_path: Path) -> Base:
    return save_mms(base, tmp_path / "mms")


def test_a_clip_too_short_for_its_transcript_is_left_out(base: Base, capsys: pytest.CaptureFixture[str]) -> None:
    task = trainable(base)
    short = {**ROWS[0], "samples": ROWS[0]["samples"][:1000], "text": "aabbaabb"}
    assert len(task.encode([*ROWS, short])) == 8
    assert "1 of 9 clips are too short for their transcripts: left out" in capsys.readouterr().err
    with pytest.raises(UsageError, match="all 1 clips are too short"):
        task.encode([short])
    task = load(base)
    assert task.bits([short], None)[0] == pytest.approx((8 * SPELLED, 8))
    silence = {**short, "samples": np.zeros(3, np.float32), "text": "..."}
    ((cost, size),) = task.bits([silence], None)
    assert np.isfinite(cost)
    assert size == 0


@pytest.mark.parametrize("kind", ["attention", "lora"])
def test_training_continues_from_the_adapter_that_an_mms_has(
    mms: Base, tmp_path: Path, kind: str, monkeypatch: Any
) -> None:
    monkeypatch.setitem(METHODS, "attention", (AttentionAdapter(dim=8), 0.01))
    rows = [{**row, "language": "sw", "text": row["text"].replace("ў", "o")} for row in ROWS]
    bare = load(mms).bits(rows, None)
    task = trainable(mms)
    task.add_languages(["sw"], {}, TEXTS)
    assert costs(task.current_bits(rows)) == pytest.approx(costs(bare))
    assert task.letters.tokens == ("<pad>", "|", *"abdeimo", "ў")
    losses = fit(task, kind, 5)
    assert losses[-1] < losses[0]
    task.save(tmp_path / "adapter")
    loaded = load(mms)
    loaded.add_adapter("x", tmp_path / "adapter")
    assert costs(loaded.bits(ROWS, "x")) == pytest.approx(costs(task.current_bits(ROWS)), rel=1e-4)
    assert costs(loaded.bits(rows, None)) == pytest.approx(costs(bare), rel=1e-5)
    if kind == "lora":
        settings(tmp_path / "adapter", begins="kir")
        with pytest.raises(KauliError, match=r"no adapter\.kir\.safetensors"):
            loaded.add_adapter("y", tmp_path / "adapter")


def test_a_bare_encoder_writes_nothing_and_learns_letters(base: Base, tmp_path: Path) -> None:
    folder = shutil.copytree(base.folder, tmp_path / "encoder")
    (folder / "vocab.json").unlink()
    (folder / "base.json").unlink()
    weights = {name: value for name, value in load_file(folder / "model.safetensors").items() if "lm_head" not in name}
    save_file(weights, folder / "model.safetensors", {"format": "pt"})
    served = load(find_base(str(folder), task="transcribe"))
    assert transcribe(served, [None] * 8) == [""] * 8
    assert sum(costs(served.bits(ROWS, None))) > SPELLED * 6 * 8
    task = trainable(served.base)
    task.add_languages(["be"], {}, TEXTS)
    assert task.letters.tokens == ("<pad>", "|", *"abdeimoў")
    losses = fit(task, "attention", 8)
    assert losses[-1] < losses[0]


@pytest.mark.parametrize("kind", [None, *METHODS])
@pytest.mark.parametrize("language", ["sw", "be"])
def test_training_gives_the_base_back_as_it_was_loaded(
    mms: Base, kind: str | None, language: str, monkeypatch: Any
) -> None:
    monkeypatch.setitem(METHODS, "attention", (AttentionAdapter(dim=8), 0.01))
    rows = [{**row, "language": tag} for row in ROWS[:3] for tag in ("sw", "en")]
    task = trainable(mms)
    task.add_languages([language], {}, TEXTS)
    if kind is not None:
        fit(task, kind, 2)
    read_again = []
    real = CtcTask.load
    monkeypatch.setattr(CtcTask, "load", lambda *given, **named: read_again.append(1) or real(*given, **named))
    served = task.served()
    assert bool(read_again) == (kind == "full")
    fresh = load(mms)
    found = dict(served.model.named_parameters())
    assert found.keys() == dict(fresh.model.named_parameters()).keys()
    assert all(torch.equal(found[name], value) for name, value in fresh.model.named_parameters())
    assert served.model.config.vocab_size == fresh.model.config.vocab_size
    assert served.bits(rows, None) == fresh.bits(rows, None)
    assert transcribe(served, [None] * 6, rows) == transcribe(fresh, [None] * 6, rows)


def test_attention_adapters_are_refused_where_they_have_no_place(base: Base, mms: Base, tmp_path: Path) -> None:
    after = load(changed(base, tmp_path / "after", do_stable_layer_norm=False))
    with pytest.raises(UsageError, match="Wav2Vec2ForCTC with the norm after attention"):
        AttentionAdapter().attach(after.model, "x/y")
    models: list[Any] = [
        AutoModelForCausalLM.from_pretrained(find_base("debug").folder),
        WhisperTask.load(find_base("debug", task="transcribe"), device="cpu").model,
    ]
    for model, kind in zip(models, ("LlamaForCausalLM", "WhisperForConditionalGeneration"), strict=True):
        with pytest.raises(UsageError, match=f"the base is a {kind}, which has no place for attention adapters"):
            AttentionAdapter().attach(model, "x/y")
    with pytest.raises(UsageError, match=r"method\.dim 16: the base's own attention adapters have 8"):
        AttentionAdapter().attach(load(mms).model, "x/y")


def recipe(data: str, **changes: Any) -> TranscribeRecipe:
    content = {
        "name": "transcribe-x", "task": "transcribe", "base": "debug-wav2vec2", "language": "be", "data": data,
        "method": {"kind": "attention_adapter"}, "transcribe": {},
        "augment": [{"kind": "gain"}, {"kind": "noise", "p": 0.1}],
        "train": {"steps": 75, "batch_tokens": 300, "max_length": 100, "validate_every": 25, "learning_rate": 0.02},
    }  # fmt: skip
    parsed = parse_recipe({**content, **changes})
    assert isinstance(parsed, TranscribeRecipe)
    return parsed


def test_a_recipe_is_trained_published_and_measured_again_alike(tmp_path: Path) -> None:
    rows = []
    for number in range(60):
        text = f"{'abdeimo'[number % 7]}{'abdei'[number // 7 % 5]} {'imoў'[number % 3]}{'oў'[number // 35]}"
        soundfile.write(tmp_path / f"{number}.wav", say(text), 16_000)
        rows.append({"audio": f"{number}.wav", "text": text.capitalize() + "!", "language": "be", "source": "mine"})
    (tmp_path / "rows.jsonl").write_text("\n".join(json.dumps(row) for row in rows))
    result = train(recipe(str(tmp_path / "rows.jsonl")), str(tmp_path / "store"), use_ray=False)
    assert list(result.aliases) == ["latest"]
    evaluation = result.evaluation
    assert evaluation.base_metrics is not None
    assert evaluation.metrics["cer"] < 0.5 * evaluation.base_metrics["cer"]  # type: ignore[operator]
    assert evaluation.metrics["bits_per_byte"] < 0.5 * evaluation.base_metrics["bits_per_byte"]  # type: ignore[operator]
    registry = Registry(str(tmp_path / "store"))
    assert registry.card("transcribe-x").method == {"kind": "attention_adapter", "dim": 16}
    folder = registry.fetch("transcribe-x")
    assert {path.name for path in folder.iterdir()} == {
        "attention_adapter.safetensors", "speech.json", "card.json", "README.md",
    }  # fmt: skip
    assert evaluate("transcribe-x", str(tmp_path / "store")).metrics == pytest.approx(result.metrics)


def test_one_worker_two_workers_and_small_packs_have_the_same_gradient(base: Base) -> None:
    gradients = []
    for world, micro in ((1, 2048), (2, 2048), (1, 300)):
        made = TranscribeLearner(
            trainable(base),
            recipe("x", augment=[], train={"batch_tokens": 500, "micro_tokens": micro, "max_length": 300}),
            Examples(ROWS, ROWS, (), "x"),
        )
        torch.manual_seed(0)
        made.attach(None)
        step = [0, 1, 2, 3]
        for rank in range(world):
            for batch, weight in made.batches(step, rank, world):
                (made.objective()(batch).sum() * (weight / made.num_targets(step))).backward()
        gradients.append(torch.cat([p.grad.flatten() for p in made.trained.parameters() if p.grad is not None]))
    assert gradients[0].norm() > 0
    for other in gradients[1:]:
        torch.testing.assert_close(other, gradients[0], atol=1e-5, rtol=1e-4)
