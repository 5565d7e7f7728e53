"""Speech as audio files: whole, or as a stream by one encoder that is kept open."""

import io
import struct
from collections.abc import Mapping
from typing import Any

import numpy as np
import numpy.typing as npt

from kauli.models.errors import UsageError, nearest

RATE = 24_000
"""Samples a second of all that is written: Opus takes no other rate near it."""
MEDIA_TYPES: Mapping[str, str] = {
    "mp3": "audio/mpeg", "opus": "audio/ogg", "aac": "audio/aac", "flac": "audio/flac", "wav": "audio/wav",
    "pcm": "audio/pcm",
}  # fmt: skip
"""Format -> media type."""
SUFFIXES: Mapping[str, str] = {".mp3": "mp3", ".opus": "opus", ".ogg": "opus", ".aac": "aac", ".flac": "flac",
                               ".wav": "wav", ".pcm": "pcm", ".raw": "pcm"}  # fmt: skip
_SNDFILE = {"mp3": ("MP3", "MPEG_LAYER_III"), "opus": ("OGG", "OPUS"), "flac": ("FLAC", "PCM_16")}
# Some 85 kbit/s: libsndfile's own 37 of Opus blur the watermark. Readers take the length of an MP3 stream, whose
# beginning does not tell it, from a constant bit rate.
_QUALITY: Mapping[str, dict[str, Any]] = {
    "mp3": {"bitrate_mode": "CONSTANT", "compression_level": 0.5}, "opus": {"compression_level": 0.7}, "flac": {},
}  # fmt: skip
_UNKNOWN_SIZE = 0xFFFFFFFF

Samples = npt.NDArray[np.float32]


def check_format(form: str) -> None:
    """Raise UsageError for a format that is unknown, or whose encoder is not installed."""
    if form not in MEDIA_TYPES:
        raise UsageError(f"the format '{form}' is unknown: use {', '.join(MEDIA_TYPES)}.{nearest(form, MEDIA_TYPES)}")
    if form == "aac":
        try:
            import av  # noqa: F401
        except ImportError:
            raise UsageError("aac needs the package av: pip install 'kauli[av]', or take mp3 or opus") from None


def encoded(samples: Samples, form: str, comment: str) -> bytes:
    """A whole file of samples (n,) at `RATE`; `comment` is written into it, but for aac and pcm."""
    encoder = Encoder(form, comment, whole=len(samples))
    return encoder.write(samples) + encoder.close()


class Encoder:
    """Writes a stream: each call gives the bytes that are finished."""

    def __init__(self, form: str, comment: str, whole: int | None = None) -> None:
        """`whole`: the number of all samples where it is known; only a WAV file tells it."""
        check_format(form)
        self._form, self._whole = form, whole
        self._buffer = io.BytesIO()
        self._given = 0
        self._file: Any = None
        self._head = _wav_head(comment, whole) if form == "wav" else b""
        if form in _SNDFILE:
            import soundfile

            kind, subtype = _SNDFILE[form]
            self._file = soundfile.SoundFile(self._buffer, "w", RATE, 1, subtype, format=kind, **_QUALITY[form])
            self._file.comment = comment
        elif form == "aac":
            import av

            self._file = av.open(self._buffer, "w", format="adts")
            self._stream = self._file.add_stream("aac", rate=RATE, layout="mono")

    def write(self, samples: Samples) -> bytes:
        """Add samples (n,) at `RATE`."""
        samples = np.clip(samples, -1, 1)
        if self._form in ("wav", "pcm"):
            head, self._head = self._head, b""
            return head + np.round(samples * 32767).astype("<i2").tobytes()
        if self._form == "aac":
            self._aac(samples)
        else:
            self._file.write(samples)  # no flush: libsndfile would write the length so far into the beginning
        return b"" if self._whole is not None else self._finished()

    def close(self) -> bytes:
        """What is left; of a whole file all of it: libsndfile writes its length into the beginning at the end."""
        if self._form in ("wav", "pcm"):
            return self._head
        if self._form == "aac":
            for packet in self._stream.encode(None):
                self._file.mux(packet)
        self._file.close()
        return self._buffer.getvalue() if self._whole is not None else self._finished()

    def _aac(self, samples: Samples) -> None:
        import av

        frame = av.AudioFrame.from_ndarray(samples[None], format="fltp", layout="mono")
        frame.sample_rate = RATE
        for packet in self._stream.encode(frame):
            self._file.mux(packet)

    def _finished(self) -> bytes:
        data = self._buffer.getvalue()[self._given :]
        self._given += len(data)
        return data


def _wav_head(comment: str, samples: int | None) -> bytes:
    """The header of a WAV file with a comment; without a number of samples it says the largest size."""
    text = comment.encode() + b"\0"
    text += b"\0" * (len(text) % 2)
    info = b"INFO" + b"ICMT" + struct.pack("<I", len(text)) + text
    notes = b"LIST" + struct.pack("<I", len(info)) + info
    form = b"fmt " + struct.pack("<IHHIIHH", 16, 1, 1, RATE, 2 * RATE, 2, 16)
    size = _UNKNOWN_SIZE if samples is None else 2 * samples
    rest = b"WAVE" + form + notes + b"data" + struct.pack("<I", size)
    total = _UNKNOWN_SIZE if samples is None else len(rest) + size
    return b"RIFF" + struct.pack("<I", total) + rest
