"""A memory of pictures: what is near, what is left out, what a prompt shows, what is refused."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from kauli.models.errors import KauliError
from kauli.models.requests import Media
from kauli.models.text.picture_memory import PictureMemory, read_pictures, with_captions


def row(key: str, vector: tuple[float, float], text: str, language: str = "sw", group: str = "g") -> dict[str, Any]:
    media = (Media("image", np.array([vector, (9, 9)], dtype=np.float16)),)
    return {"image_key": key, "group": group, "language": language, "text": text, "media": media}


ROWS = [
    row("a", (1, 0), "gari", group="cars"), row("a", (1, 0), "a car", "en", "cars"), row("b", (1, 1), "basi"),
    row("c", (0, 1), "nyumba"), row("d", (0.9, 0.1), "gari", group="cars"), row("a", (1, 0), "motokaa", group="cars"),
]  # fmt: skip


def near(memory: PictureMemory, language: str | None, without: str | None = None) -> tuple[str, ...]:
    return memory.near(np.array([(2, 0.1), (0, 0)]), language, without)


def test_the_nearest_come_last_each_caption_once_in_one_language() -> None:
    memory = PictureMemory.of(ROWS, "ab" * 32, 2)
    assert memory.features.shape == (4, 2)
    assert near(memory, "sw") == ("basi", "gari")
    assert near(memory, "sw", without="cars") == ("nyumba", "basi")
    assert near(memory, "en") == ("a car",)
    assert near(memory, None) == near(memory, "ky") == ()
    assert near(PictureMemory.of([one for one in ROWS if one["language"] == "sw"], "ab", 1), None) == ("gari",)


def test_what_a_prompt_shows() -> None:
    assert with_captions("Describe.", ("a bus.", " a car ")) == "Similar pictures: a bus; a car.\nDescribe."
    assert with_captions("Describe.", ()) == "Describe."
    assert with_captions(None, ()) is None
    assert len(with_captions("", ("x" * 500,)) or "") < 120


def test_it_is_kept_in_a_folder_and_refused_where_it_does_not_fit(tmp_path: Path) -> None:
    memory = PictureMemory.of(ROWS, "ab" * 32, 2)
    assert read_pictures(tmp_path, None) is None
    memory.save(tmp_path)
    again = read_pictures(tmp_path, "ab" * 32)
    assert again is not None
    assert near(again, "sw") == near(memory, "sw")
    assert again.groups == ("",) * 4
    with pytest.raises(KauliError, match="are features of the encoder abababababab, and its connector takes cdcdcdcd"):
        read_pictures(tmp_path, "cd" * 32)
    (tmp_path / "pictures.json").write_text('[{"sw": "gari"}]')
    with pytest.raises(KauliError, match="features and captions do not fit each other"):
        read_pictures(tmp_path, "ab" * 32)
    (tmp_path / "pictures.safetensors").write_bytes(b"no tensors")
    with pytest.raises(KauliError, match="cannot be read"):
        read_pictures(tmp_path, "ab" * 32)
