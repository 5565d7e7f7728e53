"""Embeddings of texts in a hundred languages, for the memory: the text tower of a base for `align`, alone.

No image tower is loaded, and no projection: what E5 was trained to compare is the mean of its last layer.
"""

import json
from collections.abc import Iterator, Sequence
from typing import Any, Self

import numpy as np
import torch
from safetensors import safe_open
from tokenizers import Tokenizer
from torch import nn
from torch.nn import functional

from kauli.models.bases.clip_import import CLIP_CONFIG, CLIP_WEIGHTS
from kauli.models.bases.find import Base, find_base
from kauli.models.engine.precision import choose_precision, place
from kauli.models.errors import UsageError
from kauli.models.languages import nfc

DEFAULT = "kauli-towers"
"""The base whose text tower embeds for memories: vectors of two bases can't be compared."""
_TOWER = "text.transformer."
_BATCH_TOKENS = 4096  # with padding


class Embedder:
    """A loaded text tower. Several threads may use it at once."""

    def __init__(self, base: Base, tokenizer: Any, model: nn.Module, prefix: str) -> None:
        self.sha256 = base.sha256
        """Of the base: vectors of another one can't be compared."""
        self.dim = int(model.config.hidden_size)  # type: ignore[union-attr, arg-type]
        """The width of an embedding."""
        self._tokenizer, self._model, self._prefix = tokenizer, model, prefix
        self._device = next(model.parameters()).device

    @classmethod
    def load(cls, base: Base, device: str | None = None) -> Self:
        """The text tower of a base for `align`, on the GPU where there is one.

        Raises UsageError for a base whose text tower is not one of transformers.
        """
        from transformers import AutoConfig, AutoModel
        from transformers.initialization import no_init_weights

        settings = json.loads((base.folder / CLIP_CONFIG).read_text(encoding="utf-8"))
        text = settings["model_cfg"]["text_cfg"]
        if text.get("hf_pooler_type") != "mean_pooler":
            raise UsageError(f"'{base.name}' has no text tower for a memory: use {DEFAULT}.")
        config = AutoConfig.from_pretrained(base.folder, local_files_only=True)
        with no_init_weights():  # random weights of so large a vocabulary would take seconds
            model: Any = AutoModel.from_config(config, add_pooling_layer=False)  # type: ignore[no-untyped-call]
        model.eval().requires_grad_(False)
        with safe_open(base.folder / CLIP_WEIGHTS, framework="pt") as file:
            names = [name for name in file.keys() if name.startswith(_TOWER)]  # noqa: SIM118 - no mapping
            model.load_state_dict({name.removeprefix(_TOWER): file.get_tensor(name).float() for name in names})
        tokenizer = Tokenizer.from_file(str(base.folder / "tokenizer.json"))
        # Once, since a tokenizer's settings can't be changed while another thread uses it
        tokenizer.enable_truncation(int(text.get("context_length", 77)))
        tokenizer.no_padding()
        where = place(device)[0]
        model = model.to(where, choose_precision(base, where.type).dtype)
        return cls(base, tokenizer, model, settings.get("kauli", {}).get("text_prefix", ""))

    @classmethod
    def default(cls) -> Self:
        """The embedder of memories; its base is fetched where it is not on this machine."""
        return cls.load(find_base(DEFAULT, task="align"))

    @torch.inference_mode()
    def embed(self, texts: Sequence[str]) -> np.ndarray:
        """(N, dim) float32, each of length 1, so that a product is a cosine; zeros for a text without tokens.

        Texts longer than the base's context are cut off at the end.
        """
        found = np.zeros((len(texts), self.dim), dtype=np.float32)
        encoded = self._tokenizer.encode_batch([self._prefix + nfc(text) for text in texts])
        for places in _batches([len(one.ids) for one in encoded]):
            longest = max(len(encoded[at].ids) for at in places)
            ids = torch.zeros(len(places), longest, dtype=torch.long)
            mask = torch.zeros(len(places), longest, dtype=torch.long)
            for row, at in enumerate(places):
                ids[row, : len(encoded[at].ids)] = torch.tensor(encoded[at].ids)
                mask[row, : len(encoded[at].ids)] = 1
            ids, mask = ids.to(self._device), mask.to(self._device)
            states = self._model(input_ids=ids, attention_mask=mask).last_hidden_state.float()
            means = (states * mask[:, :, None]).sum(dim=1) / mask.sum(dim=1, keepdim=True)
            found[places] = functional.normalize(means, dim=1).cpu().numpy()
        return found


def _batches(lengths: Sequence[int]) -> Iterator[list[int]]:
    """Places of texts of like length, so that little is padded, without the empty ones."""
    batch: list[int] = []
    for at in sorted((at for at, length in enumerate(lengths) if length), key=lengths.__getitem__):
        if batch and lengths[at] * (len(batch) + 1) > _BATCH_TOKENS:
            yield batch
            batch = []
        batch.append(at)
    if batch:
        yield batch
