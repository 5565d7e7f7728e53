"""Mixtures of adapters in one pass: the weighted sum of what each changes, by hand, alone and in company."""

from pathlib import Path

import pytest
import torch
from peft import IA3Config, LoraConfig, PeftConfig
from torch import Tensor

from kauli.models.adapters.delta import LinearDelta, mixed_deltas
from kauli.models.adapters.mixture import MixtureError
from kauli.models.bases.find import find_base
from kauli.models.engine.lora_batch import LoraBatch
from kauli.models.text.task import TextTask
from support.mixtures import summed_logits
from support.random_adapters import EVERY, fresh, peft_logits, save_adapter

pytestmark = pytest.mark.filterwarnings("ignore:Model has `tie_word_embeddings=True`:UserWarning")

PARENTS: dict[str, PeftConfig] = {
    "few": LoraConfig(r=4, lora_alpha=8, target_modules=["q_proj", "v_proj"]),
    "all": LoraConfig(r=9, lora_alpha=3, target_modules=EVERY, use_rslora=True),
    "head": LoraConfig(r=2, lora_alpha=8, target_modules=["lm_head", "q_proj"], rank_pattern={"q_proj": 5}),
}


@pytest.fixture(scope="module")
def parents(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    root = tmp_path_factory.mktemp("parents")
    return {
        name: save_adapter(root / name, "debug", config, seed) for seed, (name, config) in enumerate(PARENTS.items())
    }


def tokens(rows: int, length: int) -> Tensor:
    return torch.randint(3, 259, (rows, length), generator=torch.Generator().manual_seed(rows))


MIXTURES: list[dict[str, float]] = [
    {"few": 0.6, "all": 0.4},
    {"few": -0.5, "all": 1.5, "head": 0.25},
    {"head": 2.0},
    {"few": 1.0, "all": 0.0},
]


@pytest.mark.parametrize("length", [1, 70])
@pytest.mark.parametrize("weights", MIXTURES)
def test_a_mixture_is_the_weighted_sum_alone_and_beside_others(
    parents: dict[str, Path], weights: dict[str, float], length: int
) -> None:
    model = fresh("debug")
    batch = LoraBatch(model, 4)
    deltas = {name: batch.read(folder) for name, folder in parents.items()}
    mixed = mixed_deltas([(deltas[name], weight) for name, weight in weights.items()])
    for key, terms in {**deltas, "mixed": mixed}.items():
        batch.add(key, terms)
    keys = ["mixed", "few", None, "mixed", "all"]
    ids = tokens(len(keys), length)
    expected = summed_logits("debug", [(parents[name], weight) for name, weight in weights.items()], ids)
    plain = {key: peft_logits("debug", parents[key] if key else None, ids) for key in ("few", "all", None)}
    with torch.inference_mode(), batch.apply([("mixed", ids.numel())]):
        alone = model(input_ids=ids, use_cache=False).logits
    torch.testing.assert_close(alone, expected, rtol=1e-5, atol=1e-5 * float(expected.abs().max()))
    for together in (0, ids.numel()):
        with torch.inference_mode(), batch.apply([(key, length) for key in keys], together):
            ours = model(input_ids=ids, use_cache=False).logits
        for row, key in enumerate(keys):
            theirs = expected[row] if key == "mixed" else plain[key][row]
            torch.testing.assert_close(ours[row], theirs, rtol=1e-5, atol=1e-5 * float(theirs.abs().max()))
    assert (expected[0] - plain[None][0]).abs().max() > 1e-2


def test_with_the_weights_one_and_zero_the_first_alone_is_left(parents: dict[str, Path]) -> None:
    batch = LoraBatch(fresh("debug"), 1)
    few, every = batch.read(parents["few"]), batch.read(parents["all"])
    mixed = mixed_deltas([(few, 1.0), (every, 0.0)])
    assert mixed.keys() == few.keys()
    for name, delta in mixed.items():
        assert torch.equal(delta.A, few[name].A)
        assert torch.equal(delta.B, few[name].B)


def test_biases_are_added_by_their_weights() -> None:
    A, B = torch.zeros(0, 3), torch.zeros(2, 0)
    one, other = LinearDelta(A, B, bias=torch.tensor([1.0, 2.0])), LinearDelta(A, B, bias=torch.tensor([10.0, 0.0]))
    mixed = mixed_deltas([({"x": one}, 0.5), ({"x": other, "y": LinearDelta(A, B)}, -1.0)])
    assert mixed["x"].bias is not None
    assert mixed["x"].bias.tolist() == [-9.5, 1.0]
    assert mixed["y"].bias is None


@pytest.mark.parametrize(
    ("config", "said"),
    [
        (LoraConfig(r=2, target_modules=["q_proj"], use_dora=True), "q_proj is scaled"),
        (IA3Config(target_modules=["k_proj"], feedforward_modules=[]), "k_proj is scaled"),
    ],
)
def test_what_is_no_sum_is_refused(parents: dict[str, Path], tmp_path: Path, config: PeftConfig, said: str) -> None:
    task = TextTask.load(find_base("debug"))
    folder = save_adapter(tmp_path / "other", "debug", config)
    loaded = [task.read_adapter(one) for one in (parents["few"], folder)]
    with pytest.raises(MixtureError, match=f"can't be mixed: .*{said}.*Use each by itself"):
        task.mix_adapters([(loaded[0], 0.5), (loaded[1], 0.5)])


def test_numbers_that_are_not_finite_and_other_shapes_are_refused() -> None:
    good = LinearDelta(torch.ones(2, 3), torch.ones(4, 2))
    broken = LinearDelta(torch.ones(0, 3), torch.ones(4, 0), bias=torch.full((4,), float("nan")))
    with pytest.raises(RuntimeError, match="x holds numbers that are not finite"):
        mixed_deltas([({"x": good}, 1.0), ({"x": broken}, 1.0)])
    with pytest.raises(RuntimeError, match=r"x: A is \(2, 5\), the place for it \(2, 3\)"):
        mixed_deltas([({"x": good}, 1.0), ({"x": LinearDelta(torch.ones(2, 5), torch.ones(4, 2))}, 1.0)])
