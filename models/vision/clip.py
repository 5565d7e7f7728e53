"""An open_clip model loaded from a folder, with its preprocessing of images and texts."""

import json
import logging
from pathlib import Path
from typing import Any

import torch
from PIL import Image
from torch import Tensor, nn

from kauli.models.bases.clip_import import CLIP_CONFIG
from kauli.models.errors import KauliError


class ClipModel:
    """A loaded open_clip model with its preprocessing of images and texts."""

    def __init__(self, folder: Path) -> None:
        """Raises KauliError where the folder does not hold a whole model."""
        import open_clip

        content = json.loads((folder / CLIP_CONFIG).read_text(encoding="utf-8"))
        text_cfg = dict(content["model_cfg"]["text_cfg"])
        self.hf_text = "hf_model_name" in text_cfg
        if self.hf_text:
            # The configuration beside the weights, never a name that would be looked up on a hub.
            text_cfg |= {"hf_model_name": str(folder), "hf_model_pretrained": False}
        level = logging.getLogger().level
        try:
            logging.getLogger().setLevel(logging.ERROR)  # open_clip writes to the root logger
            model, _, preprocess = open_clip.create_model_and_transforms(f"local-dir:{folder}", text_cfg=text_cfg)
            self._tokenizer: Any = open_clip.get_tokenizer(f"local-dir:{folder}") if not self.hf_text else None
        except (OSError, ValueError, RuntimeError, KeyError, TypeError, AssertionError) as error:
            reason = " ".join(str(error).split())[:300]
            raise KauliError(f"the open_clip model in {folder} can't be loaded: {reason}") from error
        finally:
            logging.getLogger().setLevel(level)
        if self.hf_text:
            from transformers import AutoTokenizer

            self._tokenizer = AutoTokenizer.from_pretrained(folder, local_files_only=True)
        self.model: Any = model.float().eval()
        self._preprocess: Any = preprocess
        size = model.visual.image_size
        self._side = min(size) if isinstance(size, tuple) else int(size)
        self.preprocess_cfg: dict[str, Any] = content.get("preprocess_cfg", {})
        self.vision_cfg: dict[str, Any] = content["model_cfg"]["vision_cfg"]
        self.dim = int(content["model_cfg"]["embed_dim"])
        self._context = int(text_cfg.get("context_length", 77))
        self._prefix: str = content.get("kauli", {}).get("text_prefix", "")

    def preprocess(self, image: Image.Image) -> Tensor:
        """(3, height, width) float32: the image tower's input."""
        least = -(-max(image.size) // self._side)
        if min(image.size) < least:  # a thinner image would be scaled to a side of 0, or the other to gigabytes
            width, height = image.size
            image = image.resize((max(width, least), max(height, least)))
        pixels: Tensor = self._preprocess(image)
        return pixels

    def tokens(self, texts: list[str]) -> Tensor:
        """(N, L) int64: the text tower's input; longer texts are truncated."""
        texts = [self._prefix + text for text in texts]
        if self.hf_text:
            # Padded to the longest text; the tower masks padding.
            found = self._tokenizer(
                texts, padding=True, truncation=True, max_length=self._context, return_tensors="pt"
            ).input_ids
            return torch.as_tensor(found)
        return torch.as_tensor(self._tokenizer(texts))

    def truncates(self, text: str) -> bool:
        """Whether `tokens` drops the end of a text."""
        whole = getattr(self._tokenizer, "tokenizer", self._tokenizer).encode(self._prefix + text)
        marks = 0 if self.hf_text or hasattr(self._tokenizer, "tokenizer") else 2  # open_clip adds start and end later
        return len(whole) + marks > self._context


def spatial(visual: nn.Module, pixels: Tensor) -> Tensor:
    """The last map of an open_clip image tower: (N, 3, height, width) -> (N, places, width), row by row."""
    tower: Any = visual
    if hasattr(tower, "trunk"):  # a timm model
        found: Tensor = tower.trunk.forward_features(pixels)
        if found.ndim == 4:
            return found.flatten(2).mT
        return found[:, tower.trunk.num_prefix_tokens :]
    out = tower.forward_intermediates(
        pixels, indices=1, normalize_intermediates=True, intermediates_only=True, output_fmt="NLC"
    )
    last: Tensor = out["image_intermediates"][-1]
    return last
