"""Ray Train under fire: killed workers and a killed driver end with the same weights as an undisturbed run."""

import json
import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest
from safetensors.torch import load_file

from kauli.models.adapters.registry import Registry

pytestmark = [pytest.mark.ray, pytest.mark.timeout(1500)]  # a run takes a minute or more, and each test has several

STEPS = 100
RECIPE = f"""
name: NAME
base: debug
language: sw
data: DATA
method: {{kind: lora, rank: 4, alpha: 8, targets: all-linear, dropout: 0.1}}
train:
  {{steps: {STEPS}, batch_tokens: 4000, micro_tokens: 4000, max_length: 512, validate_every: 5, early_stop: null}}
"""


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("faults")
    draw = random.Random(0)
    words = [
        "moto",
        "maji",
        "ndege",
        "samaki",
        "mti",
        "jua",
        "mwezi",
        "nyota",
        "mlima",
        "mto",
        "bahari",
        "upepo",
        "mvua",
    ]
    rows = [
        {"prompt": f"say {number}", "text": f"{' '.join(draw.choices(words, k=60))} {number}", "language": "sw"}
        for number in range(400)
    ]
    (folder / "data.jsonl").write_text("\n".join(json.dumps(row) for row in rows))
    return folder


def start(home: Path, name: str) -> subprocess.Popen[str]:
    recipe = home / f"{name}.yaml"
    recipe.write_text(RECIPE.replace("NAME", name).replace("DATA", str(home / "data.jsonl")))
    command = [str(Path(sys.executable).parent / "kauli"), "train", str(recipe), "--storage", str(home / "store")]
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


def step_of(home: Path, name: str) -> int:
    """How far the log of a run says that it is."""
    logs = list((home / "store" / "runs" / name).glob("*/metrics.jsonl"))
    lines = logs[0].read_text().splitlines() if logs else []
    return int(json.loads(lines[-1])["step"]) if lines else 0


def restarts_of(home: Path, name: str) -> int:
    (log,) = (home / "store" / "runs" / name).glob("*/metrics.jsonl")
    return int([json.loads(line) for line in log.read_text().splitlines() if "restarts" in line][-1]["restarts"])


def wait_for_step(process: "subprocess.Popen[str]", home: Path, name: str, step: int) -> None:
    until = time.monotonic() + 480
    while step_of(home, name) < step:
        assert process.poll() is None, process.communicate()
        assert time.monotonic() < until, f"step {step} was not reached"
        time.sleep(0.05)


def checkpoints_of(home: Path, name: str) -> list[str]:
    """The checkpoints that Ray would go on from: it registers them a while after the step."""
    found = list((home / "store" / "runs" / name).rglob("checkpoint_manager_snapshot.json"))
    snapshot = json.loads(found[0].read_text()) if found else {"checkpoint_results": []}
    return [one["checkpoint_dir_name"] for one in snapshot["checkpoint_results"]]


def workers_of(process: "subprocess.Popen[str]") -> list[psutil.Process]:
    found = []
    for child in psutil.Process(process.pid).children(recursive=True):
        try:
            if "RayTrainWorker" in " ".join(child.cmdline()):
                found.append(child)
        except psutil.Error:
            continue
    return found


def finished(process: "subprocess.Popen[str]") -> str:
    out, errors = process.communicate(timeout=400)
    assert process.returncode == 0, errors
    return out


@pytest.fixture(scope="module")
def undisturbed(home: Path) -> dict[str, object]:
    finished(start(home, "calm"))
    return weights(home, "calm")


def weights(home: Path, name: str) -> dict[str, object]:
    registry = Registry(str(home / "store"))
    assert registry.versions(name) == [1]
    assert registry.card(name).training.steps == STEPS  # type: ignore[union-attr]
    return dict(load_file(registry.fetch(name) / "adapter_model.safetensors"))


def assert_same(one: dict[str, object], other: dict[str, object]) -> None:
    import torch

    assert one.keys() == other.keys()
    for name, value in one.items():
        assert torch.equal(value, other[name]), name  # type: ignore[arg-type]


def test_workers_killed_at_two_random_steps_change_nothing(home: Path, undisturbed: dict[str, object]) -> None:
    process = start(home, "workers")
    for low in (8, 48):
        before = checkpoints_of(home, "workers")
        wait_for_step(process, home, "workers", random.randint(low, low + 12))
        while checkpoints_of(home, "workers") == before:
            assert process.poll() is None, process.communicate()
        for worker in workers_of(process):
            worker.send_signal(signal.SIGKILL)
    finished(process)
    assert_same(weights(home, "workers"), undisturbed)
    assert restarts_of(home, "workers") == 2, "each kill should have been met by a restart from a checkpoint"


def test_a_driver_killed_at_two_random_steps_changes_nothing(home: Path, undisturbed: dict[str, object]) -> None:
    for low in (8, 40):
        before = checkpoints_of(home, "driver")
        process = start(home, "driver")
        wait_for_step(process, home, "driver", random.randint(low, low + 12))
        while checkpoints_of(home, "driver") == before:
            assert process.poll() is None, process.communicate()
        # Ray's two agents look for their raylet now and then, and end by themselves a while after it.
        children = psutil.Process(process.pid).children(recursive=True)
        family = [one for one in children if "Agent" not in one.name()]
        os.kill(process.pid, signal.SIGKILL)
        process.communicate()
        _, left = psutil.wait_procs(family, timeout=30)
        # A dead process that nobody has waited for yet is still listed.
        alive = [one for one in left if one.is_running() and one.status() != psutil.STATUS_ZOMBIE]
        assert not alive, "Ray's processes outlive their driver"
    finished(start(home, "driver"))
    assert_same(weights(home, "driver"), undisturbed)
    assert restarts_of(home, "driver") == 2, "each attempt should have gone on from a checkpoint"
    runs = [path.name for path in (home / "store" / "runs" / "driver").iterdir()]
    assert len(runs) == 1, "each attempt should have gone on with the same run"


def test_more_workers_than_cpus_is_an_error_at_once(home: Path) -> None:
    (home / "many.yaml").write_text(RECIPE.replace("NAME", "many").replace("DATA", str(home / "data.jsonl")))
    command = [
        str(Path(sys.executable).parent / "kauli"),
        "train",
        str(home / "many.yaml"),
        "--set",
        "scale.workers=999",
    ]
    run = subprocess.run([*command, "--storage", str(home / "store")], capture_output=True, text=True, timeout=240)
    assert run.returncode == 2
    assert "999" in run.stderr
    assert "scale.workers=" in run.stderr
    assert "Traceback" not in run.stderr
