"""The signals of `kauli data doctor`: each looks at all rows and says of some what is suspicious."""

from collections.abc import Callable, Iterator

from kauli.training.data.doctor.copies import leaks, near
from kauli.training.data.doctor.examined import Examined, Finding
from kauli.training.data.doctor.labels import label_errors, other_answers
from kauli.training.data.doctor.language import copied_source, diversity, script, surprise
from kauli.training.data.doctor.pairs import lengths, marks, meaning, words
from kauli.training.data.doctor.problems import problems
from kauli.training.data.doctor.speech import speed

Signal = Callable[[Examined], Iterator[Finding]]

SIGNALS: dict[str, Signal] = {
    "label": label_errors,
    "answers": other_answers,
    "surprise": surprise,
    "script": script,
    "source": copied_source,
    "words": words,
    "meaning": meaning,
    "length": lengths,
    "marks": marks,
    "speed": speed,
    "near": near,
    "leak": leaks,
    "problem": problems,
    "diversity": diversity,
}
"""By the name that --json does not show; a new signal is a function and a line here."""
