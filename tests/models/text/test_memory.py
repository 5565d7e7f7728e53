"""Memories in a folder and on an S3-like store: what counts at once, for whom, and who may write at the same time."""

import uuid
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import boto3  # type: ignore[import-untyped]
import lancedb
import pytest
from moto.server import ThreadedMotoServer
from s3fs import S3FileSystem

from kauli.models.errors import KauliError, UsageError
from kauli.models.text import memory_table
from kauli.models.text.memory import Confirmed, Memories, Memory
from support.memories import LetterEmbedder

BUCKET = "kauli-memory"
PAIRS = [
    Confirmed("Open the file", "ፋይሉን ክፈት", "en", "am", "gimp.po"),
    Confirmed("Open the image", "ምስሉን ክፈት", "en", "am"),
    Confirmed("Save the file", "ፋይሉን አስቀምጥ", "en", "am"),
    Confirmed("A red car", "ቀይ መኪና", "en", "am"),
    Confirmed("Open the file", "Fungua faili", "en", "sw"),
]
TERMS = [Confirmed("file", "ፋይል", "en", "am", kind="term"), Confirmed("red car", "ቀይ መኪና", "en", "am", kind="term")]


@pytest.fixture(scope="module")
def s3() -> Iterator[None]:
    server = ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
    server.start()
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("AWS_ENDPOINT_URL", "http://{}:{}".format(*server.get_host_and_port()))
        patch.setenv("AWS_ACCESS_KEY_ID", "test")
        patch.setenv("AWS_SECRET_ACCESS_KEY", "test")
        patch.setenv("AWS_DEFAULT_REGION", "us-east-1")
        S3FileSystem.clear_instance_cache()  # one that an earlier test made knows another endpoint
        boto3.client("s3").create_bucket(Bucket=BUCKET)
        yield
    server.stop()


@pytest.fixture(params=["local", "s3"])
def storage(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    if request.param == "local":
        return str(tmp_path / "store")
    request.getfixturevalue("s3")
    return f"s3://{BUCKET}/{uuid.uuid4().hex}/store"


def memories(storage: str | Path) -> Memories:
    """As another process has them: its own connections, its own RAM."""
    return Memories(str(storage), LetterEmbedder())


@pytest.fixture
def memory(tmp_path: Path) -> Memory:
    found = memories(tmp_path).open("local", "main", create=True)
    found.add([*PAIRS, *TERMS])
    return found


def sources(memory: Memory) -> list[str]:
    return [row.source for row in memory.pairs()]


def test_additions_and_deletions_count_at_the_next_request_of_every_process(storage: str) -> None:
    here, there = memories(storage), memories(storage)
    assert here.names("local") == []
    mine = here.open("local", "main", create=True)
    assert mine.search("Open the file", "en", "am", 3) == [] == mine.terms("Open the file", "en", "am")
    ids = mine.add([*PAIRS, *TERMS])
    other = there.open("local", "main")
    assert other.search("Open the file", "en", "am", 4)[0].id == ids[0]
    (more,) = other.add([Confirmed("Open the door", "በሩን ክፈት", "en", "am")])
    for one in (mine, other):
        best = one.search("Open  the door", "en", "am-ET", 2)[0]
        assert (best.id, best.target, best.score) == (more, "በሩን ክፈት", 100)
        assert [term.target for term in one.terms("The FILE", "en", "am")] == ["ፋይል"]
    assert mine.remove([ids[0], ids[5], "unknown"]) == 2
    for one in (mine, other):
        assert ids[0] not in [match.id for match in one.search("Open the file", "en", "am", 9)]
        assert one.terms("The FILE", "en", "am") == []
        assert len(one.pairs()) == 6
    assert memories(storage).names("local") == ["main"]


def test_a_memory_that_was_deleted_is_gone_in_every_process_and_may_be_made_again(storage: str) -> None:
    here, there = memories(storage), memories(storage)
    here.open("local", "main", create=True).add(PAIRS)
    other = there.open("local", "main")
    assert len(other.search("Open the file", "en", "am", 9)) == 4
    here.delete("local", "main")
    with pytest.raises(UsageError, match="deleted"):
        other.search("Open the file", "en", "am", 9)
    with pytest.raises(UsageError, match="no memory 'main'"):
        there.open("local", "main")
    # as many versions as before: a reader can't tell by their number
    here.open("local", "main", create=True).add([Confirmed("New", "አዲስ", "en", "am")])
    assert sources(there.open("local", "main")) == sources(other) == ["New"]
    assert [match.source for match in other.search("Open the file", "en", "am", 9)] == ["New"]


def test_two_writers_of_one_memory_lose_nothing(storage: str) -> None:
    def write(writer: int) -> None:
        own = memories(storage).open("local", "main", create=True)
        for number in range(6):
            pairs = [("shared", f"by {writer}"), (f"text {writer} {number}", "x")]
            own.add([Confirmed(f"{source} {number}", target, "en", "sw") for source, target in pairs])

    with ThreadPoolExecutor(3) as pool:
        list(pool.map(write, range(3)))
    found = sources(memories(storage).open("local", "main"))
    expected = {f"shared {at}" for at in range(6)} | {f"text {one} {at} {at}" for one in range(3) for at in range(6)}
    assert (len(found), set(found)) == (24, expected)


def test_a_process_that_was_killed_while_it_made_a_memory_blocks_nobody(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(memory_table, "CLAIM_SECONDS", 0.05)
    (tmp_path / "memory" / "local").mkdir(parents=True)
    (tmp_path / "memory" / "local" / "main.claim").write_text("of another")
    memories(tmp_path).open("local", "main", create=True).add(PAIRS)
    assert memories(tmp_path).names("local") == ["main"]
    assert not list(tmp_path.rglob("*.claim"))


def test_small_additions_are_compacted_while_others_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(memory_table, "COMPACTED_EVERY", 8)
    reader = memories(tmp_path).open("local", "main", create=True)
    writer = memories(tmp_path).open("local", "main")
    for number in range(24):
        writer.add([Confirmed(f"text {number}", "x", "en", "sw")])
        assert len(reader.search("text", "en", "sw", 99)) == number + 1
    memory_table._BACKGROUND.submit(int).result()  # what was begun is done
    table = lancedb.connect(tmp_path / "memory" / "local").open_table("main")
    assert table.stats()["fragment_stats"]["num_fragments"] <= 8
    assert sources(memories(tmp_path).open("local", "main")) == [f"text {number}" for number in range(24)]


def test_a_tenant_sees_its_own_memories_alone(tmp_path: Path) -> None:
    all_of_them = memories(tmp_path)
    for tenant in ("local", "0123456789abcdef"):
        all_of_them.open(tenant, "main", create=True).add([Confirmed(f"of {tenant}", "x", "en", "sw")])
    all_of_them.open("local", "other", create=True)
    assert all_of_them.names("0123456789abcdef") == ["main"]
    assert sources(all_of_them.open("0123456789abcdef", "main")) == ["of 0123456789abcdef"]
    all_of_them.delete("0123456789abcdef", "main")
    assert sources(all_of_them.open("local", "main")) == ["of local"]
    assert all_of_them.names("nobody") == []
    assert not (tmp_path / "memory" / "nobody").exists()


def test_tenants_are_apart_under_load(tmp_path: Path) -> None:
    """The same sources and names for all; targets name the tenant."""
    tenants, all_of_them = [f"tenant-{at}" for at in range(4)], memories(tmp_path)
    for tenant in tenants:
        texts = [f"text {at}" for at in range(40)]
        pairs = [Confirmed(text, f"{tenant} says {text}", "en", "sw") for text in texts]
        terms = [Confirmed("text", f"{tenant} term", "en", "sw", kind="term")]
        all_of_them.open(tenant, "main", create=True).add([*pairs, *terms])

    def ask(number: int) -> None:
        tenant = tenants[number % 4]
        mine = all_of_them.open(tenant, "main")
        if number % 5 == 0:
            (id,) = mine.add([Confirmed(f"text {number}", f"{tenant} says so", "en", "sw")])
            assert mine.remove([id]) == 1
        found = [match.target for match in mine.search(f"text {number % 40}", "en", "sw", 5)]
        found += [term.target for term in mine.terms("a text", "en", "sw")]
        found += [row.target for row in mine.pairs(limit=3)]
        assert len(found) == 9
        assert all(target.startswith(f"{tenant} ") for target in found)

    with ThreadPoolExecutor(8) as pool:
        list(pool.map(ask, range(400)))


def test_a_source_that_is_confirmed_again_has_the_new_target(memory: Memory) -> None:
    (new,) = memory.add([Confirmed("Open  the file", "ክፈት", "en", "am")])
    assert [match.target for match in memory.search("Open the file", "en", "am", 1)] == ["ክፈት"]
    assert len(memory.pairs()) == len(PAIRS) + len(TERMS)
    assert memory.search("Open the file", "en", "sw", 1)[0].target == "Fungua faili"  # another language's stays
    assert memory.add([Confirmed("Open  the file", "ክፈት", "en", "am")]) == [new]
    first, second = memory.add([Confirmed("Twice", "a", "en", "am"), Confirmed("Twice", "b", "en", "am")])
    assert first == second
    assert memory.search("Twice", "en", "am", 1)[0].target == "b"


def test_a_memory_answers_in_both_directions(memory: Memory) -> None:
    (best, *others) = memory.search("ቀይ መኪና", "am", "en", 2)
    assert (best.source, best.target, best.score) == ("ቀይ መኪና", "A red car", 100)
    assert others
    assert [(term.source, term.target) for term in memory.terms("ቀይ መኪና አለ", "am", "en")] == [("ቀይ መኪና", "red car")]
    memory.add([Confirmed("The red car", "ቀይ መኪና", "en", "am")])
    exact = [match.target for match in memory.search("ቀይ መኪና", "am", "en", 3) if match.score == 100]
    assert exact == ["The red car", "A red car"]  # the newest first


def test_at_most_as_many_as_wanted_the_same_text_first_then_similar_ones(memory: Memory) -> None:
    found = memory.search("Open the file", "en", "am", 3)
    assert found[0].score == 100
    assert found[0].origin == "gimp.po"
    assert len({match.id for match in found}) == 3
    assert 60 < memory.search("Open the files", "en", "am", 1)[0].score < 100
    for text, target, limit in (("Open the file", "am", 0), (" ", "am", 3), ("Open the file", "ka", 3)):
        assert memory.search(text, "en", target, limit) == []


def test_pairs_are_listed_in_their_order_by_what_is_asked(memory: Memory) -> None:
    assert sources(memory) == [pair.source for pair in [*PAIRS, *TERMS]]
    assert len(memory.pairs("en", "am-ET", "pair")) == 4
    assert [row.source for row in memory.pairs(kind="term")] == ["file", "red car"]
    assert [row.target for row in memory.pairs(containing="FAILI")] == ["Fungua faili"]
    assert [row.source for row in memory.pairs(limit=2, offset=1)] == ["Open the image", "Save the file"]
    assert memory.languages() == {("en", "am"): 6, ("en", "sw"): 1}
    memory.check_languages("am", "en")
    with pytest.raises(UsageError, match=r"nothing in en - ka, only en - am \(6\), en - sw \(1\)"):
        memory.check_languages("en", "ka")


def test_without_an_embedder_a_memory_is_listed_and_emptied(tmp_path: Path, memory: Memory) -> None:
    found = Memories(str(tmp_path), None).open("local", "main")
    assert found.remove([row.id for row in found.pairs()]) == 7
    assert memory.pairs() == [] == memory.search("Open the file", "en", "am", 3)


@pytest.mark.parametrize(
    ("pair", "message"),
    [
        (Confirmed(" ", "x", "en", "am"), "pair 2 has no source"),
        (Confirmed("x", "", "en", "am"), "pair 2 has no target"),
        (Confirmed("x", "y", "en", "amharik"), "unknown language 'amharik'"),
        (Confirmed("x", "y", "am-ET", "am"), "from am to am"),
        (Confirmed("x" * 10_001, "y", "en", "am"), "10001 characters"),
        (Confirmed("\ud800", "y", "en", "am"), "not valid Unicode"),
        (Confirmed("x", "y", "en", "am", kind="word"), "kind 'word'"),  # type: ignore[arg-type]
        (Confirmed("File", "መዝገብ", "en", "am", kind="term"), "contradicts itself: 'File'.*'ፋይል' and 'መዝገብ'"),
    ],
)
def test_pairs_that_cannot_be_stored_leave_the_memory_as_it_was(memory: Memory, pair: Confirmed, message: str) -> None:
    memory.remove([row.id for row in memory.pairs()])
    with pytest.raises(UsageError, match=message):
        memory.add([Confirmed("file", "ፋይል", "en", "am", kind="term"), pair])
    assert memory.pairs() == []


@pytest.mark.parametrize(
    ("tenant", "name", "message"),
    [
        ("local", "mian", "no memory 'mian'. Did you mean 'main'.*There are: main"),
        ("local", "../main", "'../main' is no memory name"),
        ("../local", "main", "'../local' is no tenant"),
        ("nobody", "main", "There is none yet"),
    ],
)
@pytest.mark.usefixtures("memory")
def test_a_memory_that_is_not_there(tmp_path: Path, tenant: str, name: str, message: str) -> None:
    with pytest.raises(UsageError, match=message):
        memories(tmp_path).open(tenant, name)
    with pytest.raises(UsageError):
        memories(tmp_path).delete(tenant, name)


@pytest.mark.usefixtures("memory")
def test_embeddings_of_another_base_are_refused(tmp_path: Path) -> None:
    other = LetterEmbedder()
    other.sha256 = "f" * 64
    with pytest.raises(UsageError, match=r"'main' has embeddings of another base .*export it"):
        Memories(str(tmp_path), other).open("local", "main")


def test_a_damaged_memory_and_a_storage_that_is_not_there_are_one_error(tmp_path: Path, memory: Memory) -> None:
    for file in (tmp_path / "memory" / "local" / "main.lance" / "data").iterdir():
        file.write_bytes(file.read_bytes()[:100])
    with pytest.raises(KauliError, match="memory 'main' can't be read"):
        memories(tmp_path).open("local", "main").pairs()
    (tmp_path / "file").write_text("")
    with pytest.raises(KauliError, match=r"cannot write to .*/file: Not a directory"):
        memories(tmp_path / "file").open("local", "main", create=True)


@pytest.mark.usefixtures("s3")
def test_a_bucket_that_is_not_there_is_one_error() -> None:
    with pytest.raises(KauliError, match="no-such-bucket"):
        memories("s3://no-such-bucket/store").open("local", "main", create=True)
