"""Audio files: each format is read back, whole and as a stream, with the comment that tells its origin."""

import io

import av
import numpy as np
import pytest
import soundfile

from kauli.models.errors import UsageError
from kauli.models.media.decode import RATE as DECODED
from kauli.models.media.decode import decode_audio
from kauli.models.media.encode import MEDIA_TYPES, RATE, Encoder, check_format, encoded

TONE = (0.3 * np.sin(2 * np.pi * 440 * np.arange(2 * RATE) / RATE)).astype(np.float32)


def pieces(form: str) -> list[bytes]:
    encoder = Encoder(form, "made by Kauli")
    return [*(encoder.write(TONE[begin : begin + 9000]) for begin in range(0, len(TONE), 9000)), encoder.close()]


def samples(data: bytes, form: str) -> np.ndarray:
    if form == "pcm":
        return np.frombuffer(data, "<i2") / 32767
    with av.open(io.BytesIO(data)) as container:
        assert container.streams.audio[0].rate == {"opus": 48_000}.get(form, RATE)
        return np.concatenate([frame.to_ndarray().reshape(-1) for frame in container.decode(audio=0)])


@pytest.mark.parametrize("form", MEDIA_TYPES)
def test_a_file_is_read_back(form: str) -> None:
    for data in (encoded(TONE, form, "made by Kauli"), b"".join(pieces(form))):
        found = samples(data, form)
        seconds = len(found) / {"opus": 48_000}.get(form, RATE)
        assert 1.99 < seconds < 2.12
        spectrum = np.abs(np.fft.rfft(found))
        assert abs(spectrum.argmax() / seconds - 440) < 3
        if form not in ("aac", "pcm"):
            assert b"made by Kauli" in data
        if form not in ("aac", "pcm", "flac"):  # a stream of FLAC does not tell its length, which soundfile wants
            assert soundfile.SoundFile(io.BytesIO(data)).comment == "made by Kauli"
            assert abs(len(decode_audio(data).samples) / DECODED - 2) < 0.1
        if form == "flac":
            assert decode_audio(encoded(TONE, form, "x")).seconds == 2


@pytest.mark.parametrize("form", ["mp3", "aac", "flac", "wav", "pcm"])
def test_a_stream_comes_in_parts(form: str) -> None:
    parts = pieces(form)
    assert all(parts[:4])
    assert len(parts[0]) < len(b"".join(parts)) / 2


def test_loud_samples_are_cut_and_an_empty_file_is_one() -> None:
    loud = encoded(np.float32([3.0, -3.0] * 100), "wav", "x")
    assert soundfile.read(io.BytesIO(loud))[0].max() <= 1
    assert soundfile.info(io.BytesIO(encoded(np.zeros(0, np.float32), "wav", "x"))).frames == 0


def test_unknown_formats_are_named() -> None:
    with pytest.raises(UsageError, match=r"'mp4' is unknown: use mp3, opus, aac, flac, wav, pcm. Did you mean"):
        check_format("mp4")
