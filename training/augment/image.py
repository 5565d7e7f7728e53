"""Images changed at random for training, on torchvision's transforms v2.

Each kind is a frozen pydantic model (its YAML keys) with `changed`, named in `kauli.training.augment.table`.
"""

import math
from collections.abc import Mapping, Sequence
from typing import Any, Literal

import regex
from PIL import Image
from pydantic import Field
from torch import nn
from torchvision.transforms import InterpolationMode, v2

from kauli.training.augment.base import Augmentation, random_state

LARGEST_TURN = 45  # degrees; turned further, an arrow points to another side
_WHITE = 255


class ImageAugmentation(Augmentation):
    """A random change of an image."""

    def changed(self, image: Image.Image) -> Image.Image:
        """The RGB image, changed with probability `p`, of the same size; drawn from torch's random state."""
        changed: Image.Image = v2.RandomApply([self._change(image.width, image.height)], p=self.p)(image)
        return changed

    @property
    def changes_direction(self) -> bool:
        """Whether left may become right, or up down: what letters, signs and arrows do not survive."""
        return False

    def _change(self, width: int, height: int) -> Any:
        """The transform of torchvision for an image of this size."""
        raise NotImplementedError


class Flip(ImageAugmentation):
    """Left and right exchanged."""

    kind: Literal["flip"] = "flip"

    @property
    def changes_direction(self) -> bool:
        return True

    def _change(self, width: int, height: int) -> Any:
        return v2.RandomHorizontalFlip(1.0)


class Rotate(ImageAugmentation):
    """Turned about the middle; the corners that appear are white."""

    kind: Literal["rotate"] = "rotate"
    degrees: float = Field(default=15, gt=0, le=180)
    """The largest angle, to either side."""

    @property
    def changes_direction(self) -> bool:
        return self.degrees > LARGEST_TURN

    def _change(self, width: int, height: int) -> Any:
        return v2.RandomRotation(self.degrees, interpolation=InterpolationMode.BILINEAR, fill=_WHITE)


class Colour(ImageAugmentation):
    """Brightness and contrast multiplied, each by a factor from [1 - x, 1 + x]."""

    kind: Literal["colour"] = "colour"
    brightness: float = Field(default=0.2, ge=0, le=1)
    contrast: float = Field(default=0.2, ge=0, le=1)

    def _change(self, width: int, height: int) -> Any:
        return v2.ColorJitter(brightness=self.brightness, contrast=self.contrast)


class Blur(ImageAugmentation):
    """Gaussian blur."""

    kind: Literal["blur"] = "blur"
    sigma: float = Field(default=1.5, ge=0.1, le=5)
    """The largest standard deviation, in pixels of the image as it is stored."""

    def _change(self, width: int, height: int) -> Any:
        # The border is a reflection, which must be narrower than the image.
        radius = min(math.ceil(3 * self.sigma), width - 1, height - 1)
        return v2.GaussianBlur(2 * radius + 1, sigma=(0.1, self.sigma))


class Elastic(ImageAugmentation):
    """Bent, as by Simard et al. 2003 ("Best practices for convolutional neural networks"); gaps are white."""

    kind: Literal["elastic"] = "elastic"
    alpha: float = Field(default=50, gt=0, le=500)
    """How far: a pixel moves by up to about a fifteenth of it."""

    def _change(self, width: int, height: int) -> Any:
        smooth = max(min(5.0, (min(width, height) - 2) / 4), 0.0)  # its kernel reflects 4 of them at the border
        # Gaps are blended to black, which inverting makes white; torchvision's own fill leaves a dark seam.
        bend = v2.ElasticTransform(self.alpha, sigma=smooth, fill=None)
        return nn.Sequential(v2.RandomInvert(1.0), bend, v2.RandomInvert(1.0))


class Crop(ImageAugmentation):
    """A part, enlarged to the size of the whole; its shape is the image's own times 3/4 to 4/3."""

    kind: Literal["crop"] = "crop"
    scale: float = Field(default=0.6, gt=0, le=1)
    """The smallest share of the area that is kept."""

    def _change(self, width: int, height: int) -> Any:
        shape = width / height
        return v2.RandomResizedCrop((height, width), (self.scale, 1.0), (shape * 3 / 4, shape * 4 / 3))


def augmented(
    image: Image.Image, augmentations: Sequence[ImageAugmentation], seed: int, keep_direction: bool = False
) -> Image.Image:
    """The RGB image changed by each augmentation in turn, each with its own probability; as large as before.

    A function of pixels, augmentations and seed: torch's random state is set for it and put back, so it is not for
    several threads at once. With `keep_direction` flips and rotations over 45 degrees are left out (see `at_risk`).
    """
    with random_state(seed):
        for augmentation in augmentations:
            if not (keep_direction and augmentation.changes_direction):
                image = augmentation.changed(image)
    return image


_INSTRUCTION = regex.compile(r"^Translate into [^:]*:")  # a language may be called "... Sign Language"
_WORDS = regex.compile(
    r"\b(letters?|alphabets?|digits?|numbers?|numerals?|keycaps?|signs?|symbols?|buttons?|flags?"
    r"|arrows?|left|right|leftwards?|rightwards?|\w*clockwise"
    r"|clocks?|o[’']clock|thirty|(?:stop|wrist)?watch|calendars?|coins?|banknotes?)\b"
    r"|^(zero|one|two|three|four|five|six|seven|eight|nine|ten)\.?$",
    regex.IGNORECASE | regex.MULTILINE,
)
_UP_OR_DOWN = regex.compile(r"\b(up|down|upwards?|downwards?|upside)\b", regex.IGNORECASE)
# A letter on its own that is no word: a capital within a sentence ("Літара Б", not "A cow", nor a title's "Oju Ti O N
# Sun") or a whole caption, or one letter of a script without capitals, but for those whose signs are words.
_LONE_LETTER = regex.compile(
    r"""(?V1m)(?<![\p{L}\p{M}\p{N}'’-])
    (?:(?:(?<=[\p{L}\p{N}:,]\ [("“«„]?)|^(?=\X\P{L}*$))\p{Lu}
      |[\p{Lo}--[\p{Han}\p{Hangul}\p{Hiragana}\p{Katakana}]])
    \p{M}*(?![\p{L}\p{M}\p{N}'’-]|\ +\p{Lu})""",
    regex.VERBOSE,
)
_DIGIT = regex.compile(r"\p{Nd}")


def at_risk(rows: Sequence[Mapping[str, Any]], augmentations: Sequence[ImageAugmentation]) -> list[str]:
    """Ids of rows whose image a flip, or a rotation over 45 degrees, may turn into something else.

    Judged by the English words of `prompt` and `text` (letters, signs, arrows, left and right, clocks, flags), and by
    digits and letters on their own in any language. Empty where no augmentation changes the direction.
    """
    turns = [augmentation for augmentation in augmentations if augmentation.changes_direction]
    patterns = [_WORDS, _DIGIT, _LONE_LETTER] if turns else []
    if any(isinstance(augmentation, Rotate) for augmentation in turns):
        patterns.append(_UP_OR_DOWN)
    return [row["id"] for row in rows if any(pattern.search(_caption(row)) for pattern in patterns)]


def warn_of_risk(rows: Sequence[Mapping[str, Any]], augmentations: Sequence[ImageAugmentation]) -> str | None:
    """A sentence for the user on the rows at risk; None where there are none."""
    ids = set(at_risk(rows, augmentations))
    if not ids:
        return None
    example = next(_caption(row) for row in rows if row["id"] in ids).replace("\n", " | ")
    kinds = sorted({augmentation.kind for augmentation in augmentations if augmentation.changes_direction})
    return (
        f"{len(ids)} of {len(rows)} images may show letters, digits, signs or directions ('{example}'): they are "
        f"spared {' and '.join(kinds)}; leave {'it' if len(kinds) == 1 else 'them'} out of `augment` where the "
        "captions of others depend on direction too."
    )


def _caption(row: Mapping[str, Any]) -> str:
    """The caption of the image, one a line: the prompt without its instruction, and the text."""
    prompt = _INSTRUCTION.sub("", row.get("prompt") or "").strip()
    return "\n".join(part for part in (prompt, row.get("text") or "") if part)
