"""The prompt of a translation: an instruction, similar pairs from a memory, terms of a glossary, and the text."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from kauli.models.adapters.card import Prompting
from kauli.models.languages import display_name, nfc

_GAP = "\n\n"
STOP = (_GAP,)
"""Ends an answer: a model that has not learned to end goes on with another example."""


@dataclass(frozen=True)
class Example:
    """A text and its translation, in the direction of the request; of several, the most similar is the first."""

    source: str
    target: str


def translation_prompt(
    text: str,
    source: str,
    target: str,
    prompting: Prompting,
    examples: Sequence[Example] = (),
    terms: Sequence[Example] = (),
) -> str:
    """The message that asks for a translation of `text` from the language `source` into `target` (BCP-47 tags).

    `examples` and `terms` are taken as they are: see `fitting` for a budget of tokens.
    """
    return marked_prompt(text, source, target, prompting, examples, terms)[0]


def marked_prompt(
    text: str,
    source: str,
    target: str,
    prompting: Prompting,
    examples: Sequence[Example] = (),
    terms: Sequence[Example] = (),
) -> tuple[str, tuple[tuple[int, int], ...]]:
    """`translation_prompt`, and where in it the translations of the examples begin and end, in characters."""
    names = {"source_language": display_name(source), "target_language": display_name(target)}
    shown = list(examples) if prompting.order == "nearest_first" else list(reversed(examples))
    before, _, behind = prompting.pair.partition("{target}")
    written, places = nfc(_filled(prompting.instruction, names)), list[tuple[int, int]]()
    for one in [*_fixed(prompting, source, target), *shown]:
        written += _GAP * bool(written) + nfc(_filled(before, {**names, "source": one.source}))
        translation = nfc(one.target)
        places.append((len(written), len(written) + len(translation)))
        written += translation + nfc(_filled(behind, {**names, "source": one.source}))
    if terms:
        listed = "; ".join(f"{one.source} = {one.target}" for one in terms)
        written += _GAP * bool(written) + nfc(_filled(prompting.terms, {**names, "terms": listed}))
    asked = nfc(_filled(before.rstrip(), {**names, "source": text}))
    return written + _GAP * bool(written) + asked, tuple(places)


def fitting(examples: Sequence[Example], prompting: Prompting, count: Callable[[str], int]) -> list[Example]:
    """The most similar examples that `prompting` has room for; `count` counts a text's tokens."""
    kept: list[Example] = []
    room = prompting.tokens
    for one in examples[: prompting.examples]:
        room -= count(one.source) + count(one.target) + 8  # the names of the languages, and line ends
        if room < 0:
            break
        kept.append(one)
    return kept


def likelier(costs: Sequence[tuple[float, int]]) -> int:
    """The place of the text that costs the fewest bits per byte; of several the first.

    An adapter that is unsure of its own answer may find the memory's translation of a similar text likelier: it then
    has the better score (measured on validation rows of two languages, docs/tasks/translate.md).

    Args:
        costs: (bits, bytes) of each text after the same prompt.
    """
    return min(range(len(costs)), key=lambda place: costs[place][0] / max(1, costs[place][1]))


def _fixed(prompting: Prompting, source: str, target: str) -> list[Example]:
    """The examples of every prompt from `source` into `target`, in their order."""
    return [
        Example(one.source, one.target) if one.source_language == source else Example(one.target, one.source)
        for one in prompting.fixed
        if {one.source_language, one.target_language} == {source, target}
    ]


def _filled(template: str, values: dict[str, str]) -> str:
    """`template` with its names in braces replaced, in one pass: braces in the values stay as they are."""
    out, rest = "", template
    while rest:
        found = min(((place, name) for name in values if (place := rest.find("{" + name + "}")) >= 0), default=None)
        if found is None:
            return out + rest
        place, name = found
        out += rest[:place] + values[name]
        rest = rest[place + len(name) + 2 :]
    return out
