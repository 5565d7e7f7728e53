"""A describe adapter measured, as a section of RESULTS.md: every test image described, four baselines, samples.

    kauli train describe-am && .venv/bin/python tests/bench/describe.py describe-am --language am

Samples are shown for emoji, since a page can hold these as letters; which ones is decided by a hash of their ids.
"""

import argparse
from dataclasses import replace
from pathlib import Path

from results_file import update_section

from kauli.models.adapters.registry import Registry
from kauli.models.bases.find import find_base
from kauli.models.bases.packages import fetch_package
from kauli.models.languages import display_name
from kauli.models.paths import default_storage
from kauli.training.card import machine
from kauli.training.data.dataset import load_data
from kauli.training.data.starter import source_cards
from kauli.training.evaluation.describe import evaluate_describe
from kauli.training.evaluation.intervals import Interval
from kauli.training.evaluation.request import request_of
from kauli.training.evaluation.results import EvalResult, bracket, format_value

SETS = {"new_pictures_": "new images of known concepts", "": "new concepts"}
SYSTEMS = {
    "adapter": "right image", "wrong_image": "wrong image", "no_image": "no image",
    "memory_alone": "captions of similar images alone", "no_memory": "right image without captions",
    "nearest": "nearest training image's caption", "most_frequent": "most frequent caption",
}  # fmt: skip
SHOWN = 12


def emoji() -> dict[bytes, str]:
    """Image -> the emoji itself, of the package that the starter data takes its images from."""
    folder = fetch_package(source_cards()["cldr"].packages["pictures"])
    files = sorted((folder / "package" / "img" / "twitter" / "64").glob("*.png"))
    return {file.read_bytes(): "".join(chr(int(code, 16)) for code in file.stem.split("-")) for file in files}


def table(result: EvalResult, tag: str) -> list[str]:
    """Both test sets, each system a row, with what tells it from the adapter."""
    totals = {"adapter": result.scores.total([tag])}
    totals |= {name: scores.total([tag]) for name, scores in result.baselines.items()}
    against, gain = result.against_baselines([tag]), result.wrong_image_gain([tag])
    lines = []
    for prefix, words in SETS.items():
        bits, chrf, exact, copied = (f"{prefix}{name}" for name in ("bits_per_byte", "chrf", "exact", "copied"))
        if bits not in totals["adapter"]:
            continue
        groups = len(totals["adapter"][bits].groups)
        lines += [
            f"{words[0].upper()}{words[1:]} ({groups} groups): bits per byte with the right image against a wrong "
            f"one {_percent(gain[bits])}.",
            "",
            "| | bits per byte | chrF | chrF: right image minus this | exact | a training caption |",
            "| --- | ---: | ---: | ---: | ---: | ---: |",
        ]
        for name, title in SYSTEMS.items():
            if name not in totals:
                continue
            total = totals[name]
            apart = ""
            if name in against and chrf in against[name]:
                one = against[name][chrf]
                apart = f"{format_value(chrf, one.value, sign=True)} {bracket(chrf, one, sign=True)}"
            cells = [format_value(key, total[key].value()) if key in total else "" for key in (bits, chrf)]
            shares = [f"{100 * total[key].value():.1f} %" if key in total else "" for key in (exact, copied)]
            lines.append(f"| {title} | {cells[0]} | {cells[1]} | {apart} | {' | '.join(shares)} |")
        lines.append("")
    return lines


def _percent(one: Interval) -> str:
    return f"{one.value:+.1%} [{one.low:+.1%}, {one.high:+.1%}]"


def samples(result: EvalResult, tag: str) -> list[str]:
    """The first emoji by the hash of their ids, half of each test set, with reference and description."""
    letters = emoji()
    lines = ["| image | reference | description |", "| --- | --- | --- |"]
    mine = [one for one in result.samples if one.language == tag and one.image in letters]
    known = [one for one in mine if one.source.endswith("new image")]
    new = [one for one in mine if not one.source.endswith("new image")]
    for one in [*known[: SHOWN // 2], *new[: SHOWN // 2]]:
        assert one.image is not None
        answer = " ".join((one.adapter or one.base).split()).replace("|", " ")
        lines.append(f"| {letters[one.image]} | {one.reference} | {answer[:80]} |")
    return lines


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("adapter", help="NAME or NAME@VERSION of the task describe")
    parser.add_argument("--language", required=True)
    parser.add_argument("--storage", default=default_storage())
    parser.add_argument("--limit", type=int, default=1000, help="images of each test set that are described")
    parser.add_argument("--results", type=Path, default=Path(__file__).parents[2] / "RESULTS.md")
    options = parser.parse_args()
    registry = Registry(options.storage)
    card = registry.card(options.adapter)
    base = find_base(card.base.name, allow_noncommercial=True)
    dataset = load_data(str(card.data.name if card.data else "starter"), card.language)
    request = request_of(card, registry.fetch(options.adapter), base, dataset)
    result = evaluate_describe(replace(request, limit=options.limit, languages=(options.language,)))
    training = card.training
    cost = (
        f"{training.steps} steps, {training.seconds / 60:.1f} minutes of training on {training.machine}"
        if training
        else ""
    )
    lines = [
        f"{card.spec} ({display_name(options.language)}), base {card.base.name}; {cost}; seed "
        f"{training.seed if training else '-'}; data {dataset.sha256[:12]}. Bits per byte cover all test images, "
        f"chrF and exact at most {options.limit} of each set (greedy); "
        f"95 % intervals by paired bootstrap over groups. Measured on {machine()}. Command: `kauli train {card.name}` "
        f"and `tests/bench/describe.py {card.name} --language {options.language}`.",
        "",
        *table(result, options.language),
        "Samples (by a hash of their ids; the first half new images of known concepts, the second new concepts):",
        "",
        *samples(result, options.language),
        *(["", *(f"{note[0].upper()}{note[1:]}." for note in result.notes)] if result.notes else []),
    ]
    text = "\n".join(lines)
    print(text)
    update_section(options.results, f"pictures-{card.name}-{options.language}", text)


if __name__ == "__main__":
    main()
