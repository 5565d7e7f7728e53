"""The profile of a data set: counts by hand, what rows can teach, leaks as an import sees them, a readable page."""

import json
from pathlib import Path
from typing import Any

import pytest

from kauli.training.data.dataset import Dataset, load_data
from kauli.training.data.options import DataOptions
from kauli.training.data.profile import fertility, leaks, profile, render
from kauli.training.data.schema import SCHEMA, write_parquet
from kauli.training.data.training_command import missing, training_command


@pytest.fixture(autouse=True)
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("KAULI_HOME", str(tmp_path / "home"))
    monkeypatch.setenv("KAULI_STORAGE", str(tmp_path / "store"))


def letters(number: int) -> str:
    return "".join("abcdefghij"[int(digit)] for digit in str(number))


def sentences(count: int, language: str = "sw") -> list[dict[str, Any]]:
    return [
        {"language": language, "prompt": f"Sema {letters(index)}", "text": f"Neno {letters(index)} hapa."}
        for index in range(count)
    ]


def jsonl(path: Path, rows: list[dict[str, Any]]) -> str:
    path.write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows), encoding="utf-8")
    return str(path)


def stored(folder: Path, rows: list[dict[str, Any]], **options: Any) -> Dataset:
    empty: dict[str, Any] = dict.fromkeys(SCHEMA.names) | {"language": "sw", "synthetic": False}
    whole = [empty | {"id": str(at), "group": str(at)} | row for at, row in enumerate(rows)]
    write_parquet(whole, folder / "data.parquet")
    return Dataset("mine", [folder / "data.parquet"], ["sw"], DataOptions(**options))


def letter_tokens(text: str) -> list[str]:
    """A tokenizer of letters: a byte token for each byte of what is not ASCII."""
    return [piece for char in text for piece in ([char] if char.isascii() else [f"<0x{b:02X}>" for b in char.encode()])]


def test_fertility_of_a_known_text() -> None:
    plain = fertility(["abc de"], letter_tokens)
    assert (plain["tokens_per_word"], plain["bytes_per_token"], plain["single_byte_share"]) == (3.0, 1.0, 0.0)
    ethiopic = fertility(["ሰላም"], letter_tokens)
    assert (ethiopic["tokens_per_word"], ethiopic["single_byte_share"]) == (9.0, 1.0)
    assert "into single bytes" in ethiopic["advice"]


def test_the_profile_tells_what_the_data_hold(tmp_path: Path) -> None:
    rows = [
        *sentences(40),
        {"language": "am", "text": "ሰላም ዓለም", "licence": "CC0-1.0", "synthetic": True},
        {"language": "am", "text": "hello there", "flags": "odd"},
    ]
    rows[0]["source"] = "radio"
    rows[1]["text"] = rows[0]["text"]
    rows[1]["prompt"] = rows[0]["prompt"] + "!"
    rows[39]["text"] = "CoraÃ§Ã£o"
    result = profile(load_data(jsonl(tmp_path / "mine.jsonl", rows)), letter_tokens)
    assert result["rows"] == 42
    assert result["leaks"] == {"group": 0, "caption": 0, "image": 0, "audio": 0}
    swahili, amharic = result["languages"]["sw"], result["languages"]["am"]
    assert swahili["rows"] == sum(swahili["splits"].values()) == sum(swahili["uses"]["text"].values()) == 40
    assert swahili["duplicates"] == 1
    assert swahili["sources"] == {"unknown": 39, "radio": 1}
    assert swahili["lengths"]["max"] == len("Neno bb hapa.")
    assert sum(swahili["characters_by_split"].values()) == swahili["characters"]
    assert amharic["other_script_rows"] == 1
    assert amharic["synthetic"] == 1
    text = render(result)
    for words in ("leaks between splits: none", "am (Amharic): 2 rows", "CC0-1.0 1", "odd 1", "bytes per token"):
        assert words in text
    assert f"train      {swahili['splits']['train']:>11}" in text
    assert (
        "1 row with garbled letters: their UTF-8 was once read in another encoding, e.g. mine.jsonl line 40: " in text
    )
    assert "1 row repeating an earlier row, e.g. mine.jsonl line 2: 'Neno a hapa.', as mine.jsonl line 1" in text
    assert "1 row of am, mostly in another script than Ethiopic, e.g. mine.jsonl line 42: 'hello there'" in text
    json.dumps(result)


def test_examples_come_in_the_order_of_the_file(tmp_path: Path) -> None:
    rows = sentences(12)
    for at in (1, 8, 9, 10):
        rows[at]["text"] += "\tNeno &amp; neno"
    found = profile(load_data(jsonl(tmp_path / "mine.jsonl", rows)))["problems"]
    assert [one["place"] for one in found[0]["examples"]] == [f"mine.jsonl line {at}" for at in (2, 9, 10, 11)]


def test_leaks_are_counted(tmp_path: Path) -> None:
    row = {"image": b"1", "group": "g"}
    rows = [row | {"text": "Ndovu mkubwa sana anakunywa maji.", "split": "train"}]
    rows += [row | {"text": "ndovu mkubwa sana anakunywa maji", "split": "test"}]
    assert leaks(stored(tmp_path, rows)) == {"group": 1, "caption": 1, "image": 1, "audio": 0}
    assert leaks(stored(tmp_path, rows, leaks="pair")) == {"group": 1, "caption": 1, "image": 0, "audio": 0}
    assert leaks(stored(tmp_path, rows, leaks="group")) == {"group": 1, "caption": 0, "image": 0, "audio": 0}


def test_answers_and_classes_are_no_leaks(tmp_path: Path) -> None:
    sides = ("train", "test")
    asked = [
        {"prompt": f"Je, namba {at} ni shufwa?", "text": ("Ndiyo", "Hapana")[at % 2], "split": sides[at % 3 == 0]}
        for at in range(30)
    ]
    assert not any(leaks(stored(tmp_path, asked)).values())
    shown = [{"image": b"%d" % at, "text": "mnyama", "split": sides[at % 2]} for at in range(12)]
    assert not any(leaks(stored(tmp_path, shown)).values())
    assert leaks(stored(tmp_path, [*shown, {**shown[0], "split": "test"}]))["image"] == 1


def languages(**uses: dict[str, Any]) -> dict[str, Any]:
    """A profile's part that the command asks for: language -> use -> rows a split, or `classes`."""
    return {
        "languages": {
            tag.replace("_", "-"): {
                "classes": found.pop("classes", {}),
                "uses": {
                    use: {"train": max(0, rows - 2), "validation": rows > 1, "test": rows > 2}
                    for use, rows in found.items()
                },
            }
            for tag, found in uses.items()
        }
    }


@pytest.mark.parametrize(
    ("found", "command"),
    [
        ({"be": {"text": 50}}, "text-be --set data=d.csv --set language=be --set name=d-be"),
        ({"ka": {"text": 50}}, "text-sw --set data=d.csv --set language=ka --set name=d-ka"),
        ({"no": {"text": 50}}, """text-sw --set data=d.csv --set 'language="no"' --set name=d-no"""),
        ({"sw": {"text": 50}, "am": {"text": 60}, "ky": {"text": 2}},
         """text-am --set data=d.csv --set 'language=["am", "sw"]' --set name=d"""),
        ({"sw": {"text": 5, "image": 9}}, "describe-multi --set data=d.csv --set language=sw --set name=d-sw"),
        ({"sw": {"image": 9, "classes": {"a": 5, "b": 7}}, "am": {"image": 8}},
         "head-topics --set data=d.csv --set language=sw --set name=d-sw"),
        ({"sw": {"image": 9, "classes": {"a": 5, "b": 2}}},
         "head-topics --set data=d.csv --set method.shots=2 --set language=sw --set name=d-sw"),
        ({"sw": {"audio": 9}}, "transcribe-be --set data=d.csv --set language=sw --set name=d-sw"),
        ({"ky": {"audio": 9}}, "transcribe-ky --set data=d.csv --set language=ky --set name=d-ky"),
        ({"gn": {"audio": 9}},
         """transcribe-be --set data=d.csv --set 'transcribe.init_from_languages={"gn": ["es"]}' --set language=gn """
         "--set name=d-gn"),
    ],
)  # fmt: skip
def test_the_command_suits_what_most_rows_hold(found: dict[str, Any], command: str) -> None:
    assert training_command("d.csv", languages(**found), {}, None) == f"kauli train {command}"


def test_the_command_is_for_a_shell_and_for_yaml() -> None:
    result = languages(sw={"text": 50})
    options = {"map": "text=sentence,language=locale", "delimiter": ";", "encoding": "cp1252"}
    assert training_command("../my data: (v2)#.csv", result, options, "my store").split(" --set ") == [
        "kauli train text-sw",
        """'data="../my data: (v2)#.csv"'""",
        "language=sw",
        "name=my-data-v2-sw",
        "data_options.map=text=sentence,language=locale",
        """'data_options.delimiter=";"'""",
        "data_options.encoding=cp1252 --storage 'my store'",
    ]
    assert training_command("መረጃ.csv", result, {}, None).endswith("--set name=mine-sw")


@pytest.mark.parametrize(
    ("found", "told"),
    [
        ({"sw": {"text": 2}, "am": {}}, "sw has no text in train and test"),
        ({"sw": {"image": 1}}, "sw has no image that can be used, with a text, in train and validation and test"),
        ({"sw": {}}, "give the rows texts, or repair their files"),
    ],
)
def test_what_is_missing_is_told_where_nothing_can_be_trained(found: dict[str, Any], told: str) -> None:
    result = languages(**found)
    assert training_command("d.csv", result, {}, None) is None
    assert missing(result).startswith(told)


def test_the_name_in_the_command_is_free(tmp_path: Path) -> None:
    for name in ("d-sw", "d-sw-2"):
        version = tmp_path / "store/adapters" / name / "1"
        version.mkdir(parents=True)
        (version / "card.json").write_text("{}")
    assert str(training_command("d.csv", languages(sw={"text": 9}), {}, None)).endswith("name=d-sw-3")
    assert str(training_command("text.csv", languages(sw={"text": 9}), {}, None)).endswith(
        "name=text-sw-2"
    )  # a recipe's
