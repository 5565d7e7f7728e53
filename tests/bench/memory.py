"""What a memory costs a request, whether tenants are apart, and how soon another process sees a change.

    OMP_NUM_THREADS=1 python tests/bench/memory.py --results RESULTS.md

Tenants hold the same sources, interface strings and names of the starter data; their targets name the tenant, so that
a foreign hit is seen. They search, list, add and remove at random, one at a time and 8 at once; half of the searches
are for texts as they are stored, half for texts with a word more. A second process is asked after every addition and
every deletion.
"""

import argparse
import multiprocessing
import random
import tempfile
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from multiprocessing.connection import Connection
from pathlib import Path

import numpy as np
from results_file import update_section

from kauli.deploy.cli.terminal import table
from kauli.models.languages import display_name
from kauli.models.progress import note
from kauli.models.text.embedder import Embedder
from kauli.models.text.memory import Confirmed, Memories
from kauli.training.card import machine
from kauli.training.data.dataset import load_data

LANGUAGE = "am"


class Remembering:
    """Embeds a text once: all tenants have the same texts, but for the tenant's name before the target."""

    def __init__(self, embedder: Embedder) -> None:
        self.sha256, self.dim = embedder.sha256, embedder.dim
        self._embedder, self._known = embedder, dict[str, np.ndarray]()

    def embed(self, texts: Sequence[str]) -> np.ndarray:
        """(N, dim) float32."""
        plain = [text.partition("\t")[2] or text for text in texts]
        new = [text for text in dict.fromkeys(plain) if text not in self._known]
        if new:
            self._known |= dict(zip(new, self._embedder.embed(new), strict=True))
        return np.stack([self._known[text] for text in plain])


def fill(storage: str, embedder: Embedder, tenants: Sequence[str], pairs: Sequence[tuple[str, str]]) -> None:
    memories = Memories(storage, Remembering(embedder))
    for tenant in tenants:
        note(f"{tenant}: {len(pairs)} pairs")
        own = [Confirmed(source, f"{tenant}\t{target}", "en", LANGUAGE) for source, target in pairs]
        memories.open(tenant, "main", create=True).add(own)


def mixed(
    storage: str, embedder: Embedder, tenants: Sequence[str], sources: Sequence[str], count: int, threads: int
) -> tuple[dict[str, list[float]], int]:
    """Kind -> seconds of each request, and how many pairs of other tenants were in the answers."""
    memories = Memories(storage, embedder)
    for tenant in tenants:
        memories.open(tenant, "main").search("warm", "en", LANGUAGE, 1)
    seconds: dict[str, list[float]] = {kind: [] for kind in ("search", "add", "remove", "list")}

    def ask(number: int) -> int:
        draw = random.Random(number)
        tenant, text = draw.choice(tenants), draw.choice(sources)
        kind = draw.choices(list(seconds), (85, 5, 5, 5))[0]
        began = time.perf_counter()
        memory = memories.open(tenant, "main")
        if kind == "search":
            text += draw.choice(("", " now"))
            found = [one.target for one in memory.search(text, "en", LANGUAGE, 4)]
        elif kind == "list":
            found = [one.target for one in memory.pairs(containing=text[:4], limit=20)]
        else:
            ids = memory.add([Confirmed(f"added {number % 50}", f"{tenant}\tx", "en", LANGUAGE)])
            found = []
            if kind == "remove":
                began = time.perf_counter()
                memory.remove(ids)
        seconds[kind].append(time.perf_counter() - began)
        return sum(not target.startswith(f"{tenant}\t") for target in found)

    with ThreadPoolExecutor(threads) as pool:
        return seconds, sum(pool.map(ask, range(count)))


def replica(storage: str, asked: Connection) -> None:
    """A second process: answers (tenant, text) with the ids that it finds, and the seconds that it took."""
    memories = Memories(storage, Embedder.default())
    while request := asked.recv():
        began = time.perf_counter()
        found = [one.id for one in memories.open(request[0], "main").search(request[1], "en", LANGUAGE, 4)]
        asked.send((found, time.perf_counter() - began))


def changes(storage: str, embedder: Embedder, tenants: Sequence[str], rounds: int) -> tuple[int, list[float]]:
    """How many changes the second process answered wrongly at its next request, and the seconds of these requests."""
    memories, missed, seconds = Memories(storage, embedder), 0, list[float]()
    context = multiprocessing.get_context("spawn")
    here, there = context.Pipe()
    other = context.Process(target=replica, args=(storage, there), daemon=True)
    other.start()
    for tenant in tenants:
        here.send((tenant, "warm"))
        here.recv()
    for number in range(rounds):
        tenant, text = tenants[number % len(tenants)], f"a change of number {number}"
        memory = memories.open(tenant, "main")
        (id,) = memory.add([Confirmed(text, f"{tenant}\tx", "en", LANGUAGE)])
        for expected in (True, False):
            if not expected:
                memory.remove([id])
            here.send((tenant, text))
            found, took = here.recv()
            missed += (id in found) is not expected
            seconds.append(took)
    here.send(None)
    other.join()
    return missed, seconds


def main() -> None:
    """Print the table, and write it to a section of a file."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--tenants", type=int, default=8)
    parser.add_argument("--pairs", type=int, default=10_000, help="of each tenant")
    parser.add_argument("--requests", type=int, default=10_000)
    parser.add_argument("--rounds", type=int, default=100, help="additions and deletions that another process must see")
    parser.add_argument("--results", type=Path, help="write the section `memory` of this file")
    options = parser.parse_args()
    rows = load_data("starter-full", [LANGUAGE]).rows("train", [LANGUAGE], ["input", "text"])
    pairs = list({row["input"]: row["text"] for row in rows if row["input"] and row["text"]}.items())[: options.pairs]
    tenants = [f"{number:016x}" for number in range(options.tenants)]
    embedder = Embedder.default()
    sources = [source for source, _ in pairs]
    alone = []
    for text in random.Random(0).choices(sources, k=200):
        began = time.perf_counter()
        embedder.embed([text])
        alone.append(time.perf_counter() - began)
    with tempfile.TemporaryDirectory(prefix="kauli-memory-") as storage:
        fill(storage, embedder, tenants, pairs)
        seconds, foreign = mixed(storage, embedder, tenants, sources, options.requests // 10, 1)
        loaded, more = mixed(storage, embedder, tenants, sources, options.requests - options.requests // 10, 8)
        missed, other = changes(storage, embedder, tenants, options.rounds)
    measured = {
        "the embedding of a text alone": alone, **seconds, "search in another process after a change": other,
        "search, 8 at once": loaded["search"],
    }  # fmt: skip
    lines = [
        {"request": name, "requests": len(took), **{
            f"{part} ms": float(np.quantile(took, share)) * 1000 for part, share in (("median", 0.5), ("p95", 0.95))
        }}
        for name, took in measured.items()
    ]  # fmt: skip
    summary = (
        f"{options.tenants} tenants with {len(pairs)} pairs each, English and {display_name(LANGUAGE)}; "
        f"{machine()}.\n\nPairs of another tenant in the answers of {options.requests} mixed requests, nine tenths of "
        f"them 8 at once: {foreign + more}. "
        f"Additions and deletions that another process missed at its next request: {missed} of {2 * options.rounds}."
    )
    print(table(lines, list(lines[0])))
    print(summary)
    if options.results is not None:
        head = f"| {' | '.join(lines[0])} |\n|{' --- |' * len(lines[0])}\n"
        body = "\n".join(
            f"| {' | '.join(f'{cell:.1f}' if isinstance(cell, float) else str(cell) for cell in line.values())} |"
            for line in lines
        )
        update_section(options.results, "memory", f"### Memory\n\n{summary}\n\n{head}{body}")


if __name__ == "__main__":
    main()
