"""What can be asked for: the served bases and the registry's adapters on them, and which of them answers a request.

The tasks in here are those of a service: an adapter of the task `align` that is a few-shot head serves `classify`.
"""

import re
import threading
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from datetime import datetime
from pathlib import Path

from kauli.models.adapters.card import Card
from kauli.models.adapters.registry import Registry
from kauli.models.bases.find import Base, find_base
from kauli.models.errors import KauliError, UsageError, nearest
from kauli.models.languages import check_tag, fallback_chain
from kauli.models.progress import note
from kauli.serving.events import NO_SPEECH, NOT_ALIGNED
from kauli.serving.settings import TASKS

DEFAULT_BASE = "smollm2-135m-q4"
_SPEC = re.compile(r"([a-z0-9][a-z0-9._-]{0,63})(?:@([a-z0-9._-]{1,64}))?")
_NEXT = {
    "text": "Train one with `kauli train text-sw --set language={tag} --set name=text-{name}`, "
    "or ask a base by its name",
    "describe": "Train one with `kauli train describe-multi --set language={tag} --set name=describe-{name}`",
    "transcribe": "Train one with `kauli train transcribe-be --set language={tag} --set name=transcribe-{name}`, "
    "or set allow_base",
    "classify": "Train a head, or give `classes`",
}
_MISS_S = 0.5  # an unknown name looks at the registry anew, but not more often than this


class UnknownModel(UsageError):
    """No base, task or adapter of this name is served."""


class UnknownLanguage(UsageError):
    """No adapter serves this language."""


@dataclass(frozen=True)
class Adapter:
    """One name of the registry as it stands: its versions, its aliases, and the version that the bare name means."""

    name: str
    version: int
    versions: tuple[int, ...]
    aliases: dict[str, int]
    card: Card = field(repr=False)

    @property
    def spec(self) -> str:
        """`name@version` of the version that the bare name means."""
        return f"{self.name}@{self.version}"

    @property
    def created(self) -> int:
        """When it was trained, in seconds since 1970."""
        return int(datetime.fromisoformat(self.card.created).timestamp())


@dataclass(frozen=True)
class Route:
    """Who answers a request: a base, with an adapter (`name@version`) or without, for a language if one is known."""

    base: str
    adapter: str | None
    language: str | None

    @property
    def model(self) -> str:
        """What the response calls the model."""
        return self.adapter or self.base


class Catalogue:
    """The adapters of `registry` that fit `bases`, looked up anew when older than `refresh_s`. Safe for threads.

    `aligned` is the base of the space that pictures and texts share, `speech` the one that transcribes, where they are
    served.
    """

    def __init__(
        self,
        registry: Registry,
        bases: Sequence[Base],
        refresh_s: float = 2.0,
        *,
        aligned: Base | None = None,
        speech: Base | None = None,
        tasks: Sequence[str] = TASKS,
    ) -> None:
        self.bases = {public_name(base): base for base in bases}
        self.aligned = None if aligned is None else public_name(aligned)
        self._seeing = {} if aligned is None else {public_name(aligned): aligned}
        self.speech = None if speech is None else public_name(speech)
        self._hearing = {} if speech is None else {public_name(speech): speech}
        self._tasks = tuple(tasks)
        self._registry = registry
        self._refresh_s = refresh_s
        self._lock = threading.Lock()
        self._cards: dict[tuple[str, int], Card] = {}
        self._adapters: dict[str, Adapter] = {}
        self._read_at = float("-inf")

    def all_bases(self) -> dict[str, Base]:
        """Every base that answers, by its name: those that generate, that of the shared space, that of speech."""
        return self.bases | self._seeing | self._hearing

    def adapters(self) -> list[Adapter]:
        """All adapters that a served base can answer with, by name."""
        return [adapter for adapter in self._snapshot(self._refresh_s).values() if self._base_of(adapter.card)]

    def route(self, model: str, language: str | None = None, allow_base: bool = False) -> Route:
        """Who answers `model` (a task, a base, an adapter spec) in `language`.

        For a task the language's fallback chain chooses the adapter; for "text" without a language the first base
        answers, for "transcribe" that of speech, and "embed" is the base of the shared space.
        Raises UnknownModel, UnknownLanguage (none serves it and `allow_base` is not set) or UsageError (no such tag).
        """
        tag = check_tag(language) if language else None
        if model in self.all_bases():
            return Route(model, None, tag)
        if model in TASKS:
            return self._of_task(model, tag, allow_base)
        match = _SPEC.fullmatch(model)
        adapter = self._find(match[1]) if match else None
        if match is None or adapter is None:
            known = [*self.all_bases(), *self._tasks, *(adapter.name for adapter in self.adapters())]
            raise UnknownModel(f"model '{model}' is not served.{nearest(model, known)} Served: {', '.join(known[:20])}")
        card = self._version(adapter, match[2])
        base = self._base_of(card)
        if base is None:
            raise UnknownModel(self._why_not(model, card))
        if tag and not set(fallback_chain(tag)) & set(card.language):
            raise UnknownLanguage(f"adapter '{card.spec}' is for {', '.join(card.language)}, not for '{tag}'")
        spoken = next((t for t in fallback_chain(tag) if t in card.language), tag) if tag else None
        return Route(base, card.spec, spoken or (card.language[0] if len(card.language) == 1 else None))

    def _of_task(self, task: str, tag: str | None, allow_base: bool) -> Route:
        if task in ("embed", "classify") and self.aligned is None:
            raise UnknownModel(NOT_ALIGNED.message)
        if task == "transcribe" and self.speech is None:
            raise UnknownModel(NO_SPEECH.message)
        if task not in self._tasks:
            raise UnknownModel(f"the task '{task}' is not served here: {', '.join(self._tasks)}")
        if task == "embed":
            assert self.aligned is not None
            return Route(self.aligned, None, tag)
        base = self.speech if task == "transcribe" else next(iter(self.bases)) if task == "text" else None
        if base is not None and tag is None:
            return Route(base, None, None)
        for age in (self._refresh_s, _MISS_S):
            served = [a for a in self._snapshot(age).values() if served_task(a.card) == task and self._base_of(a.card)]
            for candidate in fallback_chain(tag) if tag else ():
                fitting = [adapter for adapter in served if candidate in adapter.card.language]
                if fitting:
                    best = min(fitting, key=_preference)
                    its = self._base_of(best.card)
                    assert its is not None
                    return Route(its, best.spec, candidate)
            if tag is None and len(served) == 1:
                return self.route(served[0].name)
        if base is not None and allow_base:
            return Route(base, None, tag)
        languages = sorted({language for adapter in served for language in adapter.card.language})
        if tag is None and served:
            raise UsageError(
                f"model '{task}' needs a language ({', '.join(languages)}), or name an adapter as the model"
            )
        of_task = "" if task == "text" else f" of the task '{task}'"
        wanted = f"'{tag}'" if tag else "here"
        advice = _NEXT[task].format(tag=tag or "sw", name=(tag or "sw").lower())
        raise UnknownLanguage(
            f"no adapter{of_task} serves {wanted}. Served: {', '.join(languages) or 'none'}. {advice}"
        )

    def _why_not(self, model: str, card: Card) -> str:
        """Why an adapter of the registry can't be asked."""
        task = served_task(card)
        if task is None:
            return f"adapter '{model}' is for the task '{card.task}', which is not asked over HTTP"
        if task == "classify" and self.aligned is None:
            return f"adapter '{model}' needs an aligned base: {NOT_ALIGNED.message}"
        if task not in self._tasks:
            return f"adapter '{model}' is for the task '{task}', which is not served here: {', '.join(self._tasks)}"
        if task == "transcribe" and self.speech is None:
            return f"adapter '{model}' needs a speech recogniser: {NO_SPEECH.message}"
        served = self._bases_for(task)
        settings = {"classify": "set encoder:", "transcribe": "set speech:"}
        start = f"{settings.get(task, '--base')} {card.base.name}"
        return (
            f"adapter '{model}' needs the base '{card.base.name}', which is not served here "
            f"(served: {', '.join(served)}): start `kauli serve` with {start}"
        )

    def _find(self, name: str) -> Adapter | None:
        return self._snapshot(self._refresh_s).get(name) or self._snapshot(_MISS_S).get(name)

    def _version(self, adapter: Adapter, wanted: str | None) -> Card:
        if wanted is None:
            return adapter.card
        for age in (self._refresh_s, _MISS_S):
            adapter = self._snapshot(age).get(adapter.name, adapter)
            number = adapter.aliases.get(wanted, int(wanted) if wanted.isdecimal() else None)
            if number in adapter.versions:
                assert number is not None
                return self._card(adapter.name, number)
        known = [*adapter.aliases, *(str(version) for version in adapter.versions)]
        raise UnknownModel(f"{adapter.name} has no version or alias '{wanted}'; it has {', '.join(known)}")

    def _base_of(self, card: Card) -> str | None:
        task = served_task(card)
        if task not in self._tasks:
            return None
        for name, base in self._bases_for(task).items():
            if card.base.sha256 == base.sha256 or card.base.name in (name, base.name):
                return name
        return None

    def _bases_for(self, task: str | None) -> dict[str, Base]:
        """The served bases that adapters of a task may stand on."""
        return {"classify": self._seeing, "transcribe": self._hearing}.get(task or "", self.bases)

    def _card(self, name: str, version: int) -> Card:
        if (name, version) not in self._cards:
            self._cards[name, version] = self._registry.card(f"{name}@{version}")
        return self._cards[name, version]

    def _snapshot(self, max_age: float) -> dict[str, Adapter]:
        with self._lock:
            if time.monotonic() - self._read_at > max_age:
                self._adapters = {name: found for name in self._registry.names() if (found := self._read(name))}
                self._read_at = time.monotonic()
            return self._adapters

    def _read(self, name: str) -> Adapter | None:
        versions = self._registry.versions(name)
        if not versions:  # removed since its name was read
            return None
        aliases = {alias: number for alias, number in self._registry.aliases(name).items() if number in versions}
        version = aliases.get("prod") or aliases.get("latest") or versions[-1]
        return Adapter(name, version, tuple(versions), aliases, self._card(name, version))


def served_task(card: Card) -> str | None:
    """The task of a service that an adapter is for; None where there is none."""
    if card.task == "align":
        return "classify" if card.method.get("kind") == "head" else None
    return card.task if card.task in TASKS else None


def hearing_base(card: Card) -> str | None:
    """The base whose encoder an adapter hears recordings by, in conversations; None where it takes none."""
    name = (((card.recipe or {}).get("fusion") or {}).get("hearing") or {}).get("encoder")
    return str(name) if name else None


def choose_bases(
    registry: Registry,
    names: Sequence[str] = (),
    allow_noncommercial: bool = False,
    tasks: Sequence[str] = ("text",),
) -> list[Base]:
    """The bases to answer with: those of `names`, else those of the registry's adapters, else the default base.

    Only adapters of `tasks` count. A base that only an adapter asks for and that can't be had is left out with a note.
    """
    if names:
        return [find_base(name, allow_noncommercial=allow_noncommercial) for name in dict.fromkeys(names)]
    wanted = {card.base.name for card in newest_cards(registry) if card.task in tasks} or {DEFAULT_BASE}
    found = []
    for name in sorted(wanted, key=lambda name: (name != DEFAULT_BASE, name)):
        try:
            found.append(find_base(name, allow_noncommercial=allow_noncommercial))
        except KauliError as error:
            note(f"Without the base '{name}' and its adapters: {error}")
    return found or [find_base(DEFAULT_BASE)]


def newest_cards(registry: Registry) -> list[Card]:
    """The card of each name's newest version."""
    return [registry.card(f"{name}@{registry.versions(name)[-1]}") for name in registry.names()]


def public_name(base: Base) -> str:
    """What a request calls the base; of a local folder its last part, so that no path of this machine is shown."""
    return Path(base.name).name if Path(base.name).is_absolute() else base.name


def _preference(adapter: Adapter) -> tuple[bool, bool, int, int, str]:
    """Of several adapters for a language: `prod` before `latest` before the rest, then few languages, then new."""
    return (
        "prod" not in adapter.aliases, "latest" not in adapter.aliases, len(adapter.card.language), -adapter.created,
        adapter.name,
    )  # fmt: skip
