"""A run's state on disk, as safetensors and JSON: what a killed run needs to resume as if nothing had happened."""

import json
from dataclasses import asdict, dataclass, field
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from kauli.models.errors import UsageError


@dataclass
class TrainState:
    """How far a run is. Dropout is seeded anew at each step from seed, step and rank, so no RNG state is needed."""

    step: int = 0
    """Optimiser steps done; also the cursor into the plan of examples."""
    seconds: float = 0.0
    """Training time so far, over all the run's lives."""
    tokens: int = 0
    answer_tokens: int = 0
    base_validation: float | None = None
    """The validation figure of the bare base."""
    best_validation: float = float("inf")
    best_step: int = 0
    since_best: int = 0
    """Validations since the best one."""
    curve: list[tuple[int, float, float]] = field(default_factory=list)
    """(step, mean training loss in nats since the last one, validation figure) at each validation."""
    restarts: int = 0
    """The number of times that the run was resumed from a checkpoint."""
    finished: bool = False
    precision: str = ""
    """"fp32" or "bf16", and why; empty in checkpoints of older versions."""


def trainable(model: nn.Module) -> dict[str, nn.Parameter]:
    """The parameters that are trained, by name."""
    return {name: parameter for name, parameter in model.named_parameters() if parameter.requires_grad}


def copy_of(parameters: dict[str, nn.Parameter]) -> dict[str, Tensor]:
    """Their values, on the CPU."""
    return {name: parameter.detach().cpu().clone() for name, parameter in parameters.items()}


def write(values: dict[str, nn.Parameter], to: dict[str, Tensor]) -> None:
    """Set parameters to saved values."""
    with torch.no_grad():
        for name, parameter in values.items():
            parameter.copy_(to[name])


class Checkpoint:
    """One saved state in a folder: weights, best weights, AdamW's moments, progress, and what it all belongs to."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def save(
        self,
        parameters: dict[str, nn.Parameter],
        best: dict[str, Tensor],
        optimizer: torch.optim.Optimizer,
        progress: TrainState,
        identity: dict[str, str],
    ) -> None:
        """Write everything; `identity` names recipe and data, and is checked when the run is resumed."""
        self.folder.mkdir(parents=True, exist_ok=True)
        save_file(copy_of(parameters), self.folder / "weights.safetensors")
        save_file(best, self.folder / "best.safetensors")
        moments: dict[str, Tensor] = {}
        for name, parameter in parameters.items():
            for key, value in optimizer.state[parameter].items():
                moments[f"{key}:{name}"] = value.detach().cpu().contiguous()
        save_file(moments, self.folder / "optimizer.safetensors")
        content = {"progress": asdict(progress), "identity": identity}
        (self.folder / "state.json").write_text(json.dumps(content), encoding="utf-8")

    def progress(self) -> TrainState:
        """How far the run was."""
        content = json.loads((self.folder / "state.json").read_text(encoding="utf-8"))["progress"]
        return TrainState(**{**content, "curve": [tuple(point) for point in content["curve"]]})

    def load(
        self, parameters: dict[str, nn.Parameter], optimizer: torch.optim.Optimizer, identity: dict[str, str]
    ) -> tuple[TrainState, dict[str, Tensor]]:
        """Put weights and moments back; returns the progress and the best weights.

        Raises UsageError where recipe or data are not those of the checkpoint.
        """
        content = json.loads((self.folder / "state.json").read_text(encoding="utf-8"))
        for what, value in identity.items():
            if content["identity"][what] != value:
                raise UsageError(
                    f"the {what} changed since this run's checkpoint at step {content['progress']['step']}: "
                    f"restore the old {what} to resume it, or start over with --restart."
                )
        write(parameters, load_file(self.folder / "weights.safetensors"))
        moments = load_file(self.folder / "optimizer.safetensors")
        for name, parameter in parameters.items():
            state = {key.removesuffix(f":{name}"): value for key, value in moments.items() if key.endswith(f":{name}")}
            # AdamW keeps its step count on the CPU.
            optimizer.state[parameter] = {
                key: value if key == "step" else value.to(parameter.device) for key, value in state.items()
            }
        return self.progress(), load_file(self.folder / "best.safetensors")
