"""Which symbol each frame of speech belongs to, and how likely the frames are: monotonic alignment search.

Kim et al. 2020, arXiv 2005.11129, section 3.2; as VITS uses it (Kim et al. 2021, arXiv 2106.06103, section 2.2).

Shape letters: S symbols, F frames, W width of a frame.
"""

import math
from typing import Any

import numpy as np
import torch
from torch import Tensor

_HALF_LOG_TAU = 0.5 * math.log(2 * math.pi)


def best_path(likelihoods: Any) -> Any:
    """(S, F) log likelihoods -> (F,) the symbol of each frame, on the likeliest path.

    A path begins at the first symbol, ends at the last, and stays or moves one on: so it needs F >= S.
    Raises ValueError for fewer frames than symbols.
    """
    symbols, frames = likelihoods.shape
    if frames < symbols:
        raise ValueError(f"{frames} frames are too few for {symbols} symbols")
    best = np.full(symbols, -np.inf)
    best[0] = likelihoods[0, 0]
    moved = np.zeros((frames, symbols), bool)
    for frame in range(1, frames):
        before = np.concatenate([[-np.inf], best[:-1]])
        moved[frame] = before > best
        best = np.where(moved[frame], before, best) + likelihoods[:, frame]
    path = np.empty(frames, np.int64)
    symbol = symbols - 1
    for frame in range(frames - 1, -1, -1):
        path[frame] = symbol
        symbol -= int(moved[frame, symbol])
    return path


def likelihoods(means: Tensor, logs: Tensor, frames: Tensor) -> Tensor:
    """(S, F): the log likelihood of each frame (W, F) by each symbol's normal distribution, means and logs (S, W)."""
    precisions = torch.exp(-2 * logs)
    constant = -(logs + _HALF_LOG_TAU).sum(1) - 0.5 * (means.square() * precisions).sum(1)
    found: Tensor = constant[:, None] + (means * precisions) @ frames - 0.5 * precisions @ frames.square()
    return found


def aligned(means: Tensor, logs: Tensor, frames: Tensor) -> tuple[Tensor, Tensor]:
    """Frames (W, F) aligned to symbols: what each frame costs in nats, (F,), and each symbol's frames, (S,).

    The gradient flows through the costs alone.
    """
    with torch.no_grad():
        path = torch.from_numpy(best_path(likelihoods(means, logs, frames).float().cpu().numpy())).to(frames.device)
    chosen, spread = means[path].T, logs[path].T
    costs = spread + _HALF_LOG_TAU + 0.5 * ((frames - chosen) * torch.exp(-spread)).square()
    return costs.sum(0), torch.bincount(path, minlength=len(means)).to(means)
