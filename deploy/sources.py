"""Images and audio as a program holds them (a path, bytes, an image of Pillow, samples) as encoded bytes."""

import io
from pathlib import Path

import numpy as np
import soundfile
from numpy.typing import ArrayLike
from PIL import Image, ImageOps

from kauli.deploy.cli.media import read_audio, read_image
from kauli.models.errors import UsageError

ImageSource = str | Path | bytes | Image.Image
"""A file's path, its bytes, or an image of Pillow."""
AudioSource = str | Path | bytes | tuple[ArrayLike, float]
"""A file's path, its bytes, or (samples, rate): numbers (n,) or (n, channels), and how many are a second."""

_MOST_SIDE = 1600  # pixels: such an image as PNG has at most 8 MiB, which is allowed; encoders take fewer than 600
_PNG_MODES = ("1", "L", "LA", "P", "RGB", "RGBA", "I", "I;16")


def image_bytes(source: ImageSource) -> bytes:
    """An image's encoded bytes. Raises UsageError where it can't be read or decoded."""
    if isinstance(source, str | Path):
        return read_image(Path(source))
    if not isinstance(source, Image.Image):
        return read_image(_bytes(source, "an image"))
    shown = ImageOps.exif_transpose(source)
    if shown.mode not in _PNG_MODES:
        shown = shown.convert("RGB")
    shown.thumbnail((_MOST_SIDE, _MOST_SIDE))
    out = io.BytesIO()
    shown.save(out, "PNG")
    return out.getvalue()


def audio_bytes(source: AudioSource) -> bytes:
    """The encoded bytes of audio. Raises UsageError where it can't be read or decoded."""
    if isinstance(source, str | Path):
        return read_audio(Path(source))[0]
    if not isinstance(source, tuple):
        return _bytes(source, "audio")
    samples, rate = np.asarray(source[0]), source[1]
    numbers = samples.ndim in (1, 2) and samples.size and samples.dtype.kind in "iuf"
    if not numbers or not isinstance(rate, int | float | np.number) or not 1 <= rate < 2**31:
        raise UsageError(
            f"audio of {samples.dtype} {samples.shape} at the rate {rate!r}: give (samples, rate), "
            "with numbers (n,) or (n, channels) and the number of samples a second"
        )
    if samples.dtype.kind in "iu":  # from their range to -1..1
        limits = np.iinfo(samples.dtype)
        samples = (2.0 * samples - (limits.min + limits.max + 1)) / (limits.max - limits.min + 1)
    if samples.ndim == 2 and samples.shape[0] < samples.shape[1]:
        samples = samples.T  # channels first, as torchaudio has them
    out = io.BytesIO()
    soundfile.write(out, samples.astype(np.float32), int(rate), format="WAV", subtype="FLOAT")
    return out.getvalue()


def _bytes(source: object, what: str) -> bytes:
    if not isinstance(source, bytes | bytearray | memoryview):
        raise UsageError(f"{what} is a path, bytes or already decoded, not {type(source).__name__}")
    return bytes(source)
