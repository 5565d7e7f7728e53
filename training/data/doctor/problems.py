"""What `kauli data check` counts, row by row: garbled letters, markup, words for an empty cell, copies."""

from collections.abc import Iterator

from kauli.training.data.doctor.examined import Examined, Finding
from kauli.training.data.problems import find_problems

_STRENGTHS = {
    "garbled": 0.9, "control": 0.7, "nothing": 0.9, "html": 0.4, "mixed_script": 0.4, "long": 0.2, "copy": 0.3,
    "blank_text": 0.4, "blank_prompt": 0.2,
}  # fmt: skip
"""Kind of problem -> how probable a mistake is. A foreign script has a signal of its own."""


def problems(examined: Examined) -> Iterator[Finding]:
    """Each problem that a row has."""
    places = {row["id"]: place for place, row in enumerate(examined.rows)}
    for problem in find_problems(examined.rows, str, {}):
        for example in problem["examples"] if problem["kind"] in _STRENGTHS else ():
            told = f"a row {problem['what']}: {example['shown']}"
            yield Finding(places[example["place"]], _STRENGTHS[problem["kind"]], told)
