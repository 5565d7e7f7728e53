"""eSpeak behind its process: phonemes and speech from any thread, a crash that loses one request, and its voices."""

import os
import signal
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import espeakng_loader
import numpy as np
import pytest

from kauli.models.errors import KauliError, UsageError
from kauli.models.speech.espeak import SPEED, Espeak, espeak, espeak_languages, espeak_voice


def test_phonemes_have_stress_and_spaces() -> None:
    assert espeak().phonemes(["Hello world", "", "watu wote"], "en-us")[:2] == ["həlˈoʊ wˈɜːld", ""]
    assert espeak().phonemes(["watu wote wamezaliwa huru"], "sw") == ["wˈatu wˈote wˌamezalˈiwa hˈuru"]
    assert "(" not in espeak().phonemes(["слова hello слова"], "be")[0]  # where it changes to English and back


def test_a_speech_is_the_same_whatever_was_said_before_and_by_whom() -> None:
    alone, rate, _ = Espeak().speak("Добры дзень.", "be")
    assert rate == 22050
    assert 0.5 < len(alone) / rate < 2
    with ThreadPoolExecutor(8) as pool:
        found = list(pool.map(lambda text: espeak().speak(text, "be").samples, ["Добры дзень.", "Так."] * 8))
    assert all(np.array_equal(one, alone) for one in found[::2])
    slow, fast = (len(espeak().speak("Добры дзень.", "be", {SPEED: pace}).samples) for pace in (100, 300))
    assert slow > 1.8 * fast


def test_words_are_timed_by_their_place() -> None:
    text = "Watu wote, wamezaliwa huru."
    found = espeak().speak(text, "sw")
    assert [place for place, _ in found.words] == [text.index(word) for word in ("Watu", "wote", "wame", "huru")]
    times = [time for _, time in found.words]
    assert times == sorted(times)
    assert times[-1] < len(found.samples) / found.rate


def test_a_process_that_died_is_started_again() -> None:
    own = Espeak()
    assert own.phonemes(["a"], "en") == ["ˈeɪ"]
    assert own._process is not None
    os.kill(own._process.pid, signal.SIGKILL)
    own._process.wait()
    assert own.phonemes(["a"], "en") == ["ˈeɪ"]
    own.close()


def test_what_it_can_not_do_is_an_error_and_the_next_request_works() -> None:
    with pytest.raises(KauliError, match="eSpeak failed: it lacks the voice xx"):
        espeak().phonemes(["a"], "xx")
    assert espeak().phonemes(["a"], "en") == ["ˈeɪ"]


def test_a_library_that_can_not_be_used_is_an_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    real = espeakng_loader.get_data_path()
    monkeypatch.setattr(espeakng_loader, "get_library_path", lambda: str(tmp_path / "none.so"))
    with pytest.raises(KauliError, match="eSpeak can't be loaded: reinstall its package espeakng-loader"):
        Espeak().speak("Ооба.", "ky")
    monkeypatch.undo()
    far = tmp_path / ("x" * 200) / "espeak-ng-data"
    far.parent.mkdir()
    far.symlink_to(real)
    monkeypatch.setattr(espeakng_loader, "get_data_path", lambda: str(far))
    own = Espeak()
    with pytest.raises(KauliError, match=r"can't read its data in .*/xxx.*; reinstall it in a shorter path"):
        own.speak("Ооба.", "ky")
    own.close()


def test_voices_follow_the_fallback_chain() -> None:
    assert espeak_voice("be-tarask") == espeak_voice("be") == "be"
    assert {"be", "sw", "am", "ky", "ka"} <= set(espeak_languages())
    with pytest.raises(UsageError, match=r"eSpeak has no voice for Yoruba \(yo\). It has voices for af, am, "):
        espeak_voice("yo")
