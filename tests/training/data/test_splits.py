"""Which rows stay in one split: by input and target together, by pairs, or by the user's groups."""

import json
from collections import Counter
from pathlib import Path
from typing import Any

import pytest

from kauli.training.data.dataset import Dataset, load_data
from kauli.training.data.options import DataOptions


@pytest.fixture(autouse=True)
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("KAULI_HOME", str(tmp_path / "home"))


def load(tmp_path: Path, rows: list[dict[str, Any]], leaks: Any = "content") -> Dataset:
    for row in rows:
        if "image" in row:
            (tmp_path / row["image"]).write_bytes(row["image"].encode())
    path = tmp_path / "mine.jsonl"
    path.write_text("\n".join(json.dumps({"language": "sw", **row}) for row in rows))
    return load_data(str(path), None, DataOptions(leaks=leaks))


def splits(dataset: Dataset) -> list[int]:
    counts = Counter(row["split"] for row in dataset.rows())
    return [counts[split] for split in ("train", "validation", "test")]


def num_groups(dataset: Dataset) -> int:
    return len({row["group"] for row in dataset.rows()})


SPLITS = ["train"] * 24 + ["validation"] * 3 + ["test"] * 3
ANSWERS = [
    ["Ndiyo", "Hapana"],
    ["chanya", "hasi", "wastani"],
    ["Ndiyo, nakubaliana nawe kabisa", "Hapana, sikubaliani nawe kamwe"],
]


@pytest.mark.parametrize("answers", ANSWERS, ids=["yes", "sentiment", "sentences"])
def test_questions_with_a_few_answers_keep_their_splits(tmp_path: Path, answers: list[str]) -> None:
    rows = [{"prompt": f"Je, {one}?", "text": answers[one % len(answers)], "split": SPLITS[one]} for one in range(30)]
    rows[5]["text"] = rows[29]["text"] = "Labda"  # a rare answer is an answer, too
    assert splits(load(tmp_path, rows)) == [24, 3, 3]
    for row in rows:
        del row["split"]
    assert num_groups(load(tmp_path, rows)) == 30


def test_the_same_question_in_two_splits_is_a_leak(tmp_path: Path) -> None:
    rows = [{"prompt": f"Je, {one}?", "text": "Ndiyo", "split": SPLITS[one]} for one in range(30)]
    rows[4] |= {"prompt": "je 29!", "text": "Hapana"}
    assert splits(load(tmp_path, rows)) == [23, 3, 3]
    assert splits(load(tmp_path, rows, "pair")) == [24, 3, 3]
    rows[4]["text"] = "ndiyo."
    assert splits(load(tmp_path, rows, "pair")) == [23, 3, 3]
    assert splits(load(tmp_path, rows, "group")) == [24, 3, 3]


def test_a_sentence_is_content_whatever_it_answers(tmp_path: Path) -> None:
    rows = [{"prompt": f"Sema {one}", "text": f"Sentensi ya namba {one} ndiyo hii hapa"} for one in range(20)]
    rows[3]["text"] = rows[4]["text"] = rows[5]["text"]
    assert num_groups(load(tmp_path, rows)) == 18
    assert num_groups(load(tmp_path, rows, "pair")) == 20


def test_images_of_a_concept_stay_together_and_those_of_a_class_do_not(tmp_path: Path) -> None:
    captions = [{"image": f"{one}.png", "text": f"picha {'abcdefghijklmnop'[one // 2]}"} for one in range(30)]
    assert num_groups(load(tmp_path, captions)) == 15
    classes = [{"image": f"{one}.png", "text": f"aina {'abcdef'[one // 5]}"} for one in range(30)]  # five of each
    assert num_groups(load(tmp_path, classes)) == 30


def test_texts_alone_are_content(tmp_path: Path) -> None:
    rows = [{"id": one, "text": "Ndiyo" if one % 2 else f"Neno {one}"} for one in range(30)]
    assert num_groups(load(tmp_path, rows)) == 16


def test_groups_of_the_user(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    rows = [{"prompt": f"Swali {one // 2}", "text": f"Jibu {one}", "group": f"msemaji {one % 10}"} for one in range(30)]
    assert num_groups(load(tmp_path, rows, "group")) == 10
    assert num_groups(load(tmp_path, rows)) == 5
    assert num_groups(load(tmp_path, rows, "pair")) == 10
    capsys.readouterr()
    rows = [{"text": "Habari", "id": one, "split": SPLITS[one]} for one in range(30)]
    assert splits(load(tmp_path, rows)) == [0, 0, 3]
    told = capsys.readouterr().err
    assert "27 rows of train or validation share a text, image or audio" in told
    assert "--leaks pair" in told
    assert "mine.jsonl line" in told
