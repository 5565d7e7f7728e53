"""Data sets: other formats, bad rows, leaks, hashes, memory."""

import errno
import json
import os
import pickle
import subprocess
import sys
from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import fsspec
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from kauli.models.errors import KauliError, UsageError
from kauli.training.data.dataset import Dataset, load_data, load_reference
from kauli.training.data.groups import Groups, split_by_chance
from kauli.training.data.profile import leaks
from kauli.training.data.schema import SCHEMA, write_parquet


@pytest.fixture(autouse=True)
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("KAULI_HOME", str(tmp_path / "home"))
    return tmp_path / "home"


def jsonl(path: Path, rows: list[dict[str, Any]]) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows), encoding="utf-8")
    return path


def letters(number: int) -> str:
    return "".join("abcdefghij"[int(digit)] for digit in str(number))


def sentences(count: int, language: str = "sw") -> list[dict[str, Any]]:
    return [
        {"language": language, "prompt": f"Sema {letters(index)}", "text": f"Neno {letters(index)} hapa."}
        for index in range(count)
    ]


def test_jsonl_gets_ids_groups_and_splits(tmp_path: Path) -> None:
    path = jsonl(tmp_path / "mine.jsonl", sentences(200))
    dataset = load_data(str(path), ["sw"])
    rows = dataset.rows()
    assert len(rows) == 200
    assert len({row["id"] for row in rows}) == 200
    assert len({row["group"] for row in rows}) == 200
    counts = Counter(row["split"] for row in rows)
    assert counts["train"] > 140
    assert counts["test"] > 8
    assert counts["validation"] > 5
    assert {row["synthetic"] for row in rows} == {False}
    assert [row["id"] for row in dataset.rows()] == [row["id"] for row in rows]
    assert sum(len(dataset.rows(split)) for split in ("train", "validation", "test")) == len(dataset.rows()) == 200


def test_the_hash_follows_the_content_not_its_order(tmp_path: Path) -> None:
    rows = sentences(30)
    one = load_data(str(jsonl(tmp_path / "a.jsonl", rows)))
    other = load_data(str(jsonl(tmp_path / "b.jsonl", rows[::-1])))
    assert one.sha256 == other.sha256
    rows[3]["text"] = "Kingine."
    assert load_data(str(jsonl(tmp_path / "a.jsonl", rows))).sha256 != one.sha256


def test_rows_that_share_text_or_media_share_a_group(tmp_path: Path) -> None:
    (tmp_path / "images").mkdir()
    (tmp_path / "images/same.png").write_bytes(b"\x89PNG1")
    rows = sentences(40)
    rows[0]["text"] = "Ndovu mkubwa!"
    rows[1]["text"] = "ndovu  MKUBWA"
    rows[2]["image"] = rows[3]["image"] = "images/same.png"
    rows[4]["prompt"] = rows[5]["prompt"] = "Translate: elephant"
    dataset = load_data(str(jsonl(tmp_path / "mine.jsonl", rows)), ["sw"])
    group = {row["text"]: row["group"] for row in dataset.rows()}
    assert group["Ndovu mkubwa!"] == group["ndovu  MKUBWA"]
    assert group["Neno c hapa."] == group["Neno d hapa."]
    assert group["Neno e hapa."] == group["Neno f hapa."]
    assert len(set(group.values())) == 37
    image = next(row for row in dataset.rows(columns=["text", "image"]) if row["text"] == "Neno c hapa.")
    assert image["image"] == b"\x89PNG1"


def test_an_instruction_ties_nothing(tmp_path: Path) -> None:
    rows = [{**row, "prompt": "Andika sentensi."} for row in sentences(60)]
    dataset = load_data(str(jsonl(tmp_path / "mine.jsonl", rows)), ["sw"])
    assert len({row["group"] for row in dataset.rows()}) == 60


def test_a_small_data_set_has_all_splits(tmp_path: Path) -> None:
    dataset = load_data(str(jsonl(tmp_path / "mine.jsonl", sentences(4))), ["sw"])
    assert {row["split"] for row in dataset.rows()} == {"train", "validation", "test"}


def test_rows_that_all_hang_together_cannot_be_split(tmp_path: Path) -> None:
    path = jsonl(tmp_path / "mine.jsonl", [{"language": "sw", "id": i, "text": "Ndiyo"} for i in range(9)])
    with pytest.raises(UsageError, match="can't be split"):
        load_data(str(path))


def test_given_splits_stay_and_leaks_between_them_go(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    rows = [
        {**row, "split": "dev" if index % 5 == 1 else "test" if index % 5 == 0 else "train"}
        for index, row in enumerate(sentences(20))
    ]
    rows[2]["text"] = rows[0]["text"]  # train repeats test
    dataset = load_data(str(jsonl(tmp_path / "mine.jsonl", rows)), ["sw"])
    assert Counter(row["split"] for row in dataset.rows()) == {"train": 11, "validation": 4, "test": 4}
    assert "1 rows of train or validation share" in capsys.readouterr().err
    assert not any(leaks(dataset).values())


def test_csv_tsv_and_the_asked_for_language(tmp_path: Path) -> None:
    (tmp_path / "mine.csv").write_text(
        "\ufefftext,license,note\n" + "".join(f'"Neno, {letters(index)}",CC0-1.0,x\n' for index in range(20)),
        encoding="utf-8",
    )
    rows = load_data(str(tmp_path / "mine.csv"), ["swh"]).rows()
    assert len(rows) == 20
    assert {(row["language"], row["licence"], row["prompt"]) for row in rows} == {("sw", "CC0-1.0", None)}
    (tmp_path / "mine.tsv").write_text("language\ttext\nsw\ta\nam\tሰ\nsw\tb\nsw\tc\nam\tለ\nam\tሐ\n", encoding="utf-8")
    assert load_data(str(tmp_path / "mine.tsv")).languages == ("am", "sw")
    assert {row["language"] for row in load_data(str(tmp_path / "mine.tsv"), ["am"]).rows()} == {"am"}


def test_text_is_nfc(tmp_path: Path) -> None:
    rows = [*sentences(5), {"language": "yo", "text": "e\u0301"}]
    dataset = load_data(str(jsonl(tmp_path / "mine.jsonl", rows)), ["yo"])
    assert [row["text"] for row in dataset.rows()] == ["\u00e9"]


def test_parquet_with_our_schema_goes_round(tmp_path: Path) -> None:
    first = load_data(str(jsonl(tmp_path / "mine.jsonl", sentences(20))), ["sw"])
    rows = first.rows(columns=SCHEMA.names)
    write_parquet(rows, tmp_path / "mine.parquet")
    second = load_data(str(tmp_path / "mine.parquet"), ["sw"])
    assert {row["split"] for row in second.rows()} == {"train", "validation", "test"}
    assert [(row["id"], row["split"]) for row in second.rows()] == [(row["id"], row["split"]) for row in rows]


def test_folders_with_split_names(tmp_path: Path) -> None:
    for index, name in enumerate(["train-00000-of-00001", "validation-00000-of-00001", "test-00000-of-00001"]):
        table = pa.table({"text": [f"Neno {letters(100 * index + row)}" for row in range(5 + index)]})
        (tmp_path / "mine").mkdir(exist_ok=True)
        pq.write_table(table, tmp_path / f"mine/{name}.parquet")
    dataset = load_data(str(tmp_path / "mine"), ["sw"])
    assert [len(dataset.rows(split)) for split in ("train", "validation", "test")] == [5, 6, 7]


def test_datasets_folders_are_read(tmp_path: Path) -> None:
    datasets = pytest.importorskip("datasets")
    parts = {
        "train": datasets.Dataset.from_dict({"text": [f"Neno {letters(index)}" for index in range(8)]}),
        "test": datasets.Dataset.from_dict({"text": [f"Jina {letters(index)}" for index in range(3)]}),
    }
    datasets.DatasetDict(parts).save_to_disk(str(tmp_path / "mine"))
    dataset = load_data(str(tmp_path / "mine"), ["sw"])
    assert (len(dataset.rows("train")), len(dataset.rows("test"))) == (8, 3)
    one = parts["train"].add_column("audio", [{"bytes": f"clip{index}".encode(), "path": None} for index in range(8)])
    one.save_to_disk(str(tmp_path / "single"))
    rows = load_data(str(tmp_path / "single"), ["sw"]).rows(columns=["text", "audio"])
    assert {(row["text"], row["audio"]) for row in rows} >= {("Neno d", b"clip3")}


def test_a_uri_is_read_through_fsspec(tmp_path: Path) -> None:
    content = "".join(json.dumps(row) + "\n" for row in sentences(9)).encode()
    fsspec.filesystem("memory").pipe({"/bucket/mine/train.jsonl": content})
    dataset = load_data("memory://bucket/mine", ["sw"])
    assert len(dataset.rows()) == 9
    assert {row["split"] for row in dataset.rows()} == {"train", "validation", "test"}  # never split, though so called
    assert len(load_data("memory://bucket/mine/train.jsonl", ["sw"]).rows()) == 9
    with pytest.raises(UsageError, match="nothing is there"):
        load_data("memory://bucket/none")
    with pytest.raises(KauliError, match="could not read nosuch://x"):
        load_data("nosuch://x")


BAD_ROWS: list[tuple[dict[str, Any], str]] = [
    ({"language": "xx", "text": "a"}, "unknown language 'xx'"),
    ({"text": "a"}, "no language"),
    ({"language": "sw", "text": 3}, "text is int, not text"),
    ({"language": "sw", "text": "a\ufffd"}, "decoded wrongly"),
    ({"language": "sw", "text": "a", "split": "tst"}, "unknown split 'tst'"),
    ({"language": "sw", "text": "a", "synthetic": "perhaps"}, "synthetic is 'perhaps'"),
    ({"language": "sw", "text": "a", "image": "none.png"}, "image 'none.png' is missing or empty"),
    ({"language": "sw", "text": "a", "audio": "../../etc/passwd"}, "is outside the data's folder"),
]


@pytest.mark.parametrize(("row", "message"), BAD_ROWS, ids=[message for _row, message in BAD_ROWS])
def test_bad_rows_are_named_by_line(tmp_path: Path, home: Path, row: dict[str, Any], message: str) -> None:
    path = jsonl(tmp_path / "mine.jsonl", [*sentences(3), row])
    with pytest.raises(UsageError) as caught:
        load_data(str(path))
    assert f"mine.jsonl line 4: {message}" in str(caught.value) or (
        "mine.jsonl line 4: " in str(caught.value) and message in str(caught.value)
    )
    assert not (home / "data").exists()


def test_half_a_character_in_json_is_bad(tmp_path: Path) -> None:
    path = tmp_path / "mine.jsonl"
    path.write_text('{"language": "sw", "text": "a\\ud83d"}\n')
    with pytest.raises(UsageError, match="line 1: text was decoded wrongly"):
        load_data(str(path))


def test_bytes_that_are_not_utf8_and_lines_that_are_not_json(tmp_path: Path) -> None:
    path = tmp_path / "mine.jsonl"
    path.write_bytes(b'{"language": "sw", "text": "\xff"}\n{"language": "sw"\n[1]\n')
    with pytest.raises(UsageError) as caught:
        load_data(str(path))
    assert "line 1: not UTF-8 (byte 29)" in str(caught.value)
    assert "line 2: not JSON" in str(caught.value)
    assert "line 3 entry 1: not an object" in str(caught.value)
    (tmp_path / "mine.csv").write_bytes(b"language,text\nsw,ok\nsw,\xe9t\xe9\nsw,a,b\n")
    with pytest.raises(UsageError) as caught:
        load_data(str(tmp_path / "mine.csv"))
    assert "mine.csv line 3: not UTF-8" in str(caught.value)
    assert "mine.csv line 4: more fields" in str(caught.value)
    (tmp_path / "mine.parquet").write_bytes(b"PAR1 and no more")
    with pytest.raises(UsageError, match="not a Parquet file, or damaged"):
        load_data(str(tmp_path / "mine.parquet"))
    bad = pa.StringArray.from_buffers(1, pa.py_buffer(b"\0\0\0\0\1\0\0\0"), pa.py_buffer(b"\xff"))
    pq.write_table(pa.table({"text": bad}), tmp_path / "bytes.parquet")
    with pytest.raises(UsageError, match="row 1: not UTF-8"):
        load_data(str(tmp_path / "bytes.parquet"), ["sw"])


def test_ids_given_twice_and_groups_in_two_splits(tmp_path: Path) -> None:
    rows = [{**row, "id": index, "group": index, "split": "train"} for index, row in enumerate(sentences(4))]
    rows[2]["id"] = 1
    rows[3] |= {"group": 0, "split": "test"}
    with pytest.raises(UsageError) as caught:
        load_data(str(jsonl(tmp_path / "mine.jsonl", rows)))
    assert "line 3: id '1' is used in mine.jsonl line 2 already" in str(caught.value)
    assert "line 4: group '0' is in test here and in train in mine.jsonl line 1" in str(caught.value)
    assert "2 problems" in str(caught.value)


def test_ten_problems_are_shown_and_all_counted(tmp_path: Path) -> None:
    path = jsonl(tmp_path / "mine.jsonl", [{"language": "sw", "text": "a", "split": letters(i)} for i in range(25)])
    with pytest.raises(UsageError, match=r"25 problems") as caught:
        load_data(str(path))
    assert "mine.jsonl line 1: unknown split 'a' (train, " in str(caught.value)
    assert "so in 24 more (line 2, line 3, line 4, ...)" in str(caught.value)
    for index in range(12):
        jsonl(tmp_path / f"many/{letters(index)}.jsonl", [{"language": "sw", "text": 3}] * 2)
    with pytest.raises(UsageError, match="24 problems") as caught:
        load_data(str(tmp_path / "many"))
    assert str(caught.value).count("text is int") == 10
    assert "\n  and 4 more\n" in str(caught.value)


def test_exact_copies_are_left_out(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert len(load_data(str(jsonl(tmp_path / "mine.jsonl", sentences(10) * 2)), ["sw"]).rows()) == 10
    assert "10 x an exact copy of an earlier row, left out (mine.jsonl line 11, mine" in capsys.readouterr().err


def test_a_language_that_the_data_lack(tmp_path: Path) -> None:
    path = jsonl(tmp_path / "mine.jsonl", sentences(9))
    with pytest.raises(UsageError, match=r"has no rows in be \(Belarusian\): it has sw"):
        load_data(str(path), ["be"])
    with pytest.raises(UsageError, match="unknown language 'zzz'"):
        load_data(str(path), ["zzz"])
    with pytest.raises(UsageError, match=r"unknown split 'tset'.*Did you mean 'test'"):
        load_data(str(path)).rows("tset")


def test_what_is_not_there_or_no_data(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=r"no data at 'startr'.*Did you mean 'starter'"):
        load_data("startr")
    with pytest.raises(UsageError, match="holds no file of"):
        load_data(str(tmp_path))
    for name, way in (("x.pdf", "give a file or folder of"), ("x.tar.gz", "unpack it"), ("x.xlsx", "save it as CSV")):
        (tmp_path / name).write_text("a")
        with pytest.raises(UsageError, match=rf"can't read .*{name}': {way}"):
            load_data(str(tmp_path / name))
    (tmp_path / "empty.jsonl").write_text("\n")
    with pytest.raises(UsageError, match="holds no rows"):
        load_data(str(tmp_path / "empty.jsonl"))
    with pytest.raises(UsageError, match="no starter data is built yet"):
        load_data("starter")


def test_a_full_disk_leaves_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_args: Any, **_kwargs: Any) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    first = load_data(str(jsonl(tmp_path / "mine.jsonl", sentences(9))), ["sw"])
    monkeypatch.setattr(pq.ParquetWriter, "write_table", full)
    with pytest.raises(KauliError, match="No space left on device"):
        write_parquet(first.rows(columns=SCHEMA.names), tmp_path / "new/out.parquet")
    assert list((tmp_path / "new").iterdir()) == []


def test_the_same_rows_give_the_same_bytes(tmp_path: Path) -> None:
    rows = load_data(str(jsonl(tmp_path / "mine.jsonl", sentences(50))), ["sw"]).rows(columns=SCHEMA.names)
    for name in ("a.parquet", "b.parquet"):
        write_parquet(rows, tmp_path / name)
    assert (tmp_path / "a.parquet").read_bytes() == (tmp_path / "b.parquet").read_bytes()


def test_components_do_not_depend_on_the_order_of_links() -> None:
    links = [("b", "c"), ("d", "e"), ("c", "d"), ("x", "y"), ("a", "e")]
    for order in (links, links[::-1]):
        groups = Groups()
        for link in order:
            groups.link(link)
        assert {key: groups.find(key) for key in "abcdexyz"} == dict.fromkeys("abcde", "a") | {
            "x": "x",
            "y": "x",
            "z": "z",
        }


def test_chance_gives_the_promised_shares() -> None:
    counts = Counter(split_by_chance(f"text:{index}") for index in range(20000))
    assert counts["test"] / 20000 == pytest.approx(0.10, abs=0.01)
    assert counts["validation"] / 20000 == pytest.approx(0.08, abs=0.01)


def test_imported_groups_never_cross_splits(tmp_path: Path) -> None:
    rows = sentences(300)
    for index in range(0, 300, 7):
        rows[index]["text"] = f"Sawa {letters(index % 21)}"
    dataset = load_data(str(jsonl(tmp_path / "mine.jsonl", rows)))
    sides = defaultdict(set)
    for row in dataset.rows():
        sides[row["group"]].add(row["split"])
    assert all(len(splits) == 1 for splits in sides.values())
    assert not any(leaks(dataset).values())


def with_audio(count: int, size: int = 100_000) -> Iterator[dict[str, Any]]:
    empty: dict[str, Any] = dict.fromkeys(SCHEMA.names)
    for index in range(count):
        own = {"id": f"sw-{index}", "group": f"g{index}", "language": "sw", "text": f"Neno {letters(index)}"}
        own |= {"audio": index.to_bytes(4, "big") * (size // 4) if index % 10 else None, "synthetic": False}
        yield empty | own | {"split": ("train", "train", "validation", "test")[index % 4]}


def saved(folder: Path, rows: Iterable[dict[str, Any]], name: str = "data.parquet") -> Dataset:
    write_parquet(rows, folder / name)
    return Dataset("mine", [folder / name], ["sw"])


def test_rows_are_streamed_in_the_order_of_the_files(tmp_path: Path) -> None:
    rows = list(with_audio(120))
    dataset = saved(tmp_path, rows)
    with pq.ParquetFile(tmp_path / "data.parquet") as file:
        assert file.num_row_groups > 2
    assert list(dataset.iter_rows(columns=SCHEMA.names)) == dataset.rows(columns=SCHEMA.names) == rows
    chosen = [{"audio": row["audio"], "id": row["id"]} for row in rows if row["split"] == "validation"]
    assert list(dataset.iter_rows("validation", ["swh"], columns=["audio", "id"])) == chosen
    assert list(dataset.iter_rows(languages=["am"])) == []
    pq.write_table(pa.Table.from_pylist(rows, schema=SCHEMA), tmp_path / "one-group.parquet")
    other = Dataset("mine", [tmp_path / "one-group.parquet"], ["sw"])
    assert other.rows(columns=SCHEMA.names) == rows
    assert other.sha256 == dataset.sha256
    with pytest.raises(UsageError, match="unknown split 'tset'"):  # at the call, not at the first row
        dataset.iter_rows("tset")


def test_the_hash_of_a_known_data_set_stays(tmp_path: Path) -> None:
    """Unfinished runs and published cards hold this value."""
    assert saved(tmp_path, with_audio(5)).sha256 == "4893dcd1cf792150a889659f03da580a0219611de1df26bc99ae59ade838aef7"


def test_media_are_read_by_id(tmp_path: Path) -> None:
    rows = list(with_audio(120))
    write_parquet(rows[:50], tmp_path / "a.parquet")
    write_parquet(rows[50:], tmp_path / "b.parquet")
    dataset = Dataset("mine", [tmp_path / "a.parquet", tmp_path / "b.parquet"], ["sw"])
    ids = ["sw-97", "sw-3", "sw-10", "sw-3", "sw-119"]
    found = dataset.read_media("audio", ids)
    assert list(found.items()) == [(one, rows[int(one[3:])]["audio"]) for one in dict.fromkeys(ids)]
    assert found["sw-10"] is None
    assert pickle.loads(pickle.dumps(dataset)).read_media("audio", ids) == found
    assert len(pickle.dumps(dataset)) < 1000
    with pytest.raises(KauliError, match="data 'mine' has no row with the id 'sw-200'"):
        dataset.read_media("audio", ["sw-1", "sw-200"])
    write_parquet(rows[50:], tmp_path / "b.parquet")
    with pytest.raises(KauliError, match=r"b\.parquet was replaced while data 'mine' was in use"):
        dataset.read_media("audio", ["sw-97"])


def test_a_reference_loads_the_same_rows_or_names_both_hashes(tmp_path: Path) -> None:
    path = jsonl(tmp_path / "mine.jsonl", sentences(30))
    dataset = load_data(str(path), ["sw"])
    reference = pickle.loads(pickle.dumps(dataset.reference))
    assert (reference.name, reference.languages, reference.sha256) == (str(path), ("sw",), dataset.sha256)
    again = load_reference(reference)
    assert (again.name, again.rows()) == (dataset.name, dataset.rows())
    assert "sha256" in vars(again)  # the same files, untouched: they are not hashed again
    os.utime(reference.paths[0])
    assert load_reference(reference).reference.versions != reference.versions
    (reference.paths[0]).unlink()
    assert load_reference(reference).rows() == dataset.rows()  # as on another machine, where the name is loaded
    write_parquet([{**row, "text": "x"} for row in dataset.rows(columns=SCHEMA.names)], reference.paths[0])
    with pytest.raises(KauliError, match=rf"has changed: its sha256 on this machine is \w+, expected {dataset.sha256}"):
        load_reference(reference)


MEASURE = """
import re, sys
from pathlib import Path
from kauli.training.data.dataset import Dataset

def peak():  # KiB of this program; getrusage would give that of the process that started it
    return int(re.search(r"VmHWM:\\s+(\\d+)", Path("/proc/self/status").read_text())[1])

path = Path(sys.argv[1])
dataset = Dataset("mine", [path], ["sw"])
before = peak()
size = sum(len(row["audio"] or b"") for row in dataset.iter_rows(columns=["id", "audio"]))
ids = [row["id"] for row in dataset.iter_rows(columns=["id"])]
for start in range(0, len(ids), 16):
    size += sum(len(audio or b"") for audio in dataset.read_media("audio", ids[start : start + 16]).values())
dataset.sha256
print(size, peak() - before)
"""


def test_memory_does_not_grow_with_hours_of_audio(tmp_path: Path) -> None:
    """20 and 120 clips of half a minute: reading each once, by id, and hashing."""
    grown = []
    for count in (20, 120):
        write_parquet(with_audio(count, 1 << 20), tmp_path / "long.parquet")
        command = [sys.executable, "-c", MEASURE, str(tmp_path / "long.parquet")]
        size, growth = subprocess.run(command, check=True, capture_output=True, text=True).stdout.split()
        assert int(size) == 2 * (count - count // 10) << 20
        grown.append(int(growth) / 1024)
    assert grown[1] < grown[0] + 40  # MiB; holding all clips would add 90
