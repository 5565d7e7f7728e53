"""What all adapter kinds share: the YAML keys of `method` in a recipe, how a model gets the adapter, how it is read."""

from typing import TYPE_CHECKING, Any, ClassVar

from kauli.models.frozen import FrozenModel

if TYPE_CHECKING:
    from torch import Tensor, nn

    from kauli.models.adapters.delta import LinearDelta


class AdapterKind(FrozenModel):
    """One kind of adapter. A subclass has a field `kind: Literal[NAME]`."""

    kind: Any  # a Literal in each subclass
    tasks: ClassVar[tuple[str, ...]] = ()
    """Rows of `kauli.models.tasks.TASKS` whose recipes may train it; none: it is only imported and served."""
    peft_type: ClassVar[str | None] = None
    """PEFT's name of the kind, where PEFT knows it and its deltas are those of linear layers (`read`)."""
    starts_from: ClassVar[bool] = True
    """Whether training may start from an adapter of this kind."""

    def attach(self, model: Any, reference: str) -> Any:
        """The model with fresh weights of this kind trainable, everything else frozen.

        Args:
            model: the loaded base model; it is changed.
            reference: what the adapter names as its base (a hub id).

        Raises ValueError or UsageError where the kind does not fit the model.
        """
        raise NotImplementedError(f"adapters of the kind {self.kind} can't be trained")

    @staticmethod
    def read(parts: "dict[str, Tensor]", config: dict[str, Any], name: str, linear: "nn.Linear") -> "LinearDelta":
        """The delta of one linear layer from its tensors in an adapter's file; takes them out of `parts`.

        Args:
            parts: tensor name inside the module -> tensor.
            config: the content of adapter_config.json.
            name: the module's name in the base.
            linear: the base's module.

        Raises KeyError for a missing tensor, RuntimeError for one of a wrong shape or without a place.
        """
        raise NotImplementedError
