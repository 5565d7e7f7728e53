"""The one table of augmentation kinds. A new kind is a class in a file of this folder and a line here."""

from importlib import import_module

from kauli.training.recipe import OneOf

IMAGE, AUDIO = "kauli.training.augment.image:", "kauli.training.augment.audio:"
AUGMENTATIONS: dict[str, dict[str, str]] = {
    "image": {
        "flip": IMAGE + "Flip",
        "rotate": IMAGE + "Rotate",
        "colour": IMAGE + "Colour",
        "blur": IMAGE + "Blur",
        "elastic": IMAGE + "Elastic",
        "crop": IMAGE + "Crop",
    },
    "audio": {
        "speed": AUDIO + "Speed",
        "noise": AUDIO + "Noise",
        "gain": AUDIO + "Gain",
        "spec_augment": AUDIO + "SpecAugment",
    },
    "text": {},
}
"""Medium -> the `kind` in a recipe -> module and class, a subclass of `kauli.training.augment.base.Augmentation`.

Images and audio bring libraries that a text recipe does not need, so that a class is imported when it is asked for.
"""


def augmentations(*media: str) -> OneOf:
    """The kinds for these media, for a recipe's key `augment`."""
    places = {kind: place for medium in media for kind, place in AUGMENTATIONS[medium].items()}
    found = {kind: place.partition(":") for kind, place in places.items()}
    return OneOf({kind: getattr(import_module(module), name) for kind, (module, _, name) in found.items()})
