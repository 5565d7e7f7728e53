"""Documents as data: pairs that somebody confirmed, texts, and annotations as clips of their recording."""

import io
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import soundfile

from kauli.training.data.dataset import Dataset, load_data
from kauli.training.data.options import DataOptions
from support.cli import fails, run

RATE = 8000
PO = 'msgid ""\nmsgstr ""\n"Language: am\\n"\n"Content-Type: text/plain; charset=UTF-8\\n"\n'
XLIFF = '<xliff version="1.2"><file source-language="en" target-language="am" original="a" datatype="plaintext"><body>'
TMX = '<tmx version="1.4"><header srclang="en"/><body>'
EAF = (
    '<ANNOTATION_DOCUMENT><HEADER TIME_UNITS="milliseconds"><MEDIA_DESCRIPTOR MEDIA_URL="file:///C:/x/rec%20one.wav" '
    'MIME_TYPE="audio/x-wav" RELATIVE_MEDIA_URL="./rec%20one.wav"/></HEADER><TIME_ORDER>'
)
NUMBERS = range(12)


def source(at: int) -> str:
    return f"Open the file number {at}"


def target(at: int) -> str:
    return f"ፋይል ቁጥር {at} ክፈት"


def gettext() -> str:
    return PO + "".join(
        f'\n{"#, fuzzy" if at == 3 else "#"}\nmsgid "{source(at)}"\nmsgstr "{target(at) if at != 4 else ""}"\n'
        for at in NUMBERS
    )


def xliff() -> str:
    units = (
        f'<trans-unit id="{at}"><source>{source(at)}</source>'
        + (f'<target state="{"needs-translation" if at == 3 else "final"}">{target(at)}</target>' if at != 4 else "")
        + "</trans-unit>"
        for at in NUMBERS
    )
    return XLIFF + "".join(units) + "</body></file></xliff>"


def tmx() -> str:
    units = (
        f'<tu><tuv xml:lang="en"><seg>{source(at)}</seg></tuv><tuv xml:lang="am"><seg>{target(at)}</seg></tuv></tu>'
        for at in NUMBERS
        if at not in (3, 4)
    )
    return TMX + "".join(units) + "</body></tmx>"


def elan() -> str:
    """Times of 0.5 s, the words on a tier that refers to the one with times."""
    slots = "".join(f'<TIME_SLOT TIME_SLOT_ID="t{at}" TIME_VALUE="{at * 500}"/>' for at in range(13))
    timed = "".join(
        f'<ANNOTATION><ALIGNABLE_ANNOTATION ANNOTATION_ID="a{at}" TIME_SLOT_REF1="t{at}" TIME_SLOT_REF2="t{at + 1}">'
        "<ANNOTATION_VALUE></ANNOTATION_VALUE></ALIGNABLE_ANNOTATION></ANNOTATION>"
        for at in NUMBERS
    )
    words = "".join(
        f'<ANNOTATION><REF_ANNOTATION ANNOTATION_ID="b{at}" ANNOTATION_REF="a{at}">'
        f"<ANNOTATION_VALUE>{target(at)}</ANNOTATION_VALUE></REF_ANNOTATION></ANNOTATION>"
        for at in NUMBERS
    )
    tiers = f'<TIER TIER_ID="spans">{timed}</TIER><TIER TIER_ID="words" PARENT_REF="spans">{words}</TIER>'
    return f"{EAF}{slots}</TIME_ORDER>{tiers}</ANNOTATION_DOCUMENT>"


def textgrid() -> str:
    items = "".join(f'{at * 0.5}\n{at * 0.5 + 0.5}\n"{target(at)}"\n' for at in NUMBERS)
    return f'"ooTextFile"\n"TextGrid"\n0\n6\n<exists>\n1\n"IntervalTier"\n"words"\n0\n6\n12\n{items}'


def tones(path: Path, seconds: float = 6.0) -> None:
    """Each half second has a loudness of its own."""
    times = np.arange(int(RATE * seconds))
    loudness = (1 + times // (RATE // 2)) / 16
    soundfile.write(path, loudness * np.sin(times / 3), RATE)


def rows(dataset: Dataset, *columns: str) -> list[dict[str, Any]]:
    return dataset.rows(columns=columns)


@pytest.fixture(autouse=True)
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("KAULI_HOME", str(tmp_path / "home"))
    monkeypatch.chdir(tmp_path)


@pytest.mark.parametrize(("name", "make"), [("am.po", gettext), ("a.xlf", xliff), ("a.tmx", tmx)])
def test_confirmed_translations_are_pairs(name: str, make: Callable[[], str]) -> None:
    Path(name).write_text(make(), encoding="utf-8")
    found = rows(load_data(name, ["am"], DataOptions(input_language="en")), "input", "input_language", "text", "source")
    wanted = [(source(at), "en", target(at), name) for at in NUMBERS if at not in (3, 4)]
    assert sorted(tuple(row.values()) for row in found) == sorted(wanted)


@pytest.mark.parametrize(("name", "make"), [("rec one.eaf", elan), ("rec one.TextGrid", textgrid)])
def test_annotations_are_clips_of_their_recording(name: str, make: Callable[[], str]) -> None:
    Path(name).write_text(make(), encoding="utf-8")
    tones(Path("rec one.wav"))
    found = rows(load_data(name, ["am"]), "text", "audio")
    assert sorted(row["text"] for row in found) == sorted(map(target, NUMBERS))
    for row in found:
        samples, rate = soundfile.read(io.BytesIO(row["audio"]))
        at = next(at for at in NUMBERS if row["text"] == target(at))
        assert (len(samples), rate) == (RATE // 2, RATE)
        assert np.abs(samples).max() == pytest.approx((1 + at) / 16, abs=1e-3)


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("a.srt", "".join(f"{at + 1}\n00:00:{at:02},000 --> 00:00:{at:02},900\n{target(at)}\n\n" for at in NUMBERS)),
        ("a.sfm", "\\id MAT\n\\c 1\n\\p\n" + "".join(f"\\v {at + 1} {target(at)}\n" for at in NUMBERS)),
        ("a.md", "\n\n".join(map(target, NUMBERS))),
    ],
)
def test_texts_without_a_translation_are_texts(name: str, content: str) -> None:
    Path(name).write_text(content, encoding="utf-8")
    found = rows(load_data(name, ["am"]), "text", "input")
    assert sorted(row["text"] for row in found) == sorted(map(target, NUMBERS))
    assert {row["input"] for row in found} == {None}


def test_a_table_whose_input_has_a_language_by_option_holds_pairs() -> None:
    lines = ["English,Amharic", *(f"{source(at)},{target(at)}" for at in NUMBERS)]
    Path("pairs.csv").write_text("\n".join(lines), encoding="utf-8")
    options = DataOptions(map={"input": "English", "text": "Amharic"}, input_language="en")
    found = rows(load_data("pairs.csv", ["am"], options), "input", "input_language", "text")
    assert sorted(tuple(row.values()) for row in found) == sorted((source(at), "en", target(at)) for at in NUMBERS)


def test_spontaneous_speech_of_common_voice() -> None:
    Path("sps/audios").mkdir(parents=True)
    names = "client_id audio_id audio_file duration_ms prompt_id prompt transcription votes age language split"
    lines = ["\t".join(names.split())]
    for at in NUMBERS:
        tones(Path(f"sps/audios/{at}.wav"), 0.5 + at / 10)
        split = "train" if at < 8 else "dev" if at < 10 else "test"
        lines.append(f'c{at}\t{at}\t{at}.wav\t500\t{at}\tA question {at}?\tHe said "{target(at)}\t2\t\tam\t{split}')
    Path("sps/ss-corpus-am.tsv").write_text("\n".join(lines), encoding="utf-8")
    found = rows(load_data("sps", ["am"]), "text", "split", "audio")
    assert sorted(row["text"] for row in found) == sorted(f'He said "{target(at)}' for at in NUMBERS)
    assert sorted(row["split"] for row in found) == ["test"] * 2 + ["train"] * 8 + ["validation"] * 2
    assert all(row["audio"] for row in found)


def test_an_import_is_a_data_folder() -> None:
    Path("am.po").write_text(gettext(), encoding="utf-8")
    result = run("data", "import", "am.po", "--input-language", "en", "--json")
    assert result.exit_code == 0, result.stderr
    told = json.loads(result.stdout)
    assert (told["folder"], told["languages"], sum(told["rows"].values())) == ("am-data", ["am"], 10)
    there = rows(load_data("am-data", ["am"]), "id", "input", "text", "split", "group")
    direct = rows(load_data("am.po", ["am"], DataOptions(input_language="en")), "id", "input", "text", "split", "group")
    assert [{**row, "group": 0} for row in there] == [{**row, "group": 0} for row in direct]
    again = run("data", "import", "am.po", "--input-language", "en", "--out", "am-data")  # replaces it
    assert again.exit_code == 0, again.stderr
    Path("mine").mkdir()
    Path("mine/thesis.doc").write_text("x")
    fails(2, "mine exists and is no data folder", "data", "import", "am.po", "--input-language", "en", "--out", "mine")
    assert Path("mine/thesis.doc").read_text() == "x"


@pytest.mark.parametrize(
    ("name", "content", "words", "message"),
    [
        ("am.po", gettext(), [], "it does not say its input_language: add --input-language TAG"),
        ("am.po", gettext(), ["--input-language", "en", "--language", "sw"], "it says that its language is 'am'"),
        ("a.xlf", xliff()[:900], [], "a.xlf"),
        ("a.tmx", '<!DOCTYPE a [<!ENTITY b "c">]>' + tmx().replace("Open", "&b;"), ["--language", "am"], "a.tmx"),
        ("a.eaf", elan(), ["--language", "am"], "its recording is not beside it: put rec one.wav into"),
        ("a.eaf", elan(), ["--language", "am", "--tier", "wrods"], "Did you mean 'words'"),
        ("a.TextGrid", textgrid()[:200], ["--language", "am"], "cut off or broken"),
    ],
)
def test_bad_documents_are_one_error_and_nothing_is_written(
    name: str, content: str, words: list[str], message: str
) -> None:
    Path(name).write_text(content, encoding="utf-8")
    fails(2, message, "data", "import", name, *words)
    assert not list(Path().glob("*-data"))


@pytest.mark.parametrize(("content", "message"), [(b"RIFFnothing", "can't be read"), (None, "after the end of")])
def test_a_recording_that_is_none_or_too_short(content: bytes | None, message: str) -> None:
    Path("a.TextGrid").write_text(textgrid(), encoding="utf-8")
    if content is None:
        tones(Path("a.wav"), 2.0)
    else:
        Path("a.wav").write_bytes(content)
    fails(2, message, "data", "import", "a.TextGrid", "--language", "am")
