"""Monotonic alignment search against all paths, and its costs against torch's normal distribution."""

from itertools import combinations

import numpy as np
import pytest
import torch

from kauli.models.speech.alignment import aligned, best_path, likelihoods


def every_path(symbols: int, frames: int) -> list[list[int]]:
    """All ways from the first symbol to the last that never go back or leave one out."""
    return [
        [sum(frame >= place for place in places) for frame in range(frames)]
        for places in combinations(range(1, frames), symbols - 1)
    ]


@pytest.mark.parametrize(("symbols", "frames"), [(1, 1), (1, 4), (3, 3), (3, 7), (5, 8)])
def test_the_path_is_the_likeliest_of_all(symbols: int, frames: int) -> None:
    draw = np.random.default_rng(symbols * 10 + frames)
    for _ in range(20):
        values = draw.standard_normal((symbols, frames))
        found = best_path(values)
        scores = [values[path, range(frames)].sum() for path in every_path(symbols, frames)]
        assert values[found, range(frames)].sum() == pytest.approx(max(scores))
        assert found.tolist() in every_path(symbols, frames)


def test_fewer_frames_than_symbols_have_no_path() -> None:
    with pytest.raises(ValueError, match="2 frames are too few for 3 symbols"):
        best_path(np.zeros((3, 2)))


def test_likelihoods_are_those_of_normal_distributions() -> None:
    torch.manual_seed(0)
    means, logs, frames = torch.randn(4, 6), 0.3 * torch.randn(4, 6), torch.randn(6, 9)
    normal = torch.distributions.Normal(means[:, :, None], logs.exp()[:, :, None])
    torch.testing.assert_close(likelihoods(means, logs, frames), normal.log_prob(frames[None]).sum(1))


def test_frames_of_known_symbols_are_found_with_their_costs() -> None:
    torch.manual_seed(1)
    means, durations = 5 * torch.randn(4, 6), torch.tensor([2.0, 1.0, 3.0, 2.0])
    frames = torch.repeat_interleave(means, durations.long(), dim=0).T.requires_grad_()
    logs = torch.full((4, 6), -1.0, requires_grad=True)
    costs, found = aligned(means, logs, frames)
    assert found.tolist() == durations.tolist()
    wanted = -torch.distributions.Normal(0.0, logs.detach()[0].exp()).log_prob(torch.zeros(6)).sum()
    torch.testing.assert_close(costs, wanted.expand(8))
    costs.sum().backward()
    assert logs.grad is not None
    torch.testing.assert_close(logs.grad.sum(1), durations * 6)  # each frame: 1 a number, the error being zero
