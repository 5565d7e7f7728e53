"""The cache of what frozen encoders compute: under `<home>/cache/features`, one folder for each encoder and setting.

A folder holds shards that are only ever added: in each the features of some examples, and the SHA-256 of their keys.
"""

import hashlib
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save
from torch import Tensor

from kauli.models.files import file_lock, write_atomically
from kauli.models.paths import kauli_home
from kauli.models.progress import bar

SHARD = 256
"""Examples that are encoded between two writes: what a killed run loses at most."""


def cached_features(
    what: str, settings: str, keys: Sequence[str], encode: Callable[[list[str]], Iterable[Tensor]], batch: int
) -> dict[str, Tensor]:
    """The features (n, W) of each key, n of its own; what the cache lacks is encoded, in the order of `keys`.

    Args:
        what: is encoded ("images"); for the folder's name and the progress bar.
        settings: all that the features depend on beside the key: the encoder's hash, sizes.
        keys: of the examples, such as a hash of the bytes with the augmentation.
        encode: features of up to `batch` keys, on the CPU.
        batch: the number of keys of one call.

    Of several workers on a machine one encodes. A damaged shard is dropped and made anew.
    """
    name = f"{what}-{hashlib.sha256(settings.encode()).hexdigest()[:24]}"
    folder = kauli_home() / "cache" / "features" / name
    with file_lock(kauli_home() / "locks" / f"features-{name}.lock"):
        found = _read(folder, keys)
        missing = [key for key in dict.fromkeys(keys) if key not in found]
        shard = max(SHARD, batch)
        with bar(f"Encoding {what}", len(missing)) as advance:
            for start in range(0, len(missing), shard):
                part, features = missing[start : start + shard], list[Tensor]()
                for at in range(0, len(part), batch):
                    features += encode(part[at : at + batch])
                    advance(len(part[at : at + batch]))
                _write(folder, part, features)
                found |= dict(zip(part, features, strict=True))
    return found


def _digest(key: str) -> bytes:
    return hashlib.sha256(key.encode()).digest()


def _read(folder: Path, keys: Sequence[str]) -> dict[str, Tensor]:
    wanted = {_digest(key): key for key in keys}
    found = {}
    for path in sorted(folder.glob("*.safetensors")):
        try:
            shard = load_file(path)
        except SafetensorError:
            path.unlink()
            continue
        parts = torch.split(shard["features"], shard["lengths"].tolist())
        for digest, features in zip(shard["digests"].numpy(), parts, strict=True):
            if (key := wanted.get(bytes(digest))) is not None:
                found[key] = features.clone()
    return found


def _write(folder: Path, keys: Sequence[str], features: Sequence[Tensor]) -> None:
    number = max((int(path.stem) for path in folder.glob("*.safetensors")), default=-1) + 1
    digests = torch.frombuffer(bytearray(b"".join(map(_digest, keys))), dtype=torch.uint8).view(-1, 32)
    lengths = torch.tensor([len(one) for one in features])
    content = {"digests": digests, "lengths": lengths, "features": torch.cat(list(features)).contiguous()}
    write_atomically(folder / f"{number:06d}.safetensors", save(content))
