"""Recordings of phones and browsers, by PyAV: read as others are, bounded, and only their sound."""

import io
import time

import numpy as np
import pytest

from kauli.models.errors import MediaError
from kauli.models.media import foreign_audio
from kauli.models.media.decode import RATE, AudioLimits, decode_audio

av = pytest.importorskip("av")


def made(
    container: str, codec: str, seconds: float = 2.0, rate: int = 48_000, video: bool = False, **options: str
) -> bytes:
    """A sine of 440 Hz, in stereo where there is no video beside it."""
    layout = "mono" if video else "stereo"
    sine = (0.5 * np.sin(2 * np.pi * 440 * np.arange(round(seconds * rate)) / rate)).astype(np.float32)
    buffer = io.BytesIO()
    with av.open(buffer, "w", format=container, options=options) as file:
        picture = file.add_stream("mjpeg", rate=5, width=32, height=32, pix_fmt="yuvj420p") if video else None
        stream = file.add_stream(codec, rate=rate, layout=layout)
        if picture is not None:
            file.mux(picture.encode(av.VideoFrame(32, 32, "yuvj420p")))
            file.mux(picture.encode(None))
        resampler = av.AudioResampler(stream.format.name, layout, rate)
        for start in range(0, len(sine), 1024):
            part = np.stack([sine[start : start + 1024]] * (1 if video else 2))
            frame = av.AudioFrame.from_ndarray(part, "fltp", layout)
            frame.sample_rate, frame.pts = rate, start
            for one in resampler.resample(frame):
                file.mux(stream.encode(one))
        file.mux(stream.encode(None))
    return buffer.getvalue()


@pytest.mark.parametrize(
    ("container", "codec", "rate", "video"),
    [
        ("ipod", "aac", 44_100, False),
        ("webm", "libopus", 48_000, False),
        ("adts", "aac", 48_000, False),
        ("mov", "aac", 48_000, True),
    ],
)
def test_a_recording_of_a_phone_or_browser_is_its_sound(container: str, codec: str, rate: int, video: bool) -> None:
    decoded = decode_audio(made(container, codec, 2.0, rate, video))
    assert abs(decoded.seconds - 2) < 0.06
    assert (decoded.rate, decoded.channels) == (rate, 1 if video else 2)
    assert decoded.warnings == ()
    power = np.abs(np.fft.rfft(decoded.samples))
    assert abs(power.argmax() * RATE / len(decoded.samples) - 440) < 1
    assert abs(np.median(np.abs(decoded.samples)) - 0.5 * np.sin(np.pi / 4)) < 0.03


def test_a_recording_that_is_cut_off_has_a_warning_or_is_refused() -> None:
    webm, m4a = made("webm", "libopus"), made("ipod", "aac")
    decoded = decode_audio(webm[: len(webm) // 2])
    assert 0.8 < decoded.seconds < 1.2
    assert "the WebM file is truncated" in decoded.warnings[0]
    for data in (m4a[: len(m4a) // 2], m4a[:100], webm[:60]):  # the index of an M4A is at its end
        with pytest.raises(MediaError, match="broken or truncated"):
            decode_audio(data)


def test_an_mp3_without_a_stated_length_that_ends_in_a_frame_is_cut_off() -> None:
    whole = made("mp3", "libmp3lame", 3.0, 44_100, write_xing="0", id3v2_version="0")
    for end in (b"", b"TAG" + bytes(125)):
        assert decode_audio(whole + end).warnings == ()
    cut = decode_audio(whole[: len(whole) // 2 + 40])
    assert cut.warnings == (
        f"the MP3 file is truncated: only its first {cut.seconds:.1f} s could be read, "
        "it does not state how much is missing.",
    )


def test_limits_hold_and_a_file_that_asks_for_gigabytes_is_refused() -> None:
    data = made("ipod", "aac")
    with pytest.raises(MediaError, match=r"1\.0 are allowed"):
        decode_audio(data, AudioLimits(max_seconds=1))
    at = data.index(b"stsz")
    counted = data[: at + 8] + (1).to_bytes(4, "big") + (0x0FFFFFFF).to_bytes(4, "big") + data[at + 16 :]
    begin = time.monotonic()
    with pytest.raises(MediaError, match="M4A"):  # an index of 268 million samples
        decode_audio(counted)
    assert time.monotonic() - begin < 30


def test_without_the_extra_the_way_out_is_said(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(foreign_audio, "is_installed", lambda: False)
    with pytest.raises(MediaError) as caught:
        decode_audio(b"\0\0\0\x20ftypM4A \0\0\0\0")
    assert str(caught.value) == (
        "this is an M4A, MP4 or 3GP file, which is not read without the extra av (pip install 'kauli[av]'): send WAV, "
        "FLAC, Ogg or MP3, for instance by: ffmpeg -i IN -ac 1 -ar 16000 OUT.wav"
    )
