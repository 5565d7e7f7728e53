"""Mixtures of adapters: `text-zu*0.6+text-xh*0.4` names one. What may be mixed, or merged, is told by the cards."""

import math
import re
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Self

from kauli.models.adapters.card import (
    README_FILE,
    Attribution,
    Card,
    Decoding,
    EvaluationSettings,
    PromptReference,
    TranslationReference,
    check_name,
)
from kauli.models.adapters.folder import ADAPTER_CONFIG, ADAPTER_WEIGHTS
from kauli.models.adapters.registry import Registry
from kauli.models.errors import UsageError

MOST = 8
"""Adapters of a mixture."""
LARGEST = 10.0
"""The largest weight, in size."""
_WEIGHT = re.compile(r"-?(\d+\.?\d*|\.\d+)(e-\d{1,3})?", re.ASCII)
_ADAPTER = re.compile(r"[^@]*(@[a-z0-9._-]{1,64})?", re.ASCII)
_EXAMPLE = "write a mixture as text-zu*0.6+text-xh*0.4"
_FILES = {ADAPTER_CONFIG, ADAPTER_WEIGHTS, README_FILE}
"""What a folder of LoRA alone holds, beside its card."""


class MixtureError(UsageError):
    """A mixture that is written wrong, or whose adapters do not go together."""


@dataclass(frozen=True)
class Part:
    """One adapter of a mixture."""

    adapter: str
    """NAME, NAME@VERSION or NAME@ALIAS."""
    weight: float


@dataclass(frozen=True)
class Mixture:
    """The weighted sum of what some adapters change."""

    parts: tuple[Part, ...]

    @classmethod
    def of(cls, adapters: Sequence[str], weights: Sequence[float]) -> Self:
        """The mixture of these adapters, one weight each. Raises MixtureError."""
        if not 1 <= len(adapters) <= MOST:
            raise MixtureError(f"{len(adapters)} adapters: a mixture has 1 to {MOST}")
        if len(adapters) != len(weights):
            raise MixtureError(f"{len(weights)} weights for {len(adapters)} adapters: give one for each")
        for weight in weights:
            if not math.isfinite(weight) or abs(weight) > LARGEST:
                raise MixtureError(f"the weight {weight:g} is not allowed: give {-LARGEST:g} to {LARGEST:g}")
        if not any(weights):
            raise MixtureError("all weights are 0, which is the base alone: use the base as the model")
        for adapter in adapters:
            if not _ADAPTER.fullmatch(adapter):
                raise MixtureError(f"'{adapter}' is no adapter: give NAME, NAME@VERSION or NAME@ALIAS")
            check_name(adapter.partition("@")[0])
        twice = [adapter for adapter, count in Counter(adapters).items() if count > 1]
        if twice:
            raise MixtureError(f"'{twice[0]}' is in the mixture twice: give it once, with the sum of its weights")
        return cls(tuple(Part(*one) for one in sorted(zip(adapters, weights, strict=True))))

    @classmethod
    def parse(cls, text: str) -> Self:
        """The mixture that a request's model names. Raises UsageError."""
        adapters, weights = [], []
        for part in text.split("+"):
            adapter, star, weight = part.strip().partition("*")
            if not star or not adapter.strip():
                raise MixtureError(f"'{part.strip()}' in '{text}' is not NAME*WEIGHT: {_EXAMPLE}")
            adapters.append(adapter.strip())
            weights.append(weight_of(weight.strip()))
        return cls.of(adapters, weights)

    @property
    def key(self) -> str:
        """Its one way of writing: sorted by adapter, each weight by its shortest decimal."""
        return "+".join(f"{part.adapter}*{_shortest(part.weight)}" for part in self.parts)

    @property
    def adapters(self) -> list[str]:
        """What is mixed."""
        return [part.adapter for part in self.parts]

    def resolved(self, cards: Sequence[Card]) -> Self:
        """The same mixture by NAME@VERSION; `cards` are those of its adapters. Raises MixtureError."""
        return self.of([card.spec for card in cards], [part.weight for part in self.parts])


def is_mixture(model: str) -> bool:
    """Whether a model's name is meant as a mixture: no adapter, task or known base has such signs in its name."""
    return ("*" in model or "+" in model) and "/" not in model


def weight_of(text: str) -> float:
    """A weight as people write it. Raises MixtureError where it is no decimal number."""
    if not _WEIGHT.fullmatch(text):
        raise MixtureError(f"the weight '{text}' is no decimal number such as 0.6 or -0.25")
    return float(text)


def card_of(registry: Registry, model: str) -> Card:
    """The card of an adapter, or of a mixture (see `mixed_card`). Raises UsageError."""
    if not is_mixture(model):
        return registry.card(model)
    mixture = Mixture.parse(model)
    return mixed_card(mixture, [registry.card(adapter) for adapter in mixture.adapters])


def mixed_card(mixture: Mixture, cards: Sequence[Card]) -> Card:
    """What is known of a mixture before anybody measures it; its name is the mixture's key, by versions.

    `cards` are those of the mixture's adapters, in their order. Raises MixtureError where they do not go together.
    """
    check_together(cards)
    first = cards[0]
    rows: Counter[tuple[str, str]] = Counter()
    for card in cards:
        rows.update({(one.source, one.licence): one.rows for one in card.attributions})
    return first.model_copy(
        update={
            "name": mixture.resolved(cards).key, "version": None,
            "language": list(dict.fromkeys(tag for card in cards for tag in card.language)),
            "template": next((card.template for card in cards if card.template), None),
            "licence": " AND ".join(dict.fromkeys(card.licence for card in cards)),
            "attributions": [Attribution(source=one[0], licence=one[1], rows=rows[one]) for one in sorted(rows)],
            "exceptions": list(dict.fromkeys(text for card in cards for text in card.exceptions)),
            "prompt": first.prompt if len({card.prompt.instruction for card in cards}) == 1 else PromptReference(),
            "decoding": loosest([card.decoding for card in cards]),
            "translation": _translation(cards),
            "evaluation": EvaluationSettings(), "recipe": None, "data": None, "certificates": {}, "metrics": {},
            "base_metrics": None, "intervals": {}, "validation": None, "training": None, "notes": [], "files": {},
        }
    )  # fmt: skip


def check_together(cards: Sequence[Card]) -> None:
    """Raise MixtureError unless adapters are LoRA alone, of one base and task, and are asked in the same way."""
    first = cards[0]
    for card in cards:
        if card.base.sha256 != first.base.sha256:
            raise MixtureError(
                f"{first.spec} is made for the base {first.base.name} ({first.base.sha256[:12]}), {card.spec} for "
                f"{card.base.name} ({card.base.sha256[:12]}): only adapters of one base can be mixed. Use each by "
                f"itself, or train on one base (`kauli train ... --set base={first.base.name}`)"
            )
        if {card.task} - {first.task}:
            raise MixtureError(
                f"{first.spec} is for the task '{first.task}', {card.spec} for '{card.task}': only adapters of one "
                "task can be mixed. Use each by itself"
            )
        kind = str(card.method.get("kind", ""))
        if kind != "lora":
            raise MixtureError(
                f"{card.spec} is of the kind '{kind}': only LoRA can be mixed. Train it with "
                "`--set method.kind=lora`, or use it by itself"
            )
        if others := sorted(card.files.keys() - _FILES):
            raise MixtureError(
                f"{card.spec} has {', '.join(others)} beside its LoRA, which can't be mixed: use it by itself, or "
                "train one adapter on the data of all languages"
            )
        if card.template and first.template and card.template != first.template:
            raise MixtureError(f"{first.spec} and {card.spec} were trained with different chat templates")
        if (card.translation is None) != (first.translation is None) or (
            card.translation and first.translation and card.translation.prompting != first.translation.prompting
        ):
            raise MixtureError(
                f"{first.spec} and {card.spec} ask for translations by different prompts: use each by itself, or train "
                "both with the same `translate.prompting`"
            )


def loosest(own: Sequence[Decoding]) -> Decoding:
    """Guards that stop no answer which one of these lets pass."""
    tokens = [one.max_tokens for one in own if one.max_tokens is not None]
    shares = [one.tokens_per_prompt_token for one in own if one.tokens_per_prompt_token is not None]
    return Decoding(
        no_repeat=max(one.no_repeat for one in own) if all(one.no_repeat for one in own) else 0,
        max_tokens=max(tokens) if len(tokens) == len(own) else None,
        tokens_per_prompt_token=max(shares) if len(shares) == len(own) else None,
    )


def _translation(cards: Sequence[Card]) -> TranslationReference | None:
    found = [card.translation for card in cards if card.translation]
    if not found:
        return None
    pairs = dict.fromkeys(pair for one in found for pair in one.pairs)
    return TranslationReference(pairs=list(pairs), prompting=found[0].prompting)


def _shortest(weight: float) -> str:
    return repr(weight + 0.0).removesuffix(".0")  # -0.0 is 0
