"""What a registry holds, a row a version: for `kauli adapters list` and the Python API."""

from dataclasses import dataclass

from kauli.models.adapters.card import Card
from kauli.models.adapters.registry import Registry
from kauli.models.metrics import SYNTHETIC
from kauli.models.tasks import task_of


@dataclass(frozen=True)
class AdapterRow:
    """One version of an adapter."""

    adapter: str
    """`name@version`."""
    aliases: tuple[str, ...]
    task: str
    language: tuple[str, ...]
    base: str
    licence: str
    created: str
    metric: str
    """The headline metric of its task."""
    score: float | None
    base_score: float | None


def list_adapters(registry: Registry) -> list[AdapterRow]:
    """All versions, names in order, newest versions first."""
    rows = []
    for name in registry.names():
        aliases = registry.aliases(name)
        for version in reversed(registry.versions(name)):
            card = registry.card(f"{name}@{version}")
            metric, base = _main_metric(card), card.base_metrics or {}
            mine = tuple(alias for alias, number in aliases.items() if number == version)
            rows.append(
                AdapterRow(
                    card.spec, mine, card.task, tuple(card.language), card.base.name, card.licence, card.created,
                    metric, card.metrics.get(metric), base.get(metric),
                )
            )  # fmt: skip
    return rows


def _main_metric(card: Card) -> str:
    """The headline metric of its task; of synthetic rows where no others were measured."""
    try:
        names = task_of(card.task, str(card.method.get("kind", ""))).headline
    except KeyError:  # an adapter of a later version
        names = ("bits_per_byte",)
    measured = [prefix + name for prefix in ("", SYNTHETIC) for name in names if prefix + name in card.metrics]
    return measured[0] if measured else names[0]
