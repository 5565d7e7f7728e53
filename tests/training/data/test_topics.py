"""Labelled images: the table of topics, and rows in the split that the starter data gives them."""

import json
import unicodedata
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest

from kauli.models.bases.packages import Package, fetch_package
from kauli.models.errors import KauliError, UsageError
from kauli.models.languages import script_share
from kauli.training.data import starter, topics
from kauli.training.data.dataset import Dataset, load_data
from kauli.training.data.profile import leaks
from kauli.training.data.schema import SCHEMA, write_parquet
from kauli.training.data.starter import source_cards
from kauli.training.data.topics import topic_files, topic_languages, topic_names, topic_rows

Fetch = Callable[[Package], Path]
EMOJI = {  # file: (subcategory, short name)
    "1f418.png": ("animal-mammal", "elephant"),
    "1f43e.png": ("animal-mammal", "feet"),  # left out
    "1f354.png": ("food-prepared", "hamburger"),
    "2764.png": ("heart", "heart"),  # of no topic
}
STAMPS = ("animals/birds/duck.png", "plants/oak.png", "plants/mushrooms/cep.png", "animalsnot/x.png", "key.png")


def png(name: str) -> bytes:
    """Bytes that stand for an image; nothing here decodes them."""
    return b"\x89PNG" + name.encode()


def starter_row(name: str, split: str, **other: Any) -> dict[str, Any]:
    empty: dict[str, Any] = dict.fromkeys(SCHEMA.names)
    row = {"id": f"en-{name}-{split}", "group": f"g-{name}", "language": "en", "text": f"A {name}.", "split": split}
    return empty | row | {"image": png(name), "source": "cldr", "licence": "X", "synthetic": False} | other


@pytest.fixture
def packages(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Fetch:
    """Made-up packages, and English starter data that was "built" of them."""
    monkeypatch.setenv("KAULI_HOME", str(tmp_path / "home"))
    cards = source_cards()
    folders = {cards["cldr"].packages["pictures"].name: tmp_path / "emoji"}
    folders[cards["tuxpaint"].packages["stamps"].name] = tmp_path / "stamps"
    for name in EMOJI:
        path = tmp_path / "emoji/package/img/twitter/64" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(png(name))
    entries = [{"image": name, "subcategory": kind, "short_name": short} for name, (kind, short) in EMOJI.items()]
    (tmp_path / "emoji/package/emoji.json").write_text(json.dumps(entries))
    for name in STAMPS:
        path = tmp_path / "stamps/usr/share/tuxpaint/stamps" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(png(name))

    def fetch(package: Package) -> Path:
        return folders[package.name]

    rows = [
        starter_row("1f418.png", "test"),
        starter_row("1f43e.png", "train"),
        starter_row("1f354.png", "train"),
        starter_row("1f354.png", "train", id="again", text="Another caption."),
        starter_row("2764.png", "train"),
        starter_row("animals/birds/duck.png", "validation", source="tuxpaint", audio=b"Ogg", flags="audio_too_fast"),
        starter_row("plants/oak.png", "train", source="tuxpaint"),
        starter_row("plants/mushrooms/cep.png", "train", source="tuxpaint"),
        starter_row("animalsnot/x.png", "train", source="tuxpaint"),
        starter_row("no image", "train", image=None, source="udhr"),
    ]
    write_starter(rows)
    monkeypatch.setattr(starter, "ready", lambda languages, folder, full: (folder / "en.parquet").is_file())
    monkeypatch.setattr(starter, "build", lambda languages, full: pytest.fail("built though it is there"))
    monkeypatch.setattr(topics, "topic_rows", lambda language: topic_rows(language, fetch=fetch))
    return fetch


def write_starter(rows: list[dict[str, Any]], stamp: str = "{}") -> None:
    write_parquet(rows, starter.starter_folder() / "en.parquet", {starter.STAMP: stamp.encode()})


def test_rows_are_the_starters_with_the_topic_as_text(packages: Fetch) -> None:
    rows = topic_rows("sw", fetch=packages)
    assert [(row["text"], row["split"], row["group"], row["source"]) for row in rows] == [
        ("mnyama", "test", "g-1f418.png", "cldr"),
        ("chakula", "train", "g-1f354.png", "cldr"),
        ("mnyama", "validation", "g-animals/birds/duck.png", "tuxpaint"),
        ("mmea", "train", "g-plants/oak.png", "tuxpaint"),
    ]
    assert all(tuple(row) == tuple(SCHEMA.names) for row in rows)
    assert {(row["language"], row["prompt"], row["audio"], row["flags"], row["licence"]) for row in rows} == {
        ("sw", None, None, None, "X")
    }
    assert rows[0]["image"] == png("1f418.png")
    assert [row["text"] for row in topic_rows("am", fetch=packages) if row["split"] == "test"] == ["እንስሳ"]
    assert len({row["id"] for language in ("sw", "am") for row in topic_rows(language, fetch=packages)}) == 8


def test_load_data_gives_a_data_set(packages: Fetch) -> None:
    dataset = load_data("starter-topics", ["swh", "be"])
    assert isinstance(dataset, Dataset)
    assert dataset.languages == ("sw", "be")
    assert Counter(row["text"] for row in dataset.rows("train")) == {"chakula": 1, "mmea": 1, "ежа": 1, "расліна": 1}
    assert dataset.rows("test", languages=["be"], columns=["text", "image"]) == [
        {"text": "жывёла", "image": png("1f418.png")}
    ]
    assert load_data("starter-topics").languages == topic_languages()


def test_files_are_made_again_only_when_the_starter_data_differs(
    packages: Fetch, monkeypatch: pytest.MonkeyPatch
) -> None:
    (path,), _ = topic_files(["ky"])
    assert pq.read_table(path).num_rows == 4
    real = topics.topic_rows
    monkeypatch.setattr(topics, "topic_rows", lambda language: pytest.fail("made again"))
    topic_files(["ky"])
    monkeypatch.setattr(topics, "topic_rows", real)
    write_starter([starter_row("1f354.png", "test")], '{"build": "other"}')
    topic_files(["ky"])
    assert pq.read_table(path, columns=["text", "split"]).to_pylist() == [{"text": "тамак", "split": "test"}]


def test_a_language_without_names_is_refused_before_any_work(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("KAULI_HOME", str(tmp_path))
    for call in (topic_names, topic_rows, lambda language: topic_files(["sw", language])):
        with pytest.raises(UsageError, match=r"no names in Georgian \(ka\): it has en, sw, am, be, ky"):
            call("ka")
    assert not list(tmp_path.iterdir())


def test_starter_data_without_images_is_an_error(packages: Fetch) -> None:
    write_starter([starter_row("no image", "train", image=None, source="udhr")])
    with pytest.raises(KauliError, match="the starter data has no images"):
        topic_rows("sw", fetch=packages)


def test_every_topic_has_one_name_of_its_own_in_every_language() -> None:
    for topic in topics.topics().values():
        assert tuple(topic.names) == topic_languages()
    for language in topic_languages():
        names = topic_names(language)
        assert len(set(names)) == len(names) == 11
        assert all(script_share(name, language) == 1 and unicodedata.is_normalized("NFC", name) for name in names)


def test_nothing_in_the_table_belongs_to_two_topics() -> None:
    for column in ("stamps", "emoji"):
        listed = [place for topic in topics.topics().values() for place in getattr(topic, column)]
        assert len(set(listed)) == len(listed)


@pytest.mark.weights
def test_the_table_names_what_the_packages_hold() -> None:
    cards = source_cards()
    stamps = fetch_package(cards["tuxpaint"].packages["stamps"]) / "usr/share/tuxpaint/stamps"
    emoji = json.loads((fetch_package(cards["cldr"].packages["pictures"]) / "package/emoji.json").read_text())
    for topic in topics.topics().values():
        assert set(topic.emoji) <= {entry["subcategory"] for entry in emoji}
        names = {entry["short_name"] for entry in emoji if entry["subcategory"] in topic.emoji}
        assert {name for name in topic.without if "/" not in name} <= names
        assert all((stamps / place).exists() for place in (*topic.stamps, *topic.without) if "/" in place)
        assert all(any((stamps / place).rglob("*.png")) for place in topic.stamps if not place.endswith(".png"))


@pytest.mark.weights
@pytest.mark.timeout(600)
def test_the_real_images_fill_every_topic_and_keep_their_sides() -> None:
    dataset = load_data("starter-topics", ["be", "am"])
    assert not any(leaks(dataset).values())
    rows = dataset.rows(languages=["be"], columns=SCHEMA.names)
    counts = Counter((row["text"], row["split"]) for row in rows)
    for name in topic_names("be"):
        assert counts[name, "train"] >= 50
        assert counts[name, "test"] >= 7
    english = load_data("starter", ["en"]).rows(columns=["group", "split", "image"])
    sides = {row["image"]: (row["group"], row["split"]) for row in english if row["image"]}
    assert all(sides[row["image"]] == (row["group"], row["split"]) for row in rows)
    assert {row["source"] for row in rows} == {"cldr", "tuxpaint"}
