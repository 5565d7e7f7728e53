"""The report of an evaluation: one HTML page that needs nothing else."""

from base64 import b64encode
from collections import defaultdict
from collections.abc import Mapping
from importlib.resources import files
from math import isfinite
from typing import Any

import yaml
from jinja2 import Environment, StrictUndefined

from kauli.models.adapters.card import Card
from kauli.models.languages import display_name
from kauli.models.media.image_format import media_type
from kauli.models.metrics import (
    METRICS,
    NEW_PICTURES,
    SYNTHETIC,
    explanation,
    label,
    lower_is_better,
    metric_of,
    plain_name,
)
from kauli.models.tasks import TASKS
from kauli.training.evaluation.charts import calibration, dumbbells, learning_curve
from kauli.training.evaluation.intervals import Interval, interval
from kauli.training.evaluation.results import FEW_GROUPS, EvalResult, Sample, Scores, bracket, format_value, paired

SHOWN = 12


def render_report(result: EvalResult, card: Card | None = None, profile: str = "") -> str:
    """The HTML page of an evaluation: no script, no link, no image from elsewhere.

    Args:
        result: of `kauli.training.evaluation.run`.
        card: of the adapter; adds the learning curve, the recipe and the licences.
        profile: of the data, a table in plain text (`kauli.training.data.profile.render`).
    """
    environment = Environment(autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True)
    template = environment.from_string((files("kauli.training.evaluation") / "report.html").read_text(encoding="utf-8"))
    training = card.training if card else None
    ours = _by_source(result.scores, result.seed)
    theirs = _by_source(result.base_scores, result.seed)
    return template.render(
        title=f"{result.adapter}: {_listed([display_name(tag) for tag in result.languages])}",
        lead=_lead(result),
        verdict=result.verdict.text,
        facts=_facts(result, card),
        tiles=_tiles(result),
        groups=f"{result.groups:,}",
        metrics=_metric_rows(result),
        signature=result.signatures.get("chrf", ""),
        sources=dumbbells(ours, theirs, "bits per byte") if ours else None,
        languages=_languages(result) if len(result.languages) > 1 else None,
        curve=learning_curve(training.curve, card.validation.metric) if training and card and card.validation else None,
        calibration=calibration(card.certificates) if card else None,
        training=_training(card),
        samples=[_sample(one) for one in result.samples],
        samples_note=_samples_note(result),
        shown=SHOWN,
        profile=profile,
        attributions=card.attributions if card else [],
        recipe=yaml.safe_dump(card.recipe, sort_keys=False, allow_unicode=True).strip() if card and card.recipe else "",
        limits=_limits(result),
        versions=", ".join(f"{name} {version}" for name, version in card.versions.items()) if card else "",
    )


def _lead(result: EvalResult) -> str:
    names = _listed([display_name(tag) for tag in result.languages])
    over = f"On {result.examples:,} {names} examples that were held out of training ({result.groups:,} groups)"
    ours, name = result.scores.total(), _headline(result)
    if name is None:
        return f"{over}, {result.adapter} was measured on {result.base}."
    value, before = _shown(name, ours[name].value()), result.base_scores.total()[name].value()
    system = f"the adapter {result.adapter}"
    where, row = ", on synthetic rows," if SYNTHETIC in name else "", metric_of(name)
    if row.name == "bits_per_byte":
        needs = f"{over}, {system} needs{where} {value} bits for each byte of text"
        change = 1 - ours[name].value() / before
        how = f"{abs(change):.0%} {'less' if change > 0 else 'more'}"
        return f"{needs} where its base {result.base} needs {_shown(name, before)}: {how}."
    words = f"{'an' if row.label[0] in 'AEIO' else 'a'} {row.label[0].lower()}{row.label[1:]}{where} of {value}"
    return f"{over}, {system} has {words} where its base {result.base} has {_shown(name, before)}."


def _headline(result: EvalResult) -> str | None:
    """The metric that the task is told by, on real rows where there are any."""
    wanted: dict[str, list[str]] = defaultdict(list)
    for row in TASKS.values():
        wanted[row.card_task] += row.headline
    total = result.scores.total()
    return next((name for metric in wanted[result.task] for name in total if plain_name(name) == metric), None)


def _facts(result: EvalResult, card: Card | None) -> list[tuple[str, str]]:
    facts = [("base", result.base), ("language", ", ".join(result.languages)), ("split", result.split)]
    if result.data:
        facts.append(("data", result.data["name"]))
    if card:
        method = card.method.get("kind", card.method.get("peft_type", "?"))
        rank = f", rank {card.method['rank']}" if "rank" in card.method else ""
        facts += [("method", f"{method}{rank}".lower()), ("licence", card.licence), ("made", card.created[:10])]
    return facts


def _tiles(result: EvalResult) -> list[dict[str, str]]:
    ours, base, change = result.adapter_intervals, result.base_intervals, result.differences
    tiles = []
    for name, metric in METRICS.items():
        if metric.headline and name in ours:
            note = _change_note(name, change[name])
            value, before = _shown(name, ours[name].value), _shown(name, base[name].value)
            tiles.append({"name": metric.label, "value": value, "base": before, **note})
    english = result.english()
    if english:
        tiles.append(
            {
                "name": "English, bits per byte",
                "value": format_value("bits_per_byte", english["adapter"]),
                "base": format_value("bits_per_byte", english["base"]),
                "verdict": "",
                "note": _english_note(english),
            }
        )
    return tiles


def _english_note(english: Mapping[str, Any]) -> str:
    change = english["adapter"] - english["base"]
    interval = english["difference"]
    unsure = interval is None or interval[0] <= 0 <= interval[1]
    if unsure:
        return "no clear change"
    by = format_value("bits_per_byte", change, sign=True)
    return f"some English was forgotten: {by}" if change > 0 else f"better than the base: {by}"


def _change_note(name: str, change: Interval) -> dict[str, str]:
    verdict, text = _verdict(name, change)
    by = f"{_shown(name, change.value, sign=True)} {_range(name, change, sign=True)}"
    return {"verdict": verdict, "note": f"{text}: {by}"}


def _verdict(name: str, change: Interval) -> tuple[str, str]:
    """A class and words for adapter minus base."""
    if metric_of(name).better is None:
        return "", ""
    if not change.known:
        return "", "not told apart"
    if change.low <= 0 <= change.high:
        return "", "no clear difference"
    good = (change.value < 0) == lower_is_better(name)
    return ("better", "better") if good else ("worse", "worse")


def _metric_rows(result: EvalResult) -> list[dict[str, str]]:
    base, change = result.base_intervals, result.differences
    rows = []
    for name, one in result.adapter_intervals.items():
        row = {"label": label(name), "what": explanation(name)}
        for side, found in (("adapter", one), ("base", base[name]), ("difference", change[name])):
            row[side] = _shown(name, found.value, sign=side == "difference")
            row[f"{side}_range"] = _range(name, found, sign=side == "difference")
        row["verdict"], row["verdict_text"] = _verdict(name, change[name])
        rows.append(row)
    return rows


def _shown(name: str, value: float, *, sign: bool = False) -> str:
    if metric_of(name).percent and isfinite(value):
        return f"{100 * value:+.1f} points" if sign else f"{100 * value:.1f} %"
    return format_value(name, value, sign=sign)


def _range(name: str, one: Interval, *, sign: bool = False) -> str:
    if not one.known:
        return ""
    if metric_of(name).percent:
        shape = "+.1f" if sign else ".1f"
        return f"[{100 * one.low:{shape}}, {100 * one.high:{shape}}]"
    return bracket(name, one, sign=sign)


def _by_source(scores: Scores, seed: int) -> dict[str, Interval]:
    named = {**scores.by_source, **{f"English {source}": one for source, one in scores.english.items()}}
    return {name: interval(one.sums, one.finish, seed=seed) for name, one in named.items()}


def _languages(result: EvalResult) -> dict[str, list[Any]]:
    """A row for each language: its first two headline metrics, the difference of the first."""
    total = result.scores.total()
    metrics = [name for name, metric in METRICS.items() if metric.headline and name in total][:2]
    heads: list[str] = []
    for name in metrics:
        apart = ["difference", "95 % interval"] if name == metrics[0] else []
        heads += [METRICS[name].label, "of the base", *apart]
    rows = []
    for tag in result.languages:
        ours, theirs = result.scores.total([tag]), result.base_scores.total([tag])
        cells = [display_name(tag)]
        for name in metrics:
            cells += [_shown(name, side[name].value()) if name in side else "" for side in (ours, theirs)]
            if name == metrics[0]:
                change = paired(ours[name], theirs[name], result.seed) if name in ours else None
                cells += (
                    [_shown(name, change.value, sign=True), _range(name, change, sign=True)] if change else ["", ""]
                )
        rows.append(cells)
    return {"heads": heads, "rows": rows}


def _training(card: Card | None) -> str:
    if card is None or card.training is None:
        return ""
    one = card.training
    minutes = f"{one.seconds / 60:.1f} minutes" if one.seconds >= 90 else f"{one.seconds:.0f} seconds"
    return f"{one.steps:,} steps, {one.tokens:,} tokens, {minutes} on {one.machine}; seed {one.seed}."


def _sample(one: Sample) -> dict[str, Any]:
    return {
        "tag": f"{one.source}, {one.language}, chrF {one.chrf:.0f}",
        "prompt": f"{one.prompt} …" if one.continuation else one.prompt,
        "language": one.language,
        "reference": one.reference,
        "answers": [("adapter", one.adapter), ("base", one.base)],
        "audio": [(name, f"data:audio/mpeg;base64,{b64encode(sound).decode()}") for name, sound in one.audio],
        "drawing": one.drawing,
        "image": f"data:{media_type(one.image)};base64,{b64encode(one.image).decode()}" if one.image else "",
    }


def _samples_note(result: EvalResult) -> str:
    return (
        f"{result.generated} held-out rows, chosen by a hash of their id and not by the answers. Each answer is the "
        f"most likely one (greedy); chrF is that of the adapter's answer."
    )


def _limits(result: EvalResult) -> list[str]:
    second = any(NEW_PICTURES in name for name in result.scores.total())
    new = " (but for the new images of known concepts, whose concept was)" if second else ""
    limits = [
        f"No concept of these examples (an image, a sentence, its translation, a clip) was in the training data{new}.",
        f"Bits per byte covers all {result.examples:,} examples, the metrics of answers {result.generated} of them."
        if result.generated
        else f"The metrics cover all {result.examples:,} examples.",
        "The intervals cover the choice of examples only: another training seed would change the values too. "
        "`kauli compare` measures by how much.",
    ]
    few = {name: len(one.groups) for name, one in result.scores.by_source.items() if len(one.groups) < FEW_GROUPS}
    if few:
        listed = ", ".join(f"{name} ({count})" for name, count in few.items())
        limits.append(f"The intervals of sources with few groups tend to be too narrow: {listed}.")
    if result.scores.english:
        limits.append(
            "English is measured on the English rows of the same split: what the adapter made the base forget."
        )
    if result.generated and "exact" in result.metrics:
        limits.append("Few bits per byte with a low chrF: the model has learned the language, not the answer.")
    return [*limits, *(f"{note[0].upper()}{note[1:]}." for note in result.notes)]


def _listed(names: list[str]) -> str:
    return names[0] if len(names) == 1 else f"{', '.join(names[:-1])} and {names[-1]}"
