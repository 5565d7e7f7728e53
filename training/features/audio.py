"""Rows with audio: which teach and which test, without those whose audio cannot be right, read when it is needed."""

import hashlib
import json
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from kauli.models.errors import MediaError
from kauli.models.files import write_atomically
from kauli.models.media.decode import RATE, content_key, decode_audio
from kauli.models.paths import kauli_home
from kauli.models.progress import bar
from kauli.training.data.dataset import Dataset
from kauli.training.data.schema import PLAIN_COLUMNS
from kauli.training.features.stored import StoredAudio, StoredImage

Row = dict[str, Any]
FORMAT = 1
"""Of what is known of decoded clips: to be raised when decoding changes."""
LONGEST = 30.0
"""Seconds of one example: what Whisper takes at once."""
Measured = Mapping[str, tuple[int, str] | None]
"""Id of a row with audio -> number of samples and their SHA-256; None for audio that cannot be decoded."""


@dataclass(frozen=True)
class AudioRows:
    """The rows of a split, with their `samples`, and how many others were dropped for which reason."""

    rows: list[Row]
    dropped: Mapping[str, int]
    letters: int
    """Characters of the dropped transcripts."""

    def dropped_message(self) -> str | None:
        """A sentence for the user on what was dropped; None where nothing was."""
        if not self.dropped:
            return None
        reasons = ", ".join(f"{count} {reason}" for reason, count in sorted(self.dropped.items()))
        total = self.letters + sum(len(row["text"]) for row in self.rows)
        share = 100 * self.letters / max(1, total)
        dropped = sum(self.dropped.values())
        return f"{dropped} of {dropped + len(self.rows)} clips dropped ({share:.0f} % of the characters): {reasons}"


def audio_rows(
    dataset: Dataset, split: str | None, languages: Sequence[str], fastest: float, *, with_image: bool = False
) -> AudioRows:
    """The rows with audio and a text; `with_image`: and with an image, whose hash is their `image_key`.

    Their `samples` (n,) at 16 kHz are read and decoded when they are used (`StoredAudio`); their `audio_key` is the
    SHA-256 of the samples. Dropped are clips that cannot be decoded, are longer than 30 seconds, or too short for
    their transcript: with more than `fastest` characters a second the audio does not hold the whole text.
    """
    kept: list[Row] = []
    dropped: Counter[str] = Counter()
    letters = 0
    measured = _measured(dataset, split, languages)
    for row in dataset.iter_rows(split, languages, [*PLAIN_COLUMNS, "image"] if with_image else PLAIN_COLUMNS):
        if row["id"] not in measured or not (row["text"] or "").strip() or (with_image and not row["image"]):
            continue
        reason, found = None, measured[row["id"]]
        if found is None:
            reason = "that can't be read"
        elif found[0] / RATE > LONGEST:
            reason = f"longer than {LONGEST:g} seconds"
        elif len(row["text"]) > fastest * (found[0] / RATE):
            reason = f"with more than {fastest:g} characters a second"
        if reason or found is None:
            dropped[str(reason)] += 1
            letters += len(row["text"])
            continue
        row |= {"samples": StoredAudio(dataset, row["id"], found[0]), "audio_key": found[1]}
        if with_image:
            row |= {"image_key": content_key(row["image"]), "image": StoredImage(dataset, row["id"])}
        kept.append(row)
    return AudioRows(kept, dropped, letters)


def _measured(dataset: Dataset, split: str | None, languages: Sequence[str]) -> Measured:
    """The clips' lengths, which only decoding tells: of each data set once on a machine."""
    key = hashlib.sha256(json.dumps([FORMAT, dataset.sha256, split, sorted(languages)]).encode()).hexdigest()
    path = kauli_home() / "cache" / "audio" / f"{key[:32]}.json"
    if path.is_file():
        known: Measured = json.loads(path.read_text(encoding="utf-8"))
        return known
    found: dict[str, tuple[int, str] | None] = {}
    with bar("Reading audio", None) as advance:
        for row in dataset.iter_rows(split, languages, ["id", "audio", "text"]):
            if not row["audio"] or not (row["text"] or "").strip():
                continue
            advance()
            try:
                samples = decode_audio(row["audio"]).samples
            except MediaError:
                found[row["id"]] = None
            else:
                found[row["id"]] = len(samples), hashlib.sha256(samples.tobytes()).hexdigest()
    write_atomically(path, json.dumps(found).encode())
    return found
