"""`starter-espeak`: sentences and captions of the starter data, synthesised by eSpeak NG, for languages without audio.

A row keeps the group, split and licence of the starter row with its text, and is marked as synthetic. A formant
synthesiser pronounces each sound in one way: results on this data show that a recipe works, not how well people are
transcribed.
"""

import io
from collections import defaultdict
from collections.abc import Mapping, Sequence
from importlib.metadata import version
from itertools import chain, islice, zip_longest
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import regex
import soundfile

from kauli.models.errors import UsageError
from kauli.models.languages import display_name, script_share
from kauli.models.media.decode import RATE
from kauli.models.media.resample import resampled
from kauli.models.paths import kauli_home
from kauli.models.progress import bar
from kauli.models.speech.espeak import MELODY, PITCH, SPEED, Samples, espeak, espeak_voice
from kauli.training.data import starter
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

_Request = tuple[str, str, dict[int, int]]  # text, voice, settings


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
        for row, key, request in zip(chosen, keys, requests, strict=True):
            samples = _synthesised(request)
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
        espeak_voice(language)
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
    drawn = ((SPEED, SPEEDS), (PITCH, PITCHES), (MELODY, MELODIES))
    settings = {parameter: int(draw.integers(*ends, endpoint=True)) for parameter, ends in drawn}
    return text, f"{espeak_voice(language)}+{variant}", settings


def _synthesised(request: _Request) -> Samples:
    """The samples (n,) at 16 kHz of a request; silence for a text without letters."""
    found = espeak().speak(*request)
    return resampled([found.samples], found.rate, RATE)
