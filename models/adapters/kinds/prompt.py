"""A prompt without weights: the base translates by what the prompt and a memory show it."""

from typing import ClassVar, Literal

from pydantic import Field

from kauli.models.adapters.kinds.base import AdapterKind


class Prompt(AdapterKind):
    """A prompt and no weights, for bases that know the languages already."""

    tasks: ClassVar = ("prompt",)
    starts_from: ClassVar = False

    kind: Literal["prompt"] = "prompt"
    trials: int = Field(default=1, ge=1, le=1000)
    """Prompts that are compared on validation rows, that of `prompting` first; 1: it is published as it is."""
