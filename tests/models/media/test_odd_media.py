"""Odd recordings and pictures as people have them: decoded right, or refused in one sentence with what to do."""

import base64
import io
import struct
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import soundfile
from PIL import Image

from kauli.deploy.cli.media import read_audio, read_each, read_image
from kauli.models.errors import MediaError, UsageError
from kauli.models.media.decode import decode_audio, decode_image

DRAW = np.random.default_rng(0)
TONE = (0.3 * np.sin(np.arange(16_000) * 0.1) + DRAW.normal(0, 0.01, 16_000)).astype(np.float32)
ACROSS, DOWN = np.meshgrid(np.arange(60) * 4, np.arange(40) * 6)
SEEN = Image.fromarray(np.stack([ACROSS, DOWN, 255 - ACROSS], 2).astype(np.uint8))
LFS = b"version https://git-lfs.github.com/spec/v1\noid sha256:4d7a\nsize 12345\n"


def sound(samples: Any = TONE, kind: str = "WAV", rate: int = 16_000, **options: Any) -> bytes:
    out = io.BytesIO()
    soundfile.write(out, samples, rate, format=kind, **options)
    return out.getvalue()


def picture(image: Image.Image = SEEN, kind: str = "PNG", **options: Any) -> bytes:
    out = io.BytesIO()
    image.save(out, kind, **options)
    return out.getvalue()


WAV, PNG, JPEG = sound(), picture(), picture(kind="JPEG")
INFO = b"LIST" + struct.pack("<I", 26) + b"INFOISFT" + struct.pack("<I", 14) + b"Lavf58.29.100\0"


@pytest.mark.parametrize(
    ("content", "warning"),
    [
        pytest.param(WAV[:36] + INFO + WAV[36:], "", id="ffmpeg's LIST before the samples"),
        pytest.param(WAV[:12] + b"bext" + struct.pack("<I", 602) + bytes(602) + WAV[12:], "", id="broadcast header"),
        pytest.param(WAV[:12] + b"JUNK" + struct.pack("<I", 28) + bytes(28) + WAV[12:], "", id="JUNK first"),
        pytest.param(WAV + b"TAG" + bytes(125), "", id="WAV with an ID3v1 tag"),
        pytest.param(sound(kind="FLAC") + b"TAG" + bytes(125), "", id="FLAC with an ID3v1 tag"),
        pytest.param(b"ID3\4\0\0\0\0\0\x0a" + bytes(10) + sound(kind="FLAC"), "", id="FLAC behind an ID3v2 tag"),
        pytest.param(sound(np.stack([TONE, np.zeros_like(TONE)], 1)), "", id="one side of stereo"),
        pytest.param(sound(TONE * 0.01 + 0.9), "", id="offset"),
        pytest.param(sound(np.clip(TONE * 20, -1, 1)), "clipped", id="clipped"),
        pytest.param(sound(TONE * 1000, subtype="FLOAT"), "beyond full scale", id="floats in units of 16 bits"),
        pytest.param(WAV[:-1], "truncated", id="a byte short"),
        pytest.param(sound(np.tile(TONE, 3)[::3], "OGG", 16_000, subtype="OPUS"), "", id="Opus called .oga"),
    ],
)  # fmt: skip
def test_a_second_of_sound_is_read_whole(content: bytes, warning: str) -> None:
    found = decode_audio(content)
    assert found.seconds == pytest.approx(1.0, abs=0.001)
    assert 0.005 < float(np.abs(found.samples).mean()) <= 1
    assert (not found.warnings) if not warning else warning in " ".join(found.warnings)


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (LFS, "this is a pointer of Git LFS (git lfs pull fetches the file), which is not read"),
        (
            b'{"error": "not found"}',
            'unknown type (its first bytes are b\'{"error": "n\'), which is not read',
        ),
        (b'<?xml version="1.0"?><ANNOTATION_DOCUMENT/>', "an HTML page or other XML"),
        ((TONE * 32767).astype("<i2").tobytes(), "a file of an unknown type"),
        (b"\x1f\x8b\x08" + bytes(60), "a gzip archive"),
        (PNG, "this is an image, which is not read"),
        (b"", "the audio is empty"),
        (WAV[:44], "the WAV audio is broken or truncated: send the whole file again"),
        (WAV[:24] + bytes(4) + WAV[28:], "broken"),
        (WAV[:22] + bytes(2) + WAV[24:], "broken"),
        (sound(rate=1_000), "the audio has 1,000 samples a second, 4,000 to 192,000 are read: resample it"),
        (sound(np.tile(TONE[:, None], (1, 12))), "12 channels, at most 8 are read: mix it down"),
        (sound(TONE[:800]), "the audio lasts 0.05 s, at least 0.1 s are needed"),
        (sound(np.zeros(9_000)), "the audio is silent"),
    ],
)
def test_what_is_no_recording_is_said(content: bytes, words: str) -> None:
    with pytest.raises(MediaError) as caught:
        decode_audio(content)
    assert words in str(caught.value)


@pytest.mark.parametrize(
    "content",
    [
        pytest.param(picture(SEEN.convert("RGBA")), id="RGBA"),
        pytest.param(JPEG, id="JPEG"),
        pytest.param(picture(kind="JPEG", exif=b"Exif\0\0garbage"), id="broken EXIF"),
        pytest.param(picture(kind="JPEG", icc_profile=b"garbage"), id="broken profile"),
        pytest.param(picture(kind="JPEG", dpi=(0, 0), progressive=True), id="progressive"),
        pytest.param(picture(SEEN.convert("CMYK"), "JPEG"), id="CMYK"),
        pytest.param(picture(kind="MPO", save_all=True, append_images=[SEEN]), id="two pictures of a phone"),
        pytest.param(JPEG + JPEG, id="a thumbnail behind"),
        pytest.param(PNG + b"\0" * 50, id="bytes behind"),
        pytest.param(picture(SEEN.convert("P"), "GIF"), id="GIF"),
        pytest.param(picture(kind="BMP")[:22] + struct.pack("<i", -40) + picture(kind="BMP")[26:], id="upside down"),
    ],
)
def test_a_picture_is_read_as_it_is_seen(content: bytes) -> None:
    found = decode_image(content)
    assert (found.mode, found.size) == ("RGB", (60, 40))
    seen = SEEN.transpose(Image.Transpose.FLIP_TOP_BOTTOM) if content[:2] == b"BM" else SEEN
    difference = np.asarray(found, np.float32) - np.asarray(seen, np.float32)
    assert float(np.abs(difference).mean()) < 20  # upside down it is 40; JPEG and palettes lose some


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (LFS, "a pointer of Git LFS (git lfs pull fetches the file), which is not supported"),
        (b"<!DOCTYPE html><html>", "this is a web page, which is not supported: send a PNG, JPEG"),
        (b"\xef\xbb\xbf\n<html>", "a web page"),
        (b'<svg xmlns="http://www.w3.org/2000/svg"/>', "an SVG drawing"),
        (b"\0\0\0\x18ftypheic" + bytes(90), "a HEIC, AVIF or video file"),
        (picture(kind="TIFF"), "a TIFF"),
        (picture(SEEN.resize((32, 32)), "ICO"), "a file of an unknown type (its first bytes are"),
        (picture(kind="JPEG2000"), "unknown type"),
        (base64.b64encode(PNG), "unknown type (its first bytes are b'iVBORw0KGgoA')"),
        (PNG.replace(b"\r\n", b"\n"), "unknown type"),
        (JPEG[:400], "the JPEG image is broken or truncated (Truncated File Read): send the whole file again"),
        (PNG[:-30], "the PNG image is broken or truncated"),
        (PNG[:50] + bytes([PNG[50] ^ 1]) + PNG[51:], "the PNG image is broken"),
        (picture(save_all=True, append_images=[SEEN.rotate(90)]), "the PNG image is animated (2 frames)"),
        (b"", "the image is empty"),
        (b"BM" + struct.pack("<IHHIIiiHHIIiiII", 54, 0, 0, 54, 40, 0, 0, 1, 24, *(0,) * 6), "the BMP image is broken"),
    ],
)
def test_what_is_no_picture_is_said(content: bytes, words: str) -> None:
    with pytest.raises(MediaError) as caught:
        decode_image(content)
    assert words in str(caught.value)


def test_files_are_named_and_none_costs_the_others_theirs(tmp_path: Path) -> None:
    good, odd = tmp_path / "запіс (1).WAV", tmp_path / "page.wav"
    good.write_bytes(WAV)
    odd.write_text("<html>")
    found, errors = read_each([good, odd, tmp_path, tmp_path / "none.wav", good])
    assert list(found) == [good]
    assert [errors[path].split(": ")[1] for path in (odd, tmp_path, tmp_path / "none.wav")] == [
        "this is an HTML page or other XML, which is not read", "Is a directory. Give the path of a WAV, FLAC, Ogg or "
        "MP3 file.", "No such file or directory. Give the path of a WAV, FLAC, Ogg or MP3 file.",
    ]  # fmt: skip
    for read, path in ((read_image, good), (read_audio, odd), (read_image, tmp_path)):
        with pytest.raises(UsageError, match=path.name.replace("(", r"\(").replace(")", r"\)")):
            read(path)
