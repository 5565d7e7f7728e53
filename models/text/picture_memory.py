"""Captions of similar pictures, which the prompt of a description shows (SmallCap: Ramos et al. 2023, CVPR).

The pictures that an adapter was trained on are kept in its folder, as the encoder's mean feature of each and its
captions: `pictures.safetensors` and `pictures.json`. An adapter is trained with the captions of each picture's nearest
neighbours, never of its own group; a description is asked for in the same way.
"""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save_file

from kauli.models.errors import KauliError
from kauli.models.files import read_json

FEATURES, CAPTIONS = "pictures.safetensors", "pictures.json"
_HEADER = "kauli_pictures"
_LONGEST = 80  # characters of a caption that are shown
_SHOWN = "Similar pictures: {captions}.\n"

Row = Mapping[str, Any]


def with_captions(prompt: str | None, captions: Sequence[str]) -> str | None:
    """A prompt with the captions before it."""
    if not captions:
        return prompt
    shown = "; ".join(caption.strip().rstrip(".")[:_LONGEST] for caption in captions)
    return _SHOWN.replace("{captions}", shown) + (prompt or "")


@dataclass(frozen=True)
class PictureMemory:
    """Pictures, and their captions by language."""

    features: NDArray[np.float32]
    """(N, W), each of length 1."""
    captions: tuple[Mapping[str, str], ...]
    """Of each picture: language -> a caption."""
    groups: tuple[str, ...]
    """Of each picture the group of its rows; empty strings in an adapter, which needs none."""
    encoder: str
    """The SHA-256 of the encoder."""
    examples: int
    """Captions that a prompt shows."""

    @classmethod
    def of(cls, rows: Sequence[Row], encoder: str, examples: int) -> "PictureMemory":
        """The memory of rows with `media`, `image_key`, `group`, `language` and `text`; of each picture one caption a
        language, the first.
        """
        kept: dict[str, tuple[Row, dict[str, str]]] = {}
        for row in rows:
            _, captions = kept.setdefault(row["image_key"], (row, {}))
            captions.setdefault(row["language"], str(row["text"]).strip())
        features = np.stack([_mean(row) for row, _ in kept.values()])
        groups = tuple(str(row["group"]) for row, _ in kept.values())
        return cls(features, tuple(captions for _, captions in kept.values()), groups, encoder, examples)

    @property
    def languages(self) -> tuple[str, ...]:
        """Those of the captions."""
        return tuple(sorted({tag for captions in self.captions for tag in captions}))

    def near(self, features: Any, language: str | None, without: str | None = None) -> tuple[str, ...]:
        """The captions of the nearest pictures, the nearest last, each once.

        Args:
            features: (F, W) those of a picture, the mean first.
            language: of the captions; None: the only one that there is, else no captions.
            without: a group whose pictures are left out.
        """
        if language is None and len(self.languages) == 1:
            language = self.languages[0]
        vector = np.asarray(features[0], dtype=np.float32)
        order = np.argsort(-(self.features @ (vector / max(float(np.linalg.norm(vector)), 1e-9))), kind="stable")
        found: dict[str, None] = {}
        for place in order.tolist():
            caption = self.captions[place].get(language or "")
            if caption and (without is None or self.groups[place] != without):
                found.setdefault(caption)
            if len(found) == self.examples:
                break
        return tuple(reversed(found))

    def save(self, folder: Path) -> None:
        """Write it into an adapter's folder, without the groups."""
        about = {_HEADER: json.dumps({"encoder": self.encoder, "examples": self.examples})}
        save_file({"features": self.features.astype(np.float16)}, folder / FEATURES, about)
        text = json.dumps(list(map(dict, self.captions)), ensure_ascii=False)
        (folder / CAPTIONS).write_text(text + "\n", encoding="utf-8")


def read_pictures(folder: Path, encoder: str | None) -> PictureMemory | None:
    """The pictures in an adapter's folder; None where it has none.

    Raises KauliError where they are damaged, or features of another encoder than `encoder`, the connector's.
    """
    if not (folder / FEATURES).is_file():
        return None
    try:
        with safe_open(folder / FEATURES, "numpy") as file:
            about = json.loads((file.metadata() or {})[_HEADER])
            features = file.get_tensor("features").astype(np.float32)
        captions = read_json(folder / CAPTIONS)
        sound = (
            features.ndim == 2 and len(features) == len(captions) and bool(np.isfinite(features).all())
            and all(isinstance(text, str) for one in captions for text in one.values())
        )  # fmt: skip
        memory = PictureMemory(
            features, tuple(captions), ("",) * len(captions), str(about["encoder"]), int(about["examples"])
        )
    except (SafetensorError, OSError, KeyError, ValueError, TypeError, AttributeError) as error:
        raise KauliError(f"the pictures in {folder} cannot be read ({error}): train the adapter again.") from error
    if not sound:
        raise KauliError(f"the pictures in {folder} are damaged: features and captions do not fit each other.")
    if memory.encoder != encoder:
        raise KauliError(
            f"the pictures in {folder} are features of the encoder {memory.encoder[:12]}, and its connector takes "
            f"{(encoder or 'none')[:12]}: train the adapter again."
        )
    return memory


def _mean(row: Row) -> NDArray[np.float32]:
    vector = np.asarray(row["media"][0].features[0], dtype=np.float32)
    return vector / max(float(np.linalg.norm(vector)), 1e-9)
