"""The task `describe` in training: images, audio and a prompt become text, by a connector before a language model.

`kauli.models.text.task.TextTask` serves it, with any mixture of adapters, with and without connectors, in one batch.
"""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import nn

from kauli.models.errors import UsageError
from kauli.models.text.connector import Connector, Fused, PartSettings
from kauli.models.text.language_model import Row
from kauli.models.text.training import TrainableText


class TrainableDescribe(TrainableText):
    """A causal language model that learns to read an encoder's features. Rows carry `media`."""

    connector: Connector | None = None
    """The one in training; None before `add_connector`."""

    @property
    def trained(self) -> nn.Module:
        """The model with the connector before it."""
        return super().trained if self.connector is None else Fused(self.model, self.connector)

    def add_connector(self, parts: Mapping[str, PartSettings], rows: Sequence[Row]) -> None:
        """Put a new connector before the model, drawn from torch's random state and initialised by these rows.

        A ridge regression leads the first feature of an image to the mean embedding of its text's tokens, and each
        feature of a clip to the embedding of the token that is as far into the text as the feature is into the clip.
        It prefers English rows: the base's embeddings are most reliable there.
        """
        embed: Any = self.model.get_input_embeddings()
        self.connector = Connector(parts, int(embed.embedding_dim)).to(self.device)
        for kind in parts:
            found = [(one.features, row) for row in rows for one in row["media"] if one.kind == kind]
            found = [pair for pair in found if pair[1].get("language") == "en"] or found
            features, targets = [], []
            for values, row in found:
                with torch.no_grad():
                    tokens = embed(torch.tensor(self.prompts.text_tokens(row["text"]), device=self.device)).float()
                many = torch.as_tensor(values).float().to(self.device)
                if kind == "audio":
                    features.append(many)
                    targets.append(tokens[(torch.arange(len(many)) + 0.5).mul(len(tokens) / len(many)).long()])
                else:
                    features.append(many[:1])
                    targets.append(tokens.mean(0, keepdim=True))
            self.connector.initialise(kind, torch.cat(features), torch.cat(targets))

    def start_from(self, folder: Path) -> None:
        """As `TrainableText.start_from`; of a connector the kinds of media that both have are taken over.

        Raises UsageError where the two connectors differ in encoder or shape.
        """
        super().start_from(folder)
        other = Connector.load(folder)
        if self.connector is None or other is None:
            return
        for kind in self.connector.settings.keys() & other.settings.keys():
            if other.settings[kind] != self.connector.settings[kind]:
                raise UsageError(
                    f"start_from: the connector in {folder} has another encoder or shape for {kind} than the recipe."
                )
            self.connector.parts[kind].load_state_dict(other.parts[kind].state_dict())

    def save(self, folder: Path) -> None:
        """Write connector and adapter as one folder."""
        if self.connector is not None:
            self.connector.save(folder)
        super().save(folder)
