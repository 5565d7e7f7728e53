"""What a request may name as its model: tasks, served bases, the registry's adapters on them, and mixtures of these.

The tasks here are those of `kauli.serving.tasks`: an adapter that is a few-shot head answers `classify`.
"""

import re
import threading
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from pathlib import Path

from kauli.models.adapters.card import Card
from kauli.models.adapters.certificate import Certificate
from kauli.models.adapters.mixture import Mixture, is_mixture, mixed_card
from kauli.models.adapters.registry import Registry, Revocation
from kauli.models.bases.find import Base, find_base
from kauli.models.errors import KauliError, UsageError, nearest
from kauli.models.languages import check_tag, fallback_chain
from kauli.models.progress import note
from kauli.models.tasks import task_of
from kauli.serving.tasks import DEFAULT_BASE, TASKS, WORKERS

_SPEC = re.compile(r"([a-z0-9][a-z0-9._-]{0,63})(?:@([a-z0-9._-]{1,64}))?")
_MISS_S = 0.5  # unknown names read the registry again, but not more often than this


class UnknownModel(UsageError):
    """No base, task or adapter of this name is served."""


class UnknownLanguage(UsageError):
    """No adapter serves this language."""


@dataclass(frozen=True)
class Adapter:
    """One name of the registry: its versions, its aliases, and the card of the version that the bare name means."""

    name: str
    versions: tuple[int, ...]
    aliases: dict[str, int]
    card: Card = field(repr=False)
    shadowed: bool = False
    """Whether a task or a served base has the same name, and is what the bare name means."""

    @property
    def public(self) -> str:
        """What a request calls it."""
        return self.card.spec if self.shadowed else self.name

    @property
    def created(self) -> int:
        """When it was trained, in seconds since 1970."""
        return int(datetime.fromisoformat(self.card.created).timestamp())


@dataclass(frozen=True)
class Route:
    """Who answers a request: a base, with an adapter (`name@version`, or the key of a mixture) or without.

    The language is there if one is known.
    """

    worker: str
    """The worker that runs the base."""
    base: str
    adapter: str | None
    language: str | None

    @property
    def model(self) -> str:
        """What the response calls the model."""
        return self.adapter or self.base


class Catalogue:
    """The adapters of `registry` that fit `bases`, looked up again when older than `refresh_s`. Safe for threads.

    `bases` maps each worker that answers one of `tasks` to the bases that it runs.
    """

    def __init__(
        self, registry: Registry, bases: Mapping[str, Sequence[Base]], refresh_s: float = 2.0, *,
        tasks: Sequence[str] = tuple(TASKS),
    ) -> None:  # fmt: skip
        self._bases = {
            worker: {public_name(base): base for base in bases[worker]} for worker in WORKERS if bases.get(worker)
        }
        self._tasks = tuple(tasks)
        self._registry = registry
        self._refresh_s = refresh_s
        self._lock = threading.Lock()
        self._cards: dict[tuple[str, int], Card] = {}
        self._adapters: dict[str, Adapter] = {}
        self._revoked: dict[str, dict[int, Revocation]] = {}
        self._read_at = self._missed_at = float("-inf")

    def bases(self) -> dict[str, Base]:
        """Every base that answers, by its name."""
        return {name: base for found in self._bases.values() for name, base in found.items()}

    def base_of(self, worker: str) -> str | None:
        """The first base of a worker; None where the worker answers nothing."""
        return next(iter(self._bases.get(worker, ())), None)

    def reread(self) -> None:
        """Look the adapters up again at the next call."""
        with self._lock:
            self._read_at = float("-inf")

    def adapters(self) -> list[Adapter]:
        """All adapters that a served base can answer with, by name."""
        return [adapter for adapter in self._snapshot().values() if self._place_of(adapter.card)]

    @property
    def tasks(self) -> tuple[str, ...]:
        """Those that are served and have a base."""
        return tuple(name for name in self._tasks if self._bases.get(TASKS[name].worker))

    def card(self, spec: str) -> Card:
        """The card of a served adapter (NAME, NAME@VERSION or NAME@ALIAS) or of a mixture. Raises as `route` does."""
        return self._served(spec)[0]

    def route(self, model: str, language: str | None = None, allow_base: bool = False) -> Route:
        """Who answers `model` (a task, a base, an adapter spec, a mixture of adapters) in `language`.

        For a task the language's fallback chain chooses the adapter; without a language the first base answers the
        tasks that a bare base can answer.
        Raises UnknownModel, UnknownLanguage (none serves it and `allow_base` is not set), MixtureError (adapters that
        can't be mixed) or UsageError (no such tag).
        """
        tag = check_tag(language) if language else None
        for worker, found in self._bases.items():
            if model in found:
                return Route(worker, model, None, tag)
        if model in TASKS:
            return self._of_task(model, tag, allow_base)
        card, place = self._served(model)
        chain = fallback_chain(tag) if tag else []
        if tag and not set(chain) & set(card.language):
            raise UnknownLanguage(f"adapter '{card.spec}' is for {', '.join(card.language)}, not for '{tag}'")
        known_tag = next((one for one in chain if one in card.language), tag)
        language = known_tag or (card.language[0] if len(card.language) == 1 else None)
        return Route(*place, card.spec, language)

    def route_pair(self, model: str, source: str, target: str) -> tuple[Route, Card]:
        """The adapter that translates `source` into `target` (BCP-47 tags), and its card.

        `model` is the task `translate` or an adapter. Raises UnknownModel, UnknownLanguage, which names the pairs that
        are served, or UsageError (no such tag, the same language twice).
        """
        chains = [fallback_chain(tag) or [tag] for tag in map(check_tag, (source, target))]
        if chains[0][0] == chains[1][0]:
            raise UsageError(f"'{source}' and '{target}' are the same language: there is nothing to translate")
        if model in TASKS:
            cards = [one.card for one in sorted(self.adapters(), key=_preference) if one.card.translation]
        else:
            spec = self.route(model).adapter
            cards = [card for card in [self.card(spec)] if card.translation] if spec else []
            if not cards:
                raise UsageError(
                    f"Model '{model}' does not translate; use model 'translate' or an adapter of that task"
                )
        for tag in chains[0]:
            for other in chains[1]:
                for card in cards:
                    if card.translation and (tag, other) in card.translation.pairs:
                        place = self._place_of(card)
                        assert place is not None  # it is served
                        return Route(*place, card.spec, other), card
        pairs = sorted({pair for card in cards if card.translation for pair in card.translation.pairs})
        close = [pair for pair in pairs if pair[0] in chains[0] or pair[1] in chains[1]] or pairs
        served = ", ".join(f"{one} to {other}" for one, other in close[:20])
        other = target if target not in ("en",) else source
        advice = TASKS["translate"].advice.format(tag=other, name=other.lower())
        raise UnknownLanguage(
            f"nothing translates '{source}' to '{target}' here. {f'Served: {served}' if pairs else advice}"
        )

    def certificate(self, route: Route) -> tuple[Certificate, str] | None:
        """What is known of answers by `route`, and their language; None where the adapter has no certificate for it."""
        if route.adapter is None or is_mixture(route.adapter):  # nobody has measured the mixture
            return None
        name, _, version = route.adapter.rpartition("@")
        known = self._card(name, int(version)).certificates
        tag = route.language or (next(iter(known)) if len(known) == 1 else None)
        return (known[tag], tag) if tag in known else None

    def _served(self, spec: str) -> tuple[Card, tuple[str, str]]:
        """The card that an adapter's spec means, and the worker and base that answer with it.

        Raises UnknownModel, and MixtureError where it is a mixture of what can't be mixed.
        """
        if is_mixture(spec):
            mixture = Mixture.parse(spec)
            parents = [self._served(adapter) for adapter in mixture.adapters]
            return mixed_card(mixture, [card for card, _ in parents]), parents[0][1]
        match = _SPEC.fullmatch(spec)
        adapter = self._find(match[1]) if match else None
        if match and adapter is None and (gone := self._revoked.get(match[1])):
            raise UnknownModel(str(gone[max(gone)]))
        if match is None or adapter is None:
            known = [*self.bases(), *self._tasks, *(adapter.public for adapter in self.adapters())]
            raise UnknownModel(f"model '{spec}' is not served.{nearest(spec, known)} Served: {', '.join(known[:20])}")
        card = self._version(adapter, match[2])
        place = self._place_of(card)
        if place is None:
            raise UnknownModel(self._why_not(spec, card))
        return card, place

    def _of_task(self, name: str, tag: str | None, allow_base: bool) -> Route:
        task = TASKS[name]
        base = self.base_of(task.worker)
        if base is None and WORKERS[task.worker].missing:
            raise UnknownModel(WORKERS[task.worker].missing)
        if name not in self._tasks:
            raise UnknownModel(f"the task '{name}' is not served here; served: {', '.join(self._tasks)}")
        bare = Route(task.worker, base, None, tag) if base is not None and task.bare else None
        if bare and (tag is None or not task.answers):
            return bare
        for missed in (False, True):
            found = self._snapshot(missed).values()
            served = [
                one for one in found
                if served_task(one.card) == name and self._place_of(one.card) and (one.aliases or not task.promoted)
            ]  # fmt: skip
            for candidate in fallback_chain(tag) if tag else ():
                fitting = [adapter for adapter in served if candidate in adapter.card.language]
                if fitting:
                    best = min(fitting, key=_preference)
                    return self.route(best.card.spec, candidate)
            if tag is None and len(served) == 1:
                return self.route(served[0].card.spec)
        if bare and allow_base:
            return bare
        languages = sorted({language for adapter in served for language in adapter.card.language})
        if tag is None and served:
            raise UsageError(f"model '{name}' needs a language ({', '.join(languages)}), or an adapter as the model")
        wanted = f" serves '{tag}'" if tag else " is served"
        advice = task.advice.format(tag=tag or "sw", name=(tag or "sw").lower())
        raise UnknownLanguage(
            f"no adapter of the task '{name}'{wanted}. Languages: {', '.join(languages) or 'none'}. {advice}"
        )

    def _why_not(self, model: str, card: Card) -> str:
        """Why an adapter of the registry can't be used."""
        name = served_task(card)
        if name is None:
            return f"adapter '{model}' is for the task '{card.task}', which is not available over HTTP"
        worker = TASKS[name].worker
        if worker not in self._bases and WORKERS[worker].missing:
            return f"adapter '{model}' needs {WORKERS[worker].noun}: {WORKERS[worker].missing}"
        if name not in self._tasks:
            return f"adapter '{model}' is for the task '{name}', which is not served here: {', '.join(self._tasks)}"
        start = "--base" if WORKERS[worker].several else f"the setting {worker}.base:"
        return (
            f"adapter '{model}' needs the base '{card.base.name}', which is not served here "
            f"(served: {', '.join(self._bases.get(worker, ()))}): start `kauli serve` with {start} {card.base.name}"
        )

    def _find(self, name: str) -> Adapter | None:
        return self._snapshot().get(name) or self._snapshot(missed=True).get(name)

    def _version(self, adapter: Adapter, wanted: str | None) -> Card:
        if wanted is None:
            return adapter.card
        for missed in (False, True):
            adapter = self._snapshot(missed).get(adapter.name, adapter)
            number = adapter.aliases.get(wanted, int(wanted) if wanted.isdecimal() else None)
            if number in adapter.versions:
                assert number is not None
                return self._card(adapter.name, number)
        if gone := self._revoked.get(adapter.name, {}).get(int(wanted) if wanted.isdecimal() else 0):
            raise UnknownModel(str(gone))
        known = [*adapter.aliases, *(str(version) for version in adapter.versions)]
        raise UnknownModel(f"{adapter.name} has no version or alias '{wanted}'; it has {', '.join(known)}")

    def _place_of(self, card: Card) -> tuple[str, str] | None:
        """The worker that answers with an adapter, and the name of its base."""
        served = served_task(card)
        if served is None or served not in self._tasks:
            return None
        worker = TASKS[served].worker
        for name, base in self._bases.get(worker, {}).items():
            if card.base.sha256 == base.sha256 or card.base.name in (name, base.name):
                return worker, name
        return None

    def _card(self, name: str, version: int) -> Card:
        if (name, version) not in self._cards:
            self._cards[name, version] = self._registry.card(f"{name}@{version}")
        return self._cards[name, version]

    def _snapshot(self, missed: bool = False) -> dict[str, Adapter]:
        """The adapters; read again when they are old, and at once when a name was `missed`: it may be new.

        A miss counts from the miss before, not from the last read: else what was published just after a read is
        unknown for a while.
        """
        with self._lock:
            begun = time.monotonic()
            again = missed and begun - self._missed_at > _MISS_S
            if again:
                self._missed_at = begun
            if again or begun - self._read_at > self._refresh_s:
                names = self._registry.names()
                self._adapters = {name: found for name in names if (found := self._read(name))}
                self._revoked = self._registry.revocations()
                self._read_at = time.monotonic()
            return self._adapters

    def _read(self, name: str) -> Adapter | None:
        versions = self._registry.versions(name)
        if not versions:  # removed since its name was read
            return None
        aliases = {alias: number for alias, number in self._registry.aliases(name).items() if number in versions}
        version = aliases.get("prod") or aliases.get("latest") or versions[-1]
        shadowed = name in TASKS or name in self.bases()
        return Adapter(name, tuple(versions), aliases, self._card(name, version), shadowed)


def served_task(card: Card) -> str | None:
    """The service's task that an adapter answers; None where there is none."""
    try:
        row = task_of(card.task, str(card.method.get("kind", ""))).name
    except KeyError:  # an adapter of a later version
        return None
    return next((name for name, served in TASKS.items() if row in served.answers), None)


def choose_bases(
    registry: Registry, names: Sequence[str] = (), allow_noncommercial: bool = False, tasks: Sequence[str] = ("text",)
) -> list[Base]:
    """The bases for text: those of `names`, else those of the registry's adapters, else the default base.

    Only adapters that answer `tasks` count. A base that only an adapter needs and that is not available is left out
    with a note.
    """
    if names:
        return [find_base(name, allow_noncommercial=allow_noncommercial) for name in dict.fromkeys(names)]
    wanted = {card.base.name for card in newest_cards(registry) if served_task(card) in tasks} or {DEFAULT_BASE}
    found = []
    for name in sorted(wanted, key=lambda name: (name != DEFAULT_BASE, name)):
        try:
            found.append(find_base(name, allow_noncommercial=allow_noncommercial))
        except KauliError as error:
            note(f"Without the base '{name}' and its adapters: {error}")
    return found or [find_base(DEFAULT_BASE)]


def newest_cards(registry: Registry) -> list[Card]:
    """The card of each name's newest version."""
    versions = {name: registry.versions(name) for name in registry.names()}
    return [registry.card(f"{name}@{found[-1]}") for name, found in versions.items() if found]


def public_name(base: Base) -> str:
    """What a request calls the base; of a local folder its last part, so that no path of this machine is shown."""
    return Path(base.name).name if Path(base.name).is_absolute() else base.name


def _preference(adapter: Adapter) -> tuple[bool, bool, bool, int, int, str]:
    """Of several adapters for a language: `prod` before `latest` before the rest, then those with weights, then few
    languages, then new.
    """
    card = adapter.card
    return (
        "prod" not in adapter.aliases, "latest" not in adapter.aliases, card.method.get("kind") == "prompt",
        len(card.language), -adapter.created, adapter.name,
    )  # fmt: skip
