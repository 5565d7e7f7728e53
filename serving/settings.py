"""The settings of the service: one typed model, from flags, `KAULI_*` variables, a YAML file and defaults."""

import hashlib
import ipaddress
import os
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal

import yaml
from pydantic import Field, ValidationError, field_validator, model_validator

from kauli.models.errors import UsageError, nearest
from kauli.models.files import read_yaml
from kauli.models.frozen import FrozenModel
from kauli.models.paths import default_storage
from kauli.models.speech.guards import Guards
from kauli.serving.tasks import TASKS

RENAMED = {
    "encoder": "image.base", "speech": "audio.base", "max_batch": "text.batch", "replicas": "text.replicas",
    "num_cpus": "text.num_cpus", "num_gpus": "text.num_gpus", "max_recordings": "max_audio_clips",
    "max_picture_body_bytes": "max_image_body_bytes",
    **{
        f"{worker}_{key}": f"{worker}.{key}"
        for worker in ("image", "audio") for key in ("batch", "cache_bytes", "replicas", "num_cpus", "num_gpus")
    },
}  # fmt: skip
"""Former settings and their present names."""
_RENAMED_VARIABLES = {"KAULI_ENCODER": "KAULI_IMAGE_BASE", "KAULI_SPEECH": "KAULI_AUDIO_BASE"}


class WorkerArgs(FrozenModel):
    """The settings of one kind of worker."""

    batch: int = Field(default=16, ge=1, le=256)
    """What a replica computes at a time: answers, images or audio clips."""
    replicas: tuple[int, int] = (1, 1)
    """The fewest and the most replicas of each base."""
    num_cpus: float = Field(default=1.0, ge=0)
    """Logical CPUs that Ray sets aside for a replica."""
    num_gpus: float = Field(default=0.0, ge=0)

    @field_validator("replicas")
    @classmethod
    def _ordered(cls, value: tuple[int, int]) -> tuple[int, int]:
        if not 1 <= value[0] <= value[1]:
            raise ValueError(f"replicas {list(value)}: give [fewest, most], both 1 or more")
        return value


class EncoderArgs(WorkerArgs):
    """The settings of a worker that encodes media."""

    base: str
    """Its base. Where it is not on this machine, the base that the adapters name."""
    cache_bytes: int = Field(default=67_108_864, ge=0)
    """Bytes of encoded images and texts, or of encoded audio in conversations, that a replica keeps."""


class ImageArgs(EncoderArgs):
    """The settings of the image encoder."""

    base: str = "kauli-clip"
    batch: int = Field(default=8, ge=1, le=256)


class AudioArgs(EncoderArgs):
    """The settings of the speech recogniser."""

    base: str = "whisper-base"
    guards: Guards = Guards()
    """Of transcripts, against text out of nothing."""


class MemoryArgs(WorkerArgs):
    """The settings of the memories for translation."""

    base: str = "kauli-towers"
    """Its text encoder embeds."""


class VoiceArgs(WorkerArgs):
    """The settings of the voices."""

    base: str = "piper-vits"
    batch: int = Field(default=8, ge=1, le=256)


class ServeArgs(FrozenModel):
    """What `kauli serve` and `build` take; `deploy/local.yaml` shows every key."""

    host: str = "127.0.0.1"
    """The address to listen on. Any but a loopback address needs API keys."""
    port: int = Field(default=8000, ge=1, le=65535)
    storage: str = Field(default_factory=default_storage)
    """Folder or URI of the adapters."""
    tasks: tuple[str, ...] = ()
    """Empty: text, and each other task for which the storage has adapters or this machine has an encoder."""
    bases: tuple[str, ...] = ()
    """The first answers `model: text`. Empty: the bases of the storage's adapters, else the default base."""
    precision: Literal["auto", "fp32", "bf16"] = "auto"
    """Of the weights of language models and recognisers; auto: bf16 on a GPU, and on a CPU that computes faster in
    it."""
    allow_noncommercial: bool = False
    key_hashes: tuple[str, ...] = ()
    """SHA-256 of each API key; `KAULI_API_KEYS` holds the keys themselves."""
    admin_key_hashes: tuple[str, ...] = ()
    """SHA-256 of each key that may load and unload adapters too; `KAULI_ADMIN_KEYS` holds such keys themselves."""
    cors_origins: tuple[str, ...] = ()
    """The web pages that may send requests: origins such as `https://app.example`, or `*` for all."""
    proxy: Literal["python", "haproxy"] = "python"
    """What accepts the HTTP connections: Ray Serve's own proxy, or HAProxy, which is faster."""
    text: WorkerArgs = WorkerArgs()
    """Of language models."""
    image: ImageArgs = ImageArgs()
    audio: AudioArgs = AudioArgs()
    memory: MemoryArgs = MemoryArgs()
    voice: VoiceArgs = VoiceArgs()
    max_queue: int = Field(default=64, ge=1)
    """Answers that may wait at a replica; a request for one more is refused with 429."""
    requests_per_minute: int | None = Field(default=None, ge=1)
    """Of each key, or each address where there are no keys, by each HTTP replica; None: no limit. More get 429."""
    max_context: int = Field(default=4096, ge=64)
    """Tokens of a prompt and its answer together, where the base allows as many."""
    max_answers: int = Field(default=8, ge=1, le=64)
    """The most answers (`n`) to one prompt."""
    max_adapters: int = Field(default=32, ge=1)
    """Adapters that a replica holds; the least recently used one is evicted."""
    max_tokens: int = Field(default=1024, ge=1)
    """The most new tokens that a request may ask for."""
    max_messages: int = Field(default=256, ge=1)
    """The most messages of a conversation."""
    max_prompts: int = Field(default=16, ge=1)
    """The most prompts of a request for completions."""
    max_inputs: int = Field(default=64, ge=1)
    """The most inputs of a request for embeddings or classes."""
    max_segments: int = Field(default=2000, ge=1)
    """The most segments of a document to translate."""
    max_classes: int = Field(default=256, ge=2)
    """The most classes that a request may name to choose from."""
    max_stops: int = Field(default=8, ge=1)
    """The most stop strings, each of at most `max_stop_characters`."""
    max_stop_characters: int = Field(default=128, ge=1)
    max_logprobs: int = Field(default=20, ge=0)
    """The most alternatives to a token whose log probabilities may be asked for."""
    max_echoes: int = Field(default=64, ge=1)
    """The most scores of each place of a prompt: prompts x answers x (logprobs + 1), with `echo` and `logprobs`."""
    max_logit_biases: int = Field(default=300, ge=0)
    """The most tokens whose scores a request may change."""
    max_images: int = Field(default=4, ge=1)
    """The most images in one conversation."""
    max_audio_clips: int = Field(default=4, ge=1)
    """The most audio clips in one conversation, each no longer than one window of the speech recogniser."""
    max_speech_characters: int = Field(default=4096, ge=1)
    """The longest text to speak."""
    max_audio_seconds: float = Field(default=600.0, gt=0)
    """The longest audio to transcribe."""
    max_body_bytes: int = Field(default=1_048_576, ge=1024)
    """Of a request; where images may be sent, of its texts."""
    max_image_body_bytes: int = Field(default=12_582_912, ge=1024)
    """Of a request that may hold images: one of 8 MiB fits as base64."""
    max_audio_body_bytes: int = Field(default=27_000_000, ge=1024)
    """Of a request that may hold audio: a file of 25 MiB fits."""
    body_timeout_s: float = Field(default=30.0, gt=0)
    """A client that takes longer to send its body is refused with 408."""
    deadline_s: float = Field(default=300.0, gt=0)
    """A request that is not answered in this time fails with 504."""
    drain_s: float = Field(default=30.0, ge=0)
    """How long answers in progress may continue when the service stops."""
    refresh_s: float = Field(default=2.0, ge=0)
    """How old the list of adapters may be, in seconds."""
    threads: int | None = Field(default=None, ge=1)
    """CPU threads of a replica; None: all that the machine has."""

    @field_validator("host")
    @classmethod
    def _address(cls, value: str) -> str:
        if not re.fullmatch(r"[\w.:%-]+", value):
            raise ValueError("give an address or the name of a host alone, such as 127.0.0.1")
        return value

    @field_validator("tasks")
    @classmethod
    def _known_tasks(cls, value: tuple[str, ...]) -> tuple[str, ...]:
        for name in value:
            if name not in TASKS:
                raise ValueError(f"task '{name}' can't be served: use {', '.join(TASKS)}.{nearest(name, TASKS)}")
        return value

    @field_validator("cors_origins")
    @classmethod
    def _origins(cls, value: tuple[str, ...]) -> tuple[str, ...]:
        for one in value:
            if one != "*" and not re.fullmatch(r"[a-z][a-z0-9+.-]*://[^/?#@\s]+", one):
                raise ValueError(f"'{one}' is no origin: write SCHEME://HOST or SCHEME://HOST:PORT, without a path")
        return value

    @field_validator("key_hashes", "admin_key_hashes")
    @classmethod
    def _hexadecimal(cls, value: tuple[str, ...]) -> tuple[str, ...]:
        if any(len(key) != 64 or set(key) - set("0123456789abcdef") for key in value):
            raise ValueError(
                "key_hashes are SHA-256 in 64 hexadecimal digits; set the keys themselves in KAULI_API_KEYS"
            )
        return value

    @model_validator(mode="after")
    def _consistent(self) -> "ServeArgs":
        if not is_loopback(self.host) and not (self.key_hashes or self.admin_key_hashes):
            raise ValueError(
                f"host '{self.host}' can be reached from other machines: set KAULI_API_KEYS to one or more keys "
                "(separated by commas), or keep --host 127.0.0.1"
            )
        for name in ("text", "audio"):  # heads are small: the image encoder keeps a number of its own
            batch = self.worker(name).batch
            if self.max_adapters < batch:
                raise ValueError(
                    f"max_adapters {self.max_adapters} is below {name}.batch {batch}: a batch may need one adapter "
                    "for each of its requests"
                )
        return self

    def worker(self, name: str) -> Any:
        """The settings of a worker: a `WorkerArgs`, the defaults where no field has the worker's name."""
        return getattr(self, name, WorkerArgs())

    @property
    def url(self) -> str:
        """The address of the service for a client on this machine."""
        host = {"0.0.0.0": "127.0.0.1", "::": "::1"}.get(self.host, self.host)
        return f"http://[{host}]:{self.port}" if ":" in host else f"http://{host}:{self.port}"


def choose_proxy(args: ServeArgs) -> None:
    """Tell Ray Serve which proxy to start; it reads this when it is imported, so call it before `kauli.serving.app`."""
    # Between deployments: cheaper for a streamed piece than an object in Ray's store.
    os.environ.setdefault("RAY_SERVE_USE_GRPC_BY_DEFAULT", "1")
    if args.proxy == "haproxy":
        os.environ["RAY_SERVE_ENABLE_HA_PROXY"] = "1"
        # Its metrics would be served on all interfaces.
        os.environ.setdefault("RAY_SERVE_HAPROXY_METRICS_ENABLED", "0")


def is_loopback(host: str) -> bool:
    """Whether a bind address or the host part of a `Host` header is this machine only."""
    name = host.strip("[]").lower()
    if name == "localhost":
        return True
    try:
        return ipaddress.ip_address(name).is_loopback
    except ValueError:
        return False


def load_settings(config: Path | None = None, **flags: Any) -> ServeArgs:
    """The settings: a flag that is not None beats a `KAULI_*` variable, which beats the file, which beats the default.

    Raises UsageError for a missing or broken file, an unknown or former key, or a value that is not allowed.
    """
    values = merge_settings(_read(config) if config else {}, _from_environment(os.environ))
    return parse_settings(merge_settings(values, {key: value for key, value in flags.items() if value is not None}))


def merge_settings(first: Mapping[str, Any], second: Mapping[str, Any]) -> dict[str, Any]:
    """Both, where `second` beats `first`, key by key of the workers' settings as well."""
    both = {**first, **second}
    for key in first.keys() & second.keys():
        if isinstance(first[key], Mapping) and isinstance(second[key], Mapping):
            both[key] = {**first[key], **second[key]}
    return both


def parse_settings(values: Mapping[str, Any]) -> ServeArgs:
    """`values` as checked settings; raises UsageError that names the key."""
    for key, value in values.items():
        if key in RENAMED:
            worker, _, inner = RENAMED[key].partition(".")
            written = f"{worker}: {{{inner}: {value}}}" if inner else f"{worker}: {value}"
            raise UsageError(f"the setting '{key}' is now '{RENAMED[key]}': write {written}")
        if key not in ServeArgs.model_fields:
            known = ", ".join(ServeArgs.model_fields)
            raise UsageError(f"unknown setting '{key}'.{nearest(key, ServeArgs.model_fields)} Known: {known}")
    try:
        return ServeArgs.model_validate(dict(values))
    except ValidationError as error:
        first = error.errors(include_url=False)[0]
        where = ".".join(str(part) for part in first["loc"])
        if first["type"] == "extra_forbidden":
            keys = list(type(ServeArgs.model_fields[str(first["loc"][0])].default).model_fields)
            hint = nearest(str(first["loc"][-1]), keys)
            raise UsageError(f"unknown setting '{where}'.{hint} Known: {', '.join(keys)}") from None
        text = first["msg"].removeprefix("Value error, ").replace("valid tuple", "list, such as [a, b]")
        raise UsageError(f"setting {where}={first['input']!r}: {text}" if where else text) from None


def _read(config: Path) -> dict[str, Any]:
    try:
        values = read_yaml(config.read_text("utf-8"))
    except FileNotFoundError:
        raise UsageError(f"no file {config}: --config takes a YAML file such as deploy/local.yaml") from None
    except (yaml.YAMLError, UnicodeDecodeError, IsADirectoryError) as error:
        raise UsageError(f"{config} is not readable YAML: {' '.join(str(error).split())}") from None
    if values is None:
        return {}
    if not isinstance(values, dict):
        raise UsageError(f"{config} must hold `key: value` lines, as deploy/local.yaml does")
    return {str(key): value for key, value in values.items()}


def _from_environment(environment: Mapping[str, str]) -> dict[str, Any]:
    for old, new in _RENAMED_VARIABLES.items():
        if environment.get(old):
            raise UsageError(f"the variable {old} is now {new}: set that instead, and unset {old}")
    names = {"KAULI_HOST": "host", "KAULI_PORT": "port", "KAULI_STORAGE": "storage", "KAULI_PROXY": "proxy"}
    values: dict[str, Any] = {key: environment[name] for name, key in names.items() if environment.get(name)}
    for name, worker in {"KAULI_IMAGE_BASE": "image", "KAULI_AUDIO_BASE": "audio", "KAULI_VOICE_BASE": "voice"}.items():
        if environment.get(name):
            values[worker] = {"base": environment[name]}
    lists = {"KAULI_TASKS": "tasks", "KAULI_BASES": "bases"}
    values |= {key: _split(environment[name]) for name, key in lists.items() if environment.get(name)}
    for name, key in {"KAULI_API_KEYS": "key_hashes", "KAULI_ADMIN_KEYS": "admin_key_hashes"}.items():
        if keys := _split(environment.get(name, "")):
            values[key] = [hash_key(one) for one in keys]
    return values


def hash_key(key: str) -> str:
    """The SHA-256 of an API key: the service keeps this alone, so that no configuration shows the key."""
    return hashlib.sha256(key.encode()).hexdigest()


def _split(text: str) -> list[str]:
    return [item.strip() for item in text.split(",") if item.strip()]
