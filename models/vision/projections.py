"""The projections of an open_clip model into the shared space, taken out of the towers: what `align` trains.

Their tensors keep the names of open_clip's own state dict ("visual.head.proj.weight", "text.proj.weight",
"logit_scale"), so a saved projection is read by `model.load_state_dict(load_file(...), strict=False)` as well.
"""

from collections.abc import Mapping
from copy import deepcopy
from typing import Any, Self

import torch
from torch import Tensor, nn

from kauli.models.errors import KauliError, UsageError


class Projections(nn.Module):
    """Both projections, the scale of the logits and, for the sigmoid loss, their bias.

    A side without a projection (SigLIP's images, say) is an identity: it has nothing to train.
    """

    def __init__(self, image: nn.Module, text: nn.Module, scale: Tensor, bias: Tensor | None, names: dict[str, str]):
        super().__init__()
        self.image, self.text = image, text
        self.logit_scale = nn.Parameter(scale.detach().float().clone())
        """The logarithm of the factor of the cosines."""
        self.logit_bias = None if bias is None else nn.Parameter(bias.detach().float().clone())
        self._names = names  # of our parameters -> of open_clip's; "/T" behind one that is transposed there

    @classmethod
    def take(cls, model: Any) -> Self:
        """Take the projections out of a loaded open_clip model, whose towers then return what they would project.

        Raises KauliError for a model of another build.
        """
        names: dict[str, str] = {"logit_scale": "logit_scale", "logit_bias": "logit_bias"}
        visual = model.visual
        if hasattr(visual, "trunk") and hasattr(visual, "head"):
            image = _taken(visual, "head", "visual.head", "image", names)
            visual.head = nn.Identity()
        elif hasattr(visual, "proj"):
            image = _taken(visual, "proj", "visual.proj", "image", names)
        else:
            raise KauliError(
                f"the image tower {type(visual).__name__} has no projection that kauli knows: "
                "it takes open_clip's ViTs and the models of timm."
            )
        if hasattr(model, "text") and hasattr(model.text, "transformer") and hasattr(model.text, "pooler"):
            text = _taken(model.text, "proj", "text.proj", "text", names)
            model.text.proj = nn.Identity()
        elif hasattr(model, "text") and hasattr(model.text, "text_projection"):
            text = _taken(model.text, "text_projection", "text.text_projection", "text", names)
        elif hasattr(model, "text_projection"):
            text = _taken(model, "text_projection", "text_projection", "text", names)
        else:
            raise KauliError(
                "the text tower has no projection that kauli knows: it takes open_clip's and BERT-like ones."
            )
        return cls(image, text, model.logit_scale, getattr(model, "logit_bias", None), names)

    def tensors(self) -> dict[str, Tensor]:
        """Open_clip's names -> values on the CPU, float32."""
        found = {}
        for ours, value in self.named_parameters():
            name, transposed, _ = self._names[ours].partition("/T")
            found[name] = (value.T if transposed else value).detach().float().cpu().contiguous().clone()
        return found

    def with_tensors(self, tensors: Mapping[str, Tensor], origin: str) -> Self:
        """A copy with these values; KauliError where a name, a shape or a number is wrong. `origin` is named there."""
        copy = deepcopy(self)
        if "logit_bias" in tensors and copy.logit_bias is None:
            copy.add_bias()
        wanted = {name: value.shape for name, value in copy.tensors().items()}
        for name in sorted(wanted.keys() ^ tensors.keys()):
            fault = "lacks the tensor" if name in wanted else "has a tensor that its base has not,"
            raise KauliError(f"{origin} {fault} '{name}': it was made for another base.")
        for ours, parameter in copy.named_parameters():
            name, transposed, _ = self._names[ours].partition("/T")
            value = tensors[name]
            if value.shape != wanted[name]:
                raise KauliError(
                    f"{origin}: '{name}' has the shape {list(value.shape)}, its base {list(wanted[name])}: it was made "
                    "for another base."
                )
            if not bool(torch.isfinite(value.float()).all()):
                raise KauliError(f"{origin}: '{name}' holds numbers that are not finite: the training failed.")
            with torch.no_grad():
                parameter.copy_(value.T if transposed else value)
        return copy

    def add_bias(self) -> None:
        """Give the logits a bias where there is none, at SigLIP's initial value."""
        if self.logit_bias is None:
            self.logit_bias = nn.Parameter(torch.tensor(-10.0, device=self.logit_scale.device))

    def first(self, side: str) -> nn.Linear | None:
        """The first linear layer of a side ("image" or "text"), which reads its features; None for an identity."""
        layers = (module for module in getattr(self, side).modules() if isinstance(module, nn.Linear))
        return next(layers, None)


def _taken(owner: Any, attribute: str, name: str, side: str, names: dict[str, str]) -> nn.Module:
    """The projection at an attribute, as a module, and None there; its parameters' names are noted."""
    found = getattr(owner, attribute)
    if isinstance(found, nn.Parameter):
        linear = nn.Linear(found.shape[0], found.shape[1], bias=False)
        with torch.no_grad():
            linear.weight.copy_(found.T)
        names[f"{side}.weight"] = f"{name}/T"
        setattr(owner, attribute, None)
        return linear
    module = nn.Identity() if found is None else deepcopy(found)
    known = (nn.Identity, nn.Linear, nn.Dropout, nn.GELU, nn.Sequential)  # the last is empty, being a leaf
    leaves = [leaf for leaf in module.modules() if not list(leaf.children())]
    if unknown := [type(leaf).__name__ for leaf in leaves if not isinstance(leaf, known)]:
        raise UsageError(
            f"the model pools its {side} features with its own layer ({unknown[0]}) in {name}, which kauli does "
            "not train: use one whose projection is linear or a multilayer perceptron."
        )
    names |= {f"{side}.{key}": f"{name}.{key}" for key, _ in module.named_parameters()}
    setattr(owner, attribute, None)
    return module.float()
