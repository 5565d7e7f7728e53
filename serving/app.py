"""The service on Ray Serve: a deployment for each base, one that sees and one that hears, an ingress before them.

Only this file knows Ray Serve.
"""

import asyncio
import logging
import math
import os
import re
import socket
import time
from collections.abc import AsyncGenerator, Mapping, Sequence
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
from kauli.models.requests import TextRequest, TranscriptionRequest
from kauli.serving.events import EncodedMedia, Event, Failed, MediaForm, Ranked, TextBackend, Vectors
from kauli.serving.http.app import create_app
from kauli.serving.replicas import AudioReplica, ImageReplica, TextReplica
from kauli.serving.routing import Catalogue, public_name
from kauli.serving.settings import ServeArgs, load_settings, parse_settings
from kauli.serving.topology import Topology, choose_topology

APPLICATION = "kauli"
_INGRESS_CPUS = 0.1
_QUIET = {"log_level": "WARNING", "enable_access_log": False}


class _Handle:
    """What all deployments answer, behind a Ray Serve handle."""

    def __init__(self, handle: DeploymentHandle[Any]) -> None:
        self._handle = handle
        # Configured once: options() anew for each request would register metrics for each.
        self._check = handle.options(method_name="check")

    async def check(self) -> str | None:
        """None when the deployment answers within 30 seconds, else what is wrong."""
        try:
            result: str | None = await asyncio.wait_for(self._check.remote(), timeout=30)
        except TimeoutError:
            return "no answer within 30 seconds"
        except Exception as error:  # whatever keeps a replica from answering is the finding itself
            return f"{type(error).__name__}: {str(error).splitlines()[0] if str(error) else 'no reason given'}"
        return result

    async def adapters(self) -> list[dict[str, Any]]:
        """What the replicas have loaded, each adapter once, with the uses of all."""
        uses: dict[str, int] = {}
        for found in await self._all("adapters"):
            for entry in found:
                uses[entry["adapter"]] = uses.get(entry["adapter"], 0) + entry["in_use"]
        return [{"adapter": spec, "in_use": count} for spec, count in uses.items()]

    async def load(self, adapter: str) -> Failed | None:
        """Load an adapter into every replica; None, or why one can't."""
        found: list[Failed | None] = await self._all("load", adapter)
        return next((failed for failed in found if failed), None)

    async def unload(self, adapter: str) -> bool:
        """Unload an adapter from every replica; whether one had it."""
        return any(await self._all("unload", adapter))

    async def _all(self, method: str, *values: Any) -> list[Any]:
        results: list[Any] = await self._handle.broadcast(method, *values).results_async(timeout_s=60)
        return results


class _HandleGenerator(_Handle):
    """A generator behind a Ray Serve handle."""

    def __init__(self, handle: DeploymentHandle[Any]) -> None:
        super().__init__(handle)
        self._stream = handle.options(method_name="stream", stream=True)

    async def _events(self, request: Any, adapter: str | None, whole: bool) -> AsyncGenerator[Event]:
        """The events of one request; leaving the iteration cancels it in the replica."""
        response: Any = self._stream.remote(request, adapter, whole)
        try:
            async for event in response:
                yield event
        except BackPressureError:
            yield _TOO_MANY
        finally:
            response.cancel()


class _HandleEncoder(_Handle):
    """What makes features, behind a Ray Serve handle."""

    def __init__(self, handle: DeploymentHandle[Any]) -> None:
        super().__init__(handle)
        self._features = handle.options(method_name="features")

    async def features(self, content: bytes, form: MediaForm) -> EncodedMedia | Failed:
        """A picture or a recording as the connector of an adapter wants it."""
        return await _asked(self._features, content, form)  # type: ignore[no-any-return]

    async def counts(self) -> dict[str, float]:
        """Hits and misses of all replicas, and the mean times over all of them."""
        found: list[dict[str, float]] = await self._all("counts")
        total: dict[str, float] = {}
        for count, mean in (("hits", "hit_ms"), ("misses", "miss_ms")):
            total[count] = sum(one[count] for one in found)
            total[mean] = round(sum(one[count] * one[mean] for one in found) / max(1, total[count]), 2)
        return total


class HandleBackend(_HandleGenerator):
    """A `TextBackend` behind a Ray Serve handle."""

    def __init__(self, handle: DeploymentHandle[Any]) -> None:
        super().__init__(handle)
        self._media_forms = handle.options(method_name="media_forms")

    def stream(self, request: TextRequest, adapter: str | None, whole: bool = False) -> AsyncGenerator[Event]:
        """The events of one request; leaving the iteration cancels it in the replica."""
        return self._events(request, adapter, whole)

    async def media_forms(self, adapter: str) -> dict[str, MediaForm] | Failed:
        """What the adapter takes, by kind of media."""
        return await _asked(self._media_forms, adapter)  # type: ignore[no-any-return]


class HandleAudio(_HandleGenerator, _HandleEncoder):
    """An `AudioBackend` behind a Ray Serve handle."""

    def __init__(self, handle: DeploymentHandle[Any]) -> None:
        super().__init__(handle)
        self._ask_longest = handle.options(method_name="longest")
        self._longest: float | None = None

    def stream(self, request: TranscriptionRequest, adapter: str | None, whole: bool = False) -> AsyncGenerator[Event]:
        """The events of one clip; leaving the iteration cancels it in the replica."""
        return self._events(request, adapter, whole)

    async def longest(self) -> float:
        """The seconds of sound that it hears at once."""
        if self._longest is None:
            self._longest = float(await self._ask_longest.remote())
        return self._longest


class HandleImages(_HandleEncoder):
    """An `ImageBackend` behind a Ray Serve handle."""

    def __init__(self, handle: DeploymentHandle[Any]) -> None:
        super().__init__(handle)
        methods = ("embed", "classify", "classify_as")
        self._methods = {name: handle.options(method_name=name) for name in methods}

    async def embed(self, inputs: Sequence[str | bytes]) -> Vectors | Failed:
        """Texts and pictures in the shared space."""
        return await _asked(self._methods["embed"], inputs)  # type: ignore[no-any-return]

    async def classify(self, adapter: str, inputs: Sequence[str | bytes]) -> list[Ranked] | Failed:
        """What a head makes of each input."""
        return await _asked(self._methods["classify"], adapter, inputs)  # type: ignore[no-any-return]

    async def classify_as(self, classes: Sequence[str], inputs: Sequence[str | bytes]) -> list[Ranked] | Failed:
        """How near each input is to each class."""
        return await _asked(self._methods["classify_as"], classes, inputs)  # type: ignore[no-any-return]


_TOO_MANY = Failed(429, "too many requests are waiting: try again soon", "queue_full")


async def _asked(method: Any, *values: Any) -> Any:
    try:
        return await method.remote(*values)
    except BackPressureError:
        return _TOO_MANY


class Ingress:
    """The FastAPI application before the deployments of the bases."""

    def __init__(
        self,
        args: ServeArgs,
        lineup: Topology,
        texts: dict[str, DeploymentHandle[Any]],
        image: DeploymentHandle[Any] | None,
        audio: DeploymentHandle[Any] | None,
    ) -> None:
        self._args = args
        self._catalogue = Catalogue(
            Registry(args.storage), lineup.bases, args.refresh_s, aligned=lineup.aligned, speech=lineup.speech,
            tasks=lineup.tasks,
        )  # fmt: skip
        self._backends: Mapping[str, TextBackend] = {name: HandleBackend(handle) for name, handle in texts.items()}
        self._image = HandleImages(image) if image is not None else None
        self._audio = HandleAudio(audio) if audio is not None else None

    def __serve_build_asgi_app__(self) -> FastAPI:
        """Called by Ray Serve in the replica."""
        return create_app(self._backends, self._catalogue, self._args, self._image, self._audio)


def build(args: ServeArgs | dict[str, Any]) -> Application:
    """The Ray Serve application; in a Serve configuration file it is `import_path: kauli.serving.app:build`.

    Settings that are not given come from `KAULI_*` variables and defaults. Raises UsageError and KauliError.
    """
    if not isinstance(args, ServeArgs):
        args = parse_settings({**load_settings().model_dump(exclude_unset=True), **args})
    return _application(args, choose_topology(Registry(args.storage), args))


def _application(args: ServeArgs, lineup: Topology) -> Application:
    text = _deployment(TextReplica, args, "Text", args.replicas, args.num_cpus, args.num_gpus, args.max_batch)
    ingress = serve.deployment(
        name="Ingress",
        ray_actor_options={"num_cpus": _INGRESS_CPUS},
        autoscaling_config={**_scaling(args.replicas), "target_ongoing_requests": 128},
        max_ongoing_requests=512,
        max_constructor_retry_count=2,
        graceful_shutdown_timeout_s=args.drain_s,
        graceful_shutdown_wait_loop_s=0.2,
        logging_config=_QUIET,
    )(serve.ingress()(Ingress))
    names = {public_name(base): base.name for base in lineup.bases}
    texts = {shown: text.options(name=f"Text-{_slug(shown)}").bind(args, name) for shown, name in names.items()}
    image = audio = None
    if lineup.encoder is not None:
        image = _deployment(
            ImageReplica, args, "Image", args.image_replicas, args.image_num_cpus, args.image_num_gpus,
            2 * args.image_batch,
        ).bind(args, lineup.encoder.name, lineup.aligned is not None)  # fmt: skip
    if lineup.hearing is not None:
        audio = _deployment(
            AudioReplica, args, "Audio", args.audio_replicas, args.audio_num_cpus, args.audio_num_gpus,
            args.audio_batch,
        ).bind(args, lineup.hearing.name)  # fmt: skip
    application: Application = ingress.bind(args, lineup, texts, image, audio)
    return application


def _deployment(
    replica: type, args: ServeArgs, name: str, replicas: tuple[int, int], cpus: float, gpus: float, target: int
) -> Any:
    """A deployment that autoscales by itself, to `target` requests at each replica."""
    return serve.deployment(
        name=name,
        ray_actor_options={"num_cpus": cpus, "num_gpus": gpus},
        autoscaling_config={**_scaling(replicas), "target_ongoing_requests": target},
        # Above what the replica's own queue holds, so that the replica refuses, with a reason
        max_ongoing_requests=args.max_queue + 2 * target + 8,
        max_queued_requests=args.max_queue,
        max_constructor_retry_count=2,
        graceful_shutdown_timeout_s=args.drain_s,
        graceful_shutdown_wait_loop_s=0.2,
        logging_config=_QUIET,
    )(replica)


def _cpus(args: ServeArgs, lineup: Topology) -> int:
    """Logical CPUs for the fewest replicas of all deployments."""
    wanted = [args.replicas[0] * args.num_cpus for _ in lineup.bases]
    wanted += [args.image_replicas[0] * args.image_num_cpus] if lineup.encoder else []
    wanted += [args.audio_replicas[0] * args.audio_num_cpus] if lineup.hearing else []
    return math.ceil(sum(wanted) + args.replicas[0] * _INGRESS_CPUS)


def _scaling(replicas: tuple[int, int]) -> dict[str, int]:
    fewest, most = replicas
    return {"min_replicas": fewest, "initial_replicas": fewest, "max_replicas": most}


class Service:
    """A running service; `stop` ends what `start` began and nothing else."""

    def __init__(self, args: ServeArgs, connected: bool, joined: bool) -> None:
        self.url = args.url
        self._connected = connected
        self._joined = joined

    def stop(self) -> None:
        """Take the service down, and with it the Ray that `start` began; a cluster that it joined goes on."""
        serve.delete(APPLICATION)
        if self._connected:
            ray.shutdown()  # a Ray of our own ends, Serve's actors with it; of a cluster that was joined only we leave
        elif not self._joined:
            serve.shutdown()  # type: ignore[no-untyped-call]


def start(args: ServeArgs, address: str | None = None) -> Service:
    """Start the service and wait until it answers.

    Without an `address` a Ray is started in this process (or the one that is already started here is used), whatever
    else runs on this machine. Raises UsageError when the port is taken, KauliError when the service does not come up.
    """
    check_port(args.host, args.port)
    if (args.proxy == "haproxy") != (os.environ.get("RAY_SERVE_ENABLE_HA_PROXY") == "1"):
        raise UsageError(
            f"proxy '{args.proxy}' and RAY_SERVE_ENABLE_HA_PROXY in the environment disagree: `kauli serve` sets both"
        )
    lineup = choose_topology(Registry(args.storage), args)
    application = _application(args, lineup)
    # As many logical CPUs as are asked for: they are a ledger, not threads, and a small machine can hold several bases.
    connected = start_ray(address, cpus=max(4, os.cpu_count() or 1, _cpus(args, lineup)))
    service = Service(args, connected, joined=address is not None)
    try:
        logging.getLogger("ray.serve").setLevel(logging.WARNING)
        serve.start(http_options={"host": args.host, "port": args.port}, logging_config=_QUIET)
        serve.run(application, name=APPLICATION, route_prefix="/")
        _wait_until_healthy(args)
    except BaseException as error:
        try:
            service.stop()
        except Exception as failure:  # what went wrong first is what counts
            note(f"The service did not stop cleanly: {_reason(failure)}")
        if isinstance(error, KauliError) or not isinstance(error, Exception):
            raise
        raise KauliError(f"the service did not start: {_reason(error)}") from error
    return service


def check_port(host: str, port: int) -> None:
    """Raises UsageError when nothing can listen there."""
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    with socket.socket(family, socket.SOCK_STREAM) as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((host, port))
        except OSError as error:
            raise UsageError(
                f"{host}:{port} can't be used ({error.strerror}): is a service running there already? "
                f"Stop it, or choose another with --port {port + 1 if port < 65535 else 8000}"
            ) from None


def _wait_until_healthy(args: ServeArgs, seconds: float = 120) -> None:
    until = time.monotonic() + seconds
    seen = "no answer"
    # trust_env=False: a proxy of the environment has nothing to do with this machine's own service
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
    """The line of an error that says most: Ray puts the cause's own message last."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return lines[-1] if lines else type(error).__name__


def _slug(name: str) -> str:
    return re.sub(r"[^A-Za-z0-9_.-]+", "-", name)
