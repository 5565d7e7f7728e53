"""The endpoint /v1/service: what a client may ask this service for, before it asks: tasks, languages, limits."""

import asyncio
from importlib.metadata import version
from typing import Any

from fastapi import FastAPI

from kauli.models.languages import display_name, own_name, runs_right_to_left
from kauli.serving.backends import Backends
from kauli.serving.routing import served_task
from kauli.serving.translation import languages_of


def add_service(app: FastAPI, backends: Backends) -> None:
    """Add the endpoint."""

    @app.get("/v1/service")
    async def service() -> dict[str, Any]:
        """The tasks that are served, the languages by their own names, and the limits of requests."""
        return await asyncio.to_thread(_described, backends)


def _described(backends: Backends) -> dict[str, Any]:
    args, catalogue = backends.args, backends.catalogue
    tasks: dict[str, set[str]] = {}
    for adapter in catalogue.adapters():
        for tag in adapter.card.language:
            tasks.setdefault(tag, set()).add(served_task(adapter.card) or "")
    for tag in languages_of(backends):
        tasks.setdefault(tag, set()).add("translate")
    return {
        "object": "service",
        "version": version("kauli"),
        "tasks": list(catalogue.tasks),
        "workers": sorted(backends.workers),
        "languages": [
            {
                "id": tag, "name": own_name(tag), "english": display_name(tag),
                "direction": "rtl" if runs_right_to_left(tag) else "ltr", "tasks": sorted(tasks[tag]),
            }
            for tag in sorted(tasks)
        ],
        "limits": {
            "max_tokens": args.max_tokens, "max_inputs": args.max_inputs, "max_segments": args.max_segments,
            "max_speech_characters": args.max_speech_characters, "max_audio_seconds": args.max_audio_seconds,
            "max_body_bytes": args.max_body_bytes, "max_image_body_bytes": args.max_image_body_bytes,
            "max_audio_body_bytes": args.max_audio_body_bytes,
        },
    }  # fmt: skip
