"""The program that runs eSpeak NG for `kauli.models.speech.espeak`: texts in, samples or phonemes out.

eSpeak is GPL-3 software, so a separate program loads it. Its library keeps state of pitch and timing in variables that
nothing resets, so that a text sounds different after another one: a fork of this process, in which the library is
loaded but has said nothing yet, answers each request. A crash in C then loses one request. To keep forks safe and
cheap, this program imports little, and nothing of kauli.

    python -I -S espeak_process.py LIBRARY DATA

reads requests from stdin, each a line of JSON: {"voice", "speak": TEXT, "settings": {parameter: value}} for a COUNT of
words, a WORD for each, and 16-bit samples; {"voice", "phonemes": [TEXT ...]} for a JSON list of IPA. It writes for each
to stdout a HEADER and the bytes that it counts; with the rate 0 they are an error message in UTF-8.
"""

import ctypes
import json
import os
import struct
import sys
from typing import Any

HEADER = struct.Struct("=iI")  # samples a second (1 for phonemes), bytes that follow
COUNT = struct.Struct("=I")
WORD = struct.Struct("=III")  # its place in the text and its length in characters, milliseconds
_SYNCHRONOUS, _DONT_EXIT, _UTF8, _IPA = 2, 0x8000, 1, 2  # of speak_lib.h: wait for the samples; return errors
_WORD_EVENT = 1
_Callback = ctypes.CFUNCTYPE(ctypes.c_int, ctypes.POINTER(ctypes.c_short), ctypes.c_int, ctypes.c_void_p)


class _Event(ctypes.Structure):
    _fields_ = (
        ("type", ctypes.c_int), ("unique", ctypes.c_uint), ("text_position", ctypes.c_int), ("length", ctypes.c_int),
        ("audio_position", ctypes.c_int), ("sample", ctypes.c_int), ("user", ctypes.c_void_p),
        ("id", ctypes.c_char * 8),
    )  # fmt: skip


class Failure(Exception):
    """What the library could not do."""


def answer(library: ctypes.CDLL, data: str, request: dict[str, Any]) -> tuple[int, bytes]:
    """The rate, and the samples or the phonemes. Call it once in a process. Raises Failure."""
    rate: int = library.espeak_Initialize(_SYNCHRONOUS, 0, data.encode(), _DONT_EXIT)
    if rate <= 0:  # its buffer for the path holds 160 bytes
        raise Failure(f"it can't read its data in {data}; reinstall it in a shorter path")
    if library.espeak_SetVoiceByName(request["voice"].encode()):
        raise Failure(f"it lacks the voice {request['voice']}")
    if "phonemes" in request:
        return 1, json.dumps([_phonemes(library, text) for text in request["phonemes"]]).encode()
    return rate, _samples(library, request["speak"], request["settings"])


def _samples(library: ctypes.CDLL, text: str, settings: dict[str, int]) -> bytes:
    blocks: list[bytes] = []
    words: list[bytes] = []

    def receive(wave: Any, count: int, events: int) -> int:
        if wave and count > 0:
            blocks.append(ctypes.string_at(wave, 2 * count))
        found, at = ctypes.cast(events, ctypes.POINTER(_Event)), 0
        while events and found[at].type:
            if found[at].type == _WORD_EVENT and found[at].text_position > 0:
                words.append(WORD.pack(found[at].text_position - 1, found[at].length, found[at].audio_position))
            at += 1
        return 0

    library.espeak_ng_SetRandSeed(ctypes.c_long(1))  # else the clock is the seed: breath differs every second
    callback = _Callback(receive)  # a name keeps it alive while it may be called
    library.espeak_SetSynthCallback(callback)
    for parameter, value in settings.items():
        library.espeak_SetParameter(int(parameter), value, 0)
    encoded = text.encode()
    size = ctypes.c_size_t(len(encoded) + 1)
    if library.espeak_Synth(encoded, size, 0, 1, 0, _UTF8, None, None):
        raise Failure(f"it failed at '{text}'")
    return COUNT.pack(len(words)) + b"".join(words) + b"".join(blocks)


def _phonemes(library: ctypes.CDLL, text: str) -> str:
    """The IPA of a text, its clauses with a space between."""
    convert = library.espeak_TextToPhonemes
    convert.restype, convert.argtypes = ctypes.c_char_p, [ctypes.POINTER(ctypes.c_char_p), ctypes.c_int, ctypes.c_int]
    rest = ctypes.c_char_p(text.encode())
    clauses = []
    while rest.value:
        clauses.append((convert(ctypes.byref(rest), _UTF8, _IPA) or b"").decode())
    return " ".join(clause for clause in clauses if clause)


def main(path: str, data: str) -> None:
    """Answer every request of stdin."""
    answers = os.fdopen(os.dup(1), "wb")
    os.dup2(2, 1)  # the library may print, which must not mix with the answers
    library = ctypes.CDLL(path)
    for line in sys.stdin.buffer:
        request = json.loads(line)
        child = os.fork()
        if child == 0:
            try:
                rate, content = answer(library, data, request)
            except Failure as failure:
                rate, content = 0, str(failure).encode()
            answers.write(HEADER.pack(rate, len(content)) + content)
            answers.flush()
            os._exit(0)
        if os.waitpid(child, 0)[1]:
            text = request.get("speak") or " ".join(request.get("phonemes", ()))
            content = f"it crashed at '{text[:200]}'".encode()
            answers.write(HEADER.pack(0, len(content)) + content)
            answers.flush()


if __name__ == "__main__":
    main(*sys.argv[1:])
