"""Whether a text translates its `input`: words that go together, lengths, marks and placeholders that are the same.

Words by IBM Model 1 (Brown et al. 1993, "The Mathematics of Statistical Machine Translation") over the first letters of
words, which counts the forms of a word together (Fraser and Marcu 2005), each pair scored by the pairs of other groups.
"""

from collections import defaultdict
from collections.abc import Iterator

import numpy as np
import regex

from kauli.models.documents.placeholders import lost
from kauli.training.data.doctor.alignment import Links
from kauli.training.data.doctor.embeddings import text_embeddings
from kauli.training.data.doctor.examined import LEAST_TEXTS, Examined, Finding, Floats
from kauli.training.data.doctor.outliers import SUSPICIOUS, deviations_by_size, strengths

_WRONG = 0.05  # of the pairs, before they are looked at
_WORDS, _LENGTH, _MEANING, _MARKS, _PLACEHOLDERS = 0.95, 0.8, 0.95, 0.7, 0.6
_LIKELIER = 3.0  # times as likely as any pair: what is told
_LEAST_SPREAD = 0.1
_USUAL_FAULTS = 0.1  # of the pairs: marks that differ more often say nothing
_NEIGHBOURS = 4
_END = regex.compile(r"([.!?…:;。।።፧؟])[\"'»”)\]]*$")
_NUMBER = regex.compile(r"\d+")


def _directions(examined: Examined) -> dict[tuple[str, str], list[int]]:
    """(language of the input, of the text) -> places of its pairs, where there are enough to learn from."""
    found = defaultdict(list)
    for place in examined.pairs:
        found[examined.rows[place]["input_language"], examined.rows[place]["language"]].append(place)
    return {key: places for key, places in found.items() if len(places) >= LEAST_TEXTS}


def words(examined: Examined) -> Iterator[Finding]:
    """The odds that input and text were put together by chance, from the words that other pairs have together."""
    for (theirs, _tag), places in _directions(examined).items():
        inputs = [examined.rows[place]["input"] for place in places]
        texts = [examined.rows[place]["text"] for place in places]
        links, back = Links(inputs, texts), Links(texts, inputs)
        evidence = np.zeros(len(places))
        for learned, scored in examined.folds_of(places):
            evidence[scored] = (links.evidence(learned, scored) + back.evidence(learned, scored)) / 2
        odds = np.log(_WRONG / (1 - _WRONG)) - np.clip(evidence, -50, 50)
        chance = 1 / (1 + np.exp(-odds))
        for at in np.flatnonzero(chance > _LIKELIER * _WRONG):
            told = f"in other pairs its words do not translate the {theirs} ones: {chance[at]:.0%} likely put together"
            yield Finding(places[at], float(_WORDS * chance[at]), f"{told} by mistake")


def meaning(examined: Examined) -> Iterator[Finding]:
    """With a base: the odds that input and text were put together by chance, from the cosine of their embeddings.

    The cosine counts less that of the nearest neighbours (Artetxe and Schwenk 2019). How it is distributed in wrong
    pairs is seen by pairing each input with another text; two normal distributions of one spread give the odds.
    """
    if examined.base is None:
        return
    for places in _directions(examined).values():
        sides = [[examined.rows[place][name] for place in places] for name in ("input", "text")]
        ours, theirs = (text_embeddings(examined.base, side) for side in sides)
        right, wrong = _margins(ours, theirs)
        centre, chance = np.median(right), np.median(wrong)
        spread = max(1.4826 * float(np.median(np.abs(right - centre))), 1e-6)
        slope = max(float(centre - chance), 0.0) / spread**2
        odds = np.log(_WRONG / (1 - _WRONG)) + slope * ((centre + chance) / 2 - right)
        likely = 1 / (1 + np.exp(-np.clip(odds, -50, 50)))
        for at in np.flatnonzero(likely > _LIKELIER * _WRONG):
            told = (
                f"input and text differ in meaning: cosine margin {right[at]:.2f}, usual are {centre:.2f}, of a wrong "
            )
            yield Finding(places[at], float(_MEANING * likely[at]), f"{told}pair {chance:.2f}")


def _margins(ours: Floats, theirs: Floats) -> tuple[Floats, Floats]:
    """(N,) of the pairs, and (N,) of each input with the text half of all pairs further on."""
    near = np.zeros((2, len(ours)))
    for side, (one, other) in enumerate(((ours, theirs), (theirs, ours))):
        for start in range(0, len(one), 1024):
            cosines = one[start : start + 1024] @ other.T
            count = min(_NEIGHBOURS, cosines.shape[1])
            near[side, start : start + 1024] = np.partition(cosines, -count, axis=1)[:, -count:].mean(axis=1)
    half = np.roll(np.arange(len(ours)), len(ours) // 2)
    right = (ours * theirs).sum(axis=1) - near.mean(axis=0)
    return right, (ours * theirs[half]).sum(axis=1) - (near[0] + near[1, half]) / 2


def lengths(examined: Examined) -> Iterator[Finding]:
    """How much longer or shorter the text is than usual for its input, by the logarithm of the ratio."""
    for places in _directions(examined).values():
        sizes = np.array([[len(examined.rows[at]["input"]), len(examined.rows[at]["text"])] for at in places], float)
        ratios = np.log((sizes[:, 1] + 1) / (sizes[:, 0] + 1))
        z = deviations_by_size(ratios, sizes[:, 0], _LEAST_SPREAD)
        for at, strength in enumerate(strengths(np.abs(z), _LENGTH)):
            if abs(z[at]) >= SUSPICIOUS:
                way = "longer" if z[at] > 0 else "shorter"
                told = f"the text has {sizes[at, 1]:.0f} characters for {sizes[at, 0]:.0f}: "
                yield Finding(places[at], float(strength), f"{told}{abs(z[at]):.1f} deviations {way} than usual")


def marks(examined: Examined) -> Iterator[Finding]:
    """Sentence ends and numbers of one side alone, where most pairs agree in them; placeholders that are lost."""
    for places in _directions(examined).values():
        sides = [(examined.rows[place]["input"], examined.rows[place]["text"]) for place in places]
        for check, ceiling in ((_ends, _MARKS), (_numbers, _MARKS), (_lost, _PLACEHOLDERS)):
            told = [check(*side) for side in sides]
            share = sum(map(bool, told)) / len(told)
            for place, text in zip(places, told, strict=True):
                if text and share < _USUAL_FAULTS:
                    reason = f"{text}; in {1 - share:.1%} of the pairs it is not so"
                    yield Finding(place, ceiling * (1 - share / _USUAL_FAULTS), reason)


def _ends(ours: str, theirs: str) -> str | None:
    left, right = _END.search(ours), _END.search(theirs)
    if bool(left) == bool(right):
        return None
    return f"the input ends with '{left[1]}', the text does not" if left else "the text alone ends with a mark"


def _numbers(ours: str, theirs: str) -> str | None:
    left, right = (sorted(str(int(one)) for one in _NUMBER.findall(side)) for side in (ours, theirs))
    return (
        None
        if left == right
        else f"the input has the numbers {', '.join(left) or 'none'}, the text {', '.join(right) or 'none'}"
    )


def _lost(ours: str, theirs: str) -> str | None:
    faults = lost(ours, theirs)
    return faults[0] if faults else None
