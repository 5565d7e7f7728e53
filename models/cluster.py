"""Starting Ray on this machine, or joining a cluster: alike for training and serving."""

import logging
import os
import re
import secrets
import socket

import ray

from kauli.models.errors import KauliError


def start_ray(address: str | None = None, cpus: int | None = None) -> bool:
    """Start a local Ray, guarded by a token, or join the cluster at `address`; False where Ray is on already.

    `cpus` are the logical CPUs of a local Ray; by default the machine's. Raises KauliError where there is no
    cluster at the address (within 10 seconds), or one of another version of Ray or Python.
    """
    if ray.is_initialized():
        return False
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    logging.getLogger("ray").setLevel(logging.ERROR)
    if address is not None:
        _probe(address)
        try:
            ray.init(address=address, log_to_driver=False, logging_level=logging.ERROR)
        except (ConnectionError, ValueError, RuntimeError) as error:
            reason = [line.strip() for line in str(error).splitlines() if line.strip()]
            if "Version mismatch" in str(error):
                text = "; ".join(reason).replace(":;", ":")
                raise KauliError(
                    f"the cluster at '{address}' has other versions than this machine, which must be alike: {text}. "
                    "Run the command in the cluster's own image, or submit it there: ray job submit"
                ) from error
            raise KauliError(f"no Ray cluster at '{address}': {reason[-1] if reason else error}") from error
        return True
    if "RAY_AUTH_MODE" not in os.environ:
        # Ray turns token authentication on by itself for a local cluster (set here, after its import, the mode
        # would come too late); with a token in the environment it writes none to the home folder.
        os.environ.setdefault("RAY_AUTH_TOKEN", secrets.token_hex(32))
    ray.init(
        address="local",  # otherwise Ray would join whatever cluster an earlier `ray start` left here
        num_cpus=cpus or os.cpu_count(),
        object_store_memory=256 * 1024**2,
        include_dashboard=False,
        log_to_driver=False,
        logging_level=logging.ERROR,
        _node_ip_address="127.0.0.1",
    )
    return True


_CONNECT_S = 5.0


def _probe(address: str) -> None:
    """Raise KauliError where nothing listens at host:port; Ray itself would try for a minute."""
    found = re.fullmatch(r"(?:ray://)?(\[?[\w.:-]+?\]?):(\d+)", address)
    if found is None:  # `auto`, or what Ray itself refuses at once
        return
    try:
        socket.create_connection((found[1].strip("[]"), int(found[2])), timeout=_CONNECT_S).close()
    except (OSError, OverflowError) as error:
        raise KauliError(
            f"no Ray cluster at '{address}': {getattr(error, 'strerror', None) or error}. Its head is started by "
            "`ray start --head --port=6379`; the address is HOST:6379"
        ) from None
