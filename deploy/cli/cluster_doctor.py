"""`kauli doctor --address`: what is wrong with a Ray cluster, node by node."""

from collections.abc import Iterator, Mapping, Sequence

from kauli.deploy.cli.doctor import Finding
from kauli.models.adapters.nodes import COMPARED, NodeReport, own_versions, report_nodes
from kauli.models.cluster import start_ray


def check_cluster(address: str, storage: str) -> list[Finding]:
    """The findings on the cluster at an address; raises KauliError where there is none."""
    import ray

    owned = start_ray(address)
    try:
        return list(judge(address, storage, report_nodes(storage), own_versions()))
    finally:
        if owned:
            ray.shutdown()


def judge(address: str, storage: str, reports: Sequence[NodeReport], ours: Mapping[str, str]) -> Iterator[Finding]:
    """What the nodes' reports mean; `ours` are the versions of this machine."""
    answered = [one for one in reports if one.versions]
    cpus, gpus = sum(one.cpus for one in reports), sum(one.gpus for one in reports)
    state: str = f"{len(reports)} nodes at {address}: {cpus} CPUs, {gpus} GPUs"
    yield Finding("cluster", "ok" if len(answered) == len(reports) else "problem", state)
    for one in reports:
        check = f"node {one.node}"
        shown = ", ".join(f"{name} {one.versions[name]}" for name in COMPARED if name in one.versions)
        differing = [name for name in COMPARED if one.versions and one.versions[name] != ours[name]]
        size = f"{one.cpus} CPUs, {one.gpus} GPUs"
        if not one.versions:
            yield Finding(check, "problem", one.fault or "no answer", "look at the logs of its raylet; restart it")
        elif differing:
            text = ", ".join(f"{name} {one.versions[name]}, here {ours[name]}" for name in differing)
            yield Finding(check, "problem", text, "run the same image on all nodes, and this command in it")
        elif one.gpus > one.devices:
            found = f"{size} for Ray, and {one.devices} GPUs that the machine shows"
            yield Finding(check, "problem", found, "install the driver, or give the container its GPUs (--gpus all)")
        else:
            yield Finding(check, "ok", f"{size}; {shown}")
        if one.versions and one.fault is not None:
            advice = "give it the storage's address and keys, or mount the shared folder there"
            yield Finding(f"storage from {one.node}", "problem", one.fault, advice)
    if reports and all(one.fault is None for one in reports):
        yield Finding("storage", "ok", f"{len(answered)} nodes write and read {storage}")
