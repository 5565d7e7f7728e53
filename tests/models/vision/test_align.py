"""The task `align`: embeddings, adapters that fit or are refused, its losses by hand, checkpoints of known shapes."""

import math
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image
from safetensors.torch import load_file, save_file

from kauli.models.bases.find import find_base
from kauli.models.errors import KauliError, UsageError
from kauli.models.vision.align import PROJECTION, AlignTask
from kauli.models.vision.training import TrainableAlign, pair_losses
from support.clip_checkpoints import checkpoint

COLOURS = ("red", "blue", "green", "yellow", "black", "white")


@pytest.fixture(scope="module")
def task(tmp_path_factory: pytest.TempPathFactory) -> Iterator[AlignTask]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("KAULI_HOME", str(tmp_path_factory.mktemp("home")))
        yield AlignTask.load(find_base("debug", task="align"), device="cpu")


def some_images() -> list[Image.Image]:
    return [Image.new("RGB", (40, 24), colour) for colour in COLOURS]


def saved(task: AlignTask, folder: Path, **changes: Any) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    tensors = {**task.bare.tensors(), **changes}
    save_file({name: value for name, value in tensors.items() if value is not None}, folder / PROJECTION)
    return folder


def test_embeddings_have_length_one_and_do_not_depend_on_their_batch(task: AlignTask) -> None:
    images, texts = (
        task.embed_images(some_images()),
        task.embed_texts(["moto", "a much longer text than the others", "እ"]),
    )
    assert images.shape == (6, task.dim)
    assert texts.shape == (3, task.dim)
    for found in (images, texts):
        torch.testing.assert_close(found.norm(dim=1), torch.ones(len(found)))
    torch.testing.assert_close(task.embed_images(some_images()[2:3]), images[2:3], atol=1e-5, rtol=1e-4)
    torch.testing.assert_close(task.embed_texts(["moto"]), texts[:1], atol=1e-5, rtol=1e-4)
    assert task.embed_images([]).shape == (0, task.dim)


@pytest.mark.parametrize("size", [(1, 3000), (3000, 1), (4, 9000), (1, 1)])
def test_a_picture_of_any_shape_is_embedded(task: AlignTask, size: tuple[int, int]) -> None:
    found = task.embed_images([Image.new("RGB", size, "red")])
    torch.testing.assert_close(found.norm(dim=1), torch.ones(1))


def test_texts_are_composed_before_they_are_read(task: AlignTask) -> None:
    assert torch.equal(task.embed_texts(["caf\u00e9"]), task.embed_texts(["cafe\u0301"]))


def test_embeddings_are_those_of_open_clip_itself(task: AlignTask) -> None:
    import open_clip

    folder = str(task.base.folder)
    model, _, preprocess = open_clip.create_model_and_transforms(
        f"local-dir:{folder}", text_cfg={"hf_model_name": folder, "hf_model_pretrained": False,
        "hf_pooler_type": "mean_pooler", "hf_proj_type": "linear", "hf_tokenizer_name": folder}
    )  # fmt: skip
    with torch.no_grad():
        pixels = torch.stack([preprocess(image) for image in some_images()])  # type: ignore[operator]
        theirs = model.eval().encode_image(pixels, normalize=True)
    torch.testing.assert_close(task.embed_images(some_images()), theirs, atol=1e-5, rtol=1e-4)


def test_an_adapter_changes_what_it_trained_and_nothing_else(task: AlignTask, tmp_path: Path) -> None:
    turned = task.bare.tensors()["text.proj.weight"].flip(0)
    task.add_adapter("mine@1", saved(task, tmp_path / "a", **{"text.proj.weight": turned}))
    assert task.adapters() == ["mine@1"]
    torch.testing.assert_close(task.embed_texts(["moto"], "mine@1"), task.embed_texts(["moto"]).flip(1))
    assert torch.equal(task.embed_images(some_images(), "mine@1"), task.embed_images(some_images()))
    task.remove_adapter("mine@1")
    assert task.adapters() == []
    with pytest.raises(UsageError, match=r"'mine@1' is not loaded"):
        task.embed_texts(["moto"], "mine@1")


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ({"text.proj.weight": torch.zeros(32, 63)}, r"has the shape \[32, 63\], its base \[32, 64\]"),
        ({"text.proj.weight": torch.full((32, 64), math.nan)}, "not finite"),
        ({"text.proj.weight": None}, "lacks the tensor 'text.proj.weight'"),
        ({"visual.trunk.weight": torch.zeros(2)}, "that its base has not, 'visual.trunk.weight'"),
    ],
)
def test_an_adapter_that_does_not_fit_is_refused(
    task: AlignTask, tmp_path: Path, changes: dict[str, Any], expected: str
) -> None:
    with pytest.raises(KauliError, match=expected):
        task.add_adapter("wrong", saved(task, tmp_path, **changes))
    assert task.adapters() == []


def test_a_folder_without_or_with_damaged_projections_is_refused(task: AlignTask, tmp_path: Path) -> None:
    with pytest.raises(KauliError, match=r"holds no projection\.safetensors"):
        task.add_adapter("wrong", tmp_path)
    (tmp_path / PROJECTION).write_bytes(b"no tensors")
    with pytest.raises(KauliError, match="not a sound safetensors file"):
        task.add_adapter("wrong", tmp_path)


# Two orthogonal pairs: each cosine with the own partner 1, with the other 0; the scale is e**0 = 1.
EYE = torch.eye(2)


def test_the_softmax_loss_of_two_orthogonal_pairs() -> None:
    losses = pair_losses(EYE, EYE, torch.tensor([0, 1]), torch.tensor(0.0), None)
    right = math.e / (math.e + 1)
    torch.testing.assert_close(losses, torch.full((2,), -math.log(right)))


def test_two_pairs_of_one_group_are_no_negatives_of_each_other() -> None:
    same = torch.tensor([4, 4])
    torch.testing.assert_close(pair_losses(EYE, EYE, same, torch.tensor(0.0), None), torch.zeros(2))
    bias = torch.tensor(0.5)
    alone = -math.log(1 / (1 + math.exp(-1.5)))
    torch.testing.assert_close(pair_losses(EYE, EYE, same, torch.tensor(0.0), bias), torch.full((2,), alone))


def test_the_sigmoid_loss_of_two_orthogonal_pairs() -> None:
    losses = pair_losses(EYE, EYE, torch.tensor([0, 1]), torch.tensor(0.0), torch.tensor(-1.0))
    # the own logit is 1 - 1 = 0, that of the other text 0 - 1 = -1, whose sign is turned
    expected = math.log(2) + math.log(1 + math.exp(-1))
    torch.testing.assert_close(losses, torch.full((2,), expected))


def test_a_pair_that_fills_up_a_share_has_no_loss_and_is_nobodys_negative() -> None:
    images = torch.cat([EYE, EYE[:1]])
    losses = pair_losses(images, images, torch.tensor([0, 1, -1]), torch.tensor(0.0), None)
    expected = pair_losses(EYE, EYE, torch.tensor([0, 1]), torch.tensor(0.0), None)
    torch.testing.assert_close(losses, torch.cat([expected, torch.zeros(1)]))


def test_smoothing_spreads_the_target() -> None:
    losses = pair_losses(EYE, EYE, torch.tensor([0, 1]), torch.tensor(0.0), None, smoothing=0.2)
    right, wrong = math.log(math.e / (math.e + 1)), math.log(1 / (math.e + 1))
    torch.testing.assert_close(losses, torch.full((2,), -(0.8 * right + 0.2 * (right + wrong) / 2)))


@pytest.mark.parametrize("shape", ["xlm-roberta-ViT", "SigLIP"])
def test_a_checkpoint_of_a_known_shape_loads(tmp_path: Path, shape: str) -> None:
    loaded = AlignTask.load(find_base(str(checkpoint(tmp_path / "base", shape)), task="align"), device="cpu")
    images, texts = loaded.embed_images(some_images()), loaded.embed_texts(["moto", "maji baridi"])
    assert bool((images.std(dim=0) > 0).any())
    assert texts.shape == (2, loaded.dim)
    assert (
        set(loaded.bare.tensors())
        == {
            "xlm-roberta-ViT": {"visual.proj", "text.proj.0.weight", "text.proj.2.weight", "logit_scale"},
            "SigLIP": {"text.text_projection.weight", "text.text_projection.bias", "logit_scale", "logit_bias"},
        }[shape]
    )


def test_saved_projections_are_read_by_open_clip(task: AlignTask, tmp_path: Path) -> None:
    TrainableAlign.load(task.base, device="cpu").save(tmp_path)
    names = load_file(task.base.folder / "open_clip_model.safetensors").keys()
    assert load_file(tmp_path / PROJECTION).keys() <= names
