"""What a service offers: its tasks, the bases that generate, and the one that sees, decided when it starts."""

from collections.abc import Sequence
from dataclasses import dataclass

from kauli.models.bases import Base, find_base, known_bases
from kauli.models.cards import Card
from kauli.models.errors import KauliError, UsageError
from kauli.models.progress import note
from kauli.models.registry import Registry
from kauli.serving.catalogue import choose_bases, newest_cards, served_task
from kauli.serving.settings import ServeArgs

_SHARED_SPACE = ("embed", "classify")


@dataclass(frozen=True)
class Lineup:
    """What a service offers."""

    tasks: tuple[str, ...]
    bases: tuple[Base, ...]
    """Those that generate; the first answers `model: text`."""
    encoder: Base | None = None
    """The one that sees."""

    @property
    def aligned(self) -> Base | None:
        """The base whose space is shared by pictures and texts, if it is served."""
        return self.encoder if set(_SHARED_SPACE) & set(self.tasks) else None


def choose_lineup(registry: Registry, args: ServeArgs) -> Lineup:
    """What the settings and the registry's adapters ask for.

    Raises UsageError and KauliError where a task or base that the settings name can't be served.
    """
    cards = newest_cards(registry)
    encoder = _choose_encoder(cards, args)
    aligned = encoder is not None and is_aligned(encoder)
    tasks = args.tasks
    if not tasks:
        describes = encoder is not None and any(card.task == "describe" for card in cards)
        tasks = ("text", *(["describe"] if describes else []), *(_SHARED_SPACE if aligned else []))
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
    generates = {"text", "describe"} & set(tasks)
    bases = choose_bases(registry, args.bases, args.allow_noncommercial, sorted(generates)) if generates else []
    return Lineup(tasks, tuple(bases), encoder if set(tasks) != {"text"} else None)


def is_aligned(base: Base) -> bool:
    """Whether the base's projections are trained: those of towers that were only joined are random."""
    card = known_bases().get(base.name)
    return card is None or card.towers is None


def _choose_encoder(cards: Sequence[Card], args: ServeArgs) -> Base | None:
    """The settings' encoder if it is here, else that of the adapters, which may be fetched; None where none is wanted.

    An encoder that only an adapter asks for and that can't be had is left out with a note.
    """
    if args.tasks and set(args.tasks) == {"text"}:
        return None
    options = {"task": "align", "allow_noncommercial": args.allow_noncommercial}
    try:
        return find_base(args.encoder, fetch=False, **options)  # type: ignore[arg-type]
    except KauliError as error:
        if not isinstance(error, UsageError):  # it is here, and damaged
            note(f"Without the encoder '{args.encoder}': {error}")
        if args.encoder != ServeArgs.model_fields["encoder"].default:
            return find_base(args.encoder, **options)  # type: ignore[arg-type]
    heads = [card.base.name for card in cards if served_task(card) == "classify"]
    connectors = [((card.recipe or {}).get("fusion") or {}).get("encoder") for card in cards if card.task == "describe"]
    for name in dict.fromkeys([*heads, *filter(None, connectors)]):
        try:
            return find_base(name, **options)  # type: ignore[arg-type]
        except KauliError as error:
            note(f"Without the encoder '{name}' and its adapters: {error}")
    return None
