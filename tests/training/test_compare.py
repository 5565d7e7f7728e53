"""Comparisons: cells that are kept, and differences that can be counted by hand."""

import json
from pathlib import Path

import numpy as np
import pytest

from kauli.models.errors import KauliError, UsageError
from kauli.training.compare import compare
from kauli.training.data.dataset import load_data
from kauli.training.data.options import DataOptions
from kauli.training.evaluation.comparison import Cell, CompareResult, Line
from kauli.training.evaluation.results import Scores
from kauli.training.evaluation.scorers import Tally, score_answers, tally
from kauli.training.recipe import Recipe
from kauli.training.recipe_file import parse_recipe
from kauli.training.train import train

SIZES = (10, 20, 30, 40)


def recipe(name: str, language: str | list[str] = "sw", rank: int = 8) -> Recipe:
    content = {"name": name, "base": "debug", "language": language, "method": {"kind": "lora", "rank": rank}}
    return parse_recipe(content, name)


class Runs:
    """Makes cells without training: bits per byte is 4 / rank + the seed's own luck, the same in every group."""

    def __init__(self, luck: float = 0.1, sizes: tuple[int, ...] = SIZES) -> None:
        self.luck, self.sizes = luck, sizes
        self.done: list[tuple[str, int]] = []

    def __call__(self, recipe: Recipe, storage: str) -> Cell:
        seed = recipe.train.seed
        self.done.append((recipe.name, seed))
        rate = 4 / recipe.model_dump()["method"]["rank"] + self.luck * seed
        sha256 = recipe.sha256(with_seed=False)
        adapter = f"{recipe.name}@{seed + 1}"
        return Cell(recipe.name, sha256, seed, adapter, 60.0, self.scores(recipe, rate), self.scores(recipe, 4.0))

    def bits(self, rate: float) -> Tally:
        groups = [f"g{n}" for n in range(len(self.sizes))]
        return tally("bits_per_byte", groups, [[rate * size, size] for size in self.sizes])

    def scores(self, recipe: Recipe, rate: float) -> Scores:
        languages = {}
        for tag in recipe.language:
            rows = [{"group": f"g{n}", "language": tag} for n in range(3)]
            answers = score_answers(["paka mweusi"] * 3, ["paka mweupe"] * 3, rows)
            languages[tag] = {"bits_per_byte": self.bits(rate), **answers}
        return Scores(languages, {"udhr": self.bits(rate)}, {"udhr": self.bits(1.0)})


def test_means_deviations_and_paired_differences(tmp_path: Path) -> None:
    result = compare([recipe("a", rank=2), recipe("b", rank=4)], 3, str(tmp_path), Runs())
    found = json.loads(json.dumps(result.to_json(), allow_nan=False))
    first, second = found["recipes"]
    assert first["metrics"]["bits_per_byte"] == pytest.approx(2.1)  # 2.0, 2.1, 2.2
    assert first["deviations"]["bits_per_byte"] == pytest.approx(0.1)
    assert first["base_metrics"]["bits_per_byte"] == pytest.approx(4.0)
    assert first["adapters"] == ["a@1", "a@2", "a@3"]
    assert second["metrics"]["bits_per_byte"] == pytest.approx(1.1)
    low, high = first["intervals"]["bits_per_byte"]
    assert 2.0 <= low < 2.1 < high <= 2.2  # no group differs from another: the seeds alone make it wide
    (change,) = found["differences"]
    assert (change["recipe"], change["against"]) == ("b", "a")
    # the seeds' luck is the same for both recipes, and pairing takes it out
    assert change["metrics"]["bits_per_byte"] == pytest.approx(-1.0)
    assert change["intervals"]["bits_per_byte"] == pytest.approx([-1.0, -1.0])
    assert change["metrics"]["chrf"] == 0.0
    assert change["metrics"]["english_bits_per_byte"] == 0.0
    assert found["seeds"] == [0, 1, 2]
    assert found["groups"] == 4


def test_summary_names_everything(tmp_path: Path) -> None:
    text = compare([recipe("a", rank=2), recipe("b", rank=4)], 2, str(tmp_path), Runs()).summary()
    assert text.startswith("Swahili, 4 test groups, 2 seeds; 95 % intervals over seeds and groups, differences paired")
    assert "minus a" in text
    line = next(line.split() for line in text.splitlines() if line.startswith("bits_per_byte"))
    assert line[:4] == ["bits_per_byte", "a", "2.050", "0.071"]


def test_finished_cells_are_not_run_again(tmp_path: Path) -> None:
    first = Runs()
    before = compare([recipe("a")], 2, str(tmp_path), first)
    assert first.done == [("a", 0), ("a", 1)]
    second = Runs()
    compare([recipe("a"), recipe("b", rank=4)], 3, str(tmp_path), second)
    assert second.done == [("a", 2), ("b", 0), ("b", 1), ("b", 2)]
    third = Runs()
    after = compare([recipe("a")], 2, str(tmp_path), third)
    assert third.done == []
    assert after.to_json() == before.to_json()
    assert len(list((tmp_path / "runs" / "compare").glob("*.json"))) == 6


def test_an_interrupted_comparison_keeps_what_was_finished(tmp_path: Path) -> None:
    runs = Runs()

    def stops(one: Recipe, storage: str) -> Cell:
        if one.train.seed == 1:
            raise KeyboardInterrupt
        return runs(one, storage)

    with pytest.raises(KeyboardInterrupt):
        compare([recipe("a")], 3, str(tmp_path), stops)
    compare([recipe("a")], 3, str(tmp_path), runs)
    assert runs.done == [("a", 0), ("a", 1), ("a", 2)]


def test_a_seed_in_the_recipe_is_no_other_recipe(tmp_path: Path) -> None:
    one = recipe("a")
    other = one.model_copy(update={"train": one.train.model_copy(update={"seed": 7})})
    compare([one], 1, str(tmp_path), Runs())
    again = Runs()
    compare([other], 1, str(tmp_path), again)
    assert again.done == []
    with pytest.raises(UsageError, match="twice"):
        compare([one, other], 1, str(tmp_path), Runs())


def test_recipes_of_several_languages_meet_on_the_common_ones(tmp_path: Path) -> None:
    result = compare([recipe("one", "sw", rank=2), recipe("many", ["sw", "am"], rank=4)], 2, str(tmp_path), Runs())
    assert result.languages == ("sw",)
    # answers were made for other rows of each recipe, so that only bits per byte can be compared
    assert result.metrics == ["bits_per_byte", "english_bits_per_byte"]
    assert np.allclose(result.lines[1].sums["bits_per_byte"][0, :, 1], SIZES)
    assert result.difference(result.lines[1], "bits_per_byte").value == pytest.approx(-1.0)


def test_recipes_of_the_same_name_are_told_apart(tmp_path: Path) -> None:
    result = compare([recipe("a", rank=2), recipe("a", rank=4)], 1, str(tmp_path), Runs())
    assert len({line.name for line in result.lines}) == 2


def test_nothing_in_common_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="no language in common"):
        compare([recipe("a", "sw"), recipe("b", "am")], 1, str(tmp_path), Runs())


def test_no_seed_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="--seeds 0"):
        compare([recipe("a")], 0, str(tmp_path), Runs())


def test_other_test_rows_are_an_error(tmp_path: Path) -> None:
    compare([recipe("a")], 1, str(tmp_path), Runs())
    with pytest.raises(KauliError, match="different test rows"):
        compare([recipe("a"), recipe("b", rank=4)], 1, str(tmp_path), Runs(sizes=(10, 20, 30, 41)))
    with pytest.raises(KauliError, match="data changed between"):
        compare([recipe("a")], 2, str(tmp_path), Runs(sizes=(10, 20, 30)))


def test_a_damaged_cell_is_named(tmp_path: Path) -> None:
    compare([recipe("a")], 1, str(tmp_path), Runs())
    (path,) = (tmp_path / "runs" / "compare").glob("*.json")
    path.write_text("{")
    with pytest.raises(KauliError, match=path.name):
        compare([recipe("a")], 1, str(tmp_path), Runs())


@pytest.mark.ray
def test_a_real_comparison_trains_each_cell_once(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    rows = [
        {"prompt": f"say {number}", "text": f"moto {number} maji {number % 7}", "language": "sw"}
        for number in range(80)
    ]
    (tmp_path / "rows.jsonl").write_text("\n".join(json.dumps(row) for row in rows))
    budget = {"steps": 10, "batch_tokens": 400, "max_length": 64, "validate_every": 5, "learning_rate": 0.01}
    content = {"base": "debug", "language": "sw", "data": str(tmp_path / "rows.jsonl"), "train": budget}
    one = parse_recipe({**content, "name": "small", "method": {"kind": "lora", "rank": 1}}, "small")
    two = parse_recipe({**content, "name": "large", "method": {"kind": "lora", "targets": "all-linear"}}, "large")
    first = compare([one, two], 1, str(tmp_path / "store"))
    assert first.lines[0].base("bits_per_byte") > first.lines[0].interval("bits_per_byte").value
    assert first.difference(first.lines[1], "bits_per_byte").value < 0
    capsys.readouterr()
    again = compare([one, two], 1, str(tmp_path / "store"))
    assert capsys.readouterr().err.count("finished before") == 2
    assert again.to_json() == first.to_json()


def test_every_group_is_tested_once_over_the_folds(tmp_path: Path) -> None:
    rows = [{"prompt": f"say {n}", "text": f"moto {n} maji {n % 7}", "language": "sw"} for n in range(60)]
    (tmp_path / "rows.jsonl").write_text("\n".join(json.dumps(row) for row in rows))
    budget = {"steps": 1, "batch_tokens": 200, "max_length": 64, "validate_every": 1}
    content = {"base": "debug", "language": "sw", "data": str(tmp_path / "rows.jsonl"), "train": budget}
    one = parse_recipe({**content, "name": "folded"}, "folded")

    def run_here(recipe: Recipe, storage: str) -> Cell:
        done = train(recipe, storage, promote=False, use_ray=False)
        scores = done.evaluation.scores, done.evaluation.base_scores
        return Cell(recipe.name, recipe.sha256(with_seed=False), 0, done.adapter, 1.0, *scores)

    result = compare([one], 1, str(tmp_path / "store"), run_here, folds=3)
    dataset = load_data(one.data, ["sw"])
    assert result.groups == len({row["group"] for row in dataset.iter_rows()})
    assert len(result.lines[0].adapters) == 3
    assert "60 groups in 3 folds" in result.summary()
    sizes = result.lines[0].sums["bits_per_byte"][0, :, 1]
    assert sizes.sum() == sum(len(row["text"].encode()) for row in rows)  # each text was scored once
    tested = []
    for part in range(3):
        folded = load_data(one.data, ["sw"], DataOptions(fold=(part, 3)))
        sides = {name: {row["group"] for row in folded.iter_rows(name)} for name in ("train", "validation", "test")}
        assert sum(map(len, sides.values())) == len(set().union(*sides.values())) == 60
        assert all(sides.values())
        assert {row["split"] for row in folded.iter_rows("test", columns=["split"])} == {"test"}
        tested += sides["test"]
    assert len(tested) == len(set(tested)) == 60


def test_folds_need_groups(tmp_path: Path) -> None:
    rows = [{"text": f"neno {n}", "language": "sw"} for n in range(12)]
    (tmp_path / "rows.jsonl").write_text("\n".join(json.dumps(row) for row in rows))
    one = parse_recipe({"name": "few", "base": "debug", "language": "sw", "data": str(tmp_path / "rows.jsonl")}, "few")
    with pytest.raises(UsageError, match="--folds 9: the data of few has 12 groups in sw; at least 18 are needed"):
        compare([one], 1, str(tmp_path), folds=9)
    with pytest.raises(UsageError, match=r"fold \[3, 3\]"):
        load_data(one.data, ["sw"], DataOptions(fold=(3, 3)))


def test_the_table_of_a_comparison() -> None:
    def line(name: str, rate: float) -> Line:
        sums = np.array([[[rate * 10, 10.0], [rate * 20, 20.0]]] * 2)
        base = {"bits_per_byte": sums + np.array([[10.0, 0.0], [20.0, 0.0]])}
        return Line(name, "0" * 64, (f"{name}@1", f"{name}@2"), (1.0, 2.0), {"bits_per_byte": sums}, base)

    found = CompareResult(("sw",), (0, 1), 2, (line("a", 2.0), line("b", 1.5)))
    assert (
        found.heading() == "Swahili, 2 test groups, 2 seeds; 95 % intervals over seeds and groups, differences paired"
    )
    assert found.table()[1] == ["bits_per_byte", "a", "2.000", "0.000", "[2.000, 2.000]", "", "", "3.000"]
    assert found.table()[2] == ["", "b", "1.500", "0.000", "[1.500, 1.500]", "-0.500", "[-0.500, -0.500]", "2.500"]
