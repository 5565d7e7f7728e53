"""The program that speaks for `kauli.training.data.synthetic_speech`: texts come in, samples go out.

eSpeak's library keeps what sways its pitch and timing in variables that nothing sets back, so that a text sounds
otherwise after another one. Each text is therefore spoken by a fork of this process, in which the library was loaded
and not used yet; that it may crash in C costs one text then. For forks to be safe and cheap, this imports next to
nothing, and nothing of kauli.

    python -I -S espeak_process.py LIBRARY DATA

reads from stdin a JSON list of [text, voice, {parameter: value}] and writes for each to stdout a HEADER and so many
bytes: 16-bit samples at the rate, or, where the rate is 0, a sentence in UTF-8 on what is wrong.
"""

import ctypes
import json
import os
import struct
import sys
from typing import Any

HEADER = struct.Struct("=iI")  # samples a second, bytes that follow
_SYNCHRONOUS, _DONT_EXIT, _UTF8 = 2, 0x8000, 1  # of speak_lib.h: wait for the sound; return errors
_Heard = ctypes.CFUNCTYPE(ctypes.c_int, ctypes.POINTER(ctypes.c_short), ctypes.c_int, ctypes.c_void_p)


def speak(library: ctypes.CDLL, data: str, text: str, voice: str, settings: dict[str, int]) -> tuple[int, bytes]:
    """The rate and the samples, or 0 and a sentence; once in a process."""
    blocks: list[bytes] = []

    def heard(wave: Any, count: int, events: Any) -> int:
        if wave and count > 0:
            blocks.append(ctypes.string_at(wave, 2 * count))
        return 0

    rate: int = library.espeak_Initialize(_SYNCHRONOUS, 0, data.encode(), _DONT_EXIT)
    if rate <= 0:  # its buffer for the path holds 160 bytes
        return 0, f"it can't read its data in {data}; install it anew, in a shorter path".encode()
    library.espeak_ng_SetRandSeed(ctypes.c_long(1))  # it begins at the clock otherwise: breath differs every second
    callback = _Heard(heard)  # named, so that it lives as long as it may be called
    library.espeak_SetSynthCallback(callback)
    if library.espeak_SetVoiceByName(voice.encode()):
        return 0, f"it lacks the voice {voice}".encode()
    for parameter, value in settings.items():
        library.espeak_SetParameter(int(parameter), value, 0)
    encoded = text.encode()
    size = ctypes.c_size_t(len(encoded) + 1)
    if library.espeak_Synth(encoded, size, 0, 1, 0, _UTF8, None, None):
        return 0, f"it failed at '{text}'".encode()
    return rate, b"".join(blocks)


def main(path: str, data: str) -> None:
    """Answer every request of stdin."""
    requests = json.load(sys.stdin)
    answers = os.fdopen(os.dup(1), "wb")
    os.dup2(2, 1)  # whatever the library prints is no sample
    library = ctypes.CDLL(path)
    for text, voice, settings in requests:
        child = os.fork()
        if child == 0:
            rate, content = speak(library, data, text, voice, settings)
            answers.write(HEADER.pack(rate, len(content)) + content)
            answers.flush()
            os._exit(0)
        if os.waitpid(child, 0)[1]:
            content = f"it crashed at '{text}'".encode()
            answers.write(HEADER.pack(0, len(content)) + content)
            answers.flush()


if __name__ == "__main__":
    main(*sys.argv[1:])
