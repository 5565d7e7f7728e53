"""The prompts of translations: known texts, places of the examples, a budget of tokens."""

import pytest
from pydantic import ValidationError

from kauli.models.adapters.card import Prompting, PromptPair
from kauli.models.text.translation import Example, fitting, likelier, marked_prompt, translation_prompt

CAR, HOUSE = Example("a {car}", "መኪና"), Example("a house", "ቤት")


def test_a_prompt_is_what_it_says() -> None:
    found = translation_prompt("a {source} car", "en", "am", Prompting(), [CAR, HOUSE], [Example("car", "መኪና")])
    assert found == (
        "Translate from English into Amharic.\n\n"
        "English: a house\nAmharic:\nቤት\n\n"
        "English: a {car}\nAmharic:\nመኪና\n\n"  # the most similar one is the last; braces in texts stay
        "Use these terms: car = መኪና.\n\n"
        "English: a {source} car\nAmharic:"
    )


def test_no_example_and_no_term_leave_the_text_alone() -> None:
    assert translation_prompt("x", "am", "en", Prompting(instruction="")) == "Amharic: x\nEnglish:"


def test_order_and_fixed_examples() -> None:
    prompting = Prompting(
        instruction="", pair="{source}={target};", order="nearest_first",
        fixed=[
            PromptPair(source="f", target="g", source_language="en", target_language="am"),
            PromptPair(source="s", target="w", source_language="en", target_language="sw"),
        ],
    )  # fmt: skip
    assert translation_prompt("x", "en", "am", prompting, [CAR, HOUSE]) == "f=g;\n\na {car}=መኪና;\n\na house=ቤት;\n\nx="
    assert (
        translation_prompt("x", "am", "en", prompting) == "g=f;\n\nx="
    )  # both directions; other languages don't count


def test_the_places_of_the_examples_translations() -> None:
    prompt, places = marked_prompt("x", "en", "be", Prompting(), [CAR, Example("e", "e\u0301")])
    assert [prompt[first:last] for first, last in places] == ["\u00e9", "መኪና"]  # NFC


def test_examples_that_have_room() -> None:
    examples = [Example("aaaa", "bb"), Example("c" * 100, "d"), Example("e", "f")]

    def kept(tokens: int, count: int = 4) -> int:
        return len(fitting(examples, Prompting(examples=count, tokens=tokens), len))

    assert [kept(13), kept(14), kept(122), kept(123), kept(133)] == [0, 1, 1, 2, 3]  # texts and 8 tokens each
    assert [kept(1000, 2), kept(1000, 0)] == [2, 0]


@pytest.mark.parametrize("pair", ["{target}", "{source}", "{target}: {source}", ""])
def test_a_pair_shows_the_text_before_its_translation(pair: str) -> None:
    with pytest.raises(ValidationError, match=r"a pair shows \{source\}, then \{target\}"):
        Prompting(pair=pair)


def test_the_likelier_text_costs_fewer_bits_a_byte() -> None:
    assert likelier([(10.0, 10), (30.0, 40)]) == 1
    assert likelier([(10.0, 10), (10.0, 10)]) == 0
    assert likelier([(0.0, 0), (1.0, 1)]) == 0
