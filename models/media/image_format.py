"""What kind of image the bytes of a file are, and what their header asks for: nothing is decoded.

The allow-list is here. Sources: RFC 9649 (WEBP), GIF89a (CompuServe 1990), ITU-T T.81 (JPEG's scans), PNG 1.2.
"""

import struct

from kauli.models.errors import MediaError

ALLOWED = "PNG, JPEG, WEBP, GIF or BMP"

_MARKS = ((b"\x89PNG\r\n\x1a\n", "PNG"), (b"\xff\xd8\xff", "JPEG"), (b"GIF8", "GIF"), (b"BM", "BMP"))
_REFUSED = (
    (b"%PDF", "a PDF"),
    (b"version https://git-lfs", "a pointer of Git LFS (git lfs pull fetches the file)"),
    (b"II*\0", "a TIFF"),
    (b"MM\0*", "a TIFF"),
    (b"\x1f\x8b", "a compressed file (an .svgz?)"),
)
_SVG_STARTS = (b"<?xml", b"<svg", b"<!doctype svg", b"<!--")

_MOST_SCANS = 50  # of a progressive JPEG, which has about ten; each is a pass over all pixels, and may have 30 bytes
_MOST_INFLATED = 100  # text and colour chunks of a PNG, each of which Pillow inflates to up to 1 MiB


def image_name(data: bytes) -> str | None:
    """PNG, JPEG, WEBP, GIF or BMP by the first bytes; None for anything else."""
    if data[:4] == b"RIFF" and data[8:12] == b"WEBP":
        return "WEBP"
    return next((name for mark, name in _MARKS if data.startswith(mark)), None)


def media_type(data: bytes) -> str:
    """The media type under which a browser shows an encoded image."""
    return f"image/{(image_name(data) or 'PNG').lower()}"


def image_format_of(data: bytes) -> str:
    """PNG, JPEG, WEBP, GIF or BMP by the first bytes; for anything else `MediaError`: what it is, and what to send."""
    if not data:
        raise MediaError(f"the image is empty: send the bytes of a {ALLOWED} file.")
    name = image_name(data)
    if name is None:
        raise refusal(_what_instead(data))
    return name


def refusal(what: str) -> MediaError:
    """Of a file that is `what`."""
    return MediaError(f"this is {what}, which is not supported: send a {ALLOWED} image, for instance exported as PNG.")


def check_endless(name: str, data: bytes) -> None:
    """Raise `MediaError` for a file that Pillow would read without end before it says how large the image is."""
    if name == "JPEG" and data.count(b"\xff\xda") > _MOST_SCANS:
        raise MediaError(f"the JPEG has more than {_MOST_SCANS} scans: save it again as a baseline JPEG.")
    if name == "PNG" and sum(data.count(chunk) for chunk in (b"zTXt", b"iTXt", b"iCCP")) > _MOST_INFLATED:
        raise MediaError(f"the PNG has more than {_MOST_INFLATED} text chunks: save it again without metadata.")


def stated(name: str, data: bytes) -> tuple[tuple[int, int], int] | None:
    """(width, height) and the number of frames of a WEBP or a GIF, for which Pillow takes memory before it tells them.

    None for the other formats. Of a WEBP the frames are not counted. Raises struct.error or IndexError where the file
    is cut off.
    """
    if name == "WEBP":
        return _webp_size(data), 1
    if name == "GIF":
        corners = _gif_corners(data)
        return (max(x for x, _ in corners), max(y for _, y in corners)), len(corners) - 1
    return None


def _what_instead(data: bytes) -> str:
    """What a file is that has no `image_name`, in words."""
    for mark, what in _REFUSED:
        if data.startswith(mark):
            return what
    if data[4:8] == b"ftyp":
        return "a HEIC, AVIF or video file"
    # Without byte order marks, and UTF-16 as ASCII.
    start = data[:256].lstrip(b"\xef\xbb\xbf\xff\xfe").replace(b"\0", b"").lstrip().lower()
    if start.startswith((b"<!doctype html", b"<html")):
        return "a web page"
    if start.startswith(_SVG_STARTS):
        return "an SVG drawing or other XML"
    return f"a file of an unknown type (its first bytes are {data[:12]!r})"


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
    """The lower right corner (x, y) of the screen, then of each frame: frames may be outside the screen."""
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
