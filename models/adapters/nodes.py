"""The nodes of a Ray cluster: what runs on each, and whether it reaches the storage; asked by a small task on each."""

import platform
import secrets
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from typing import Any

import ray
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from kauli.models.adapters.store import open_store
from kauli.models.cluster import start_ray
from kauli.models.errors import KauliError
from kauli.models.progress import note

COMPARED = ("python", "ray", "kauli", "torch")
"""What must be alike on all nodes. Of torch, the build (+cpu, +cu130) may differ."""
_ANSWER_S = 60.0


@dataclass(frozen=True)
class NodeReport:
    """What one node of a cluster said of itself."""

    node: str
    """Its address, and the beginning of its id: several nodes may share an address."""
    versions: dict[str, str]
    """Name of `COMPARED` -> version, "missing" where it is not installed."""
    cpus: int
    gpus: int
    """That Ray counts there."""
    devices: int
    """GPUs that the driver of its machine shows."""
    fault: str | None = None
    """Why it gave no answer, or why it can't use the storage."""


def own_versions() -> dict[str, str]:
    """The versions of this process."""
    found = {"python": platform.python_version()}
    for name in COMPARED[1:]:
        try:
            found[name] = version(name).partition("+")[0]
        except PackageNotFoundError:
            found[name] = "missing"
    return found


def report_nodes(storage: str) -> list[NodeReport]:
    """What every living node of the cluster that this process has joined says; the storage is written and read.

    A file that the first node writes must be seen by all: a folder that each machine has for itself is no storage of
    a cluster. Nothing of it is left behind.
    """
    alive = sorted((one for one in ray.nodes() if one["Alive"]), key=lambda one: str(one["NodeID"]))  # type: ignore[no-untyped-call]
    names = [f"{one['NodeManagerAddress']} ({one['NodeID'][:6]})" for one in alive]
    mark = f"check-{secrets.token_hex(6)}"
    ask: Any = ray.remote(num_cpus=0, max_retries=0)(_ask)
    found: list[NodeReport] = []
    try:
        for place, (one, name) in enumerate(zip(alive, names, strict=True)):
            pinned = NodeAffinitySchedulingStrategy(one["NodeID"], soft=False)
            kept = {key: int(one["Resources"].get(key, 0)) for key in ("CPU", "GPU")}
            try:
                answer = ray.get(
                    ask.options(scheduling_strategy=pinned).remote(storage, mark, place == 0), timeout=_ANSWER_S
                )
            except Exception as error:  # whatever keeps a node from answering is the finding itself
                line = (str(error).strip().splitlines() or [type(error).__name__])[-1]
                found.append(NodeReport(name, {}, kept["CPU"], kept["GPU"], 0, f"no answer: {line.strip()}"))
                continue
            versions, devices, fault = answer
            if fault == "unseen":
                fault = f"it does not see in {storage} what the node {names[0]} wrote there: not a shared storage"
            found.append(NodeReport(name, versions, kept["CPU"], kept["GPU"], devices, fault))
    finally:
        with suppress(KauliError):  # this process may not reach it: the nodes' own faults say what is wrong
            open_store(storage, _FOLDER).delete(mark)
    return found


@contextmanager
def joined_cluster(address: str, storage: str) -> Iterator[None]:
    """Be part of the cluster at an address, all of whose nodes reach the storage and have this process's versions.

    Raises KauliError where there is none, or where a node is unfit; nothing was done then.
    """
    owned = start_ray(address)
    try:
        reports = report_nodes(storage)
        for report in reports:
            if report.fault is not None:
                raise KauliError(
                    f"the node {report.node} can't take part: {report.fault}. Look at all nodes: "
                    f"kauli doctor --address {address} --storage {storage}"
                )
        ours = own_versions()
        for report in reports:
            if wrong := [name for name in ("kauli", "torch") if report.versions[name] != ours[name]]:
                text = ", ".join(f"{name} {report.versions[name]} (here {ours[name]})" for name in wrong)
                raise KauliError(f"the node {report.node} has other versions: {text}. Install the same on all nodes")
        note(f"Joined the cluster at {address}: {len(reports)} nodes, all reach {storage}")
        yield
    finally:
        if owned:
            ray.shutdown()


_FOLDER = ".nodes"


def _ask(storage: str, mark: str, first: bool) -> tuple[dict[str, str], int, str | None]:
    """Runs on a node: its versions, its GPUs, and what is wrong with the storage, None where nothing is."""
    import glob
    import os

    fault: str | None = None
    try:
        store = open_store(storage, _FOLDER)
        if first:
            store.write(f"{mark}/first", b"1")
        own = f"{mark}/{os.getpid()}-{secrets.token_hex(4)}"
        store.write(own, b"2")
        if store.read(own) != b"2":
            fault = f"{storage} does not give back what was written"
        elif store.read(f"{mark}/first") != b"1":
            fault = "unseen"
    except Exception as error:  # of any library of a storage
        lines = str(error).strip().splitlines() or [type(error).__name__]
        fault = f"{storage} can't be used there: {lines[0][:300]}"
    return own_versions(), len(glob.glob("/proc/driver/nvidia/gpus/*/information")), fault
