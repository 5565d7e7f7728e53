"""`kauli memory`: what is added, listed, exported, removed and refused, on a base of random weights."""

import csv
import io
import json
from pathlib import Path

import pytest
from translate.storage.tmx import tmxfile  # type: ignore[import-untyped]

from kauli.training.data.schema import SCHEMA, write_parquet
from kauli.training.data.starter import STAMP
from support.cli import fails, run
from support.memories import small_embedder


@pytest.fixture(autouse=True)
def store(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("KAULI_HOME", str(tmp_path / "home"))
    monkeypatch.setenv("KAULI_STORAGE", str(tmp_path / "store"))
    small_embedder(monkeypatch)
    return tmp_path


def add(*words: str) -> dict[str, object]:
    result = run("memory", "add", *words, "--json")
    assert result.exit_code == 0, result.output
    found: dict[str, object] = json.loads(result.stdout)
    return found


def listed(*words: str) -> list[dict[str, str]]:
    found: list[dict[str, str]] = json.loads(run("memory", "list", *words, "--json").stdout)
    return found


def test_a_pair_is_added_listed_exported_and_removed(store: Path) -> None:
    assert listed() == []
    pair = ("main", "--pair", "Open <b>%s</b> & save", "ክፈት <b>%s</b>", "--from", "en", "--to", "am-ET")
    assert add(*pair) == {"memory": "main", "added": 1, "left_out": 0, "total": 1}
    assert add(*pair)["added"] == 0
    add("main", "--pair", "file", "ፋይል", "--from", "en", "--to", "am", "--glossary")
    assert listed() == [{"memory": "main", "pairs": 1, "terms": 1, "languages": ["en-am"]}]
    assert [row["source"] for row in listed("main", "--glossary")] == ["file"]
    assert [row["target_language"] for row in listed("main", "--containing", "SAVE")] == ["am"]
    for name in ("out.tmx", "out.csv", "out.jsonl"):
        assert run("memory", "export", "main", "--out", str(store / name)).exit_code == 0
    units = tmxfile.parsestring((store / "out.tmx").read_bytes()).units
    assert [(unit.source, unit.target) for unit in units] == [
        ("Open <b>%s</b> & save", "ክፈት <b>%s</b>"), ("file", "ፋይል"),
    ]  # fmt: skip
    lines = [json.loads(line) for line in (store / "out.jsonl").read_text(encoding="utf-8").splitlines()]
    rows = list(csv.DictReader(io.StringIO((store / "out.csv").read_text(encoding="utf-8"))))
    assert lines == listed("main") == rows
    result = run("memory", "remove", "main", listed("main")[0]["id"])
    assert (result.exit_code, result.stdout) == (0, "main: 1 removed\n")
    assert [row["source"] for row in listed("main")] == ["file"]
    assert run("memory", "remove", "main", "--all").exit_code == 0
    assert listed() == []


def test_of_a_data_set_the_training_rows_with_a_translation_are_taken(store: Path) -> None:
    empty = dict.fromkeys(SCHEMA.names)
    rows = [
        {**empty, "id": str(at), "group": str(at), "language": "am", "text": f"ቁጥር {at}", "synthetic": False,
         "input": None if at == 1 else f"number {at}", "input_language": "en", "split": "test" if at == 0 else "train"}
        for at in range(5)
    ]  # fmt: skip
    write_parquet(rows, store / "data" / "am.parquet", {STAMP: b'{"build": "of a test"}'})
    assert add("main", str(store / "data"), "--to", "am") == {"memory": "main", "added": 3, "left_out": 1, "total": 3}
    assert [row["source"] for row in listed("main")] == ["number 2", "number 3", "number 4"]


PO = """msgid ""
msgstr ""
"Language: am\\n"
"Content-Type: text/plain; charset=UTF-8\\n"

msgid "Open %s"
msgstr "%s ክፈት"

#, fuzzy
msgid "Save"
msgstr "አስቀምጥ"

msgid "Close"
msgstr ""
"""


def test_of_a_document_the_confirmed_translations_are_taken(store: Path) -> None:
    (store / "gimp.po").write_text(PO, encoding="utf-8")
    (store / "terms.csv").write_text("Term,Amharic\nfile,ፋይል\nred car,ቀይ መኪና\n", encoding="utf-8")
    found = add("main", str(store / "gimp.po"), "--from", "en")
    assert found == {"memory": "main", "added": 1, "left_out": 2, "total": 1}
    add("main", str(store / "terms.csv"), "--columns", "Term,Amharic", "--from", "en", "--to", "am", "--glossary")
    assert [(row["source"], row["target"], row["kind"], row["origin"]) for row in listed("main")] == [
        ("Open %s", "%s ክፈት", "pair", "gimp.po"),
        ("file", "ፋይል", "term", "terms.csv"),
        ("red car", "ቀይ መኪና", "term", "terms.csv"),
    ]


@pytest.mark.parametrize(
    ("name", "text", "message", "words"),
    [
        ("gimp.po", PO, "does not say which language it is in: add --from TAG", ()),
        ("gimp.po", PO, "says that it is in 'am', and --to says 'sw'", ("--from", "en", "--to", "sw")),
        ("gimp.po", PO.replace("%s ክፈት", ""), "no confirmed translation, 3 drafts", ("--from", "en")),
        ("gimp.po", PO[: PO.index("%s ክፈት") + 2], "gimp.po", ("--from", "en")),
        ("gimp.doc", "x", "no document format has this suffix", ("--from", "en", "--to", "am")),
        (
            "terms.csv", "source,target\nfile,ፋይል\nFile,መዝገብ\n", "contradicts itself: 'File'",
            ("--from", "en", "--to", "am", "--glossary"),
        ),
        ("terms.csv", "source,target\na,b\n", "--columns a: give two", ("--columns", "a")),
    ],
)  # fmt: skip
def test_a_file_that_cannot_be_added_leaves_no_memory(
    store: Path, name: str, text: str, message: str, words: tuple[str, ...]
) -> None:
    (store / name).write_text(text, encoding="utf-8")
    fails(2, message, "memory", "add", "main", str(store / name), *words)
    assert listed() == []


@pytest.mark.parametrize(
    ("message", "words"),
    [
        ("give files, or one pair", ("add", "main")),
        ("add --from TAG --to TAG", ("add", "main", "--pair", "a", "b", "--to", "am")),
        ("pair 1 has no target", ("add", "main", "--pair", "a", " ", "--from", "en", "--to", "am")),
        ("unknown language 'amharik'", ("add", "main", "--pair", "a", "b", "--from", "en", "--to", "amharik")),
        ("no data at 'nothing.po'", ("add", "main", "nothing.po")),
        ("'Main' is no memory name", ("add", "Main", "--pair", "a", "b", "--from", "en", "--to", "am")),
        ("no memory 'maim'. Did you mean 'main'?", ("list", "maim")),
        ("no memory 'other'", ("remove", "other", "--all")),
        ("say what to remove", ("remove", "main")),
        ("'main' has no pair 12", ("remove", "main", "12")),
        ("ends in .tmx, .csv, .jsonl", ("export", "main", "--out", "main.po")),
        ("U+0008", ("export", "main", "--out", "main.tmx")),
    ],
)
def test_a_mistake_is_one_message_and_changes_nothing(store: Path, message: str, words: tuple[str, ...]) -> None:
    add("main", "--pair", "back\bspace", "x", "--from", "en", "--to", "am")
    (store / "main.tmx").write_text("an older export")
    words = tuple(str(store / word) if word.startswith("main.") else word for word in words)
    fails(2, message, "memory", *words)
    assert (store / "main.tmx").read_text() == "an older export"
    assert len(listed("main")) == 1
    assert [row["memory"] for row in listed()] == ["main"]


@pytest.mark.parametrize("name", ["out.tmx", "out.csv", "out.jsonl"])
def test_an_export_is_added_again_with_its_languages_and_kinds(store: Path, name: str) -> None:
    add("main", "--pair", "Open <b>%s</b>", "ክፈት <b>%s</b>", "--from", "en", "--to", "am")
    add("main", "--pair", "car", "gari", "--from", "en", "--to", "sw")
    add("main", "--pair", "file", "ፋይል", "--from", "en", "--to", "am", "--glossary")
    assert run("memory", "export", "main", "--out", str(store / name)).exit_code == 0
    assert add("again", str(store / name)) == {"memory": "again", "added": 3, "left_out": 0, "total": 3}
    kept = ("source", "target", "source_language", "target_language", "kind", "origin")
    assert [[row[key] for key in kept] for row in listed("again")] == [
        [row[key] for key in kept] for row in listed("main")
    ]
    assert add("swahili", str(store / name), "--to", "sw")["left_out"] == 2


def test_drafts_of_a_table_are_no_memory(store: Path) -> None:
    (store / "a.csv").write_text("en,am,kauli_state\ncar,መኪና,draft\nhouse,ቤት,\n", encoding="utf-8")
    found = add("main", str(store / "a.csv"), "--columns", "en,am", "--from", "en", "--to", "am")
    assert (found["added"], found["left_out"]) == (1, 1)


def test_of_a_text_with_several_translations_none_is_added(store: Path) -> None:
    opened = [f'msgctxt "{one}"\nmsgid "Open"\nmsgstr "{text}"\n\n' for one, text in (("a", "ክፈት"), ("b", "ክፍት"))]
    text = "".join(opened) + 'msgid "Car"\nmsgstr "መኪና"\n'
    (store / "a.po").write_text(text, encoding="utf-8")
    found = add("main", str(store / "a.po"), "--from", "en", "--to", "am")
    assert (found["added"], found["left_out"]) == (1, 2)
