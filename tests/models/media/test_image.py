"""Untrusted bytes become an upright RGB image, or one clear refusal."""

import io
import resource
import struct
import time
import warnings
import zlib
from typing import Any

import pytest
from PIL import Image, ImageFile

from kauli.models.errors import MediaError
from kauli.models.media.decode import ImageLimits, content_key, decode_image

RED, WHITE, BLACK = (255, 0, 0), (255, 255, 255), (0, 0, 0)
LIMITS = ImageLimits()
FORMATS = ["PNG", "JPEG", "WEBP", "GIF", "BMP"]


def encoded(image: Image.Image, name: str = "PNG", **options: Any) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, name, **options)
    return buffer.getvalue()


def noise(width: int = 40, height: int = 30) -> Image.Image:
    return Image.effect_noise((width, height), 80).convert("RGB")


def chunk(kind: bytes, content: bytes) -> bytes:
    return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))


def png(width: int, height: int, depth: int, colour: int, rows: bytes, *extra: bytes) -> bytes:
    """A PNG from its header's numbers, its uncompressed rows and more chunks before them."""
    header = chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, depth, colour, 0, 0, 0))
    return b"\x89PNG\r\n\x1a\n" + header + b"".join(extra) + chunk(b"IDAT", zlib.compress(rows)) + chunk(b"IEND", b"")


def pixels(image: Image.Image) -> list[tuple[int, ...]]:
    assert image.mode == "RGB"
    return [image.getpixel((x, y)) for y in range(image.height) for x in range(image.width)]  # type: ignore[misc]


def with_orientation(orientation: int) -> Image.Exif:
    exif = Image.Exif()
    exif[0x0112] = orientation
    return exif


def refusal(data: bytes, limits: ImageLimits = LIMITS) -> str:
    with pytest.raises(MediaError) as caught:
        decode_image(data, limits)
    return str(caught.value)


@pytest.mark.parametrize("name", FORMATS)
def test_every_allowed_format_becomes_rgb(name: str) -> None:
    options = {"lossless": True} if name == "WEBP" else {}
    image = decode_image(encoded(Image.new("RGB", (3, 2), RED), name, **options))
    assert image.size == (3, 2)
    assert type(image) is Image.Image  # nothing of the file is held open
    assert all(abs(a - b) <= 2 for pixel in pixels(image) for a, b in zip(pixel, RED, strict=True))


def test_16_bit_images_are_scaled_and_not_clipped() -> None:
    grey = png(4, 1, 16, 0, b"\0" + struct.pack(">4H", 0, 0x0100, 0x8000, 0xFFFF))
    assert [pixel[0] for pixel in pixels(decode_image(grey))] == [0, 1, 128, 255]
    colour = png(1, 1, 16, 2, b"\0" + struct.pack(">3H", 0xFFFF, 0x8000, 0x00FF))
    assert pixels(decode_image(colour)) == [(255, 128, 0)]
    keyed = png(2, 1, 16, 0, b"\0" + struct.pack(">2H", 0x1234, 0x1235), chunk(b"tRNS", struct.pack(">H", 0x1234)))
    assert pixels(decode_image(keyed)) == [WHITE, (0x12, 0x12, 0x12)]


def test_1_bit_grey_and_palette_images() -> None:
    assert pixels(decode_image(png(2, 1, 1, 0, b"\0\x80"))) == [WHITE, BLACK]
    assert pixels(decode_image(encoded(Image.new("L", (1, 1), 77)))) == [(77, 77, 77)]
    assert pixels(decode_image(encoded(Image.new("RGB", (1, 1), RED).convert("P")))) == [RED]


def test_what_is_transparent_lies_on_white() -> None:
    image = Image.new("RGBA", (3, 1))
    for x, alpha in enumerate((0, 128, 255)):
        image.putpixel((x, 0), (*RED, alpha))
    for name in ("PNG", "WEBP"):
        options = {"lossless": True, "exact": True} if name == "WEBP" else {}
        assert pixels(decode_image(encoded(image, name, **options))) == [WHITE, (255, 127, 127), RED]
    grey = Image.new("LA", (1, 1), (0, 0))
    assert pixels(decode_image(encoded(grey))) == [WHITE]


def test_palettes_and_colour_keys_with_transparency_lie_on_white() -> None:
    palette = chunk(b"PLTE", bytes([*RED, 0, 0, 255, 0, 255, 0]))
    rows = b"\0\0\1\2"
    for alphas, expected in (
        (b"\0", [WHITE, (0, 0, 255), (0, 255, 0)]),
        (b"\xff\x80\0", [RED, (127, 127, 255), WHITE]),
    ):
        data = png(3, 1, 8, 3, rows, palette, chunk(b"tRNS", alphas))
        assert pixels(decode_image(data)) == expected
    key = chunk(b"tRNS", struct.pack(">3H", *RED))
    assert pixels(decode_image(png(2, 1, 8, 2, b"\0" + bytes([*RED, 254, 0, 0]), key))) == [WHITE, (254, 0, 0)]
    gif = Image.new("P", (2, 1))
    gif.putpalette([*RED, 0, 0, 255])
    gif.putpixel((1, 0), 1)
    assert pixels(decode_image(encoded(gif, "GIF", transparency=0))) == [WHITE, (0, 0, 255)]


def test_cmyk_becomes_rgb() -> None:
    for ink, expected in (((0, 0, 0, 255), BLACK), ((0, 0, 0, 0), WHITE), ((0, 255, 255, 0), RED)):
        data = encoded(Image.new("CMYK", (8, 8), ink), "JPEG", quality=100)
        assert all(abs(a - b) <= 2 for a, b in zip(pixels(decode_image(data))[0], expected, strict=True))


@pytest.mark.parametrize("name", ["PNG", "JPEG", "WEBP"])
@pytest.mark.parametrize("orientation", range(1, 9))
def test_every_exif_orientation_is_undone(name: str, orientation: int) -> None:
    corners = Image.new("RGB", (32, 16), WHITE)
    corners.paste(RED, (0, 0, 8, 8))
    corners.paste((0, 0, 255), (24, 0, 32, 8))
    undo = {
        2: Image.Transpose.FLIP_LEFT_RIGHT,
        3: Image.Transpose.ROTATE_180,
        4: Image.Transpose.FLIP_TOP_BOTTOM,
        5: Image.Transpose.TRANSPOSE,
        6: Image.Transpose.ROTATE_90,
        7: Image.Transpose.TRANSVERSE,
        8: Image.Transpose.ROTATE_270,
    }
    stored = corners.transpose(undo[orientation]) if orientation in undo else corners
    image = decode_image(encoded(stored, name, exif=with_orientation(orientation), quality=95))
    assert image.size == (32, 16)
    assert not image.info  # nobody can turn it a second time
    for place, expected in (((3, 3), RED), ((28, 3), (0, 0, 255)), ((16, 12), WHITE)):
        found = image.getpixel(place)
        assert isinstance(found, tuple)
        assert max(abs(a - b) for a, b in zip(found, expected, strict=True)) < 20


def test_orientation_6_turns_a_wide_image_clockwise() -> None:
    wide = Image.new("RGB", (2, 1), RED)
    wide.putpixel((1, 0), BLACK)
    image = decode_image(encoded(wide, exif=with_orientation(6)))
    assert image.size == (1, 2)
    assert pixels(image) == [RED, BLACK]


@pytest.mark.filterwarnings("ignore:Corrupt EXIF data")
def test_broken_exif_leaves_an_image_as_it_lies() -> None:
    for exif in (b"II*\0\xff\xff\xff\xff", b"MM\0*\0\0\0\x08\xff\xff", b"nonsense", b"", with_orientation(9).tobytes()):
        assert decode_image(encoded(Image.new("RGB", (8, 4)), "JPEG", exif=b"Exif\0\0" + exif)).size == (8, 4)
        data = png(2, 1, 8, 0, b"\0\0\0", chunk(b"eXIf", exif))
        assert decode_image(data).size == (2, 1)


@pytest.mark.filterwarnings("ignore:Tag data larger than file", "ignore:Corrupt EXIF data")
def test_exif_whose_values_claim_the_same_bytes_takes_no_memory() -> None:
    entries = b"".join(struct.pack("<HHII", tag, 7, 50_000, 8) for tag in range(5000))
    exif = b"Exif\0\0II*\0" + struct.pack("<IH", 8, 5000) + entries
    data = encoded(noise(), "JPEG")
    data = data[:2] + b"\xff\xe1" + struct.pack(">H", len(exif) + 2) + exif + data[20:]  # instead of JFIF's resolution
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    assert decode_image(data).size == (40, 30)
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 50_000  # KiB; the values claim 250,000


def test_a_jpeg_of_several_images_is_its_first() -> None:
    data = encoded(Image.new("RGB", (8, 8), RED), "MPO", save_all=True, append_images=[Image.new("RGB", (8, 8))])
    with Image.open(io.BytesIO(data)) as opened:
        assert getattr(opened, "n_frames", 1) == 2
    assert max(abs(a - b) for a, b in zip(pixels(decode_image(data))[0], RED, strict=True)) <= 2


@pytest.mark.parametrize("name", ["PNG", "GIF", "WEBP"])
def test_animated_images_are_refused(name: str) -> None:
    frames = [Image.new("RGB", (8, 8), colour) for colour in (RED, WHITE, BLACK)]
    message = refusal(encoded(frames[0], name, save_all=True, append_images=frames[1:], duration=100))
    assert "animated (3 frames)" in message
    assert "send one frame" in message
    assert decode_image(encoded(frames[0], name, save_all=True)).size == (8, 8)


@pytest.mark.parametrize("name", FORMATS)
def test_truncated_images_are_refused(name: str) -> None:
    data = encoded(noise(), name)
    assert decode_image(data).size == (40, 30)
    for share in (0.05, 0.3, 0.6, 0.9):
        assert "broken or truncated" in refusal(data[: max(12, int(len(data) * share))])
    assert ImageFile.LOAD_TRUNCATED_IMAGES is False


@pytest.mark.parametrize("name", FORMATS)
def test_damaged_images_are_an_image_or_refused(name: str) -> None:
    data = encoded(noise(), name)
    for place in range(0, min(len(data), 400)):
        for byte in (0, 255, data[place] ^ 1):
            try:
                image = decode_image(data[:place] + bytes([byte]) + data[place + 1 :])
            except MediaError:
                continue
            assert image.mode == "RGB"


def bombs() -> dict[str, bytes]:
    """Small files that claim to be 60000 x 60000 (WEBP: 16384 x 16384)."""
    side = struct.pack("<H", 60_000)
    gif, bmp, webp = (encoded(Image.new("RGB", (8, 8)), name) for name in ("GIF", "BMP", "WEBP"))
    jpeg = encoded(Image.new("RGB", (8, 8)), "JPEG")
    at = jpeg.index(b"\xff\xc0") + 5
    canvas = (16_383).to_bytes(3, "little")
    extended = b"VP8X" + struct.pack("<IB3x", 10, 2) + canvas + canvas
    image = gif.index(b",", 13 + (3 << (gif[10] & 7) + 1))
    return {
        "PNG": png(60_000, 60_000, 8, 2, b"\0"),
        "JPEG": jpeg[:at] + struct.pack(">HH", 60_000, 60_000) + jpeg[at + 4 :],
        "GIF": gif[:6] + side + side + gif[10:],
        "GIF frame": gif[: image + 5] + side + side + gif[image + 9 :],
        "BMP": bmp[:18] + struct.pack("<ii", 60_000, 60_000) + bmp[26:],
        "WEBP": webp[:12] + extended + webp[12:],
    }


@pytest.mark.parametrize("name", ["PNG", "JPEG", "GIF", "GIF frame", "BMP", "WEBP"])
def test_a_bomb_is_refused_by_its_header_without_memory_or_warning(name: str) -> None:
    data = bombs()[name]
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    start = time.process_time()
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        message = refusal(data)
        # Over Pillow's own limits, and under ours: its warning and error must not appear.
        refusal(data, ImageLimits(max_pixels=200_000_000, max_side=10**6))
    assert time.process_time() - start < 0.5
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 20_000  # KiB
    assert "are allowed: scale it down" in message
    assert ("16384 x 16384" if name == "WEBP" else "60000 x 60000") in message


def test_limits_on_bytes_pixels_and_sides_are_exact() -> None:
    data = encoded(Image.new("RGB", (20, 10)))
    assert decode_image(data, ImageLimits(len(data), 200, 20)).size == (20, 10)
    assert f"{len(data)} bytes, {len(data) - 1} are allowed" in refusal(data, ImageLimits(max_bytes=len(data) - 1))
    assert "20 x 10, 199 pixels are allowed" in refusal(data, ImageLimits(max_pixels=199))
    assert "20 x 10, 19 a side are allowed" in refusal(data, ImageLimits(max_side=19))


@pytest.mark.parametrize("kind", [b"zTXt", b"iTXt", b"iCCP"])
def test_png_chunks_that_inflate_without_end_are_refused(kind: bytes) -> None:
    prefix = {b"zTXt": b"k\0\0", b"iTXt": b"k\0\1\0\0\0", b"iCCP": b"k\0\0"}[kind]
    huge = chunk(kind, prefix + zlib.compress(bytes(500 * 2**20 // 8), 9))
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    assert "broken or truncated" in refusal(png(1, 1, 8, 0, b"\0\0", huge))
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 20_000  # KiB
    many = chunk(kind, prefix + zlib.compress(bytes(2**19), 9)) * 200
    start = time.process_time()
    assert "more than 100 text chunks" in refusal(png(1, 1, 8, 0, b"\0\0", many))
    assert time.process_time() - start < 0.5
    named = chunk(b"tEXt", b"transparency\0red") + chunk(b"tEXt", b"exif\0II*\0")
    assert decode_image(png(1, 1, 8, 0, b"\0\0", chunk(b"tEXt", b"Title\0A cow"))).size == (1, 1)
    refusal(png(1, 1, 8, 3, b"\0\0", chunk(b"PLTE", b"abc"), named))  # text that poses as a header


def test_a_jpeg_of_endless_scans_is_refused() -> None:
    data = encoded(noise(), "JPEG", progressive=True)
    scan = data.rindex(b"\xff\xda")
    assert "more than 50 scans" in refusal(data[:-2] + data[scan:-2] * 200 + data[-2:])


@pytest.mark.parametrize(
    ("data", "named"),
    [
        (b"", "empty"),
        (b"Habari ya dunia", "Habari ya du"),
        (b"%PDF-1.7\n", "a PDF"),
        (b"II*\0\x08\0\0\0", "a TIFF"),
        (b"\0\0\0\x18ftypheic", "a HEIC"),
        (b"<svg xmlns='http://www.w3.org/2000/svg'/>", "an SVG"),
        (b"\xef\xbb\xbf\n <?xml version='1.0'?><svg/>", "an SVG"),
        ("<?xml version='1.0'?><svg/>".encode("utf-16"), "an SVG"),
        (b"<!DOCTYPE svg PUBLIC>", "an SVG"),
        (b"\x1f\x8b\x08\0", ".svgz"),
        (b"P6 1 1 255 \0\0\0", "a file of an unknown type"),  # Pillow could read it
        (b"\0\0\1\0\1\0", "a file of an unknown type"),
    ],
)
def test_what_is_no_allowed_image_is_named_and_so_is_what_is_allowed(data: bytes, named: str) -> None:
    message = refusal(data)
    assert named in message
    assert "PNG, JPEG, WEBP, GIF or BMP" in message


def test_an_image_has_its_hash_for_a_key() -> None:
    assert content_key(b"abc") == "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad"
