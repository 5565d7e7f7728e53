"""Bases that a recipe makes: a run of the recipe, and its projections written into a whole open_clip model.

Its own base (towers whose projections are random) is copied with the trained projections in place: the result is an
ordinary base of the task `align`, for open_clip as well. It is made anew when recipe, data or towers changed.
"""

import hashlib
import shutil
from pathlib import Path

from safetensors.torch import load_file, save_file

from kauli.models.adapters.card import README_FILE
from kauli.models.adapters.registry import Registry
from kauli.models.bases.find import Base, find_base, known_bases
from kauli.models.bases.folder import RECORD, check_model, damaged_files, read_record, write_record
from kauli.models.errors import UsageError
from kauli.models.files import atomic_folder, file_lock
from kauli.models.paths import kauli_home
from kauli.models.progress import note
from kauli.models.vision.align import PROJECTION
from kauli.training.data.dataset import Dataset, load_data
from kauli.training.recipe import Recipe, recipe_sha256
from kauli.training.recipe_file import load_recipe
from kauli.training.train import train


def make_base(name: str) -> Base:
    """The base `name` of bases.yaml whose source is a recipe: as it is where it is up to date, else trained.

    An interrupted training is resumed. Raises UsageError for another name.
    """
    card = known_bases().get(name)
    if card is None or card.recipe is None:
        made = [other for other, its in known_bases().items() if its.recipe is not None]
        raise UsageError(f"no recipe makes the base '{name}': those made by one are {', '.join(made)}.")
    folder = kauli_home() / "bases" / name
    with file_lock(kauli_home() / "locks" / f"base-{name}.lock"):
        recipe = load_recipe(card.recipe)
        towers = find_base(recipe.base, task=recipe.task)
        dataset = load_data(recipe.data, recipe.language, recipe.data_options)
        parts = recipe.sha256(), dataset.sha256, towers.sha256
        made_from = hashlib.sha256(" ".join(parts).encode()).hexdigest()
        record = read_record(folder)
        if record is None or record.made_from != made_from or damaged_files(folder, record, content=True):
            changed = "" if record is None else " anew, since recipe, data or towers changed or a file is damaged"
            note(
                f"{name} is trained by the recipe '{card.recipe}'{changed}: about ten minutes on two cores, most of "
                "them for features that are cached; an interrupted run is resumed when this is called again"
            )
            adapter = _trained(recipe, dataset)
            with atomic_folder(folder) as partial:
                write_clip(towers.folder, adapter, partial)
                # It names the sources of the images and texts
                shutil.copyfile(adapter / README_FILE, partial / "PROJECTIONS.md")
                check_model(partial, name, recipe.task)
                write_record(partial, name, card.model_dump(mode="json"), made_from)
    return find_base(name, task=recipe.task)


def write_clip(towers: Path, adapter: Path, out: Path) -> None:
    """Copy the open_clip model in `towers` into the folder `out`, with an adapter's projections in place of its own."""
    for path in towers.iterdir():
        if path.is_file() and path.name != RECORD and path.suffix != ".safetensors":
            shutil.copyfile(path, out / path.name)
    (weights,) = towers.glob("*.safetensors")
    tensors, trained = load_file(weights), load_file(adapter / PROJECTION)
    save_file(tensors | trained, out / weights.name)


def _trained(recipe: Recipe, dataset: Dataset) -> Path:
    """The folder of the recipe's adapter, from a store of its own, where an earlier call may have left it."""
    storage = str(kauli_home() / "store-of-bases")
    registry = Registry(storage)
    for version in reversed(registry.versions(recipe.name)) if recipe.name in registry.names() else ():
        spec = f"{recipe.name}@{version}"
        card = registry.card(spec)
        same_data = card.data is not None and card.data.sha256 == dataset.sha256
        if same_data and card.recipe is not None and recipe_sha256(card.recipe) == recipe.sha256():
            return registry.fetch(spec)
    return registry.fetch(train(recipe, storage, use_ray=False, promote=False).adapter)
