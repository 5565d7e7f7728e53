"""Media of rows that stay in the data set until they are asked for."""

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from kauli.models.media.decode import decode_audio

if TYPE_CHECKING:
    from kauli.training.data.dataset import Dataset


@dataclass(frozen=True)
class StoredImage:
    """An encoded image; `bytes` of it reads the file."""

    dataset: "Dataset"
    id: str

    def __bytes__(self) -> bytes:
        return _read(self.dataset, "image", self.id)


@dataclass(frozen=True)
class StoredAudio:
    """Samples (n,) float32 at 16 kHz: `len` is known, `np.asarray` reads and decodes the clip anew each time."""

    dataset: "Dataset"
    id: str
    length: int

    def __len__(self) -> int:
        return self.length

    def __array__(self, dtype: Any = None, copy: bool | None = None) -> Any:
        return decode_audio(_read(self.dataset, "audio", self.id)).samples.astype(dtype or np.float32, copy=False)


def _read(dataset: "Dataset", column: str, row: str) -> bytes:
    found = dataset.read_media(column, [row])[row]
    assert found is not None, "a row is chosen by its media"
    return found
