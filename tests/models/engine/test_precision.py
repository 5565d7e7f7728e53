"""The choice of precision, by a fake CPU and a fake clock."""

from typing import Literal

import pytest
import torch

from kauli.models.bases.find import find_base
from kauli.models.engine.precision import Precision, Shape, Timer, choose_precision, matrix_shapes, place
from kauli.models.errors import UsageError

SHAPES = 4 * [(576, 576), (1536, 576), (576, 1536)]
FAST = frozenset({"avx2", "avx512_bf16"})


def clock(ratio: float, *, at_most: int = 10**9) -> Timer:
    """A timer on which bf16 is `ratio` times as fast, for matrices of up to `at_most` weights."""

    def seconds(shape: Shape, tokens: int, dtype: torch.dtype) -> float:
        work = tokens * shape[0] * shape[1] * 1e-11
        return work / ratio if dtype == torch.bfloat16 and shape[0] * shape[1] <= at_most else work

    return seconds


def refuse(shape: Shape, tokens: int, dtype: torch.dtype) -> float:
    raise AssertionError("nothing is to be measured here")


def test_auto_on_a_gpu_is_bf16_and_measures_nothing() -> None:
    assert choose_precision(SHAPES, "cuda:1", timer=refuse).name == "bf16"


@pytest.mark.parametrize("wanted", ["fp32", "bf16"])
def test_what_is_set_is_taken(wanted: Literal["fp32", "bf16"]) -> None:
    assert choose_precision(SHAPES, "cpu", wanted, flags=frozenset(), timer=refuse) == Precision(wanted, "as set")


def test_a_cpu_without_the_instructions_is_not_measured() -> None:
    found = choose_precision(SHAPES, "cpu", flags=frozenset({"avx2", "avx512f"}), timer=refuse)
    assert (found.name, found.ratio) == ("fp32", None)
    assert "avx512_bf16" in found.reason


@pytest.mark.parametrize("flag", ["avx512_bf16", "amx_bf16"])
@pytest.mark.parametrize(("ratio", "name"), [(0.06, "fp32"), (1.29, "fp32"), (1.31, "bf16"), (3.0, "bf16")])
def test_a_cpu_with_them_takes_bf16_where_it_is_faster_by_a_third(flag: str, ratio: float, name: str) -> None:
    found = choose_precision(SHAPES, "cpu", flags=frozenset({flag}), timer=clock(ratio))
    assert found.name == name
    assert found.ratio == pytest.approx(ratio)
    assert f"{ratio:.2f} times" in str(found)
    assert found.dtype == (torch.bfloat16 if name == "bf16" else torch.float32)


def test_each_shape_counts_as_often_as_the_base_has_it() -> None:
    timer = clock(4.0, at_most=576 * 576)
    few = choose_precision([(576, 576), *[(1536, 576)] * 30], "cpu", flags=FAST, timer=timer)
    many = choose_precision([*[(576, 576)] * 90, (1536, 576)], "cpu", flags=FAST, timer=timer)
    assert (few.name, many.name) == ("fp32", "bf16")


def test_an_unknown_precision_is_refused() -> None:
    with pytest.raises(UsageError, match="precision 'fp16' is unknown: use auto, fp32 or bf16"):
        choose_precision(SHAPES, "cpu", "fp16")


def test_the_shapes_of_a_base_and_their_measurement() -> None:
    base = find_base("debug")
    shapes = matrix_shapes(base.folder)
    assert len(shapes) == 2 * 7  # of two layers: four of attention, three of the feed-forward part
    assert shapes.count((64, 128)) == 2
    assert choose_precision(base, "cpu", flags=FAST, timer=refuse) == Precision("fp32", "the model is small")
    measured = choose_precision(200 * shapes, "cpu", flags=FAST)
    assert measured.ratio is not None
    assert measured.ratio > 0


def test_a_model_is_placed_on_the_cpu_in_fp32_where_there_is_no_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert place() == (torch.device("cpu"), torch.float32)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    assert place() == (torch.device("cuda"), torch.bfloat16)
    assert place("cpu") == (torch.device("cpu"), torch.float32)
    assert place("cpu", torch.bfloat16) == (torch.device("cpu"), torch.bfloat16)
