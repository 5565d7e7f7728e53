"""What the commands do beyond one call: bringing a base, generating text, the running service."""

import signal
import threading
import time
from typing import TYPE_CHECKING, Any

from kauli.models.progress import note

if TYPE_CHECKING:
    from kauli.models.bases.find import Base
    from kauli.serving.settings import ServeArgs


def bring_base(name: str, accept_terms: bool) -> "Base":
    """Fetch a base, or train one that a recipe makes; see `kauli.models.bases.find.fetch_base`."""
    from kauli.models.bases.find import fetch_base, known_bases

    if name in known_bases() and known_bases()[name].recipe is not None:
        from kauli.training.make_base import make_base

        return make_base(name)
    return fetch_base(name, accept_terms=accept_terms)


def generate_text(
    prompt: str,
    model: str,
    language: str | None,
    storage: str,
    *,
    max_tokens: int,
    temperature: float,
    top_p: float,
    seed: int | None,
    stream: bool,
) -> dict[str, Any]:
    """Answer one prompt in this process, chosen as the service does; `stream` prints the text as it comes."""
    from kauli.models.adapters.folder import check_base
    from kauli.models.adapters.registry import Registry
    from kauli.models.bases.find import known_bases
    from kauli.serving.routing import Catalogue, choose_bases, public_name

    registry = Registry(storage)
    is_base = model == "debug" or "/" in model or model in known_bases()
    bases = choose_bases(registry, (model,) if is_base else ())
    route = Catalogue(registry, bases).route(public_name(bases[0]) if is_base else model, language)
    base = next(base for base in bases if public_name(base) == route.base)
    note(f"{route.model} answers{f' ({route.language})' if route.language else ''}")

    from kauli.models.requests import TextRequest
    from kauli.models.text.task import TextTask

    task = TextTask.load(base)
    if route.adapter:
        folder = registry.fetch(route.adapter)
        check_base(registry.card(route.adapter), base)
        task.add_adapter(route.adapter, folder)
    request = TextRequest.of_prompt(prompt, max_tokens=max_tokens, temperature=temperature, top_p=top_p, seed=seed)
    text, finish, tokens = "", None, 0
    for chunks in task.generate([request], [route.adapter]):
        for chunk in chunks:
            text += chunk.text
            tokens += chunk.tokens
            finish = chunk.finish or finish
            if stream:
                print(chunk.text, end="", flush=True)
    if stream:
        print(flush=True)
    prompt_tokens = len(task.prompt_tokens(request))
    return {
        "text": text, "model": route.model, "base": route.base, "adapter": route.adapter, "language": route.language,
        "finish_reason": finish, "usage": {"prompt_tokens": prompt_tokens, "completion_tokens": tokens},
    }  # fmt: skip


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
        wait_for_stop()
    finally:
        note("Stopping...")
        service.stop()


def wait_for_stop() -> None:
    """Block until Ctrl-C or SIGTERM."""
    stop = threading.Event()
    # Ray has put its own handler for SIGTERM in place, which would leave the service's processes to themselves.
    before = {number: signal.signal(number, lambda *_: stop.set()) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        stop.wait()
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
