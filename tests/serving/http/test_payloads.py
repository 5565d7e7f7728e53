"""What requests carry becomes the bytes of the image or the audio clip that it claims to be, or one clear refusal."""

import base64
import io

import numpy as np
import pytest
import soundfile
from PIL import Image

from kauli.models.errors import MediaError
from kauli.models.media.decode import AudioLimits, ImageLimits
from kauli.serving.http.payloads import is_data_uri, read_data_uri, read_input_audio


def picture(name: str = "PNG") -> bytes:
    buffer = io.BytesIO()
    Image.effect_noise((40, 30), 80).convert("RGB").save(buffer, name)
    return buffer.getvalue()


def recording(kind: str = "WAV", codec: str = "PCM_16") -> bytes:
    buffer = io.BytesIO()
    soundfile.write(buffer, 0.5 * np.sin(np.arange(16_000) / 6), 16_000, codec, format=kind)
    return buffer.getvalue()


def uri_refusal(uri: str, limits: ImageLimits | None = None) -> str:
    with pytest.raises(MediaError) as caught:
        read_data_uri(uri, limits or ImageLimits())
    return str(caught.value)


def test_a_picture_comes_through_a_data_uri() -> None:
    data = picture()
    text = base64.b64encode(data).decode()
    assert read_data_uri(f"data:image/png;base64,{text}") == data
    assert read_data_uri(f"DATA:Image/PNG;name=a.png;Base64,{text}") == data
    jpeg = picture("JPEG")
    assert read_data_uri(f"data:image/jpg;base64,{base64.b64encode(jpeg).decode()}") == jpeg


@pytest.mark.parametrize(
    "uri",
    [
        "https://example.org/cow.png",
        "HTTP://example.org/cow.png",
        "ftp://example.org/cow.png",
        "file:///etc/passwd",
        "/etc/passwd",
        "",
        "data",
    ],
)
def test_nothing_is_fetched(uri: str) -> None:
    message = uri_refusal(uri)
    assert "remote images are not fetched: send a data: URI" in message
    assert uri in message


@pytest.mark.parametrize(
    ("uri", "reason"),
    [
        ("data:image/png,AAAA", "must begin like 'data:image/png;base64,'"),
        ("data:image/png;base64", "must begin like"),
        ("data:image/png;base64;charset=utf-8,AAAA", "must begin like"),
        ("data:;base64,AAAA", "a file of an unknown type"),
        ("data:image/svg+xml;base64,AAAA", "an SVG drawing"),
        ("data:image/png;base64,AA\nAA", "not valid base64"),
        ("data:image/png;base64,AAAAA", "not valid base64"),
        ("data:image/png;base64,AA-_", "not valid base64"),
        ("data:image/png;base64,ÄÄÄÄ", "not valid base64"),
        ("data:image/png;base64,", "the image is empty"),
        ("data:image/png;base64,PHN2Zy8+", "an SVG drawing"),
    ],
)
def test_what_is_wrong_with_a_data_uri_is_said(uri: str, reason: str) -> None:
    assert reason in uri_refusal(uri)


@pytest.mark.parametrize(
    "kind", ["image/png", "image/heic", "application/octet-stream", "text/plain;charset=utf-8", ""]
)
def test_the_bytes_say_what_a_picture_is(kind: str) -> None:
    data = picture("JPEG")
    uri = f"data:{kind};base64,{base64.b64encode(data).decode()}"
    assert is_data_uri(uri)
    assert read_data_uri(uri) == data


def test_a_text_is_no_data_uri() -> None:
    for text in ("data: a word;base64 another", "data:image/png,AAAA", "my data:image/png;base64,AAAA", ""):
        assert not is_data_uri(text)


def test_the_size_of_a_data_uri_is_checked_before_it_is_decoded() -> None:
    limits = ImageLimits(max_bytes=30)
    assert "30 are allowed" in uri_refusal("data:image/png;base64," + "!" * 41, limits)
    assert "not valid base64" in uri_refusal("data:image/png;base64," + "!" * 40, limits)


def test_input_audio_comes_through_as_its_bytes() -> None:
    for kind, codec in (("WAV", "PCM_16"), ("MP3", "MPEG_LAYER_III"), ("FLAC", "PCM_16"), ("OGG", "OPUS")):
        data = recording(kind, codec)
        assert read_input_audio(base64.b64encode(data).decode()) == data


def test_input_audio_that_is_none_is_refused() -> None:
    wav = base64.b64encode(recording()).decode()
    for data, reason in (
        (f"data:audio/wav;base64,{wav}", "not an address or a data: URI ('data:audio/wav;base64,"),
        ("https://example.org/a.wav", "not an address or a data: URI ('https://example.org/a.wav'"),
        (wav[:-1], "must be the base64 of a whole file"),
        ("", "the audio is empty"),
        (base64.b64encode(b"%PDF-1.7").decode(), "a PDF"),
    ):
        with pytest.raises(MediaError) as caught:
            read_input_audio(data)
        assert reason in str(caught.value)
    with pytest.raises(MediaError, match="30,000 bytes, 1,000 are allowed"):
        read_input_audio("A" * 40_000, AudioLimits(max_bytes=1000))
