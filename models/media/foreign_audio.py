"""Audio that libsndfile does not read (M4A, WebM, AAC, AMR), by PyAV (the extra `av`) in a separate process.

FFmpeg's parsers are large, and a few bytes may ask them for gigabytes: the process may take so much memory and
processor time and no more, opens no file, and what it decodes is read block by block. It runs this file.
"""

import json
import subprocess
import sys
import tempfile
from importlib.util import find_spec
from typing import Any

import numpy as np

_DEMUXERS = {"M4A": "mov", "WebM": "matroska", "AAC": "aac", "AMR": "amr"}
_CODECS = "aac,alac,amrnb,amrwb,flac,libopus,mp3,mp3float,opus,pcm_alaw,pcm_mulaw,pcm_s16be,pcm_s16le,vorbis"
_MEMORY = 2 * 2**30  # bytes of address space, of which FFmpeg's libraries take 300 MiB
_UNKNOWN = 2**63 - 1  # frames, as libsndfile has it
_PACKETS_A_SECOND = 400  # Opus at 2.5 ms a packet; fewer where a packet has more


def is_installed() -> bool:
    """Whether PyAV is."""
    return find_spec("av") is not None


class ForeignStream:
    """The audio stream of a file, decoded as it is read; used as `soundfile.SoundFile` is. Raises ValueError."""

    format = subtype_info = "audio"

    def __init__(self, name: str, data: bytes, seconds: float) -> None:
        """`name` is a kind of `audio_format_of`; `seconds` the most that will be read, which bounds the time."""
        with tempfile.TemporaryFile() as source:
            source.write(data)
            source.seek(0)
            self._process = subprocess.Popen(
                [sys.executable, "-P", __file__, _DEMUXERS[name], str(seconds)],
                stdin=source, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL,
            )  # fmt: skip
        assert self._process.stdout is not None
        self._output = self._process.stdout
        first = self._output.readline()
        if not first:
            self.__exit__()
            raise ValueError("no audio stream that can be decoded")
        stated: dict[str, Any] = json.loads(first)
        self.samplerate: int = stated["rate"]
        self.channels: int = stated["channels"]
        self.frames: int = stated["frames"]
        """As the container states."""

    def __enter__(self) -> "ForeignStream":
        return self

    def __exit__(self, *_: object) -> None:
        self._process.kill()
        self._output.close()
        self._process.wait()

    def read(self, count: int, dtype: str, always_2d: bool) -> np.ndarray:
        """(n, channels) float32 of the next frames, none at the end. Raises ValueError where the decoder broke off."""
        wanted = 4 * self.channels * count
        found = self._output.read(wanted)
        if len(found) < wanted and self._process.wait() != 0:
            raise ValueError("the decoder broke off")
        return np.frombuffer(found, np.float32).reshape(-1, self.channels)


def _decode(demuxer: str, seconds: float) -> None:
    """The process: a file on stdin -> a line of JSON and float32 samples, channels side by side, on stdout."""
    import resource

    resource.setrlimit(resource.RLIMIT_AS, (_MEMORY, _MEMORY))
    limit = 30 + int(seconds / 20)  # a slow CPU decodes a hundred seconds in one
    resource.setrlimit(resource.RLIMIT_CPU, (limit, limit))
    import av

    with av.open(
        sys.stdin.buffer, "r", format=demuxer, options={"codec_whitelist": _CODECS, "protocol_whitelist": "none"}
    ) as container:
        stream = container.streams.audio[0]
        stream.codec_context.thread_count = 1
        resampler = None
        left = int(_PACKETS_A_SECOND * seconds)
        for packet in container.demux(stream):
            left -= 1
            if not left:
                return
            try:
                frames = packet.decode()
            except av.InvalidDataError:  # one damaged packet, as players pass over it
                continue
            for frame in frames:
                if resampler is None:
                    # Of the first frame: a header states half the rate of HE-AAC
                    resampler = av.AudioResampler("flt", frame.layout, frame.sample_rate)
                    duration = container.duration
                    stated = round(duration / 1e6 * frame.sample_rate) if duration else _UNKNOWN
                    shape = {"rate": frame.sample_rate, "channels": frame.layout.nb_channels, "frames": stated}
                    sys.stdout.buffer.write(json.dumps(shape).encode() + b"\n")
                for part in resampler.resample(frame):
                    sys.stdout.buffer.write(part.to_ndarray().tobytes())
    sys.stdout.buffer.flush()


if __name__ == "__main__":
    _decode(sys.argv[1], float(sys.argv[2]))
