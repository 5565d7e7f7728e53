"""Guards that are measured on the answers of the training."""

import pytest

from kauli.models.adapters.card import Decoding
from kauli.models.engine.packing import Document
from kauli.training.tasks.decoding import decoding_of


def document(prompt: int, answer: list[int]) -> Document:
    return Document([*range(1000, 1000 + prompt), *answer], prompt, True, ())


def test_limits_follow_the_longest_answers_and_the_prompts() -> None:
    found = decoding_of([document(10, list(range(5 + at % 4))) for at in range(200)])
    assert found == Decoding(no_repeat=3, max_tokens=12, tokens_per_prompt_token=1.2)
    assert [found.limit(prompt, 128) for prompt in (1, 10, 1000)] == [16, 16, 16]
    wide = Decoding(max_tokens=300, tokens_per_prompt_token=2.0)
    assert [wide.limit(prompt, 128) for prompt in (1, 10, 100, 1000)] == [16, 20, 200, 300]
    assert Decoding().limit(10, 128) == 128


def test_one_answer_in_a_hundred_may_be_longer() -> None:
    documents = [document(10, list(range(10))) for _ in range(199)]
    assert decoding_of([*documents, document(10, list(range(300)))]).max_tokens == 15


@pytest.mark.parametrize(
    ("answer", "run"),
    [
        (list(range(40)), 3),
        ([1, 2, 3, 4, 9, 1, 2, 3, 4, 8, *range(20, 50)], 5),  # a run of four occurs twice, none of five
        ([1, 2] * 40, 0),  # answers that repeat themselves at any length are let
    ],
)
def test_the_shortest_run_that_hardly_repeats_is_forbidden(answer: list[int], run: int) -> None:
    assert decoding_of([document(5, answer)] * 10).no_repeat == run


def test_texts_without_a_prompt_set_no_length() -> None:
    found = decoding_of([document(1, list(range(400)))] * 3)
    assert (found.max_tokens, found.limit(50, 128)) == (None, 128)
