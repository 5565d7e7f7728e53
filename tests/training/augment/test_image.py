"""Images changed at random: by seed alone, by the chances asked for, and never where it would change the meaning."""

import random
from typing import Annotated, Any

import numpy as np
import pytest
import torch
from PIL import Image
from pydantic import TypeAdapter, ValidationError

from kauli.training.augment.base import view_seed
from kauli.training.augment.image import (
    Blur,
    Colour,
    Crop,
    Elastic,
    Flip,
    ImageAugmentation,
    Rotate,
    at_risk,
    augmented,
    warn_of_risk,
)
from kauli.training.augment.table import augmentations

WHITE = (255, 255, 255)
ALL: list[ImageAugmentation] = [Flip(), Rotate(), Colour(), Blur(), Elastic(), Crop()]
KINDS = [augmentation.kind for augmentation in ALL]


def image(width: int = 48, height: int = 32) -> Image.Image:
    """The same noise each time, not symmetric in any way."""
    values = np.random.default_rng(0).integers(0, 256, (height, width, 3), dtype=np.uint8)
    return Image.fromarray(values)


def row(name: str, prompt: str | None, text: str) -> dict[str, Any]:
    return {"id": name, "prompt": prompt, "text": text, "language": "be"}


def parsed(**content: Any) -> ImageAugmentation:
    adapter: TypeAdapter[ImageAugmentation] = TypeAdapter(Annotated[ImageAugmentation, augmentations("image")])
    return adapter.validate_python(content)


def test_kinds_are_told_apart_and_unknown_keys_refused() -> None:
    for augmentation in ALL:
        assert parsed(kind=augmentation.kind) == augmentation
    for wrong in (
        {"kind": "mirror"},
        {"kind": "flip", "degrees": 5},
        {"kind": "flip", "p": 1.5},
        {"kind": "rotate", "degrees": 0},
        {"kind": "blur", "sigma": 0.0},
        {"kind": "crop", "scale": 0.0},
    ):
        with pytest.raises(ValidationError):
            parsed(**wrong)


@pytest.mark.parametrize("augmentation", ALL, ids=KINDS)
def test_a_seed_decides_the_image(augmentation: ImageAugmentation) -> None:
    always = augmentation.model_copy(update={"p": 1.0})
    first = augmented(image(), [always], seed=3).tobytes()
    torch.rand(7)
    assert augmented(image(), [always], seed=3).tobytes() == first
    others = {augmented(image(), [always], seed=seed).tobytes() for seed in range(5)}
    assert len(others) == (1 if isinstance(always, Flip) else 5)


@pytest.mark.parametrize("augmentation", ALL, ids=KINDS)
def test_probability_0_changes_nothing_and_1_always_does(augmentation: ImageAugmentation) -> None:
    plain = image()
    surely = augmentation.model_copy(update={"p": 1.0})
    if isinstance(augmentation, Blur):
        surely = Blur(p=1, sigma=5)  # of a smaller one, some seeds draw next to none
    for seed in range(10):
        never = augmented(plain, [augmentation.model_copy(update={"p": 0.0})], seed)
        always = augmented(plain, [surely], seed)
        assert never.tobytes() == plain.tobytes()
        assert always.tobytes() != plain.tobytes()
    assert plain.tobytes() == image().tobytes()  # the given image is left alone


def test_probabilities_are_met_independently() -> None:
    plain, flip = image(4, 4), Flip(p=0.3)
    dim = Colour(p=0.5, brightness=0.9, contrast=0.0)
    flipped = plain.transpose(Image.Transpose.FLIP_LEFT_RIGHT)
    count = 600
    found = [augmented(plain, [flip, dim], seed).tobytes() for seed in range(count)]
    assert found.count(flipped.tobytes()) / count == pytest.approx(0.3 * 0.5, abs=0.06)
    assert found.count(plain.tobytes()) / count == pytest.approx(0.7 * 0.5, abs=0.08)


def test_a_flip_exchanges_left_and_right() -> None:
    plain = image()
    expected = plain.transpose(Image.Transpose.FLIP_LEFT_RIGHT)
    assert augmented(plain, [Flip(p=1)], 0).tobytes() == expected.tobytes()
    assert augmented(plain, [Flip(p=1), Flip(p=1)], 0).tobytes() == plain.tobytes()


def test_rotated_and_bent_images_are_filled_with_white() -> None:
    black = Image.new("RGB", (60, 60))
    turned = [augmented(black, [Rotate(p=1, degrees=45)], seed) for seed in range(8)]
    assert any(image.getpixel((0, 0)) == WHITE for image in turned)
    assert all(image.getpixel((30, 30)) == (0, 0, 0) for image in turned)
    assert any(WHITE in image.get_flattened_data() for image in (augmented(black, [Elastic(p=1, alpha=500)], 0),))
    blank = Image.new("RGB", (60, 60), WHITE)
    for augmentation in (Rotate(p=1, degrees=180), Elastic(p=1, alpha=500)):
        assert augmented(blank, [augmentation], 5).tobytes() == blank.tobytes()


def test_blur_and_colour_do_what_they_say() -> None:
    plain = np.asarray(image(), dtype=float)
    blurred = np.asarray(augmented(image(), [Blur(p=1, sigma=5)], 1), dtype=float)
    assert blurred.std() < plain.std() / 2
    assert abs(blurred.mean() - plain.mean()) < 5
    grey = Image.new("RGB", (8, 8), (100, 100, 100))
    found = [augmented(grey, [Colour(p=1, brightness=0.5, contrast=0)], seed).getpixel((4, 4)) for seed in range(50)]
    levels = [pixel[0] for pixel in found if isinstance(pixel, tuple)]
    assert 50 <= min(levels) < 70
    assert 130 < max(levels) <= 150


def test_a_crop_keeps_the_shape_of_what_it_shows() -> None:
    wide = Image.linear_gradient("L").resize((200, 50)).convert("RGB")  # dark above, light below
    shares = []
    for seed in range(20):
        image = augmented(wide, [Crop(p=1, scale=0.5)], seed)
        assert image.size == wide.size
        column = np.asarray(image)[:, 100, 0].astype(float)
        shares.append((column.max() - column.min()) / 255)  # of the height that is left
    assert min(shares) > 0.5  # sqrt(0.5 * 3/4) = 0.61, whatever the image's own shape
    assert max(shares) < 1.01


@pytest.mark.parametrize("size", [(1, 1), (2, 7), (16, 16), (300, 5)])
def test_small_images_are_changed_too(size: tuple[int, int]) -> None:
    always = [augmentation.model_copy(update={"p": 1.0}) for augmentation in [*ALL, Blur(sigma=5)]]
    for seed in range(3):
        assert augmented(image(*size), always, seed).size == size


def test_random_states_of_the_caller_are_left_alone() -> None:
    torch.manual_seed(11)
    random.seed(11)
    states = torch.get_rng_state(), random.getstate()
    augmented(image(), [augmentation.model_copy(update={"p": 1.0}) for augmentation in ALL], seed=5)
    assert torch.equal(torch.get_rng_state(), states[0])
    assert random.getstate() == states[1]


def test_direction_is_kept_where_asked() -> None:
    plain = image()
    for turning in (Flip(p=1), Rotate(p=1, degrees=90)):
        assert augmented(plain, [turning], 1, keep_direction=True).tobytes() == plain.tobytes()
        assert augmented(plain, [turning], 1).tobytes() != plain.tobytes()
    slight = Rotate(p=1, degrees=45)
    assert augmented(plain, [slight], 1, keep_direction=True).tobytes() == augmented(plain, [slight], 1).tobytes()


def test_view_seeds_are_fixed_and_differ() -> None:
    seeds = {view_seed(key, view) for key in ("aa", "aa 1", "b") for view in range(50)}
    assert len(seeds) == 150
    assert all(0 <= seed < 2**63 for seed in seeds)
    assert view_seed("aa", 1) == view_seed("aa", 1)


RISKY = [
    row("letter", "Translate into Belarusian: The letter B.", "Літара B."),
    row("sign", "Translate into Belarusian: stop sign", "знак «стоп»"),
    row("arrow", "Translate into Belarusian: up-right arrow", "стрэлка"),
    row("left", "Translate into Belarusian: backhand index pointing LEFT", "рука"),
    row("clock", "Translate into Belarusian: two o’clock", "дзве гадзіны"),
    row("half", "Translate into Belarusian: two-thirty", "палова трэцяй"),
    row("flag", "Translate into Belarusian: flag: Kenya", "сцяг"),
    row("nine", "Translate into Belarusian: Nine.", "Дзевяць."),
    row("digits", None, "клавіша: ৯"),
    row("price", "Describe the picture.", "Манета 25 цэнтаў"),
    row("capital", None, "літара «М» у коле"),
    row("alone", None, "Ж"),
    row("amharic", None, "ፊደል ሀ"),
    row("english", None, "A red flag."),
]
SAFE = [
    row("cow", "Translate into American Sign Language: A cow.", "A cow."),
    row("words", "Translate into Belarusian: dog with a ball", "сабака з мячом у траве"),
    row("yoruba", None, "Oju Ti O N Rẹrin"),
    row("korean", None, "개"),
    row("hyphen", None, "В T-вобразная форма, L'eau"),
    row("inside", "Translate into Belarusian: bright leftovers, designer", "рэшткі"),
    {"id": "empty", "prompt": None, "text": None},
]


def test_rows_whose_meaning_depends_on_direction_are_found() -> None:
    assert at_risk([*RISKY, *SAFE], [Flip()]) == [one["id"] for one in RISKY]
    assert at_risk([*RISKY, *SAFE], [Blur(), Rotate(degrees=90)]) == [one["id"] for one in RISKY]
    assert at_risk(RISKY, [Rotate(degrees=45), Colour(), Blur(), Elastic(), Crop()]) == []


def test_up_and_down_are_at_risk_of_rotation_alone() -> None:
    rows = [row("thumb", "Translate into Belarusian: thumbs up", "вялікі палец")]
    assert at_risk(rows, [Flip()]) == []
    assert at_risk(rows, [Rotate(degrees=60)]) == ["thumb"]


def test_the_warning_counts_shows_one_and_says_what_to_do() -> None:
    message = warn_of_risk([*SAFE, *RISKY], [Flip(), Rotate(degrees=90), Blur()])
    assert message is not None
    assert message.startswith(f"{len(RISKY)} of {len(RISKY) + len(SAFE)} images")
    assert "'The letter B. | Літара B.'" in message
    assert "spared flip and rotate" in message
    assert "\n" not in message
    assert warn_of_risk(SAFE, [Flip()]) is None
    assert warn_of_risk(RISKY, [Blur()]) is None
