"""The service on Ray Serve: a deployment for each base of each worker, and an ingress before them.

Only this file knows Ray Serve.
"""

import asyncio
import logging
import math
import os
import re
import socket
import time
from collections.abc import AsyncGenerator
from functools import partial
from typing import Any

import httpx
import ray
from fastapi import FastAPI
from ray import serve
from ray.serve import Application
from ray.serve.exceptions import BackPressureError
from ray.serve.handle import DeploymentHandle

from kauli.models.adapters.registry import Registry
from kauli.models.cluster import start_ray
from kauli.models.errors import KauliError, UsageError
from kauli.models.progress import note
from kauli.serving.events import BROADCAST, CONSTANT, STREAMED, TOO_MANY, Event
from kauli.serving.http.app import create_app
from kauli.serving.replicas import Replica
from kauli.serving.routing import Catalogue, public_name
from kauli.serving.settings import ServeArgs, WorkerArgs, load_settings, merge_settings, parse_settings
from kauli.serving.tasks import WORKERS
from kauli.serving.topology import Topology, choose_topology

APPLICATION = "kauli"
_INGRESS_CPUS = 0.1
_QUIET = {"log_level": "WARNING", "enable_access_log": False}


class Handle:
    """A worker behind a Ray Serve handle: it has the methods of the worker's class."""

    def __init__(self, handle: DeploymentHandle[Any]) -> None:
        self._handle = handle
        # Configured once: options() anew for each request would register metrics for each.
        self._call = handle.options(method_name="call")
        self._stream = handle.options(method_name="stream", stream=True)
        self._constants: dict[str, Any] = {}

    def __getattr__(self, method: str) -> Any:
        if method.startswith("_"):
            raise AttributeError(method)
        if method in STREAMED:
            return partial(self._events, method)
        return partial(self._all if method in BROADCAST else self._one, method)

    async def check(self) -> str | None:
        """None when the deployment answers within 30 seconds, else what is wrong."""
        try:
            result: str | None = await asyncio.wait_for(self._call.remote("check"), timeout=30)
        except TimeoutError:
            return "no answer within 30 seconds"
        except Exception as error:  # whatever keeps a replica from answering is the finding itself
            return f"{type(error).__name__}: {str(error).splitlines()[0] if str(error) else 'no reason given'}"
        return result

    async def _one(self, method: str, *values: Any) -> Any:
        if method in self._constants:
            return self._constants[method]
        try:
            found = await self._call.remote(method, *values)
        except BackPressureError:
            return TOO_MANY
        if method in CONSTANT:
            self._constants[method] = found
        return found

    async def _all(self, method: str, *values: Any) -> Any:
        results = await self._handle.broadcast("call", method, *values).results_async(timeout_s=60)
        return BROADCAST[method](results)

    async def _events(self, method: str, *values: Any) -> AsyncGenerator[Event]:
        response: Any = self._stream.remote(method, *values)
        try:
            async for event in response:
                yield event
        except BackPressureError:
            yield TOO_MANY
        finally:
            response.cancel()  # leaving the iteration cancels the request in the replica


class Ingress:
    """The FastAPI application before the deployments of the workers: worker -> name of a base -> its handle."""

    def __init__(
        self, args: ServeArgs, topology: Topology, handles: dict[str, dict[str, DeploymentHandle[Any]]]
    ) -> None:
        self._args = args
        self._catalogue = Catalogue(Registry(args.storage), topology.answering, args.refresh_s, tasks=topology.tasks)
        self._backends = {
            worker: {name: Handle(handle) for name, handle in found.items()} for worker, found in handles.items()
        }

    def __serve_build_asgi_app__(self) -> FastAPI:
        """Called by Ray Serve in the replica."""
        return create_app(self._backends, self._catalogue, self._args)


def build(args: ServeArgs | dict[str, Any]) -> Application:
    """The Ray Serve application; in a Serve configuration file it is `import_path: kauli.serving.app:build`.

    Settings that are not given come from `KAULI_*` variables and defaults. Raises UsageError and KauliError.
    """
    if not isinstance(args, ServeArgs):
        args = parse_settings(merge_settings(load_settings().model_dump(exclude_unset=True), args))
    return _application(args, choose_topology(Registry(args.storage), args))


def _application(args: ServeArgs, topology: Topology) -> Application:
    ingress = serve.deployment(
        name="Ingress",
        ray_actor_options={"num_cpus": _INGRESS_CPUS},
        autoscaling_config={**_scaling(args.text.replicas), "target_ongoing_requests": 128},
        max_ongoing_requests=512,
        **_deployment_options(args),
    )(serve.ingress()(Ingress))
    handles = {
        worker: {
            public_name(base): _deployment(args, worker, public_name(base)).bind(
                args, worker, base.name, worker in topology.answering
            )
            for base in bases
        }
        for worker, bases in topology.bases.items()
    }
    application: Application = ingress.bind(args, topology, handles)
    return application


def _deployment(args: ServeArgs, worker: str, base: str) -> Any:
    """A deployment that autoscales to its worker's batches in each replica."""
    settings = args.worker(worker)
    target = WORKERS[worker].batches * settings.batch
    return serve.deployment(
        name=f"{worker.title()}-{re.sub(r'[^A-Za-z0-9_.-]+', '-', base)}",
        ray_actor_options={"num_cpus": settings.num_cpus, "num_gpus": settings.num_gpus},
        autoscaling_config={**_scaling(settings.replicas), "target_ongoing_requests": target},
        # More than the replica's own queue holds, so that the replica refuses, with a reason
        max_ongoing_requests=args.max_queue + 2 * target + 8,
        max_queued_requests=args.max_queue,
        **_deployment_options(args),
    )(Replica)


def _deployment_options(args: ServeArgs) -> dict[str, Any]:
    return {
        "max_constructor_retry_count": 2, "graceful_shutdown_timeout_s": args.drain_s,
        "graceful_shutdown_wait_loop_s": 0.2, "logging_config": _QUIET,
    }  # fmt: skip


def _cpus(args: ServeArgs, topology: Topology) -> int:
    """Logical CPUs for the fewest replicas of all deployments."""
    settings: list[WorkerArgs] = [args.worker(worker) for worker, bases in topology.bases.items() for _ in bases]
    wanted = sum(one.replicas[0] * one.num_cpus for one in settings)
    return math.ceil(wanted + args.text.replicas[0] * _INGRESS_CPUS)


def _scaling(replicas: tuple[int, int]) -> dict[str, int]:
    fewest, most = replicas
    return {"min_replicas": fewest, "initial_replicas": fewest, "max_replicas": most}


class Service:
    """A running service; `stop` ends what `start` began and nothing else."""

    def __init__(self, args: ServeArgs, connected: bool, joined: bool) -> None:
        self.url = args.url
        node: Any = ray._private.worker._global_node
        self.logs = str(node.get_logs_dir_path())
        """The folder of Ray's logs on this machine, a file for each process."""
        self._connected = connected
        self._joined = joined

    def stop(self) -> None:
        """Stop the service, and the Ray that `start` began; a cluster that it joined is left running."""
        serve.delete(APPLICATION)
        if self._connected:
            ray.shutdown()  # ends a Ray of our own with Serve's actors; a cluster that was joined is only left
        elif not self._joined:
            serve.shutdown()  # type: ignore[no-untyped-call]


def start(args: ServeArgs, address: str | None = None) -> Service:
    """Start the service and wait until it answers.

    Without an `address` Ray is started in this process, or the Ray that this process already runs is used. Raises
    UsageError when the port is taken, KauliError when the service does not come up.
    """
    check_port(args.host, args.port)
    if (args.proxy == "haproxy") != (os.environ.get("RAY_SERVE_ENABLE_HA_PROXY") == "1"):
        raise UsageError(
            f"proxy '{args.proxy}' and RAY_SERVE_ENABLE_HA_PROXY in the environment disagree: `kauli serve` sets both"
        )
    topology = choose_topology(Registry(args.storage), args)
    application = _application(args, topology)
    # As many logical CPUs as are asked for: Ray counts them, they are not threads, and a small machine can hold several
    # bases.
    connected = start_ray(address, cpus=max(4, os.cpu_count() or 1, _cpus(args, topology)))
    service = Service(args, connected, joined=address is not None)
    try:
        logging.getLogger("ray.serve").setLevel(logging.WARNING)
        serve.start(http_options={"host": args.host, "port": args.port}, logging_config=_QUIET)
        serve.run(application, name=APPLICATION, route_prefix="/")
        _wait_until_healthy(args)
    except BaseException as error:
        try:
            service.stop()
        except Exception as failure:  # the first error is the one to report
            note(f"The service did not stop cleanly: {_reason(failure)}")
        if isinstance(error, KauliError) or not isinstance(error, Exception):
            raise
        raise KauliError(f"the service did not start: {_reason(error)}") from error
    return service


def check_port(host: str, port: int) -> None:
    """Raise UsageError when the port is taken or the address can't be used."""
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    with socket.socket(family, socket.SOCK_STREAM) as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((host, port))
        except OSError as error:
            raise UsageError(
                f"{host}:{port} can't be used ({error.strerror}): is a service running there already? "
                f"Stop it, or choose another port with --port {port + 1 if port < 65535 else 8000}"
            ) from None


def _wait_until_healthy(args: ServeArgs, seconds: float = 120) -> None:
    until = time.monotonic() + seconds
    seen = "no answer"
    # trust_env=False: requests to this machine's own service must not go through the environment's proxy
    with httpx.Client(trust_env=False, timeout=35) as client:
        while time.monotonic() < until:
            try:
                response = client.get(f"{args.url}/health")
            except httpx.TransportError as error:
                seen = str(error)
            else:
                if response.status_code == 200:
                    return
                seen = response.text[:300]
            time.sleep(0.2)
    raise KauliError(f"the service at {args.url} is not healthy after {seconds:.0f} seconds: {seen}")


def _reason(error: Exception) -> str:
    """The last line of an error: Ray puts the cause's own message there."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return lines[-1] if lines else type(error).__name__
