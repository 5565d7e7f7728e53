"""Retrieval: ranks and rates worked out by hand."""

import numpy as np
import pytest
import torch

from kauli.training.evaluation.retrieval import retrieval, retrieval_ranks
from kauli.training.evaluation.scorers import FINISH, RANKS


def test_a_rank_counts_the_other_groups_that_score_higher() -> None:
    similarity = torch.tensor([[0.9, 0.5, 0.1], [0.8, 0.2, 0.3], [0.3, 0.2, 0.1]])
    # a finds its own first; b's own 0.2 is below a's 0.8 and c's 0.3; c's own 0.1 is the lowest of all
    assert retrieval_ranks(similarity, ["a", "b", "c"], ["a", "b", "c"]).tolist() == [1, 3, 3]


def test_a_group_with_several_candidates_counts_once_and_its_best_stands_for_it() -> None:
    similarity = torch.tensor([[0.5, 0.7, 0.8, 0.9, 0.6]])
    # own group b: best 0.7; group a has two above it, which are one; c is below
    assert retrieval_ranks(similarity, ["b"], ["b", "b", "a", "a", "c"]).tolist() == [2]
    assert retrieval_ranks(torch.tensor([[0.1, 0.95, 0.8, 0.9, 0.6]]), ["b"], ["b", "b", "a", "a", "c"]).tolist() == [1]


def test_embeddings_that_are_all_alike_rank_last() -> None:
    assert retrieval_ranks(torch.zeros(2, 4), ["a", "d"], ["a", "b", "c", "d"]).tolist() == [4, 4]


def test_rates_by_language_in_both_directions() -> None:
    rows = [
        {"image_key": "p1", "text": "x", "group": "g1", "language": "sw"},
        {"image_key": "p2", "text": "y", "group": "g2", "language": "sw"},
        {"image_key": "p3", "text": "y", "group": "g2", "language": "sw"},  # a second image, the same caption
        {"image_key": "p1", "text": "z", "group": "g1", "language": "am"},
    ]
    images = torch.tensor([[1.0, 0.0], [0.8, 0.6], [0.0, 1.0], [1.0, 0.0]])
    texts = torch.tensor([[1.0, 0.0], [0.0, 1.0], [0.0, 1.0], [1.0, 0.0]])
    found = retrieval(rows, images, texts)
    # three images ask, p2 (0.8 to x, 0.6 to y) in vain; two texts ask, both find
    assert found["sw"]["i2t_r1"].value() == pytest.approx(2 / 3)
    assert found["sw"]["i2t_r5"].value() == 1.0
    assert found["sw"]["t2i_r1"].value() == 1.0
    assert found["sw"]["t2i_r1"].sums.tolist() == [[1.0, 1.0], [1.0, 1.0]]
    assert found["sw"]["median_rank"].value() == 1.0
    assert found["am"]["i2t_r1"].groups == ("g1",)


def test_the_median_rank_is_the_least_that_half_of_the_queries_reach() -> None:
    finish = FINISH["median_rank"]
    sums = np.zeros((2, RANKS))
    sums[0, [0, 4, 9]] = 1  # ranks 1, 5, 10
    assert finish(sums)[0] == 5.0
    assert np.isnan(finish(sums)[1])
    sums[0, RANKS - 1] = 5
    assert finish(sums)[0] == RANKS
