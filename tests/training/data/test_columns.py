"""Data as other people publish it: their columns, their folders, and what is said of columns that are not known."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import soundfile

from kauli.models.errors import UsageError
from kauli.training.data.dataset import load_data
from kauli.training.data.options import DataOptions


@pytest.fixture(autouse=True)
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("KAULI_HOME", str(tmp_path / "home"))


def write(path: Path, content: str | bytes) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    return path


def found(path: Path, *columns: str, **options: Any) -> list[tuple[Any, ...]]:
    """The rows' values in the order of their places."""
    dataset = load_data(str(path), None, DataOptions(**options))
    rows = dataset.rows(columns=["id", *columns])
    rows.sort(key=lambda row: [len(dataset.place(row["id"])), dataset.place(row["id"])])
    return [tuple(row[name] for name in columns) for row in rows]


PAIRS = [("Good morning", "Habari ya asubuhi"), ("The dog sleeps", "Mbwa amelala"), ("It rains", "Mvua inanyesha")]
LINES: dict[str, tuple[list[dict[str, Any]], str]] = {
    "ours": ([{"prompt": one, "text": other} for one, other in PAIRS], "{}"),
    "completion": ([{"prompt": one, "completion": other} for one, other in PAIRS], "{}"),
    "alpaca": ([{"instruction": "Sema", "input": one, "output": other} for one, other in PAIRS], "Sema\n\n{}"),
    "alpaca without input": ([{"instruction": one, "input": "", "output": other} for one, other in PAIRS], "{}"),
    "dolly": ([{"instruction": "Q", "context": one, "response": other} for one, other in PAIRS], "Q\n\n{}"),
    "question": ([{"question": one, "answer": other} for one, other in PAIRS], "{}"),
    "case": ([{" Prompt": one, "TEXT": other} for one, other in PAIRS], "{}"),
    "system": ([{"system": "Tafsiri.", "prompt": one, "output": other} for one, other in PAIRS], "Tafsiri.\n\n{}"),
}  # fmt: skip


@pytest.mark.parametrize("form", LINES)
def test_prompts_and_texts_under_other_names(tmp_path: Path, form: str) -> None:
    rows, prompt = LINES[form]
    path = write(tmp_path / "mine.jsonl", "\n".join(map(json.dumps, rows)))
    expected = [(prompt.format(one), other, "sw") for one, other in PAIRS]
    assert found(path, "prompt", "text", "language", language="sw") == expected


def test_common_voice(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    header = (
        "client_id\tpath\tsentence_id\tsentence\tup_votes\tdown_votes\tage\tgender\taccents\tvariant\tlocale\tsegment\n"
    )
    for name, numbers in (
        ("train", range(5)),
        ("dev", (5, 6)),
        ("test", (7,)),
        ("validated", range(8)),
        ("other", (9,)),
    ):
        lines = [f'a\tcv_{number}.mp3\tx\t"Neno la {number}\t2\t0\t\t\t\t\tsw\t\n' for number in numbers]
        write(tmp_path / f"cv/sw/{name}.tsv", header + "".join(lines))
    for number in range(8):
        write(tmp_path / f"cv/sw/clips/cv_{number}.mp3", b"clip%d" % number)
    write(tmp_path / "cv/sw/clip_durations.tsv", "clip\tduration[ms]\ncv_0.mp3\t1000\n")
    dataset = load_data(str(tmp_path / "cv"))
    rows = dataset.rows(columns=["id", "text", "audio", "split", "language"])
    assert {(row["text"], row["audio"]) for row in rows} == {(f'"Neno la {one}', b"clip%d" % one) for one in range(8)}
    assert [len(dataset.rows(split)) for split in ("train", "validation", "test")] == [5, 2, 1]
    assert dataset.place(rows[0]["id"]).startswith("sw/t")
    assert dataset.place(rows[0]["id"]).endswith(".mp3)")
    told = capsys.readouterr().err
    assert (
        "not read, since they repeat others or list no good clips: sw/clip_durations.tsv, sw/other.tsv, sw/val" in told
    )
    assert "text is sentence, language is locale, image or audio is path\n" in told


def test_fleurs(tmp_path: Path) -> None:
    line = "{0}\t10{0}.wav\tWatu {0} wengi.\twatu wengi\tw a t u |\t{0}000\tFEMALE\n"
    write(tmp_path / "sw_ke/train.tsv", "".join(map(line.format, range(1, 5))))
    for number in range(1, 5):
        write(tmp_path / f"sw_ke/audio/train/10{number}.wav", b"%d" % number)
    rows = found(tmp_path / "sw_ke", "text", "audio", language="sw")
    assert rows == [(f"Watu {number} wengi.", b"%d" % number) for number in range(1, 5)]


@pytest.mark.parametrize("form", ["csv", "jsonl"])
def test_audiofolder_and_imagefolder(tmp_path: Path, form: str) -> None:
    media = {"audio": ("clip{}.wav", "transcription"), "image": ("img/{}.JPG", "caption")}
    for name, (file, text) in media.items():
        rows = [{"file_name": file.format(number), text: f"Maneno {'abc'[number]}"} for number in range(3)]
        for number in range(3):
            write(tmp_path / name / "train" / file.format(number), f"{name}{number}".encode())
        lines = [f"file_name,{text}", *(f"{row['file_name']},{row[text]}" for row in rows)]
        content = "\n".join(lines if form == "csv" else map(json.dumps, rows))
        write(tmp_path / name / f"train/metadata.{form}", content)
        expected = [(f"Maneno {'abc'[number]}", f"{name}{number}".encode()) for number in range(3)]
        assert found(tmp_path / name, "text", name, language="sw") == expected


def test_nemo_manifests_and_paths_of_windows(tmp_path: Path) -> None:
    for number in range(3):
        write(tmp_path / f"wavs/{number}.wav", b"%d" % number)
    lines = [f'{{"audio_filepath": "wavs/{one}.wav", "duration": 1.5, "text": "Neno {one}"}}' for one in range(3)]
    expected = [(f"Neno {number}", b"%d" % number) for number in range(3)]
    assert found(write(tmp_path / "manifest.json", "\n".join(lines)), "text", "audio", language="sw") == expected
    lines = ["file_name,text", *(f"wavs\\{number}.wav,Neno {number}" for number in range(3))]
    assert found(write(tmp_path / "mine.csv", "\n".join(lines)), "text", "audio", language="sw") == expected


def test_class_labels_become_their_names(tmp_path: Path) -> None:
    datasets = pytest.importorskip("datasets")
    features = datasets.Features({"image": datasets.Image(), "label": datasets.ClassLabel(names=["paka", "mbwa"])})
    rows = {
        "image": [{"bytes": b"%d" % one, "path": None} for one in range(13)],
        "label": [one % 2 for one in range(12)],
    }
    rows["label"].append(-1)
    data = datasets.Dataset.from_dict(rows, features=features)
    data.save_to_disk(str(tmp_path / "saved"))
    data.to_parquet(str(tmp_path / "mine.parquet"))
    expected = [("paka" if number % 2 == 0 else "mbwa", b"%d" % number) for number in range(12)] + [(None, b"12")]
    for path in (tmp_path / "saved", tmp_path / "mine.parquet"):
        dataset = load_data(str(path), None, DataOptions(language="sw"))
        assert sorted(row["image"] for row in dataset.rows(columns=["image"])) == sorted(row[1] for row in expected)
        assert sorted(found(path, "text", "image", language="sw"), key=lambda row: int(row[1])) == expected
        assert len({row["group"] for row in dataset.rows()}) == 13  # a class ties nothing
    table = pq.read_table(tmp_path / "mine.parquet")
    wrong = table.set_column(1, "label", pa.array([7] * 13, pa.int64())).replace_schema_metadata(table.schema.metadata)
    pq.write_table(wrong, tmp_path / "wrong.parquet")
    with pytest.raises(UsageError, match="row 1: label is 7, and there are 2 classes; so in 12 more"):
        load_data(str(tmp_path / "wrong.parquet"), ["sw"])


def test_samples_become_a_file_of_audio(tmp_path: Path) -> None:
    tone = np.sin(np.arange(1600) / 10) * 0.3
    kinds = {"mono": tone, "stereo": np.stack([tone, -tone]), "pcm": (tone * 32768).astype(int)}
    rows = [
        {"text": name, "audio": {"array": array.tolist(), "path": None, "sampling_rate": 16000}}
        for name, array in kinds.items()
    ]
    path = write(tmp_path / "mine.jsonl", "\n".join(map(json.dumps, rows)))
    pq.write_table(pa.Table.from_pylist(rows[:1] * 3 + [{**rows[0], "text": "x"}]), tmp_path / "mine.parquet")
    for name, content in found(path, "text", "audio", language="sw"):
        samples, rate = soundfile.read(write(tmp_path / "a.flac", content))
        assert rate == 16000
        assert np.abs(samples.T - kinds[name] / (32768 if name == "pcm" else 1)).max() < 1e-6
    with pytest.raises(UsageError, match="can't be split: its 2 rows"):  # of which two are copies
        found(tmp_path / "mine.parquet", "text", language="sw")
    lines = "\n".join(
        json.dumps({"text": "a", "audio": {"array": array, "sampling_rate": 8000}}) for array in ([], ["x"])
    )
    with pytest.raises(UsageError, match="audio has samples that can't be used"):
        load_data(str(write(tmp_path / "bad.jsonl", lines)), ["sw"])


def test_columns_are_mapped_by_hand(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    lines = [f"{number},{number % 2},Neno {'abc'[number]},swa,Swahili,word {number}" for number in range(3)]
    path = write(tmp_path / "mine.csv", "\n".join(["id,ID 2,Kiswahili,code,language,source", *lines]))
    expected = [("Neno a", "word 0", "sw", None), ("Neno b", "word 1", "sw", None), ("Neno c", "word 2", "sw", None)]
    options = DataOptions.model_validate({"map": "text=kiswahili, prompt=source, language=code, licence=id-2"})
    assert found(path, "prompt", "text", map=options.map) == [(row[1], row[0]) for row in expected]
    told = capsys.readouterr().err
    assert "mine.csv: text is Kiswahili, prompt is source, language is code, licence is ID 2; columns not" in told
    assert found(path, "text", "language", map="text=Kiswahili,language=,prompt=source", language="ka")[0] == (
        "Neno a",
        "ka",
    )


def error(path: Path, **options: Any) -> str:
    with pytest.raises(UsageError) as caught:
        load_data(str(path), None, DataOptions(**options))
    return str(caught.value)


def test_columns_that_are_not_known_are_told_once(tmp_path: Path) -> None:
    path = write(tmp_path / "mine.csv", "language,chosen,rejected\n" + "sw,a,b\n" * 50)
    text = error(path)
    assert text.startswith(f"{path} has 1 problem;")
    assert "mine.csv: no column is known to hold a text, image or audio: it has chosen, language, rejected" in text
    assert "--map text=COLUMN" in text
    assert "no column 'chose' for text: it has chosen, language, rejected. Did you mean 'chosen'?" in error(
        path, map="text=chose"
    )
    assert "map: no column 'txt'. Did you mean 'text'?" in error(path, map={"txt": "chosen"})


def test_a_missing_language_is_asked_for_once(tmp_path: Path) -> None:
    text = error(write(tmp_path / "mine.csv", "Text,note\n" + "".join(f"Neno {number},x\n" for number in range(50))))
    assert text.count("no language") == 1
    assert "so in 49 more (line 3, line 4, line 5, ...)" in text
    assert "--language TAG" in text
    assert "mine.csv: columns taken: text is Text; columns not used: note" in text
    text = error(write(tmp_path / "mine.csv", "text,language\n" + "Neno,Swahili\n" * 9))
    assert (
        "unknown language 'Swahili': give a BCP-47 tag such as sw, am or be. Did you mean 'sw'?; so in 8 more" in text
    )
    assert "--map language= --language TAG" in text


def test_missing_clips_are_left_out_where_most_are_there(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = write(
        tmp_path / "mine.tsv", "path\tsentence\tlocale\n" + "".join(f"{one}.mp3\ta {one}\tsw\n" for one in range(9))
    )
    text = error(path)
    assert "mine.tsv line 2: audio '0.mp3' is missing or empty; so in 8 more (line 3, line 4, line 5, ...)" in text
    assert "columns taken: text is sentence, language is locale, image or audio is path" in text
    assert "there in clips, audio, audios, wavs, images and" in text
    for number in range(8):
        write(tmp_path / f"{number}.mp3", b"%d" % number if number else b"")
    assert [row[0] for row in found(path, "text")] == [f"a {number}" for number in range(1, 8)]
    told = capsys.readouterr().err
    assert (
        "2 x a row whose image or audio is missing or empty, left out (mine.tsv line 2, audio '0.mp3', mine.tsv" in told
    )


def test_what_is_left_out_is_told_with_places(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    rows = [
        {"text": text, "prompt": f"p{at}", "path": "a.html"}
        for at, text in enumerate(["a", " ", "b\0b", None, "c", "\0"])
    ]
    rows += [{"text": "d"}, {"text": "d"}, {}]
    path = write(tmp_path / "mine.jsonl", "\n".join(map(json.dumps, rows)))
    assert found(path, "text", language="sw") == [("a",), ("b b",), ("c",), ("d",)]
    told = capsys.readouterr().err
    assert "4 x a row without text, image or audio, left out (mine.jsonl line 2, mine.jsonl line 4, " in told
    assert "2 x a NUL in text, which became a blank (mine.jsonl line 3, mine.jsonl line 6)" in told
    assert "1 x an exact copy of an earlier row, left out (mine.jsonl line 8)" in told
    assert "6 x a path that is neither an image nor audio by its suffix" in told
