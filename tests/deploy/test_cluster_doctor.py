"""`kauli doctor --address` and `kauli train --address`: what they say of a cluster, of real raylets on this machine."""

import json
import os
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest
import ray
from ray.cluster_utils import Cluster

from kauli.deploy.cli.cluster_doctor import judge
from kauli.models.adapters.nodes import COMPARED, NodeReport, own_versions
from support.cli import fails

OPEN = {"RAY_AUTH_MODE": "disabled"}
"""This process has imported Ray, which read then how it authenticates. Loopback would not do: of a driver Ray puts the
machine's own address in its place."""
OURS = dict.fromkeys(COMPARED, "1.0")
GOOD = NodeReport("10.0.0.1 (aaaaaa)", dict(OURS), cpus=4, gpus=0, devices=0)


def findings(*reports: NodeReport) -> dict[str, tuple[str, str]]:
    return {one.check: (one.state, one.found) for one in judge("head:6379", "s3://b/store", reports, OURS)}


def test_nodes_alike_are_in_order() -> None:
    found = findings(GOOD, replace(GOOD, node="10.0.0.2 (bbbbbb)", gpus=2, devices=2))
    assert {state for state, _ in found.values()} == {"ok"}
    assert found["cluster"][1] == "2 nodes at head:6379: 8 CPUs, 2 GPUs"
    assert found["storage"][1] == "2 nodes write and read s3://b/store"


@pytest.mark.parametrize(
    ("bad", "check", "text"),
    [
        (replace(GOOD, versions={**OURS, "torch": "0.9"}), "node 10.0.0.1 (aaaaaa)", "torch 0.9, here 1.0"),
        (replace(GOOD, versions={**OURS, "kauli": "missing"}), "node 10.0.0.1 (aaaaaa)", "kauli missing, here 1.0"),
        (replace(GOOD, gpus=2, devices=1), "node 10.0.0.1 (aaaaaa)", "2 GPUs for Ray, and 1 GPUs"),
        (replace(GOOD, fault="access denied"), "storage from 10.0.0.1 (aaaaaa)", "access denied"),
        (replace(GOOD, versions={}, fault="no answer: dead"), "node 10.0.0.1 (aaaaaa)", "no answer: dead"),
    ],
)
def test_what_is_wrong_is_named(bad: NodeReport, check: str, text: str) -> None:
    found = findings(replace(GOOD, node="10.0.0.9 (cccccc)"), bad)
    assert found[check][0] == "problem"
    assert text in found[check][1]
    assert found["node 10.0.0.9 (cccccc)"][0] == "ok"
    assert "storage" not in found or bad.fault is None


@pytest.fixture(scope="module")
def address() -> Iterator[str]:
    """A cluster of two nodes; the second one counts a GPU that is not there."""
    with pytest.MonkeyPatch.context() as patch:
        for name, value in OPEN.items():
            patch.setenv(name, value)
        patch.setenv("RAY_USAGE_STATS_ENABLED", "0")
        small = {"object_store_memory": 100 * 2**20}
        cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 1, "include_dashboard": False, **small})
        try:
            cluster.add_node(wait=False, num_cpus=1, num_gpus=1, **small)
            cluster.wait_for_nodes(timeout=120)
            yield cluster.address
        finally:
            ray.shutdown()
            cluster.shutdown()


def kauli(*words: str) -> "subprocess.CompletedProcess[str]":
    """The command in a process of its own: Ray reads how it authenticates once, when it is imported."""
    command = [str(Path(sys.executable).parent / "kauli"), *words]
    environment = os.environ | OPEN
    return subprocess.run(command, capture_output=True, text=True, env=environment, timeout=240)


@pytest.mark.ray
def test_a_cluster_is_checked_node_by_node(address: str, tmp_path: Path) -> None:
    store = tmp_path / "store"
    done = kauli("doctor", "--address", address, "--storage", str(store), "--json")
    assert done.returncode == 1, done.stderr
    found = json.loads(done.stdout)
    states = [one["state"] for one in found if one["check"].startswith("node ")]
    assert sorted(states) == ["ok", "problem"]  # the second counts a GPU that is not there
    assert any("1 GPUs for Ray, and 0 GPUs" in one["found"] for one in found)
    assert any(f"ray {own_versions()['ray']}" in one["found"] for one in found)
    assert found[-1]["check"] == "storage"
    assert found[-1]["state"] == "ok"
    assert [path for path in store.rglob("*") if path.is_file()] == []


@pytest.mark.ray
def test_a_storage_that_is_not_shared_is_told_before_anything_is_done(address: str, tmp_path: Path) -> None:
    # Every process has a memory:// of its own, as machines have folders of the same name
    done = kauli("doctor", "--address", address, "--storage", "memory://bucket/store", "--json")
    assert done.returncode == 1, done.stderr
    wrong = [one for one in json.loads(done.stdout) if one["check"].startswith("storage from")]
    assert len(wrong) == 1
    assert "does not see in memory://bucket/store what the node" in wrong[0]["found"]
    blocked = tmp_path / "file"
    blocked.write_text("")
    for text, storage in (
        ("not a shared storage", "memory://bucket/store"),
        ("can't be used there", str(blocked / "store")),
    ):
        done = kauli("train", "text-sw", "--address", address, "--storage", storage)
        assert (done.returncode, done.stdout) == (1, "")
        assert text in done.stderr
        assert "Traceback" not in done.stderr


@pytest.mark.parametrize("command", [("doctor",), ("train", "text-sw")])
def test_an_address_that_does_not_answer(command: tuple[str, ...], tmp_path: Path) -> None:
    with socket.socket() as taken:  # bound and not listening: nobody else gets the port, and nobody answers
        taken.bind(("127.0.0.1", 0))
        began = time.monotonic()
        address = f"127.0.0.1:{taken.getsockname()[1]}"
        fails(1, f"no Ray cluster at '{address}'", *command, "--address", address, "--storage", str(tmp_path))
    assert time.monotonic() - began < 40  # most of it imports torch, beside other tests; Ray itself tries for a minute
    assert os.listdir(tmp_path) == []


def test_other_versions_are_named(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    def refuse(**options: object) -> None:
        raise RuntimeError(
            "Version mismatch: The cluster was started with:\n    Ray: 2.9.0\n    Python: 3.9.1\n"
            "This process was started with:\n    Ray: 2.60.0\n    Python: 3.11.2\n"
        )

    monkeypatch.setattr(ray, "init", refuse)
    message = "has other versions than this machine, which must be alike: Version mismatch"
    fails(1, message, "train", "text-sw", "--address", "auto", "--storage", str(tmp_path))
