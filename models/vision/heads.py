"""Few-shot classifiers on frozen features of an image-text model: six kinds, one interface, for images and texts.

Shapes: N shots, M rows to classify, C classes, D the width of the features. Features and text embeddings are scaled to
length 1 on entry, whatever their length.

- `zero_shot`: cosine with the embeddings of the classes' prompts, times the model's logit scale.
- `prototype`: ProtoNet (Snell et al. 2017, arXiv 1703.05175): minus the squared distance to each class's mean shot.
  Such distances are between 0 and 4, so its probabilities are flat: their order counts.
- `linear`: logistic regression (scikit-learn).
- `clip_adapter`: CLIP-Adapter (Gao et al. 2021, arXiv 2110.04544): a bottleneck beside the features, then zero-shot.
- `tip`: Tip-Adapter (Zhang et al. 2022, arXiv 2111.03930): zero-shot plus a cache of the shots; nothing is trained.
- `tip_f`: Tip-Adapter-F of the same paper: the cache's keys trained from there.
"""

import math
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import get_args

import torch
from pydantic import FiniteFloat, ValidationError
from safetensors.torch import load_file, save_file
from torch import Tensor
from torch.nn import functional

from kauli.models.adapters.kinds.head import HeadKind
from kauli.models.errors import KauliError, UsageError, nearest
from kauli.models.files import check_safetensors, read_json
from kauli.models.frozen import FrozenModel

HEAD_KINDS: tuple[HeadKind, ...] = get_args(HeadKind)
HEAD_WEIGHTS, HEAD_CARD = "head.safetensors", "head.json"
LOGIT_SCALE = 100.0  # where CLIP's own training ends, and what the two adapters' authors take

_NEEDS_EACH_CLASS = ("prototype", "linear")
_PENALTIES = (1.0, 10.0, 100.0, 1000.0)  # scikit-learn's C; features of length 1 need a weak penalty
_PENALTY_AT_ONE_SHOT = 10.0
_RESIDUAL, _REDUCTION = 0.2, 4  # of CLIP-Adapter
_ALPHA, _BETA = 1.0, 5.5  # Tip-Adapter's defaults
_ALPHAS = (0.1, 0.3, 0.5, _ALPHA, 2.0, 3.0, 5.0, 8.0, 13.0, 20.0, 30.0, 50.0)
_BETAS = (0.5, 1.0, 2.0, 3.5, _BETA, 8.0, 13.0, 20.0)
_STEPS = 100  # with all shots in each
_ADAPTER_LEARNING_RATE, _KEYS_LEARNING_RATE = 5e-3, 1e-3

Tensors = dict[str, Tensor]
Scalars = dict[str, float]
Fitted = tuple[Tensors, Scalars]

# What each kind is made of: tensors by their shapes (H: the bottleneck), and numbers.
_PARTS: dict[HeadKind, tuple[dict[str, str], tuple[str, ...]]] = {
    "zero_shot": ({"text": "CD"}, ("scale",)),
    "prototype": ({"prototypes": "CD"}, ()),
    "linear": ({"weight": "CD", "bias": "C"}, ()),
    "clip_adapter": ({"text": "CD", "down": "HD", "up": "DH"}, ("scale", "residual")),
    "tip": ({"text": "CD", "keys": "ND", "labels": "N"}, ("scale", "alpha", "beta")),
    "tip_f": ({"text": "CD", "keys": "ND", "labels": "N"}, ("scale", "alpha", "beta")),
}


class _Card(FrozenModel):
    """head.json."""

    kind: HeadKind
    classes: tuple[str, ...]
    scalars: dict[str, FiniteFloat]


class Head:
    """A fitted classifier; made by `fit` or `load`."""

    def __init__(self, kind: HeadKind, classes: Sequence[str], tensors: Tensors, scalars: Scalars) -> None:
        self.kind = kind
        self.classes = tuple(classes)
        self.tensors = tensors
        self.scalars = scalars

    @classmethod
    def fit(
        cls,
        kind: HeadKind,
        features: Tensor,
        labels: Tensor,
        classes: Sequence[str],
        text: Tensor | None = None,
        seed: int = 0,
        scale: float = LOGIT_SCALE,
    ) -> "Head":
        """Fit a head on the device of `features`; the same seed gives the same head, the caller's randomness stays.

        Args:
            kind: one of HEAD_KINDS.
            features: (N, D) of the shots; zero_shot uses none, so there N may be 0.
            labels: (N,) int64, the shots' places in `classes`.
            classes: at least two names.
            text: (C, D) embeddings of the classes' prompts; prototype and linear do without.
            seed: of the bottleneck's start (clip_adapter) and of the folds by which the penalty is chosen (linear).
            scale: the model's logit scale.

        Raises `UsageError` for what does not fit together.
        """
        if kind not in HEAD_KINDS:
            raise UsageError(f"unknown kind of head '{kind}': {', '.join(HEAD_KINDS)}.{nearest(kind, HEAD_KINDS)}")
        # A server may call this in inference mode, whose tensors know no gradients.
        with torch.inference_mode(False), torch.enable_grad():
            _check_shots(kind, features, labels, classes, text)
            labels = labels.to(features.device, copy=True)
            prompts = None if text is None else _unit(text).to(features.device)
            tensors, scalars = _FIT[kind](_unit(features), labels, len(classes), prompts, seed, scale)
            # safetensors stores no views
            return cls(kind, classes, {name: part.detach().contiguous() for name, part in tensors.items()}, scalars)

    @property
    def width(self) -> int:
        """D, the width of the features that it takes."""
        name = next(name for name, shape in _PARTS[self.kind][0].items() if shape == "CD")
        return self.tensors[name].shape[1]

    @torch.no_grad()
    def logits(self, features: Tensor) -> Tensor:
        """(M, C) logits of features (M, D), float32, on their device."""
        _check_features(features, self.width)
        tensors = {name: part.to(features.device) for name, part in self.tensors.items()}
        return _LOGITS[self.kind](_unit(features), len(self.classes), tensors, self.scalars)

    def probabilities(self, features: Tensor) -> Tensor:
        """(M, C): the softmax of the logits."""
        return self.logits(features).softmax(dim=-1)

    def save(self, folder: Path) -> None:
        """Write head.safetensors and head.json into the folder."""
        folder.mkdir(parents=True, exist_ok=True)
        save_file({name: part.cpu() for name, part in self.tensors.items()}, folder / HEAD_WEIGHTS)
        card = _Card(kind=self.kind, classes=self.classes, scalars=self.scalars)
        (folder / HEAD_CARD).write_text(card.model_dump_json(indent=2) + "\n", encoding="utf-8")

    @classmethod
    def load(cls, folder: Path) -> "Head":
        """Read what `save` wrote, onto the CPU; raises `KauliError` when it is missing, damaged or does not fit."""
        path = folder / HEAD_WEIGHTS
        for file in (folder / HEAD_CARD, path):
            if not file.is_file():
                raise KauliError(f"{file} is missing: the head is not whole. Train it again.")
        try:
            card = _Card.model_validate(read_json(folder / HEAD_CARD))
        except ValidationError as error:
            first = error.errors()[0]
            where = ".".join(map(str, first["loc"])) or "the whole"
            raise KauliError(f"{folder / HEAD_CARD} is damaged: {where}: {first['msg']}.") from error
        if set(card.scalars) != set(_PARTS[card.kind][1]):
            wanted = ", ".join(_PARTS[card.kind][1]) or "none"
            raise KauliError(f"{folder / HEAD_CARD} lacks the numbers of a {card.kind} head: {wanted}.")
        _check_parts(card, check_safetensors(path), path)
        tensors = load_file(path)
        if not all(bool(part.isfinite().all()) for part in tensors.values()):
            raise KauliError(f"{path} holds numbers that are not finite: the head is damaged.")
        labels = tensors.get("labels")
        if labels is not None and (labels.dtype != torch.int64 or not _in_range(labels, len(card.classes))):
            raise KauliError(f"{path} has labels beyond its {len(card.classes)} classes: the head is damaged.")
        return cls(card.kind, card.classes, tensors, dict(card.scalars))


def needs_text(kind: HeadKind) -> bool:
    """Whether a head of this kind takes the names of its classes, in one space with the images."""
    return "text" in _PARTS[kind][0]


def _check_shots(kind: HeadKind, features: Tensor, labels: Tensor, classes: Sequence[str], text: Tensor | None) -> None:
    if len(classes) < 2 or len(set(classes)) != len(classes):
        raise UsageError(f"a head needs two or more classes with different names, not {list(classes)!r}.")
    if features.ndim != 2 or labels.ndim != 1 or len(features) != len(labels):
        raise UsageError(
            f"features must be (N, D) and labels (N,), not {tuple(features.shape)} and {tuple(labels.shape)}."
        )
    _check_features(features, features.shape[1])
    if text is None and needs_text(kind):
        raise UsageError(
            f"a {kind} head needs `text`, an embedding of each class's prompt; prototype and linear do without."
        )
    if text is not None:
        if text.shape != (len(classes), features.shape[1]):
            raise UsageError(
                f"text must be (C, D), here {(len(classes), features.shape[1])}, not {tuple(text.shape)}: "
                "an embedding for each class, from the model that made the features."
            )
        _check_features(text, text.shape[1])
    if labels.dtype != torch.int64 or not _in_range(labels, len(classes)):
        found = f"{labels.dtype}, {sorted(set(labels.tolist()))[:20]}"
        raise UsageError(f"labels must be int64 from 0 to {len(classes) - 1}, the indices of the classes, not {found}.")
    missing = sorted(set(range(len(classes))) - set(labels.tolist()))
    if missing and kind in _NEEDS_EACH_CLASS:
        listed = ", ".join(f"'{classes[place]}'" for place in missing)
        raise UsageError(f"a {kind} head needs a shot of every class: add one of {listed}, or leave the class out.")
    if not len(labels) and kind != "zero_shot":
        raise UsageError(f"a {kind} head needs shots: give some, or take zero_shot.")


def _check_features(features: Tensor, width: int) -> None:
    if features.ndim != 2 or features.shape[1] != width or not features.is_floating_point():
        raise UsageError(
            f"features must be floats (M, {width}), not {features.dtype} {tuple(features.shape)}: "
            "take them from the model that the head was fitted on."
        )
    if not bool(features.isfinite().all()):
        row = int((~features.isfinite()).any(dim=1).nonzero()[0])
        raise UsageError(f"row {row} of the features holds NaN or infinity: check the image or text behind it.")


def _check_parts(card: _Card, shapes: dict[str, tuple[int, ...]], path: Path) -> None:
    """Refuse tensors that are not those of the kind, or whose shapes contradict each other or the classes."""
    wanted = _PARTS[card.kind][0]
    if set(shapes) != set(wanted):
        raise KauliError(f"{path} lacks the tensors of a {card.kind} head: {', '.join(wanted)}.")
    sizes = {"C": len(card.classes)}
    for name, letters in wanted.items():
        shape = shapes[name]
        fits = len(shape) == len(letters)
        if not fits or any(sizes.setdefault(letter, size) != size for letter, size in zip(letters, shape, strict=True)):
            raise KauliError(f"{path}: {name} has shape {shape}, which does not fit the rest of the {card.kind} head.")


def _in_range(labels: Tensor, classes: int) -> bool:
    return bool(((labels >= 0) & (labels < classes)).all())


def _unit(features: Tensor) -> Tensor:
    return functional.normalize(features.detach().float(), dim=-1)


def _fit_zero_shot(features: Tensor, labels: Tensor, classes: int, text: Tensor, seed: int, scale: float) -> Fitted:
    return {"text": text}, {"scale": scale}


def _fit_prototype(
    features: Tensor, labels: Tensor, classes: int, text: Tensor | None, seed: int, scale: float
) -> Fitted:
    member = functional.one_hot(labels, classes).float()
    return {"prototypes": member.T @ features / member.sum(dim=0)[:, None]}, {}


def _fit_linear(features: Tensor, labels: Tensor, classes: int, text: Tensor | None, seed: int, scale: float) -> Fitted:
    from sklearn.linear_model import LogisticRegression  # here: a fitted head needs no scikit-learn

    x, y = features.cpu().double().numpy(), labels.cpu().numpy()
    model = LogisticRegression(C=_choose_penalty(features, labels, seed), max_iter=1000).fit(x, y)
    weight, bias = torch.from_numpy(model.coef_), torch.from_numpy(model.intercept_)
    if classes == 2:  # scikit-learn keeps the second class's row only; the other's logit is 0
        weight, bias = (torch.cat([torch.zeros_like(part), part]) for part in (weight, bias))
    return {"weight": weight.float().to(features.device), "bias": bias.float().to(features.device)}, {}


def _choose_penalty(features: Tensor, labels: Tensor, seed: int) -> float:
    """The C with the least log loss on held-out shots, in at most three folds."""
    from sklearn.linear_model import LogisticRegression
    from sklearn.model_selection import StratifiedKFold, cross_val_score

    folds = min(3, int(labels.bincount().min()))
    if folds < 2:
        return _PENALTY_AT_ONE_SHOT
    x, y = features.cpu().double().numpy(), labels.cpu().numpy()
    split = StratifiedKFold(folds, shuffle=True, random_state=seed % 2**32)
    scores = [
        cross_val_score(LogisticRegression(C=value, max_iter=1000), x, y, cv=split, scoring="neg_log_loss").mean()
        for value in _PENALTIES
    ]
    return _PENALTIES[scores.index(max(scores))]


def _fit_clip_adapter(features: Tensor, labels: Tensor, classes: int, text: Tensor, seed: int, scale: float) -> Fitted:
    width = features.shape[1]
    hidden = max(1, width // _REDUCTION)
    random = torch.Generator().manual_seed(seed % 2**63)  # on the CPU: the same start on every device
    tensors = {"text": text}
    for name, (rows, columns) in {"down": (hidden, width), "up": (width, hidden)}.items():
        start = torch.empty(rows, columns).uniform_(-1, 1, generator=random) / math.sqrt(columns)
        tensors[name] = start.to(features.device)
    scalars = {"scale": scale, "residual": _RESIDUAL}

    def loss(trained: Tensors) -> Tensor:
        logits = _clip_adapter_logits(features, classes, tensors | trained, scalars)
        return functional.cross_entropy(logits, labels)

    trained = _descend({name: tensors[name] for name in ("down", "up")}, loss, _ADAPTER_LEARNING_RATE)
    return tensors | trained, scalars


def _fit_tip(features: Tensor, labels: Tensor, classes: int, text: Tensor, seed: int, scale: float) -> Fitted:
    alpha, beta = _choose_tip(features, labels, classes, scale * features @ text.T)
    scalars = {"scale": scale, "alpha": alpha, "beta": beta}
    return {"text": text, "keys": features, "labels": labels}, scalars


def _choose_tip(features: Tensor, labels: Tensor, classes: int, zero_shot: Tensor) -> tuple[float, float]:
    """Alpha and beta by leaving each shot out of the cache: most are right, then the least cross entropy.

    The paper's defaults where some class has one shot.
    """
    if not _can_leave_one_out(labels):
        return _ALPHA, _BETA
    values = functional.one_hot(labels, classes).float()
    affinity = (features @ features.T).fill_diagonal_(float("-inf"))
    best = (-1.0, 0.0, _ALPHA, _BETA)
    for beta in _BETAS:
        cache = torch.exp(-beta * (1 - affinity)) @ values
        for alpha in _ALPHAS:
            logits = zero_shot + alpha * cache
            right = float((logits.argmax(dim=-1) == labels).float().mean())
            best = max(best, (right, -float(functional.cross_entropy(logits, labels)), alpha, beta))
    return best[2], best[3]


def _can_leave_one_out(labels: Tensor) -> bool:
    """Whether each class that has shots keeps one when one is left out."""
    counts = labels.bincount()
    return int(counts[counts > 0].min()) > 1


def _fit_tip_f(features: Tensor, labels: Tensor, classes: int, text: Tensor, seed: int, scale: float) -> Fitted:
    tensors, scalars = _fit_tip(features, labels, classes, text, seed, scale)
    values = functional.one_hot(labels, classes).float()
    # The paper trains on views of the shots that differ from the keys. Features are fixed here, so a shot would find
    # itself in the cache and learn nothing: it attends to the other shots' keys, where its class has another one.
    others = torch.ones(len(features), len(features), device=features.device)
    if _can_leave_one_out(labels):
        others.fill_diagonal_(0.0)

    def loss(trained: Tensors) -> Tensor:
        affinity = others * torch.exp(-scalars["beta"] * (1 - features @ trained["keys"].T))
        return functional.cross_entropy(scale * features @ text.T + scalars["alpha"] * affinity @ values, labels)

    return tensors | _descend({"keys": features}, loss, _KEYS_LEARNING_RATE), scalars


def _descend(start: Tensors, loss: Callable[[Tensors], Tensor], learning_rate: float) -> Tensors:
    """The tensors of least loss along AdamW's steps from `start`, which is not changed."""
    live = {name: part.clone().requires_grad_() for name, part in start.items()}
    optimizer = torch.optim.AdamW(live.values(), lr=learning_rate, eps=1e-4)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, _STEPS)
    least, best = math.inf, start
    for step in range(_STEPS + 1):
        value = loss(live)
        if value.item() < least:
            least, best = value.item(), {name: part.detach().clone() for name, part in live.items()}
        if step < _STEPS:
            optimizer.zero_grad()
            value.backward()  # type: ignore[no-untyped-call]
            optimizer.step()
            schedule.step()
    return best


def _zero_shot_logits(features: Tensor, classes: int, tensors: Tensors, scalars: Scalars) -> Tensor:
    return scalars["scale"] * features @ tensors["text"].T


def _prototype_logits(features: Tensor, classes: int, tensors: Tensors, scalars: Scalars) -> Tensor:
    prototypes = tensors["prototypes"]
    # |x - p|^2 multiplied out: (M, C, D) differences would be large
    return 2 * features @ prototypes.T - features.square().sum(-1, keepdim=True) - prototypes.square().sum(-1)


def _linear_logits(features: Tensor, classes: int, tensors: Tensors, scalars: Scalars) -> Tensor:
    return features @ tensors["weight"].T + tensors["bias"]


def _clip_adapter_logits(features: Tensor, classes: int, tensors: Tensors, scalars: Scalars) -> Tensor:
    bottleneck = torch.relu(features @ tensors["down"].T) @ tensors["up"].T
    mixed = scalars["residual"] * bottleneck + (1 - scalars["residual"]) * features
    return scalars["scale"] * functional.normalize(mixed, dim=-1) @ tensors["text"].T


def _tip_logits(features: Tensor, classes: int, tensors: Tensors, scalars: Scalars) -> Tensor:
    affinity = torch.exp(-scalars["beta"] * (1 - features @ tensors["keys"].T))
    values = functional.one_hot(tensors["labels"], classes).float()
    return scalars["scale"] * features @ tensors["text"].T + scalars["alpha"] * affinity @ values


_FIT: dict[HeadKind, Callable[..., Fitted]] = {
    "zero_shot": _fit_zero_shot,
    "prototype": _fit_prototype,
    "linear": _fit_linear,
    "clip_adapter": _fit_clip_adapter,
    "tip": _fit_tip,
    "tip_f": _fit_tip_f,
}
_LOGITS: dict[HeadKind, Callable[[Tensor, int, Tensors, Scalars], Tensor]] = {
    "zero_shot": _zero_shot_logits,
    "prototype": _prototype_logits,
    "linear": _linear_logits,
    "clip_adapter": _clip_adapter_logits,
    "tip": _tip_logits,
    "tip_f": _tip_logits,
}
