"""The task `translate`: what its learner trains on, the loss over seen tokens, the rows of a recipe."""

from pathlib import Path
from typing import Any

import pytest
import torch

from kauli.models.bases.find import find_base
from kauli.models.engine.packing import pack
from kauli.models.text.language_model import answer_losses
from kauli.models.text.seen_softmax import SeenSoftmax
from kauli.models.text.training import TrainableText
from kauli.training.data.dataset import Dataset
from kauli.training.data.schema import write_parquet
from kauli.training.recipe_file import parse_recipe
from kauli.training.tasks.translate import TranslateLearner, TranslateTraining

ROWS = [
    {
        "id": f"{split}-{at}", "group": f"{split}-{at // 2}", "language": "be", "input": f"open the file {at}",
        "input_language": "en", "text": f"адкрыць файл {at}", "source": "made-up", "licence": "CC0-1.0",
        "synthetic": False, "split": split,
    }
    for split in ("train", "validation")
    for at in range(8)
]  # fmt: skip


def recipe(**section: Any) -> Any:
    return parse_recipe({
        "name": "x", "task": "translate", "base": "debug", "language": "be", "prompting": {"examples": 2},
        "translate": section, "train": {"max_length": 400},
    })  # fmt: skip


@pytest.fixture
def dataset(tmp_path: Path) -> Dataset:
    write_parquet(ROWS, tmp_path / "rows.parquet")
    return Dataset("made-up", [tmp_path / "rows.parquet"], ["be"])


@pytest.mark.parametrize(("share", "reverse"), [(0, 0), (1, 8)])
def test_the_share_of_the_other_direction(dataset: Dataset, share: float, reverse: int) -> None:
    examples = TranslateTraining().rows(recipe(reverse=share), dataset, find_base("debug", task="text"))
    assert sum(row["to"] == "en" for row in examples.train) == reverse
    assert len(examples.train) == len(examples.validation) == 8
    [fields] = TranslateTraining().card_fields(recipe(reverse=share), examples.train).values()
    assert fields.pairs == [("be", "en") if share else ("en", "be")]
    assert fields.prompting.examples == 2


def test_validation_takes_its_examples_from_training(dataset: Dataset) -> None:
    examples = TranslateTraining().rows(recipe(), dataset, find_base("debug", task="text"))
    train = {text for row in ROWS[:8] for text in (row["text"], row["input"])}
    for row in examples.validation:
        shown = {row["prompt"][first:last] for first, last in row["targets"]}
        assert len(shown) == 2
        assert shown <= train


def test_the_loss_over_seen_tokens(dataset: Dataset) -> None:
    base = find_base("debug", task="text")
    examples = TranslateTraining().rows(recipe(), dataset, base)
    task = TrainableText.load(base)
    learner = TranslateLearner(task, recipe(), examples)
    documents = learner.documents
    assert learner.num_targets([0, 1]) == sum(len(one.targets) for one in documents[:2])
    batch, model = pack(documents[:3]), task.trained
    everything = SeenSoftmax(model, range(model.config.vocab_size))
    assert everything.fits(documents[0])
    torch.testing.assert_close(everything(batch), answer_losses(model, batch))
    seen = {token for one in documents for token in one.tokens}
    fewer = SeenSoftmax(model, seen)
    unseen = [token for token in range(model.config.vocab_size) if token not in seen]
    # Over many draws the sampled part of the softmax is that of all tokens
    means = torch.stack([torch.exp(fewer(batch).detach()) for _ in range(50)]).mean(dim=0)
    torch.testing.assert_close(means, torch.exp(answer_losses(model, batch)), rtol=0.05, atol=0)
    assert unseen
    assert isinstance(learner.objective(), SeenSoftmax)
    assert not isinstance(TranslateLearner(task, recipe(softmax="all"), examples).objective(), SeenSoftmax)


def test_a_base_that_caps_its_logits_takes_all_tokens(dataset: Dataset) -> None:
    base = find_base("debug", task="text")
    task = TrainableText.load(base)
    learner = TranslateLearner(task, recipe(), TranslateTraining().rows(recipe(), dataset, base))
    task.model.lm_head.register_forward_hook(lambda module, inputs, logits: logits * 0.5)
    assert not isinstance(learner.objective(), SeenSoftmax)


def test_answers_have_no_limit_by_the_length_of_the_prompt(dataset: Dataset) -> None:
    base = find_base("debug", task="text")
    learner = TranslateLearner(TrainableText.load(base), recipe(), TranslateTraining().rows(recipe(), dataset, base))
    found = learner.decoding()
    assert found.tokens_per_prompt_token is None
    assert found.max_tokens is not None
