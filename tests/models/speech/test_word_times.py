"""Word times: tokens' as transformers computes them, words in any script, each clip by its own adapter."""

import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from peft import PeftModel
from safetensors.torch import save_file
from transformers import WhisperForConditionalGeneration
from transformers.generation import GenerateEncoderDecoderOutput
from transformers.models.whisper.generation_whisper import _dynamic_time_warping, _median_filter

from kauli.models.bases.find import fetch_base, find_base
from kauli.models.engine.detokenize import TokenBytes
from kauli.models.errors import KauliError
from kauli.models.media.decode import RATE, decode_audio
from kauli.models.requests import Chunk, TranscriptionRequest, Word
from kauli.models.speech import whisper_decoder
from kauli.models.speech.whisper import WhisperTask
from kauli.models.speech.word_times import (
    alignment_heads,
    outside_pauses,
    smoothed,
    token_frames,
    token_pieces,
    warped,
    words_of,
)
from kauli.training.data.dataset import load_data
from support.whisper import adapter, reference, sound, whisper


def last_chunks(
    task: WhisperTask, requests: Sequence[TranscriptionRequest], keys: Sequence[str | None]
) -> list[list[Chunk]]:
    """Of each row its chunks."""
    found: list[list[Chunk]] = [[] for _ in requests]
    for chunks in task.generate(requests, keys):
        for chunk in chunks:
            found[chunk.row].append(chunk)
    return found


def words(task: WhisperTask, request: TranscriptionRequest, key: str | None = None) -> tuple[Word, ...]:
    return last_chunks(task, [request], [key])[0][-1].words


def text_of(pieces: Sequence[Word]) -> list[str]:
    return [piece.text for piece in pieces]


# Times of tokens


@pytest.mark.parametrize("shape", [(1, 1), (1, 9), (9, 1), (7, 40), (30, 12), (60, 300)])
def test_time_warping_is_that_of_transformers(shape: tuple[int, int]) -> None:
    for seed in range(5):
        costs = np.random.default_rng(seed).normal(size=shape)
        rows, columns = _dynamic_time_warping(costs)
        expected = [int(columns[list(rows).index(row)]) for row in range(shape[0])]
        assert warped(costs) == expected
    flat = np.zeros(shape)
    rows, columns = _dynamic_time_warping(flat)
    assert warped(flat) == [int(columns[list(rows).index(row)]) for row in range(shape[0])]


@pytest.mark.parametrize("frames", [2, 3, 4, 50])
def test_smoothing_is_that_of_transformers(frames: int) -> None:
    values = torch.randn(3, 5, frames, generator=torch.Generator().manual_seed(0))
    assert torch.equal(smoothed(values), _median_filter(values, 7))


def test_tokens_that_all_look_alike_share_the_clip() -> None:
    assert token_frames(torch.full((2, 3, 10), 0.1)) == sorted(token_frames(torch.full((2, 3, 10), 0.1)))
    steps = torch.full((1, 3, 30), 0.01)
    for row in range(3):
        steps[0, row, 10 * row : 10 * row + 10] = 1
    assert token_frames(steps) == [0, 10, 20]


def theirs(model: Any, task: WhisperTask, samples: Any, prompt: list[int], answer: list[int]) -> list[float]:
    """When each token of an answer begins and the last one ends, by transformers, of a clip that fills the window."""
    tokens = torch.tensor([[*prompt, *answer]])
    with torch.no_grad():
        out = model(
            input_features=task.model_input(samples, task.seconds)[None],
            decoder_input_ids=tokens,
            output_attentions=True,
        )
    whole = GenerateEncoderDecoderOutput(sequences=tokens, cross_attentions=(out.cross_attentions,))
    heads = [(layer, head) for layer, of in alignment_heads(task.model).items() for head in of]
    # The token before the answer is among those that look, since it predicts the first one
    ignored = len(prompt) - 1
    inner = model.get_base_model() if isinstance(model, PeftModel) else model
    return inner._extract_token_timestamps(whole, heads, num_input_ids=ignored)[0, ignored:-1].tolist()


def eager() -> Any:
    folder = find_base("debug", task="transcribe").folder
    model = WhisperForConditionalGeneration.from_pretrained(folder, dtype=torch.float32, attn_implementation="eager")
    return model.eval()


def test_times_are_those_of_transformers_in_the_whole_window(tmp_path: Path) -> None:
    task = whisper()
    task.add_adapter("a@1", adapter(tmp_path / "a", 1))
    for key, model in ((None, eager()), ("a@1", PeftModel.from_pretrained(eager(), tmp_path / "a").eval())):
        for seed in range(3):
            samples = sound(4, seed)
            request = TranscriptionRequest(samples, "be", full_window=True, words=True, logprobs=0, max_tokens=24)
            chunks = last_chunks(task, [request], [key])[0]
            answer = [one.token for chunk in chunks for one in chunk.logprobs if one.bytes]
            times = theirs(model, task, samples, task.prompt_tokens(request), answer)
            assert len(times) == len(answer) + 1
            expected = words_of(token_pieces(answer, times, TokenBytes(task.tokenizer)))
            assert [(one.text, pytest.approx(one.start), pytest.approx(one.end)) for one in chunks[-1].words] == [
                (one.text, one.start, one.end) for one in expected
            ]


def test_a_clip_has_the_same_words_in_any_company_by_its_own_adapter(tmp_path: Path) -> None:
    task = whisper()
    for seed in (1, 2):
        task.add_adapter(f"a{seed}@1", adapter(tmp_path / str(seed), seed))
    keys = [None, "a1@1", "a2@1", "a1@1"]
    requests = [TranscriptionRequest(sound(0.6 + at, at), "be", words=True, max_tokens=20) for at in range(3)]
    requests.append(TranscriptionRequest(sound(1.0, 5), "be", max_tokens=20))
    together = [chunks[-1].words for chunks in last_chunks(task, requests, keys)]
    assert together[:3] == [words(task, one, key) for one, key in zip(requests[:3], keys, strict=False)]
    assert together[3] == ()
    for request, found in zip(requests[:3], together, strict=False):
        edges = [time for word in found for time in (word.start, word.end)]
        assert found
        assert edges == sorted(edges)
        assert 0 <= edges[0] <= edges[-1] <= len(request.samples) / RATE


def test_words_are_all_of_the_text_and_come_with_its_end(tmp_path: Path) -> None:
    task = whisper()
    task.add_adapter("a@1", adapter(tmp_path / "a", 3))
    (chunks,) = last_chunks(task, [TranscriptionRequest(sound(2, 1), "be", words=True)], ["a@1"])
    text = "".join(chunk.text for chunk in chunks)
    assert "".join("".join(text_of(chunks[-1].words)).split()) == "".join(text.split())
    assert not any(chunk.words for chunk in chunks[:-1])


def test_a_language_without_a_token_of_its_own_has_words_too(tmp_path: Path) -> None:
    task = whisper()
    folder = adapter(tmp_path / "ky", 4)
    save_file({"ky": torch.randn(64, generator=torch.Generator().manual_seed(0))}, folder / "languages.safetensors")
    (folder / "speech.json").write_text('{"languages": ["ky"]}')
    task.add_adapter("ky@1", folder)
    first, other = (words(task, TranscriptionRequest(sound(1, 1), tag, words=True), "ky@1") for tag in ("ky", None))
    assert first
    assert first == other


def test_without_words_nothing_is_read_again(monkeypatch: pytest.MonkeyPatch) -> None:
    def refused(*_: Any, **__: Any) -> Any:
        raise AssertionError("the transcript was read again")

    monkeypatch.setattr(whisper_decoder, "attention_weights", refused)
    task = whisper()
    assert words(task, TranscriptionRequest(sound(1, 1), "be")) == ()
    with pytest.raises(AssertionError, match="read again"):
        words(task, TranscriptionRequest(sound(1, 1), "be", words=True))


def test_the_heads_are_those_that_the_settings_name() -> None:
    model = reference()
    assert alignment_heads(model) == {1: [0, 1, 2, 3]}  # the upper one of two layers
    model.generation_config.alignment_heads = [[0, 2], [1, 0], [1, 3]]
    assert alignment_heads(model) == {0: [2], 1: [0, 3]}
    model.generation_config.alignment_heads = [[2, 0]]
    with pytest.raises(KauliError, match=r"head \[2, 0\]; the decoder has 2 layers of 4"):
        alignment_heads(model)


# Words of pieces


def letters(*bytes_: bytes) -> tuple[list[int], Any]:
    return list(range(len(bytes_))), bytes_.__getitem__


def test_letters_that_several_tokens_share_are_whole() -> None:
    ў, з = "ў".encode(), "з".encode()
    tokens, of = letters(b" a", ў[:1], ў[1:] + з[:1], з[1:], b"b")
    assert token_pieces(tokens, [0, 1, 2, 3, 4, 5], of) == [
        Word(" a", 0, 1), Word("ў", 1, 3), Word("з", 2, 4), Word("b", 4, 5),
    ]  # fmt: skip
    tokens, of = letters(b"a", b"\xff", ў[:1], b"b", ў[:1])  # bytes that form no letter
    assert "".join(text_of(token_pieces(tokens, [0, 1, 2, 3, 4, 5], of))) == "ab"


def test_punctuation_belongs_to_words_and_has_no_time() -> None:
    pieces = [
        Word(" «", 0, 1), Word("Доб", 1, 2), Word("ры", 2, 3), Word("»", 3, 5), Word(" —", 5, 6), Word(" дз", 6, 7),
        Word("ень", 7, 8), Word("!", 8, 9),
    ]  # fmt: skip
    assert words_of(pieces) == (Word("«Добры» —", 1, 3), Word("дзень!", 6, 8))
    assert words_of([Word(" ... ", 1, 3)]) == (Word("...", 1, 3),)
    assert words_of([]) == ()


def test_scripts_without_spaces_have_a_word_for_each_character() -> None:
    pieces = [Word("今天", 0, 2), Word("好", 2, 3), Word("。", 3, 4), Word("ok", 4, 5), Word(" ខ្មែរ", 5, 7)]
    found = words_of(pieces)
    assert text_of(found) == ["今", "天", "好。", "ok", "ខ្មែ", "រ"]
    assert [(one.start, one.end) for one in found[:4]] == [(0, 1), (1, 2), (2, 3), (4, 5)]
    assert found[4].end == pytest.approx(found[5].start)
    assert found[5].end == 7


def test_words_are_kept_out_of_pauses() -> None:
    pauses = [(1.0, 2.0), (4.0, 4.5)]
    found = [Word("a", 0.0, 0.9), Word("b", 0.9, 2.6), Word("c", 2.6, 4.2), Word("d", 4.2, 6.0), Word("e", 6.0, 6.0)]
    assert outside_pauses(found, pauses) == (
        Word("a", 0.0, 0.9), Word("b", 2.0, 2.6), Word("c", 2.6, 4.0), Word("d", 4.5, 6.0), Word("e", 6.0, 6.0),
    )  # fmt: skip
    assert outside_pauses([Word("long", 0, 2.2)], pauses) == (Word("long", 0, 1.0),)
    inside = [Word("um", 1.2, 1.6)]
    assert outside_pauses(inside, pauses) == tuple(inside)


@pytest.mark.weights
def test_after_a_silence_words_begin_where_speech_does() -> None:
    rows = load_data("starter", ["be"]).rows(split="test", languages=["be"], columns=["id", "text", "audio"])
    clips = [decode_audio(row["audio"]).samples for row in rows if row["text"] in ("Цацарка.", "Цацарка з шлемам.")]
    silence = np.random.default_rng(0).normal(0, 1e-4, 2 * RATE).astype(np.float32)
    both = np.concatenate([clips[0], silence, clips[1]])
    behind = len(clips[0]) / RATE + 2
    task = WhisperTask.load(fetch_base("whisper-base"), device="cpu")
    for full in (True, False):
        found = words(task, TranscriptionRequest(both, "be", full_window=full, words=True))
        assert len(found) >= 2
        second = next(word for word in found if word.end > behind)
        assert second.start >= behind - 0.1
        assert found[0].end <= len(clips[0]) / RATE
        assert found[-1].end <= math.ceil(len(both) / RATE * 50) / 50
