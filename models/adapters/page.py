"""The model card that a stranger reads: `README.md`, rendered from the adapter's `card.json`."""

from collections.abc import Sequence
from typing import Any

import yaml

from kauli.models.adapters.card import Card
from kauli.models.adapters.usage import fenced
from kauli.models.languages import display_name
from kauli.models.metrics import METRICS, label, metric_of, plain_name
from kauli.models.tasks import resolve, task_of

# The identifiers that the Hugging Face hub knows; any other licence goes there as "other" with its name.
_HUB_LICENCES = {
    "apache-2.0", "mit", "bsd-3-clause", "gpl-2.0", "gpl-3.0", "lgpl-3.0", "agpl-3.0", "mpl-2.0", "unlicense", "gemma",
    "cc0-1.0", "cc-by-3.0", "cc-by-4.0", "cc-by-sa-3.0", "cc-by-sa-4.0", "cc-by-nc-4.0", "cc-by-nc-sa-4.0",
}  # fmt: skip

_TAGS: dict[str, list[str]] = {"full": [], "lora": ["lora"], "prompt": ["prompt"]}
"""Kind -> tags of the hub."""
_WHAT = {"full": ("All weights of", "fine-tuned"), "prompt": ("A prompt for", "chosen")}
"""Kind -> what an adapter of it is, and how it was made."""


def render_readme(card: Card) -> str:
    """Markdown with the Hugging Face metadata block in front."""
    parts = (
        _metadata,
        _summary,
        _usage,
        _data,
        _results,
        _language_models,
        _certificates,
        _training,
        _notes,
        _limits,
        _exceptions,
    )
    return "\n\n".join(text for part in parts if (text := part(card))) + "\n"


def _metadata(card: Card) -> str:
    known = card.licence.lower() in _HUB_LICENCES
    metadata: dict[str, Any] = {
        "base_model": card.base.reference,
        "language": card.language,
        "library_name": "transformers" if _kind(card) in ("full", "prompt") else "peft",
        "license": card.licence.lower() if known else "other",
        **({} if known else {"license_name": card.licence}),
        "tags": ["kauli", card.task, *_TAGS.get(_kind(card), ["adapter"])],
    }
    return f"---\n{yaml.safe_dump(metadata, sort_keys=False, allow_unicode=True)}---"


def _summary(card: Card) -> str:
    what, made = _WHAT.get(_kind(card), ("An adapter for", "trained"))
    base = f"`{card.base.reference}`"
    if card.base.derived_from:
        base += f" (measured on `{card.base.name}`, a dequantised copy whose weights differ a little)"
    return f"# {card.spec}\n\n{what} {base}, {made} for the task `{card.task}` in {_languages(card.language)}."


def _usage(card: Card) -> str:
    try:
        row = task_of(card.task, _kind(card))
    except KeyError:  # a task of a later version
        return ""
    return str(resolve(row.usage)(card))


def _data(card: Card) -> str:
    lines = ["## Data and licences", "", f"This adapter: **{card.licence}**. Its base: {card.base.licence}."]
    if card.data:
        data = card.data
        made = f", {data.synthetic_rows:,} of them synthetic" if data.synthetic_rows else ", none of them synthetic"
        lines += [
            "",
            f"Trained on `{data.name}`: {data.rows:,} rows in {data.groups:,} groups{made}; "
            f"languages: {_languages(data.languages)}. SHA-256 `{data.sha256}`.",
        ]
    else:
        lines += ["", "Its training data is unknown."]
    if card.attributions:
        rows = [[source.source, source.licence, f"{source.rows:,}"] for source in card.attributions]
        lines += ["", _table(["source", "licence", "rows"], rows)]
    return "\n".join(lines)


def _results(card: Card) -> str:
    if not card.metrics:
        return "## Results\n\nNot measured: `kauli eval` measures it."
    rows = []
    for name, value in card.metrics.items():
        base = (card.base_metrics or {}).get(name)
        low_high = card.intervals.get(name)
        interval = " to ".join(map(_number, low_high)) if low_high and None not in low_high else ""
        rows.append([_meaning(name), _number(base), _number(value), interval])
    table = _table(["metric", "base", "adapter", "95 % interval (adapter)"], rows)
    return f"## Results\n\nOn held-out groups that no choice was made on (split `test`).\n\n{table}"


def _language_models(card: Card) -> str:
    if not card.language_models:
        return ""
    rows = [
        [
            display_name(tag), f"{one.texts:,}", f"{one.order}", f"{one.weight:g}, {one.bonus:g}", str(one.beams),
            f"{one.cer:.3f}", f"{one.greedy_cer:.3f}",
        ]
        for tag, one in card.language_models.items()
    ]  # fmt: skip
    head = ["language", "texts", "order", "weight, bonus", "beams", "CER", "CER without"]
    return (
        "## Language models\n\nTranscripts are searched with an n-gram model of the language. It was made of training "
        f"texts, its weight and bonus chosen on validation clips, of which these are the rates.\n\n{_table(head, rows)}"
    )


def _certificates(card: Card) -> str:
    if not card.certificates:
        return ""
    rows = [
        [
            display_name(tag), label(one.metric), str(one.segments), f"{one.coverage:.0%}",
            f"{one.rank_correlation:.2f}", f"{one.green:g}, {one.yellow:g}",
        ]
        for tag, one in card.certificates.items()
    ]  # fmt: skip
    head = ["answers in", "score", "validation rows", "bound holds", "rank correlation", "green, yellow from"]
    return (
        "## Certificates\n\nEach answer comes with the score that it is expected to have and a bound that holds for "
        "nine of ten answers like those of the validation split, on which both were learned.\n\n"
        f"{_table(head, rows)}"
    )


def _training(card: Card) -> str:
    lines = []
    if card.training:
        cost, translation = card.training, card.translation
        done = f"{cost.steps:,} steps, {cost.tokens:,} tokens"
        if translation and translation.compared:
            done = f"{translation.compared:,} prompts compared on validation rows"
        lines.append(
            f"{done}, {cost.seconds / 60:.1f} minutes "
            f"on {cost.machine}; seed {cost.seed}{f'; {cost.precision}' if cost.precision else ''}."
        )
    if card.validation:
        figures = f"{_number(card.validation.base)} before, {_number(card.validation.adapter)} after"
        lines.append(f"Validation, {metric_of(card.validation.metric).unit}: {figures}.")
    if card.method:
        lines.append("Method: " + ", ".join(f"{key} {_value(value)}" for key, value in card.method.items()) + ".")
    if card.versions:
        lines.append("Made with " + ", ".join(f"{name} {number}" for name, number in card.versions.items()) + ".")
    text = "\n\n".join(lines)
    if card.recipe:
        recipe = yaml.safe_dump(card.recipe, sort_keys=False, allow_unicode=True)
        text += f"\n\nRecipe:\n\n{fenced(recipe, 'yaml')}"
    return f"## Training\n\n{text}" if text else ""


def _limits(card: Card) -> str:
    lines = [
        f"- It answers in {_languages(card.language)}; other languages, English among them, may have become worse.",
        "- Trained on little data, it can be fluent and wrong. It is no safer than its base.",
        "- The figures above hold for text like that of the test split, not for every kind of text.",
    ]
    return "## Limits\n\n" + "\n".join(lines)


def _notes(card: Card) -> str:
    return "## Notes on the training\n\n" + "\n".join(f"- {text}" for text in card.notes) if card.notes else ""


def _exceptions(card: Card) -> str:
    return "## Exceptions\n\n" + "\n".join(f"- {text}" for text in card.exceptions) if card.exceptions else ""


def _kind(card: Card) -> str:
    return str(card.method.get("kind", ""))


def _languages(tags: Sequence[str]) -> str:
    return ", ".join(f"{display_name(tag)} ({tag})" for tag in tags) or "no language"


def _meaning(name: str) -> str:
    """A metric's label, its unit, and which end is better."""
    row = METRICS.get(plain_name(name))
    if row is None:
        return label(name)
    fraction = ", fraction" if row.percent else ""
    return f"{label(name)}{fraction}" + (f" ({row.better} is better)" if row.better else "")


def _number(value: float | None) -> str:
    return "-" if value is None else f"{value:.4g}" if abs(value) < 1000 else f"{value:,.0f}"


def _value(value: Any) -> str:
    return ", ".join(map(str, value)) if isinstance(value, list) else str(value)


def _table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    cells = [[cell.replace("|", "\\|").replace("\n", " ") for cell in line] for line in (head, *rows)]
    cells.insert(1, ["---"] * len(head))
    return "\n".join(f"| {' | '.join(line)} |" for line in cells)
