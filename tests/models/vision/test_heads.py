"""Few-shot heads: known answers, the same head by the same seed, and one clear error for each mistake."""

import json
import math
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from sklearn.linear_model import LogisticRegression
from torch import Tensor
from torch.nn import functional

from kauli.models.errors import KauliError, UsageError
from kauli.models.vision.heads import HEAD_CARD, HEAD_KINDS, HEAD_WEIGHTS, Head, HeadKind

CLASSES = ("paka", "mbwa", "ndege")
WIDTH = 16


def cloud(shots: int, seed: int = 0, noise: float = 0.6) -> tuple[Tensor, Tensor, Tensor]:
    """Features (3 * shots, 16) around three directions, their labels, and text (3, 16) near the directions."""
    random = torch.Generator().manual_seed(seed)
    centres = functional.normalize(torch.randn(3, WIDTH, generator=torch.Generator().manual_seed(99)), dim=-1)
    labels = torch.arange(3).repeat_interleave(shots)
    features = centres[labels] + noise * torch.randn(len(labels), WIDTH, generator=random) / math.sqrt(WIDTH)
    text = centres + 0.9 * torch.randn(3, WIDTH, generator=random) / math.sqrt(WIDTH)
    return functional.normalize(features, dim=-1), labels, functional.normalize(text, dim=-1)


def right(head: Head, features: Tensor, labels: Tensor) -> float:
    return float((head.logits(features).argmax(dim=-1) == labels).float().mean())


def test_prototypes_are_means_over_shots() -> None:
    shots = torch.tensor([[1.0, 0.0], [0.6, 0.8], [0.0, 1.0], [0.0, -1.0], [-1.0, 0.0]])
    labels = torch.tensor([0, 0, 1, 1, 1])
    head = Head.fit("prototype", shots, labels, ("a", "b"))
    # the means are (0.8, 0.4) and (-1/3, 0); from (0, 1): 0.64 + 0.36 and 1/9 + 1, from (0.6, 0.8): 0.04 + 0.16
    # and (14/15)^2 + 0.64
    found = head.logits(torch.tensor([[0.0, 1.0], [0.6, 0.8]]))
    torch.testing.assert_close(found, -torch.tensor([[1.0, 10 / 9], [0.2, (14 / 15) ** 2 + 0.64]]))
    chance = head.probabilities(torch.tensor([[0.0, 1.0]]))[0, 0]
    assert float(chance) == pytest.approx(1 / (1 + math.exp(-1 / 9)))


def test_zero_shot_is_cosine_times_the_scale() -> None:
    text = torch.tensor([[2.0, 0.0], [0.0, 0.5]])
    head = Head.fit("zero_shot", torch.zeros(0, 2), torch.zeros(0, dtype=torch.int64), ("a", "b"), text, scale=10.0)
    torch.testing.assert_close(head.logits(torch.tensor([[3.0, 4.0]])), torch.tensor([[6.0, 8.0]]))


def test_tip_adapter_adds_the_cache_to_zero_shot() -> None:
    shots = torch.tensor([[1.0, 0.0], [0.6, 0.8]])  # one a class: the paper's alpha = 1 and beta = 5.5
    text = torch.tensor([[0.8, 0.6], [0.0, 1.0]])
    head = Head.fit("tip", shots, torch.tensor([0, 1]), ("a", "b"), text, scale=10.0)
    assert head.scalars == {"scale": 10.0, "alpha": 1.0, "beta": 5.5}
    # x = (0.8, 0.6): cosines with the text 1 and 0.6, with the keys 0.8 and 0.96
    wanted = [10 * 1.0 + math.exp(-5.5 * 0.2), 10 * 0.6 + math.exp(-5.5 * 0.04)]
    torch.testing.assert_close(head.logits(torch.tensor([[0.8, 0.6]])), torch.tensor([wanted]))


def test_tip_adapter_chooses_by_leaving_one_out() -> None:
    # The text is wrong about both classes by 0.2 * scale = 2 logits; two shots lie at one place in each class, so each
    # shot that is left out still finds the other, and only an alpha above 2 outvotes the text.
    shots = torch.tensor([[1.0, 0.0], [1.0, 0.0], [0.0, 1.0], [0.0, 1.0]])
    high, low = math.sqrt(0.5) + 0.1, math.sqrt(0.5) - 0.1
    text = torch.tensor([[low, high], [high, low]]) / math.hypot(low, high)
    labels = torch.tensor([0, 0, 1, 1])
    head = Head.fit("tip", shots, labels, ("a", "b"), text, scale=10.0)
    assert head.scalars["alpha"] > 2
    assert right(head, shots, labels) == 1.0
    assert right(Head.fit("zero_shot", shots, labels, ("a", "b"), text, scale=10.0), shots, labels) == 0.0


@pytest.mark.parametrize("shots", [1, 4])
def test_tip_adapter_f_is_no_worse_on_its_shots(shots: int) -> None:
    features, labels, text = cloud(shots, noise=2.5)
    tip = Head.fit("tip", features, labels, CLASSES, text, scale=20.0)
    tuned = Head.fit("tip_f", features, labels, CLASSES, text, scale=20.0)
    assert tuned.scalars == tip.scalars
    assert not torch.equal(tuned.tensors["keys"], tip.tensors["keys"])
    assert right(tuned, features, labels) >= right(tip, features, labels)


def test_tip_adapter_f_learns_to_find_a_shot_by_the_others() -> None:
    features, labels, text = cloud(8, noise=2.0)
    losses = []
    for kind in ("tip", "tip_f"):
        head = Head.fit(kind, features, labels, CLASSES, text, scale=20.0)
        affinity = torch.exp(-head.scalars["beta"] * (1 - features @ head.tensors["keys"].T)).fill_diagonal_(0)
        cache = torch.stack([affinity[:, labels == label].sum(dim=1) for label in range(3)], dim=1)
        logits = 20.0 * features @ text.T + head.scalars["alpha"] * cache
        losses.append(float(functional.cross_entropy(logits, labels)))
    assert losses[1] < 0.95 * losses[0]


def test_clip_adapter_learns_beside_the_features() -> None:
    features, labels, text = cloud(8)
    head = Head.fit("clip_adapter", features, labels, CLASSES, text, scale=20.0)
    assert {name: tuple(part.shape) for name, part in head.tensors.items()} == {
        "text": (3, 16),
        "down": (4, 16),
        "up": (16, 4),
    }
    mixed = 0.2 * torch.relu(features @ head.tensors["down"].T) @ head.tensors["up"].T + 0.8 * features
    wanted = 20.0 * functional.normalize(mixed, dim=-1) @ head.tensors["text"].T
    torch.testing.assert_close(head.logits(features), wanted)
    before = Head.fit("zero_shot", features, labels, CLASSES, text, scale=20.0).logits(features)
    assert functional.cross_entropy(wanted, labels) < functional.cross_entropy(before, labels)


@pytest.mark.parametrize("classes", [2, 3])
def test_linear_gives_the_probabilities_of_scikit_learn(classes: int) -> None:
    features, labels, _ = cloud(1, seed=3)
    features, labels = features[:classes], labels[:classes]
    head = Head.fit("linear", features, labels, CLASSES[:classes])
    model = LogisticRegression(C=10.0, max_iter=1000).fit(features.double().numpy(), labels.numpy())
    others, _, _ = cloud(5, seed=4)
    wanted = model.predict_proba(others.double().numpy())
    np.testing.assert_allclose(head.probabilities(others).numpy(), wanted, atol=1e-5)


def test_linear_chooses_its_penalty_on_held_out_shots() -> None:
    features, labels, _ = cloud(12)
    others, truth, _ = cloud(50, seed=5)
    assert right(Head.fit("linear", features, labels, CLASSES), others, truth) > 0.9
    # labels that say nothing ask for the strongest penalty: almost no opinion is left
    nothing = labels[torch.randperm(len(labels), generator=torch.Generator().manual_seed(1))]
    assert float(Head.fit("linear", features, nothing, CLASSES).probabilities(others).max()) < 0.7


@pytest.mark.parametrize("kind", HEAD_KINDS)
def test_every_kind_is_saved_and_loaded_whole(kind: HeadKind, tmp_path: Path) -> None:
    features, labels, text = cloud(3)
    head = Head.fit(kind, features, labels, CLASSES, text, seed=7)
    head.save(tmp_path / "head")
    again = Head.load(tmp_path / "head")
    others, truth, _ = cloud(40, seed=1)
    assert (again.kind, again.classes, again.scalars, again.width) == (kind, CLASSES, head.scalars, WIDTH)
    assert torch.equal(again.logits(others), head.logits(others))
    assert right(again, others, truth) > 0.8
    torch.testing.assert_close(again.probabilities(others).sum(dim=-1), torch.ones(len(others)))


@pytest.mark.parametrize("kind", HEAD_KINDS)
def test_the_same_seed_gives_the_same_head_and_leaves_the_callers_randomness(kind: HeadKind) -> None:
    features, labels, text = cloud(3)
    torch.manual_seed(1)
    before = torch.random.get_rng_state()
    one, other = (Head.fit(kind, features, labels, CLASSES, text, seed=5) for _ in range(2))
    assert torch.equal(torch.random.get_rng_state(), before)
    assert all(torch.equal(one.tensors[name], other.tensors[name]) for name in one.tensors)
    if kind == "clip_adapter":
        another = Head.fit(kind, features, labels, CLASSES, text, seed=6)
        assert not torch.equal(one.tensors["down"], another.tensors["down"])


@pytest.mark.parametrize("kind", HEAD_KINDS)
def test_fitting_works_without_gradients_and_leaves_its_inputs(kind: HeadKind) -> None:
    with torch.inference_mode():
        features, labels, text = (part * 1 for part in cloud(3))
        copies = [part.clone() for part in (features, labels, text)]
        head = Head.fit(kind, features, labels, CLASSES, text)
        assert head.logits(features).shape == (9, 3)
    assert all(torch.equal(*pair) for pair in zip(copies, (features, labels, text), strict=True))
    assert not any(part.requires_grad for part in head.tensors.values())


def test_the_length_of_features_does_not_matter() -> None:
    features, labels, text = cloud(2)
    for kind in HEAD_KINDS:
        head = Head.fit(kind, features, labels, CLASSES, text)
        longer = Head.fit(kind, 3 * features, labels, CLASSES, 5 * text)
        torch.testing.assert_close(head.logits(features), longer.logits(7 * features), rtol=1e-3, atol=1e-3)


def test_a_class_known_by_its_prompt_alone_is_found() -> None:
    features, labels, text = cloud(4)
    seen = labels < 2
    for kind in ("tip", "tip_f", "clip_adapter"):
        head = Head.fit(kind, features[seen], labels[seen], CLASSES, text)
        assert right(head, features[~seen], labels[~seen]) > 0.7


@pytest.mark.parametrize("kind", ["zero_shot", "clip_adapter", "tip", "tip_f"])
def test_kinds_that_read_prompts_ask_for_them(kind: HeadKind) -> None:
    features, labels, _ = cloud(2)
    with pytest.raises(UsageError, match="needs `text`"):
        Head.fit(kind, features, labels, CLASSES)


def test_wrong_shots_are_refused() -> None:
    kind: HeadKind
    features, labels, text = cloud(2)
    spoilt = features.clone()
    spoilt[4, 1] = float("nan")
    with pytest.raises(UsageError, match="row 4 of the features holds NaN"):
        Head.fit("tip", spoilt, labels, CLASSES, text)
    with pytest.raises(UsageError, match=r"from 0 to 2, .* not torch.int64, \[1, 2, 3\]"):
        Head.fit("tip", features, labels + 1, CLASSES, text)
    with pytest.raises(UsageError, match="labels must be int64"):
        Head.fit("tip", features, labels.float(), CLASSES, text)
    with pytest.raises(UsageError, match=r"features must be \(N, D\) and labels \(N,\), not \(6, 16\) and \(5,\)"):
        Head.fit("tip", features, labels[1:], CLASSES, text)
    with pytest.raises(UsageError, match=r"text must be \(C, D\), here \(3, 16\), not \(2, 16\)"):
        Head.fit("tip", features, labels, CLASSES, text[:2])
    with pytest.raises(UsageError, match="must be floats"):
        Head.fit("prototype", features.long(), labels, CLASSES)
    with pytest.raises(UsageError, match=r"unknown kind of head 'tipf'.* Did you mean 'tip_f'"):
        Head.fit("tipf", features, labels, CLASSES, text)  # type: ignore[arg-type]
    with pytest.raises(UsageError, match="two or more classes"):
        Head.fit("tip", features, labels, ("a", "b", "a"), text)
    for kind in ("prototype", "linear"):
        with pytest.raises(UsageError, match=f"a {kind} head needs a shot of every class: add one of 'ndege'"):
            Head.fit(kind, features[:4], labels[:4], CLASSES)
    for kind in ("tip", "tip_f", "clip_adapter"):
        with pytest.raises(UsageError, match=f"a {kind} head needs shots"):
            Head.fit(kind, features[:0], labels[:0], CLASSES, text)


def test_features_of_another_model_are_refused() -> None:
    features, labels, _ = cloud(2)
    head = Head.fit("prototype", features, labels, CLASSES)
    with pytest.raises(UsageError, match=r"must be floats \(M, 16\), not torch.float32 \(6, 8\)"):
        head.logits(features[:, :8])
    with pytest.raises(UsageError, match=r"row 0 .* infinity"):
        head.logits(torch.full((1, 16), float("inf")))


def test_damaged_heads_are_refused(tmp_path: Path) -> None:
    features, labels, text = cloud(2)
    head = Head.fit("tip", features, labels, CLASSES, text)

    def refused(match: str, tensors: dict[str, Tensor] | None = None, **card: object) -> None:
        head.save(tmp_path)
        if tensors:
            save_file(load_file(tmp_path / HEAD_WEIGHTS) | tensors, tmp_path / HEAD_WEIGHTS)
        path = tmp_path / HEAD_CARD
        path.write_text(json.dumps(json.loads(path.read_text()) | card))
        with pytest.raises(KauliError, match=match):
            Head.load(tmp_path)

    refused("keys has shape", {"keys": torch.zeros(6, 8)})
    refused("labels has shape", {"labels": torch.zeros(5, dtype=torch.int64)})
    refused("keys has shape", {"keys": torch.zeros(6)})
    refused("text has shape", classes=["a", "b"])
    refused("labels beyond its 3 classes", {"labels": torch.full((6,), 3)})
    refused("not finite", {"keys": torch.full((6, 16), float("nan"))})
    refused("lacks the tensors of a tip head", {"more": torch.zeros(1)})
    refused("damaged: kind", kind="tree")
    refused("lacks the numbers of a tip head: scale, alpha, beta", scalars={"scale": 1.0})
    refused("damaged: extra", extra=1)
    head.save(tmp_path)
    (tmp_path / HEAD_WEIGHTS).write_bytes((tmp_path / HEAD_WEIGHTS).read_bytes()[:-9])
    with pytest.raises(KauliError, match="not a sound safetensors file"):
        Head.load(tmp_path)
    (tmp_path / HEAD_CARD).write_text("{")
    with pytest.raises(KauliError, match="not readable JSON"):
        Head.load(tmp_path)
    (tmp_path / HEAD_CARD).unlink()
    with pytest.raises(KauliError, match=r"head.json is missing"):
        Head.load(tmp_path)
