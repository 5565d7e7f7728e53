"""The card of an adapter (`card.json`): what it is, on which base, from which data, how good, under which licences."""

import json
import math
import re
from datetime import UTC, datetime
from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING, Any, Literal, Self

from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator

from kauli.models.adapters.certificate import Certificate
from kauli.models.adapters.upgrade import upgrade_card
from kauli.models.errors import KauliError, UsageError

if TYPE_CHECKING:
    from kauli.models.bases.find import Base

CARD_FILE = "card.json"
README_FILE = "README.md"
SUFFIXES = (".safetensors", ".json", ".md")
FEWEST_TOKENS = 16
"""What an answer may always have, however short its prompt is."""
_NAME = re.compile(r"[a-z0-9][a-z0-9._-]{0,63}")


class _Part(BaseModel):
    """What all parts of a card share: an unknown key is an error, a NaN is written as null."""

    model_config = ConfigDict(extra="forbid", ser_json_inf_nan="null", serialize_by_alias=True)


class BaseReference(_Part):
    """The base that an adapter belongs to."""

    name: str
    reference: str
    """The value of `base_model_name_or_path`: a hub id, never a local path."""
    sha256: str
    licence: str
    derived_from: str | None = None

    @classmethod
    def of(cls, base: "Base") -> Self:
        """The reference to a base on this machine."""
        return cls(**{name: getattr(base, name) for name in cls.model_fields})


class Attribution(_Part):
    """One source of training data that must be named."""

    source: str
    licence: str
    rows: int


class DataReference(_Part):
    """What an adapter was trained on."""

    name: str
    sha256: str
    rows: int
    groups: int
    languages: list[str]
    synthetic_rows: int = 0
    left_out: int = 0
    """Further rows of the training split that cannot be used."""
    sources: list[str] | dict[str, int] = Field(default_factory=list)
    options: dict[str, Any] = Field(default_factory=dict)
    """How its files were read, where the recipe says so: `data_options`."""


class EncoderReference(_Part):
    """The base whose encoder makes the features that an adapter's connector takes."""

    base: str
    """Its name."""
    sha256: str | None = None
    """None: not recorded."""


class PromptReference(_Part):
    """The instruction that the adapter was trained with."""

    instruction: str | None = None
    """`{language}` in it is the language's English name; None: each example had its own."""


class EvaluationSettings(_Part):
    """What an evaluation of the adapter must know beside its data."""

    max_chars_per_second: float | None = None
    """Characters a second; rows with audio whose text is longer are left out."""
    base_languages: dict[str, str] = Field(default_factory=dict)
    """A language that the base does not know -> the language that the base is asked for in its place."""
    judges: tuple[str, ...] = ()
    """The bases for `transcribe`, or adapters on them, that listen to speech."""


class Decoding(_Part):
    """Guards against loops and answers without end, for requests that do not say otherwise.

    They are measured on the answers that the adapter was trained with, in tokens of its base.
    """

    no_repeat: int = Field(default=0, ge=0)
    """Length of token runs that may not occur twice in an answer; 0: any may."""
    max_tokens: int | None = Field(default=None, ge=1)
    """New tokens of an answer to a message; None: as of the bare base."""
    tokens_per_prompt_token: float | None = Field(default=None, gt=0)
    """New tokens for each token of the prompt, where that is fewer."""

    def limit(self, prompt: int, default: int) -> int:
        """The new tokens of an answer to a message of `prompt` tokens; `default` are those of the bare base."""
        if self.max_tokens is None or self.tokens_per_prompt_token is None:
            return self.max_tokens or default
        return max(FEWEST_TOKENS, min(self.max_tokens, math.ceil(self.tokens_per_prompt_token * prompt)))


class PromptPair(_Part):
    """A text and its translation, which prompts of both directions show."""

    source: str
    target: str
    source_language: str
    """A BCP-47 tag, as `target_language`."""
    target_language: str


class Prompting(_Part):
    """How a translation is asked for: the prompt's parts, and the examples from a memory in it.

    In the texts, `{source_language}` and `{target_language}` are the languages' English names.
    """

    instruction: str = "Translate from {source_language} into {target_language}."
    pair: str = "{source_language}: {source}\n{target_language}:\n{target}"
    """An example; the text to translate comes in the same form, cut before `{target}`."""
    terms: str = "Use these terms: {terms}."
    """Left out where the glossary has no term of the text."""
    examples: int = Field(default=4, ge=0, le=32)
    """The most pairs that are retrieved."""
    tokens: int = Field(default=320, ge=0)
    """The most tokens of all examples together; the least similar ones are left out first."""
    order: Literal["nearest_last", "nearest_first"] = "nearest_last"
    fixed: list[PromptPair] = Field(default_factory=list)
    """Examples that stand in every prompt between their languages, before those that are retrieved."""

    @field_validator("pair")
    @classmethod
    def _shows_both(cls, value: str) -> str:
        if not re.search(r"{source}.*{target}", value, re.DOTALL):
            raise ValueError("a pair shows {source}, then {target}")
        return value


class TranslationReference(_Part):
    """What an adapter for translation translates, and how it is asked."""

    pairs: list[tuple[str, str]]
    """(source, target) BCP-47 tags."""
    prompting: Prompting = Field(default_factory=Prompting)
    compared: int | None = None
    """Prompts of which this one was the best on validation rows; None: there was no search."""


class VoiceReference(_Part):
    """Whose speech an adapter of the task `speak` learned."""

    consent: str
    """By whose leave."""
    synthetic: float = Field(ge=0, le=1)
    """The share of clips that nobody spoke."""


class LanguageModelReference(_Part):
    """A language model in a recogniser's adapter, and what it was worth on validation clips."""

    order: int
    texts: int
    """That it was made of."""
    ngrams: int
    weight: float
    bonus: float
    beams: int
    clips: int
    """Validation clips by which weight and bonus were chosen."""
    cer: float
    """Their character error rate with it."""
    greedy_cer: float
    """And without it."""


class Validation(_Part):
    """A figure on the validation split; the adapter gets the alias `latest` when its figure is the smaller."""

    base: float | None
    adapter: float | None
    metric: str = "bits_per_byte"
    """A name of `kauli.models.metrics.METRICS`."""


class Training(_Part):
    """Resources that the training took. `curve` holds `[step, training loss, validation figure or null]`."""

    steps: int
    seconds: float
    tokens: int
    machine: str
    seed: int
    precision: str | None = None
    """"fp32" or "bf16", and why; None: not recorded."""
    curve: list[list[float | None]] = Field(default_factory=list)


class Card(_Part):
    """Everything that is known about an adapter beside its weights."""

    schema_version: Literal[2] = Field(default=2, alias="schema")
    name: str
    version: int | None = None
    """Given by the registry; None before the adapter is published."""
    task: str
    language: list[str]
    base: BaseReference
    template: str | None = None
    """The Jinja chat template that the adapter was trained with; None means that of the base's tokenizer."""
    method: dict[str, Any]
    licence: str
    attributions: list[Attribution] = Field(default_factory=list)
    data: DataReference | None = None
    recipe: dict[str, Any] | None = None
    """As the training run had it, for display and reproduction; whatever a reader needs is a field of the card."""
    encoders: dict[str, EncoderReference] = Field(default_factory=dict)
    """Kind of media, "image" or "audio" -> the base whose encoder the connector takes."""
    prompt: PromptReference = Field(default_factory=PromptReference)
    evaluation: EvaluationSettings = Field(default_factory=EvaluationSettings)
    decoding: Decoding = Field(default_factory=Decoding)
    translation: TranslationReference | None = None
    """Of the task `translate`."""
    voice: VoiceReference | None = None
    """Of the task `speak`."""
    language_models: dict[str, LanguageModelReference] = Field(default_factory=dict)
    """Of the task `transcribe`: language -> what its transcripts are searched with."""
    certificates: dict[str, Certificate] = Field(default_factory=dict)
    """Language of answers -> what is known of how good each will be."""
    metrics: dict[str, float | None] = Field(default_factory=dict)
    """The adapter on the test split."""
    base_metrics: dict[str, float | None] | None = None
    """The bare base on the same rows."""
    intervals: dict[str, list[float | None]] = Field(default_factory=dict)
    validation: Validation | None = None
    training: Training | None = None
    versions: dict[str, str] = Field(default_factory=dict)
    """Package name to version, at training time."""
    created: str = Field(default_factory=lambda: datetime.now(UTC).isoformat(timespec="seconds"))
    files: dict[str, str] = Field(default_factory=dict)
    """Path inside the folder to SHA-256, for every file but `card.json`."""
    exceptions: list[str] = Field(default_factory=list)
    """Checks that were overridden by hand, such as a base that could not be verified."""
    notes: list[str] = Field(default_factory=list)
    """What its training told: rows that were left out, a base or a budget that does not suffice."""

    @field_validator("name")
    @classmethod
    def _name_is_safe(cls, value: str) -> str:
        return check_name(value)

    @field_validator("language", mode="before")
    @classmethod
    def _one_language_is_a_list(cls, value: Any) -> Any:
        return [value] if isinstance(value, str) else value

    @field_validator("files")
    @classmethod
    def _files_stay_inside(cls, value: dict[str, str]) -> dict[str, str]:
        # These become paths on the disk of the user who downloads the adapter.
        for name in value:
            parts = PurePosixPath(name).parts
            inside = name == "/".join(parts) and ".." not in parts and not name.startswith("/") and "\\" not in name
            if not inside or not name.endswith(SUFFIXES) or name == CARD_FILE:
                raise ValueError(f"'{name}' is not a file that an adapter may hold")
        return value

    @property
    def spec(self) -> str:
        """`name@version`, or the bare name before the adapter is published."""
        return self.name if self.version is None else f"{self.name}@{self.version}"

    def to_json(self) -> str:
        """The text of `card.json`."""
        return self.model_dump_json(indent=2) + "\n"


def check_name(name: str, what: str = "adapter name") -> str:
    """Return `name` when it is safe as a folder and in a URL; raises `UsageError` otherwise."""
    if not _NAME.fullmatch(name) or ".." in name:
        raise UsageError(
            f"'{name}' is no {what}: 1 to 64 characters of a-z, 0-9, '.', '_' and '-' are allowed, "
            "starting with a letter or digit, without '..'"
        )
    return name


def check_new_name(name: str) -> str:
    """`check_name` for an adapter that is made now: a request's model of that name must mean the adapter."""
    from kauli.models.bases.find import known_bases  # here: bases come with heavy imports
    from kauli.models.tasks import RESERVED

    check_name(name)
    taken = "a task" if name in RESERVED else "a base" if name in known_bases() or name.startswith("debug") else ""
    if taken:
        raise UsageError(f"an adapter can't be called '{name}', the name of {taken}: choose another name")
    return name


def parse_card(text: str | bytes, where: str) -> Card:
    """The card in the text of a `card.json`, of schema 1 as well; KauliError, which names `where`, if unreadable."""
    try:
        content = json.loads(text)
        return Card.model_validate(upgrade_card(content) if isinstance(content, dict) else content)
    except UsageError as error:
        raise KauliError(f"{where} is not a readable card: {error}") from error
    except ValidationError as error:
        first = error.errors()[0]
        place = ".".join(str(part) for part in first["loc"])
        raise KauliError(
            f"{where} is not a readable card: {place + ': ' if place else ''}{first['msg']}. "
            "It is damaged, or from another version of kauli."
        ) from error
    except (ValueError, RecursionError) as error:
        raise KauliError(f"{where} is not a readable card: {error}. It is damaged.") from error


def read_card(folder: Path) -> Card:
    """The card in an adapter folder; raises `KauliError` when there is none or it cannot be read."""
    path = folder / CARD_FILE
    try:
        text = path.read_bytes()
    except FileNotFoundError:
        raise KauliError(
            f"{folder} has no {CARD_FILE}: it is not an adapter of kauli. "
            "`kauli adapters add` takes a folder made by plain PEFT."
        ) from None
    except OSError as error:
        raise KauliError(f"{path} cannot be read: {error.strerror}") from error
    return parse_card(text, str(path))
