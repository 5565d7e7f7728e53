"""The model card that a stranger reads: `README.md`, rendered from the adapter's `card.json`."""

from typing import TYPE_CHECKING, Any

import yaml

if TYPE_CHECKING:
    from kauli.models.cards import Card  # the card's file writes this page, so it may only be named here


def render_readme(card: "Card") -> str:
    """Markdown with the Hugging Face metadata block in front."""
    parts = [
        _front_matter(card),
        f"# {card.spec}",
        _summary(card),
    ]
    return "\n\n".join(part for part in parts if part) + "\n"


def _front_matter(card: "Card") -> str:
    metadata: dict[str, Any] = {
        "base_model": card.base.reference,
        "language": card.language,
        "library_name": "peft" if card.method.get("kind") != "full" else "transformers",
        "license": card.licence,
        "tags": ["kauli", card.task, "few-shot", "low-resource"],
    }
    text = yaml.safe_dump(metadata, sort_keys=False, allow_unicode=True)
    return f"---\n{text}---"


def _summary(card: "Card") -> str:
    return f"An adapter of `{card.base.reference}` for {', '.join(card.language)} ({card.task})."
