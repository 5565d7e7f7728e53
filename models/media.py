"""Untrusted bytes of a picture -> an upright RGB image, within a budget: the one way for training and serving.

Whatever is wrong with the bytes is a `MediaError`. Pillow decodes; what it would do at any size or any number of times
that a file asks for is checked here before.
"""

import base64
import hashlib
import io
import struct
from dataclasses import dataclass
from typing import NoReturn

import numpy as np
from PIL import ExifTags, Image, ImageFile
from PIL.BmpImagePlugin import BmpImageFile
from PIL.GifImagePlugin import GifImageFile
from PIL.JpegImagePlugin import JpegImageFile
from PIL.PngImagePlugin import PngImageFile
from PIL.WebPImagePlugin import WebPImageFile

from kauli.models.errors import UsageError

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


class MediaError(UsageError):
    """What is wrong with the bytes of a picture, and what to send instead."""


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


def content_key(data: bytes) -> str:
    """SHA-256 of the bytes, in hex: the key under which what was computed from a picture is cached."""
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
