"""Adapters in one pass: for every kind and mixture exactly what PEFT computes with each adapter alone."""

import itertools
import json
import random
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import IA3Config, LoraConfig, PeftConfig, PromptTuningConfig
from safetensors.torch import load_file, save_file
from torch import Tensor
from transformers import PreTrainedModel

from kauli.models.engine.lora_batch import LoraBatch
from kauli.models.errors import KauliError
from support.random_adapters import EVERY, fresh, peft_logits, save_adapter

pytestmark = [
    pytest.mark.filterwarnings("ignore::peft.utils.warning.PeftWarning"),
    pytest.mark.filterwarnings("ignore:Model has `tie_word_embeddings=True`:UserWarning"),
]

BASES = ["debug", "debug-gemma", "debug-qwen"]


def lora(targets: Sequence[str] = tuple(EVERY), rank: int = 4, **options: Any) -> LoraConfig:
    return LoraConfig(**{"r": rank, "lora_alpha": 2 * rank, "target_modules": list(targets), **options})


def ia3() -> IA3Config:
    return IA3Config(target_modules=["k_proj", "v_proj", "down_proj"], feedforward_modules=["down_proj"])


def tokens(rows: int, length: int, seed: int = 0) -> Tensor:
    return torch.randint(3, 259, (rows, length), generator=torch.Generator().manual_seed(seed))


@torch.inference_mode()
def logits(
    model: PreTrainedModel, batch: LoraBatch, ids: Tensor, keys: Sequence[str | None], together: int = 0, **options: Any
) -> Tensor:
    """(rows, T, vocabulary), row by row with the adapter `keys` names."""
    with batch.apply([(key, ids.shape[1]) for key in keys], together):
        return model(input_ids=ids, use_cache=False, **options).logits.float()


def close(ours: Tensor, theirs: Tensor) -> None:
    torch.testing.assert_close(ours, theirs, rtol=1e-5, atol=1e-5 * float(theirs.abs().max()))


def check_alone(tmp_path: Path, base: str, config: PeftConfig, length: int = 20) -> None:
    folder = save_adapter(tmp_path / "adapter", base, config)
    model, ids = fresh(base), tokens(1, length)
    batch = LoraBatch(model, 2)
    batch.add("a", batch.read(folder))
    theirs, plain = peft_logits(base, folder, ids), peft_logits(base, None, ids)
    assert (theirs - plain).abs().max() > 1e-2
    close(logits(model, batch, ids, ["a"]), theirs)
    close(logits(model, batch, ids, [None]), plain)


@pytest.mark.parametrize(("base", "target"), list(itertools.product(BASES, [*EVERY, "lm_head"])))
def test_a_single_target_is_as_in_peft(tmp_path: Path, base: str, target: str) -> None:
    check_alone(tmp_path, base, lora([target]))


@pytest.mark.parametrize("base", BASES)
@pytest.mark.parametrize("rank", [1, 4, 16])
def test_all_targets_at_any_rank_are_as_in_peft(tmp_path: Path, base: str, rank: int) -> None:
    check_alone(tmp_path, base, lora(rank=rank), length=1 if rank == 1 else 70)  # below and above the skinny products


PATTERNS = {"rank_pattern": {"q_proj": 9, "layers.1.mlp.up_proj": 1}, "alpha_pattern": {"v_proj": 3, "q_proj": 1}}
KINDS: dict[str, PeftConfig] = {
    "patterns": lora(**PATTERNS),
    "rslora": lora(use_rslora=True, **PATTERNS),
    "dora": lora([*EVERY, "lm_head"], use_dora=True),
    "dora-rslora": lora(use_dora=True, use_rslora=True, **PATTERNS),
    "lora-bias": lora(lora_bias=True),
    "ia3": ia3(),
    "layers": lora(layers_to_transform=[1]),
    "dora-half": lora(["v_proj", "down_proj"], use_dora=True, layers_to_transform=0),
}


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("base", [*BASES, "biased"])
def test_every_kind_is_as_in_peft(tmp_path: Path, base: str, kind: str) -> None:
    check_alone(tmp_path, base, KINDS[kind])


@pytest.mark.parametrize("bias", ["lora_only", "all"])
@pytest.mark.parametrize("dora", [False, True])
@pytest.mark.parametrize("targets", [["q_proj", "down_proj"], EVERY])
def test_trained_biases_are_as_in_peft(tmp_path: Path, bias: str, dora: bool, targets: list[str]) -> None:
    check_alone(tmp_path, "biased", lora(targets, bias=bias, use_dora=dora))


@pytest.mark.parametrize("base", BASES)
@pytest.mark.parametrize("kind", ["patterns", "dora-rslora", "ia3"])
def test_in_bf16_the_result_is_as_near_the_truth_as_pefts(tmp_path: Path, base: str, kind: str) -> None:
    folder = save_adapter(tmp_path / "adapter", base, KINDS[kind])
    model, ids = fresh(base, torch.bfloat16), tokens(1, 20)
    batch = LoraBatch(model, 2)
    batch.add("a", batch.read(folder))
    ours, theirs = logits(model, batch, ids, ["a"]), peft_logits(base, folder, ids, torch.bfloat16)
    exact = peft_logits(base, folder, ids)
    assert (ours - exact).norm() < 1.3 * (theirs - exact).norm()
    assert (ours - theirs).norm() < 0.03 * theirs.norm()


MIXTURE: dict[str, PeftConfig] = {
    "wide": lora(rank=16),
    "narrow": lora(["q_proj", "up_proj"], rank=1),
    "dora": lora(["v_proj", "lm_head"], use_dora=True, use_rslora=True),
    "ia3": ia3(),
    "head": lora(["lm_head", "k_proj"], rank=3, layers_to_transform=None),
    "biased": lora(["o_proj", "v_proj"], lora_bias=True),
}


@pytest.fixture(scope="module")
def mixture(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Folders of adapters of many kinds for "biased"."""
    root = tmp_path_factory.mktemp("mixture")
    return {
        name: save_adapter(root / name, "biased", config, seed) for seed, (name, config) in enumerate(MIXTURE.items())
    }


def check_rows(ours: Tensor, ids: Tensor, keys: Sequence[str | None], folders: dict[str, Path]) -> None:
    for row, key in enumerate(keys):
        folder = folders[key] if key is not None else None
        close(ours[row], peft_logits("biased", folder, ids[row : row + 1])[0])


COMPANIES: list[list[str | None]] = [
    ["wide", "narrow", "dora", "ia3", "head", "biased"],
    ["wide", "wide", "dora", "dora", None],
    ["dora", "wide", "wide", "head", None, "ia3", "wide"],
    [None, "wide", None, "dora"],
    ["wide", None, "narrow"],
    ["ia3", "ia3", None],
    [None, None],
]


@pytest.mark.parametrize("company", COMPANIES)
def test_each_row_of_a_mixture_gets_what_it_gets_alone(mixture: dict[str, Path], company: list[str | None]) -> None:
    model = fresh("biased")
    batch = LoraBatch(model, 8)
    for key in MIXTURE:
        batch.add(key, batch.read(mixture[key]))
    for length in (1, 5, 40):
        ids = tokens(len(company), length)
        for rows in (len(company), len(company) - 1, 0):  # computed together, the others one by one
            check_rows(logits(model, batch, ids, company, rows * length), ids, company, mixture)


def test_the_output_layer_may_get_fewer_tokens(mixture: dict[str, Path]) -> None:
    model, ids = fresh("biased"), tokens(4, 6)
    batch = LoraBatch(model, 8)
    keys = ["dora", "head", None, "dora"]
    for key in ("dora", "head"):
        batch.add(key, batch.read(mixture[key]))
    with torch.inference_mode(), batch.apply([(key, 6) for key in keys], kept=[(key, 1) for key in keys]):
        last = model(input_ids=ids, logits_to_keep=1, use_cache=False).logits
    for row, key in enumerate(keys):
        expected = peft_logits("biased", mixture[key] if key else None, ids[row : row + 1])[0, -1:]
        close(last[row], expected)


@pytest.mark.parametrize("seed", range(4))
def test_places_are_reused_and_nothing_stale_stays(mixture: dict[str, Path], seed: int) -> None:
    chance = random.Random(seed)
    model = fresh("biased")
    batch = LoraBatch(model, 3)  # fewer than there are adapters
    terms = {key: batch.read(folder) for key, folder in mixture.items()}
    folders: dict[str, Path] = {}
    for step in range(14):
        for key in chance.sample(sorted(folders), k=min(len(folders), chance.choice([0, 0, 1, 2]))):
            batch.remove(key)
            del folders[key]
        for _ in range(2):  # under a name that another one may have had before
            kind, key = chance.choice(sorted(terms)), f"key-{chance.randrange(5)}"
            if key not in folders:
                batch.add(key, terms[kind])
                folders[key] = mixture[kind]
        assert sorted(batch.keys()) == sorted(folders)
        used: list[str | None] = [None, *chance.sample(sorted(folders), k=min(3, len(folders)))]
        company = [chance.choice(used) for _ in range(chance.choice([1, 3, 6]))]
        ids = tokens(len(company), chance.choice([1, 3]), seed=step)
        together = chance.choice([0, ids.numel()])
        if chance.random() < 0.5:
            company.sort(key=lambda key: batch.arrange([k for k in used if k]).get(key or "", 99))
        check_rows(logits(model, batch, ids, company, together), ids, company, folders)


def test_a_wider_adapter_arrives_later_and_a_place_left_behind_is_clean(mixture: dict[str, Path]) -> None:
    model, ids = fresh("biased"), tokens(6, 2)
    batch = LoraBatch(model, 6)
    folders = {f"filler-{at}": mixture["narrow"] for at in range(5)} | mixture
    fillers = [f"filler-{at}" for at in range(5)]
    for key in (*fillers, "biased", "dora"):
        batch.add(key, batch.read(folders[key]))
    assert batch.arrange([*fillers, "dora"])["dora"] == 5
    assert batch.arrange(["filler-0", "dora"])["dora"] == 1  # far apart before; the last place stays as it was
    for key in ("wide", "narrow"):
        batch.add(key, batch.read(folders[key]))
    company = ["filler-0", "dora", *fillers[2:], "narrow"]
    assert batch.arrange(company)["narrow"] == 5
    check_rows(logits(model, batch, ids, company, 12), ids, company, folders)
    company = ["wide", "wide", "dora", "dora", "narrow", "narrow"]
    check_rows(logits(model, batch, ids, company, 12), ids, company, folders)


def test_an_adapter_of_new_layers_arrives_between_two_passes(mixture: dict[str, Path]) -> None:
    model, ids = fresh("biased"), tokens(2, 1)
    batch = LoraBatch(model, 4)
    for key, later in (("narrow", "head"), ("ia3", "wide")):
        for one in (key, later):
            batch.add(one, batch.read(mixture[one]))
        check_rows(logits(model, batch, ids, [key, later], 2), ids, [key, later], mixture)
    check_rows(logits(model, batch, ids, ["wide", "ia3"], 2), ids, ["wide", "ia3"], mixture)


def test_what_is_not_finite_spoils_its_own_row_only(mixture: dict[str, Path], tmp_path: Path) -> None:
    file = save_adapter(tmp_path / "broken", "biased", lora()) / "adapter_model.safetensors"
    tensors = load_file(file)
    for name in tensors:
        tensors[name][0, 0] = float("nan" if "lora_A" in name else "inf")
    save_file(tensors, file)
    model, ids = fresh("biased"), tokens(4, 1)
    batch = LoraBatch(model, 4)
    for key, folder in {**mixture, "broken": file.parent}.items():
        batch.add(key, batch.read(folder))
    for company in (["wide", "broken", "wide", "ia3"], ["wide", "broken", "narrow", "ia3"]):
        ours = logits(model, batch, ids, company, 4)
        assert ours[1].isnan().all()
        check_rows(ours[[0, 2, 3]], ids[[0, 2, 3]], [company[row] for row in (0, 2, 3)], mixture)
    company = ["wide", "narrow", "wide", "ia3"]  # it still lies in the stack, between those in use
    check_rows(logits(model, batch, ids, company, 4), ids, company, mixture)


def test_keys_and_places_that_do_not_add_up_are_errors(mixture: dict[str, Path]) -> None:
    model = fresh("biased")
    batch = LoraBatch(model, 1)
    for key in ("wide", "ia3"):
        batch.add(key, batch.read(mixture[key]))
    with pytest.raises(ValueError, match="loaded already"):
        batch.add("wide", {})
    with pytest.raises(ValueError, match="2 adapters in one pass"):
        logits(model, batch, tokens(2, 1), ["wide", "ia3"])
    assert "wide" in batch
    batch.remove("wide")
    assert "wide" not in batch


def damaged(folder: Path, damage: str) -> Path:
    """An adapter that must be refused."""
    if damage == "prompt-tuning":
        config: PeftConfig = PromptTuningConfig(task_type="CAUSAL_LM", num_virtual_tokens=4)
        return save_adapter(folder, "biased", config)
    if damage == "modules_to_save":
        return save_adapter(folder, "biased", lora(modules_to_save=["lm_head"]))
    options: dict[str, Any] = {"dora": {"use_dora": True}, "lora_bias": {"lora_bias": True}, "bias": {"bias": "all"}}
    file = save_adapter(folder, "biased", lora(**options.get(damage, {}))) / "adapter_model.safetensors"
    tensors = load_file(file)
    names = sorted(tensors)
    first = names[0]
    lost = {"dora": "magnitude", "lora_bias": "lora_B.bias", "bias": "base_layer.bias", "layer": "layers.1.mlp"}
    match damage:
        case "missing":
            del tensors[first]
        case "surplus-layer":
            tensors[first.replace("layers.0", "layers.7")] = tensors[first].clone()
        case "surplus-part":
            tensors[first.replace("lora_A", "lora_C")] = tensors[first].clone()
        case "embedding":
            tensors["base_model.model.model.embed_tokens.weight"] = torch.zeros(259, 64)
        case "shape":
            tensors[first] = tensors[first][:, :-1].contiguous()
        case "rank":
            settings = json.loads((folder / "adapter_config.json").read_text())
            (folder / "adapter_config.json").write_text(json.dumps({**settings, "r": 3}))
        case _:
            for name in [name for name in names if lost[damage] in name]:
                del tensors[name]
    save_file(tensors, file)
    return folder


@pytest.mark.parametrize(
    "damage",
    [
        "missing", "surplus-layer", "surplus-part", "embedding", "shape", "rank", "layer", "dora", "lora_bias", "bias",
        "prompt-tuning", "modules_to_save",
    ],
)  # fmt: skip
def test_what_does_not_fit_is_refused_and_changes_nothing(tmp_path: Path, damage: str) -> None:
    folder = damaged(tmp_path / "adapter", damage)
    model, ids = fresh("biased"), tokens(1, 5)
    batch = LoraBatch(model, 2)
    with pytest.raises(KauliError):
        batch.read(folder)
    assert batch.keys() == []
    close(logits(model, batch, ids, [None]), peft_logits("biased", None, ids))
