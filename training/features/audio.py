"""Rows with audio: which teach and which test, without those whose audio cannot be right, read when it is needed."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from kauli.models.media.decode import RATE, content_key
from kauli.training.data.dataset import Dataset
from kauli.training.data.media_check import LONGEST, media_facts, media_faults
from kauli.training.data.schema import PLAIN_COLUMNS
from kauli.training.features.left_out import LeftOut
from kauli.training.features.stored import StoredAudio, StoredImage

Row = dict[str, Any]


@dataclass(frozen=True)
class AudioRows:
    """The rows of a split, with their `samples`, and those that were left out."""

    rows: list[Row]
    left_out: LeftOut
    letters: int
    """Characters of the transcripts that were left out."""

    def notes(self) -> list[str]:
        """What was left out, for the user."""
        total = self.letters + sum(len(row["text"]) for row in self.rows)
        share = f" ({100 * self.letters / max(1, total):.0f} % of the characters)"
        return self.left_out.notes(len(self.rows), "clips", share)


def audio_rows(
    dataset: Dataset, split: str | None, languages: Sequence[str], fastest: float, *, with_image: bool = False
) -> AudioRows:
    """The rows with audio and a text; `with_image`: and with an image, whose hash is their `image_key`.

    Their `samples` (n,) at 16 kHz are read and decoded when they are used (`StoredAudio`); their `audio_key` is the
    SHA-256 of the samples. Left out are clips that cannot be decoded, are longer than 30 seconds, or too short for
    their transcript: with more than `fastest` characters a second the audio does not hold the whole text.
    """
    kept: list[Row] = []
    left_out = LeftOut(split or "all splits", dataset.place)
    letters = 0
    measured = media_facts(dataset, "audio", split, languages)
    faults = media_faults(dataset, "image", split, languages) if with_image else {}
    for row in dataset.iter_rows(split, languages, [*PLAIN_COLUMNS, "image"] if with_image else PLAIN_COLUMNS):
        if row["id"] not in measured or not (row["text"] or "").strip() or (with_image and not row["image"]):
            continue
        found, reason = measured[row["id"]], ""
        seconds, detail = (found.num_samples or 0) / RATE, found.reason or faults.get(row["id"], "")
        if detail:
            reason = "that can't be read"
        elif seconds > LONGEST:
            reason = f"longer than {LONGEST:g} seconds"
        elif len(row["text"]) > fastest * seconds:
            reason = f"with more than {fastest:g} characters a second"
        if reason:
            left_out.add(row["id"], reason, detail)
            letters += len(row["text"])
            continue
        row |= {"samples": StoredAudio(dataset, row["id"], found.num_samples or 0), "audio_key": found.samples_sha256}
        if with_image:
            row |= {"image_key": content_key(row["image"]), "image": StoredImage(dataset, row["id"])}
        kept.append(row)
    return AudioRows(kept, left_out, letters)
