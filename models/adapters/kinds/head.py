"""A few-shot classifier on frozen embeddings: for the task `align` with the method kind `head`."""

from typing import ClassVar, Literal, Self

from pydantic import Field, model_validator

from kauli.models.adapters.kinds.base import AdapterKind

HeadKind = Literal["zero_shot", "prototype", "linear", "clip_adapter", "tip", "tip_f"]


class FewShot(AdapterKind):
    """A classifier on frozen embeddings, from a few images of each class (`kauli.models.vision.heads`)."""

    tasks: ClassVar = ("head",)

    kind: Literal["head"] = "head"
    head: HeadKind = "tip_f"
    shots: int = Field(default=5, ge=0)
    """Images drawn of each class; `zero_shot` takes none."""

    @model_validator(mode="after")
    def _shots_fit(self) -> Self:
        if (self.head == "zero_shot") != (self.shots == 0):
            raise ValueError("head zero_shot goes with shots 0, every other head with shots of 1 or more")
        return self
