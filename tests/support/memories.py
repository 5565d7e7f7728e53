"""Embeddings without a model, for tests of memories."""

from collections.abc import Sequence
from zlib import crc32

import numpy as np
import pytest

from kauli.models.bases.find import known_bases


class LetterEmbedder:
    """Embeds a text by the pairs of letters in it: like letters, like vectors."""

    sha256 = "e" * 64
    dim = 32

    def embed(self, texts: Sequence[str]) -> np.ndarray:
        """(N, dim) float32, of length 1."""
        found = np.full((len(texts), self.dim), 0.01, dtype=np.float32)
        for row, text in enumerate(texts):
            for at in range(len(text) - 1):
                found[row, crc32(text[at : at + 2].encode()) % self.dim] += 1
        return found / np.linalg.norm(found, axis=1, keepdims=True)


def small_embedder(patch: pytest.MonkeyPatch) -> None:
    """The base that embeds for memories has random weights from now on."""
    from kauli.models.text.embedder import DEFAULT

    debug = known_bases()["debug-clip"]
    changes = {"source": "debug", "shape": debug.shape, "towers": None, "notices": ()}
    patch.setitem(known_bases(), DEFAULT, known_bases()[DEFAULT].model_copy(update=changes))
