"""The recipe: one YAML file, one strict frozen model, everything that a training run is made of.

A recipe is a union discriminated by `task`: this file has what all tasks share, `kauli.training.tasks` a class a task.
"""

import hashlib
import json
from collections.abc import Mapping
from typing import Annotated, Any, Literal, Self

from pydantic import (
    AfterValidator,
    BaseModel,
    Field,
    GetCoreSchemaHandler,
    SerializeAsAny,
    field_validator,
    model_validator,
)
from pydantic_core import CoreSchema, core_schema

from kauli.models.adapters.card import check_name
from kauli.models.adapters.kinds.base import AdapterKind
from kauli.models.adapters.kinds.table import kinds_of
from kauli.models.adapters.upgrade import RENAMED, rename_keys
from kauli.models.frozen import FrozenModel
from kauli.models.languages import check_tag
from kauli.training.data.options import DataOptions


class OneOf:
    """For `Annotated`: a model chosen by its `kind` from a table."""

    def __init__(self, kinds: Mapping[str, type[BaseModel]]) -> None:
        self.kinds = kinds

    def __get_pydantic_core_schema__(self, source: Any, handler: GetCoreSchemaHandler) -> CoreSchema:
        """A union discriminated by `kind`; of an empty table every value is refused."""
        if not self.kinds:
            return core_schema.no_info_plain_validator_function(_refuse)
        choices: dict[Any, CoreSchema] = {name: handler.generate_schema(model) for name, model in self.kinds.items()}
        return core_schema.tagged_union_schema(choices, "kind")


def _refuse(value: Any) -> Any:
    raise ValueError("there is no kind for this task yet")


def method_of(task: str) -> OneOf:
    """The adapter kinds that a task can train, by `kind`."""
    return OneOf({kind.model_fields["kind"].default: kind for kind in kinds_of(task)})


class Objective(FrozenModel):
    """What is minimised beside the loss on the answers."""

    regulariser: Literal["none", "replay"] = "none"
    """`replay` adds English training rows, so that the model forgets less English; data without any trains without."""
    weight: float = Field(default=0.0, ge=0, lt=1)
    """For `replay`: the share of each step's tokens that are English."""

    @model_validator(mode="after")
    def _both_or_none(self) -> Self:
        if (self.regulariser == "none") != (self.weight == 0):
            raise ValueError("regulariser and weight go together: 'none' with 0, any other with a weight over 0")
        return self


class Train(FrozenModel):
    """Budget and optimiser."""

    steps: int | None = Field(default=300, ge=1)
    """The largest number of optimiser steps; null: `minutes` alone limit the training."""
    minutes: float | None = Field(default=None, gt=0)
    """The longest wall-clock time in minutes, with validation, without start-up; the first limit reached counts."""
    batch_tokens: int = Field(default=1024, ge=32)
    """Tokens of one optimiser step over all workers, prompts included."""
    micro_tokens: int = Field(default=2048, ge=32)
    """Tokens of one forward pass of a worker; larger steps accumulate gradients. It sets memory, not the result."""
    max_length: int = Field(default=512, ge=16)
    """Tokens of one example; a longer answer is truncated, a longer prompt or audio clip left out, with a note."""
    learning_rate: float = Field(default=5e-4, gt=0)
    """The peak learning rate of AdamW."""
    source_weights: dict[str, Annotated[int, Field(ge=1)]] = Field(default={})
    """Source -> how many times an epoch repeats its rows; sources that are not named have weight 1. A name that is
    not in the data is ignored with a note."""
    warmup: float = Field(default=0.05, ge=0, lt=1)
    """The share of the budget over which the learning rate rises; after it, a cosine down to zero."""
    weight_decay: float = Field(default=0.0, ge=0)
    """Of AdamW."""
    clip: float = Field(default=1.0, gt=0)
    """The largest norm of a step's gradient."""
    validate_every: int = Field(default=25, ge=1)
    """Steps between validations, each with a checkpoint."""
    early_stop: int | None = Field(default=3, ge=1)
    """Training stops after this number of validations without a new best; null never stops early."""
    seed: int = Field(default=0, ge=0)
    """Of initial weights, order of examples, dropout and augmentation."""

    @model_validator(mode="after")
    def _an_end(self) -> Self:
        if self.steps is None and self.minutes is None:
            raise ValueError("train.steps and train.minutes are both null: a training without an end; set one of them")
        return self

    @model_validator(mode="after")
    def _a_row_fits(self) -> Self:
        if self.max_length > min(self.batch_tokens, self.micro_tokens):
            raise ValueError(
                f"train.max_length {self.max_length} may not be over train.batch_tokens {self.batch_tokens} or "
                f"train.micro_tokens {self.micro_tokens}: an example has to fit into a step"
            )
        return self


class Scale(FrozenModel):
    """The only section that differs between a laptop and a cluster."""

    workers: int | tuple[int, int] = 1
    """A number of workers, or [min, max] of an elastic run."""
    gpu: bool = False
    """One GPU for each worker."""
    precision: Literal["auto", "fp32", "bf16"] = "auto"
    """`auto`: bf16 on a GPU, and on a CPU where it has bf16 instructions and they are measured to be faster."""

    @field_validator("workers")
    @classmethod
    def _positive(cls, workers: int | tuple[int, int]) -> int | tuple[int, int]:
        low, high = (workers, workers) if isinstance(workers, int) else workers
        if not 1 <= low <= high:
            raise ValueError("workers is a number from 1 up, or [min, max] with 1 <= min <= max")
        return workers


class Recipe(FrozenModel):
    """One training run: what all tasks have. `kauli train NAME` reads it from the shipped recipes or from a file."""

    name: Annotated[str, AfterValidator(check_name)]
    """The adapter's name in the registry."""
    task: str = "text"
    """What is trained."""
    base: str
    """The frozen model: a name of models/bases/bases.yaml, a hub id, or a folder."""
    language: tuple[str, ...] = Field(min_length=1)
    """BCP-47 tags, one or a list."""
    data: str = "starter"
    """A data set by name, path or URI."""
    data_options: DataOptions = DataOptions()
    """How the files of `data` are read."""
    method: SerializeAsAny[AdapterKind]
    """The kind of adapter, by `kind`, with its settings."""
    start_from: str | None = None
    """An adapter whose weights training starts from: same base, same method and shapes."""
    train: Train = Train()
    scale: Scale = Scale()
    allow_noncommercial: bool = False
    """Accept a base whose licence forbids commercial use; the adapter inherits the licence."""

    @field_validator("language", mode="before")
    @classmethod
    def _one_or_many(cls, language: object) -> object:
        tags = language if isinstance(language, list | tuple) else [language]
        return ["no" if tag is False else tag for tag in tags]  # YAML 1.1 reads Norwegian's tag as false

    @field_validator("language")
    @classmethod
    def _tags(cls, language: tuple[str, ...]) -> tuple[str, ...]:
        tags = tuple(check_tag(tag) for tag in language)
        if len(set(tags)) < len(tags):
            raise ValueError(f"a language is given twice in {list(tags)}")
        return tags

    @model_validator(mode="after")
    def _adapter_weights_to_start_from(self) -> Self:
        if self.start_from and not self.method.starts_from:
            raise ValueError(f"start_from needs a method with adapter weights, '{self.method.kind}' has none")
        return self

    def sha256(self, *, with_seed: bool = True) -> str:
        """The hash of all that decides the result; without the seed, the key that `kauli compare` groups by."""
        return recipe_sha256(self.model_dump(mode="json"), with_seed=with_seed)


def recipe_sha256(content: Mapping[str, Any], *, with_seed: bool = True) -> str:
    """`Recipe.sha256` of a recipe as a dictionary, such as a card holds, in present or older keys."""
    old = _first_form(content)
    if not with_seed:
        del old["train"]["seed"]
    return hashlib.sha256(json.dumps(old, sort_keys=True).encode()).hexdigest()


def _first_form(content: Mapping[str, Any]) -> dict[str, Any]:
    """The recipe in the keys of the first release: renamed keys and later sections must not change its hash."""
    absent: dict[str, Any] = {
        "augment": [],
        "objective": Objective().model_dump(),
        "fusion": None,
        "pairs": None,
        "prompt": None,
    }
    out: dict[str, Any] = absent | rename_keys(content, {new: old for old, new in RENAMED.items()})
    del out["scale"]
    describe, transcribe = out["fusion"] or {}, out.get("speech") or {}
    later: list[tuple[dict[str, Any], str, Any]] = [
        (transcribe, "language_model", None), (describe, "examples", 0), (describe, "hearing", None),
        (out, "speech", None), (out, "text", None),
    ]  # fmt: skip
    for part, key, default in later:
        if part.get(key, default) == default:
            part.pop(key, None)
    default = DataOptions().model_dump()
    options = {key: value for key, value in out.pop("data_options", {}).items() if value != default.get(key)}
    return out | ({"data_options": options} if options else {})
