"""Language models in an adapter's folder: read with their weights, used by default, refused where they do not fit."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from kauli.models.errors import KauliError
from kauli.models.requests import TranscriptionRequest
from kauli.models.speech.language_model import LanguageModel, Weights, read_language_models
from kauli.models.speech.token_lm import TokenModel, fit
from kauli.models.speech.whisper import WhisperTask
from support.whisper import adapter, sound, whisper


def made(task: WhisperTask, texts: tuple[str, ...] = (" слон і кот", " жаба"), **options: Any) -> TokenModel:
    tokens = [task.tokenizer(text, add_special_tokens=False).input_ids for text in texts]
    found = {"language": "be", "tokenizer": task.tokenizer_sha256, **options}
    return fit(tokens, vocabulary=int(task.model.config.vocab_size), end=task.end, order=3, **found)


def text_of(task: WhisperTask, request: TranscriptionRequest, key: str | None) -> str:
    return "".join(one.text for some in task.generate([request], [key]) for one in some)


def test_an_adapter_s_own_is_used_by_default(tmp_path: Path) -> None:
    task = whisper()
    folder = adapter(tmp_path / "a", 1)
    request = TranscriptionRequest(sound(0.5, 1), "be", max_tokens=12, logprobs=0)
    task.add_adapter("plain@1", folder)
    assert not task.searches("plain@1")
    own = LanguageModel(made(task), Weights(3.0, 5.0, 4))
    own.save(folder)
    task.add_adapter("own@1", folder)
    assert task.searches("own@1")
    greedy = text_of(task, request, "plain@1")
    found = text_of(task, request, "own@1")
    assert found == text_of(task, replace(request, beam=own.search(task.slots)), "plain@1") != greedy
    assert text_of(task, replace(request, language_model=False), "own@1") == greedy
    assert text_of(task, replace(request, language="kk"), "own@1") == text_of(
        task, replace(request, language="kk"), "plain@1"
    )
    warm = replace(request, temperature=0.7, seed=1)
    assert text_of(task, warm, "own@1") == text_of(task, warm, "plain@1")


def test_what_does_not_fit_is_refused(tmp_path: Path) -> None:
    task = whisper()
    sha256 = task.tokenizer_sha256
    LanguageModel(made(task), Weights(0.4, 0.5, 4)).save(tmp_path)
    assert read_language_models(tmp_path, sha256)["be"].weights == Weights(0.4, 0.5, 4)
    with pytest.raises(KauliError, match="use the base that it was made for"):
        read_language_models(tmp_path, "00" * 32)
    (tmp_path / "lm.be.safetensors").rename(tmp_path / "lm.ru.safetensors")
    with pytest.raises(KauliError, match="is of the language 'be', not of 'ru'"):
        read_language_models(tmp_path, sha256)
    (tmp_path / "lm.ru.safetensors").unlink()
    made(task).save(tmp_path / "lm.be.safetensors")
    with pytest.raises(KauliError, match="names no weights"):
        read_language_models(tmp_path, sha256)
    LanguageModel(made(task), Weights(float("nan"), 0.5, 4)).save(tmp_path)
    with pytest.raises(KauliError, match="is damaged: its weights are"):
        read_language_models(tmp_path, sha256)
    (tmp_path / "lm.be.safetensors").write_bytes(b"no tensors")
    with pytest.raises(KauliError, match="is no language model of Kauli"):
        read_language_models(tmp_path, sha256)
