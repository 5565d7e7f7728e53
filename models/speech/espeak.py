"""eSpeak NG behind a process that is kept alive: its voices, their phonemes and their speech."""

import atexit
import json
import subprocess
import sys
import threading
from collections.abc import Mapping, Sequence
from contextlib import suppress
from functools import cache
from pathlib import Path
from subprocess import DEVNULL, PIPE
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
import regex

from kauli.models.errors import KauliError, UsageError
from kauli.models.languages import check_tag, display_name, fallback_chain
from kauli.models.speech.espeak_process import COUNT, HEADER, WORD

SPEED, PITCH, MELODY = 1, 3, 4
"""Parameters of `Espeak.speak`: words a minute; the pitch and its range, 0 to 99."""
_SWITCHES = regex.compile(r"\([a-z][a-z-]+\)")  # where it changes to another language's sounds and back

Samples = npt.NDArray[np.float32]


class Sounded(NamedTuple):
    """A text as sound."""

    samples: Samples
    """(n,)."""
    rate: int
    words: list[tuple[int, float]]
    """(place of a word in the text in characters, seconds at which it begins)."""


class Espeak:
    """One process; calls from any thread wait for each other. It is started at the first call, and after a failure."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._process: subprocess.Popen[bytes] | None = None

    def phonemes(self, texts: Sequence[str], voice: str) -> list[str]:
        """The IPA of each text with stress marks and spaces between words; marks of punctuation are left out."""
        _, content = self._ask({"voice": voice, "phonemes": list(texts)})
        return [_SWITCHES.sub("", one).strip() for one in json.loads(content)]

    def speak(self, text: str, voice: str, settings: Mapping[int, int] | None = None) -> "Sounded":
        """A text as sound; silence for a text without letters."""
        rate, content = self._ask({"voice": voice, "speak": text, "settings": dict(settings or {})})
        [count] = COUNT.unpack_from(content)
        words = [WORD.unpack_from(content, COUNT.size + at * WORD.size) for at in range(count)]
        samples = np.frombuffer(content, np.int16, offset=COUNT.size + count * WORD.size)
        times = [(place, milliseconds / 1000) for place, _, milliseconds in words]
        return Sounded(samples.astype(np.float32) / np.float32(32768), rate, times)

    def close(self) -> None:
        """End the process."""
        with self._lock:
            self._end()

    def _ask(self, request: dict[str, Any]) -> tuple[int, bytes]:
        with self._lock:
            try:
                process = self._running()
                assert process.stdin is not None
                assert process.stdout is not None
                process.stdin.write(json.dumps(request).encode() + b"\n")
                process.stdin.flush()
                header = process.stdout.read(HEADER.size)
                rate, size = HEADER.unpack(header) if len(header) == HEADER.size else (0, None)
                content = process.stdout.read(size) if size is not None else b""
            except OSError:  # it has ended
                size, content, rate = None, b"", 0
            except BaseException:  # an answer that nobody has read would be taken for the next one's
                self._end()
                raise
            if size is None or len(content) < size:
                self._end()
                raise KauliError("eSpeak can't be loaded: reinstall its package espeakng-loader.")
        if not rate:
            raise KauliError(f"eSpeak failed: {content.decode()}.")
        return rate, content

    def _running(self) -> subprocess.Popen[bytes]:
        if self._process is None or self._process.poll() is not None:
            import espeakng_loader

            program = str(Path(__file__).with_name("espeak_process.py"))
            library, data = espeakng_loader.get_library_path(), espeakng_loader.get_data_path()
            command = [sys.executable, "-I", "-S", program, library, data]
            self._process = subprocess.Popen(command, stdin=PIPE, stdout=PIPE, stderr=DEVNULL)
        return self._process

    def _end(self) -> None:
        if self._process is not None:
            self._process.kill()
            self._process.wait()
            for stream in (self._process.stdin, self._process.stdout):
                if stream is not None:
                    with suppress(OSError):  # what was not written yet
                        stream.close()
            self._process = None


@cache
def espeak() -> Espeak:
    """The process of this one, ended with it."""
    found = Espeak()
    atexit.register(found.close)
    return found


@cache
def espeak_languages() -> tuple[str, ...]:
    """The languages that eSpeak has a voice for, without its dialects."""
    return tuple(sorted(tag for tag in _voices() if "-" not in tag))


def espeak_voice(language: str) -> str:
    """The name of eSpeak's voice for a language, or for one of its fallback chain. Raises UsageError without one."""
    voices = _voices()
    for tag in fallback_chain(language):
        if tag in voices:
            return voices[tag]
    tag = check_tag(language)
    raise UsageError(
        f"eSpeak has no voice for {display_name(tag)} ({tag}). It has voices for {', '.join(espeak_languages())}."
    )


@cache
def _voices() -> dict[str, str]:
    """Language tag -> the file of its voice, the one with the lowest number if a language has several."""
    import espeakng_loader

    found: dict[str, tuple[int, str]] = {}
    for path in sorted(Path(espeakng_loader.get_data_path(), "lang").rglob("*")):
        for line in path.read_text(encoding="utf-8").splitlines() if path.is_file() else ():
            words = line.split("//")[0].split()
            if words[:1] != ["language"]:
                continue
            try:
                tag = check_tag(words[1])
            except UsageError:
                continue  # Klingon has a voice, but no tag here
            one = (int(words[2]) if len(words) > 2 else 5, path.name)
            found[tag] = min(found.get(tag, one), one)
    return {tag: name for tag, (_, name) in found.items()}
