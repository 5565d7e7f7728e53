"""The few-shot experiment: the same draws for all kinds, known scores, intervals over draws."""

import math

import pytest
import torch
from few_shot import (
    FewShotScore,
    few_shot_scores,
    macro_f1,
    report,
)
from sklearn.metrics import f1_score
from torch import Tensor
from torch.nn import functional

from kauli.models.errors import UsageError
from kauli.models.vision.heads import HEAD_KINDS, Head
from kauli.training.evaluation.head import draw_shots

CENTRES = functional.normalize(torch.randn(4, 12, generator=torch.Generator().manual_seed(3)), dim=-1)


def cloud(rows: int, seed: int) -> tuple[Tensor, Tensor]:
    labels = torch.arange(4).repeat(rows)
    noise = torch.randn(len(labels), 12, generator=torch.Generator().manual_seed(seed))
    return functional.normalize(CENTRES[labels] + 0.35 * noise, dim=-1), labels


@pytest.fixture(scope="module")
def data() -> tuple[dict[str, Tensor], dict[str, Tensor], Tensor]:
    train, test = cloud(20, 0), cloud(15, 1)
    text = CENTRES + 0.3 * torch.randn(4, 12, generator=torch.Generator().manual_seed(2))
    return {"train": train[0], "test": test[0]}, {"train": train[1], "test": test[1]}, text


def test_macro_f1_weighs_classes_alike() -> None:
    head = Head.fit("prototype", torch.eye(2), torch.tensor([0, 1]), ("a", "b"))
    features = torch.tensor([[1.0, 0.0], [1.0, 0.0], [1.0, 0.0], [1.0, 0.0], [0.0, 1.0]])
    labels = torch.tensor([0, 0, 0, 1, 1])
    # a: precision 3/4, recall 1, F1 6/7; b: precision 1, recall 1/2, F1 2/3
    assert macro_f1(head, features, labels) == pytest.approx((6 / 7 + 2 / 3) / 2)
    table = report(head, features, labels)
    assert "macro avg" in table
    assert ["b", "1.000", "0.500", "0.667", "2"] in [line.split() for line in table.splitlines()]


def test_draws_are_nested_and_balanced() -> None:
    labels = cloud(10, 0)[1]
    few, many = draw_shots(labels, 4, 2, seed=1), draw_shots(labels, 4, 5, seed=1)
    assert set(few.tolist()) < set(many.tolist())
    assert labels[many].bincount().tolist() == [5, 5, 5, 5]
    assert len(set(many.tolist())) == 20
    assert set(draw_shots(labels, 4, 2, seed=2).tolist()) != set(few.tolist())
    with pytest.raises(UsageError, match="class 0 has 10 rows to draw from, not 11"):
        draw_shots(labels, 4, 11, seed=0)


def test_every_kind_is_scored_on_the_same_draws(data: tuple[dict[str, Tensor], dict[str, Tensor], Tensor]) -> None:
    features, labels, text = data
    scores = few_shot_scores(features, labels, text, shots=(1, 8), seeds=3, scale=20.0)
    assert [(score.kind, score.shots, len(score.values)) for score in scores] == [
        ("zero_shot", 0, 1),
        *((kind, shots, 3) for kind in HEAD_KINDS[1:] for shots in (1, 8)),
    ]
    by_key = {(score.kind, score.shots): score for score in scores}
    # by hand: the second draw of 8, class means, nearest one
    rows = draw_shots(labels["train"], 4, 8, seed=1)
    means = torch.stack([features["train"][rows][labels["train"][rows] == label].mean(0) for label in range(4)])
    guesses = torch.cdist(features["test"], means).argmin(dim=-1)
    assert by_key["prototype", 8].values[1] == pytest.approx(f1_score(labels["test"], guesses, average="macro"))
    for kind in HEAD_KINDS[1:]:
        assert by_key[kind, 8].mean > 0.6
    assert by_key["prototype", 8].mean > by_key["prototype", 1].mean
    assert few_shot_scores(features, labels, text, shots=(1, 8), seeds=3, scale=20.0) == scores


def test_the_interval_is_over_the_draws() -> None:
    score = FewShotScore("tip", 4, (0.4, 0.5, 0.6, 0.5))
    low, high = score.interval
    assert score.mean == pytest.approx(0.5)
    assert 0.4 <= low < 0.5 < high <= 0.6
    assert FewShotScore("tip", 4, (0.5, 0.5)).interval == (0.5, 0.5)
    assert all(math.isnan(end) for end in FewShotScore("zero_shot", 0, (0.5,)).interval)


def test_a_class_that_test_lacks_is_refused(data: tuple[dict[str, Tensor], dict[str, Tensor], Tensor]) -> None:
    features, labels, text = data
    kept = labels["test"] != 2
    with pytest.raises(UsageError, match=r"test has no rows of classes \[2\]"):
        few_shot_scores(
            features | {"test": features["test"][kept]}, labels | {"test": labels["test"][kept]}, text, seeds=1
        )
