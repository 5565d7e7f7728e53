"""Sound from one sample rate to another, block by block: what is held is a block, whatever is read."""

import math
from collections.abc import Iterable
from fractions import Fraction

import numpy as np
import numpy.typing as npt

Array = npt.NDArray[np.float32]

_MOST_STEPS = 640  # of a ratio of rates: 11,025 / 16,000 is 441 / 640


def resampled(blocks: Iterable[Array], rate: int, target: int) -> Array:
    """One array of the blocks (n,) at `target` Hz, as torchaudio's resampling of the whole would be, rounded up.

    torchaudio's filter is a table as large as both rates without their common factor. The ratio of rates that have
    hardly any is rounded to one of numbers up to 640: at a target of 16 kHz the pitch and the length change by less
    than 0.1 %, and for all the usual rates not at all.
    """
    ratio = Fraction(rate, target).limit_denominator(_MOST_STEPS * target // max(rate, target))
    step, made = ratio.numerator, ratio.denominator  # `step` samples become `made`
    if step == made:
        return np.concatenate([np.empty(0, np.float32), *blocks])
    import torch  # here: readers of images alone need not wait for it
    from torchaudio.transforms import Resample

    resample = Resample(step, made)
    around = step * math.ceil(7 * max(step, made) / made / step)  # whole steps, and at least what the filter reaches
    skipped = around * made // step
    held = np.zeros(around, np.float32)
    pieces = []
    for block in blocks:
        held = np.concatenate([held, block])
        done = (len(held) - 2 * around) // step * step
        if done > 0:
            result = resample(torch.from_numpy(held[: done + 2 * around])).numpy()
            pieces.append(result[skipped : skipped + done * made // step].copy())  # no view: it would keep the rest
            held = held[done:]
    pieces.append(resample(torch.from_numpy(held)).numpy()[skipped:])
    return np.concatenate(pieces)
