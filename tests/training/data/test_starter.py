"""The starter data: alignment, groups, splits; the real build leaks nothing."""

import gzip
import io
import json
import struct
from collections import defaultdict
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest
import soundfile

from kauli.models.bases.packages import Package, SourceUnavailable
from kauli.models.errors import KauliError, UsageError
from kauli.training.data.dataset import load_data, starter
from kauli.training.data.groups import media_key, normalise, udhr_splits
from kauli.training.data.profile import leaks
from kauli.training.data.starter import build, source_cards
from kauli.training.data.starter_images import audio_flag
from kauli.training.data.starter_text import Udhr, align, clean_interface_string, read_mo, tidy

Fetch = Callable[[Package], Path]
DIGITS = "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/"
EMOJI = [chr(0x1F400 + index) for index in range(64)]
CLIMBERS = {"\U0001f9d7": "person climbing", "\U0001f9d7\u200d\u2642\ufe0f": "man climbing"}
ARTISTS = {"\U0001f469\u200d\U0001f3a8": "woman artist", "\U0001f468\u200d\U0001f3a8": "man artist"}


def png(seed: int) -> bytes:
    """Bytes that stand for an image; nothing here decodes them."""
    return b"\x89PNG" + bytes([seed % 256, seed // 256]) * 8


@cache  # the encoder numbers its streams by chance, so two encodings of one sound differ
def clip(seconds: float, seed: int = 0) -> bytes:
    buffer = io.BytesIO()
    noise = np.random.default_rng(seed).normal(0, 0.1, int(8000 * seconds)).astype(np.float32)
    soundfile.write(buffer, noise, 8000, format="OGG", subtype="VORBIS")
    return buffer.getvalue()


def write(path: Path, content: str | bytes) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content.encode() if isinstance(content, str) else content)


def mo(pairs: dict[str, str]) -> bytes:
    keys = sorted(pairs)
    blobs = [[key.encode() for key in keys], [pairs[key].encode() for key in keys]]
    start = 28 + 16 * len(keys)
    tables, data = b"", b""
    for column in blobs:
        for blob in column:
            tables += struct.pack("<2I", len(blob), start + len(data))
            data += blob + b"\0"
    return struct.pack("<7I", 0x950412DE, 0, len(keys), 28, 28 + 8 * len(keys), 0, 0) + tables + data


def declaration(language: str, articles: dict[int, list[str]]) -> str:
    parts = []
    for number, paragraphs in articles.items():
        inner = "".join(f"<p>{text}</p>" for text in paragraphs)
        parts.append(f'<article data-number="{number}"><h2>{number}</h2>{inner}</article>')
    return f'<html lang="{language}"><body><h1>x</h1>{"".join(parts)}</body></html>'


def dictd(folder: Path, name: str, entries: dict[str, str]) -> None:
    def number(value: int) -> str:
        text = ""
        while value or not text:
            text, value = DIGITS[value % 64] + text, value // 64
        return text

    index, body = "", b""
    for word, entry in entries.items():
        index += f"{word}\t{number(len(body))}\t{number(len(entry.encode()))}\n"
        body += entry.encode()
    write(folder / f"usr/share/dictd/{name}.index", index)
    write(folder / f"usr/share/dictd/{name}.dict.dz", gzip.compress(body))


@pytest.fixture
def packages(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Made-up packages with the layout of the real ones; the home is empty."""
    monkeypatch.setenv("KAULI_HOME", str(tmp_path / "home"))
    root = tmp_path / "packages"
    udhr = root / "udhr/package"
    english = {number: [f"Everyone has the right number {number} of all."] for number in range(1, 31)}
    swahili = {number: [f"Kila mtu ana haki namba {number} ya wote."] for number in range(1, 31)}
    amharic = {number: [f"ሰው፡ሁሉ፡{number}፡መብት፡አለው።፡ነጻ፡ነው፡።"] for number in range(1, 31)}
    write(
        udhr / "index.js",
        "".join(
            f"{{\n    bcp47: '{tag}',\n    code: '{code}',\n  }},"
            for tag, code in [("en", "eng"), ("sw", "swh"), ("sw", "062"), ("am", "amh"), ("und", "013")]
        ),
    )
    for code, articles in [("eng", english), ("swh", swahili), ("062", {1: ["lahaja"]}), ("amh", amharic)]:
        write(udhr / f"declaration/{code}.html", declaration(code, articles))
    names = {
        "en": {char: f"animal {index}" for index, char in enumerate(EMOJI)},
        "sw": {char: f"mnyama {index}" for index, char in enumerate(EMOJI)} | {EMOJI[3]: "animal 3", EMOJI[4]: "↑↑↑"},
        "am": {char: f"እንስሳ {index}" for index, char in enumerate(EMOJI)},
    }
    for tag in names:
        names[tag] |= {char: f"{tag} {name}" for char, name in (CLIMBERS | ARTISTS).items()} if tag != "am" else {}
    for tag, entries in names.items():
        tts = {char: {"default": [name], "tts": [name]} for char, name in entries.items()}
        content = json.dumps({"annotations": {"annotations": tts}})
        write(root / f"cldr-annotations-full/package/annotations/{tag}/annotations.json", content)
    for index in range(len(EMOJI)):
        image = png(7 if index == 8 else index)  # 7 and 8 share an image
        write(root / f"emoji-datasource-twitter/package/img/twitter/64/{0x1F400 + index:x}.png", image)
    stamps = root / "tuxpaint-stamps-default/usr/share/tuxpaint/stamps/animals"
    for index in range(20):
        caption = f"Mnyama, {index}." if index % 2 else f"Picha ya {index}."
        write(stamps / f"stamp{index}.txt", f"An animal {index}.\nsw.utf8={caption}\nen_GB.utf8=no\nxx.utf8=no\n")
        write(stamps / f"stamp{index}.png", png(1000 + index))
        write(stamps / f"stamp{index}_desc_sw.ogg", clip(0.1 if index == 5 else 2.0, seed=index // 2))
    iso = root / "iso-codes/usr/share"
    write(
        iso / "iso-codes/json/iso_3166-1.json",
        json.dumps({"3166-1": [{"alpha_3": "AAA", "name": "Aland", "official_name": "Republic of Aland"}]}),
    )
    catalogue = {"": "Content-Type: text/plain", "Aland": "Alandi", "Same": "Same"}
    catalogue["Republic of Aland"] = "Jamhuri ya Alandi"
    write(iso / "locale/sw/LC_MESSAGES/iso_3166-1.mo", mo(catalogue))
    write(iso / "locale/am/LC_MESSAGES/iso_3166-1.mo", mo({"Aland": "ጐፄስ"}))  # the real one is broken
    letters = [first + second for first in "abcdefgh" for second in "klmno"]
    dictd(
        root / "dict-freedict-eng-swh",
        "freedict-eng-swh",
        {f"word{at}": f"word{at} /x/ <n>\n\nneno{at}, jina{at[-1]}\n" for at in letters},
    )
    dictd(
        root / "dict-freedict-swh-eng",
        "freedict-swh-eng",
        {
            "00databaseinfo": "about",
            "nenoak": "nenoak /n/ <n> (pl: {maneno})\n1.\nwordak\n2.\nto speak\n   See also: {sema}\n",
            "maneno": "maneno /m/ <n>\n\n Plural of {neno}: word\n",
            "hana": "hana /h/ <v, infl, agr: 1>\n\nhe has not\n",
        },
    )
    write(
        root / "libreoffice-l10n-am/usr/lib/libreoffice/am/LC_MESSAGES/sw.mo",
        mo(
            {
                "ctx|a\x04Enter the ~name of the file.": "የ ፋይሉን ስም ያስገቡ (~N)",
                "ctx|b\x04This text was never translated here": "This text was never translated here",
                "ctx|c\x04Delete the file %1 of that name": "የ ፋይል %1 ማጥፊያ",
                "ctx|d\x04Too short": "አጭር",
            }
        ),
    )
    return root


@pytest.fixture
def fetch(packages: Path) -> Fetch:
    return lambda package: packages / package.name


def read(folder: Path, language: str) -> list[dict[str, Any]]:
    rows: list[dict[str, Any]] = pq.read_table(folder / f"{language}.parquet").to_pylist()
    return rows


def assert_free_of_leaks(folder: Path, languages: list[str]) -> None:
    """No concept, image, audio clip or code point crosses a split in any language, no caption in its own."""
    sides: dict[str, set[str]] = defaultdict(set)
    for language in languages:
        for row in read(folder, language):
            keys = [row["group"], f"{language}:{normalise(row['text'])}"]
            keys += [media_key(kind, row[kind]) for kind in ("image", "audio") if row[kind]]
            if row["prompt"]:
                keys.append(f"prompt:{normalise(row['prompt'].split(': ', 1)[1])}")
            elif row["source"] != "udhr":
                keys.append(f"prompt:{normalise(row['text'])}")
            for key in keys:
                sides[key].add(row["split"])
    crossing = [key for key, splits in sides.items() if len(splits) > 1]
    assert sides
    assert not crossing


def test_build_reads_every_source(fetch: Fetch, tmp_path: Path) -> None:
    folder = build(["sw", "am"], tmp_path / "out", fetch=fetch)
    rows = read(folder, "sw")
    assert {row["source"] for row in rows} == {"udhr", "cldr", "tuxpaint", "iso-codes", "freedict"}
    assert {row["source"] for row in read(folder, "am")} == {"udhr", "cldr", "libreoffice"}
    assert {row["source"] for row in read(folder, "en")} == {"udhr", "cldr", "tuxpaint"}
    by_prompt = {row["prompt"]: row for row in rows}
    name = by_prompt["Translate into Swahili: animal 1"]
    assert (name["text"], name["licence"], name["synthetic"]) == ("mnyama 1", "Unicode-3.0 AND CC-BY-4.0", False)
    assert name["image"] == png(1)
    stamp = by_prompt["Translate into Swahili: An animal 5."]
    assert stamp["audio"]
    assert stamp["flags"] == "audio_too_fast"
    assert by_prompt["Translate into Swahili: speak"]["text"] == "nenoak"
    assert by_prompt["Translate into Swahili: Republic of Aland"]["text"] == "Jamhuri ya Alandi"
    assert all(row["prompt"] is None for row in read(folder, "en"))
    assert len({row["id"] for row in rows}) == len(rows)


def test_what_is_not_in_the_language_is_left_out(fetch: Fetch, tmp_path: Path) -> None:
    folder = build(["sw", "am"], tmp_path / "out", fetch=fetch)
    swahili = {row["text"] for row in read(folder, "sw")}
    assert not swahili & {"animal 3", "↑↑↑", "Same", "maneno", "hana", "lahaja", "no"}
    amharic = [row["text"] for row in read(folder, "am") if row["source"] == "libreoffice"]
    assert amharic == ["የ ፋይሉን ስም ያስገቡ"]


def test_ethiopic_word_spaces_become_spaces(fetch: Fetch, tmp_path: Path) -> None:
    rows = read(build(["am"], tmp_path / "out", fetch=fetch), "am")
    texts = [row["text"] for row in rows if row["source"] == "udhr"]
    assert len(texts) == 30
    assert texts[0] == "ሰው ሁሉ 1 መብት አለው። ነጻ ነው።"


def test_groups_and_splits(fetch: Fetch, tmp_path: Path) -> None:
    folder = build(["sw", "am"], tmp_path / "out", fetch=fetch)
    assert_free_of_leaks(folder, ["sw", "am", "en"])
    group = {row["prompt"]: row["group"] for row in read(folder, "sw")}
    # "An animal 5." of a stamp is the emoji's "animal 5"; two stamps share a clip; two emoji share an image
    assert group["Translate into Swahili: An animal 5."] == group["Translate into Swahili: animal 5"]
    assert group["Translate into Swahili: animal 9"] == group["Translate into Swahili: animal 8"]
    assert group["Translate into Swahili: animal 7"] == group["Translate into Swahili: animal 8"]
    assert group["Translate into Swahili: Aland"] == group["Translate into Swahili: Republic of Aland"]
    # those who differ in nothing but being a man or a woman are one concept
    by_text = {row["text"]: row["group"] for row in read(folder, "sw")}
    for people in (CLIMBERS, ARTISTS):
        assert len({by_text[f"sw {name}"] for name in people.values()}) == 1
    splits = {row["split"] for row in read(folder, "sw")}
    assert splits == {"train", "validation", "test"}


def test_building_another_language_moves_nothing(fetch: Fetch, tmp_path: Path) -> None:
    alone = build(["sw"], tmp_path / "alone", fetch=fetch)
    with_more = build(["am", "sw"], tmp_path / "more", fetch=fetch)
    for language in ("sw", "en"):
        one, other = (folder / f"{language}.parquet" for folder in (alone, with_more))
        assert one.read_bytes() == other.read_bytes()


def test_a_source_out_of_reach_is_left_out_with_a_note(
    fetch: Fetch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    def partly(package: Package) -> Path:
        if package.name in ("tuxpaint-stamps-default", "emoji-datasource-twitter"):
            raise SourceUnavailable(f"{package} could not be downloaded; put the file in downloads.")
        return fetch(package)

    folder = build(["sw"], tmp_path / "out", fetch=partly)
    assert {row["source"] for row in read(folder, "sw")} == {"udhr", "iso-codes", "freedict"}
    assert "left out: tuxpaint-stamps-default" in capsys.readouterr().err
    again = build(["sw"], tmp_path / "out", fetch=fetch)  # the source is back
    assert "tuxpaint" in {row["source"] for row in read(again, "sw")}


def test_nothing_in_reach_is_an_error_and_writes_nothing(tmp_path: Path, packages: Path) -> None:
    def nothing(package: Package) -> Path:
        raise SourceUnavailable(f"{package} could not be downloaded.")

    with pytest.raises(KauliError, match="none of the starter data's packages"):
        build(["sw"], tmp_path / "out", fetch=nothing)
    assert not (tmp_path / "out").exists()


def test_a_language_without_data_is_an_error_and_writes_nothing(fetch: Fetch, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=r"no source has data in tlh \(Klingon\)"):
        build(["sw", "tlh"], tmp_path / "out", fetch=fetch)
    with pytest.raises(UsageError, match="Did you mean 'sw'"):
        build(["sw-UG"], tmp_path / "out", fetch=fetch)
    with pytest.raises(UsageError, match="unknown language 'xx'"):
        build(["xx"], tmp_path / "out", fetch=fetch)
    assert not (tmp_path / "out").exists()


def test_languages_name_their_sources(fetch: Fetch, packages: Path) -> None:
    available = starter._languages_of(starter._fetch_all([], starter.SOURCES, fetch))
    assert available["sw"] == ["udhr", "cldr", "tuxpaint", "iso-codes", "freedict"]
    assert available["am"] == ["udhr", "cldr", "iso-codes", "libreoffice"]
    assert "und" not in available


def test_load_data_builds_what_is_missing(fetch: Fetch, monkeypatch: pytest.MonkeyPatch) -> None:
    real = starter.build
    monkeypatch.setattr(starter, "build", lambda languages, full: real(languages, full=full, fetch=fetch))
    dataset = load_data("starter", ["swh"])
    assert dataset.languages == ("sw",)
    assert {row["language"] for row in dataset.rows()} == {"sw"}
    assert {row["language"] for row in dataset.rows("test", languages=["en"])} == {"en"}
    assert not any(leaks(dataset).values())
    monkeypatch.setattr(starter, "build", lambda languages, full: pytest.fail("built again"))
    assert load_data("starter", ["sw"]).sha256 == dataset.sha256
    assert (
        load_data(str(dataset.reference.paths[0].parent), ["sw"]).sha256 == dataset.sha256
    )  # as after `data build --out`


def test_paragraphs_are_aligned_by_length() -> None:
    english = ["a" * 300, "b" * 340, "c" * 100]
    assert align(english, ["x" * 310, "y" * 330, "z" * 90], 1.0) == [
        ("a" * 300, "x" * 310),
        ("b" * 340, "y" * 330),
        ("c" * 100, "z" * 90),
    ]
    # one is missing; two are one; one is here by mistake
    assert align(english, ["x" * 310, "y" * 330], 1.0) == [("a" * 300, "x" * 310), ("b" * 340, "y" * 330)]
    assert align(english[:2], ["x" * 640], 1.0) == [("a" * 300 + " " + "b" * 340, "x" * 640)]
    assert align(english[:2], ["x" * 310, "y" * 330, "z" * 90], 1.0) == [("a" * 300, "x" * 310), ("b" * 340, "y" * 330)]
    # as many, but one of quite another length says something else
    assert align(english, ["x" * 310, "y" * 330, "z" * 400], 1.0) == [("a" * 300, "x" * 310), ("b" * 340, "y" * 330)]
    assert align([], ["x"], 1.0) == []


def test_the_dialect_of_digits_comes_after_the_language(packages: Path) -> None:
    pairs = list(Udhr().pairs("sw", {"texts": packages / "udhr"}))
    assert len(pairs) == 30
    assert pairs[0].text == "Kila mtu ana haki namba 1 ya wote."


@pytest.mark.parametrize(
    ("raw", "clean"),
    [
        ("~File name of it", "File name of it"),
        ("የ ፋይል (~F)", "የ ፋይል"),
        ("Save _as a copy", "Save as a copy"),
        ("Page %1 of %2", None),
        ("Open $(ARG1) now", None),
        ("<b>Bold</b> text", None),
        ("See https://example.org", None),
        ("Loading...", None),
        ("", None),
    ],
)
def test_interface_strings_are_cleaned_or_refused(raw: str, clean: str | None) -> None:
    assert clean_interface_string(raw) == clean


def test_damaged_catalogues_are_named(tmp_path: Path) -> None:
    path = tmp_path / "bad.mo"
    path.write_bytes(b"nonsense")
    with pytest.raises(KauliError, match="not a gettext catalogue"):
        list(read_mo(path))
    path.write_bytes(mo({"a": "b"})[:30])
    with pytest.raises(KauliError, match="damaged"):
        list(read_mo(path))


def test_clips_that_cannot_hold_their_caption_are_marked() -> None:
    assert audio_flag("x" * 20, clip(1.0)) is None
    assert audio_flag("x" * 30, clip(1.0)) == "audio_too_fast"
    assert audio_flag("x", b"no sound") == "audio_unreadable"


def test_captions_are_compared_without_case_points_and_spaces() -> None:
    assert normalise("  Ndovu,  MKUBWA. ") == "ndovu mkubwa"
    assert normalise("ọ̀kan") != normalise("ọkan")  # tone marks tell words apart
    assert normalise("?!") == "?!"
    assert tidy("a\u00a0 b\n") == "a b"


def test_udhr_articles_are_split_by_rank() -> None:
    splits = list(udhr_splits().values())
    assert [splits.count(name) for name in ("test", "validation", "train")] == [6, 3, 22]


def test_every_pin_is_whole() -> None:
    for card in source_cards().values():
        packages = [*card.packages.values(), *(own for group in card.by_language.values() for own in group.values())]
        assert packages
        assert all(len(package.sha256) == 64 for package in packages)
        assert card.licence
    assert list(source_cards()) == list(starter.FULL_SOURCES)


def test_the_full_data_are_pairs_of_texts(fetch: Fetch, tmp_path: Path) -> None:
    folder = build(["am"], tmp_path / "full", full=True, fetch=fetch)
    assert starter.ready(["am"], folder, full=True)
    assert not starter.ready(["am"], folder)
    less, rows = read(build(["am"], tmp_path / "out", fetch=fetch), "am"), read(folder, "am")
    assert [sum(row["source"] == "libreoffice" for row in one) for one in (less, rows)] == [1, 3]
    for row in rows:
        assert (row["image"], row["audio"]) == (None, None)
        assert (row["input_language"], row["prompt"]) == ("en", f"Translate into Amharic: {row['input']}")
    assert_free_of_leaks(folder, ["am", "en"])
    assert {row["input"] for row in read(folder, "en")} == {None}


@pytest.mark.weights
def test_nahuatl_and_otomi_come_with_their_spanish(tmp_path: Path) -> None:
    folder = build(["nci", "ote"], tmp_path / "full", full=True)
    rows = [*read(folder, "nci"), *read(folder, "ote")]
    assert {row["source"] for row in rows if row["input_language"] == "es"} == {"elotl"}
    counts = {tag: sum(row["language"] == tag and row["source"] == "elotl" for row in rows) for tag in ("nci", "ote")}
    assert counts["nci"] > 5000
    assert counts["ote"] > 3000
    assert "elotl" not in {row["source"] for row in read(build(["am"], tmp_path / "am"), "am")}
    with pytest.raises(UsageError, match="no source has data in nci"):
        build(["nci"], tmp_path / "out")


@pytest.mark.weights
@pytest.mark.timeout(600)
def test_the_real_starter_data_is_free_of_leaks(tmp_path: Path) -> None:
    languages = ["sw", "be", "am"]
    folder = build(languages, tmp_path / "out")
    assert_free_of_leaks(folder, [*languages, "en"])
    rows = {language: read(folder, language) for language in [*languages, "en"]}
    found = {language: {row["source"] for row in members} for language, members in rows.items()}
    assert found["sw"] == {"udhr", "cldr", "tuxpaint", "iso-codes", "freedict"}
    assert found["be"] == {"udhr", "cldr", "tuxpaint", "iso-codes", "libreoffice"}
    assert found["en"] == {"udhr", "cldr", "tuxpaint"}
    counts = {language: len(members) for language, members in rows.items()}
    assert counts["sw"] > 4000
    assert counts["be"] > 9000
    assert counts["am"] > 5000
    clips = [row for row in rows["be"] if row["audio"]]
    assert len(clips) > 600
    articles = [row for row in rows["sw"] if row["source"] == "udhr"]
    assert len(articles) >= 55
    first = next(row for row in articles if "All human beings are born free" in row["prompt"])
    assert first["text"].startswith("Watu wote wamezaliwa huru")
    assert not any("\u1361" in row["text"] for row in rows["am"])
    splits = {(row["group"], row["split"]) for members in rows.values() for row in members}
    assert len(splits) == len({group for group, _split in splits})
    again = build(["sw"], tmp_path / "again")
    assert (again / "sw.parquet").read_bytes() == (folder / "sw.parquet").read_bytes()
