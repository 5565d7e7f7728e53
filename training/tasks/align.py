"""The task `align` in training: pairs of pictures and captions in many languages, on features that are cached."""

import hashlib
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from copy import deepcopy
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.distributed.nn.functional import all_gather
from torch.nn import functional

from kauli.models.vision.align import AlignTask, pair_losses
from kauli.models.vision.projections import Projections
from kauli.training.evaluation.retrieval import distinct, retrieval_ranks
from kauli.training.features.pairs import picture_features, text_features
from kauli.training.methods import Projection
from kauli.training.recipe import Recipe
from kauli.training.tasks.sampler import Plan
from kauli.training.tasks.text import Examples

Row = Mapping[str, Any]
SIDES = ("image", "text")


class PairPlan(Plan):
    """Each epoch every picture once, `batch` distinct ones to a step, each with a caption and a view drawn for it.

    The language is drawn first, with the same chance for each that the picture has a caption in, so that a language
    with few captions is learned as often as another. An index is `view * rows + row`. A pure function of rows, seed and
    step, like its parent.
    """

    def __init__(self, rows: Sequence[Row], batch: int, views: int, seed: int) -> None:
        captions: dict[str, dict[str, list[int]]] = defaultdict(lambda: defaultdict(list))
        for place, row in enumerate(rows):
            captions[row["picture"]][row["language"]].append(place)
        self._captions = [
            [captions[picture][language] for language in sorted(captions[picture])] for picture in sorted(captions)
        ]
        self._rows, self._views = len(rows), views
        super().__init__([1] * len(self._captions), batch, seed)

    def steps(self, start: int = 0) -> Iterator[list[int]]:
        """The indices of each step from step number `start` on, without end."""
        for number, pictures in enumerate(super().steps()):
            if number < start:
                continue
            digest = hashlib.sha256(f"{self._seed}/pairs/{number}".encode()).digest()
            random = np.random.default_rng(int.from_bytes(digest[:8], "big"))
            yield [self._pair(random, self._captions[picture]) for picture in pictures]

    def _pair(self, random: np.random.Generator, captions: Sequence[Sequence[int]]) -> int:
        language = captions[int(random.integers(len(captions)))]
        row = language[int(random.integers(len(language)))]
        return int(random.integers(self._views)) * self._rows + row


@dataclass(frozen=True)
class Share:
    """A worker's pairs of a step: features (N, W_image) and (N, W_text), N alike on all workers.

    `groups` (M,) are the group numbers of the pairs of all workers, this one's from `first` on; -1 fills up a share.
    """

    images: Tensor
    texts: Tensor
    groups: Tensor
    first: int

    def to(self, device: torch.device) -> "Share":
        """The same on another device."""
        return replace(self, images=self.images.to(device), texts=self.texts.to(device), groups=self.groups.to(device))


class _Contrast(nn.Module):
    """The contrastive loss of a share against the pairs of all workers."""

    def __init__(self, projections: Projections, recipe: Recipe) -> None:
        super().__init__()
        assert recipe.pairs is not None
        self.projections, self._pairs = projections, recipe.pairs

    def forward(self, share: Share) -> Tensor:
        own, settings = self.projections, self._pairs
        images = functional.dropout(share.images, settings.dropout, self.training)
        texts = functional.dropout(share.texts, settings.dropout, self.training)
        several = len(share.groups) > len(share.images)
        return pair_losses(
            functional.normalize(own.image(images), dim=-1),
            functional.normalize(own.text(texts), dim=-1),
            share.groups,
            own.logit_scale,
            own.logit_bias if settings.loss == "siglip" else None,
            gather=_gathered if several else None,
            first=share.first,
            smoothing=settings.smoothing,
        )


def _gathered(mine: Tensor) -> Tensor:
    """(N, dim) of this worker -> (M, dim) of all; a gradient comes back from each of them."""
    return torch.cat(all_gather(mine))  # type: ignore[no-untyped-call]


class AlignLearner:
    """Projections that learn to bring a picture and its captions together. Towers run once, before the training."""

    cut = 0

    def __init__(self, task: AlignTask, recipe: Recipe, examples: Examples) -> None:
        """`task` holds the bare base. Rows have `picture` (the SHA-256 of its bytes) and the columns of a data set."""
        assert recipe.pairs is not None
        self.task, self._recipe, self._pairs, self._examples = task, recipe, recipe.pairs, examples
        self.device = task.device
        rows = examples.train
        self.lengths = [1] * (len(rows) * self._pairs.views)
        numbers = {group: number for number, group in enumerate(sorted({row["group"] for row in rows}))}
        self._groups = torch.tensor([numbers[row["group"]] for row in rows])
        views = [picture_features(task, rows, recipe.picture_augment, view) for view in range(self._pairs.views)]
        self._features = {"image": torch.cat(views), "text": text_features(task, rows)}
        validation = examples.validation
        self._validation = {"image": picture_features(task, validation), "text": text_features(task, validation)}
        self._maps: dict[str, Tensor | None] = dict.fromkeys(SIDES)

    def attach(self, start: Path | None) -> None:
        task, recipe = self.task, self._recipe
        if start is not None:
            task.start_from(start)
        own = task.model
        assert isinstance(own, Projections)
        if self._pairs.loss == "siglip":
            own.add_bias()
        assert isinstance(recipe.method, Projection)
        task.model = recipe.method.attach(own, task.base.reference)
        if own.logit_bias is not None:
            own.logit_bias.requires_grad_(self._pairs.loss == "siglip")
        if start is None and self._pairs.start == "fresh":
            self._begin_anew(own)

    def _begin_anew(self, own: Projections) -> None:
        """Draw the projections from torch's random state, to read features without their common part, scaled alike.

        Without it what all pictures (or all texts) have in common fills the embeddings, and what tells them apart
        comes late. It is a linear map, which `save` multiplies into the first layer: no bias is needed for it.
        """
        for side in SIDES:
            layer = own.first(side)
            if layer is None:
                continue
            raw = self._features[side]
            seen = raw[: len(self._groups)]
            mean = seen.mean(dim=0)
            without = torch.eye(len(mean)) - torch.outer(mean, mean) / mean.square().sum().clamp(min=1e-12)
            spread = (seen @ without).std(dim=0)
            self._maps[side] = without / spread.clamp(min=float(spread.mean()) * 0.01)  # of columns: features @ map
            self._features[side] = raw @ self._maps[side]  # type: ignore[operator]
            for module in getattr(own, side).modules():
                if isinstance(module, nn.Linear):
                    module.reset_parameters()
        with torch.no_grad():
            own.logit_scale.fill_(float(np.log(1 / 0.07 if self._pairs.loss == "clip" else 10.0)))

    @property
    def trained(self) -> nn.Module:
        return self.task.model

    def objective(self) -> nn.Module:
        assert isinstance(self.task.model, Projections)
        return _Contrast(self.task.model, self._recipe)

    def plan(self) -> Plan:
        return PairPlan(self._examples.train, self._pairs.batch, self._pairs.views, self._recipe.train.seed)

    def groups(self, parameters: Mapping[str, nn.Parameter]) -> list[dict[str, Any]]:
        matrices = [value for value in parameters.values() if value.ndim > 1]
        others = [value for value in parameters.values() if value.ndim < 2]
        shared = {"full": self._recipe.train.learning_rate, "begins": 0.0}
        return [{"params": matrices, **shared}, {"params": others, "weight_decay": 0.0, **shared}]

    def terms(self, step: Sequence[int]) -> int:
        return len(step)

    def batches(self, step: Sequence[int], rank: int, world: int) -> list[tuple[Share, float]]:
        size = -(-len(step) // world)
        filled = torch.tensor([*step, *[step[0]] * (size * world - len(step))])
        rows = filled % len(self._groups)
        groups = self._groups[rows].clone()
        groups[len(step) :] = -1
        mine = slice(rank * size, (rank + 1) * size)
        share = Share(self._features["image"][filled[mine]], self._features["text"][rows[mine]], groups, rank * size)
        return [(share.to(self.device), 1.0)]

    def validate(self, rank: int, world: int, bare: bool) -> Tensor:
        """1 - the mean reciprocal rank of picture -> text in the validation split, summed over languages, and their
        number.
        """
        own = self.task.bare if bare else self._folded()
        sums = torch.zeros(2, dtype=torch.float64)
        with torch.inference_mode():
            images, texts = (
                functional.normalize(getattr(own, side)(self._validation[side].to(self.device)), dim=-1)
                for side in SIDES
            )
        rows = self._examples.validation
        for language in sorted({row["language"] for row in rows})[rank::world]:
            places = [place for place, row in enumerate(rows) if row["language"] == language]
            pictures = distinct(places, [rows[place]["picture"] for place in places])
            groups = [rows[place]["group"] for place in places]
            ranks = retrieval_ranks(
                (images[pictures] @ texts[places].T).cpu(), [rows[place]["group"] for place in pictures], groups
            )
            sums += torch.tensor([1 - float(np.mean(1 / ranks)), 1.0], dtype=torch.float64)
        return sums

    def save(self, folder: Path) -> None:
        trained = self.task.model
        self.task.model = self._folded()
        self.task.save(folder)
        self.task.model = trained

    def _folded(self) -> Projections:
        """The projections as they read plain features."""
        assert isinstance(self.task.model, Projections)
        own = deepcopy(self.task.model).eval()
        for side, found in self._maps.items():
            layer = own.first(side)
            if found is not None and layer is not None:
                with torch.no_grad():
                    layer.weight.copy_(layer.weight @ found.T.to(layer.weight.device))
        return own
