"""What a service runs: its tasks, and the bases of each worker; decided when it starts."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from kauli.models.adapters.card import Card
from kauli.models.adapters.registry import Registry
from kauli.models.bases.find import Base, find_base, is_aligned
from kauli.models.errors import KauliError, UsageError
from kauli.models.progress import note
from kauli.serving.routing import choose_bases, newest_cards, public_name, served_task
from kauli.serving.settings import ServeArgs
from kauli.serving.tasks import TASKS, WORKERS, workers_of


@dataclass(frozen=True)
class Topology:
    """What a service runs."""

    tasks: tuple[str, ...]
    bases: Mapping[str, tuple[Base, ...]]
    """Worker -> its bases, a deployment for each; the first one for text answers `model: text`."""

    @property
    def answering(self) -> dict[str, tuple[Base, ...]]:
        """The workers that answer a task, without those that only encode media for others."""
        answer = {TASKS[name].worker for name in self.tasks}
        return {worker: bases for worker, bases in self.bases.items() if worker in answer}


def choose_topology(registry: Registry, args: ServeArgs) -> Topology:
    """What the settings and the registry's adapters ask for.

    Raises UsageError and KauliError where a task or base that the settings name can't be served.
    """
    cards = newest_cards(registry)
    found = {worker: base for worker, row in WORKERS.items() if not row.several
             if (base := _choose(worker, cards, args)) is not None}  # fmt: skip
    for name in args.tasks:
        if fault := _fault(name, found, args, heads=bool(TASKS[name].answers)):
            raise UsageError(fault)
    present = {served_task(card) for card in cards}
    offered = (name for name, row in TASKS.items() if row.alone or name in present)
    tasks = args.tasks or tuple(name for name in offered if _fault(name, found, args, heads=name in present) is None)
    used = {worker for name in tasks for worker in workers_of(name)}
    bases = {}
    for worker, row in WORKERS.items():
        if worker not in used:
            continue
        if row.several:
            mine = [name for name in tasks if TASKS[name].worker == worker]
            bases[worker] = tuple(choose_bases(registry, args.bases, args.allow_noncommercial, mine))
        elif worker in found:
            bases[worker] = (found[worker],)
    taken = {*TASKS, *(public_name(base) for group in bases.values() for base in group)}
    for card in cards:
        if card.name in taken:
            note(f"The adapter {card.name} has the name of a task or a base: requests reach it as {card.spec} only.")
    return Topology(tasks, bases)


def adapter_base(worker: str, card: Card) -> str | None:
    """The base of a worker that an adapter needs, as its own base or as the encoder of its media."""
    name = served_task(card)
    if name is None:
        return None
    if TASKS[name].worker == worker:
        return card.base.name
    reference = card.encoders.get(worker) if worker in TASKS[name].encoders else None
    return reference.base if reference else None


def _fault(name: str, found: Mapping[str, Base], args: ServeArgs, heads: bool) -> str | None:
    """Why a task can't be served by the bases that were found; None: it can. `heads` need no trained projections."""
    task = TASKS[name]
    for worker in (task.worker, *task.needs):
        if not WORKERS[worker].several and worker not in found:
            chosen = args.worker(worker).base
            return (
                f"the task '{name}' needs {WORKERS[worker].noun}, and '{chosen}' is not on this machine: run "
                f"`kauli fetch {chosen}`, or choose another with the setting {worker}.base"
            )
    if task.aligned and not heads and not is_aligned(found[task.worker]):
        default = ServeArgs.model_fields[task.worker].default.base
        return (
            f"the task '{name}' needs trained projections, and those of '{found[task.worker].name}' are random: run "
            f"`kauli fetch {default}`, and set {task.worker}.base: {default}"
        )
    return None


def _choose(worker: str, cards: Sequence[Card], args: ServeArgs) -> Base | None:
    """The base of a worker; None where no task of the settings, nor any adapter, needs it."""
    asked = args.tasks or tuple(TASKS)
    if not any(worker in workers_of(name) for name in asked):
        return None
    needed = any(adapter_base(worker, card) for card in cards if served_task(card) in asked)
    named = any(worker in (TASKS[name].worker, *TASKS[name].needs) for name in args.tasks)
    if not (needed or named or WORKERS[worker].eager):
        return None
    return _find(worker, (adapter_base(worker, card) for card in cards), args)


def _find(worker: str, wanted: Iterable[str | None], args: ServeArgs) -> Base | None:
    """The setting's base if it is on this machine, else that of the adapters, which may be fetched.

    One that only an adapter needs and that is not available is left out with a note.
    """
    chosen = args.worker(worker).base
    options: dict[str, Any] = {"task": WORKERS[worker].base_task, "allow_noncommercial": args.allow_noncommercial}
    try:
        return find_base(chosen, fetch=False, **options)
    except KauliError as error:
        if not isinstance(error, UsageError):  # it is here, and damaged
            note(f"Without '{chosen}': {error}")
        if chosen != ServeArgs.model_fields[worker].default.base:
            return find_base(chosen, **options)
    for name in dict.fromkeys(name for name in wanted if name):
        try:
            return find_base(name, **options)
        except KauliError as error:
            note(f"Without '{name}' and its adapters: {error}")
    return None
