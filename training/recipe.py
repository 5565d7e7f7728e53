"""The recipe: one YAML file, one strict frozen model, everything that a training run is made of."""

import hashlib
import json
import re
from importlib.resources import files
from pathlib import Path
from typing import Annotated, Any, Literal, Self

import yaml
from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator, model_validator

from kauli.models.errors import UsageError, nearest
from kauli.models.languages import check_tag
from kauli.training.augment.audio import AudioAugmentation
from kauli.training.augment.image import ImageAugmentation
from kauli.training.methods import AttentionAdapter, FewShot, Full, Lora, Method, Projection


class StrictModel(BaseModel):
    """Frozen, and an unknown key is an error."""

    model_config = ConfigDict(frozen=True, extra="forbid")


class Objective(StrictModel):
    """What is minimised beside the loss on the answers."""

    regulariser: Literal["none", "replay"] = "none"
    """`replay` mixes English training rows in, so that the base forgets less of what it knew."""
    weight: float = Field(default=0.0, ge=0, lt=1)
    """For `replay`: the share of each step's tokens that are English."""

    @model_validator(mode="after")
    def _both_or_none(self) -> Self:
        if (self.regulariser == "none") != (self.weight == 0):
            raise ValueError("regulariser and weight go together: 'none' with 0, any other with a weight over 0")
        return self


class Train(StrictModel):
    """Budget and optimiser."""

    steps: int = Field(default=300, ge=1)
    """Optimiser steps at the most."""
    minutes: float | None = Field(default=None, gt=0)
    """Wall-clock minutes at the most, with validation, without start-up; the schedule follows what ends first."""
    batch_tokens: int = Field(default=1024, ge=32)
    """Tokens of one optimiser step over all workers, prompts included."""
    micro_tokens: int = Field(default=2048, ge=32)
    """Tokens of one forward pass of a worker; a step with more is accumulated. It decides memory, not the result."""
    max_length: int = Field(default=512, ge=16)
    """Tokens of one example; a longer answer is cut there, with a note."""
    learning_rate: float = Field(default=5e-4, gt=0)
    repeat: dict[str, int] = {}
    """Source -> how often its rows stand in an epoch, for what is scarce and worth more; others stand once."""
    warmup: float = Field(default=0.05, ge=0, lt=1)
    """The share of the budget over which the learning rate rises; after it, a cosine down to zero."""
    weight_decay: float = Field(default=0.0, ge=0)
    clip: float = Field(default=1.0, gt=0)
    """The largest norm of a step's gradient."""
    validate_every: int = Field(default=25, ge=1)
    """Steps between validations, each with a checkpoint."""
    early_stop: int | None = Field(default=3, ge=1)
    """Validations without a new best after which training stops; null never stops early."""
    seed: int = Field(default=0, ge=0)


class AudioInput(StrictModel):
    """How recordings come before the language model, beside pictures."""

    encoder: str = "whisper-base"
    """The base of the task `transcribe` whose encoder is used."""
    stack: int = Field(default=4, ge=1, le=16)
    """So many frames, of 20 ms each, stand in the prompt as one feature."""
    inner: int = Field(default=1024, ge=1)
    """The width of the connector's hidden layer."""
    unseen: float = Field(default=0.5, ge=0, le=1)
    """The share of the views, behind each row's first, that give the recording without the picture."""
    unheard: float = Field(default=0.1, ge=0, le=1)
    """The share of those views that give the picture without the recording."""
    fastest: float = Field(default=25.0, gt=0)
    """Characters a second; a row whose text is longer can't be what is said, and is dropped with a note."""

    @model_validator(mode="after")
    def _shares(self) -> Self:
        if self.unseen + self.unheard > 1:
            raise ValueError("unseen and unheard are shares of the same views: together at most 1")
        return self


class DescribeSection(StrictModel):
    """How pictures come before the language model, for the task `describe`."""

    encoder: str = "kauli-towers"
    """The base of the task `align` whose image tower is used."""
    grid: int = Field(default=2, ge=0, le=16)
    """A picture stands in the prompt as the mean of its map and the map averaged to grid x grid."""
    inner: int = Field(default=1024, ge=1)
    """The width of the connector's hidden layer."""
    learning_rate: float = Field(default=1e-3, gt=0)
    """Of the connector; `train.learning_rate` is the adapter's."""
    alone: float = Field(default=0.25, ge=0, lt=1)
    """The share of the budget in which the connector is trained alone, before the adapter joins."""
    views: int = Field(default=1, ge=1, le=32)
    """How many views of each picture an epoch has: the picture itself, and augmented ones."""
    hearing: AudioInput | None = None
    """With it, rows have a picture and a recording; null: pictures alone."""


class AlignSection(StrictModel):
    """How pictures and captions are brought together, for the task `align`."""

    loss: Literal["clip", "siglip"] = "clip"
    """`clip`: each among all others, by a softmax in both directions; `siglip`: each pair alone, by a sigmoid."""
    start: Literal["base", "fresh"] = "base"
    """Where the projections begin: at those of the base, or, where it has none of worth, drawn anew."""
    batch: int = Field(default=256, ge=2)
    """Distinct pictures of one optimiser step over all workers, each with one of its captions."""
    views: int = Field(default=1, ge=1, le=32)
    """How many views of each picture there are: the picture itself, and augmented ones."""
    dropout: float = Field(default=0.0, ge=0, lt=1)
    """The share of each feature vector that is hidden from the projections in a step."""
    smoothing: float = Field(default=0.0, ge=0, lt=1)
    """For `clip`: the share of the target that is spread over all others."""

    @model_validator(mode="after")
    def _softmax_alone(self) -> Self:
        if self.smoothing and self.loss != "clip":
            raise ValueError("smoothing is for the loss 'clip': a sigmoid has no target to spread")
        return self


class TranscribeSection(StrictModel):
    """How recordings are learned from, for the task `transcribe`."""

    related: dict[str, tuple[str, ...]] = {}
    """A language that the base has no token for -> languages that it knows, at whose mean its embedding begins."""
    fastest: float = Field(default=25.0, gt=0)
    """Characters a second; a row whose transcript is longer can't be what is said, and is dropped with a note."""
    joined: float = Field(default=0.5, ge=0, lt=1)
    """The chance that a clip is heard as one with the next of its step and language, and its transcript with that
    one's. An adapter that learned from single sentences alone ends behind the first one that it hears."""


Augmentation = ImageAugmentation | AudioAugmentation


class Scale(StrictModel):
    """The only section that differs between a laptop and a cluster."""

    workers: int | tuple[int, int] = 1
    """A number of workers, or the least and the most of an elastic run."""
    gpu: bool = False
    precision: Literal["auto", "fp32", "bf16"] = "auto"
    """`auto`: bf16 on a GPU, fp32 on a CPU (where bf16 without AMX or AVX512-BF16 is many times slower)."""

    @field_validator("workers")
    @classmethod
    def _positive(cls, workers: int | tuple[int, int]) -> int | tuple[int, int]:
        low, high = (workers, workers) if isinstance(workers, int) else workers
        if not 1 <= low <= high:
            raise ValueError("workers is a number from 1 up, or [min, max] with 1 <= min <= max")
        return workers


class Recipe(StrictModel):
    """One training run. `kauli train NAME` reads it from the shipped recipes, `kauli train FILE` from a file."""

    name: str = Field(pattern=r"^[a-z0-9][a-z0-9._-]{0,63}$")
    """The adapter's name in the registry."""
    task: Literal["text", "describe", "align", "transcribe"] = "text"
    base: str
    language: tuple[str, ...] = Field(min_length=1)
    data: str = "starter"
    method: Method = Lora()
    augment: tuple[Annotated[Augmentation, Field(discriminator="kind")], ...] = ()
    """Augmentations of pictures or of recordings; none exists for text yet."""
    fusion: DescribeSection | None = None
    """For `describe`: the encoder and the connector."""
    pairs: AlignSection | None = None
    """For `align`: the loss and the batches."""
    speech: TranscribeSection | None = None
    """For `transcribe`: the recordings."""
    prompt: str | None = None
    """For `describe`: every example's instruction, `{language}` being its language's name; null: its own prompt."""
    objective: Objective = Objective()
    start_from: str | None = None
    """An adapter whose weights training starts from: same base, same method and shapes."""
    train: Train = Train()
    scale: Scale = Scale()
    allow_noncommercial: bool = False

    @field_validator("language", mode="before")
    @classmethod
    def _one_or_many(cls, language: object) -> object:
        return [language] if isinstance(language, str) else language

    @field_validator("language")
    @classmethod
    def _tags(cls, language: tuple[str, ...]) -> tuple[str, ...]:
        tags = tuple(check_tag(tag) for tag in language)
        if len(set(tags)) < len(tags):
            raise ValueError(f"a language stands twice in {list(tags)}")
        return tags

    @field_validator("train")
    @classmethod
    def _repeats(cls, train: Train) -> Train:
        for source, times in train.repeat.items():
            if times < 1:
                raise ValueError(f"train.repeat: '{source}' {times} times; 1 or more is allowed")
        return train

    @model_validator(mode="after")
    def _consistent(self) -> Self:
        if self.train.max_length > min(self.train.batch_tokens, self.train.micro_tokens):
            raise ValueError(
                "train.max_length may not be over train.batch_tokens or train.micro_tokens: a row has to fit in"
            )
        if (self.task == "describe") != (self.fusion is not None):
            raise ValueError("the task 'describe' and the section 'fusion' go together")
        if (self.task == "align") != isinstance(self.method, Projection | FewShot):
            raise ValueError("the task 'align' goes with the methods {kind: projection} and {kind: head}")
        if isinstance(self.method, AttentionAdapter) and self.task != "transcribe":
            raise ValueError("the method {kind: attention_adapter} is for the task 'transcribe'")
        if isinstance(self.method, Projection) != (self.pairs is not None):
            raise ValueError("the method {kind: projection} and the section 'pairs' go together")
        if isinstance(self.method, FewShot) and (len(self.language) > 1 or self.augment or self.start_from):
            raise ValueError("a head has one language, that of its classes' names, no augmentation and no start_from")
        if self.task == "align" and (self.prompt or self.objective.regulariser != "none"):
            raise ValueError("the task 'align' has no prompt and no regulariser")
        if (self.task == "transcribe") != (self.speech is not None):
            raise ValueError("the task 'transcribe' and the section 'speech' go together")
        if self.task == "transcribe" and (self.prompt or self.objective.regulariser != "none"):
            raise ValueError("the task 'transcribe' has no prompt and no regulariser")
        for one in self.augment:
            hears = self.task == "transcribe" or (self.fusion is not None and self.fusion.hearing is not None)
            if (isinstance(one, AudioAugmentation) and not hears) or (
                isinstance(one, ImageAugmentation) and self.task == "transcribe"
            ):
                raise ValueError(f"augment: '{one.kind}' is not for the task '{self.task}'")
        if self.task == "text" and (self.augment or self.prompt):
            raise ValueError("augment and prompt are for pictures: the task 'text' has none")
        if self.augment and self.pairs is not None and self.pairs.views == 1:
            raise ValueError("augment needs pairs.views of 2 or more: the first view is the picture as it is")
        if self.pairs is not None and self.pairs.views > 1 and not self.augment:
            raise ValueError("pairs.views over 1 needs augment: all views would be the same picture")
        if self.augment and self.fusion is not None and self.fusion.views == 1:
            raise ValueError("augment needs fusion.views of 2 or more: the first view is the picture as it is")
        if self.start_from and isinstance(self.method, Full):
            raise ValueError("start_from needs a method with adapter weights, 'full' has none")
        return self

    @property
    def picture_augment(self) -> tuple[ImageAugmentation, ...]:
        """Those of `augment` that change pictures."""
        return tuple(one for one in self.augment if isinstance(one, ImageAugmentation))

    @property
    def speech_augment(self) -> tuple[AudioAugmentation, ...]:
        """Those of `augment` that change recordings."""
        return tuple(one for one in self.augment if isinstance(one, AudioAugmentation))

    def sha256(self, *, with_seed: bool = True) -> str:
        """The hash of all that decides the result; without the seed, the key that `kauli compare` groups by."""
        content = self.model_dump(mode="json")
        del content["scale"]
        if self.speech is None:  # as if there were no such section: older recipes keep their hashes
            del content["speech"]
        if self.fusion is not None and self.fusion.hearing is None:
            del content["fusion"]["hearing"]
        if not with_seed:
            del content["train"]["seed"]
        return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()


def recipe_names() -> list[str]:
    """The names of the shipped recipes."""
    return sorted(entry.name.removesuffix(".yaml") for entry in _shipped().iterdir() if entry.name.endswith(".yaml"))


def load_recipe(name_or_path: str, overrides: list[str] | None = None) -> Recipe:
    """The recipe of a shipped name or a YAML file, changed by `key=value` overrides (dotted keys, values read as YAML).

    Raises UsageError for an unknown recipe, key or value; it names the nearest right one.
    """
    path = Path(name_or_path)
    if name_or_path in recipe_names():
        text = (_shipped() / f"{name_or_path}.yaml").read_text(encoding="utf-8")
    elif path.suffix in (".yaml", ".yml") and path.is_file():
        text = path.read_text(encoding="utf-8")
    else:
        names = recipe_names()
        raise UsageError(
            f"there is no recipe '{name_or_path}'.{nearest(name_or_path, names)} Shipped: {', '.join(names)}; "
            "or give the path of a .yaml file."
        )
    try:
        content = yaml.safe_load(text)
    except yaml.YAMLError as error:
        raise UsageError(f"{name_or_path} is not YAML: {error}") from error
    if not isinstance(content, dict):
        raise UsageError(f"{name_or_path} holds no recipe: it must be a mapping with name, base and language.")
    for override in overrides or []:
        _override(content, override)
    return parse_recipe(content, name_or_path)


def parse_recipe(content: dict[str, Any], origin: str) -> Recipe:
    """A checked recipe; raises UsageError that lists every problem on a line of its own."""
    try:
        return Recipe.model_validate(content)
    except ValidationError as error:
        problems = [_explain(dict(problem)) for problem in error.errors()]
        raise UsageError(f"recipe {origin}: " + "\n  ".join(problems)) from error


def _shipped() -> Any:
    return files("kauli.training") / "recipes"


def _override(content: dict[str, Any], override: str) -> None:
    key, equals, value = override.partition("=")
    if not equals or not key:
        raise UsageError(f"--set takes key=value, not '{override}'; for example --set train.steps=100.")
    # YAML 1.1 reads 5e-4 as a string: numbers written so are meant as numbers.
    parsed = float(value) if re.fullmatch(r"[-+]?\d+(\.\d*)?[eE][-+]?\d+", value) else yaml.safe_load(value)
    *parents, last = key.split(".")
    for parent in parents:
        content = content.setdefault(parent, {})
        if not isinstance(content, dict):
            raise UsageError(f"--set {override}: '{parent}' is no section of a recipe.")
    content[last] = parsed


_SECTIONS: dict[str, tuple[type[BaseModel], ...]] = {
    "": (Recipe,),
    "train": (Train,),
    "scale": (Scale,),
    "objective": (Objective,),
    "fusion": (DescribeSection,),
    "pairs": (AlignSection,),
    "fusion.hearing": (AudioInput,),
    "speech": (TranscribeSection,),
    "method": (Lora, Full, AttentionAdapter, Projection, FewShot),
    "method.lora": (Lora,),
    "method.full": (Full,),
    "method.attention_adapter": (AttentionAdapter,),
    "method.projection": (Projection,),
    "method.head": (FewShot,),
}


def _explain(problem: dict[str, Any]) -> str:
    """One line for one pydantic problem: the key, what is wrong, what is allowed."""
    where = ".".join(str(part) for part in problem["loc"])
    section, _, key = where.rpartition(".")
    if problem["type"] == "extra_forbidden":
        allowed = sorted({name for model in _SECTIONS.get(section, ()) for name in model.model_fields})
        return f"unknown key '{where}'.{nearest(key, allowed)} Allowed: {', '.join(allowed)}."
    if problem["type"] == "missing":
        return f"'{where}' is missing."
    message = problem["msg"].removeprefix("Value error, ")
    return f"{where or 'recipe'}: {message} (got {problem['input']!r})." if where else f"{message}."
