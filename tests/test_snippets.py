"""Every command and snippet of the documents runs: on bases of random weights, against a service in this process."""

import shutil
import threading
import time
from collections.abc import Iterator
from contextlib import ExitStack, closing, contextmanager
from pathlib import Path

import pytest
import uvicorn

from kauli.models.adapters.registry import Registry
from kauli.models.errors import KauliError
from kauli.models.tasks import resolve
from kauli.serving.http.app import create_app
from kauli.serving.routing import Catalogue, public_name
from kauli.serving.settings import ServeArgs
from kauli.serving.tasks import WORKERS
from kauli.serving.topology import choose_topology
from support.cli import run
from support.docs_home import ADAPTERS, fill_folder, fill_storage, make_home
from support.documents import PAGES, Reader, blocks
from support.imports import ROOT
from support.ranks import free_port

WITH_BLOCKS = [page for page in PAGES if list(blocks(page, (ROOT / page).read_text(encoding="utf-8")))]


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A folder with the files that the documents name, and a filled store `store`; the home of this process."""
    with pytest.MonkeyPatch.context() as patch:
        make_home(patch, tmp_path_factory.mktemp("home"))
        folder = tmp_path_factory.mktemp("reader")
        fill_folder(folder)

        def train(name: str) -> None:
            result = run("train", name, "--storage", str(folder / "store"))
            assert result.exit_code == 0, result.stderr

        fill_storage(folder / "store", train)
        yield folder


@pytest.fixture
def reader(home: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Reader]:
    """In a copy of the folder, which is also $KAULI_STORAGE's; the service starts when a block asks it."""
    shutil.copytree(home, tmp_path, dirs_exist_ok=True)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("KAULI_STORAGE", str(tmp_path / "store"))
    with ExitStack() as stack:
        address: list[str] = []

        def started() -> str:
            if not address:
                address.append(stack.enter_context(_service(tmp_path / "store")))
            return address[0]

        yield Reader(tmp_path, monkeypatch, started, done={("train", name) for name in ADAPTERS})


@contextmanager
def _service(storage: Path) -> Iterator[str]:
    """`host:port` of the service over the adapters of a store: the application and its workers, without Ray."""
    args = ServeArgs(storage=str(storage), port=free_port(), threads=1, refresh_s=0)
    topology = choose_topology(Registry(args.storage), args)
    with ExitStack() as stack:
        workers = {
            name: {
                public_name(base): stack.enter_context(
                    closing(resolve(WORKERS[name].build)(args, base, name in topology.answering))
                )
                for base in bases
            }
            for name, bases in topology.bases.items()
        }
        catalogue = Catalogue(Registry(args.storage), topology.answering, args.refresh_s, tasks=topology.tasks)
        app = create_app(workers, catalogue, args)
        server = uvicorn.Server(uvicorn.Config(app, host=args.host, port=args.port, log_level="error"))
        thread = threading.Thread(target=server.run)
        thread.start()
        try:
            while not server.started:
                assert thread.is_alive(), "the service did not start"
                time.sleep(0.01)
            yield f"{args.host}:{args.port}"
        finally:
            server.should_exit = True
            thread.join()


@pytest.mark.parametrize("page", WITH_BLOCKS)
def test_the_commands_and_snippets_of_a_page_run(page: str, reader: Reader) -> None:
    for block in blocks(page, (ROOT / page).read_text(encoding="utf-8")):
        reader.run(block)


@pytest.mark.parametrize(
    "wrong",
    [
        "    kauli adapters show text-nobody",
        "    kauli adapters list --jason",
        "    kauli train text-sw --set train.stpes=3",
        "    kauli serve --prot 8000",
        "    kauli data build --languages sw --storage s3://bucket/path --no-such-option",
        "    make tset",
        "    python tests/bench/transcribe.py --onyl long",
        "    curl http://127.0.0.1:8000/v1/nothing",
        "    frobnicate clip.ogg",
        "```python\nfrom kauli.models.tasks import NOTHING\n```",
        "```yaml\nprot: 8000\n```",
        "```yaml\nname: x\ntask: text\nbase: debug\nlanguage: sw\nmehtod: {kind: lora}\n```",
        "```json\n{'a': 1}\n```",
        "```rust\nfn main() {}\n```",
    ],
)
def test_a_wrong_snippet_fails(wrong: str, reader: Reader) -> None:
    (block,) = blocks("page.md", f"Text.\n\n{wrong}\n\nMore text.\n")
    with pytest.raises((AssertionError, ImportError, KauliError, ValueError)):
        reader.run(block)
