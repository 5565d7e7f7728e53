"""Recordings for the task `transcribe`: which rows teach and which test, decoded, without those that can't be right."""

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from kauli.models.media.decode import RATE, MediaError, decode_audio
from kauli.models.progress import bar
from kauli.training.data.dataset import Dataset
from kauli.training.data.schema import SCHEMA

Row = dict[str, Any]
COLUMNS = [name for name in SCHEMA.names if name != "image"]
LONGEST = 30.0  # seconds, of one example: what Whisper hears at once


@dataclass(frozen=True)
class Recorded:
    """The rows of a split, with their `samples`, and how many others were dropped for which reason."""

    rows: list[Row]
    dropped: Mapping[str, int]
    letters: int
    """Characters of the dropped transcripts."""

    def said(self) -> str | None:
        """A sentence for the user on what was dropped; None where nothing was."""
        if not self.dropped:
            return None
        reasons = ", ".join(f"{count} {reason}" for reason, count in sorted(self.dropped.items()))
        total = self.letters + sum(len(row["text"]) for row in self.rows)
        share = 100 * self.letters / max(1, total)
        dropped = sum(self.dropped.values())
        return (
            f"{dropped} of {dropped + len(self.rows)} recordings dropped ({share:.0f} % of the characters): {reasons}"
        )


def recording_rows(
    dataset: Dataset, split: str | None, languages: Sequence[str], fastest: float, *, pictured: bool = False
) -> Recorded:
    """The rows with a recording and a text, decoded to `samples` (n,) at 16 kHz; `pictured`: and with a picture.

    Dropped are recordings that can't be read, are longer than 30 seconds, or too short for their transcript: more than
    `fastest` characters a second are longer than anyone reads, so that the recording is not of the whole text.
    """
    kept: list[Row] = []
    dropped: Counter[str] = Counter()
    letters = 0
    columns = SCHEMA.names if pictured else COLUMNS
    rows = dataset.rows(split=split, languages=list(languages), columns=columns)
    rows = [row for row in rows if row["audio"] and (row["text"] or "").strip()]
    rows = [row for row in rows if row["image"]] if pictured else rows
    with bar("Reading recordings", len(rows)) as advance:
        for row in rows:
            advance()
            reason = None
            try:
                samples = decode_audio(row["audio"]).samples
            except MediaError:
                reason = "that can't be read"
            else:
                seconds = len(samples) / RATE
                if seconds > LONGEST:
                    reason = f"longer than {LONGEST:g} seconds"
                elif len(row["text"]) > fastest * seconds:
                    reason = f"with more than {fastest:g} characters a second"
            if reason:
                dropped[reason] += 1
                letters += len(row["text"])
            else:
                kept.append({**{key: value for key, value in row.items() if key != "audio"}, "samples": samples})
    return Recorded(kept, dropped, letters)
