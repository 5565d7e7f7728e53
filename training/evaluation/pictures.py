"""Described pictures measured: adapter beside base and four baselines, on new concepts and new pictures of known ones.

Metrics of the second test set have the prefix `new_pictures_`. The baselines are the adapter shown no picture, the
adapter shown another's picture, the caption of the nearest training picture, and the most frequent training caption:
who does not beat them has not learned to look.
"""

import hashlib
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import numpy as np

from kauli.models.bases.find import Base, find_base, local_bases
from kauli.models.errors import KauliError, UsageError
from kauli.models.languages import check_tag
from kauli.models.media.decode import decode_image
from kauli.models.progress import bar
from kauli.models.requests import NO_REPEAT, TextRequest
from kauli.models.tasks import load_task
from kauli.models.text.connector import Connector
from kauli.models.vision.image_tower import ImageTower
from kauli.training.data.dataset import Dataset
from kauli.training.evaluation.results import EvalResult, Sample, Scores
from kauli.training.evaluation.run import whole_groups
from kauli.training.evaluation.scorers import (
    NEW_PICTURES,
    SYNTHETIC,
    Tally,
    chrf_signature,
    clean,
    score_bits,
    score_generations,
    sentence_chrf,
    tally,
)
from kauli.training.features.pictures import other_pictures, picture_rows, with_media, without_media

Row = Mapping[str, Any]
ADAPTER, BASE, NO_IMAGE, WRONG_IMAGE = "adapter", "base", "no_image", "wrong_image"
NEAREST, MOST_FREQUENT = "nearest", "most_frequent"
NO_OTHER = f"all pictures are of one group, so that none is wrong for another: {WRONG_IMAGE} is left out"
MAX_TOKENS = 48
SCORED_AT_ONCE = 64
ALIGNED = "kauli-clip"
"""The base whose cosine of picture and text is reported, where it is on this machine."""


class Aligned(Protocol):
    """What `clip_similarity` needs of the task `align`."""

    def embed_images(self, images: Sequence[Any]) -> Any:
        """(N, dim) normalised."""

    def embed_texts(self, texts: Sequence[str]) -> Any:
        """(N, dim) normalised."""


@dataclass(frozen=True)
class _Set:
    """One test set: the prefix of its metrics, its rows with media, the rows of it that are described."""

    prefix: str
    rows: list[Row]
    chosen: list[Row]


def evaluate_pictures(
    folder: Path | None,
    base: Base,
    dataset: Dataset,
    languages: Sequence[str],
    prompt: str | None,
    *,
    encoder: str = "kauli-towers",
    split: str = "test",
    limit: int = 48,
    seed: int = 0,
    scored: int | None = None,
) -> EvalResult:
    """Evaluate the adapter in `folder` beside its base and the baselines.

    Args:
        folder: an adapter with a connector; None: the bare base alone, which is shown no picture.
        base: the language model.
        dataset: with pictures.
        languages: of the rows.
        prompt: the instruction of the recipe, None for each row's own.
        encoder: the base whose tower finds the nearest training picture where there is no connector to name one.
        split: of the data; the new pictures are measured beside `test` alone.
        limit: rows of each set that are described, for the metrics of generated text; bits per byte covers all.
        seed: of the intervals.
        scored: cut each set to about so many rows of whole groups, for a quick look.

    Raises:
        UsageError: no pictures in the split. KauliError: the encoder here is not the one that the adapter was made for.
    """
    tags = tuple(check_tag(tag) for tag in languages)
    connector = Connector.load(folder) if folder is not None else None
    if folder is not None and connector is None:
        raise KauliError(f"the adapter in {folder} has no connector: it can't see pictures.")
    settings = connector.settings["image"] if connector else None
    tower = ImageTower.load(
        find_base(settings.encoder if settings else encoder, task="align", allow_noncommercial=True)
    )
    if settings and tower.sha256 != settings.sha256:
        raise KauliError(f"the tower of {settings.encoder} is not the one that the adapter was trained with.")
    grid = settings.grid if settings else 0
    known = with_media(picture_rows(dataset, "train", tags, prompt), tower, grid)
    sets, notes = [], []
    for prefix, name in (("", split), *([(f"{NEW_PICTURES}_", NEW_PICTURES)] if split == "test" else [])):
        found = picture_rows(dataset, name, tags, prompt)
        if scored is not None and len(found) > scored:
            notes.append(f"{name}: measured on about {scored} of {len(found)} rows")
            found = whole_groups(found, scored)
        rows: list[Row] = list(with_media(found, tower, grid))
        if rows:
            sets.append(_Set(prefix, rows, choose(rows, limit)))
    if not sets:
        raise UsageError(f"the data has no captioned pictures in {', '.join(tags)} in its '{split}' split.")
    if len(sets) == 1 and split == "test":
        notes.append(
            "no concept of the training split has a second picture: there are no new pictures of known concepts"
        )
    task = load_task("describe", base)
    key = None
    if folder is not None:
        task.add_adapter(ADAPTER, folder)
        key = ADAPTER
    aligned = _aligned()
    scores = {name: _empty(tags) for name in ([ADAPTER, NO_IMAGE, WRONG_IMAGE] if key else []) + [BASE]}
    scores |= {name: _empty(tags) for name in (NEAREST, MOST_FREQUENT)}
    samples: list[Sample] = []
    for one in sets:
        shown: dict[str, Sequence[Row]] = {NO_IMAGE: without_media(one.rows), ADAPTER: one.rows}
        if (wrong := wrong_pictures(one.rows)) is not None:
            shown[WRONG_IMAGE] = wrong
        elif key:
            notes.append(f"{one.prefix.rstrip('_') or split}: {NO_OTHER}")
        asked: dict[str, tuple[Sequence[Row], str | None]] = {BASE: (shown[NO_IMAGE], None)}
        if key:
            asked |= {name: (rows, key) for name, rows in shown.items()}
        texts = describe(task, one.chosen, asked)
        texts[NEAREST], texts[MOST_FREQUENT] = _nearest(one.chosen, known), _most_frequent(one.chosen, known)
        tallies = [(name, bits_by_language(task, seen, adapter)) for name, (seen, adapter) in asked.items()]
        tallies += [(name, _generated(one.chosen, answers, aligned)) for name, answers in texts.items()]
        for name, languages_of in tallies:
            for tag, values in languages_of.items():
                scores[name][tag] |= {one.prefix + metric: value for metric, value in values.items()}
        samples += _samples(one, texts, key is not None)
    systems = {name: Scores(found) for name, found in scores.items()}
    if aligned is None:
        notes.append(f"clip_similarity needs the base {ALIGNED}: kauli fetch {ALIGNED}")
    return EvalResult(
        adapter=None if folder is None else folder.name,
        base=base.name,
        languages=tags,
        split=split,
        seed=seed,
        examples=sum(len(one.rows) for one in sets),
        groups=len({row["group"] for one in sets for row in one.rows}),
        generated=sum(len(one.chosen) for one in sets),
        scores=systems[ADAPTER] if key else systems[BASE],
        base_scores=systems[BASE] if key else None,
        baselines={
            name: systems[name]
            for name in (NO_IMAGE, WRONG_IMAGE, NEAREST, MOST_FREQUENT)
            if any(scores.get(name, {}).values())
        },
        samples=tuple(samples),
        signatures={"chrf": chrf_signature()},
        data={"name": dataset.name, "sha256": dataset.sha256},
        notes=tuple(notes),
        task="describe",
    )


def choose(rows: Sequence[Row], limit: int) -> list[Row]:
    """At most `limit` rows, languages in turn, each in the order of a hash of its ids."""
    ordered = sorted(rows, key=lambda row: hashlib.sha256(str(row["id"]).encode()).digest())
    turns: Counter[str] = Counter()
    places = []
    for row in ordered:
        places.append((turns[row["language"]], row["language"]))
        turns[row["language"]] += 1
    order = sorted(range(len(ordered)), key=places.__getitem__)
    return [ordered[index] for index in order[:limit]]


def wrong_pictures(rows: Sequence[Row]) -> list[dict[str, Any]] | None:
    """The rows with the picture of another group; None where all pictures are of one, and each row would keep its own.

    `rows` have their `media`.
    """
    wrong = other_pictures(rows)
    return None if any(one["image"] == row["image"] for one, row in zip(wrong, rows, strict=True)) else wrong


def request_for(row: Row) -> TextRequest:
    """The greedy request that a row makes; no run of six tokens twice, against loops."""
    return TextRequest.of_prompt(row["prompt"], tuple(row["media"]), max_tokens=MAX_TOKENS, no_repeat=NO_REPEAT)


def _empty(tags: Sequence[str]) -> dict[str, dict[str, Tally]]:
    return {tag: {} for tag in tags}


def describe(
    task: Any, chosen: Sequence[Row], asked: Mapping[str, tuple[Sequence[Row], str | None]]
) -> dict[str, list[str]]:
    """System -> its text for each chosen row; all systems stand in one batch.

    Who is shown no picture answers a prompt once: greedily, the same prompt has the same answer.
    """
    requests: list[TextRequest] = []
    adapters: list[str | None] = []
    known: dict[tuple[str | None, str, Any], int] = {}
    numbers: dict[str, list[int]] = {}
    for name, (rows, adapter) in asked.items():
        by_id = {row["id"]: row for row in rows}
        numbers[name] = []
        for row in (by_id[one["id"]] for one in chosen):
            what = (adapter, name, row["id"]) if row["media"] else (adapter, "", row["prompt"])
            number = known.setdefault(what, len(requests))
            if number == len(requests):
                requests.append(request_for(row))
                adapters.append(adapter)
            numbers[name].append(number)
    texts = [""] * len(requests)
    with bar("Describing", len(requests)) as advance:
        for chunks in task.generate(requests, adapters):
            for chunk in chunks:
                texts[chunk.row] += chunk.text
                if chunk.finish:
                    advance()
    return {name: [texts[number] for number in mine] for name, mine in numbers.items()}


def bits_by_language(task: Any, rows: Sequence[Row], adapter: str | None) -> dict[str, dict[str, Tally]]:
    """Language -> bits per byte of the rows, those of synthetic ones with their prefix."""
    found: dict[str, tuple[float, int]] = {}
    ordered = sorted(rows, key=lambda row: len(row["text"]))
    with bar("Scoring", len(ordered)) as advance:
        for start in range(0, len(ordered), SCORED_AT_ONCE):
            piece = ordered[start : start + SCORED_AT_ONCE]
            found |= {row["id"]: cost for row, cost in zip(piece, task.bits(piece, adapter), strict=True)}
            advance(len(piece))
    out: dict[str, dict[str, Tally]] = {}
    for tag, prefix, mine in by_language(rows):
        out.setdefault(tag, {})[f"{prefix}bits_per_byte"] = score_bits(mine, [found[row["id"]] for row in mine])
    return out


def _generated(chosen: Sequence[Row], texts: Sequence[str], aligned: Aligned | None) -> dict[str, dict[str, Tally]]:
    answers = {row["id"]: clean(text) for row, text in zip(chosen, texts, strict=True)}
    out: dict[str, dict[str, Tally]] = {}
    for tag, prefix, mine in by_language(chosen):
        predictions = [answers[row["id"]] for row in mine]
        found = score_generations(predictions, [clean(row["text"]) for row in mine], mine)
        found = {name: found[name] for name in ("chrf", "exact")}
        if aligned is not None:
            cosines = _cosines(aligned, mine, predictions)
            found["clip_similarity"] = tally("clip_similarity", [row["group"] for row in mine], cosines)
        out.setdefault(tag, {}).update({prefix + name: one for name, one in found.items()})
    return out


def _cosines(aligned: Aligned, rows: Sequence[Row], texts: Sequence[str]) -> list[list[float]]:
    images = np.asarray(aligned.embed_images([decode_image(row["image"]) for row in rows]))
    captions = np.asarray(aligned.embed_texts([text or " " for text in texts]))
    return [[float(value), 1.0] for value in (images * captions).sum(axis=1)]


def by_language(rows: Sequence[Row]) -> list[tuple[str, str, list[Row]]]:
    """(language, prefix of its metrics, rows), real and synthetic rows apart."""
    kinds = sorted({(row["language"], bool(row["synthetic"])) for row in rows})
    return [
        (tag, SYNTHETIC if kind else "", [r for r in rows if r["language"] == tag and bool(r["synthetic"]) == kind])
        for tag, kind in kinds
    ]


def _nearest(rows: Sequence[Row], known: Sequence[Row]) -> list[str]:
    """The caption, in the row's language, of the training picture whose mean feature has the largest cosine."""
    out = []
    captions = {tag: [row for row in known if row["language"] == tag] for tag in {row["language"] for row in rows}}
    stacks = {tag: _means(found) for tag, found in captions.items()}
    for row in rows:
        theirs = stacks[row["language"]]
        if not len(theirs):
            out.append("")
            continue
        out.append(str(captions[row["language"]][int(np.argmax(theirs @ _means([row])[0]))]["text"]))
    return out


def _means(rows: Sequence[Row]) -> Any:
    found = np.stack([row["media"][0].features[0] for row in rows]).astype(np.float32) if rows else np.zeros((0, 1))
    return found / np.linalg.norm(found, axis=1, keepdims=True).clip(1e-9)


def _most_frequent(rows: Sequence[Row], known: Sequence[Row]) -> list[str]:
    best: dict[str, str] = {}
    for tag in {row["language"] for row in rows}:
        counts = Counter(str(row["text"]) for row in known if row["language"] == tag)
        best[tag] = min(counts, key=lambda text: (-counts[text], text)) if counts else ""
    return [best[row["language"]] for row in rows]


def _samples(one: _Set, texts: Mapping[str, Sequence[str]], adapted: bool) -> list[Sample]:
    out = []
    for place, row in enumerate(one.chosen):
        answer = texts[ADAPTER if adapted else BASE][place]
        out.append(
            Sample(
                id=row["id"],
                language=row["language"],
                source=(row["source"] or "unnamed") + (", new picture" if one.prefix else ""),
                prompt=row["prompt"] or "",
                reference=clean(row["text"]),
                base=clean(texts[BASE][place]),
                adapter=clean(answer) if adapted else None,
                chrf=sentence_chrf(answer, clean(row["text"])),
                image=row["image"],
            )
        )
    return out


def _aligned() -> Aligned | None:
    if ALIGNED not in local_bases():
        return None
    task: Aligned = load_task("align", find_base(ALIGNED, task="align"))
    return task
