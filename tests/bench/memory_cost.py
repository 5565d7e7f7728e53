"""What searching a memory costs translations: throughput and time of each, beside the same prompts without a search.

    OMP_NUM_THREADS=1 python tests/bench/memory_cost.py --adapter translate-am

Tenants with memories of their own translate held-out texts, eight at once, by the service's own translator and workers
in this process. In turn they do the same with what was found kept from before: the prompts are equal, and only the
search is missing. In bf16 an answer depends a little on its company in a batch: the share of equal ones is told.
"""

import argparse
import asyncio
import statistics
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from memory import Remembering
from results_file import update_section

from kauli.models.adapters.registry import Registry
from kauli.models.paths import default_storage
from kauli.models.progress import note
from kauli.models.text.embedder import Embedder
from kauli.models.text.memory import Confirmed, Memories
from kauli.serving.local import Local
from kauli.serving.translation import Translator
from kauli.training.card import machine
from kauli.training.data.dataset import load_data
from kauli.training.features.translations import pair_rows

AT_ONCE = 8


class Kept:
    """The memory worker's answers to searches, kept: without a search the second time."""

    def __init__(self, worker: Any) -> None:
        self._worker, self._found = worker, dict[Any, Any]()

    async def search(self, tenant: str, names: Sequence[str], text: str, *rest: Any) -> Any:
        """As the worker's."""
        if (tenant, text) not in self._found:
            self._found[tenant, text] = await self._worker.search(tenant, names, text, *rest)
        return self._found[tenant, text]


class KeptBackends:
    """The backends with another memory."""

    def __init__(self, backends: Local, memory: Kept) -> None:
        self.of, self.memory = backends.of, lambda: memory


async def seconds_of(translators: Sequence[Translator], texts: Sequence[str]) -> tuple[list[float], list[str]]:
    """Seconds of each translation, and the translations."""
    turn = asyncio.Semaphore(AT_ONCE)

    async def one(at: int, text: str) -> tuple[float, str]:
        async with turn:
            began = time.perf_counter()
            draft = await translators[at % len(translators)].draft(text)
            return time.perf_counter() - began, draft.text

    found = await asyncio.gather(*(one(at, text) for at, text in enumerate(texts)))
    return [took for took, _ in found], [text for _, text in found]


def main() -> None:
    """Print the table, and write it to a section of a file."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--adapter", required=True)
    parser.add_argument("--tenants", type=int, default=8)
    parser.add_argument("--pairs", type=int, default=10_000, help="of each tenant")
    parser.add_argument("--texts", type=int, default=64, help="of a round")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--storage", default=default_storage())
    parser.add_argument("--results", type=Path, help="write the section `memory-cost` of this file")
    options = parser.parse_args()
    registry = Registry(options.storage)
    card = registry.card(options.adapter)
    assert card.data is not None
    dataset, language = load_data(card.data.name, [card.language[0]]), card.language[0]
    stored = {row["input"]: row["text"] for row in pair_rows(dataset, "train", [language])}
    texts = [row["input"] for row in pair_rows(dataset, "test", [language])][:: max(1, len(stored) // 1000)]
    texts = list(dict.fromkeys(texts))[: options.texts]
    tenants = [f"{number:016x}" for number in range(options.tenants)]
    with tempfile.TemporaryDirectory(prefix="kauli-memory-") as storage:
        Registry(storage).publish(registry.fetch(options.adapter), card.model_copy(update={"version": None}))
        memories = Memories(storage, Remembering(Embedder.default()))
        pairs = [Confirmed(*pair, "en", language) for pair in list(stored.items())[: options.pairs]]
        for tenant in tenants:
            note(f"{tenant}: {len(pairs)} pairs")
            memories.open(tenant, "main", create=True).add(pairs)
        with Local(storage) as local:
            first = local.translator(card.name, "en", language, ["main"])
            assert card.translation is not None
            prompting = card.translation.prompting
            kept: Any = KeptBackends(local, Kept(local.memory()))
            systems = {
                name: [Translator(backends, first.route, "en", language, prompting, ["main"], one) for one in tenants]
                for name, backends in (("searched", local), ("found before", kept))
            }
            alike = list[float]()
            times: dict[str, list[list[float]]] = {name: [] for name in systems}
            for number in range(options.rounds + 1):
                answers = {}
                # Searched first at the start (it fills what is kept), then in turn: who goes first has an effect.
                for name, translators in sorted(systems.items(), reverse=number % 2 == 0):
                    began = time.perf_counter()
                    took, answers[name] = local.run(seconds_of(translators, texts))
                    if number:  # the first round loads each tenant's memory, and keeps what is found
                        times[name].append([time.perf_counter() - began, *took])
                pairs_of = zip(*answers.values(), strict=True)
                alike.append(sum(one == other for one, other in pairs_of) / len(texts))
    totals = {name: [one[0] for one in rounds] for name, rounds in times.items()}
    medians = {name: float(np.median([took for one in rounds for took in one[1:]])) for name, rounds in times.items()}
    ratios = [after / before for before, after in zip(totals["found before"], totals["searched"], strict=True)]
    lines = [
        f"{options.tenants} tenants with {len(pairs)} pairs each, {card.spec}, {AT_ONCE} "
        f"translations at once, {len(texts)} texts a round, {options.rounds} rounds; {machine()}.",
        "",
        "| the pairs of a prompt | translations a second | median ms of a translation |",
        "| --- | --- | --- |",
        *(
            f"| {name} | {len(texts) / statistics.median(totals[name]):.2f} | {1000 * medians[name]:.0f} |"
            for name in systems
        ),
        "",
        f"Time of a round, searched to found before: {statistics.median(ratios):.3f} "
        f"({min(ratios):.3f} to {max(ratios):.3f}). Equal translations: {min(alike):.0%} or more.",
    ]
    print("\n".join(lines))
    if options.results is not None:
        update_section(options.results, "memory-cost", "### Memory in translations\n\n" + "\n".join(lines))


if __name__ == "__main__":
    main()
