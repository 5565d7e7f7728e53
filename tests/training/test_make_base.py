"""A base made by a recipe: trained where it is missing, whole, loadable, made again only where something changed."""

import json
from pathlib import Path

import pytest
from safetensors.torch import load_file

from kauli.models.bases import find as bases
from kauli.models.bases.card import BaseCard
from kauli.models.bases.find import find_base
from kauli.models.errors import UsageError
from kauli.models.vision.align import AlignTask
from kauli.training import make_base as clip_base
from kauli.training.make_base import make_base
from kauli.training.tasks.align import AlignRecipe
from support.shapes import rows


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A home in which `kauli-clip` is made from the debug towers and 24 images."""
    monkeypatch.setenv("KAULI_HOME", str(tmp_path / "home"))
    data = tmp_path / "data"
    data.mkdir()
    lines = []
    for place, row in enumerate(rows()):
        (data / f"{place}.png").write_bytes(row["image"])
        kept = {key: row[key] for key in ("id", "group", "language", "text", "source", "licence")}
        split = {"0": "test", "1": "validation"}.get(row["group"][-1], "train")
        lines.append(json.dumps(kept | {"image": f"{place}.png", "split": split}))
    (data / "rows.jsonl").write_text("\n".join(lines))
    recipe = AlignRecipe.model_validate(
        {
            "name": "align-x", "task": "align", "base": "debug", "language": ["en", "sw"], "data": str(data),
            "method": {"kind": "projection"}, "align": {"batch": 8, "init": "fresh"},
            "train": {"steps": 10, "validate_every": 5, "learning_rate": 0.01},
        }
    )  # fmt: skip
    monkeypatch.setattr(clip_base, "load_recipe", lambda name: recipe)
    card = BaseCard(title="x", source="recipe", recipe="align-x", tasks=("align",), licence="MIT")
    known = {**bases.known_bases(), "kauli-clip": card}
    for module in (bases, clip_base):
        monkeypatch.setattr(module, "known_bases", lambda: known)
    return tmp_path / "home"


def test_a_missing_one_says_how_to_make_it(home: Path) -> None:
    with pytest.raises(UsageError, match=r"kauli fetch kauli-clip makes it by the recipe 'align-x'"):
        find_base("kauli-clip", task="align")
    with pytest.raises(UsageError, match="no recipe makes the base 'kauli-towers'"):
        make_base("kauli-towers")


def test_it_is_trained_once_and_whole(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    base = make_base("kauli-clip")
    towers = find_base("debug", task="align")
    assert base.sha256 != towers.sha256
    made, bare = (load_file(one.folder / "open_clip_model.safetensors") for one in (base, towers))
    assert {name for name in made if not made[name].equal(bare[name])} == {
        "visual.proj",
        "text.proj.weight",
        "logit_scale",
    }
    assert "CC0-1.0" in (base.folder / "PROJECTIONS.md").read_text()
    # towers alone decide the features, so those that were cached serve both
    assert AlignTask.load(base, device="cpu").sha256 == AlignTask.load(towers, device="cpu").sha256

    def never(*args: object, **options: object) -> None:
        raise AssertionError("trained again")

    monkeypatch.setattr(clip_base, "train", never)
    assert make_base("kauli-clip") == base
    assert find_base("kauli-clip", task="align") == base
    # damaged or removed, it is put together again from the trained projections
    (base.folder / "open_clip_model.safetensors").write_bytes(b"")
    assert make_base("kauli-clip").sha256 == base.sha256


def test_other_data_make_it_anew(home: Path) -> None:
    first = make_base("kauli-clip")
    path = home.parent / "data" / "rows.jsonl"
    path.write_text(path.read_text().replace("blue circle", "a blue circle"))
    assert make_base("kauli-clip").sha256 != first.sha256
