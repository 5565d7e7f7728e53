"""Conversations become a row an answer."""

import json
from pathlib import Path
from typing import Any

import pytest

from kauli.models.errors import UsageError
from kauli.training.data.dataset import load_data
from kauli.training.data.options import DataOptions


@pytest.fixture(autouse=True)
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("KAULI_HOME", str(tmp_path / "home"))


def load(tmp_path: Path, *rows: Any) -> list[dict[str, Any]]:
    path = tmp_path / "mine.jsonl"
    filler = [{"prompt": f"p{one}", "text": f"filler {one}"} for one in "abcd"]
    path.write_text("\n".join(map(json.dumps, [*filler, *rows])))
    rows = load_data(str(path), None, DataOptions(language="sw")).rows()
    return sorted((row for row in rows if "filler" not in row["text"]), key=lambda row: len(row["prompt"] or ""))


def openai(*turns: str) -> dict[str, Any]:
    return {"messages": [{"role": turn.split(":")[0], "content": turn.split(":")[1]} for turn in turns]}


def sharegpt(*turns: str) -> dict[str, Any]:
    return {"conversations": [{"from": turn.split(":")[0], "value": turn.split(":")[1]} for turn in turns]}


@pytest.mark.parametrize(
    ("row", "expected"),
    [
        (openai("user:Habari?", "assistant:Nzuri."), [("Habari?", "Nzuri.")]),
        (sharegpt("human:Habari?", "gpt:Nzuri."), [("Habari?", "Nzuri.")]),
        (openai("system:Jibu.", "user:Habari?", "assistant:Nzuri."), [("Jibu.\n\nHabari?", "Nzuri.")]),
        (sharegpt("human:Habari?", "gpt:Nzuri.") | {"system": "Jibu."}, [("Jibu.\n\nHabari?", "Nzuri.")]),
        (
            openai("user:Habari?", "assistant:Nzuri.", "user:Na?", "assistant:Salama."),
            [("Habari?", "Nzuri."), ("Habari?\n\nNzuri.\n\nNa?", "Salama.")],
        ),
        (openai("assistant:Karibu."), [(None, "Karibu.")]),
        (openai("user:Saa?", "assistant:", "tool:9", "assistant:Saa tatu."), [("Saa?\n\n9", "Saa tatu.")]),
        (
            {"messages": [{"role": "user", "content": [{"type": "text", "text": "Habari?"}]},
                          {"role": "assistant", "content": "Nzuri."}]},
            [("Habari?", "Nzuri.")],
        ),
        (
            {"prompt": [{"role": "user", "content": "Habari?"}],
             "completion": [{"role": "assistant", "content": "Nzuri."}]},
            [("Habari?", "Nzuri.")],
        ),
        ({"prompt": [{"role": "user", "content": "Habari?"}], "completion": "Nzuri."}, [("Habari?", "Nzuri.")]),
    ],
)  # fmt: skip
def test_each_answer_is_a_row(tmp_path: Path, row: dict[str, Any], expected: list[tuple[str | None, str]]) -> None:
    assert [(row["prompt"], row["text"]) for row in load(tmp_path, row)] == expected


def test_a_conversation_is_a_group_and_its_ids_stay(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    turns = [f"{role}:{one}" for one in "abc" for role in ("user", "assistant")]
    rows = load(tmp_path, openai(*turns, "user:z") | {"id": 7}, openai("user:q", "assistant:r") | {"id": 8})
    assert {row["id"] for row in rows} == {"7-1", "7-2", "7-3", "8"}
    assert len({row["group"] for row in rows if row["id"] != "8"}) == 1
    assert len({row["group"] for row in rows}) == 2
    assert "1 x what a conversation has after its last answer (mine.jsonl line 5)" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("row", "message"),
    [
        (openai("user:Habari?"), "a conversation without an answer of the assistant"),
        (openai("narrator:Habari?"), "unknown role 'narrator' in a conversation"),
        ({"messages": ["Habari?"]}, "a message is str, not an object with role and content"),
        ({"messages": [{"role": "user", "content": [{"type": "image_url"}]}]}, "holds something else than text"),
        ({"messages": [{"role": "user", "content": 3}]}, "holds something else than text"),
    ],
)
def test_what_is_no_conversation_is_named(tmp_path: Path, row: dict[str, Any], message: str) -> None:
    with pytest.raises(UsageError, match=r"mine\.jsonl line 5: ") as caught:
        load(tmp_path, row)
    assert message in str(caught.value)
