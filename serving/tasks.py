"""The one table of the service's tasks, and the workers that answer them.

A task is what a request names as its model ("text", "classify"); a worker is what runs in a deployment. Every other
file of the service and of the command reaches tasks through this table. Nothing heavy is imported here.
"""

from collections.abc import Collection, Mapping
from dataclasses import dataclass

DEFAULT_BASE = "smollm2-135m-q4"
"""The base for text where neither the settings nor any adapter name one."""


@dataclass(frozen=True)
class WorkerKind:
    """A kind of deployment: what it loads, and what the service says where it does not run."""

    build: str
    """"module:attribute" of `build(args, base, answers) -> worker`; `answers` is False where only its encoder is
    used."""
    base_task: str
    """The task by which `find_base` finds its base."""
    noun: str
    """What an error calls it."""
    several: bool = False
    """Whether the setting `bases` names any number of bases; else the setting `{worker}.base` names one."""
    eager: bool = False
    """Whether it runs without an adapter that needs it, where its base is on this machine."""
    batches: int = 1
    """Batches that a replica has in hand before another replica is started."""
    missing: str = ""
    """The error of a task whose worker does not run."""
    media: str = ""
    """The plural of what its encoder takes, in errors."""
    health: str = ""
    """Its key in the answer of /health, where it counts what it encoded."""
    recipe: str = ""
    """Trains an adapter that takes its media."""


WORKERS: Mapping[str, WorkerKind] = {
    "text": WorkerKind(
        "kauli.serving.workers.text:build", "text", "a language model", several=True,
    ),
    "image": WorkerKind(
        "kauli.serving.workers.image_encoder:ImageEncoder", "align", "an image encoder", eager=True, batches=2,
        missing="No image-text embedding model is served; run `kauli fetch kauli-clip` and restart the service",
        media="images", health="encoder", recipe="describe-multi",
    ),
    "memory": WorkerKind(
        "kauli.serving.workers.memory:build", "align", "a memory", eager=True, batches=4,
        missing="No memory is served; run `kauli fetch kauli-towers` and restart the service",
    ),
    "audio": WorkerKind(
        "kauli.serving.workers.transcriber:build", "transcribe", "a speech recogniser",
        missing="No speech recogniser is served; run `kauli fetch whisper-base` and serve the task 'transcribe'",
        media="audio", health="speech", recipe="describe-be-fused",
    ),
    "voice": WorkerKind(
        "kauli.serving.workers.speaker:build", "speak", "a voice", eager=True,
        missing="No voice is served; run `kauli fetch piper-vits` and restart the service",
    ),
}  # fmt: skip


@dataclass(frozen=True)
class ServedTask:
    """What a request may name as its model instead of a base or an adapter."""

    answers: tuple[str, ...]
    """Rows of `kauli.models.tasks.TASKS` whose adapters answer it; the first names its adapters. Empty: the base."""
    worker: str
    """Which worker answers."""
    endpoints: str
    """"module:attribute" of `add(app, backends)`, which adds its HTTP paths."""
    paths: tuple[str, ...]
    """Those paths."""
    verb: str
    """What a model that can't do it cannot do, in errors."""
    bare: bool = False
    """Whether its base answers without an adapter: where no language is given, or with `allow_base`."""
    alone: bool = True
    """Whether it is offered where no adapter answers it."""
    promoted: bool = False
    """Whether its name means only adapters with an alias: one that was not better than its base has none."""
    aligned: bool = False
    """Whether its base must have trained projections."""
    encoders: tuple[str, ...] = ()
    """The workers that encode its media."""
    needs: tuple[str, ...] = ()
    """Those of them without which it is not served."""
    advice: str = ""
    """How to get an adapter; {tag} and {name} are filled in."""


_CHAT = ("kauli.serving.http.chat:add_chat", ("/v1/chat/completions",))
_SPACE = "kauli.serving.http.embeddings:add_shared_space"

TASKS: Mapping[str, ServedTask] = {
    "text": ServedTask(
        ("text",), "text", *_CHAT, "generate text", bare=True,
        advice="Train one with `kauli train text-sw --set language={tag} --set name=text-{name}`, "
        "or use a base as the model",
    ),
    "translate": ServedTask(
        ("translate", "prompt"), "text", "kauli.serving.http.translations:add_translations",
        ("/v1/translate", "/v1/memory", "/translate", "/detect", "/languages"), "translate", alone=False,
        encoders=("memory",),
        advice="Train one with `kauli train translate-am --set language={tag} --set name=translate-{name}`",
    ),
    "describe": ServedTask(
        ("describe",), "text", *_CHAT, "describe images", alone=False,
        encoders=("image", "audio"), needs=("image",),
        advice="Train one with `kauli train describe-multi --set language={tag} --set name=describe-{name}`",
    ),
    "transcribe": ServedTask(
        ("transcribe",), "audio", "kauli.serving.http.transcriptions:add_transcriptions",
        ("/v1/audio/transcriptions", "/v1/audio/dialogue"), "transcribe", bare=True,
        advice="Train one with `kauli train transcribe-be --set language={tag} --set name=transcribe-{name}`, "
        "or set allow_base",
    ),
    "speak": ServedTask(
        ("speak",), "voice", "kauli.serving.http.speech:add_speech",
        ("/v1/audio/speech", "/v1/audio/voices"), "speak", bare=True, promoted=True,
        advice="Train one with `kauli train speak-be --set language={tag} --set name=speak-{name}`",
    ),
    "embed": ServedTask((), "image", _SPACE, ("/v1/embeddings",), "produce embeddings", bare=True, aligned=True),
    "classify": ServedTask(
        ("head",), "image", _SPACE, ("/v1/classify",), "classify", aligned=True,
        advice="Train a head with `kauli train head-topics`, or send `classes`",
    ),
}  # fmt: skip


def workers_of(name: str) -> tuple[str, ...]:
    """All workers that a task may use: the one that answers, and those that encode its media."""
    return (TASKS[name].worker, *TASKS[name].encoders)


def task_of_base(takes: Collection[str]) -> str:
    """The task that a bare base answers; `takes` are those that it is made for."""
    return next(name for name, row in TASKS.items() if row.bare and WORKERS[row.worker].base_task in takes)


def media_paths(worker: str) -> frozenset[str]:
    """The paths whose bodies may hold what a worker encodes."""
    return frozenset(path for name, row in TASKS.items() if worker in workers_of(name) for path in row.paths)
