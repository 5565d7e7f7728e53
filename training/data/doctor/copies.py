"""Rows that repeat others: copies, near copies with other answers or in other splits, rows that an import leaves out.

Near copies share most of their character n-grams: Jaccard similarity, found by MinHash in bands (Broder 1997; Leskovec,
Rajaraman and Ullman, "Mining of Massive Datasets", chapter 3).
"""

from collections import defaultdict
from collections.abc import Iterator, Sequence
from zlib import crc32

import numpy as np

from kauli.training.data.doctor.examined import Examined, Finding
from kauli.training.data.groups import normalise, shared_keys

NEAR = 0.8
"""Jaccard similarity from which two texts are nearly the same."""
_GRAM, _BANDS, _ROWS = 4, 12, 4
_PRIME = (1 << 31) - 1
_MOST = 50  # rows of a bucket that are compared
_ANSWERS, _SPLITS, _LEAK = 0.2, 0.2, 0.8
_SHORTEST = 12  # characters: shorter texts that are alike may well mean something else
_UNLIKE = 0.3


def near_copies(texts: Sequence[str]) -> Iterator[tuple[int, int, float]]:
    """(one, other, similarity) of different texts that are nearly the same; `one` is before `other`."""
    draw = np.random.default_rng(0)
    factors = draw.integers(1, _PRIME, (2, _BANDS * _ROWS))
    grams = [_grams(text) if len(text) >= _SHORTEST else frozenset() for text in texts]
    buckets: dict[tuple[int, bytes], list[int]] = defaultdict(list)
    for place, own in enumerate(grams):
        if own:
            codes = np.fromiter((crc32(gram.encode()) % _PRIME for gram in own), np.int64, len(own))
            # 31 bits times 31 bits fit into 63
            least = ((codes[:, None] * factors[0] + factors[1]) % _PRIME).min(axis=0)
            for band in range(_BANDS):
                buckets[band, least[band * _ROWS : (band + 1) * _ROWS].tobytes()].append(place)
    seen = set()
    for places in buckets.values():
        for at, other in enumerate(places[:_MOST]):
            for one in places[:at]:
                if (one, other) not in seen and texts[one] != texts[other]:
                    seen.add((one, other))
                    share = len(grams[one] & grams[other]) / len(grams[one] | grams[other])
                    if share >= NEAR:
                        yield one, other, share


def _grams(text: str) -> frozenset[str]:
    return frozenset(text[at : at + _GRAM] for at in range(len(text) - _GRAM + 1))


def near(examined: Examined) -> Iterator[Finding]:
    """Near copies of a prompt or input with quite another text, and near copies of a text in another split."""
    rows = examined.rows
    prompts = [normalise(row["input"] or row["prompt"] or "") for row in rows]
    for one, other, share in near_copies(prompts):
        same = rows[one]["language"] == rows[other]["language"] and rows[one]["text"] and rows[other]["text"]
        if not same or rows[one]["media"] != rows[other]["media"]:
            continue
        ours, theirs = (_grams(f" {normalise(rows[place]['text'])} ") for place in (one, other))
        alike = len(ours & theirs) / max(1, len(ours | theirs))
        if alike < _UNLIKE and not (one in examined.labelled and ours == theirs):
            for place, copy in ((one, other), (other, one)):
                told = f"its prompt is that of {rows[copy]['id']} by {share:.0%}, its text by {alike:.0%}"
                yield Finding(place, _ANSWERS * share, told)
    texts = ["" if place in examined.labelled else normalise(row["text"] or "") for place, row in enumerate(rows)]
    for one, other, share in near_copies(texts):
        if rows[one]["split"] != rows[other]["split"] and rows[one]["language"] == rows[other]["language"]:
            for place, copy in ((one, other), (other, one)):
                if rows[place]["split"] == "train":
                    told = f"its text is that of {rows[copy]['id']} in {rows[copy]['split']} by {share:.0%}"
                    yield Finding(place, _SPLITS * share, told)


def leaks(examined: Examined) -> Iterator[Finding]:
    """Rows that share content with a row of another split, which an import leaves out for that."""
    if not examined.left_out:
        return
    holders: dict[str, list[int]] = defaultdict(list)
    keys = shared_keys(examined.rows, "content")
    for place, own in enumerate(keys):
        for key in own:
            holders[key].append(place)
    for place, row in enumerate(examined.rows):
        if row["id"] not in examined.left_out:
            continue
        for key in keys[place]:
            others = [one for one in holders[key] if examined.rows[one]["split"] != row["split"]]
            if others:
                other, kind = examined.rows[others[0]], key.partition(":")[0]
                told = f"it shares its {kind} with {other['id']} of {other['split']}"
                yield Finding(place, _LEAK, f"a leak between splits: {told} ({len(others)} such rows)")
                break
