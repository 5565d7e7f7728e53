"""Descriptions of images measured: adapter, base and four baselines, on new concepts and new images of known ones.

Metrics of the second test set have the prefix `new_pictures_`. The baselines are the adapter with no image, the adapter
with another concept's image, the caption of the nearest training image, and the most frequent training caption: an
adapter that does not beat them ignores its image. An adapter with a memory of pictures is measured without it as well
(`no_memory`), and with the captions alone (`memory_alone`). `copied` are the answers that are a training caption.
"""

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from kauli.models.bases.find import find_base, local_bases
from kauli.models.errors import KauliError
from kauli.models.media.decode import decode_image
from kauli.models.metrics import NEW_PICTURES
from kauli.models.requests import TextRequest
from kauli.models.tasks import TASKS, load_served
from kauli.models.text.connector import Connector, PartSettings
from kauli.models.text.picture_memory import with_captions
from kauli.models.vision.image_tower import ImageTower
from kauli.training.evaluation.certify import Answered, answered
from kauli.training.evaluation.request import ADAPTER, EvalRequest
from kauli.training.evaluation.results import EvalResult
from kauli.training.evaluation.rows import by_language, choose, some_groups
from kauli.training.evaluation.scorers import Row, clean, tally
from kauli.training.evaluation.systems import BASE, Answering, System, Systems, reference_text
from kauli.training.features.images import image_rows, load_tower, other_images, with_media, without_media
from kauli.training.features.left_out import LeftOut
from kauli.training.features.room import Room

NO_IMAGE, WRONG_IMAGE, NEAREST, MOST_FREQUENT = "no_image", "wrong_image", "nearest", "most_frequent"
MEMORY_ALONE, NO_MEMORY = "memory_alone", "no_memory"
NO_OTHER = f"all images are of one group, so that none is wrong for another: {WRONG_IMAGE} is left out"
MAX_TOKENS = 48
ALIGNED = "kauli-clip"
"""The base whose cosine of image and text is reported, where it is on this machine."""


@dataclass(frozen=True)
class _Set:
    """One test set: its split, the prefix of its metrics, its rows with media, the rows of it that are described."""

    name: str
    prefix: str
    rows: list[Row]
    chosen: list[Row]


def evaluate_describe(request: EvalRequest) -> EvalResult:
    """Evaluate an adapter for images beside its base, which is shown no image, and the baselines.

    The new images are measured beside the split `test` alone. `request.limit` is the number of rows of each set that
    are described; bits per byte covers all.

    Raises:
        UsageError: no images in the split.
        KauliError: the encoder here is not the one that the adapter was trained with.
    """
    tower, grid = _tower(request)
    known = with_media(image_rows(request.dataset, "train", request.tags, request.instruction), tower, grid)
    measured, left_out = described_rows(request)
    systems = Systems(request, ANSWERING, left_out)
    sets, systems.notes = _sets(request, measured, tower, grid)
    task, aligned = request.task("describe"), _aligned()
    for one in sets:
        texts = systems.compare(task, _systems(one, task, systems.notes), one.rows, one.chosen, one.prefix)
        for name, answers in texts.items():
            _add_copied(systems, name, one, answers, known)
        captions = {NEAREST: _nearest(one.chosen, known), MOST_FREQUENT: _most_frequent(one.chosen, known)}
        for name, found in captions.items():
            systems.add_texts(name, one.chosen, found, one.prefix)
        if aligned is not None:
            for name, answers in {**texts, **captions}.items():
                _add_similarity(systems, name, aligned, one, answers)
        where = ", new image" if one.prefix else ""
        systems.show(one.chosen, texts, [row["prompt"] or "" for row in one.chosen], where)
    if aligned is None:
        systems.notes.append(f"clip_similarity needs the base {ALIGNED}: kauli fetch {ALIGNED}")
    return systems.result([row for one in sets for row in one.rows], sum(len(one.chosen) for one in sets))


def answered_descriptions(request: EvalRequest) -> list[Answered]:
    """About `request.limit` images described and scored for a certificate."""
    tower, grid = _tower(request)
    found, _ = described_rows(request)
    rows: list[Row] = list(with_media(choose(found[request.split], request.limit), tower, grid))
    task = request.task("describe")

    def ask(row: Row) -> TextRequest:
        return replace(request_for(row), logprobs=0)

    return answered(task, ADAPTER, TASKS["describe"].certified, rows, ask, reference_text, lambda row: {})


def request_for(row: Row) -> TextRequest:
    """The greedy request that a row makes, guarded against loops as the adapter's card says."""
    prompt = with_captions(row["prompt"], row.get("captions") or ())
    captions = () if "captions" in row else None
    return TextRequest.of_prompt(
        prompt, tuple(row["media"]), max_tokens=MAX_TOKENS, language=row["language"], captions=captions
    )


def wrong_images(rows: Sequence[Row]) -> list[dict[str, Any]] | None:
    """The rows with the image of another group; None where all images are of one, and each row would keep its own.

    `rows` have their `media`.
    """
    groups = {row["image_key"]: row["group"] for row in rows}
    return other_images(rows) if len(set(groups.values())) > 1 else None


def _tower(request: EvalRequest) -> tuple[ImageTower, int]:
    """The image encoder of the adapter and its grid."""
    connector = Connector.load(request.folder)
    if connector is None:
        raise KauliError(f"the adapter in {request.folder} has no connector: it can't take images.")
    settings: PartSettings = connector.settings["image"]
    tower = load_tower(settings.encoder)
    if tower.sha256 != settings.sha256:
        raise KauliError(f"the image encoder of {settings.encoder} is not the one that the adapter was trained with.")
    return tower, settings.grid


def described_rows(request: EvalRequest) -> tuple[dict[str, list[Row]], LeftOut]:
    """The rows that are measured, by their set; UsageError where there is none."""
    left_out, room = LeftOut(request.split, request.dataset.place), Room(request.base)
    names = (request.split, NEW_PICTURES) if request.split == "test" else (request.split,)
    found: dict[str, list[Row]] = {}
    for name in names:
        mine = left_out if name == request.split else LeftOut(name)  # of training rows the training told
        rows = image_rows(request.dataset, name, request.tags, request.instruction, mine)
        found[name] = list(room.fitting(rows, mine))
    if not any(found.values()):
        raise request.nothing("image with a text", left_out)
    return found, left_out


def _sets(
    request: EvalRequest, found: Mapping[str, Sequence[Row]], tower: ImageTower, grid: int
) -> tuple[list[_Set], list[str]]:
    sets, notes = [], []
    for name, those in found.items():
        part, told = some_groups(those, request.scored, name)
        rows: list[Row] = list(with_media(part, tower, grid))
        notes += told
        if rows:
            prefix = f"{NEW_PICTURES}_" if name == NEW_PICTURES else ""
            sets.append(_Set(name, prefix, rows, choose(rows, request.limit)))
    if len(sets) == 1 and request.split == "test":
        notes.append("no concept of the training split has a second image: there are no new images of known concepts")
    return sets, notes


def _systems(one: _Set, task: Any, notes: list[str]) -> list[System]:
    base = System(BASE, without_media(one.rows))
    found = [base, System(NO_IMAGE, base.rows, ADAPTER), System(ADAPTER, one.rows, ADAPTER)]
    if (wrong := wrong_images(one.rows)) is None:
        notes.append(f"{one.name}: {NO_OTHER}")
    else:
        found.append(System(WRONG_IMAGE, wrong, ADAPTER))
    if task.has_pictures(ADAPTER):
        shown = [
            {**row, "captions": task.captions(row["media"], row["language"], ADAPTER), "media": ()} for row in one.rows
        ]
        found.append(System(MEMORY_ALONE, shown, ADAPTER))
        found.append(System(NO_MEMORY, [{**row, "captions": ()} for row in one.rows], ADAPTER))
    return found


def _add_similarity(systems: Systems, name: str, aligned: Any, one: _Set, texts: Sequence[str]) -> None:
    """Cosine of image and answer of one system."""
    answers = {row["id"]: clean(text) for row, text in zip(one.chosen, texts, strict=True)}
    for tag, kind, rows in by_language(one.chosen):
        images = np.asarray(aligned.embed_images([decode_image(bytes(row["image"])) for row in rows]))
        captions = np.asarray(aligned.embed_texts([answers[row["id"]] or " " for row in rows]))
        cosines = [[float(value), 1.0] for value in (images * captions).sum(axis=1)]
        found = tally("clip_similarity", [row["group"] for row in rows], cosines)
        systems.add(name, {tag: {f"{kind}clip_similarity": found}}, one.prefix)


def _add_copied(systems: Systems, name: str, one: _Set, texts: Sequence[str], known: Sequence[Row]) -> None:
    """The share of one system's answers that are a training caption of their language, letter for letter."""
    captions = {(row["language"], clean(row["text"])) for row in known}
    answers = {row["id"]: clean(text) for row, text in zip(one.chosen, texts, strict=True)}
    for tag, kind, rows in by_language(one.chosen):
        copied = [[float((tag, answers[row["id"]]) in captions), 1.0] for row in rows]
        found = tally("copied", [row["group"] for row in rows], copied)
        systems.add(name, {tag: {f"{kind}copied": found}}, one.prefix)


def _nearest(rows: Sequence[Row], known: Sequence[Row]) -> list[str]:
    """The caption, in the row's language, of the training image whose mean feature has the largest cosine."""
    captions = {tag: [row for row in known if row["language"] == tag] for tag in {row["language"] for row in rows}}
    stacks = {tag: _means(found) for tag, found in captions.items()}

    def nearest(row: Row) -> str:
        theirs = stacks[row["language"]]
        return str(captions[row["language"]][int(np.argmax(theirs @ _means([row])[0]))]["text"]) if len(theirs) else ""

    return [nearest(row) for row in rows]


def _means(rows: Sequence[Row]) -> Any:
    found = np.stack([row["media"][0].features[0] for row in rows]).astype(np.float32) if rows else np.zeros((0, 1))
    return found / np.linalg.norm(found, axis=1, keepdims=True).clip(1e-9)


def _most_frequent(rows: Sequence[Row], known: Sequence[Row]) -> list[str]:
    best: dict[str, str] = {}
    for tag in {row["language"] for row in rows}:
        counts = Counter(str(row["text"]) for row in known if row["language"] == tag)
        best[tag] = min(counts, key=lambda text: (-counts[text], text)) if counts else ""
    return [best[row["language"]] for row in rows]


def _aligned() -> Any:
    return load_served("align", find_base(ALIGNED, task="align")) if ALIGNED in local_bases() else None


ANSWERING = Answering("describe", ("description",), request_for)
