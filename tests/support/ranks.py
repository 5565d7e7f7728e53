"""Free ports, and test functions run as the ranks of a small group of processes."""

import os
import socket
import subprocess
import sys
from pathlib import Path


def free_port() -> int:
    """A port of 127.0.0.1 that nobody listens on now."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


class Ranks:
    """Two processes that run `module.function(argument)` as ranks 0 and 1 of one group, without Ray."""

    def __init__(self, file: str, function: str, argument: object) -> None:
        """Start them. `file` is the test file that holds the function: its `__file__`."""
        path, port = Path(file), str(free_port())
        tests = Path(__file__).parents[1]
        # A process that ends with its group still up aborts now and then: gloo's threads outlive the interpreter.
        code = (
            f"import {path.stem}, torch.distributed as group; {path.stem}.{function}({str(argument)!r}); "
            "group.is_initialized() and group.destroy_process_group()"
        )
        self._processes = [
            subprocess.Popen(
                [sys.executable, "-c", code], stderr=subprocess.PIPE, text=True,
                env=os.environ | {
                    "RANK": str(rank), "LOCAL_RANK": str(rank), "WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1",
                    "MASTER_PORT": port, "OMP_NUM_THREADS": "1", "ACCELERATE_USE_CPU": "true",
                    "PYTHONPATH": os.pathsep.join([str(path.parent), str(tests)]),
                },
            )
            for rank in range(2)
        ]  # fmt: skip

    def wait(self) -> None:
        """Until both have ended well; AssertionError with what they wrote where one has not."""
        for process in self._processes:
            _, errors = process.communicate(timeout=300)
            assert process.returncode == 0, errors
