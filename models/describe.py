"""The task `describe`: a picture and a prompt become text, by a connector before a language model.

All that generates is `kauli.models.text`, with any mixture of adapters, with and without connectors, in one batch;
this file adds what training needs: a new connector, and where it begins.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import torch

from kauli.models.connector import Connector, PartSettings
from kauli.models.languages import nfc
from kauli.models.text import Row, TextTask


class DescribeTask(TextTask):
    """A causal language model that learns to read an encoder's features. Rows carry `media`."""

    def add_connector(self, parts: Mapping[str, PartSettings], rows: Sequence[Row]) -> None:
        """Put a new connector before the model, drawn from torch's random state, and begin it at these rows.

        It begins where the first feature of a row's media leads to the mean embedding of its text's tokens, as far as
        a ridge regression can tell: among the words that the model knows, rather than anywhere.
        """
        embed: Any = self.model.get_input_embeddings()
        self.connector = Connector(parts, int(embed.embedding_dim)).to(self.device)
        for kind in parts:
            found = [(one.features[0], row) for row in rows for one in row["media"] if one.kind == kind]
            with torch.no_grad():
                targets = torch.stack(
                    [
                        embed(torch.tensor(self._plain_tokens(nfc(row["text"])), device=self.device)).mean(0)
                        for _, row in found
                    ]
                )
            features = torch.stack([torch.as_tensor(first).float() for first, _ in found]).to(self.device)
            self.connector.begin_at(kind, features, targets.float())
