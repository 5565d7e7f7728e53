"""Embeddings for the memory: what open_clip computes with the same tower, each text as if it were alone."""

import json
from dataclasses import replace

import numpy as np
import pytest
import torch

from kauli.models.bases.find import Base, find_base
from kauli.models.errors import UsageError
from kauli.models.text.embedder import Embedder
from kauli.models.vision.clip import ClipModel

TEXTS = ["red car", "a longer text about a red car that is parked before the house", "እንግዳ ነገር", "", "x" * 300]


@pytest.fixture(scope="module")
def base() -> Base:
    return find_base("debug", task="align")


def test_embeddings_are_the_means_of_the_towers_last_layer(base: Base) -> None:
    found = Embedder.load(base).embed(TEXTS)
    assert found.dtype == np.float32
    np.testing.assert_allclose(np.linalg.norm(found, axis=1), [1, 1, 1, 0, 1], atol=1e-5)
    clip = ClipModel(base.folder)
    for text, vector in zip(TEXTS, found, strict=True):
        if text:
            with torch.inference_mode():
                states = clip.model.text.transformer(clip.tokens([text])).last_hidden_state[0]
            mean = states.mean(dim=0).numpy()
            np.testing.assert_allclose(vector, mean / np.linalg.norm(mean), atol=1e-5)


def test_a_text_alone_is_as_in_company_and_in_any_normal_form(base: Base) -> None:
    embedder = Embedder.load(base)
    np.testing.assert_allclose(embedder.embed(TEXTS)[2:3], embedder.embed(TEXTS[2:3]), atol=1e-5)
    np.testing.assert_array_equal(embedder.embed(["e\u0301"]), embedder.embed(["\u00e9"]))
    assert embedder.embed([]).shape == (0, embedder.dim)


def test_a_base_without_such_a_tower_is_refused(tmp_path_factory: pytest.TempPathFactory, base: Base) -> None:
    folder = tmp_path_factory.mktemp("clip")
    (folder / "open_clip_config.json").write_text(json.dumps({"model_cfg": {"text_cfg": {"width": 64}}}))
    with pytest.raises(UsageError, match="kauli-towers"):
        Embedder.load(replace(base, folder=folder))
