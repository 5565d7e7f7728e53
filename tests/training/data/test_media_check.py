"""Images and audio of a data set: opened once, counted, and what cannot be used is named."""

import io
import json
import sqlite3
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import soundfile
from PIL import Image

from kauli.models.errors import KauliError
from kauli.training.data import media_check
from kauli.training.data.dataset import Dataset, load_data
from kauli.training.data.media_check import FORMAT, MediaFacts, check_media, media_facts, media_faults
from kauli.training.data.profile import profile, render
from kauli.training.data.schema import SCHEMA, write_parquet


@pytest.fixture(autouse=True)
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("KAULI_HOME", str(tmp_path / "home"))
    return tmp_path / "home"


def picture(width: int, height: int, colour: int = 0, form: str = "PNG", **options: Any) -> bytes:
    out = io.BytesIO()
    Image.new("RGB", (width, height), (colour, 50, 200)).save(out, form, **options)
    return out.getvalue()


def animated() -> bytes:
    frames = [Image.new("RGB", (8, 8), colour) for colour in ("red", "blue")]
    out = io.BytesIO()
    frames[0].save(out, "GIF", save_all=True, append_images=frames[1:])
    return out.getvalue()


def clip(seconds: float, height: float = 0.3, rate: int = 16_000, channels: int = 1, form: str = "WAV") -> bytes:
    wave = height * np.sin(2 * np.pi * 440 * np.arange(int(seconds * rate)) / rate)
    out = io.BytesIO()
    soundfile.write(out, np.stack([wave] * channels, 1), rate, format=form)
    return out.getvalue()


def stored(folder: Path, rows: Sequence[Mapping[str, Any]]) -> Dataset:
    empty: dict[str, Any] = dict.fromkeys(SCHEMA.names) | {"synthetic": False, "language": "sw", "split": "train"}
    write_parquet(
        [empty | {"id": f"r{at}", "group": f"g{at}", "text": f"neno {at}"} | dict(row) for at, row in enumerate(rows)],
        folder / "data.parquet",
    )
    return Dataset("mine", [folder / "data.parquet"], sorted({row.get("language", "sw") for row in rows}))


def test_what_images_are_and_which_cannot_be_used(tmp_path: Path) -> None:
    turned = Image.Exif()
    turned[274] = 6
    dataset = stored(
        tmp_path,
        [
            {"image": picture(20, 10)},
            {"image": picture(20, 30, form="JPEG", exif=turned), "split": "test"},
            {"image": picture(40, 40)},
            {"image": animated()},
            {"image": picture(20, 10)},
            {"text": "bila picha"},
            {"image": b"<html>", "language": "am", "text": "ሰላም"},
        ],
    )
    facts = media_facts(dataset, "image")
    assert [(one.width, one.height) for one in facts.values()] == [
        (20, 10), (30, 20), (40, 40), (None, None), (20, 10), (None, None),
    ]  # fmt: skip
    faults = media_faults(dataset, "image")
    assert list(faults) == ["r3", "r6"]
    assert "animated (2 frames)" in faults["r3"]
    assert list(media_faults(dataset, "image", "train", ["sw"])) == ["r3"]
    assert media_facts(dataset, "audio") == {}
    found, problems, _ = check_media(dataset, dataset.rows())
    assert found["sw"]["image"] == {
        "files": 4, "rows": {"train": 4, "test": 1}, "unreadable": 1,
        "sizes": {"smallest": (20, 10), "median": (30, 20), "largest": (40, 40)},
    }  # fmt: skip
    assert found["am"]["image"] == {"files": 1, "rows": {"train": 1}, "unreadable": 1}
    assert [(problem["kind"], [one["place"] for one in problem["examples"]]) for problem in problems] == [
        ("image", ["r3", "r6"])
    ]


def test_what_clips_are_and_which_look_wrong(tmp_path: Path) -> None:
    nan = io.BytesIO()
    soundfile.write(nan, np.full(8000, np.nan, np.float32), 16_000, format="WAV", subtype="FLOAT")
    dataset = stored(
        tmp_path,
        [
            {"audio": clip(1.0)},
            {"audio": clip(2.0, rate=44_100, channels=2, form="FLAC")},
            {"audio": clip(1.5, height=0.005)},
            {"audio": clip(1.0, height=0)},
            {"audio": nan.getvalue()},
            {"audio": b"\x00\x00\x00\x20ftypM4A "},
            {"audio": clip(1.0, rate=8_000), "text": "a" * 26},
            {"audio": clip(31.0, rate=4_000)},
            {"audio": clip(2.0, form="WAV")[:32_044]},
        ],
    )
    facts = media_facts(dataset, "audio")
    assert [(one.seconds, one.rate, one.channels) for one in list(facts.values())[:3]] == [
        (1.0, 16_000, 1), (2.0, 44_100, 2), (1.5, 16_000, 1),
    ]  # fmt: skip
    assert facts["r0"].num_samples == 16_000
    assert facts["r0"].peak == pytest.approx(0.3, abs=1e-3)
    found, problems, _ = check_media(dataset, dataset.rows())
    audio = found["sw"]["audio"]
    assert (audio["files"], audio["unreadable"], audio["hours"]) == (9, 3, round(37.5 / 3600, 4))
    assert audio["seconds"] == {"median": 1.5, "longest": 31.0}
    assert audio["rates"] == {"16000": 3, "44100": 1, "8000": 1, "4000": 1}
    assert audio["channels"] == {"1": 5, "2": 1}
    assert {problem["kind"]: [one["place"] for one in problem["examples"]] for problem in problems} == {
        "audio": ["r3", "r4", "r5"],
        "audio_doubtful": ["r8"],
        "audio_quiet": ["r2"],
        "audio_too_fast": ["r6"],
        "audio_too_long": ["r7"],
    }
    text = render(profile(dataset))
    assert "; 0.6 minutes, 1.5 s (median), 31.0 s (longest); 3 at 16000 Hz, 1 at 44100 Hz, 1 at 8000 Hz, 1 at " in text
    assert "; 5 of 1 channel, 1 of 2 channels\n" in text
    reasons = [one["shown"] for one in problems[0]["examples"]]
    assert all(word in reason for word, reason in zip(("silent", "not finite", "M4A"), reasons, strict=True))


def test_each_content_is_decoded_once_on_a_machine(tmp_path: Path, home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    rows = [{"image": picture(8, 8, at % 5)} for at in range(40)] + [{"image": b"broken"}]
    dataset = stored(tmp_path, rows)
    opened: list[str] = []

    def counting(key: str, content: bytes) -> MediaFacts:
        opened.append(key)
        return real(key, content)

    real = media_check._OPEN["image"]
    monkeypatch.setitem(media_check._OPEN, "image", counting)
    first = media_facts(dataset, "image")
    assert (len(first), len(opened)) == (41, 6)
    assert media_facts(dataset, "image") == first
    assert len(opened) == 7  # what was not readable is tried again: another version may read it
    (home / "cache" / f"media-{FORMAT}.sqlite").write_bytes(b"no database, but long enough to be read as one" * 100)
    with pytest.raises(KauliError, match=r"a cache, can't be used .*: delete it"):
        media_facts(dataset, "image")


def test_what_was_opened_before_an_interruption_is_kept(
    tmp_path: Path, home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    dataset = stored(tmp_path, [{"image": picture(8, 8, at)} for at in range(3)])
    real, calls = media_check._finish, 0

    def interrupted(*parts: Any) -> None:
        nonlocal calls
        calls += 1
        if calls == 3:
            raise KeyboardInterrupt
        real(*parts)

    monkeypatch.setattr(media_check, "_finish", interrupted)
    with pytest.raises(KeyboardInterrupt):
        media_facts(dataset, "image")
    with sqlite3.connect(home / "cache" / f"media-{FORMAT}.sqlite") as cache:
        assert cache.execute("SELECT COUNT(*) FROM media").fetchone() == (2,)


def test_files_wait_in_bounded_number(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    dataset = stored(tmp_path, [{"image": picture(8, 8, at)} for at in range(60)])
    most = 0
    real = media_check._finish

    def counting(key: str, waiting: Any, found: Any, cache: Any) -> None:
        nonlocal most
        most = max(most, len(waiting))
        real(key, waiting, found, cache)

    monkeypatch.setattr(media_check, "_finish", counting)
    assert len(media_facts(dataset, "image")) == 60
    assert most == media_check._WAITING + 1


def test_the_profile_tells_of_media_and_names_the_files(tmp_path: Path) -> None:
    folder = tmp_path / "my data"
    folder.mkdir()
    for at in range(6):
        (folder / f"i{at}.png").write_bytes(picture(10 + at, 20, at))
    (folder / "moving.gif").write_bytes(animated())
    names = [*(f"i{at}.png" for at in range(6)), "moving.gif"]
    lines = [f"{name},picha ya {word},sw\n" for name, word in zip(names, "abcdefg", strict=True)]
    (folder / "pictures.csv").write_text("image,text,language\n" + "".join(lines))
    result = profile(load_data(str(folder / "pictures.csv")))
    json.dumps(result)
    text = render(result)
    assert "images     7 different files, 1 unreadable; 13 x 20 (median), 10 x 20 (smallest), 15 x 20 (largest)" in text
    assert "1 row with an image that can't be used, left out of training:\n    pictures.csv line 8" in text
    assert sum(part["uses"]["image"][split] for part in result["languages"].values() for split in part["splits"]) == 6
    assert "animated (2 frames)" in result["problems"][0]["examples"][0]["shown"]
