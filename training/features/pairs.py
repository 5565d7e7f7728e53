"""Features of pictures and texts for the task `align`, computed once: one file for all of a kind.

A file holds a matrix and the SHA-256 of what each of its rows was made from; rows are added as they are needed. It lies
under `<home>/cache/features` by what the features depend on besides: towers, augmentations and view.
"""

import hashlib
import json
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from kauli.models.files import file_lock
from kauli.models.languages import nfc
from kauli.models.media.decode import decode_image
from kauli.models.paths import kauli_home
from kauli.models.progress import bar
from kauli.models.vision.align import AlignTask
from kauli.training.augment.image import ImageAugmentation, at_risk, augmented, view_seed

Row = Mapping[str, Any]
PICTURES_A_TURN, TEXTS_A_TURN = 256, 2048  # between two writes of the file: what a killed run loses at the most


def picture_features(
    task: AlignTask, rows: Sequence[Row], augmentations: Sequence[ImageAugmentation] = (), view: int = 0
) -> Tensor:
    """(N, W) float32: of each row's picture, as it is (view 0) or augmented. Rows have `picture`, `image`, `id`."""
    if view == 0:
        augmentations = ()
    risky = set(at_risk(rows, augmentations)) if augmentations else set()
    held = {row["picture"] for row in rows if row["id"] in risky}
    images = {row["picture"]: row["image"] for row in rows}
    spec = json.dumps([one.model_dump(mode="json") for one in augmentations], sort_keys=True)
    what = hashlib.sha256(f"{task.sha256} {spec} {view}".encode()).hexdigest()[:24]

    def encode(pictures: Sequence[str]) -> Tensor:
        decoded = [decode_image(images[picture]) for picture in pictures]
        if view:
            seeds = [view_seed(picture, view) for picture in pictures]
            decoded = [
                augmented(image, augmentations, seed, keep_direction=picture in held)
                for image, picture, seed in zip(decoded, pictures, seeds, strict=True)
            ]
        return task.image_features(decoded)

    keys = {picture: f"{picture} held" if picture in held else picture for picture in images}
    return _features(f"pictures-{what}", [row["picture"] for row in rows], keys, encode, PICTURES_A_TURN)


def text_features(task: AlignTask, rows: Sequence[Row]) -> Tensor:
    """(N, W) float32: of each row's `text`."""
    texts = [nfc(row["text"]).strip() for row in rows]
    return _features(
        f"texts-{task.sha256[:24]}", texts, {text: text for text in texts}, task.text_features, TEXTS_A_TURN
    )


def _features(
    name: str, wanted: Sequence[str], keys: Mapping[str, str], encode: Callable[[Sequence[str]], Tensor], turn: int
) -> Tensor:
    """A row for each of `wanted`; what the file lacks is encoded, by one of several workers on a machine."""
    path = kauli_home() / "cache" / "features" / f"{name}.safetensors"
    digests = {one: hashlib.sha256(key.encode()).digest() for one, key in keys.items()}
    with file_lock(kauli_home() / "locks" / f"features-{name}.lock"):
        known, matrix = _read(path)
        missing = [one for one in dict.fromkeys(wanted) if digests[one] not in known]
        if missing:
            # Long texts first and last alike in each turn would pad all: turns of like length
            missing.sort(key=lambda one: (len(one.encode()), one))
            with bar(f"Encoding {name.partition('-')[0]}", len(missing)) as advance:
                for start in range(0, len(missing), turn):
                    part = missing[start : start + turn]
                    found = encode(part)
                    matrix = found if matrix is None else torch.cat([matrix, found])
                    known |= {digests[one]: len(known) + place for place, one in enumerate(part)}
                    _write(path, known, matrix)
                    advance(len(part))
    assert matrix is not None
    return matrix[torch.tensor([known[digests[one]] for one in wanted])]


def _read(path: Path) -> tuple[dict[bytes, int], Tensor | None]:
    try:
        content = load_file(path)
    except (FileNotFoundError, SafetensorError):  # a file that is damaged is made anew
        return {}, None
    return {bytes(digest): place for place, digest in enumerate(content["digests"].numpy())}, content["features"]


def _write(path: Path, known: Mapping[bytes, int], matrix: Tensor) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    digests = torch.frombuffer(bytearray(b"".join(known)), dtype=torch.uint8).view(-1, 32)
    partial = path.with_suffix(".partial")
    save_file({"digests": digests.contiguous(), "features": matrix.contiguous()}, partial)
    partial.replace(path)
