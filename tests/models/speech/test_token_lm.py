"""Language models of tokens: the formula by hand, what sums to one, what is pruned, what is refused."""

import math
from pathlib import Path

import numpy as np
import pytest

from kauli.models.errors import KauliError
from kauli.models.speech.token_lm import TokenModel, fit, read

END = 3
TEXTS = [[0, 1, 0], [0, 1, 1], [1, 0, 2, 0, 1], [0, 1]]


def model(order: int = 3, texts: list[list[int]] = TEXTS, limit: int = 1000) -> TokenModel:
    return fit(texts, vocabulary=4, end=END, order=order, language="be", tokenizer="ab" * 32, limit=limit)


def probability(lm: TokenModel, tokens: list[int], following: int) -> float:
    return math.exp(lm.log_probs(np.array([lm.history(tokens)]), np.array([[following]]))[0, 0])


def test_the_formula_by_hand() -> None:
    lm = model(2, [[0, 1], [0, 0]])
    # Tokens before: of 0 the start and 0, of 1 one, of the end 1 and 0; counted once 1, twice 2: D = 1 / 5.
    unseen = 0.2 * 3 / 5 / 4
    zero, one = 1.8 / 5 + unseen, 0.8 / 5 + unseen
    # Pairs: start 0 twice; 0 1, 1 end, 0 0, 0 end once each: D = 4 / 6; after 0 there are three, once each.
    discount = 4 / 6
    assert probability(lm, [0], 1) == pytest.approx((1 - discount) / 3 + discount * one, rel=1e-5)
    assert probability(lm, [0], 2) == pytest.approx(discount * unseen, rel=1e-5)
    assert probability(lm, [], 0) == pytest.approx((2 - discount) / 2 + discount / 2 * zero, rel=1e-5)
    assert probability(lm, [2], 0) == pytest.approx(zero, rel=1e-5)


@pytest.mark.parametrize("order", [1, 2, 3, 5])
@pytest.mark.parametrize("limit", [0, 7, 1000])
def test_what_follows_any_history_sums_to_one(order: int, limit: int) -> None:
    lm = model(order, limit=limit)
    assert sum(map(len, lm.keys)) <= limit
    for tokens in ([], [0], [0, 1], [1, 0, 2], [2, 2, 2, 2, 2]):
        assert sum(probability(lm, tokens, token) for token in range(4)) == pytest.approx(1, abs=1e-5)


def test_a_batch_scores_as_each_alone() -> None:
    lm = model()
    histories = [[], [0], [0, 1], [2, 1, 0]]
    together = lm.log_probs(np.array([lm.history(one) for one in histories]), np.tile(np.arange(4), (4, 1)))
    alone = [[math.log(probability(lm, one, token)) for token in range(4)] for one in histories]
    assert together == pytest.approx(np.array(alone), rel=1e-5)


def test_a_file_comes_back_and_foreign_ones_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "lm.safetensors"
    model().save(path)
    assert probability(read(path, "ab" * 32, "be"), [0], 1) == probability(model(), [0], 1)
    with pytest.raises(KauliError, match="of the tokenizer abababababab, and the base has cdcdcdcdcdcd"):
        read(path, "cd" * 32, "be")
    with pytest.raises(KauliError, match="of the language 'be', not of 'ky'"):
        read(path, "ab" * 32, "ky")
    path.write_bytes(b"nothing")
    with pytest.raises(KauliError, match="is no language model"):
        read(path, "ab" * 32, "be")
