"""Untrusted bytes of an image or audio -> pixels or samples, within a budget: for training and for serving.

Whatever is wrong with the bytes is a `MediaError`. Pillow and libsndfile decode; what they would do at any size or any
number of times that a file asks for is checked here before, and for audio while they decode: headers may be wrong.
"""

import hashlib
import io
import math
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import soundfile
from PIL import ExifTags, Image, ImageFile
from PIL.BmpImagePlugin import BmpImageFile
from PIL.GifImagePlugin import GifImageFile
from PIL.JpegImagePlugin import JpegImageFile
from PIL.PngImagePlugin import PngImageFile
from PIL.WebPImagePlugin import WebPImageFile

from kauli.models.errors import MediaError
from kauli.models.media import audio_format, foreign_audio, image_format
from kauli.models.media.foreign_audio import ForeignStream
from kauli.models.media.resample import Array, resampled

# The classes themselves, not `Image.open`: no other format is ever tried, a JPEG of several images (MPO, as phones
# write it) is its first one, and no DecompressionBombWarning is given (to catch a warning is not safe in threads).
_FORMATS: dict[str, type[ImageFile.ImageFile]] = {
    "PNG": PngImageFile,
    "JPEG": JpegImageFile,
    "WEBP": WebPImageFile,
    "GIF": GifImageFile,
    "BMP": BmpImageFile,
}
_UPRIGHT: dict[object, Image.Transpose] = {  # EXIF 2.32, 4.6.4 A: what undoes each orientation
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}

RATE = 16_000
"""Samples a second of every `DecodedAudio`."""
_RATES = (4_000, 192_000)  # that files may have
_MOST_CHANNELS = 8
_BLOCK = 65_536  # values that are decoded at once
_UNKNOWN = 2**63 - 1  # libsndfile's number of frames where a header states none
_SILENT = 1e-4
_FULL_SCALE = 0.9999  # also the highest value of 16 bits; a sine of that height has 0.9 % of its samples above this
_MOST_FULL = 0.01  # share of samples above which audio is called clipped
_MOST_PEAK = 2.0**31  # integers in a float file; sums of larger values could overflow


def content_key(data: bytes) -> str:
    """SHA-256 of the bytes, in hex: the key under which what was computed from an image or audio is cached."""
    return hashlib.sha256(data).hexdigest()


@dataclass(frozen=True)
class ImageLimits:
    """The most that one image may ask for."""

    max_bytes: int = 8 * 2**20
    """Of the encoded file."""
    max_pixels: int = 16_777_216
    """Width x height; decoding takes up to about 20 bytes for each, 320 MiB in all."""
    max_side: int = 16_384
    """Pixels of the width and of the height."""

    def check_bytes(self, count: int) -> None:
        """Raise `MediaError` for an encoded file of too many bytes."""
        if count > self.max_bytes:
            raise MediaError(f"the image has {count:,} bytes, {self.max_bytes:,} are allowed: scale it down.")

    def check_size(self, width: int, height: int) -> None:
        """Raise `MediaError` for too many pixels."""
        if max(width, height) > self.max_side:
            raise MediaError(f"the image is {width} x {height}, {self.max_side} a side are allowed: scale it down.")
        if width * height > self.max_pixels:
            raise MediaError(f"the image is {width} x {height}, {self.max_pixels} pixels are allowed: scale it down.")


def decode_image(data: bytes, limits: ImageLimits = ImageLimits()) -> Image.Image:
    """The image in mode RGB, upright by its EXIF orientation, what is transparent on white, no metadata.

    16-bit greys and colours keep their high byte. Raises `MediaError` for anything but one whole PNG, JPEG, WEBP, GIF
    or BMP image of one frame within the limits, which are checked before any pixel is decoded.
    """
    limits.check_bytes(len(data))
    name = image_format.image_format_of(data)
    try:
        _check_header(name, data, limits)
        image = _FORMATS[name](io.BytesIO(data))
        limits.check_size(*image.size)
        _check_frames(getattr(image, "n_frames", 1), name)
        image.load()
        return _flattened(image, _turn(image))
    except MediaError:
        raise
    except Exception as error:  # Pillow raises nearly anything for a broken file
        reason = str(error) or type(error).__name__
        raise MediaError(f"the {name} image is broken or truncated ({reason}): send the whole file again.") from error


def _check_header(name: str, data: bytes, limits: ImageLimits) -> None:
    """Refuse what Pillow would take memory or time for before it says how large the image is."""
    image_format.check_endless(name, data)
    stated = image_format.stated(name, data)
    if stated is not None:
        size, frames = stated
        limits.check_size(*size)
        _check_frames(frames, name)


def _check_frames(count: int, name: str) -> None:
    if count > 1:
        raise MediaError(f"the {name} image is animated ({count} frames), only still ones are read: send one frame.")


def _turn(image: Image.Image) -> Image.Transpose | None:
    """What makes a loaded image upright; None where it is, or where its EXIF can't be read, as viewers do."""
    try:
        return _UPRIGHT.get(image.getexif().get(ExifTags.Base.Orientation))
    except Exception:  # as many kinds as for pixels, and no reason to refuse them
        return None


def _flattened(image: Image.Image, turn: Image.Transpose | None) -> Image.Image:
    """Mode RGB on white, turned upright, without metadata that would turn it again."""
    if image.mode.startswith("I"):
        values = np.asarray(image)
        grey = (values >> 8).astype(np.uint8)  # Pillow's own conversion clips to 255
        if isinstance(image.info.get("transparency"), int):
            grey[values == image.info["transparency"]] = 255
        image = Image.fromarray(grey)
    if image.has_transparency_data:
        coloured = image.convert("RGBA")
        image = Image.new("RGB", image.size, "white")
        image.paste(coloured, mask=coloured.getchannel("A"))
    image = image.convert("RGB")
    if turn is not None:
        image = image.transpose(turn)
    image.info.clear()
    return image


@dataclass(frozen=True)
class AudioLimits:
    """The most, and the least, that one audio file may be."""

    max_bytes: int = 25 * 2**20
    """Of the encoded file."""
    max_seconds: float = 1800.0
    max_samples: int = 200_000_000
    """Decoded values, frames x channels: what decoding takes time for. Memory goes by `max_seconds` alone."""
    min_seconds: float = 0.1

    def check_bytes(self, count: int) -> None:
        """Raise `MediaError` for an encoded file of too many bytes."""
        if count > self.max_bytes:
            raise MediaError(
                f"the audio has {count:,} bytes, {self.max_bytes:,} are allowed: send it compressed (ffmpeg -i IN "
                f"-ac 1 -ar {RATE} OUT.flac) or in parts."
            )

    def check_length(self, frames: int, rate: int, channels: int) -> None:
        """Raise `MediaError` for too many seconds or samples."""
        if frames > self.max_seconds * rate:
            raise MediaError(
                f"the audio lasts at least {frames / rate:,.1f} s, {self.max_seconds:,.1f} are allowed: send parts."
            )
        if frames * channels > self.max_samples:
            raise MediaError(
                f"the audio has at least {frames * channels:,} samples in {channels} channels, {self.max_samples:,}"
                f" are allowed: mix it down to one channel at {RATE} Hz."
            )


@dataclass(frozen=True)
class DecodedAudio:
    """One channel of audio at `RATE`."""

    samples: Array
    """(seconds * RATE,), from -1 to 1."""
    seconds: float
    warnings: tuple[str, ...] = ()
    """A sentence for each thing about the file that its sender should know: clipped, cut off, scaled down."""
    rate: int | None = None
    """Samples a second of the file; None where its decoder does not tell."""
    channels: int | None = None
    """Of the file."""


def decode_audio(data: bytes, limits: AudioLimits = AudioLimits()) -> DecodedAudio:
    """The mean of the audio's channels, resampled to 16 kHz; samples above full scale are scaled down.

    Raises `MediaError` for anything but what libsndfile reads (`audio_format.CONTAINERS`) and, with the extra `av`,
    M4A, WebM, AAC or AMR; for what is broken, silent or not finite, and for what is beyond the limits: by the header
    before anything is decoded, and by what is decoded, block by block. A truncated file gives what it holds, with a
    warning, where its decoder can read it.
    """
    limits.check_bytes(len(data))
    name = audio_format.audio_format_of(data)
    if name in audio_format.FOREIGN and not foreign_audio.is_installed():
        raise audio_format.refusal(audio_format.FOREIGN[name], " without the extra av (pip install 'kauli[av]')")
    if name == "WAV":
        data = audio_format.with_sizes(data)
    if name == "FLAC" and data[-128:-125] == b"TAG":  # ID3v1 behind the audio, which libFLAC takes for a broken frame
        data = data[:-128]
    try:
        return _decoded(name, data, limits)
    except MediaError:
        raise
    except Exception as error:  # libsndfile's own, and numpy's where a header asks for the impossible
        raise audio_format.broken(name) from error


class _Source(io.BytesIO):
    """Bytes for libsndfile, which seeks before their start where a header is damaged."""

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        return super().seek(max(offset, 0) if whence == io.SEEK_SET else offset, whence)


class _Stream(soundfile.SoundFile):  # type: ignore[misc]
    """Read from the start to the end. A file that says it can seek is sought after each block, to its own position:
    slow, not exact for MP3, and an error where a file is damaged."""

    def seekable(self) -> bool:
        return False


@dataclass
class _Levels:
    """What was decoded so far, before any change: its length and levels."""

    frames: int = 0
    peak: float = 0.0
    full: int = 0
    """Values at full scale."""


def _decoded(name: str, data: bytes, limits: AudioLimits) -> DecodedAudio:
    source = _Source(data)
    levels = _Levels()
    with _opened(name, data, source, limits) as file:
        rate, channels, stated = file.samplerate, file.channels, file.frames
        _check_rate(rate, channels)
        if stated != _UNKNOWN:
            limits.check_length(stated, rate, channels)
        samples = resampled(_mono(file, levels, limits), rate, RATE)
    seconds = levels.frames / rate
    if seconds < limits.min_seconds:
        if audio_format.ends_early(name, data):
            raise audio_format.broken(name)
        raise MediaError(
            f"the audio lasts {seconds:.3g} s, at least {limits.min_seconds:g} s are needed: send a longer clip."
        )
    if levels.peak < _SILENT:
        raise MediaError(f"the audio is silent (its peak is {levels.peak:.1g} of full scale): check the microphone.")
    if max(samples.max(), -samples.min()) < _SILENT:
        raise MediaError("the mean of the channels is silent below 8 kHz: send one of its channels.")
    if levels.peak > 1:
        samples /= levels.peak
    np.clip(samples, -1, 1, out=samples)  # the filter of the resampling may go beyond full scale
    missing = max(
        0.0 if stated == _UNKNOWN else stated / rate - seconds, seconds * audio_format.missing_share(name, data)
    )
    unread = 0.0 if name in audio_format.FOREIGN else 1 - source.tell() / len(data)
    warnings = [*_end_warnings(name, data, seconds, missing, unread), *_level_warnings(name, levels, channels)]
    return DecodedAudio(samples, len(samples) / RATE, tuple(warnings), rate, channels)


def _opened(name: str, data: bytes, source: io.BytesIO, limits: AudioLimits) -> _Stream | ForeignStream:
    """What decodes the `data`, block by block; `source` has them too."""
    if name in audio_format.FOREIGN:
        return ForeignStream(name, data, limits.max_seconds)
    file = _Stream(source)
    if file.format not in audio_format.CONTAINERS or file.subtype not in audio_format.CODECS:
        raise audio_format.refusal(f"a {file.format} file that holds {file.subtype_info}")
    return file


def _end_warnings(name: str, data: bytes, seconds: float, missing: float, unread: float) -> Iterator[str]:
    """Where less was read than there should be: seconds that are missing, a share of the bytes that is unread."""
    known = missing > max(0.1, seconds / 100)  # what an MP3 states is rounded
    if known or audio_format.ends_early(name, data):
        lost = f"{missing:.1f} s are missing" if known else "it does not state how much is missing"
        yield f"the {name} file is truncated: only its first {seconds:.1f} s could be read, {lost}."
    if name == "Ogg" and (streams := audio_format.ogg_streams(data)) > 1:
        yield f"the Ogg file has {streams} streams, only the first was read: send the others as separate files."
    if name in ("FLAC", "MP3") and unread > 0.1:  # an MP3 of variable bit rate that doesn't say so, for instance
        yield f"{unread:.0%} of the {name} file is behind its stated end: if words are missing, send a WAV."


def _level_warnings(name: str, levels: _Levels, channels: int) -> Iterator[str]:
    full = levels.full / (levels.frames * channels)
    if name == "WAV" and levels.peak > 1:  # in other formats it is the codec's own ringing
        yield f"the samples reach {levels.peak:.4g}, beyond full scale, and were scaled down to 1."
    elif full > _MOST_FULL:
        yield f"{full:.0%} of the samples are at full scale (clipped): record at a lower level."


def _check_rate(rate: int, channels: int) -> None:
    least, most = _RATES
    if not least <= rate <= most:
        raise MediaError(f"the audio has {rate:,} samples a second, {least:,} to {most:,} are read: resample it.")
    if not 1 <= channels <= _MOST_CHANNELS:
        raise MediaError(f"the audio has {channels} channels, at most {_MOST_CHANNELS} are read: mix it down to one.")


def _mono(file: _Stream | ForeignStream, levels: _Levels, limits: AudioLimits) -> Iterator[Array]:
    """The mean of the channels, block by block, until the end or a limit."""
    while True:
        block = file.read(_BLOCK // file.channels, dtype="float32", always_2d=True)
        if not len(block):
            return
        heights = np.abs(block)
        peak = float(heights.max())
        if not math.isfinite(peak):
            at = (levels.frames + int(np.isfinite(block).all(axis=1).argmin())) / file.samplerate
            raise MediaError(f"the audio has samples that are not finite (NaN or infinite), at {at:.2f} s: repair it.")
        if peak > _MOST_PEAK:
            raise MediaError(f"the audio has samples of {peak:.1e}: scale them to full scale, which is 1.")
        levels.peak = max(levels.peak, peak)
        levels.full += int((heights >= _FULL_SCALE).sum())
        levels.frames += len(block)
        limits.check_length(levels.frames, file.samplerate, file.channels)
        yield block.mean(axis=1)
