"""An adapter's card as people read it: figures by their names beside the base's, data, licence, learning curve."""

from typing import Any

from kauli.models.adapters.card import Card
from kauli.models.metrics import label, metric_of


def card_of(card: Card) -> dict[str, Any]:
    """The answer of `GET /v1/adapters/{spec}`."""
    data, training = card.data, card.training
    return {
        "id": card.spec, "object": "adapter.card", "task": card.task, "language": card.language,
        "parent": card.base.name, "method": card.method.get("kind"), "created": card.created,
        "licence": card.licence, "base_licence": card.base.licence,
        "attributions": [one.model_dump() for one in card.attributions],
        "data": data.model_dump(include={"name", "rows", "groups", "languages", "synthetic_rows", "left_out"})
        if data else None,
        "metrics": [_figure(card, name) for name in card.metrics],
        "validation": card.validation.model_dump() if card.validation else None,
        "training": training.model_dump(include={"steps", "seconds", "machine", "seed", "curve"}) if training else None,
        "certificates": {
            tag: one.model_dump(include={"metric", "level", "green", "yellow", "segments", "coverage",
                                         "rank_correlation", "curve"})
            for tag, one in card.certificates.items()
        },
        "notes": card.notes,
    }  # fmt: skip


def _figure(card: Card, name: str) -> dict[str, Any]:
    """A figure on held-out rows, with its interval and the base's; null where there is none."""
    try:
        row = metric_of(name)
        better, percent, digits, headline = row.better, row.percent, row.digits, row.headline
    except KeyError:  # of a later version
        better, percent, digits, headline = None, False, 3, False
    return {
        "name": name, "label": label(name), "better": better, "percent": percent, "digits": digits,
        "headline": headline, "value": card.metrics[name], "base": (card.base_metrics or {}).get(name),
        "interval": card.intervals.get(name),
    }  # fmt: skip
