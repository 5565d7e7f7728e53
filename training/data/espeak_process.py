"""The program that synthesises speech for `kauli.training.data.synthetic_speech`: texts in, samples out.

eSpeak's library keeps state of pitch and timing in variables that nothing resets, so that a text sounds different after
another one. So a fork of this process, in which the library is loaded but not used yet, reads each text; a crash in C
then loses one text. To keep forks safe and cheap, this program imports little, and nothing of kauli.

    python -I -S espeak_process.py LIBRARY DATA

reads from stdin a JSON list of [text, voice, {parameter: value}] and writes for each to stdout a HEADER and the bytes
that it counts: 16-bit samples at the rate or, if the rate is 0, an error message in UTF-8.
"""

import ctypes
import json
import os
import struct
import sys
from typing import Any

HEADER = struct.Struct("=iI")  # samples a second, bytes that follow
_SYNCHRONOUS, _DONT_EXIT, _UTF8 = 2, 0x8000, 1  # of speak_lib.h: wait for the samples; return errors
_Callback = ctypes.CFUNCTYPE(ctypes.c_int, ctypes.POINTER(ctypes.c_short), ctypes.c_int, ctypes.c_void_p)


def speak(library: ctypes.CDLL, data: str, text: str, voice: str, settings: dict[str, int]) -> tuple[int, bytes]:
    """The rate and the samples, or 0 and an error message. Call it once in a process."""
    blocks: list[bytes] = []

    def receive(wave: Any, count: int, events: Any) -> int:
        if wave and count > 0:
            blocks.append(ctypes.string_at(wave, 2 * count))
        return 0

    rate: int = library.espeak_Initialize(_SYNCHRONOUS, 0, data.encode(), _DONT_EXIT)
    if rate <= 0:  # its buffer for the path holds 160 bytes
        return 0, f"it can't read its data in {data}; reinstall it in a shorter path".encode()
    library.espeak_ng_SetRandSeed(ctypes.c_long(1))  # else the clock is the seed: breath differs every second
    callback = _Callback(receive)  # a name keeps it alive while it may be called
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
    os.dup2(2, 1)  # the library may print, which must not mix with the samples
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
