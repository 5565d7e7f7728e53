"""Whisper over packs and slots: the numbers of transformers and PEFT, each clip as if it were alone."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from peft import PeftModel
from safetensors.torch import save_file

from kauli.models.adapters.kinds.full import Full
from kauli.models.adapters.kinds.lora import Lora
from kauli.models.bases.find import find_base
from kauli.models.errors import KauliError, UsageError
from kauli.models.requests import TranscriptionRequest
from kauli.models.speech.audio_tower import WINDOW, AudioTower
from kauli.models.speech.whisper import WhisperTask
from kauli.models.speech.whisper_adapter import LANGUAGES
from kauli.models.speech.whisper_model import frame_count
from support.whisper import adapter, reference, sound, trainable, whisper

TEXTS = ("слон", "жаба на лузе", "кот", "птушка", "рака", "мора", "дом", "лес")


def rows(language: str = "be") -> list[dict[str, Any]]:
    return [
        {"id": str(at), "samples": sound(0.3 + 0.21 * at, at), "text": text, "language": language}
        for at, text in enumerate(TEXTS)
    ]


def texts_of(task: WhisperTask, requests: list[TranscriptionRequest], keys: list[str | None]) -> list[str]:
    texts = [""] * len(requests)
    for chunks in task.generate(requests, keys):
        for chunk in chunks:
            texts[chunk.row] += chunk.text
    return texts


def test_a_transcript_beyond_the_window_counts_as_far_as_it_is_read() -> None:
    task = whisper()
    (row,) = rows()[:1]
    found = task.bits([{**row, "text": text} for text in ("слон", "а" * 200, "а" * 2000)], None)
    assert found[0][1] == len("слон".encode())
    assert found[1] == pytest.approx(found[2])
    assert found[1][1] <= 2 * task.window


def test_in_the_whole_window_encoder_and_loss_are_those_of_transformers() -> None:
    task, model = whisper(), reference()
    mels = [task.model_input(row["samples"], task.seconds) for row in rows()[:3]]
    with torch.no_grad():
        theirs = model.model.encoder(torch.stack(mels)).last_hidden_state
        for ours, frames in zip(task.frames(mels), theirs, strict=True):
            assert torch.allclose(ours, frames, atol=1e-5)
        clips = task.encode(rows()[:3])
        longest = max(len(clip.tokens) for clip in clips)
        tokens = torch.full((3, longest), task.end)
        labels = torch.full((3, longest), -100)
        for at, clip in enumerate(clips):
            tokens[at, : len(clip.tokens)] = torch.tensor(clip.tokens)
            labels[at, clip.answer_start - 1 : len(clip.tokens) - 1] = torch.tensor(clip.tokens[clip.answer_start :])
        logits = model(input_features=torch.stack(mels), decoder_input_ids=tokens).logits
        expected = torch.nn.functional.cross_entropy(logits.flatten(0, 1), labels.flatten())
        losses = trainable().trained(task.collate(clips, mels))
        assert float(losses.mean()) == pytest.approx(float(expected), abs=1e-5)


def test_a_clip_has_the_same_frames_and_losses_in_any_company() -> None:
    task = whisper()
    mels = [task.model_input(row["samples"]) for row in rows()]
    assert [frame_count(mel) for mel in mels] == [-(-len(row["samples"]) // 320) for row in rows()]
    for mel, frames in zip(mels, task.frames(mels), strict=True):
        assert torch.allclose(task.frames([mel])[0], frames, atol=1e-5)
    together = [bits for bits, _ in task.bits(rows(), None, full_window=False)]
    alone = [task.bits([row], None, full_window=False)[0][0] for row in rows()]
    assert together == pytest.approx(alone, rel=1e-4)


def test_the_losses_reach_what_is_trained_as_they_do_in_transformers() -> None:
    task, model = trainable(), reference()
    (row,) = rows()[:1]
    (clip,) = task.encode([row])
    mel = task.model_input(row["samples"], task.seconds)
    task.model.requires_grad_(True)
    task.trained(task.collate([clip], [mel])).mean().backward()
    labels = torch.tensor([[-100] * (clip.answer_start - 1) + clip.tokens[clip.answer_start :]])
    logits = model(input_features=mel[None], decoder_input_ids=torch.tensor([clip.tokens[:-1]])).logits
    torch.nn.functional.cross_entropy(logits[0], labels[0]).backward()
    theirs = dict(model.named_parameters())
    for name, parameter in task.model.named_parameters():
        if "embed_positions" in name or parameter.grad is None:
            continue
        assert torch.allclose(parameter.grad, theirs[name].grad, atol=1e-5), name


def test_greedy_text_is_that_of_transformers() -> None:
    task, model = whisper(), reference()
    chosen = rows()[:4]
    mels = torch.stack([task.model_input(row["samples"], task.seconds) for row in chosen])
    with torch.no_grad():
        tokens = model.generate(
            mels, language="be", task="transcribe", max_new_tokens=12, suppress_tokens=task._suppressed
        )
    expected = task.tokenizer.batch_decode(tokens, skip_special_tokens=True)
    requests = [TranscriptionRequest(row["samples"], "be", max_tokens=12) for row in chosen]
    ours = texts_of(task, requests, [None] * 4)
    # A character that the last token leaves unfinished is dropped by us, and shown as U+FFFD by transformers
    assert [text.strip() for text in ours] == [text.replace("\ufffd", "").strip() for text in expected]


@pytest.mark.parametrize("targets", ["all-linear", ["q_proj", "v_proj"], ["k_proj", "fc1"]])
def test_an_adapter_scores_as_with_peft(tmp_path: Path, targets: Any) -> None:
    folder = adapter(tmp_path / "a", 1, targets)
    task = whisper()
    task.add_adapter("a@1", folder)
    model: Any = PeftModel.from_pretrained(reference(), folder).eval()
    row = rows()[1]
    (clip,) = task.encode([row])
    mel = task.model_input(row["samples"], task.seconds)
    with torch.no_grad():
        logits = model(input_features=mel[None], decoder_input_ids=torch.tensor([clip.tokens[:-1]])).logits[0]
    places = slice(clip.answer_start - 1, len(clip.tokens) - 2)  # without the end token
    losses = torch.nn.functional.cross_entropy(
        logits[places], torch.tensor(clip.tokens[clip.answer_start : -1]), reduction="sum"
    )
    ((bits, size),) = task.bits([row], "a@1", full_window=True)
    assert bits == pytest.approx(float(losses) / np.log(2), rel=1e-4)
    assert size == len(row["text"].encode())
    assert bits != pytest.approx(task.bits([row], None, full_window=True)[0][0], rel=1e-3)


def test_adapters_and_the_base_mixed_in_one_batch_give_what_each_gives_alone(tmp_path: Path) -> None:
    task = whisper()
    for seed in (1, 2, 3):
        task.add_adapter(f"a{seed}@1", adapter(tmp_path / str(seed), seed))
    keys = [None, "a1@1", "a2@1", "a3@1", "a1@1", None, "a3@1", "a2@1"]
    requests = [TranscriptionRequest(row["samples"], "be", max_tokens=16) for row in rows()]
    together = texts_of(task, requests, keys)
    alone = [texts_of(task, [one], [key])[0] for one, key in zip(requests, keys, strict=True)]
    assert together == alone
    assert len({texts_of(task, requests[:1], [key])[0] for key in (None, "a1@1", "a2@1", "a3@1")}) == 4
    task.remove_adapter("a2@1")
    assert texts_of(task, requests[:2], keys[:2]) == alone[:2]


def test_more_clips_than_slots_come_through(tmp_path: Path) -> None:
    task = WhisperTask.load(find_base("debug", task="transcribe"), device="cpu", slots=3)
    requests = [
        TranscriptionRequest(row["samples"], "be", max_tokens=8, full_window=False) for row in [*rows(), *rows()]
    ]
    texts = texts_of(task, requests, [None] * len(requests))
    assert texts[:8] == texts[8:]


def test_it_learns_and_is_loaded_as_it_was_saved(tmp_path: Path) -> None:
    # The tied embeddings, which LoRA leaves as they are, keep a tiny model's loss from falling further.
    for method, rate, reached in ((Lora(rank=8, targets="all-linear"), 3e-3, 1.6), (Full(), 1e-3, 0.3)):
        task, folder = trainable(), tmp_path / method.kind
        torch.manual_seed(0)
        task.add_languages(["be"], {})
        task.attach(method)
        batch = task.collate(task.encode(rows()))
        optimizer = torch.optim.AdamW([p for p in task.trained.parameters() if p.requires_grad], lr=rate)
        for _ in range(100):
            loss = task.trained(batch).mean()
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
        assert float(loss.detach()) < reached
        task.save(folder)
        trained = [bits for bits, _ in task.current_bits(rows())]
        loaded = whisper()
        loaded.add_adapter("mine@1", folder)
        assert [bits for bits, _ in loaded.bits(rows(), "mine@1")] == pytest.approx(trained, rel=1e-3)
    texts = texts_of(loaded, [TranscriptionRequest(row["samples"]) for row in rows()], ["mine@1"] * 8)
    assert [text.strip() for text in texts] == list(TEXTS)


def test_a_language_without_a_token_begins_among_its_relatives_and_travels_with_the_adapter(tmp_path: Path) -> None:
    task = trainable()
    with pytest.raises(UsageError, match=r"no token for 'ky'.*transcribe\.init_from_languages"):
        task.add_languages(["ky"], {})
    with pytest.raises(UsageError, match="'sw' is none of them"):
        task.add_languages(["ky"], {"ky": ["kk", "sw"]})
    task.add_languages(["ky"], {"ky": ["kk", "tt", "uz"]})
    table = task.model.get_decoder().embed_tokens.weight
    places = [task._language_tokens[tag] for tag in ("kk", "tt", "uz")]
    assert torch.allclose(task.language_embeddings["ky"], table[places].mean(0))
    task.attach(Lora(rank=4))
    before = task.language_embeddings["ky"].detach().clone()
    optimizer = torch.optim.AdamW([p for p in task.trained.parameters() if p.requires_grad], lr=5e-3)
    for _ in range(5):
        loss = task.trained(task.collate(task.encode(rows("ky")))).mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    assert not torch.allclose(task.language_embeddings["ky"], before)
    task.save(tmp_path / "ky")
    assert (tmp_path / "ky" / LANGUAGES).is_file()
    trained = [bits for bits, _ in task.current_bits(rows("ky"))]
    loaded = whisper()
    loaded.add_adapter("ky@1", tmp_path / "ky")
    assert [bits for bits, _ in loaded.bits(rows("ky"), "ky@1")] == pytest.approx(trained, rel=1e-4)
    assert texts_of(loaded, [TranscriptionRequest(sound(0.5, 1))], ["ky@1"]) == texts_of(
        loaded, [TranscriptionRequest(sound(0.5, 1), "ky")], ["ky@1"]
    )
    with pytest.raises(UsageError, match="does not know the language 'ky'"):
        texts_of(loaded, [TranscriptionRequest(sound(0.5, 1), "ky")], [None])


def test_a_language_that_is_not_named_is_the_one_that_transformers_detects() -> None:
    task, model = whisper(), reference()
    for seed in range(4):
        samples = sound(1.0 + 0.3 * seed, seed)
        token = model.detect_language(input_features=task.model_input(samples, task.seconds)[None])
        language = task.tokenizer.decode(token).strip("<|>")
        named, unnamed = (TranscriptionRequest(samples, tag, max_tokens=10) for tag in (language, None))
        assert texts_of(task, [named], [None]) == texts_of(task, [unnamed], [None])


def test_a_clip_that_is_too_long_is_refused() -> None:
    with pytest.raises(UsageError, match=r"5\.0 seconds; debug-whisper takes 4 at most"):
        texts_of(whisper(), [TranscriptionRequest(sound(5, 0), "be")], [None])


def test_a_transcript_ends_even_where_the_model_would_go_on_for_ever() -> None:
    task = whisper()
    (chunks,) = [
        [
            chunk
            for found in task.generate([TranscriptionRequest(sound(0.5, 0), "be", ignore_eos=True)], [None])
            for chunk in found
        ]
    ]
    assert sum(chunk.tokens for chunk in chunks) <= 16 + 40 * 0.5
    assert chunks[-1].finish == "length"


def test_cancelled_rows_end_and_the_others_go_on() -> None:
    task = whisper()
    requests = [
        TranscriptionRequest(sound(1, 0), "be", max_tokens=12),
        TranscriptionRequest(sound(2, 1), "be", max_tokens=12),
    ]
    alone = texts_of(task, requests[1:], [None])
    texts, finishes = ["", ""], {}
    for chunks in task.generate(requests, [None, None], cancelled=lambda row: row == 0):
        for chunk in chunks:
            texts[chunk.row] += chunk.text
            finishes[chunk.row] = chunk.finish
    assert finishes[0] == "cancelled"
    assert texts[1] == alone[0]


def test_an_adapter_that_does_not_fit_is_refused(tmp_path: Path) -> None:
    folder = adapter(tmp_path / "a", 1)
    config = (folder / "adapter_config.json").read_text()
    (folder / "adapter_config.json").write_text(config.replace('"r": 4', '"r": 2'))
    with pytest.raises(KauliError, match="does not fit"):
        whisper().add_adapter("a@1", folder)
    (folder / "adapter_config.json").write_text(config)
    save_file({"ky": torch.zeros(3)}, folder / LANGUAGES)
    with pytest.raises(KauliError, match="embedding of 'ky'"):
        whisper().add_adapter("a@1", folder)


@pytest.mark.parametrize("method", [None, Lora(rank=4, targets="all-linear"), Full()])
def test_training_gives_the_base_back_as_it_was_loaded(method: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    task = trainable()
    before = task.current_bits(rows())
    task.add_languages(["ky"], {"ky": ["kk"]})
    if method is not None:
        task.attach(method)
        with torch.no_grad():
            for value in task.trained.parameters():
                value.add_(0.1 * torch.randn_like(value) if value.requires_grad else 0)
        assert task.current_bits(rows()) != before
    read_again = []
    real = WhisperTask.load
    monkeypatch.setattr(WhisperTask, "load", lambda *given, **named: read_again.append(1) or real(*given, **named))
    served = task.served()
    assert bool(read_again) == isinstance(method, Full)
    fresh, found = dict(whisper().model.named_parameters()), dict(served.model.named_parameters())
    assert fresh.keys() == found.keys()
    assert all(torch.equal(found[name], value) for name, value in fresh.items())
    assert served.bits(rows(), None) == before
    assert texts_of(served, [TranscriptionRequest(sound(0.5, 1), "be")], [None]) == texts_of(
        whisper(), [TranscriptionRequest(sound(0.5, 1), "be")], [None]
    )


def test_a_tower_encodes_the_clip_without_its_padding_and_each_as_if_alone() -> None:
    tower = AudioTower(whisper())
    clips = [sound(0.5, 0), sound(1.3, 1)]
    found = tower.features(clips, stack=4)
    assert [tuple(one.shape) for one in found] == [(7, 4 * 64), (17, 4 * 64)]  # 25 and 65 frames
    assert tower.width(4) == 256
    for samples, features in zip(clips, found, strict=True):
        assert torch.allclose(tower.features([samples], 4)[0], features, atol=1e-5)
    frames = tower.task.frames([tower.task.model_input(clips[0], WINDOW)])[0][:25]
    assert torch.allclose(found[0][0], frames[:4].flatten(), atol=1e-5)
    assert not found[0][-1, 64:].any()  # the last feature has one frame, and zeros behind it


def test_training_does_not_start_from_an_adapter_of_fewer_layers(tmp_path: Path) -> None:
    folder = adapter(tmp_path, 1, r".*\.(q_proj|v_proj)")
    task = trainable()
    task.attach(Lora(rank=4, alpha=8, targets="all-linear"))
    with pytest.raises(KauliError, match="has no counterpart"):
        task.start_from(folder)


def test_the_probability_of_no_speech_is_that_of_transformers() -> None:
    task, model = whisper(), reference()
    token = task.tokenizer.convert_tokens_to_ids("<|nospeech|>")
    clips = [row["samples"] for row in rows()[:3]]
    mels = torch.stack([task.model_input(samples, task.seconds) for samples in clips])
    with torch.no_grad():
        start = torch.full((3, 1), model.config.decoder_start_token_id)
        logits = model(input_features=mels, decoder_input_ids=start).logits[:, 0]
    found: dict[int, float | None] = {}
    for chunks in task.generate(
        [TranscriptionRequest(one, "be", max_tokens=2, logprobs=0) for one in clips], [None] * 3
    ):
        found |= {chunk.row: chunk.no_speech_prob for chunk in chunks}
    assert [found[row] for row in range(3)] == pytest.approx(logits.softmax(-1)[:, token].tolist(), rel=1e-3)
