"""`kauli translate` on a base of random weights: texts, documents, going on after a kill, what is refused."""

import json
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from kauli.deploy.api import load
from kauli.deploy.cli.translate import Journal
from kauli.models.bases.find import find_base
from kauli.models.documents.document import DocumentOptions
from kauli.models.paths import kauli_home
from kauli.models.text.translation import Example
from kauli.serving.local import Local
from kauli.serving.translation import Draft
from support.cli import fails, run
from support.memories import small_embedder
from support.text_adapters import publish_translator

PO = """msgid ""
msgstr ""
"Content-Type: text/plain; charset=UTF-8\\n"

msgid "Open %s"
msgstr ""

msgid "Close the window of the house"
msgstr ""

#, fuzzy
msgid "A draft"
msgstr "ረቂቅ"

msgid "Kept"
msgstr "ሀ"
"""
ENGLISH = (
    "All human beings are born free and equal in dignity and rights. They are endowed with reason and conscience. "
)


@pytest.fixture(scope="module")
def adapters(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("store")
    publish_translator(folder, "translate-am", "am", find_base("debug"))
    return folder


@pytest.fixture(autouse=True)
def home(tmp_path: Path, adapters: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("KAULI_STORAGE", str(adapters))
    small_embedder(monkeypatch)
    (tmp_path / "app.po").write_text(PO)
    return tmp_path


def test_a_text() -> None:
    result = run("translate", "Open", "--to", "am", "--from", "en", "--json")
    assert result.exit_code == 0, result.output
    found = json.loads(result.stdout)
    assert (found["source"], found["target"]) == ("en", "am")
    assert found["mark"] in ("drafted", "red")
    plain = run("translate", "Open", "--to", "am", "--from", "en")
    assert plain.stdout.strip() == found["text"].strip()


def test_a_memory_counts_at_once(home: Path) -> None:
    pair = ("--from", "en", "--to", "am")
    assert run("memory", "add", "cli", "--pair", "Open %s", "%s ክፈት", *pair).exit_code == 0
    try:
        assert run("translate", "Open %s", *pair, "--memory", "cli").stdout == "%s ክፈት\n"
        with load("translate-am") as model:
            draft = model.translate("Open %s", to="am", source="en", memory=["cli"])
        assert (draft.text, draft.mark) == ("%s ክፈት", "exact")
    finally:
        run("memory", "remove", "cli", "--all")
    fails(2, "there is no memory 'cli'", "translate", "Open %s", *pair, "--memory", "cli")


def test_a_document_is_written_beside_its_own(home: Path) -> None:
    result = run("translate", str(home / "app.po"), "--to", "am", "--from", "en", "--json")
    assert result.exit_code == 0, result.output
    found = json.loads(result.stdout)
    out = home / "app.am.po"
    assert (found["document"], found["format"], found["kept"]) == (str(out), "po", 1)
    assert [one["source"] for one in found["segments"]] == ["Open %s", "Close the window of the house", "A draft"]
    assert sum(found["marks"].values()) == 3
    written = out.read_text()
    assert written.count("fuzzy") == 3
    assert written.endswith('msgid "Kept"\nmsgstr "ሀ"\n')
    assert (home / "app.po").read_text() == PO
    words = ("translate", str(home / "app.po"), "--to", "am", "--from", "en")
    fails(2, f"{out} exists already: name the file to write with --out", *words)


def test_only_missing_and_the_same_file(home: Path) -> None:
    po = home / "app.po"
    result = run("translate", str(po), "--to", "am", "--from", "en", "--only-missing", "--out", str(po), "--json")
    assert [one["source"] for one in json.loads(result.stdout)["segments"]] == [
        "Open %s", "Close the window of the house",
    ]  # fmt: skip
    assert '#, fuzzy\nmsgid "A draft"\nmsgstr "ረቂቅ"' in po.read_text()


def state(storage: Path, *memories: str) -> str:
    with Local(str(storage)) as local:
        return local.run(local.translator("translate", "en", "am", memories).state())


def test_what_was_drafted_before_a_correction_is_drafted_anew(home: Path, adapters: Path) -> None:
    pair = ("--from", "en", "--to", "am")
    states = []
    for target in ("ክፈት", "ይክፈቱ"):
        assert run("memory", "add", "changed", "--pair", "Open", target, *pair).exit_code == 0
        states.append(state(adapters, "changed"))
    run("memory", "remove", "changed", "--all")
    assert len({*states, state(adapters)}) == 3


def test_an_earlier_try_goes_on(home: Path, adapters: Path) -> None:
    options = f"None {DocumentOptions('en', 'am')}"
    with Journal([(home / "app.po").read_bytes(), state(adapters), options]) as journal:
        journal.add("1:", Draft("%s ተከፈተ", "drafted"))
    path = journal._path
    path.write_text(path.read_text() + '{"id": "2:", "te')  # the line that was being written
    with Journal([(home / "app.po").read_bytes(), state(adapters), options]) as journal:
        journal.add("3:", Draft("ክፈት", "fuzzy", (), 80.0, 1, similar=Example("Open it", "ክፈት")))
    result = run("translate", str(home / "app.po"), "--to", "am", "--from", "en", "--json")
    assert json.loads(result.stdout)["segments"][0]["text"] == "%s ተከፈተ"
    assert "Going on with an earlier try: 2 segments" in result.stderr
    assert not path.exists()


def test_a_killed_command_loses_nothing_and_leaves_no_half_of_a_file(home: Path) -> None:
    many = home / "many.txt"
    many.write_text("\n\n".join(f"Open the file number {n}" for n in range(150)))
    code = "from kauli.deploy.cli.main import main; main()"
    command = [sys.executable, "-c", code, "translate", str(many), "--to", "am", "--from", "en"]
    journals = kauli_home() / "translations"
    others = set(journals.glob("*.jsonl"))
    running = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    try:
        before, until = set[str](), time.monotonic() + 90
        while time.monotonic() < until and running.poll() is None:
            before = {line for one in {*journals.glob("*.jsonl")} - others
                      for line in one.read_text().splitlines(True)}  # fmt: skip
            if len(before) > 5:
                break
            time.sleep(0.05)
        running.send_signal(signal.SIGKILL)
    finally:
        running.wait()
    assert len(before) > 5
    assert not (home / "many.am.txt").exists()
    result = run("translate", str(many), "--to", "am", "--from", "en", "--json")
    assert "Going on with an earlier try" in result.stderr
    texts = {one["id"]: one["text"] for one in json.loads(result.stdout)["segments"]}
    kept = [json.loads(line) for line in before if line.endswith("}\n")]
    assert all(texts[one["id"]] == one["text"] for one in kept)
    assert (home / "many.am.txt").exists()


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["nothing.po", "--to", "am"], "there is no file nothing.po"),
        (["Open", "--to", "sw", "--from", "en"], "nothing translates 'en' to 'sw' here. Served: en to am"),
        (["Open", "--to", "no tag"], "no tag"),
        (["123", "--to", "am"], "the language of the text is not known: name it with --from"),
        (["app.po", "--to", "am", "--from", "en", "--format", "pp"], "unknown document format 'pp'"),
        (["app.po", "--to", "am", "--columns", "one"], "--columns one: name two"),
        (["wrong.po", "--to", "am", "--from", "en"], "wrong.po line 1: this is no line of a PO file"),
        (["french.po", "--to", "am", "--from", "en"], "says that its translations are in 'fr', not in 'am'"),
        (["english.txt", "--to", "en", "--from", "am"], "is in 'en', not in 'am', as far as its first"),
        (["empty.txt", "--to", "am", "--from", "en"], "has nothing to translate"),
        (["latin.txt", "--to", "am", "--from", "en"], "byte 0xe4 is no utf-8: name its encoding with --encoding"),
        (["bomb.xlf", "--to", "am", "--from", "en"], "it declares entities"),
        (["folder", "--to", "am", "--from", "en"], "folder is a folder: name one file"),
        (["folder/missing.docx", "--to", "am", "--from", "en"], "there is no file folder/missing.docx"),
        (["app.po", "--to", "am", "--from", "en", "--out", "folder"], "--out folder is a folder: name a file"),
        (["app.po", "--to", "am", "--from", "en", "--out", "no/a.po"], "--out no/a.po is in no folder that is there"),
    ],
)
def test_what_is_refused_in_one_line(
    home: Path, monkeypatch: pytest.MonkeyPatch, words: list[str], message: str
) -> None:
    monkeypatch.chdir(home)
    (home / "folder").mkdir()
    (home / "wrong.po").write_text("hello\n")
    (home / "french.po").write_text('msgid ""\nmsgstr "Language: fr\\n"\n\nmsgid "a"\nmsgstr ""\n')
    (home / "english.txt").write_text(ENGLISH * 3)
    (home / "empty.txt").write_text("\n")
    (home / "latin.txt").write_bytes("Käse".encode("cp1252"))
    (home / "bomb.xlf").write_text('<!DOCTYPE x [<!ENTITY a "b">]><xliff>&a;</xliff>')
    files = {one.name: one.read_bytes() for one in home.iterdir() if one.is_file()}
    fails(2, message, "translate", *words)
    assert {one.name: one.read_bytes() for one in home.iterdir() if one.is_file()} == files


def test_a_document_in_another_language_is_translated_where_it_is_asked_for(home: Path) -> None:
    (home / "english.txt").write_text(ENGLISH * 3)
    words = ("translate", str(home / "english.txt"), "--to", "en", "--from", "am")
    fails(2, "or --accept-language", *words)
    assert run(*words, "--accept-language").exit_code == 0


def test_stdin_that_is_no_text_is_refused() -> None:
    code = "from kauli.deploy.cli.main import main; main()"
    command = [sys.executable, "-c", code, "translate", "-", "--to", "am", "--from", "en"]
    done = subprocess.run(command, input="Käse".encode("cp1252"), capture_output=True, check=False)
    assert done.returncode == 2
    assert b"UTF-8" in done.stderr
    assert b"Traceback" not in done.stderr
