"""The resident memory of a replica: the process with its libraries, then with a base loaded as the service loads it.

python tests/bench/footprint.py --base smollm2-135m-q4
"""

import argparse
import gc
import tempfile

import psutil

from kauli.models.bases.find import find_base
from kauli.models.tasks import resolve
from kauli.serving.settings import ServeArgs
from kauli.serving.tasks import WORKERS


def resident() -> float:
    """MiB of this process."""
    gc.collect()
    return float(psutil.Process().memory_info().rss) / 2**20


def main() -> None:
    """Load one base by the worker of its task, in fp32 with one thread; print MiB before and after."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--base", default="smollm2-135m-q4")
    base = find_base(parser.parse_args().base, fetch=False)
    name, row = next((name, row) for name, row in WORKERS.items() if row.base_task == base.task)
    build = resolve(row.build)
    with tempfile.TemporaryDirectory() as storage:
        import torch

        torch.set_num_threads(1)
        before = resident()
        worker = build(ServeArgs(storage=storage, threads=1, precision="fp32"), base, True)
        print(f"{base.name} ({name}): {before:.0f} MiB without it, {resident():.0f} MiB with it")
        worker.close()


if __name__ == "__main__":
    main()
