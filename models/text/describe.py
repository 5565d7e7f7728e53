"""The task `describe`: pictures, recordings and a prompt become text, by a connector before a language model.

All that generates is `kauli.models.text.task`, with any mixture of adapters, with and without connectors, in one batch;
this file adds what training needs: a new connector, and where it begins.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import torch

from kauli.models.text.connector import Connector, PartSettings
from kauli.models.text.task import Row, TextTask


class DescribeTask(TextTask):
    """A causal language model that learns to read an encoder's features. Rows carry `media`."""

    def add_connector(self, parts: Mapping[str, PartSettings], rows: Sequence[Row]) -> None:
        """Put a new connector before the model, drawn from torch's random state, and begin it at these rows.

        It begins among the words that the model knows rather than anywhere, as far as a ridge regression can tell: the
        first feature of a picture leads to the mean embedding of its text's tokens, and each feature of a recording to
        the embedding of the token that stands as far into the text as it stands in the recording. English rows are
        taken where there are some: it is what a base knows best, and what its other languages hang on.
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
            self.connector.begin_at(kind, torch.cat(features), torch.cat(targets))
