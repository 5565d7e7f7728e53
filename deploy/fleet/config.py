"""What a fleet is: one typed configuration, from which all manifests are rendered; profiles and overrides of it."""

import re
from collections.abc import Mapping, Sequence
from importlib.metadata import version
from importlib.resources import files
from typing import Any, Literal

import yaml
from pydantic import BaseModel, Field, ValidationError, field_validator, model_validator

from kauli.models.errors import UsageError, nearest
from kauli.models.files import read_yaml
from kauli.models.frozen import FrozenModel
from kauli.serving.settings import merge_settings, parse_settings
from kauli.training.recipe_file import load_recipe

PROFILES = ("laptop", "gpu-box", "cluster")
_NAME = r"[a-z]([-a-z0-9]{0,30}[a-z0-9])?"
_CRON = re.compile(r"(\S+ ){4}\S+")


class Resources(FrozenModel):
    """What a pod has: requested, and at the same time its limit of memory and GPUs."""

    cpus: int = Field(ge=1)
    memory_gib: int = Field(ge=1)
    gpus: int = Field(default=0, ge=0)


class Group(Resources):
    """A group of like worker nodes that Ray's autoscaler starts and ends."""

    nodes: tuple[int, int]
    """The fewest and the most."""
    idle_s: int = Field(default=300, ge=1)
    """Seconds without work after which a node may end."""
    node_selector: dict[str, str] = Field(default_factory=dict)
    """Labels of the Kubernetes nodes to run on."""

    @field_validator("nodes")
    @classmethod
    def _ordered(cls, value: tuple[int, int]) -> tuple[int, int]:
        if not 0 <= value[0] <= value[1]:
            raise ValueError(f"nodes {list(value)}: give [fewest, most]")
        return value


class Training(FrozenModel):
    """What is trained on the fleet."""

    recipe: str = "text-sw"
    """The name of a shipped recipe."""
    overrides: dict[str, str | int | float | bool] = Field(default_factory=dict)
    """Keys of the recipe, dotted, with other values."""
    schedule: str = "0 2 * * *"
    """When the nightly training starts, as cron writes it, in UTC."""
    nightly: Literal["CronJob", "RayCronJob"] = "CronJob"
    """CronJob submits to the standing cluster for training. RayCronJob starts a cluster each time; KubeRay 1.7 has it
    behind a feature gate that is off (alpha)."""
    driver_cpus: float = Field(default=1, gt=0)
    """Ray CPUs of the command itself, which prepares rows and evaluates."""
    driver_gpus: float = Field(default=0, ge=0)
    groups: dict[str, Group]

    @field_validator("schedule")
    @classmethod
    def _cron(cls, value: str) -> str:
        if not _CRON.fullmatch(value):
            raise ValueError("five fields, such as `0 2 * * *` (02:00 every day)")
        return value

    @model_validator(mode="after")
    def _readable(self) -> "Training":
        load_recipe(self.recipe, [f"{key}={value}" for key, value in self.overrides.items()])
        return self


class Fleet(FrozenModel):
    """Where and how Kauli runs, on one machine or on many."""

    name: str = Field(default="kauli", pattern=f"^{_NAME}$")
    """Of the service; the names of all other objects begin with it."""
    namespace: str = Field(default="kauli", pattern=f"^{_NAME}$")
    image: str = Field(default_factory=lambda: f"kauli:{version('kauli')}-cpu")
    gpu_image: str = Field(default_factory=lambda: f"kauli:{version('kauli')}-cuda")
    """Of nodes with GPUs."""
    storage: str = "/var/lib/kauli-store"
    """Of adapters, memories and runs: a folder on the volume for it, or the URI of an object store."""
    storage_endpoint: str | None = None
    """The address of an object store that is not AWS's own."""
    home_gib: int = Field(default=20, ge=1)
    """The volume of bases, data and caches."""
    store_gib: int = Field(default=20, ge=1)
    """The volume of the storage, where it is a folder."""
    shared_volumes: bool = False
    """Whether pods on several nodes use the volumes: access mode ReadWriteMany in place of ReadWriteOnce."""
    storage_class: str | None = None
    bases: tuple[str, ...] = ("smollm2-135m-q4",)
    """Brought to each node before it joins."""
    service: dict[str, Any] = Field(default_factory=dict)
    """Settings of the service that differ from their defaults; the keys are those of `deploy/local.yaml`."""
    head: Resources
    workers: dict[str, Group]
    """The groups that serve."""
    training: Training
    redis: str | None = None
    """host:port of a Redis that keeps the state of the head, so that a new head goes on with the same cluster."""
    scraped_from: str = "monitoring"
    """The namespace whose pods may read metrics."""
    operator_namespace: str = "kuberay-system"
    """Where the KubeRay operator runs."""

    @field_validator("service")
    @classmethod
    def _settings(cls, value: dict[str, Any]) -> dict[str, Any]:
        for key in ("host", "port", "storage", "key_hashes", "admin_key_hashes"):
            if key in value:
                raise ValueError(f"service.{key} is set by the manifests themselves: leave it out")
        try:
            parse_settings(value)
        except UsageError as error:
            raise UsageError(f"service: {error}") from None
        return value

    @model_validator(mode="after")
    def _placeable(self) -> "Fleet":
        groups = {**self.workers, **self.training.groups}
        for name in groups:
            if not re.fullmatch(_NAME, name):
                raise ValueError(f"the name of a group is lower case letters, digits and '-', not '{name}'")
        settings = parse_settings(self.service)
        for kind in ("text", "image", "audio", "memory", "voice"):
            worker = settings.worker(kind)
            if not any(one.cpus >= worker.num_cpus and one.gpus >= worker.num_gpus for one in self.workers.values()):
                raise ValueError(
                    f"service.{kind} asks for {worker.num_cpus:g} CPUs and {worker.num_gpus:g} GPUs a replica, and no "
                    f"group of workers has nodes of that size"
                )
        if "://" not in self.storage and not self.shared_volumes and max(one.nodes[1] for one in groups.values()) > 1:
            raise ValueError(
                "several nodes need a storage that all reach: set storage to an object store, or shared_volumes=true"
            )
        return self

    @property
    def on_object_store(self) -> bool:
        """Whether the storage is not a folder."""
        return "://" in self.storage


def load_fleet(profile: str, overrides: Sequence[str] = ()) -> Fleet:
    """A profile's fleet, changed by `key=value` overrides (dotted keys, values read as YAML).

    Raises UsageError for an unknown profile, key or value; it names the nearest right one.
    """
    if profile not in PROFILES:
        raise UsageError(
            f"there is no profile '{profile}'.{nearest(profile, PROFILES)} Profiles: {', '.join(PROFILES)}"
        )
    values = read_yaml((files("kauli.deploy.fleet") / "profiles.yaml").read_text(encoding="utf-8"))[profile]
    for override in overrides:
        _override(values, override)
    return parse_fleet(values)


def parse_fleet(values: Mapping[str, Any]) -> Fleet:
    """`values` as a checked fleet; raises UsageError that names the key."""
    try:
        return Fleet.model_validate(dict(values))
    except ValidationError as error:
        first = error.errors(include_url=False)[0]
        where = ".".join(str(part) for part in first["loc"])
        if first["type"] == "extra_forbidden":
            keys = _keys_at(first["loc"][:-1])
            hint = nearest(str(first["loc"][-1]), keys)
            raise UsageError(f"unknown key '{where}'.{hint} Known: {', '.join(keys)}") from None
        if first["type"] == "missing":
            raise UsageError(f"'{where}' is missing") from None
        text = first["msg"].removeprefix("Value error, ").replace("valid tuple", "list, such as [a, b]")
        shown = "" if isinstance(first["input"], Mapping | BaseModel) else f"={first['input']!r}"
        raise UsageError(f"{where}{shown}: {text}" if where else text) from None


def _keys_at(place: Sequence[Any]) -> list[str]:
    """The keys that a section has; `place` are keys, among them those of groups."""
    model: type[BaseModel] = Fleet
    for part in place:
        found = model.model_fields.get(str(part))
        text = repr(found.annotation) if found else ""
        model = next((one for one in (Training, Group, Resources) if one.__name__ in text), model)
    return list(model.model_fields)


def _override(values: dict[str, Any], override: str) -> None:
    key, equals, text = override.partition("=")
    *parents, last = key.strip().split(".")
    if not equals or not last:
        raise UsageError(f"--set takes key=value, not '{override}'; for example --set namespace=speech")
    try:
        value = yaml.safe_load(text)
    except yaml.YAMLError as error:
        raise UsageError(f"--set {override}: the value is not YAML ({' '.join(str(error).split())})") from None
    if parents[:2] == ["training", "overrides"]:  # the keys of a recipe hold dots themselves
        parents, last = parents[:2], ".".join([*parents[2:], last])
    section = values
    for parent in parents:
        section = section.setdefault(parent, {})
        if not isinstance(section, dict):
            raise UsageError(f"--set {override}: '{parent}' is no section")
    mapping = isinstance(value, Mapping) and isinstance(section.get(last), Mapping)
    section[last] = merge_settings(section[last], value) if mapping else value
