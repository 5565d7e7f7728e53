"""Whether a text looks like the others of its language: its surprise, its script, the words of its source in it."""

from collections.abc import Iterator

import numpy as np
import regex

from kauli.models.languages import script_share, scripts
from kauli.training.data.doctor.characters import CharacterModel
from kauli.training.data.doctor.examined import LEAST_TEXTS, Examined, Finding
from kauli.training.data.doctor.outliers import SUSPICIOUS, deviations_by_size, strengths
from kauli.training.data.groups import normalise

_WORD = regex.compile(r"\p{L}[\p{L}\p{M}'’-]*")
_SURPRISE, _SCRIPT, _COPY, _OTHER, _POOR = 0.8, 0.9, 0.8, 0.9, 0.7
_LEAST_SPREAD = 0.15  # bits a character, below which no difference is believed
_MOSTLY, _SOME = 0.5, 0.4  # names and terms in another script are common
_LEAST_COPIED, _LONG_WORD = 0.6, 4
_NATS = float(np.log(2))
_RARE = 0.02  # how many rows are in a wrong language, before they are looked at
_FEW_DIFFERENT, _LONG = 0.35, 12


def surprise(examined: Examined) -> Iterator[Finding]:
    """Bits a character under an n-gram model of the other folds of the language, among texts of like length.

    Where the rows hold another language too (what is translated, or other rows), its model competes: the odds that the
    text is of that language follow from the two likelihoods. That model has seen all texts of its language, also the
    row's own input, so that a text that is not translated is certain to be found.
    """
    foreign = _foreign_texts(examined)
    for tag, places in examined.by_language.items():
        if len(places) < LEAST_TEXTS:
            continue
        texts = [examined.rows[place]["text"] for place in places]
        alphabet = "".join(sorted(set().union(*texts)))
        bits = np.zeros(len(texts))
        for learned, scored in examined.folds_of(places):
            model = CharacterModel([texts[at] for at in learned], alphabet)
            bits[scored] = model.bits([texts[at] for at in scored])
        sizes = np.array([len(text) + 1 for text in texts], dtype=np.float64)
        z = deviations_by_size(bits / sizes, sizes, _LEAST_SPREAD)
        for at, strength in enumerate(strengths(z, _SURPRISE)):
            if z[at] >= SUSPICIOUS:
                told = f"the text is unusual in {tag}: {bits[at] / sizes[at]:.1f} bits a character, {z[at]:.1f} "
                yield Finding(places[at], float(strength), told + "deviations above texts of its length")
        for other, sample in foreign.items():
            if other != tag and scripts(other) & scripts(tag) and len(sample) >= LEAST_TEXTS:
                theirs = CharacterModel(sample, alphabet).bits(texts)
                odds = np.clip((bits - theirs) * _NATS, -50, 50) + np.log(_RARE)
                for at in np.flatnonzero(odds > 0).tolist():
                    told = f"the text is likelier {other} than {tag}, by {bits[at] - theirs[at]:.0f} bits"
                    yield Finding(places[at], float(_OTHER / (1 + np.exp(-odds[at]))), told)


def _foreign_texts(examined: Examined) -> dict[str, list[str]]:
    """Language -> texts that are certainly of it: those that are translated, and the rows of each language."""
    found: dict[str, dict[str, None]] = {}
    for row in examined.rows:
        for tag, text in ((row["input_language"], row["input"]), (row["language"], row["text"])):
            if tag and text:
                found.setdefault(tag, {})[text] = None
    return {tag: list(texts) for tag, texts in found.items()}


def script(examined: Examined) -> Iterator[Finding]:
    """The share of letters outside the scripts of the language (CLDR), against the usual share of its rows."""
    for tag, places in examined.by_language.items():
        shares = np.array([1 - script_share(examined.rows[place]["text"], tag) for place in places])
        usual = float(np.median(shares))
        for place, share in zip(places, shares, strict=True):
            if share > 0 and share > usual:
                names = " or ".join(sorted(scripts(tag)))
                reason = f"{share:.0%} of its letters are not {names}, the script of {tag}"
                yield Finding(place, _SCRIPT if share > _MOSTLY else _SOME * float(share), reason)


def copied_source(examined: Examined) -> Iterator[Finding]:
    """Translations that repeat what they translate, whole or in most of its longer words."""
    for place in examined.pairs:
        row = examined.rows[place]
        if row["language"] == row["input_language"]:
            continue
        ours, theirs = normalise(row["text"]), normalise(row["input"])
        if ours == theirs:
            yield Finding(place, _COPY, "the text is a copy of what it translates")
            continue
        words = [word for word in _WORD.findall(ours) if len(word) >= _LONG_WORD]
        share = sum(word in set(_WORD.findall(theirs)) for word in words) / max(1, len(words))
        if len(words) >= 2 and share >= _LEAST_COPIED:
            yield Finding(place, _COPY * share, f"{share:.0%} of its words stand in what it translates")


def diversity(examined: Examined) -> Iterator[Finding]:
    """Texts that say the same again and again: the share of different character trigrams."""
    for place, row in enumerate(examined.rows):
        text = normalise(row["text"] or "")
        count = len(text) - 2
        if count < _LONG - 2:
            continue
        share = len({text[at : at + 3] for at in range(count)}) / count
        if share < _FEW_DIFFERENT and count < 200:  # long texts repeat trigrams in any language
            yield Finding(place, _POOR, f"it repeats itself: {share:.0%} of its trigrams are different")
