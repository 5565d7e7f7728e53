"""Untrusted bytes of a picture or a recording -> pixels or samples, within a budget: for training and for serving.

Whatever is wrong with the bytes is a `MediaError`. Pillow and libsndfile decode; what they would do at any size or any
number of times that a file asks for is checked here before, and for sound while they decode: headers lie.
"""

import base64
import hashlib
import io
import math
import struct
from collections.abc import Iterator
from dataclasses import dataclass
from typing import NoReturn

import numpy as np
import soundfile
from PIL import ExifTags, Image, ImageFile
from PIL.BmpImagePlugin import BmpImageFile
from PIL.GifImagePlugin import GifImageFile
from PIL.JpegImagePlugin import JpegImageFile
from PIL.PngImagePlugin import PngImageFile
from PIL.WebPImagePlugin import WebPImageFile

from kauli.models import audio_format
from kauli.models.errors import UsageError
from kauli.models.resample import Array, resampled

ALLOWED = "PNG, JPEG, WEBP, GIF or BMP"

# The classes themselves, not `Image.open`: no other format is ever tried, a JPEG of several pictures (MPO, as phones
# write it) is its first one, and no DecompressionBombWarning is given (to catch a warning is not safe in threads).
_FORMATS: dict[str, type[ImageFile.ImageFile]] = {
    "PNG": PngImageFile,
    "JPEG": JpegImageFile,
    "WEBP": WebPImageFile,
    "GIF": GifImageFile,
    "BMP": BmpImageFile,
}
_MEDIA_TYPES = {
    "image/png": "PNG",
    "image/apng": "PNG",
    "image/jpeg": "JPEG",
    "image/jpg": "JPEG",  # wrong, and common
    "image/webp": "WEBP",
    "image/gif": "GIF",
    "image/bmp": "BMP",
    "image/x-ms-bmp": "BMP",
}
_MARKS = ((b"\x89PNG\r\n\x1a\n", "PNG"), (b"\xff\xd8\xff", "JPEG"), (b"GIF8", "GIF"), (b"BM", "BMP"))
_REFUSED = (
    (b"%PDF", "a PDF"),
    (b"II*\0", "a TIFF"),
    (b"MM\0*", "a TIFF"),
    (b"\x1f\x8b", "a compressed file (an .svgz?)"),
)
_SVG_STARTS = (b"<?xml", b"<svg", b"<!doctype svg", b"<!--")

_MOST_SCANS = 50  # of a progressive JPEG, which has about ten; each is a pass over all pixels, and may have 30 bytes
_MOST_INFLATED = 100  # text and colour chunks of a PNG, each of which Pillow inflates to up to 1 MiB

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
"""Samples a second of every `Recording`."""
_RATES = (4_000, 192_000)  # that files may have
_MOST_CHANNELS = 8
_BLOCK = 65_536  # values that are decoded at once
_UNKNOWN = 2**63 - 1  # libsndfile's number of frames where a header states none
_SILENT = 1e-4
_FULL_SCALE = 0.9999  # also the highest value of 16 bits; a sine of that height has 0.9 % of its samples above this
_MOST_FULL = 0.01  # share of samples above which a recording is called clipped
_MOST_PEAK = 2.0**31  # integers in a float file; sums of larger values could overflow
_AUDIO_FORMATS = {"wav": "WAV", "flac": "FLAC", "ogg": "Ogg", "opus": "Ogg", "mp3": "MP3"}
_AUDIO_TYPES = ("audio/", "application/ogg", "application/octet-stream", "binary/octet-stream", "video/ogg")


class MediaError(UsageError):
    """What is wrong with the bytes of a picture or a recording, and what to send instead."""


@dataclass(frozen=True)
class ImageLimits:
    """The most that one picture may ask for."""

    max_bytes: int = 8 * 2**20
    """Of the encoded file."""
    max_pixels: int = 16_777_216
    """Width x height; decoding takes up to about 20 bytes for each, 320 MiB in all."""
    max_side: int = 16_384
    """Pixels of the width and of the height."""


def decode_image(data: bytes, limits: ImageLimits = ImageLimits()) -> Image.Image:
    """The picture in mode RGB, upright by its EXIF orientation, what is transparent on white, no metadata.

    16-bit greys and colours keep their high byte. Raises `MediaError` for anything but one whole PNG, JPEG, WEBP, GIF
    or BMP picture of one frame within the limits, which are checked before any pixel is decoded.
    """
    if len(data) > limits.max_bytes:
        _refuse_size(len(data), limits)
    name = _format(data)
    try:
        _check_header(name, data, limits)
        image = _FORMATS[name](io.BytesIO(data))
        _check_size(image.size, limits)
        _check_frames(getattr(image, "n_frames", 1), name)
        image.load()
        return _flattened(image, _turn(image))
    except MediaError:
        raise
    except Exception as error:  # Pillow raises nearly anything for a broken file
        reason = str(error) or type(error).__name__
        raise MediaError(f"the {name} picture is broken or cut off ({reason}): send the whole file again.") from error


def read_data_uri(uri: str, limits: ImageLimits = ImageLimits()) -> bytes:
    """The bytes in `data:image/png;base64,...`, a format that `decode_image` reads and that the URI says it is.

    Raises `MediaError`; for a remote address too, since nothing is ever fetched.
    """
    header, comma, _ = uri[:256].partition(",")
    kind, *marks = header.lower().split(";")
    scheme, colon, media_type = kind.partition(":")
    if scheme != "data" or not colon:
        raise MediaError(
            f"remote pictures are not fetched: send a data: URI (data:image/png;base64,...), not '{_short(uri)}'."
        )
    if not comma or not marks or marks[-1].strip() != "base64":
        raise MediaError(f"the data: URI must begin like 'data:image/png;base64,', not like '{_short(uri)}'.")
    if media_type == "image/svg+xml":
        raise MediaError(_refusal("an SVG drawing"))
    if media_type not in _MEDIA_TYPES:
        raise MediaError(f"'{_short(media_type)}' is no media type of a picture: {', '.join(_MEDIA_TYPES)} are read.")
    size = len(uri) - len(header) - 1
    if size > -(-limits.max_bytes // 3) * 4:
        _refuse_size(size * 3 // 4, limits)
    try:
        data = base64.b64decode(uri[len(header) + 1 :], validate=True)
    except ValueError as error:
        raise MediaError(f"the data: URI is not valid base64 ({error}): encode the whole file again.") from error
    name = _format(data)
    if name != _MEDIA_TYPES[media_type]:
        raise MediaError(f"the data: URI says {media_type}, and its bytes are a {name} picture: correct one of them.")
    return data


@dataclass(frozen=True)
class AudioLimits:
    """The most, and the least, that one recording may be."""

    max_bytes: int = 25 * 2**20
    """Of the encoded file."""
    max_seconds: float = 1800.0
    max_samples: int = 200_000_000
    """Decoded values, frames x channels: what decoding takes time for. Memory goes by `max_seconds` alone."""
    min_seconds: float = 0.1


@dataclass(frozen=True)
class Recording:
    """One channel of sound at `RATE`."""

    samples: Array
    """(seconds * RATE,), from -1 to 1."""
    seconds: float
    warnings: tuple[str, ...] = ()
    """A sentence for each thing about the file that its sender should know: clipped, cut off, scaled down."""


def decode_audio(data: bytes, limits: AudioLimits = AudioLimits()) -> Recording:
    """The mean of a recording's channels, resampled to 16 kHz; what is above full scale is scaled down to it.

    Raises `MediaError` for anything but WAV (integers, floats), FLAC, Ogg (Vorbis, Opus) or MP3, for what is broken,
    silent or not finite, and for what is beyond the limits: by the header before anything is decoded, and by what is
    decoded, block by block. A file that is cut off is what is there, with a warning, where its decoder can read it.
    """
    if len(data) > limits.max_bytes:
        _refuse_audio_size(len(data), limits)
    reason = audio_format.why_refused(data)
    if reason:
        raise MediaError(reason)
    name = audio_format.audio_name(data) or ""
    try:
        return _recording(name, data, limits)
    except MediaError:
        raise
    except Exception as error:  # libsndfile's own, and numpy's where a header asks for the impossible
        raise MediaError(audio_format.broken(name)) from error


def read_input_audio(data: str, format: str, limits: AudioLimits = AudioLimits()) -> bytes:
    """The bytes in an `input_audio` part of OpenAI's chat, of the format that it says they are.

    Raises `MediaError`; for an address too, since nothing is ever fetched.
    """
    expected = _AUDIO_FORMATS.get(format.lower())
    if expected is None:
        raise MediaError(f"'{_short(format)}' is no format of input_audio: {', '.join(_AUDIO_FORMATS)} are read.")
    if len(data) > -(-limits.max_bytes // 3) * 4:
        _refuse_audio_size(len(data) * 3 // 4, limits)
    try:
        decoded = base64.b64decode(data, validate=True)
    except ValueError as error:
        raise MediaError(
            f"the data of input_audio must be the base64 of a whole file, no address and no data: URI ('{_short(data)}'"
            f" is not: {error})."
        ) from error
    reason = audio_format.why_refused(decoded)
    if reason:
        raise MediaError(reason)
    name = audio_format.audio_name(decoded)
    if name != expected:
        raise MediaError(f"the input_audio says '{format}', and its bytes are {name}: correct one of them.")
    return decoded


def check_audio_type(content_type: str | None) -> None:
    """Refuse an upload that says it is no sound; none at all, and those that say nothing, go by their bytes."""
    kind = (content_type or "").partition(";")[0].strip().lower()
    if kind and not kind.startswith(_AUDIO_TYPES):
        raise MediaError(
            f"the upload's content type is '{_short(kind)}': send a {audio_format.ALLOWED} file as audio/..., or as "
            "application/octet-stream."
        )


def content_key(data: bytes) -> str:
    """SHA-256 of the bytes, in hex: the key under which what was computed from a picture or a recording is cached."""
    return hashlib.sha256(data).hexdigest()


def _format(data: bytes) -> str:
    """The format by the first bytes, one of `_FORMATS`."""
    if not data:
        raise MediaError(f"the picture is empty: send the bytes of a {ALLOWED} file.")
    for mark, name in _MARKS:
        if data.startswith(mark):
            return name
    if data[:4] == b"RIFF" and data[8:12] == b"WEBP":
        return "WEBP"
    for mark, what in _REFUSED:
        if data.startswith(mark):
            raise MediaError(_refusal(what))
    if data[4:8] == b"ftyp":
        raise MediaError(_refusal("a HEIC, AVIF or video file"))
    # Without byte order marks, and UTF-16 as ASCII.
    start = data[:256].lstrip(b"\xef\xbb\xbf\xff\xfe").replace(b"\0", b"").lstrip().lower()
    if start.startswith(_SVG_STARTS):
        raise MediaError(_refusal("an SVG drawing or other XML"))
    raise MediaError(_refusal(f"no picture that is known here (it begins with {data[:12]!r})"))


def _refusal(what: str) -> str:
    return f"this is {what}, which is not read: send a {ALLOWED} picture, for instance exported as PNG."


def _check_header(name: str, data: bytes, limits: ImageLimits) -> None:
    """Refuse what Pillow would take memory or time for before it says how large the picture is."""
    if name == "JPEG" and data.count(b"\xff\xda") > _MOST_SCANS:
        raise MediaError(f"the JPEG has more than {_MOST_SCANS} scans: save it again as a baseline JPEG.")
    if name == "PNG" and sum(data.count(chunk) for chunk in (b"zTXt", b"iTXt", b"iCCP")) > _MOST_INFLATED:
        raise MediaError(f"the PNG has more than {_MOST_INFLATED} text chunks: save it again without metadata.")
    if name == "WEBP":
        _check_size(_webp_size(data), limits)
    if name == "GIF":
        corners = _gif_corners(data)
        _check_size((max(x for x, _ in corners), max(y for _, y in corners)), limits)
        _check_frames(len(corners) - 1, name)


def _refuse_size(count: int, limits: ImageLimits) -> NoReturn:
    raise MediaError(f"the picture has {count:,} bytes, {limits.max_bytes:,} are allowed: scale it down.")


def _check_size(size: tuple[int, int], limits: ImageLimits) -> None:
    width, height = size
    if max(size) > limits.max_side:
        raise MediaError(f"the picture is {width} x {height}, {limits.max_side} a side are allowed: scale it down.")
    if width * height > limits.max_pixels:
        raise MediaError(f"the picture is {width} x {height}, {limits.max_pixels} pixels are allowed: scale it down.")


def _check_frames(count: int, name: str) -> None:
    if count > 1:
        raise MediaError(f"the {name} picture is animated ({count} frames), only still ones are read: send one frame.")


def _webp_size(data: bytes) -> tuple[int, int]:
    """Of the canvas, by the container's first chunk (RFC 9649, 2.5 to 2.7)."""
    chunk = data[12:16]
    if chunk == b"VP8X":
        return int.from_bytes(data[24:27], "little") + 1, int.from_bytes(data[27:30], "little") + 1
    if chunk == b"VP8L":
        bits = struct.unpack_from("<I", data, 21)[0]
        return (bits & 0x3FFF) + 1, (bits >> 14 & 0x3FFF) + 1
    width, height = struct.unpack_from("<HH", data, 26)
    return width & 0x3FFF, height & 0x3FFF


def _gif_corners(data: bytes) -> list[tuple[int, int]]:
    """The lower right corner (x, y) of the screen, then of each frame: frames may lie outside the screen."""
    width, height = struct.unpack_from("<HH", data, 6)
    corners = [(int(width), int(height))]
    at = 13 + _gif_palette(data[10])
    while at < len(data) and data[at] != 0x3B:
        if data[at] == 0x2C:
            left, top, width, height, flags = struct.unpack_from("<HHHHB", data, at + 1)
            corners.append((left + width, top + height))
            at += 11 + _gif_palette(flags)
        elif data[at] == 0x21:
            at += 2
        else:
            at += 1  # Pillow passes over it, too
            continue
        while data[at]:
            at += 1 + data[at]
        at += 1
    return corners


def _gif_palette(flags: int) -> int:
    """Bytes of the palette that the flags of a screen or a frame announce."""
    return 3 << (flags & 7) + 1 if flags & 0x80 else 0


def _turn(image: Image.Image) -> Image.Transpose | None:
    """What makes a loaded picture upright; None where it is, or where its EXIF can't be read, as viewers do."""
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


def _short(text: str) -> str:
    return text if len(text) <= 40 else f"{text[:40]}..."


def media_type(image: bytes) -> str:
    """The media type of an encoded picture that a browser shows."""
    kinds = {b"\x89PNG": "png", b"\xff\xd8": "jpeg", b"GIF8": "gif", b"RIFF": "webp", b"BM": "bmp"}
    return "image/" + next((kind for start, kind in kinds.items() if image.startswith(start)), "png")


class _Stream(soundfile.SoundFile):  # type: ignore[misc]
    """Read from the start to the end. A file that says it can seek is sought after each block, to where it stands:
    slow, not exact for MP3, and an error where a file is damaged."""

    def seekable(self) -> bool:
        return False


@dataclass
class _Heard:
    """What was decoded so far, before any change of it."""

    frames: int = 0
    peak: float = 0.0
    full: int = 0
    """Values at full scale."""


def _refuse_audio_size(count: int, limits: AudioLimits) -> NoReturn:
    raise MediaError(
        f"the recording has {count:,} bytes, {limits.max_bytes:,} are allowed: send it compressed (ffmpeg -i IN -ac 1 "
        f"-ar {RATE} OUT.flac) or in parts."
    )


def _recording(name: str, data: bytes, limits: AudioLimits) -> Recording:
    stream = io.BytesIO(data)
    heard = _Heard()
    with _Stream(stream) as file:
        if (file.format, file.subtype) not in audio_format.DECODED:
            raise MediaError(audio_format.refusal(f"a {file.format} file that holds {file.subtype_info}"))
        rate, channels, stated = file.samplerate, file.channels, file.frames
        _check_rate(rate, channels)
        if stated != _UNKNOWN:
            _check_length(stated, rate, channels, limits)
        samples = resampled(_mono(file, heard, limits), rate, RATE)
    seconds = heard.frames / rate
    if seconds < limits.min_seconds:
        raise MediaError(f"the recording lasts {seconds:.3g} s, it takes {limits.min_seconds:g} s: send a longer one.")
    if heard.peak < _SILENT:
        raise MediaError(f"the recording is silent (its peak is {heard.peak:.1g} of full scale): check the microphone.")
    if max(samples.max(), -samples.min()) < _SILENT:
        raise MediaError("nothing of the recording is left in one channel below 8 kHz: send one of its channels.")
    if heard.peak > 1:
        samples /= heard.peak
    np.clip(samples, -1, 1, out=samples)  # the filter of the resampling may go beyond full scale
    missing = 0.0 if stated == _UNKNOWN else stated / rate - seconds
    unread = 1 - stream.tell() / len(data)
    warnings = [*_end_warnings(name, data, seconds, missing, unread), *_level_warnings(name, heard, channels)]
    return Recording(samples, len(samples) / RATE, tuple(warnings))


def _end_warnings(name: str, data: bytes, seconds: float, missing: float, unread: float) -> Iterator[str]:
    """Where less was read than there should be: seconds that are missing, a share of the bytes that is unread."""
    if audio_format.ends_early(name, data) or missing > max(0.1, seconds / 100):  # what an MP3 states is rounded
        yield f"the {name} file is cut off: only its first {seconds:.1f} s were there to be read."
    if name == "Ogg" and (streams := audio_format.ogg_streams(data)) > 1:
        yield f"the Ogg file has {streams} streams, only the first was read: send the others by themselves."
    if name in ("FLAC", "MP3") and unread > 0.1:  # an MP3 of variable bit rate that doesn't say so, for instance
        yield f"{unread:.0%} of the {name} file lies behind its stated end: if words are missing, send a WAV."


def _level_warnings(name: str, heard: _Heard, channels: int) -> Iterator[str]:
    full = heard.full / (heard.frames * channels)
    if name == "WAV" and heard.peak > 1:  # in other formats it is the codec's own ringing
        yield f"the samples reach {heard.peak:.4g}, beyond full scale, and were scaled down to 1."
    elif full > _MOST_FULL:
        yield f"{full:.0%} of the samples are at full scale (clipped): record at a lower level."


def _check_rate(rate: int, channels: int) -> None:
    least, most = _RATES
    if not least <= rate <= most:
        raise MediaError(f"the recording has {rate:,} samples a second, {least:,} to {most:,} are read: resample it.")
    if not 1 <= channels <= _MOST_CHANNELS:
        raise MediaError(
            f"the recording has {channels} channels, at most {_MOST_CHANNELS} are read: mix it down to one."
        )


def _check_length(frames: int, rate: int, channels: int, limits: AudioLimits) -> None:
    if frames > limits.max_seconds * rate:
        raise MediaError(
            f"the recording lasts at least {frames / rate:,.1f} s, {limits.max_seconds:,.1f} are allowed: send parts."
        )
    if frames * channels > limits.max_samples:
        raise MediaError(
            f"the recording has at least {frames * channels:,} samples in {channels} channels, {limits.max_samples:,} "
            f"are allowed: mix it down to one channel at {RATE} Hz."
        )


def _mono(file: _Stream, heard: _Heard, limits: AudioLimits) -> Iterator[Array]:
    """The mean of the channels, block by block, until the end or a limit."""
    while True:
        block = file.read(_BLOCK // file.channels, dtype="float32", always_2d=True)
        if not len(block):
            return
        heights = np.abs(block)
        peak = float(heights.max())
        if not math.isfinite(peak):
            at = (heard.frames + int(np.isfinite(block).all(axis=1).argmin())) / file.samplerate
            raise MediaError(
                f"the recording has samples that are not finite (NaN or infinite), at {at:.2f} s: mend it."
            )
        if peak > _MOST_PEAK:
            raise MediaError(f"the recording has samples of {peak:.1e}: scale them to full scale, which is 1.")
        heard.peak = max(heard.peak, peak)
        heard.full += int((heights >= _FULL_SCALE).sum())
        heard.frames += len(block)
        _check_length(heard.frames, file.samplerate, file.channels, limits)
        yield block.mean(axis=1)
