"""`starter-espeak`: sentences and captions of the starter data, synthesised by eSpeak NG, for languages without audio.

A row keeps the group, split and licence of the starter row with its text, and is marked as synthetic. A formant
synthesiser pronounces each sound in one way: results on this data show that a recipe works, not how well people are
transcribed.

eSpeak NG comes with its data in the package espeakng-loader. It is GPL-3 software, so a separate program loads it.
"""

import io
import json
import subprocess
import sys
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from functools import cache
from importlib.metadata import version
from itertools import chain, islice, zip_longest
from pathlib import Path
from subprocess import DEVNULL, PIPE
from tempfile import TemporaryFile
from typing import IO, Any

import espeakng_loader
import numpy as np
import numpy.typing as npt
import pyarrow.parquet as pq
import regex
import soundfile

from kauli.models.errors import KauliError, UsageError
from kauli.models.languages import check_tag, display_name, fallback_chain, script_share
from kauli.models.media.decode import RATE
from kauli.models.media.resample import resampled
from kauli.models.paths import kauli_home
from kauli.models.progress import bar
from kauli.training.data import starter
from kauli.training.data.espeak_process import HEADER
from kauli.training.data.groups import normalise, short_hash
from kauli.training.data.schema import SCHEMA
from kauli.training.data.starter import Row

ESPEAK = "starter-espeak"
MOST_ROWS = 2000
"""Rows of a language, taken in turn from each source: about a minute of one core."""
FEWEST_WORDS, MOST_WORDS, LONGEST = 2, 25, 120  # words, words, characters: about 8 seconds
SPEEDS = (130, 190)  # words a minute
PITCHES = (30, 70)  # of 0 to 99; so is the next
MELODIES = (30, 70)
VARIANTS = (*(f"m{number}" for number in range(1, 8)), *(f"f{number}" for number in range(1, 6)))
FORMAT = 1
"""Increase it when the same texts give other audio."""
# Letters, and the marks that eSpeak ignores: it reads out brackets, straight quotes, digits and symbols, as words that
# the text does not have.
_AS_WRITTEN = regex.compile(r"""(?V1)[\p{L}\p{M}\p{P}\p{Zs}\u200c\u200d--["()\[\]{}%&@#*_\\/§†‡‰]]+""")

Samples = npt.NDArray[np.float32]
_Request = tuple[str, str, dict[int, int]]  # text, voice, settings
_SPEED, _PITCH, _MELODY = 1, 3, 4  # espeak_PARAMETER


@cache
def voice_languages() -> tuple[str, ...]:
    """The languages that eSpeak has a voice for, without its dialects."""
    return tuple(sorted(tag for tag in _voices() if "-" not in tag))


def synthetic_rows(language: str, rows: Sequence[Mapping[str, Any]]) -> list[Row]:
    """Rows of SCHEMA for texts of these rows of one language, at most MOST_ROWS of them, in turn from each source.

    Taken are texts of 2 to 25 words and up to 120 characters, written in letters of the language's script and marks
    alone, each once, unless eSpeak makes no sound of them. `audio` is FLAC; there is neither prompt nor image.
    """
    chosen = _chosen(language, rows)
    keys = [short_hash(row["id"], row["text"]) for row in chosen]
    requests = [_request(row["text"], language, int(key, 16)) for row, key in zip(chosen, keys, strict=True)]
    found = []
    with bar(f"Synthesising {language}", len(chosen)) as advance:
        for row, key, samples in zip(chosen, keys, _synthesised(requests), strict=True):
            advance()
            if not samples.any():  # of a word without vowels, for instance
                continue
            own = {"id": f"{language}-espeak-{key}", "source": f"espeak/{row['source']}", "synthetic": True}
            kept = {name: row[name] for name in ("group", "text", "licence", "split")}
            own |= {"language": language, "audio": _flac(samples)}
            found.append(dict.fromkeys(SCHEMA.names) | kept | own)
    return found


def espeak_files(languages: Sequence[str] | None) -> tuple[list[Path], Sequence[str]]:
    """The Parquet files of the data set and their languages (None: all that are there).

    Missing files are made, and those of older starter data, voices or FORMAT are made again. Raises `UsageError` for
    a language without a voice, before any work, or without texts that can be synthesised.
    """
    made = sorted(path.stem for path in (kauli_home() / "data" / ESPEAK).glob("*.parquet"))
    wanted = made if languages is None else languages
    if not wanted:
        raise UsageError(f"no {ESPEAK} is made yet: name its languages, as in --languages ky.")
    for language in wanted:
        _voice(language)
    made_by = f"format {FORMAT}", version("espeakng-loader")
    return starter.derived_files(ESPEAK, wanted, made_by, _made)


def _made(language: str, starter_file: Path) -> list[Row]:
    columns = ["id", "group", "text", "source", "licence", "split"]
    rows = synthetic_rows(language, pq.read_table(starter_file, columns=columns).to_pylist())
    if not rows:
        raise UsageError(f"the starter data has no text in {display_name(language)} ({language}) that eSpeak can read.")
    return rows


def _chosen(language: str, rows: Sequence[Mapping[str, Any]]) -> list[Mapping[str, Any]]:
    """The rows to synthesise, by a hash of their id: the sources are sorted by the alphabet."""
    by_source: dict[str, list[Mapping[str, Any]]] = defaultdict(list)
    seen: set[str] = set()
    for row in sorted(rows, key=lambda row: short_hash(row["id"])):
        text = row["text"] or ""
        if _can_be_read(text, language) and normalise(text) not in seen:
            seen.add(normalise(text))
            by_source[row["source"]].append(row)
    turns = zip_longest(*(by_source[source] for source in sorted(by_source)))
    return list(islice((row for row in chain.from_iterable(turns) if row is not None), MOST_ROWS))


def _can_be_read(text: str, language: str) -> bool:
    fits = len(text) <= LONGEST and FEWEST_WORDS <= len(text.split()) <= MOST_WORDS
    return fits and _AS_WRITTEN.fullmatch(text) is not None and script_share(text, language) == 1


def _flac(samples: Samples) -> bytes:
    buffer = io.BytesIO()
    soundfile.write(buffer, samples, RATE, "PCM_16", format="FLAC")
    return buffer.getvalue()


def _request(text: str, language: str, seed: int) -> _Request:
    """A text with one of twelve voices, its speed, its pitch and the range of its pitch, as the seed draws them."""
    draw = np.random.default_rng(seed)
    variant = VARIANTS[int(draw.integers(len(VARIANTS)))]
    drawn = ((_SPEED, SPEEDS), (_PITCH, PITCHES), (_MELODY, MELODIES))
    settings = {parameter: int(draw.integers(*ends, endpoint=True)) for parameter, ends in drawn}
    return text, f"{_voice(language)}+{variant}", settings


def _voice(language: str) -> str:
    voices = _voices()
    for tag in fallback_chain(language):
        if tag in voices:
            return voices[tag]
    tag = check_tag(language)
    raise UsageError(
        f"eSpeak has no voice for {display_name(tag)} ({tag}): give audio of your own, or one of its languages, "
        f"{', '.join(voice_languages())}."
    )


@cache
def _voices() -> dict[str, str]:
    """Language tag -> the file of its voice, the one with the lowest number if a language has several."""
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


def _synthesised(requests: Sequence[_Request]) -> Iterator[Samples]:
    """The samples (n,) at 16 kHz of each request, in order; silence for a text without letters."""
    program = str(Path(__file__).with_name("espeak_process.py"))
    library, data = espeakng_loader.get_library_path(), espeakng_loader.get_data_path()
    command = [sys.executable, "-I", "-S", program, library, data]
    with TemporaryFile() as asked:
        asked.write(json.dumps(requests).encode())
        asked.seek(0)
        with subprocess.Popen(command, stdin=asked, stdout=PIPE, stderr=DEVNULL) as process:
            assert process.stdout is not None
            try:
                for _ in requests:
                    yield _answer(process.stdout)
            finally:
                process.kill()


def _answer(stream: IO[bytes]) -> Samples:
    header = stream.read(HEADER.size)
    if len(header) < HEADER.size:
        raise KauliError("eSpeak can't be loaded: reinstall its package espeakng-loader.")
    rate, size = HEADER.unpack(header)
    content = stream.read(size)
    if not rate:
        raise KauliError(f"eSpeak failed: {content.decode()}.")
    wave: Samples = np.frombuffer(content, np.int16).astype(np.float32) / np.float32(32768)
    return resampled([wave], rate, RATE)
