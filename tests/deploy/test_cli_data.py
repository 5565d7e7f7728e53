"""`kauli data check` on the files of other people, and its last line, which trains on that data when it is pasted."""

import json
import shlex
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import soundfile
from PIL import Image

from kauli.training.recipe_file import load_recipe
from support.cli import fails, run

WORDS = ["moto", "maji", "mti", "jua", "mto", "bahari", "upepo", "mvua", "nyumba", "kiti", "mlango", "mkate"]


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The current folder; a home and a store of its own."""
    monkeypatch.setenv("KAULI_HOME", str(tmp_path / "home"))
    monkeypatch.setenv("KAULI_STORAGE", str(tmp_path / "store"))
    data = tmp_path / "data"
    data.mkdir()
    monkeypatch.chdir(data)
    return data


def texts(folder: Path) -> str:
    rows = [f'{word},"{WORDS[at - 1]}, {word}",' for at, word in enumerate(WORDS)]
    (folder / "my data (v2).csv").write_text("prompt,text,\n" + "\n".join(rows), encoding="utf-8")
    return "my data (v2).csv"


def images(folder: Path) -> str:
    lines = ["image,text,language"]
    for at, word in enumerate(WORDS):
        Image.new("RGB", (32, 24), (20 * at, 50, 200)).save(folder / f"i{at}.png")
        lines.append(f"i{at}.png,picha ya {word},sw")
    frames = [Image.new("RGB", (8, 8), colour) for colour in ("red", "blue")]
    frames[0].save(folder / "moving.gif", save_all=True, append_images=frames[1:])
    (folder / "pictures.csv").write_text("\n".join([*lines, "moving.gif,picha inayocheza,sw"]), encoding="utf-8")
    return "pictures.csv"


def classes(folder: Path) -> str:
    lines = ["image,text,language"]
    for at in range(60):
        Image.new("RGB", (32, 32), (at % 4 * 80, at, 0)).save(folder / f"l{at}.png")
        lines.append(f"l{at}.png,{WORDS[at % 4]},sw")
    (folder / "topics.csv").write_text("\n".join(lines), encoding="utf-8")
    return "topics.csv"


def audio(folder: Path) -> str:
    lines = ["audio;text"]
    for at, word in enumerate(WORDS):
        wave = 0.3 * np.sin(2 * np.pi * (200 + 20 * at) * np.arange(16_000) / 16_000)
        soundfile.write(folder / f"c{at}.wav", wave, 16_000)
        lines.append(f"c{at}.wav;{word}")
    soundfile.write(folder / "silent.wav", np.zeros(16_000), 16_000)
    (folder / "clips.csv").write_text("\n".join([*lines, "silent.wav;kimya"]), encoding="utf-8")
    return "clips.csv"


def check(*words: str) -> tuple[dict[str, Any], list[str]]:
    """The JSON of a check, and the words of its next command."""
    result = run("data", "check", *words, "--json")
    assert result.exit_code == 0, result.output
    command = result.stderr.strip().splitlines()[-1].removeprefix("Next: ")
    found = json.loads(result.stdout)
    assert found["next"] == command
    assert "Traceback" not in result.output
    return found, shlex.split(command)


QUICK = ["--set", "train.minutes=null", "--set", "train.steps=2", "--no-ray"]


@pytest.mark.parametrize(
    ("write", "options", "recipe", "more"),
    [
        (texts, ["--language", "be"], "text-be", ["--set", "base=debug", *QUICK]),
        (images, [], "describe-multi", ["--set", "base=debug", "--set", "describe.encoder=debug-clip", *QUICK]),
        (classes, [], "head-topics", ["--set", "base=debug-clip"]),
        (audio, ["--language", "be"], "transcribe-be", ["--set", "base=debug-whisper", *QUICK]),
    ],
)
def test_the_next_command_trains_on_this_data(
    folder: Path, write: Callable[[Path], str], options: list[str], recipe: str, more: list[str]
) -> None:
    name = write(folder)
    _, command = check(name, *options)
    assert command[:3] == ["kauli", "train", recipe]
    assert f"data={name}" in command
    result = run(*command[1:], *more)
    assert result.exit_code == 0, result.output
    adapter = next(word.removeprefix("name=") for word in command if word.startswith("name="))
    assert result.stdout.startswith(f"{adapter}@1")


def test_unreadable_files_are_named_with_their_rows_and_not_trained_on(folder: Path) -> None:
    found, _ = check(images(folder))
    wrong = [one for problem in found["problems"] for one in problem["examples"]]
    assert [one["place"] for one in wrong] == [f"pictures.csv line {len(WORDS) + 2} (moving.gif)"]
    assert "animated (2 frames)" in wrong[0]["shown"]
    sides = found["languages"]["sw"]
    assert sides["media"]["image"]["unreadable"] == 1
    assert sum(sides["uses"]["image"].values()) == len(WORDS)
    found, _ = check(audio(folder), "--language", "sw")
    assert [(one["place"], "silent" in one["shown"]) for one in found["problems"][0]["examples"]] == [
        (f"clips.csv line {len(WORDS) + 2} (silent.wav)", True)
    ]
    assert found["languages"]["sw"]["media"]["audio"]["hours"] == pytest.approx(len(WORDS) / 3600, abs=1e-4)


def test_how_a_file_was_read_is_told_and_given_to_the_training(folder: Path) -> None:
    lines = "".join(f"{word};{word} na maçã {word}\n" for word in WORDS)
    (folder / "mine.csv").write_bytes(f"source text;target text\n{lines}".encode("cp1252"))
    mapped = ["--map", "prompt=source text,text=target text", "--encoding", "cp1252", "--delimiter", ";"]
    found, command = check("mine.csv", *mapped, "--language", "pt_br", "--leaks", "pair")
    assert list(found["languages"]) == ["pt-BR"]
    assert any("text is target text" in note for note in found["notes"])
    assert command[-10:] == [
        "--set", "data_options.map=prompt=source text,text=target text", "--set", "data_options.language=pt_br",
        "--set", "data_options.encoding=cp1252", "--set", 'data_options.delimiter=";"',
        "--set", "data_options.leaks=pair",
    ]  # fmt: skip
    fails(2, "leaks 'pairs': one of content, pair, group", "data", "check", "mine.csv", "--leaks", "pairs")
    fails(2, "unknown encoding 'cp999'", "data", "check", "mine.csv", "--encoding", "cp999")


def test_words_blanks_and_controls_are_told_with_their_lines(folder: Path) -> None:
    words = ["None", "nan", "", "Habari", "N/A", "NULL"]
    rows = "".join(f"sw,{text},{prompt}\n" for text, prompt in zip(words, "abcdef", strict=True))
    (folder / "words.csv").write_text("language,text,prompt,\n" + rows, encoding="utf-8")
    result = run("data", "check", "words.csv")
    assert result.exit_code == 0, result.output
    assert "4 rows where a whole cell is a word for an empty one" in result.stdout
    assert "e.g. words.csv line 2: 'None'" in result.stdout
    assert "words.csv line 4" in result.stderr
    assert "columns not used" not in result.stderr
    (folder / "nul.jsonl").write_text(
        "".join(json.dumps({"text": f"{word}{chr(0)} leo"}) + "\n" for word in WORDS), encoding="utf-8"
    )
    result = run("data", "check", "nul.jsonl", "--language", "sw")
    assert result.exit_code == 0, result.output
    assert "nul.jsonl line 1" in result.output


def test_without_a_split_there_is_nothing_to_train_by(folder: Path) -> None:
    rows = [{"text": f"neno {word}", "language": "sw", "split": "train"} for word in WORDS]
    (folder / "train.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    result = run("data", "check", "train.jsonl", "--json")
    assert result.exit_code == 0, result.output
    assert json.loads(result.stdout)["next"] is None
    assert "Next: sw has no text in validation and test: add or repair rows, or let `split` be chosen" in result.stderr


def test_several_languages_and_tags_that_yaml_misreads_are_one_recipe(folder: Path) -> None:
    rows = [
        {"text": f"neno {word} {tag}", "language": tag, "split": ("train", "dev", "test")[at % 3]}
        for at, word in enumerate(WORDS)
        for tag in ("no", "sw")
    ]
    (folder / "no.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    _, command = check("no.jsonl")
    overrides = [word for word in command[3:] if word != "--set"]
    assert sorted(load_recipe(command[2], overrides).language) == ["no", "sw"]
    _, command = check("no.jsonl", "--languages", "no")
    assert load_recipe(command[2], [word for word in command[3:] if word != "--set"]).language == ("no",)
