"""On which device and in which precision a model computes; on a CPU bf16 only where it was measured to be faster."""

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Literal

import torch
from torch import nn

from kauli.models.bases.find import Base
from kauli.models.engine.malloc import keep_freed_memory
from kauli.models.errors import UsageError
from kauli.models.files import check_safetensors

WANTED_RATIO = 1.3
"""Times as fast as fp32 that bf16 must be on a CPU: less is within the noise of a short measurement."""
SMALLEST = 5_000_000
"""Weights of linear layers below which a model is fast in fp32 anyway, and a measurement would be of overheads."""
TOKENS = (256, 1024)
"""Rows of the measured products: a pass of serving, and one of training."""
_SHAPES = 3  # of matrices at most, those with the most weights
_WEIGHTS = 2**20  # of a measured matrix at most, of which the rest of the rows would only repeat the same work
_SECONDS = 0.02  # after which a product is not repeated again
_CPU_FLAGS = frozenset({"avx512_bf16", "amx_bf16"})

Shape = tuple[int, int]
"""(out, in) of a linear layer."""
Timer = Callable[[Shape, int, torch.dtype], float]
"""Seconds of one product of (tokens, in) with a matrix of this shape."""


@dataclass(frozen=True)
class Precision:
    """A choice of precision, why it was made, and by what factor bf16 was measured to be faster."""

    name: Literal["fp32", "bf16"]
    reason: str
    ratio: float | None = None
    """Time of fp32 over that of bf16; None: not measured."""

    @property
    def dtype(self) -> torch.dtype:
        """As torch calls it."""
        return torch.bfloat16 if self.name == "bf16" else torch.float32

    def __str__(self) -> str:
        return f"{self.name} ({self.reason})"


def place(device: str | None = None, dtype: torch.dtype | None = None) -> tuple[torch.device, torch.dtype]:
    """Device and precision of a model to load: by default the GPU in bf16 where there is one, else the CPU in fp32.

    On a CPU the process keeps freed memory from here on (`kauli.models.engine.malloc`).
    """
    where = torch.device(device or ("cuda" if torch.cuda.is_available() else "cpu"))
    if where.type == "cpu":
        keep_freed_memory()
    return where, dtype or (torch.bfloat16 if where.type == "cuda" else torch.float32)


def choose_precision(
    base_or_shapes: Base | Sequence[Shape],
    device: str,
    wanted: str = "auto",
    *,
    flags: frozenset[str] | None = None,
    timer: Timer | None = None,
) -> Precision:
    """bf16 or fp32 for a base on a device, with the reason.

    On a GPU `auto` is bf16. On a CPU it is bf16 if the CPU multiplies it in hardware (avx512_bf16 or amx_bf16) and
    products of the base's own matrix shapes are `WANTED_RATIO` times as fast or faster, which is measured in well
    under a second; else fp32, as for a model of fewer than `SMALLEST` weights.

    Args:
        base_or_shapes: the base, or the (out, in) shapes of its linear layers.
        device: "cpu", "cuda" or "cuda:N".
        wanted: "auto", "fp32" or "bf16".
        flags: the CPU's; by default those of /proc/cpuinfo.
        timer: measures one product; by default on this machine.

    Raises UsageError for another `wanted`.
    """
    match wanted:
        case "fp32" | "bf16":
            return Precision(wanted, "as set")
        case "auto":
            pass
        case _:
            raise UsageError(f"precision '{wanted}' is unknown: use auto, fp32 or bf16.")
    if not device.startswith("cpu"):
        return Precision("bf16", "on a GPU")
    if not _CPU_FLAGS & (cpu_flags() if flags is None else flags):
        return Precision("fp32", "this CPU has neither avx512_bf16 nor amx_bf16")
    shapes = matrix_shapes(base_or_shapes.folder) if isinstance(base_or_shapes, Base) else base_or_shapes
    if sum(rows * columns for rows, columns in shapes) < SMALLEST:
        return Precision("fp32", "the model is small")
    ratio = _measure(shapes, timer or _seconds)
    found = f"bf16 is {ratio:.2f} times as fast as fp32 on this CPU"
    if ratio >= WANTED_RATIO:
        return Precision("bf16", found, ratio)
    return Precision("fp32", f"{found}, less than {WANTED_RATIO}", ratio)


@cache
def cpu_flags() -> frozenset[str]:
    """The features that Linux reports of this CPU; none on other systems."""
    path = Path("/proc/cpuinfo")
    lines = path.read_text().splitlines() if path.exists() else []
    found = next((line for line in lines if line.startswith(("flags", "Features"))), "")
    return frozenset(found.partition(":")[2].split())


def matrix_shapes(folder: Path) -> list[Shape]:
    """(out, in) of each matrix in a base's safetensors, without embeddings and the head."""
    return [
        (shape[0], shape[1])
        for path in sorted(folder.glob("*.safetensors"))
        for name, shape in check_safetensors(path).items()
        if len(shape) == 2 and "embed" not in name and "lm_head" not in name
    ]


def _measure(shapes: Sequence[Shape], timer: Timer) -> float:
    """Time of fp32 over that of bf16 for the shapes with the most weights, each counted as often as it occurs."""
    counts = {shape: list(shapes).count(shape) for shape in shapes}
    heavy = sorted(counts, key=lambda shape: -counts[shape] * shape[0] * shape[1])[:_SHAPES]
    if not heavy:
        return 1.0
    sums = {dtype: 0.0 for dtype in (torch.float32, torch.bfloat16)}
    for dtype in sums:
        for shape in heavy:
            sums[dtype] += counts[shape] * sum(timer(shape, tokens, dtype) / tokens for tokens in TOKENS)
    return sums[torch.float32] / sums[torch.bfloat16]


@torch.inference_mode()
def _seconds(shape: Shape, tokens: int, dtype: torch.dtype) -> float:
    """The fastest of some products, after one that warms the caches and chooses the kernel."""
    rows = max(1, min(shape[0], _WEIGHTS // shape[1]))
    weight, x = torch.ones(rows, shape[1], dtype=dtype), torch.ones(tokens, shape[1], dtype=dtype)
    nn.functional.linear(x, weight)
    began, best = time.perf_counter(), float("inf")
    while best == float("inf") or time.perf_counter() - began < _SECONDS:
        start = time.perf_counter()
        nn.functional.linear(x, weight)
        best = min(best, time.perf_counter() - start)
    return best * shape[0] / rows
