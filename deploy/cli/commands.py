"""What the commands do beyond one call: bringing a base, and the running service."""

import signal
import threading
import time
from dataclasses import replace
from typing import TYPE_CHECKING

from kauli.models.progress import note

if TYPE_CHECKING:
    from kauli.models.bases.find import Base
    from kauli.serving.settings import ServeArgs


POSTERIOR = "speak-base"
"""What `kauli fetch` calls the posterior encoder of the voice piper-vits, which trainings of voices need."""


def bring_base(name: str, accept_terms: bool) -> "Base":
    """Fetch a base, or train one that a recipe makes; see `kauli.models.bases.find.fetch_base`."""
    from kauli.models.bases.find import fetch_base, known_bases

    if name == POSTERIOR:
        from kauli.training.posterior import HEARING, VOICE, posterior_of

        voice = fetch_base(VOICE, accept_terms=accept_terms)
        fetch_base(HEARING)
        return replace(voice, name=name, folder=posterior_of(voice))
    if name in known_bases() and known_bases()[name].recipe is not None:
        from kauli.training.make_base import make_base

        return make_base(name)
    return fetch_base(name, accept_terms=accept_terms)


def serve_until_stopped(args: "ServeArgs", address: str | None) -> None:
    """Serve until Ctrl-C or SIGTERM; prints the address once the service answers."""
    note("Starting the service (Ray Serve)...")
    began = time.monotonic()
    from kauli.serving.settings import choose_proxy

    choose_proxy(args)
    from kauli.serving.app import start

    service = start(args, address)
    try:
        print(service.url, flush=True)
        note(f"Ready in {time.monotonic() - began:.0f} s. Models: {service.url}/v1/models  Stop with Ctrl-C.")
        note(f"Log: {service.logs} (worker-*.err)")
        wait_for_stop()
    finally:
        note("Stopping...")
        service.stop()


def wait_for_stop() -> None:
    """Block until Ctrl-C or SIGTERM."""
    stop = threading.Event()
    # Ray's own handler for SIGTERM would leave the service's processes running.
    before = {number: signal.signal(number, lambda *_: stop.set()) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        stop.wait()
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
