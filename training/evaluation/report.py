"""The report of an evaluation: one HTML page that needs nothing else, and sections of RESULTS.md."""

import re
from base64 import b64encode
from collections.abc import Mapping
from importlib.resources import files
from math import isfinite
from pathlib import Path
from typing import Any

import yaml
from jinja2 import Environment, StrictUndefined

from kauli.models.adapters.card import Card
from kauli.models.errors import UsageError
from kauli.models.files import write_atomically
from kauli.models.languages import display_name
from kauli.models.media.image_format import media_type
from kauli.training.compare import CompareResult
from kauli.training.evaluation.charts import dumbbells, learning_curve
from kauli.training.evaluation.intervals import Interval, interval
from kauli.training.evaluation.results import FEW_GROUPS, EvalResult, Sample, Scores, bracket, figure, paired
from kauli.training.evaluation.scorers import (
    LOWER_IS_BETTER,
    NEW_PICTURES,
    NOISE_LEVELS,
    SPEECH,
    SYNTHETIC,
    noise_prefix,
    plain_name,
)

SHOWN = 12
PERCENT = frozenset({"exact", "distinct_2", "self_bleu", "script_share", "macro_f1", "accuracy", *SPEECH})
LABELS = {
    "bits_per_byte": (
        "Bits per byte",
        "Lower is better. What each byte of held-out text costs a model that predicts it: the steadiest figure here.",
    ),
    "chrf": ("chrF, 0 to 100", "Higher is better. Letter sequences that answer and reference share."),
    "exact": ("Exact answers", "Higher is better. Answers equal to the reference, letter for letter."),
    "distinct_2": ("Distinct word pairs", "Of all word pairs in the answers; low where a model repeats itself."),
    "self_bleu": ("Self-BLEU", "How alike the answers are to each other; low where they vary."),
    "clip_similarity": (
        "Similarity to the picture",
        "Higher is better. Cosine of picture and answer in a shared space.",
    ),
    "macro_f1": ("Macro-F1", "Higher is better. The mean over classes of precision and recall in one."),
    "accuracy": ("Accuracy", "Higher is better. The share of pictures that got their class."),
    **{
        f"{way}_r{cut}": (f"{words}, recall at {cut}", f"Higher is better. The right one among the first {cut}.")
        for way, words in (("i2t", "Picture to text"), ("t2i", "Text to picture"))
        for cut in (1, 5, 10)
    },
    "median_rank": ("Median rank", "Lower is better. Of the right text among those of all groups."),
    "cer": ("Character error rate", "Lower is better. Edits that make the transcript right, over what was said."),
    "wer": ("Word error rate", "Lower is better. The same in whole words."),
    "looped": ("Loops", "Lower is better. Transcripts that repeat themselves without end."),
    "script_share": ("Letters in the right script", "Of all letters in the answers, those of the language's script."),
}
SETS = {
    NEW_PICTURES: "new pictures of known concepts",
    **{noise_prefix(level): f"speech in noise at {level} dB" for level in NOISE_LEVELS},
    SYNTHETIC: "synthetic rows",
}
DESCRIPTIVE = frozenset({"distinct_2", "self_bleu"})  # neither end is good in itself


def render_report(result: EvalResult, card: Card | None = None, profile: str = "") -> str:
    """The HTML page of an evaluation: no script, no link, no picture from elsewhere.

    Args:
        result: of `kauli.training.evaluation.run`.
        card: of the adapter; adds the learning curve, the recipe and the licences.
        profile: of the data, a table in plain text (`kauli.training.data.profile.render`).
    """
    environment = Environment(autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True)
    template = environment.from_string((files("kauli.training.evaluation") / "report.html").read_text(encoding="utf-8"))
    training = card.training if card else None
    ours = _by_source(result.scores, result.seed)
    theirs = _by_source(result.base_scores, result.seed) if result.base_scores else {}
    return template.render(
        title=_title(result),
        lead=_lead(result),
        facts=_facts(result, card),
        tiles=_tiles(result),
        both=result.adapter is not None,
        groups=f"{result.groups:,}",
        metrics=_metric_rows(result),
        signature=result.signatures.get("chrf", ""),
        sources=dumbbells(ours, theirs, "bits per byte"),
        languages=_languages(result) if len(result.languages) > 1 else None,
        curve=learning_curve(training.curve) if training else None,
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


def eval_markdown(result: EvalResult) -> str:
    """A Markdown table of an evaluation."""
    heads = ["metric", "adapter", "base", "difference", *result.baselines]
    lines = [_lead(result), "", f"| {' | '.join(heads)} |", f"| --- |{' ---: |' * (len(heads) - 1)}"]
    baselines = [scores.total() for scores in result.baselines.values()]
    for name, row in zip(result.adapter_intervals, _metric_rows(result), strict=True):
        cells = [f"{row[side]} {row[f'{side}_range']}".strip() for side in ("adapter", "base", "difference")]
        cells += [_shown(name, one[name].value()) if name in one else "" for one in baselines]
        lines.append(f"| {row['label']} | {' | '.join(cells)} |")
    return "\n".join(lines)


def compare_markdown(result: CompareResult) -> str:
    """A Markdown table of a comparison."""
    heads, *rows = result.table()
    rule = ["---", "---", *["---:"] * (len(heads) - 2)]
    table = ["| " + " | ".join(cells) + " |" for cells in [heads, rule, *rows]]
    return "\n".join([result.heading() + ".", "", *table])


def update_section(path: Path, name: str, markdown: str) -> None:
    """Replace what stands between `<!-- begin:NAME -->` and `<!-- end:NAME -->` in a file, or add both at its end.

    Raises:
        UsageError: the name has other than letters, digits, dots and dashes, or a marker lacks its partner.
    """
    if not re.fullmatch(r"[\w.-]+", name):
        raise UsageError(f"'{name}' is no name of a section: letters, digits, '.', '_' and '-' are allowed.")
    begin, end = f"<!-- begin:{name} -->", f"<!-- end:{name} -->"
    text = path.read_text(encoding="utf-8") if path.exists() else ""
    section = f"{begin}\n{markdown.strip()}\n{end}"
    start, stop = text.find(begin), text.find(end)
    if start < 0 and stop < 0:
        text = f"{text.rstrip()}\n\n{section}\n".lstrip()
    elif 0 <= start < stop:
        text = text[:start] + section + text[stop + len(end) :]
    else:
        raise UsageError(f"{path}: the section '{name}' has only one of its markers, or they are out of order.")
    write_atomically(path, text.encode())


def _title(result: EvalResult) -> str:
    names = _listed([display_name(tag) for tag in result.languages])
    return f"{result.adapter}: {names}" if result.adapter else f"{result.base}, untuned: {names}"


def _lead(result: EvalResult) -> str:
    names = _listed([display_name(tag) for tag in result.languages])
    over = f"{result.examples:,} {names} examples that were held out of training ({result.groups:,} groups)"
    total = result.scores.total()
    bits = total.get("bits_per_byte")
    if bits is None and result.task == "align":
        return f"On {over}, {result.adapter or result.base} was measured on {result.base}."
    if result.task == "transcribe":
        return f"On {over}, {_lead_of_transcripts(result)}"
    if bits is None or result.base_scores is None:
        value = f"{figure(bits.metric, bits.value())} bits per byte" if bits else "synthetic rows only"
        return f"On {over}, the base {result.base} was measured: {value}."
    before = result.base_scores.total()["bits_per_byte"].value()
    change = 1 - bits.value() / before
    how = f"{abs(change):.0%} {'less' if change > 0 else 'more'}"
    return (
        f"On {over}, the adapter {result.adapter} needs {figure(bits.metric, bits.value())} bits for each byte of text "
        f"where its base {result.base} needs {figure(bits.metric, before)}: {how}."
    )


def _lead_of_transcripts(result: EvalResult) -> str:
    cer = next(name for name in result.scores.total() if plain_name(name) == "cer")  # on real rows where there are any
    rate = LABELS["cer"][0].lower() + (", on synthetic rows," if SYNTHETIC in cer else "")
    value = _shown(cer, result.scores.total()[cer].value())
    if result.base_scores is None:
        return f"the base {result.base} has a {rate} of {value}."
    before = _shown(cer, result.base_scores.total()[cer].value())
    return f"the adapter {result.adapter} has a {rate} of {value} where its base {result.base} has {before}."


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
    for name in ("bits_per_byte", "chrf", "macro_f1", "accuracy", "i2t_r10", "t2i_r10", "cer", "wer"):
        if name in ours:
            note = _change_note(name, change.get(name))
            value, before = _shown(name, ours[name].value), _shown(name, base[name].value) if base else ""
            tiles.append({"name": LABELS[name][0], "value": value, "base": before, **note})
    english = result.english()
    if english:
        both = result.base_scores is not None
        tiles.append(
            {
                "name": "English, bits per byte",
                "value": figure("bits_per_byte", english["adapter" if both else "base"]),
                "base": figure("bits_per_byte", english["base"]) if both else "",
                "verdict": "",
                "note": _english_note(english) if both else "",
            }
        )
    return tiles


def _english_note(english: Mapping[str, Any]) -> str:
    change = english["adapter"] - english["base"]
    interval = english["difference"]
    unsure = interval is None or interval[0] <= 0 <= interval[1]
    if unsure:
        return "no clear change"
    by = figure("bits_per_byte", change, sign=True)
    return f"some English was forgotten: {by}" if change > 0 else f"better than the base: {by}"


def _change_note(name: str, change: Interval | None) -> dict[str, str]:
    if change is None:
        return {"verdict": "", "note": ""}
    verdict, text = _verdict(name, change)
    by = f"{_shown(name, change.value, sign=True)} {_range(name, change, sign=True)}"
    return {"verdict": verdict, "note": f"{text}: {by}"}


def _verdict(name: str, change: Interval) -> tuple[str, str]:
    """A class and words for adapter minus base."""
    plain = plain_name(name)
    if plain in DESCRIPTIVE:
        return "", ""
    if not change.known:
        return "", "not told apart"
    if change.low <= 0 <= change.high:
        return "", "no clear difference"
    good = (change.value < 0) == (plain in LOWER_IS_BETTER)
    return ("better", "better") if good else ("worse", "worse")


def _metric_rows(result: EvalResult) -> list[dict[str, str]]:
    both = result.adapter is not None
    ours = result.adapter_intervals
    base = result.base_intervals if both else ours
    change = result.differences
    rows = []
    for name, one in ours.items():
        label, what = LABELS[plain_name(name)]
        where = [text for prefix, text in SETS.items() if prefix in name]
        row = {"label": f"{label} ({', '.join(where)})" if where else label, "what": what}
        for side, found in (("adapter", one if both else None), ("base", base[name]), ("difference", change.get(name))):
            row[side] = _shown(name, found.value, sign=side == "difference") if found else ""
            row[f"{side}_range"] = _range(name, found, sign=side == "difference") if found else ""
        row["verdict"], row["verdict_text"] = _verdict(name, change[name]) if both else ("", "")
        rows.append(row)
    return rows


def _shown(name: str, value: float, *, sign: bool = False) -> str:
    if plain_name(name) in PERCENT and isfinite(value):
        return f"{100 * value:+.1f} points" if sign else f"{100 * value:.1f} %"
    return figure(name, value, sign=sign)


def _range(name: str, one: Interval, *, sign: bool = False) -> str:
    if not one.known:
        return ""
    if plain_name(name) in PERCENT:
        shape = "+.1f" if sign else ".1f"
        return f"[{100 * one.low:{shape}}, {100 * one.high:{shape}}]"
    return bracket(name, one, sign=sign)


def _by_source(scores: Scores, seed: int) -> dict[str, Interval]:
    named = {**scores.by_source, **{f"English {source}": one for source, one in scores.english.items()}}
    return {name: interval(one.sums, one.finish, seed=seed) for name, one in named.items()}


def _languages(result: EvalResult) -> dict[str, list[Any]]:
    """A row for each language: bits per byte and chrF."""
    rows = []
    for tag in result.languages:
        if tag not in result.scores.by_language:
            continue
        ours, theirs = result.scores.total([tag]), (result.base_scores or result.scores).total([tag])
        bits = ours.get("bits_per_byte")
        change = paired(bits, theirs["bits_per_byte"], result.seed) if bits and result.adapter else None
        sides = (ours, theirs) if result.adapter else (ours,)
        values = [
            [_shown(name, side[name].value()) if name in side else "" for side in sides]
            for name in ("bits_per_byte", "chrf")
        ]
        apart = ["", ""] if result.adapter else []
        if change:
            apart = [_shown("bits_per_byte", change.value, sign=True), _range("bits_per_byte", change, sign=True)]
        rows.append([display_name(tag), *values[0], *apart, *values[1]])
    both = ["bits per byte", "of the base", "difference", "95 % interval", "chrF", "of the base"]
    return {"heads": both if result.adapter else ["bits per byte", "chrF"], "rows": rows}


def _training(card: Card | None) -> str:
    if card is None or card.training is None:
        return ""
    one = card.training
    minutes = f"{one.seconds / 60:.1f} minutes" if one.seconds >= 90 else f"{one.seconds:.0f} seconds"
    return f"{one.steps:,} steps, {one.tokens:,} tokens, {minutes} on {one.machine}; seed {one.seed}."


def _sample(one: Sample) -> dict[str, Any]:
    answers = [("base", one.base)] if one.adapter is None else [("adapter", one.adapter), ("base", one.base)]
    tag = f"{one.source}, {one.language}, chrF {one.chrf:.0f}"
    image = f"data:{media_type(one.image)};base64,{b64encode(one.image).decode()}" if one.image else ""
    prompt = f"{one.prompt} …" if one.continuation else one.prompt
    return {
        "tag": tag,
        "prompt": prompt,
        "language": one.language,
        "reference": one.reference,
        "answers": answers,
        "image": image,
    }


def _samples_note(result: EvalResult) -> str:
    return (
        f"{result.generated} held-out prompts, in turn from each source, by a hash of their id and not by the answers. "
        "Each answer is the most likely one (greedy), cut after 96 tokens; chrF is that of the "
        f"{'adapter' if result.adapter else 'base'}'s answer."
    )


def _limits(result: EvalResult) -> list[str]:
    new = " (but for the new pictures of known concepts, whose concept was)" if result.task == "describe" else ""
    limits = [
        "No concept of these examples (a picture, a sentence, its translation, a recording) was in the training data"
        f"{new}.",
        f"Bits per byte covers all {result.examples:,} examples, the figures about answers {result.generated} of them."
        if result.generated
        else f"The figures cover all {result.examples:,} examples.",
        "The intervals speak of the choice of examples only: another training seed would move the figures too. "
        "`kauli compare` measures by how much.",
    ]
    few = {name: len(one.groups) for name, one in result.scores.by_source.items() if len(one.groups) < FEW_GROUPS}
    if few:
        listed = ", ".join(f"{name} ({count})" for name, count in few.items())
        limits.append(f"Sources with few groups have intervals that are rather too narrow than too wide: {listed}.")
    if result.scores.english:
        limits.append("English is measured on the English rows of the same split: what the adapter costs the base.")
    if result.generated:
        limits.append(
            "Few bits per byte with a low chrF: the model has come to expect the language, but not to translate."
        )
    return [*limits, *(f"{note[0].upper()}{note[1:]}." for note in result.notes)]


def _listed(names: list[str]) -> str:
    return names[0] if len(names) == 1 else f"{', '.join(names[:-1])} and {names[-1]}"
