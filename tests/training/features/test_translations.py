"""Rows of translations: examples of other groups alone, both directions, the trained tokens of the examples."""

from collections.abc import Sequence
from typing import Any

import pytest

from kauli.models.adapters.card import Prompting
from kauli.models.bases.find import Base, find_base
from kauli.models.text.language_model import load_prompts
from kauli.training.features.neighbours import Neighbours
from kauli.training.features.translations import Prompter, directed, is_reverse

Row = dict[str, Any]


def pair(at: int, english: str, text: str, group: str, language: str = "be") -> Row:
    return {
        "id": str(at), "group": group, "language": language, "input": english, "input_language": "en", "text": text,
    }  # fmt: skip


WORDS = ["open the file", "open the files", "close the file", "close the door", "the red car", "the red door"]
PAIRS = [pair(at, words, f"<{words[::-1]}>", group=str(at // 2)) for at, words in enumerate(WORDS)]


@pytest.fixture(scope="module")
def base() -> Base:
    return find_base("debug", task="text")


def shown(rows: Sequence[Row]) -> list[list[str]]:
    return [[row["prompt"][first:last] for first, last in row["targets"]] for row in rows]


@pytest.mark.parametrize("reverse", [False, True])
def test_no_example_is_of_the_row_s_own_group(base: Base, reverse: bool) -> None:
    prompter = Prompter(base, Prompting(examples=6, tokens=10_000), PAIRS)
    rows = prompter.prompted([directed(row, reverse=reverse) for row in PAIRS])
    assert [row["id"].rstrip("<") for row in rows] == [row["id"] for row in PAIRS]
    for row, examples in zip(rows, shown(rows), strict=True):
        other = [directed(one, reverse=reverse)["text"] for one in PAIRS if one["group"] != row["group"]]
        assert examples
        assert set(examples) <= set(other)
        assert row["text"] not in row["prompt"]
        assert row["nearest"] == examples[-1]
        assert is_reverse(row) == reverse


def test_the_prompt_asks_in_the_direction_of_the_row(base: Base) -> None:
    prompter = Prompter(base, Prompting(examples=1), PAIRS)
    there, back = prompter.prompted([directed(PAIRS[0], reverse=False), directed(PAIRS[0], reverse=True)])
    assert there["prompt"].startswith("Translate from English into Belarusian.")
    assert there["prompt"].endswith("English: open the file\nBelarusian:")
    assert back["prompt"].endswith("Belarusian: <elif eht nepo>\nEnglish:")
    assert (there["from"], there["to"], back["from"], back["to"]) == ("en", "be", "be", "en")
    assert "close the file" in there["prompt"]


def test_languages_have_memories_of_their_own(base: Base) -> None:
    rows = [*PAIRS, pair(9, "open the file", "አማርኛ", "9", "am")]
    found = Prompter(base, Prompting(), rows).prompted([directed(row, reverse=False) for row in rows])
    assert not any("አማርኛ" in row["prompt"] for row in found)
    assert found[-1]["targets"] == ()
    assert found[-1]["nearest"] == ""


@pytest.mark.parametrize("name", ["debug-text", "debug-gemma", "debug-qwen"])
def test_the_trained_tokens_of_a_prompt_are_its_examples_translations(name: str) -> None:
    base = find_base(name, task="text")
    [row] = Prompter(base, Prompting(examples=3), PAIRS).prompted([directed(PAIRS[0], reverse=False)])
    prompts, _ = load_prompts(base)
    document = prompts.document(row, 1000)
    tokens = [document.tokens[first:last] for first, last in document.spans]
    assert tokens == [prompts.text_tokens(text) for text in shown([row])[0]]
    assert len(document.targets) == sum(map(len, tokens)) + len(document.tokens) - document.answer_start
    assert prompts.document({**row, "targets": ()}, 1000).spans == ()


def test_what_a_search_over_all_rows_finds() -> None:
    pairs = [("open the file", "a"), ("open the window", "b"), ("red", "c")]
    search = Neighbours(pairs, ["1", "2", "3"])
    found = list(search.of(["open file", "qqq", "red"], ["9", "9", "3"], 2))
    assert [[one.target for one in texts] for texts in found] == [["a", "b"], [], []]
    assert [one.key for one in found[0]] == [0, 1]
    assert list(Neighbours([], []).of(["x"], ["1"], 2)) == [[]]
