"""`kauli data doctor` on files: what it prints, rows that an import leaves out, and how it refuses."""

import json
from pathlib import Path
from typing import Any

import pytest

from support.cli import fails, run

WORDS = ["moto", "maji", "mti", "jua", "mto", "bahari", "upepo", "mvua", "nyumba", "kiti", "mlango", "mkate"]


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The current folder; a home of its own."""
    monkeypatch.setenv("KAULI_HOME", str(tmp_path / "home"))
    monkeypatch.chdir(tmp_path)
    return tmp_path


def write(folder: Path, rows: list[dict[str, Any]], name: str = "mine.jsonl") -> str:
    (folder / name).write_text("\n".join(json.dumps(row, ensure_ascii=False) for row in rows), encoding="utf-8")
    return name


def sentences() -> list[dict[str, Any]]:
    """Forty rows with ids."""
    return [
        {"id": f"r{at}", "text": f"{WORDS[at % 12]} na {WORDS[(at * 5 + 1) % 12]} ni {WORDS[(at * 7 + at // 12) % 12]}"}
        for at in range(40)
    ]


def test_json_is_the_list_of_suspects_the_worst_first(folder: Path) -> None:
    rows = sentences()
    rows[11]["text"] = "мама мыла раму и окно"
    rows[23]["text"] = "CoraÃ§Ã£o na maji"
    result = run("data", "doctor", write(folder, rows), "--language", "sw", "--json")
    assert result.exit_code == 0, result.output
    found = json.loads(result.stdout)
    assert [one["id"] for one in found[:2]] == ["r11", "r23"]
    assert all(list(one) == ["id", "score", "reasons"] for one in found)
    assert all(0 <= one["score"] <= 1 and one["reasons"] for one in found)
    assert [one["score"] for one in found] == sorted((one["score"] for one in found), reverse=True)
    assert "100% of its letters are not Latin, the script of sw" in found[0]["reasons"]
    limited = run("data", "doctor", "mine.jsonl", "--language", "sw", "--json", "--limit", "1")
    assert json.loads(limited.stdout) == found[:1]


def test_the_text_names_the_place_and_the_reasons(folder: Path) -> None:
    rows = sentences()
    rows[11]["text"] = "мама мыла раму и окно"
    result = run("data", "doctor", write(folder, rows), "--language", "sw", "--limit", "1")
    assert result.exit_code == 0, result.output
    head, first, *reasons = result.stdout.splitlines()
    assert head.startswith("mine.jsonl: ")
    assert head.endswith("of 40 rows look suspicious")
    assert first.split()[1:] == ["r11", "(mine.jsonl", "line", "12)"]
    assert "        100% of its letters are not Latin, the script of sw" in reasons


def test_a_leak_between_splits_is_named(folder: Path) -> None:
    rows = [row | {"split": "test" if at % 5 == 0 else "train"} for at, row in enumerate(sentences())]
    rows[31]["text"] = rows[30]["text"]  # a training row with the text of a test row
    result = run("data", "doctor", write(folder, rows), "--language", "sw", "--json")
    assert result.exit_code == 0, result.output
    worst = json.loads(result.stdout)[0]
    assert worst["id"] == "r31"
    assert worst["reasons"][0] == "a leak between splits: it shares its text with r30 of test (1 such rows)"


def test_rows_without_splits_do_not_leak(folder: Path) -> None:
    rows = sentences()
    rows[31]["text"] = rows[30]["text"]
    result = run("data", "doctor", write(folder, rows), "--language", "sw", "--json")
    assert "leak" not in result.stdout
    assert any("repeating an earlier row" in reason for one in json.loads(result.stdout) for reason in one["reasons"])


def test_mistakes_of_the_user_are_one_clear_error(folder: Path) -> None:
    name = write(folder, sentences())
    few = write(folder, sentences()[:6], "few.jsonl")
    fails(2, "no data at 'nothing.jsonl'", "data", "doctor", "nothing.jsonl")
    fails(2, "unknown language 'swahilish'", "data", "doctor", name, "--language", "swahilish")
    fails(2, "few.jsonl has 6 rows in sw: at least 10 are needed", "data", "doctor", few, "--language", "sw")
    fails(2, "debug-text", "data", "doctor", name, "--language", "sw", "--base", "debug-text")
    fails(2, "kauli-tower", "data", "doctor", name, "--language", "sw", "--base", "kauli-towerz")
