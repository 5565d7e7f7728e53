"""A home in which every command of the documents runs in seconds: bases of random weights under the real names, a
small starter data set under the real name, recipes of two steps, training and service in this process.

What is replaced is listed here and nowhere else; the commands themselves are run as they are written.
"""

import json
import shutil
from collections.abc import Sequence
from dataclasses import replace
from itertools import product
from pathlib import Path
from typing import Any

import pytest
from peft import LoraConfig, get_peft_model
from transformers import AutoModelForCausalLM

from kauli.models.adapters.registry import Registry
from kauli.models.bases.find import find_base, known_bases
from kauli.models.bases.packages import fetch_package
from kauli.models.languages import display_name
from kauli.models.speech.watermark import PACKAGE
from kauli.training import compare, posterior, recipe_file, train
from kauli.training.data import starter, topics
from kauli.training.data.groups import media_key, short_hash
from kauli.training.data.schema import SCHEMA, write_parquet
from kauli.training.evaluation.acoustics import MOS
from support.picture_adapters import png
from support.speech_adapters import encoded, sound, wav

BASES = {
    "smollm2-135m-q4": "debug-text", "gemma-3-270m-q4": "debug-gemma", "whisper-base": "debug-whisper",
    "kauli-clip": "debug-clip", "kauli-towers": "debug-clip", "piper-vits": "debug-vits",
}  # fmt: skip
"""Name in the documents -> the debug base whose weights stand for it. Licences and terms stay."""
SHORT: dict[str, dict[str, Any]] = {
    "train": {"steps": 2, "minutes": None, "validate_every": 1, "batch_tokens": 512, "max_length": 400},
    "scale": {"workers": 1, "gpu": False, "precision": "fp32"},
    "align": {"batch": 8},
}
"""Keys that every recipe gets in place of its own, in sections that it has."""
WORDS = {
    "en": "animal", "sw": "mnyama", "am": "እንስሳ", "be": "жывёла", "ky": "жаныбар", "ka": "ცხოველი", "ru": "животное",
    "cy": "anifail", "hy": "կենդանի", "is": "dýr", "kk": "жануар", "km": "សត្វ", "ml": "മൃഗം",
}  # fmt: skip
"""Language -> a word: its starter data is this word with numbers in letters."""
SPOKEN = ("be", "ru")
SOURCES = {"udhr": 10, "cldr": 22, "tuxpaint": 22, "iso-codes": 6}
"""Source -> its rows in each language. Those of `cldr` have an image, those of `tuxpaint` an image and audio."""
SPLITS = ("train", "train", "train", "train", "train", "train", "validation", "validation", "test", "test", "test")
ADAPTERS = ("text-sw", "describe-multi", "head-topics", "transcribe-be", "describe-be", "describe-be-fused")
"""Trained by the recipes of these names, for all pages: `latest` of each, and `prod` of the first."""


def make_home(patch: pytest.MonkeyPatch, home: Path) -> None:
    """Point KAULI_HOME to `home` and fill it; replace what would take minutes, a download or Ray."""
    packages = [fetch_package(one) for one in (PACKAGE, MOS)]
    patch.setenv("KAULI_HOME", str(home))
    (home / "packages").mkdir(parents=True, exist_ok=True)
    for package in packages:
        (home / "packages" / package.name).symlink_to(package)
    for name in ("KAULI_STORAGE", "KAULI_API_KEYS", "KAULI_ADMIN_KEYS", "KAULI_HOST", "KAULI_PORT", "KAULI_BASES"):
        patch.delenv(name, raising=False)
    for name in ("NO_PROXY", "no_proxy"):  # what the documents send goes to this machine
        patch.setenv(name, "127.0.0.1")
    for name, stand_in in BASES.items():
        own, debug = known_bases()[name], known_bases()[stand_in]
        weightless = {
            "source": "debug",
            "shape": debug.shape,
            "gguf": None,
            "whisper": None,
            "towers": None,
            "piper": None,
        }
        changes = weightless | {"recipe": None, "notices": (), "template": debug.template}
        patch.setitem(known_bases(), name, own.model_copy(update=changes))
        find_base(name, task=own.tasks[0], accept_terms=True)
    _shorten(patch)
    images = [_image(number) for number in range(SOURCES["cldr"] + SOURCES["tuxpaint"])]
    for language, full in product(WORDS, (False, True)):
        content = json.dumps({"build": starter._build_hash(full), "shared": "made up", "skipped": []}).encode()
        rows = list(_starter_rows(language, images))
        write_parquet(rows, starter.starter_folder(full) / f"{language}.parquet", {starter.STAMP: content})
    names = list(topics.topics())
    labels = {media_key("image", image): names[number % 3] for number, image in enumerate(images)}
    patch.setattr(topics, "_topics_of_images", lambda _sources, _fetch: labels)


def _shorten(patch: pytest.MonkeyPatch) -> None:
    """Recipes get `SHORT`, a comparison one seed, and training no Ray, from the command and from Python."""
    parse, run, compare_all = recipe_file.parse_recipe, train.train, compare.compare

    def parse_short(content: dict[str, Any], *origin: Any) -> Any:
        parse(content, *origin)  # as it is written
        changed = {
            key: {**content.get(key, {}), **own} for key, own in SHORT.items() if key in content or key != "align"
        }
        return parse({**content, **changed}, *origin)

    def run_here(*values: Any, **options: Any) -> Any:
        return run(*values, **{**options, "use_ray": False, "generated": 2, "scored": 8})

    def compare_once(recipes: Any, _seeds: int, storage: str, **options: Any) -> Any:
        return compare_all(recipes, 1, storage, **options)

    patch.setattr(recipe_file, "parse_recipe", parse_short)
    patch.setattr(posterior, "_texts", lambda effort: [("sw", "Habari za asubuhi, rafiki yangu.")] * 40)
    patch.setattr(posterior, "DEFAULT", replace(posterior.SMALL, seconds=2.0, steps=2, frames=8))
    patch.setattr(compare, "compare", compare_once)
    patch.setattr(train, "train", run_here)
    patch.setattr(compare, "train", run_here)


def fill_storage(storage: Path, train_by: Any) -> None:
    """Publish `ADAPTERS` by `train_by(recipe)`, and two more versions of the first."""
    registry = Registry(str(storage))
    for name in ADAPTERS:
        train_by(name)
        registry.set_alias(name, 1, "latest")
    folder = registry.fetch(f"{ADAPTERS[0]}@1")
    for _ in range(2):
        copy = storage / "copy"
        shutil.copytree(folder, copy)
        (copy / "card.json").unlink()
        registry.publish(copy, registry.card(f"{ADAPTERS[0]}@1"))
        shutil.rmtree(copy)
    registry.set_alias(ADAPTERS[0], 1, "prod")


def fill_folder(folder: Path) -> None:
    """The files that the documents name, each the smallest that is right."""
    (folder / "app.po").write_text(
        'msgid ""\nmsgstr "Content-Type: text/plain; charset=UTF-8\\n"\n\nmsgid "Open %s"\nmsgstr ""\n'
    )
    for number, name in enumerate(("cat.png", "dog.png")):
        (folder / name).write_bytes(_image(number))
    for number, name in enumerate(("clip.wav", "clip2.wav")):
        (folder / name).write_bytes(_speech(number))
    (folder / "clip.ogg").write_bytes(encoded(sound(1.5), "OGG", subtype="VORBIS"))
    texts = [f"moja {letters(number)} mbili {letters(number * 7)}" for number in range(60)]
    rows = [{"prompt": f"say {number}", "text": text} for number, text in enumerate(texts)]
    (folder / "mine.jsonl").write_text("\n".join(map(json.dumps, rows)) + "\n", encoding="utf-8")
    table = ["sentence;locale", *(f"{text};sw" for text in texts)]
    (folder / "mine.csv").write_text("\n".join(table) + "\n", encoding="cp1252")
    write_parquet([dict.fromkeys(SCHEMA.names) | row for row in _described_rows()], folder / "mine.parquet")
    head = 'msgid ""\nmsgstr ""\n"Language: am\\n"\n"Content-Type: text/plain; charset=UTF-8\\n"\n'
    (folder / "gimp-am.po").write_text(f'{head}\nmsgid "Open the file"\nmsgstr "ፋይሉን ክፈት"\n', encoding="utf-8")
    clips = folder / "cv-be" / "clips"
    clips.mkdir(parents=True)
    for place, split in enumerate(("train", "dev", "test")):
        lines = ["client_id\tpath\tsentence\tup_votes\tlocale"]
        for number in range(4 * place, 4 * place + 4):
            (clips / f"{number}.wav").write_bytes(_speech(number))
            lines.append(f"{number}\t{number}.wav\tжывёла {WORDS['be'][: number % 5]}{number}\t2\tbe")
        (clips.parent / f"{split}.tsv").write_text("\n".join(lines) + "\n", encoding="utf-8")
    _plain_adapter(folder / "my-adapter")


def letters(number: int) -> str:
    """A number in letters: data without digits, a different word for each."""
    return "".join(chr(ord("a") + int(digit)) for digit in str(number))


def _starter_rows(language: str, images: Sequence[bytes]) -> Any:
    for source, count in SOURCES.items():
        for place in range(count):
            number = list(SOURCES).index(source) * 100 + place
            first = SOURCES["cldr"] if source == "tuxpaint" else 0
            english, own = f"animal {letters(number)}", f"{WORDS[language]} {WORDS[language]}"
            ending = letters(number) if source == "tuxpaint" else number  # a voice learns no text with digits
            text = english if language == "en" else f"{own} {WORDS[language] * (number % 3)} {ending}"
            text += " and so on" * 8 if (language, source) == ("en", "udhr") else ""  # running text
            yield dict.fromkeys(SCHEMA.names) | {
                "id": f"{language}-{source}-{number}", "group": short_hash(source, str(place)), "language": language,
                "prompt": None if language == "en" else f"Translate into {display_name(language)}: {english}",
                "input": None if language == "en" else english,
                "input_language": None if language == "en" else "en", "text": text,
                "source": source, "licence": "CC0-1.0", "synthetic": False,
                "image": images[first + place] if source in ("cldr", "tuxpaint") else None,
                "audio": _speech(number) if source == "tuxpaint" and language in SPOKEN else None,
                "split": SPLITS[place % len(SPLITS)],
            }  # fmt: skip


def _described_rows() -> Any:
    for number in range(40):
        yield {
            "id": str(number), "group": str(number), "language": "sw", "text": f"picha {letters(number)}",
            "image": _image(number), "synthetic": False, "split": SPLITS[number % len(SPLITS)], "licence": "CC0-1.0",
        }  # fmt: skip


def _image(number: int) -> bytes:
    return png(f"hsl({number * 37 % 360}, 80%, {30 + number % 40}%)", 32 + number % 7)


def _speech(number: int) -> bytes:
    return wav(1.5, 200.0 + number)


def _plain_adapter(folder: Path) -> None:
    """An adapter as plain PEFT saves it, on the base that stands for SmolLM2."""
    model = AutoModelForCausalLM.from_pretrained(find_base("smollm2-135m-q4").folder)
    get_peft_model(model, LoraConfig(r=2, target_modules=["q_proj"])).save_pretrained(folder)
