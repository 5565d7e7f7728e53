"""What a service offers: its tasks, the bases that generate, and those that see and hear, decided when it starts."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

from kauli.models.adapters.card import Card
from kauli.models.adapters.registry import Registry
from kauli.models.bases.find import Base, find_base, known_bases
from kauli.models.errors import KauliError, UsageError
from kauli.models.progress import note
from kauli.serving.routing import choose_bases, hearing_base, newest_cards, served_task
from kauli.serving.settings import ServeArgs

_SHARED_SPACE = ("embed", "classify")
_SEEING = {"describe", *_SHARED_SPACE}
_HEARING = {"describe", "transcribe"}


@dataclass(frozen=True)
class Topology:
    """What a service offers."""

    tasks: tuple[str, ...]
    bases: tuple[Base, ...]
    """Those that generate; the first answers `model: text`."""
    encoder: Base | None = None
    """The one that sees."""
    hearing: Base | None = None
    """The one that hears."""

    @property
    def aligned(self) -> Base | None:
        """The base whose space is shared by pictures and texts, if it is served."""
        return self.encoder if set(_SHARED_SPACE) & set(self.tasks) else None

    @property
    def speech(self) -> Base | None:
        """The base that transcribes, if that is served."""
        return self.hearing if "transcribe" in self.tasks else None


def choose_topology(registry: Registry, args: ServeArgs) -> Topology:
    """What the settings and the registry's adapters ask for.

    Raises UsageError and KauliError where a task or base that the settings name can't be served.
    """
    cards = newest_cards(registry)
    encoder = _choose_encoder(cards, args)
    hearing = _choose_hearing(cards, args)
    aligned = encoder is not None and is_aligned(encoder)
    tasks = args.tasks
    if not tasks:
        describes = encoder is not None and any(card.task == "describe" for card in cards)
        tasks = (
            "text", *(["describe"] if describes else []), *(["transcribe"] if hearing else []),
            *(_SHARED_SPACE if aligned else []),
        )  # fmt: skip
    elif not aligned and set(_SHARED_SPACE) & set(tasks):
        default = ServeArgs.model_fields["encoder"].default
        reason = f"'{args.encoder}' is not on this machine" if encoder is None else f"'{encoder.name}' is not aligned"
        raise UsageError(
            f"the tasks {' and '.join(_SHARED_SPACE)} need an aligned base, and {reason}: kauli fetch {default}"
        )
    elif encoder is None and "describe" in tasks:
        raise UsageError(
            f"the task describe needs an encoder, and '{args.encoder}' is not on this machine: "
            f"kauli fetch {args.encoder}, or set encoder: kauli-towers"
        )
    elif hearing is None and "transcribe" in tasks:
        raise UsageError(
            f"the task transcribe needs a speech recogniser, and '{args.speech}' is not on this machine: "
            f"kauli fetch {args.speech}"
        )
    generates = {"text", "describe"} & set(tasks)
    bases = choose_bases(registry, args.bases, args.allow_noncommercial, sorted(generates)) if generates else []
    return Topology(
        tasks, tuple(bases), encoder if _SEEING & set(tasks) else None, hearing if _HEARING & set(tasks) else None
    )


def is_aligned(base: Base) -> bool:
    """Whether the base's projections are trained: those of towers that were only joined are random."""
    card = known_bases().get(base.name)
    return card is None or card.towers is None


def _choose_encoder(cards: Sequence[Card], args: ServeArgs) -> Base | None:
    """What sees; None where nothing is asked to."""
    if args.tasks and not _SEEING & set(args.tasks):
        return None
    heads = [card.base.name for card in cards if served_task(card) == "classify"]
    connectors = [((card.recipe or {}).get("fusion") or {}).get("encoder") for card in cards if card.task == "describe"]
    return _choose(args, "encoder", "align", [*heads, *filter(None, connectors)])


def _choose_hearing(cards: Sequence[Card], args: ServeArgs) -> Base | None:
    """What hears; None where nothing is asked to: no adapter of a task that is served, nor the settings."""
    asked = set(args.tasks) or _HEARING
    bases = [(card.task, card.base.name if card.task == "transcribe" else hearing_base(card)) for card in cards]
    wanted = [name for task, name in bases if name and task in _HEARING & asked]
    if not wanted and "transcribe" not in args.tasks:
        return None
    return _choose(args, "speech", "transcribe", wanted)


def _choose(args: ServeArgs, setting: str, task: str, wanted: Iterable[str]) -> Base | None:
    """The setting's base if it is here, else that of the adapters, which may be fetched.

    One that only an adapter asks for and that can't be had is left out with a note.
    """
    chosen = getattr(args, setting)
    options: dict[str, Any] = {"task": task, "allow_noncommercial": args.allow_noncommercial}
    try:
        return find_base(chosen, fetch=False, **options)
    except KauliError as error:
        if not isinstance(error, UsageError):  # it is here, and damaged
            note(f"Without '{chosen}': {error}")
        if chosen != ServeArgs.model_fields[setting].default:
            return find_base(chosen, **options)
    for name in dict.fromkeys(wanted):
        try:
            return find_base(name, **options)
        except KauliError as error:
            note(f"Without '{name}' and its adapters: {error}")
    return None
