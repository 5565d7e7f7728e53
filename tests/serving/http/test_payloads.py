"""What requests carry becomes the bytes of the image or the audio clip that it claims to be, or one clear refusal."""

import base64
import io

import numpy as np
import pytest
import soundfile
from PIL import Image

from kauli.models.errors import MediaError
from kauli.models.media.decode import AudioLimits, ImageLimits
from kauli.serving.http.payloads import check_audio_type, read_data_uri, read_input_audio


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
        ("data:;base64,AAAA", "not a supported image type"),
        ("data:text/html;base64,AAAA", "'text/html' is not a supported image type"),
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


def test_a_declared_type_that_the_bytes_contradict_is_refused() -> None:
    text = base64.b64encode(picture("GIF")).decode()
    assert "says image/png, and its bytes are a GIF image" in uri_refusal(f"data:image/png;base64,{text}")


def test_the_size_of_a_data_uri_is_checked_before_it_is_decoded() -> None:
    limits = ImageLimits(max_bytes=30)
    assert "30 are allowed" in uri_refusal("data:image/png;base64," + "!" * 41, limits)
    assert "not valid base64" in uri_refusal("data:image/png;base64," + "!" * 40, limits)


def test_input_audio_comes_through_as_the_bytes_of_its_format() -> None:
    for kind, codec, formats in (
        ("WAV", "PCM_16", ("wav", "WAV")),
        ("MP3", "MPEG_LAYER_III", ("mp3",)),
        ("FLAC", "PCM_16", ("flac",)),
        ("OGG", "OPUS", ("ogg", "opus")),
    ):
        data = recording(kind, codec)
        for format in formats:
            assert read_input_audio(base64.b64encode(data).decode(), format) == data


def test_input_audio_that_is_not_what_it_says_is_refused() -> None:
    wav = base64.b64encode(recording()).decode()
    for data, format, reason in (
        (wav, "mp3", "the input_audio says 'mp3', and its bytes are WAV"),
        (wav, "m4a", "'m4a' is not a supported format of input_audio; use one of wav, flac, ogg, opus, mp3"),
        (f"data:audio/wav;base64,{wav}", "wav", "not an address or a data: URI ('data:audio/wav;base64,"),
        ("https://example.org/a.wav", "wav", "not an address or a data: URI ('https://example.org/a.wav'"),
        (wav[:-1], "wav", "must be the base64 of a whole file"),
        ("", "wav", "the audio is empty"),
        (base64.b64encode(b"%PDF-1.7").decode(), "wav", "a PDF"),
    ):
        with pytest.raises(MediaError) as caught:
            read_input_audio(data, format)
        assert reason in str(caught.value)
    with pytest.raises(MediaError, match="30,000 bytes, 1,000 are allowed"):
        read_input_audio("A" * 40_000, "wav", AudioLimits(max_bytes=1000))


def test_an_upload_that_says_it_is_no_sound_is_refused() -> None:
    for kind in (None, "", "audio/wav", "Audio/MPEG; codecs=mp3", "video/ogg", "application/octet-stream"):
        check_audio_type(kind)
    for kind in ("image/png", "text/html; charset=utf-8", "application/json", "video/mp4"):
        with pytest.raises(MediaError) as caught:
            check_audio_type(kind)
        assert f"the upload's content type is '{kind.partition(';')[0]}': send a WAV, FLAC, Ogg or MP3" in str(
            caught.value
        )
