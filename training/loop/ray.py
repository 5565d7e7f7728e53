"""A training run on Ray Train: the only place that knows it. Workers, restarts after a failure, checkpoints."""

import os
import tempfile
from pathlib import Path
from typing import Any

import pyarrow.fs
import ray
from ray.train import (
    Checkpoint,
    CheckpointConfig,
    FailureConfig,
    RunConfig,
    ScalingConfig,
    TrainingFailedError,
    get_checkpoint,
    report,
)
from ray.train.torch import TorchTrainer

from kauli.models.cluster import start_ray
from kauli.models.errors import KauliError, UsageError
from kauli.training.loop.session import Job, Outcome, work
from kauli.training.recipe import Recipe

# The controller asks for reports this often; at Ray's default of 2 s every report waits as long, and a checkpoint
# that was reported but not yet read is lost with its worker.
os.environ.setdefault("RAY_TRAIN_HEALTH_CHECK_INTERVAL_S", "0.2")
MAX_FAILURES = 3


class _RaySession:
    """Checkpoints through Ray Train's report, which all ranks call alike."""

    def restore(self) -> Path | None:
        checkpoint = get_checkpoint()
        return None if checkpoint is None else _folder(checkpoint)

    def report(self, metrics: dict[str, Any], checkpoint: Path | None) -> None:
        report(metrics, checkpoint=Checkpoint.from_directory(checkpoint) if checkpoint else None)


def train_on_ray(job: Job) -> tuple[Path, Outcome]:
    """Run a job on the cluster at RAY_ADDRESS, or on a local Ray that is started for it.

    Returns the adapter's folder and the outcome. A worker that dies is started again, up to three times; a run whose
    driver died resumes from its last checkpoint when it is called again with the same folder. Raises UsageError for
    more workers than the cluster has CPUs or GPUs.
    """
    owns = start_ray(os.environ.get("RAY_ADDRESS"))
    try:
        scaling, threads = _scaling(job.recipe)
        filesystem, path = _place(job.storage)
        trainer = TorchTrainer(
            _worker,  # type: ignore[arg-type]  # the types that mypy sees are those of Train v1
            train_loop_config={"job": job, "threads": threads},
            scaling_config=scaling,
            run_config=RunConfig(
                name=job.folder,
                storage_path=path,
                storage_filesystem=filesystem,
                failure_config=FailureConfig(max_failures=MAX_FAILURES),
                checkpoint_config=CheckpointConfig(num_to_keep=2),
            ),
        )
        try:
            result: Any = trainer.fit()
        except TrainingFailedError as error:
            raise KauliError(f"training failed {MAX_FAILURES + 1} times, the last time so: {error}") from error
        if isinstance(result.return_value, KauliError):
            raise result.return_value
        return _folder(result.checkpoint) / "adapter", result.return_value
    finally:
        if owns:
            ray.shutdown()


def _folder(checkpoint: Checkpoint) -> Path:
    local = isinstance(checkpoint.filesystem, pyarrow.fs.LocalFileSystem)
    return Path(checkpoint.path if local else checkpoint.to_directory())


def _worker(config: dict[Any, Any]) -> Outcome | KauliError | None:
    """A worker's part. A user's mistake is returned: raised, it would be tried again like a crash."""
    try:
        with tempfile.TemporaryDirectory(prefix="kauli-adapter-") as scratch:
            return work(config["job"], _RaySession(), Path(scratch) / "adapter", config["threads"])
    except KauliError as error:
        return error


def _scaling(recipe: Recipe) -> tuple[ScalingConfig, int]:
    """Workers and the CPU threads of each; UsageError, at once, for more than the cluster can ever place."""
    workers = recipe.scale.workers
    least = workers if isinstance(workers, int) else workers[0]
    resources: dict[str, float] = ray.cluster_resources()  # type: ignore[no-untyped-call]
    cpus, gpus = int(resources.get("CPU", 0)), int(resources.get("GPU", 0))
    kind, there = ("GPU", gpus) if recipe.scale.gpu else ("CPU", cpus)
    if least > there:
        raise UsageError(
            f"scale.workers {workers} needs {least} {kind}s, one for each worker; this cluster has {there}. "
            f"Use --set scale.workers={max(there, 1)}" + (" or --set scale.gpu=false." if recipe.scale.gpu else ".")
        )
    # A Ray that a service shares counts more logical CPUs than the machine has cores
    if len(ray.nodes()) == 1:  # type: ignore[no-untyped-call]
        cpus = min(cpus, os.cpu_count() or cpus)
    threads = 1 if recipe.scale.gpu else max(1, cpus // least)
    scaling = ScalingConfig(
        num_workers=workers,  # type: ignore[arg-type]  # a range makes it elastic
        use_gpu=recipe.scale.gpu,
        resources_per_worker={"CPU": threads, **({"GPU": 1} if recipe.scale.gpu else {})},
    )
    return scaling, threads


def _place(storage: str) -> tuple[pyarrow.fs.FileSystem | None, str]:
    """Ray's storage for `<storage>/runs`: a local path, or any file system of fsspec."""
    if "://" not in storage and "::" not in storage:
        return None, str(Path(storage).expanduser().absolute() / "runs")
    import fsspec  # only where a run lies in an object store

    filesystem, root = fsspec.core.url_to_fs(storage, use_listings_cache=False)
    return pyarrow.fs.PyFileSystem(pyarrow.fs.FSSpecHandler(filesystem)), f"{root.rstrip('/')}/runs"
