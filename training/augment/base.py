"""What all augmentation kinds share: their YAML keys, the seed of a view, and torch's random state set for it."""

import hashlib
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from pydantic import Field

from kauli.models.frozen import FrozenModel


class Augmentation(FrozenModel):
    """A random change of an image, an audio clip or a text. A subclass has a field `kind: Literal[NAME]`."""

    kind: Any  # a Literal in each subclass
    p: float = Field(default=0.5, ge=0, le=1)
    """The probability that a view is changed in this way."""


def view_seed(key: str, view: int) -> int:
    """The seed of view number `view` of an example, from 0 to 2^63 - 1; `key` is its id or the hash of its bytes."""
    digest = hashlib.sha256(f"{key} {view}".encode()).digest()
    return int.from_bytes(digest[:8], "big") >> 1


@contextmanager
def random_state(seed: int) -> Iterator[None]:
    """Torch's random state is set, and restored afterwards: not for several threads at once."""
    import torch  # text augmentation needs none

    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(seed)  # torch.manual_seed would change the GPUs' states as well
        yield
