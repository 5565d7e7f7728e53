"""The language models in a recogniser's adapter: a side file `lm.TAG.safetensors` for each language.

Its header has, beside the model, how it is fused with the recogniser in a beam search (`kauli.models.engine.beams`):
the weight, the bonus for each token, and the beam's size, all chosen on validation clips.
"""

import json
import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open

from kauli.models.errors import KauliError
from kauli.models.requests import BeamSearch
from kauli.models.speech.token_lm import TokenModel, read

_HEADER = "kauli_search"
MOST_BEAMS = 8


@dataclass(frozen=True)
class Weights:
    """How much a language model counts."""

    weight: float
    """Of its log probabilities."""
    bonus: float
    """For each token but the end, in nats."""
    beams: int
    """Answers that are kept at each step."""


@dataclass(frozen=True)
class LanguageModel:
    """A language model and its weights."""

    model: TokenModel
    weights: Weights

    def search(self, slots: int, bias: Any = None) -> BeamSearch:
        """The beam search with it, of as many answers as the engine has slots for; `bias`: hot words."""
        own = self.weights
        return BeamSearch(min(own.beams, slots), self.model, own.weight, own.bonus, bias)

    def save(self, folder: Path) -> None:
        """Write the side file into an adapter's folder."""
        path = folder / f"lm.{self.model.language}.safetensors"
        self.model.save(path, {_HEADER: json.dumps(asdict(self.weights))})


def read_language_models(folder: Path, tokenizer: str) -> Mapping[str, LanguageModel]:
    """Language -> its language model in an adapter's folder.

    Raises KauliError for a model of another tokenizer, a damaged one, and weights that are out of range.
    """
    found = {}
    for path in sorted(folder.glob("lm.*.safetensors")):
        language = path.name.removeprefix("lm.").removesuffix(".safetensors")
        model = read(path, tokenizer, language)
        try:
            with safe_open(path, "numpy") as file:
                weights = Weights(**json.loads((file.metadata() or {})[_HEADER]))
            sound = math.isfinite(weights.weight + weights.bonus) and 1 <= weights.beams <= MOST_BEAMS
        except (SafetensorError, OSError, KeyError, ValueError, TypeError) as error:
            raise KauliError(f"{path} names no weights ({error}): train the adapter again.") from error
        if not sound:
            raise KauliError(f"{path} is damaged: its weights are {weights}. Train the adapter again.")
        found[language] = LanguageModel(model, weights)
    return found
