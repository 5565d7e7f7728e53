"""Training of `align`: what steps hold, gradients alike on one worker and two, a run from recipe to registry."""

import json
import os
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from kauli.models.adapters.registry import Registry
from kauli.models.bases.find import find_base
from kauli.models.errors import UsageError
from kauli.models.tasks import load_trainable
from kauli.models.vision.align import PROJECTION, AlignTask
from kauli.training.data.dataset import load_data
from kauli.training.evaluation.request import EvalRequest
from kauli.training.evaluation.retrieval import evaluate_align
from kauli.training.loop.loop import Loop
from kauli.training.loop.session import LocalSession
from kauli.training.recipe_file import parse_recipe
from kauli.training.tasks.align import AlignLearner, AlignRecipe, PairPlan
from kauli.training.tasks.base import Examples
from kauli.training.train import train
from support.clip_checkpoints import checkpoint
from support.ranks import Ranks
from support.shapes import rows


def recipe(section: dict[str, Any] | None = None, **changes: Any) -> AlignRecipe:
    content = {
        "name": "align-x", "task": "align", "base": "debug", "language": ["en", "sw"], "method": {"kind": "projection"},
        "align": {"batch": 12, "init": "fresh", **(section or {})},
        "train": {"steps": 60, "validate_every": 20, "learning_rate": 0.01, "early_stop": None},
    }  # fmt: skip
    content["train"] |= changes.pop("train", {})  # type: ignore[operator]
    return AlignRecipe.model_validate(content | changes)


def loop_of(one: AlignRecipe, folder: Path, examples: list[dict[str, Any]] | None = None, **options: Any) -> Loop:
    data = examples or rows()
    task = load_trainable("align", find_base(one.base, task="align"), device="cpu")
    return Loop(AlignLearner(task, one, Examples(data, data, (), "d")), one, "d", LocalSession(folder), **options)


def test_a_step_holds_distinct_images_and_an_epoch_all_of_them() -> None:
    data = rows()
    plan = PairPlan(data, batch=10, views=3, seed=0)
    steps = [step for step, _ in zip(plan.steps(), range(3), strict=False)]
    taken = [[data[index % len(data)]["image_key"] for index in step] for step in steps]
    assert [len(step) for step in steps] == [10, 10, 4]
    assert sorted(key for step in taken for key in step) == sorted({row["image_key"] for row in data})
    assert {index // len(data) for step in steps for index in step} == {0, 1, 2}


def test_steps_are_a_function_of_seed_and_step_alone() -> None:
    first = [step for step, _ in zip(PairPlan(rows(), 10, 2, seed=5).steps(), range(8), strict=False)]
    later = [step for step, _ in zip(PairPlan(rows(), 10, 2, seed=5).steps(start=6), range(2), strict=False)]
    other = next(PairPlan(rows(), 10, 2, seed=6).steps())
    assert later == first[6:]
    assert other != first[0]


def test_each_language_of_an_image_is_drawn_as_often_however_many_captions_it_has() -> None:
    base = {"image_key": "p", "group": "g", "text": "x"}
    data = [{**base, "language": "en"}] * 9 + [{**base, "language": "sw"}]
    steps = [step[0] for step, _ in zip(PairPlan(data, 4, 1, seed=0).steps(), range(1000), strict=False)]
    counts = Counter(data[index]["language"] for index in steps)
    assert 430 < counts["sw"] < 570


@pytest.mark.parametrize("loss", ["clip", "siglip"])
def test_the_projections_learn_and_the_saved_ones_give_the_figure_of_training(tmp_path: Path, loss: str) -> None:
    loop = loop_of(recipe({"loss": loss, "dropout": 0.1}), tmp_path)
    progress = loop.run()
    assert progress.base_validation is not None
    assert progress.best_validation < 0.5 * progress.base_validation
    folder = sorted(tmp_path.glob("checkpoint-*"))[-1] / "adapter"
    again = loop_of(recipe({"loss": loss, "init": "base"}, train={"steps": 1}), tmp_path / "b", start=folder)
    assert float(again._validation()) == pytest.approx(progress.best_validation, abs=1e-6)


def test_a_run_taken_up_ends_with_the_same_bits(tmp_path: Path) -> None:
    class Killed(BaseException):
        pass

    class Session(LocalSession):
        def report(self, metrics: dict[str, Any], checkpoint: Path | None) -> None:
            super().report(metrics, checkpoint)
            if metrics["step"] == 20:
                raise Killed

    one = recipe({"dropout": 0.3})
    whole = loop_of(one, tmp_path / "whole")
    whole.run()
    broken = loop_of(one, tmp_path / "broken")
    broken.session = Session(tmp_path / "broken")
    with pytest.raises(Killed):
        broken.run()
    resumed = loop_of(one, tmp_path / "broken")
    resumed.run()
    for name, value in whole.parameters.items():
        assert torch.equal(value, resumed.parameters[name]), name


def gradients_of_a_step(folder: Path, loss: str) -> dict[str, torch.Tensor]:
    loop = loop_of(recipe({"loss": loss, "batch": 11}), folder)
    loop.step(next(loop.plan.steps()))
    return {name: value.grad.clone() for name, value in loop.parameters.items() if value.grad is not None}


def gradients_of_both_losses(folder: Path) -> dict[str, torch.Tensor]:
    return {
        f"{loss}:{name}": value.contiguous()
        for loss in ("clip", "siglip")
        for name, value in gradients_of_a_step(folder / loss, loss).items()
    }


def main_of_a_rank(out: str) -> None:
    """What each of two processes runs in the test below."""
    gradients = gradients_of_both_losses(Path(out) / os.environ["RANK"])
    if os.environ["RANK"] == "0":
        save_file(gradients, f"{out}/gradients.safetensors")


def test_one_worker_and_two_have_the_same_gradients(tmp_path: Path) -> None:
    one = gradients_of_both_losses(tmp_path / "one")
    ranks = Ranks(__file__, "main_of_a_rank", tmp_path)
    ranks.wait()
    two = load_file(tmp_path / "gradients.safetensors")
    assert one.keys() == two.keys()
    assert any(float(value.abs().max()) > 1e-3 for value in one.values())
    for name, value in one.items():
        torch.testing.assert_close(two[name], value, atol=1e-6, rtol=1e-4, msg=name)


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> str:
    folder = tmp_path_factory.mktemp("data")
    lines = []
    for place, row in enumerate(rows()):
        (folder / f"{place}.png").write_bytes(row["image"])
        kept = {key: row[key] for key in ("id", "group", "language", "text", "source", "licence")}
        number = int(row["group"][1:])
        split = "test" if number % 4 == 0 else "validation" if number % 4 == 1 else "train"
        lines.append(json.dumps(kept | {"image": f"{place}.png", "split": split}))
    (folder / "rows.jsonl").write_text("\n".join(lines))
    return str(folder)


def test_from_recipe_to_registry_and_measured_again(data: str, tmp_path: Path) -> None:
    one = recipe(data=data, augment=[{"kind": "flip", "p": 1.0}], align={"views": 2, "batch": 8, "init": "fresh"})
    result = train(one, str(tmp_path), use_ray=False)
    assert result.adapter == "align-x@1"
    assert result.evaluation.task == "align"
    assert set(result.metrics) == {
        *("i2t_r1", "i2t_r5", "i2t_r10", "t2i_r1", "t2i_r5", "t2i_r10"), "median_rank"
    }  # fmt: skip
    registry = Registry(str(tmp_path))
    card = registry.card("align-x@1")
    assert card.method == {"kind": "projection"}
    assert (registry.fetch("align-x@1") / PROJECTION).is_file()
    assert card.base_metrics is not None
    again = evaluate_align(
        EvalRequest(
            registry.fetch("align-x@1"), find_base("debug", task="align"), load_data(data, ["en", "sw"]), ("en", "sw")
        )
    )
    assert again.metrics == result.metrics
    assert "groups in the gallery: en 6, sw 4" in again.notes[0]
    assert "median_rank" in again.summary()


@pytest.mark.parametrize("shape", ["xlm-roberta-ViT", "SigLIP"])
def test_a_checkpoint_of_a_known_shape_is_trained_by_the_same_recipe(data: str, tmp_path: Path, shape: str) -> None:
    base = checkpoint(tmp_path / "base", shape)
    loss = "siglip" if shape == "SigLIP" else "clip"
    one = recipe(
        {"loss": loss, "init": "base", "batch": 8}, base=str(base), data=data, train={"steps": 10, "validate_every": 5}
    )
    result = train(one, str(tmp_path / "store"), use_ray=False)
    folder = Registry(str(tmp_path / "store")).fetch(result.adapter)
    task = AlignTask.load(find_base(str(base), task="align"), device="cpu")
    task.add_adapter("mine", folder)
    assert not torch.equal(task.embed_texts(["red bar"], "mine"), task.embed_texts(["red bar"]))


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ({"align": None}, "align: Input should be a valid dictionary"),
        ({"method": {"kind": "lora"}}, "no kind 'lora' for this task. Allowed: projection"),
        ({"align": {"views": 3}}, "augment and align.views of 2 or more go together"),
        ({"augment": [{"kind": "flip", "p": 0.5}]}, "augment and align.views of 2 or more go together"),
        ({"augment": [{"kind": "speed"}]}, "no kind 'speed' for this task"),
        ({"objective": {"regulariser": "replay", "weight": 0.1}}, "unknown key 'objective'"),
        ({"prompt": "Describe."}, "unknown key 'prompt'"),
        ({"align": {"loss": "siglip", "label_smoothing": 0.1}}, "label_smoothing is for the loss 'clip'"),
        ({"align": {"los": "clip"}}, "unknown key 'align.los'. Did you mean"),
        ({"pairs": {"smoothing": 0.1}}, "'pairs.smoothing' is now 'align.label_smoothing'"),
    ],
)
def test_a_recipe_that_contradicts_itself_is_one_clear_error(changes: dict[str, Any], expected: str) -> None:
    content = recipe().model_dump(mode="json") | changes
    with pytest.raises(UsageError, match=expected):
        parse_recipe(content, "x")
