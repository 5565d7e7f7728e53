"""The task `align` in training: pairs of images and captions in many languages, on features that are cached."""

import hashlib
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from copy import deepcopy
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Annotated, Any, Literal, Self

import numpy as np
import torch
from pydantic import Field, model_validator
from torch import Tensor, nn
from torch.distributed.nn.functional import all_gather
from torch.nn import functional

from kauli.models.adapters.kinds.base import AdapterKind
from kauli.models.bases.find import Base
from kauli.models.frozen import FrozenModel
from kauli.models.tasks import load_trainable
from kauli.models.vision.projections import Projections
from kauli.models.vision.training import TrainableAlign, pair_losses
from kauli.training.augment.image import ImageAugmentation, warn_of_risk
from kauli.training.augment.table import augmentations
from kauli.training.data.dataset import Dataset
from kauli.training.evaluation.request import EvalRequest
from kauli.training.evaluation.results import EvalResult
from kauli.training.evaluation.retrieval import distinct, evaluate_align, paired_rows, retrieval_ranks
from kauli.training.features.pairs import image_features, text_features
from kauli.training.recipe import Recipe, method_of
from kauli.training.tasks.base import Examples, Learner, Row, TrainingTask
from kauli.training.tasks.rows import check_rows, image_sides, made_up_rows
from kauli.training.tasks.sampler import Plan

SIDES = ("image", "text")


class AlignSection(FrozenModel):
    """How images and captions are brought together, for the task `align`."""

    loss: Literal["clip", "siglip"] = "clip"
    """`clip`: each among all others, by a softmax in both directions; `siglip`: each pair alone, by a sigmoid."""
    init: Literal["base", "fresh"] = "base"
    """The projections' initial weights: those of the base, or, where they are of no use, random ones."""
    batch: int = Field(default=256, ge=2)
    """Distinct images of one optimiser step over all workers, each with one of its captions."""
    views: int = Field(default=1, ge=1, le=32)
    """Views of each image: the image itself, and augmented ones."""
    dropout: float = Field(default=0.0, ge=0, lt=1)
    """The share of each feature vector that is hidden from the projections in a step."""
    label_smoothing: float = Field(default=0.0, ge=0, lt=1)
    """For `clip`: the share of the target that is spread over all others."""

    @model_validator(mode="after")
    def _softmax_alone(self) -> Self:
        if self.label_smoothing and self.loss != "clip":
            raise ValueError("label_smoothing is for the loss 'clip': a sigmoid has no target to spread")
        return self


class AlignRecipe(Recipe):
    """A recipe of the task `align`."""

    task: Literal["align"] = "align"
    method: Annotated[AdapterKind, method_of("align")]
    augment: tuple[Annotated[ImageAugmentation, augmentations("image")], ...] = ()
    """Augmentations of images, applied in this order."""
    align: AlignSection
    """The loss and the batches."""

    @model_validator(mode="after")
    def _augmented_views(self) -> Self:
        if bool(self.augment) != (self.align.views > 1):
            raise ValueError("augment and align.views of 2 or more go together: the first view is the image as it is")
        return self


class PairPlan(Plan):
    """Each epoch every image once, `batch` distinct ones to a step, each with a caption and a view drawn for it.

    The language is drawn first, with the same chance for each that the image has a caption in, so that a language with
    few captions is learned as often as another. An index is `view * rows + row`. A pure function of rows, seed and
    step, like its parent.
    """

    def __init__(self, rows: Sequence[Row], batch: int, views: int, seed: int) -> None:
        captions: dict[str, dict[str, list[int]]] = defaultdict(lambda: defaultdict(list))
        for place, row in enumerate(rows):
            captions[row["image_key"]][row["language"]].append(place)
        self._captions = [[captions[key][language] for language in sorted(captions[key])] for key in sorted(captions)]
        self._rows, self._views = len(rows), views
        super().__init__([1] * len(self._captions), batch, seed)

    def steps(self, start: int = 0) -> Iterator[list[int]]:
        """The indices of each step from step number `start` on, without end."""
        for number, images in enumerate(super().steps()):
            if number < start:
                continue
            digest = hashlib.sha256(f"{self._seed}/pairs/{number}".encode()).digest()
            random = np.random.default_rng(int.from_bytes(digest[:8], "big"))
            yield [self._pair(random, self._captions[image]) for image in images]

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

    def __init__(self, projections: Projections, section: AlignSection) -> None:
        super().__init__()
        self.projections, self._section = projections, section

    def forward(self, share: Share) -> Tensor:
        own, settings = self.projections, self._section
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
            smoothing=settings.label_smoothing,
        )


def _gathered(mine: Tensor) -> Tensor:
    """(N, dim) of this worker -> (M, dim) of all; a gradient comes back from each of them."""
    return torch.cat(all_gather(mine))  # type: ignore[no-untyped-call]


class AlignLearner(Learner):
    """Projections that learn to bring an image and its captions together. Towers run once, before the training."""

    def __init__(self, task: TrainableAlign, recipe: AlignRecipe, examples: Examples) -> None:
        """Rows are those of `image_rows`."""
        super().__init__(task, recipe, examples)
        self._section = recipe.align
        rows = examples.train
        self.lengths = [1] * (len(rows) * self._section.views)
        numbers = {group: number for number, group in enumerate(sorted({row["group"] for row in rows}))}
        self._groups = torch.tensor([numbers[row["group"]] for row in rows])
        views = [image_features(task, rows, recipe.augment, view) for view in range(self._section.views)]
        self._features = {"image": torch.cat(views), "text": text_features(task, rows)}
        validation = examples.validation
        self._validation = {"image": image_features(task, validation), "text": text_features(task, validation)}
        self._maps: dict[str, Tensor | None] = dict.fromkeys(SIDES)

    def attach(self, start: Path | None) -> None:
        task, recipe = self.task, self.recipe
        if start is not None:
            task.start_from(start)
        own: Projections = task.model
        if self._section.loss == "siglip":
            own.add_bias()
        task.attach(recipe.method)
        if own.logit_bias is not None:
            own.logit_bias.requires_grad_(self._section.loss == "siglip")
        if start is None and self._section.init == "fresh":
            self._initialise(own)

    def _initialise(self, own: Projections) -> None:
        """Draw the projections from torch's random state, to read features without their common part, scaled alike.

        Without it what all images (or all texts) have in common fills the embeddings, and what tells them apart
        comes late. It is a linear map, which `save` multiplies into the first layer: no bias is needed for it.
        """
        for side in SIDES:
            layer = own.first(side)
            if layer is None:
                continue
            raw = self._features[side]
            images = raw[: len(self._groups)]
            mean = images.mean(dim=0)
            without = torch.eye(len(mean)) - torch.outer(mean, mean) / mean.square().sum().clamp(min=1e-12)
            spread = (images @ without).std(dim=0)
            self._maps[side] = without / spread.clamp(min=float(spread.mean()) * 0.01)  # of columns: features @ map
            self._features[side] = raw @ self._maps[side]  # type: ignore[operator]
            for module in getattr(own, side).modules():
                if isinstance(module, nn.Linear):
                    module.reset_parameters()
        with torch.no_grad():
            own.logit_scale.fill_(float(np.log(1 / 0.07 if self._section.loss == "clip" else 10.0)))

    def objective(self) -> nn.Module:
        return _Contrast(self.task.model, self._section)

    def plan(self) -> Plan:
        return PairPlan(self.examples.train, self._section.batch, self._section.views, self.recipe.train.seed)

    def groups(self, parameters: Mapping[str, nn.Parameter]) -> list[dict[str, Any]]:
        matrices = [value for value in parameters.values() if value.ndim > 1]
        others = [value for value in parameters.values() if value.ndim < 2]
        shared = {"peak": self.recipe.train.learning_rate, "start": 0.0}
        return [{"params": matrices, **shared}, {"params": others, "weight_decay": 0.0, **shared}]

    def num_targets(self, step: Sequence[int]) -> int:
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
        """1 - the mean reciprocal rank of image -> text in the validation split, summed over languages, and their
        number.
        """
        own = self.task.bare if bare else self._folded()
        sums = torch.zeros(2, dtype=torch.float64)
        with torch.inference_mode():
            images, texts = (
                functional.normalize(getattr(own, side)(self._validation[side].to(self.device)), dim=-1)
                for side in SIDES
            )
        rows = self.examples.validation
        for language in sorted({row["language"] for row in rows})[rank::world]:
            places = [place for place, row in enumerate(rows) if row["language"] == language]
            asking = distinct(places, [rows[place]["image_key"] for place in places])
            groups = [rows[place]["group"] for place in places]
            ranks = retrieval_ranks(
                (images[asking] @ texts[places].T).cpu(), [rows[place]["group"] for place in asking], groups
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
        own: Projections = deepcopy(self.task.model).eval()
        for side, found in self._maps.items():
            layer = own.first(side)
            if found is not None and layer is not None:
                with torch.no_grad():
                    layer.weight.copy_(layer.weight @ found.T.to(layer.weight.device))
        return own


class AlignTraining(TrainingTask):
    """Images and texts in one space."""

    name = "align"
    proved = False
    recipe = AlignRecipe

    def rows(self, recipe: AlignRecipe, dataset: Dataset, base: Base) -> Examples:
        """Rows with an image and a text; validation takes all of them."""
        found = image_sides(recipe, dataset)
        notes = [*found.notes, *check_rows(recipe, (found.train, found.validation), "image with a text", found.notes)]
        if recipe.augment and (warning := warn_of_risk(found.train, recipe.augment)):
            notes.append(warning)
        validation = sorted(found.validation, key=lambda row: str(row["id"]))
        return replace(found, validation=validation, notes=tuple(notes))

    def dummy_rows(self) -> list[Row]:
        """A colour each."""
        return made_up_rows("image")

    def learner(self, recipe: AlignRecipe, base: Base, examples: Examples, device: str) -> Learner:
        """The projections and the cached features of the towers."""
        return AlignLearner(load_trainable(self.name, base, device=device, dtype=torch.float32), recipe, examples)

    def check_measurable(self, request: EvalRequest) -> None:
        """Images with a text."""
        paired_rows(request)

    def evaluate(self, request: EvalRequest) -> EvalResult:
        """Retrieval in both directions."""
        return evaluate_align(request)
