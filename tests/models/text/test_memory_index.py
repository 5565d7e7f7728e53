"""A memory in RAM: scores worked out by hand, the nearest of many, what was removed, terms as whole words."""

import math

import numpy as np
import pytest

from kauli.models.text.memory_index import Bm25, Entry, MemoryIndex
from kauli.models.text.memory_terms import Terms, occurs
from kauli.training.features.neighbours import Neighbours
from support.memories import LetterEmbedder


def test_bm25_by_hand() -> None:
    found = Bm25()
    assert found.scores("ab").tolist() == []
    for text in ("ab", "ab cde", "xyz"):  # 2, 2 + 3 and 3 n-grams: 10 / 3 on average
        found.add(text)
    rarity = math.log(1 + (3 - 2 + 0.5) / (2 + 0.5))  # " ab" and "ab " are in two of three texts

    def share(length: int) -> float:
        return rarity * 2.2 / (1 + 1.2 * (0.25 + 0.75 * length / (10 / 3)))

    np.testing.assert_allclose(found.scores("AB"), [2 * share(2), 2 * share(5), 0], rtol=1e-5)


def test_examples_in_serving_are_scored_as_those_in_training() -> None:
    texts = ["Open the file", "Open files", "ፋይሉን ክፈት", "Файл адкрыць", "a", "file file file", "CLOSE the file now"]
    index, embedder = MemoryIndex(LetterEmbedder.dim), LetterEmbedder()
    index.add([Entry(text, text, "x", "") for text in texts], embedder.embed(texts))
    for asked in ("open a file", "ፋይሉን", "файл"):
        (vector,) = embedder.embed([asked])
        trained = Neighbours([(text, "x") for text in texts], texts, embedder.embed(texts))
        (found,) = trained.of([asked], [""], 9, vector[None])
        expected = {one.source: one.lexical for one in found}
        served = {one.source: one.lexical for one in index.near(asked, vector)}
        assert served == pytest.approx(expected, rel=1e-5)
        assert max(served.values()) > 0


def test_the_nearest_of_many_are_found_by_words_and_by_embeddings() -> None:
    embedder, texts = LetterEmbedder(), [f"text {at} of {at % 7} kinds" for at in range(500)]
    index = MemoryIndex(embedder.dim)
    for start in range(0, 500, 50):  # joined in parts
        part = texts[start : start + 50]
        index.add([Entry(f"{text}!", text, text.upper(), "") for text in part], embedder.embed(part))
    (vector,) = embedder.embed(["text 77 of 0 kinds"])
    found = index.near("text 77 of 0 kinds", vector)
    cosines = embedder.embed(texts) @ vector
    assert {texts[at] for at in np.argsort(-cosines)[:32]} <= {one.source for one in found}
    assert max(found, key=lambda one: one.lexical).source == "text 77 of 0 kinds"
    assert all(one.vector @ vector == pytest.approx(cosines[texts.index(one.source)], abs=1e-5) for one in found)
    assert [entry.target for entry in index.same(" text  77 of 0 kinds")] == ["TEXT 77 OF 0 KINDS"]


def test_what_was_removed_is_not_found_and_wears_the_index() -> None:
    embedder, texts = LetterEmbedder(), [f"text {at}" for at in range(2500)]
    index = MemoryIndex(embedder.dim)
    index.add([Entry(text, text, "x", "") for text in texts], embedder.embed(texts))
    index.add_terms([Entry("t1", "file", "x", ""), Entry("t2", "red car", "y", "")])
    index.remove([*texts[1:2000], "t1", "never there"])
    assert (len(index), index.worn) == (501, True)
    assert {one.source for one in index.near("text 5", embedder.embed(["text 5"])[0])} <= {texts[0], *texts[2000:]}
    assert index.same("text 5") == []
    assert [one.id for one in index.terms("a file in a red car")] == ["t2"]


@pytest.mark.parametrize(
    ("term", "text", "there"),
    [
        ("file", "Open the File.", True),
        ("file", "Open the files", False),  # an inflected form is a term of its own
        ("red car", "a RED  car!", True),
        ("red car", "a red, car", False),
        ("C++", "in C++ code", True),
        ("фАЙЛ", "«Файл»", True),
        ("ፋይል", "ፋይል ክፈት", True),
        ("ፋይል", "ፋይሎች", False),
        ("हिन्दी", "यह हिन्दी है", True),
        ("हि", "यह हिन्दी है", False),  # vowel signs belong to the word
        ("ไฟล์", "เปิดไฟล์นี้", True),  # no spaces between words
        ("文件", "打开文件夹", True),
        ("e\u0301cole", "\u00c9COLE 5", True),
        ("straße", "STRASSE", True),
    ],
)
def test_terms_are_whole_words_in_any_script(term: str, text: str, there: bool) -> None:
    assert occurs(term, text) is there


def test_of_terms_that_overlap_the_longest_is_found_in_the_order_of_the_text() -> None:
    terms: Terms[int] = Terms()
    for number, term in enumerate(("file", "file system", "save")):
        terms.add(term, number)
    assert terms.find("Save the file system, the file and the File") == [2, 1, 0]
    terms.add("FILE", 9)
    assert terms.find("file") == [9]
    assert terms.find("") == []
