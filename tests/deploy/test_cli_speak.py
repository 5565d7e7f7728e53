"""`kauli speak`: files, times of words, voices, the check of the mark, and refusals, which write nothing."""

import json
from pathlib import Path

import numpy as np
import pytest
import soundfile

from kauli.deploy.api import load
from kauli.models.errors import UsageError
from support.cli import fails, run
from support.speech_adapters import wav

pytestmark = pytest.mark.weights  # the network of the watermark
TEXT = "Habari za asubuhi. Watoto wanacheza."
BASE = ("--model", "debug-vits", "--language", "sw")


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("KAULI_STORAGE", str(tmp_path / "store"))
    monkeypatch.chdir(tmp_path)
    return tmp_path


def test_a_file_with_the_times_of_its_words() -> None:
    result = run("speak", TEXT, *BASE, "--out", "a.mp3", "--words", "a.TextGrid", "--json")
    assert result.exit_code == 0, result.output
    found = json.loads(result.stdout)
    assert (found["voice"], found["language"], found["watermarked"]) == ("debug", "sw", True)
    assert [one["word"] for one in found["words"]] == TEXT.split()
    assert abs(soundfile.info("a.mp3").duration - found["seconds"]) < 0.1
    assert 'text = "asubuhi."' in Path("a.TextGrid").read_text()
    assert run("speak", TEXT, *BASE, "--out", "a.wav", "--words", "a.vtt").stdout.strip() == "a.wav"
    assert Path("a.vtt").read_text().startswith("WEBVTT")


def test_the_mark_is_read() -> None:
    assert run("speak", TEXT, *BASE, "--voice", "espeak", "--out", "a.opus").exit_code == 0
    found = json.loads(run("speak", "--check", "a.opus", "--json").stdout)
    assert found["marked"]
    assert found["score"] > 0.5
    soundfile.write("noise.wav", 0.1 * np.random.default_rng(0).standard_normal(32_000), 16_000)
    assert "carries no mark that can be read" in run("speak", "--check", "noise.wav").stdout
    fails(2, "nothing.wav", "speak", "--check", "nothing.wav")


def test_a_lexicon_from_a_file_and_a_text_from_stdin(folder: Path) -> None:
    (folder / "own.tsv").write_text("# names\nhabari\tbobo\n", encoding="utf-8")
    for more in ((), ("--lexicon", "own.tsv")):
        assert run("speak", "-", *BASE, "--out", f"{len(more)}.wav", *more, input="Habari").exit_code == 0
    assert Path("0.wav").read_bytes() != Path("2.wav").read_bytes()
    (folder / "bad.tsv").write_text("habari bobo\n", encoding="utf-8")
    fails(
        2,
        "bad.tsv, line 1: write WORD, a tab and its IPA",
        "speak",
        "a",
        *BASE,
        "--out",
        "a.wav",
        "--lexicon",
        "bad.tsv",
    )


def test_voices_are_listed() -> None:
    rows = json.loads(run("speak", "--voices", "--model", "debug-vits", "--json").stdout)
    assert [row["id"] for row in rows] == ["debug", "espeak"]


def test_refusals_write_nothing(folder: Path) -> None:
    for message, *words in (
        ("give a text and a file", "Habari"),
        ("the suffix '.ogv' is no audio format", "Habari", "--out", "a.ogv"),
        ("there is no folder", "Habari", "--out", "none/a.wav"),
        ("times are written as .vtt", "Habari", "--out", "a.wav", "--words", "a.txt"),
        ("there is no voice 'alloy'. Voices: debug, espeak", "Habari", "--out", "a.wav", "--voice", "alloy"),
        ("nothing to read in Swahili", "你好", "--out", "a.wav"),
        ("the text is empty", "", "--out", "a.wav"),
    ):
        fails(2, message, "speak", *words, *BASE)
    assert not [path for path in folder.iterdir() if path.is_file()]


def test_a_recording_is_answered(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name, base in (("VOICE", "debug-vits"), ("AUDIO", "debug-whisper")):
        monkeypatch.setenv(f"KAULI_{name}_BASE", base)
    (folder / "a.wav").write_bytes(wav(0.5))
    words = ("talk", "a.wav", "--language", "be", "--model", "debug-text", "--max-tokens", "8")
    found = json.loads(run(*words, "--out", "b.mp3", "--json").stdout)
    assert found["models"] == {"transcribe": "debug-whisper", "text": "debug-text", "speak": "debug-vits"}
    assert Path("b.mp3").is_file() == bool(found["seconds"])
    fails(2, "there is no voice 'alloy'", *words, "--out", "c.mp3", "--voice", "alloy")
    fails(2, "none.wav", "talk", "none.wav", "--language", "be", "--out", "c.mp3")
    assert not Path("c.mp3").exists()


def test_in_python(folder: Path) -> None:
    with load("debug-vits", language="sw") as model:
        speech = model.speak(TEXT, speed=2.0)
        assert (speech.voice, speech.language, speech.rate) == ("debug", "sw", 24_000)
        assert len(speech.samples) / speech.rate == pytest.approx(speech.seconds)
        assert [one.text for one in speech.words] == TEXT.split()
        speech.save(folder / "a.flac")
        with pytest.raises(UsageError, match="no voice 'alloy'"):
            model.speak("a", voice="alloy")
        with pytest.raises(UsageError, match="cannot generate text"):
            model.generate("a")
    assert soundfile.info(folder / "a.flac").duration == pytest.approx(speech.seconds, abs=0.01)
