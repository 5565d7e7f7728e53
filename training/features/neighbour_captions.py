"""Rows with the captions of their pictures' nearest neighbours, as the memory of an adapter shows them in serving."""

from collections.abc import Mapping, Sequence
from typing import Any

from kauli.models.requests import TextRequest
from kauli.models.text.describe import TrainableDescribe
from kauli.models.text.picture_memory import PictureMemory, with_captions
from kauli.training.data.groups import short_hash

_WITHOUT = 10  # one row in so many is shown no captions: the adapter answers without a memory as well


def captioned(
    rows: Sequence[Mapping[str, Any]], pictures: PictureMemory, task: TrainableDescribe, limit: int, own: bool = True
) -> list[dict[str, Any]]:
    """The rows with `captions`; those that are farthest are left out where a row would have more than `limit` tokens.

    `own` False, for training rows: pictures of the row's group are passed over, and some rows have no captions.
    """
    found = []
    for place, row in enumerate(rows):
        captions = pictures.near(row["media"][0].features, row["language"], None if own else str(row["group"]))
        if not own and int(short_hash("no captions", f"{row['id']} {place}"), 16) % _WITHOUT == 0:
            captions = ()
        answer = len(task.prompts.text_tokens(row["text"])) + 1
        while captions and answer + _tokens(task, row, captions) > limit:
            captions = captions[1:]
        found.append({**row, "captions": captions})
    return found


def _tokens(task: TrainableDescribe, row: Mapping[str, Any], captions: Sequence[str]) -> int:
    asked = TextRequest.of_prompt(with_captions(row["prompt"], captions), tuple(row["media"]))
    return len(task.prompts.tokens(asked))
