"""Coloured shapes with captions: images that an encoder of random weights tells apart."""

import io
from typing import Any

from PIL import Image, ImageDraw

from kauli.models.media.decode import content_key

COLOURS = ("red", "blue", "green", "yellow", "black", "orange", "purple", "pink")


SHAPES = ("circle", "square", "bar")


SWAHILI = dict(
    zip(COLOURS, ("nyekundu", "bluu", "kijani", "njano", "nyeusi", "machungwa", "zambarau", "pinki"), strict=True)
)


def painted_shape(colour: str, shape: str) -> bytes:
    image = Image.new("RGB", (32, 32), "white")
    box = {"circle": (6, 6, 26, 26), "square": (4, 4, 28, 28), "bar": (2, 12, 30, 20)}[shape]
    draw = ImageDraw.Draw(image)
    (draw.ellipse if shape == "circle" else draw.rectangle)(box, fill=colour)
    content = io.BytesIO()
    image.save(content, "PNG")
    return content.getvalue()


def rows(per_split: bool = False) -> list[dict[str, Any]]:
    """24 images, each with an English caption, two thirds with a Swahili one as well."""
    found = []
    for place, (colour, shape) in enumerate((colour, shape) for colour in COLOURS for shape in SHAPES):
        image = painted_shape(colour, shape)
        for language, text in (("en", f"{colour} {shape}"), ("sw", f"{shape} {SWAHILI[colour]}")):
            if language == "sw" and shape == "bar":
                continue
            found.append(
                {"id": f"{language}-{place}", "group": f"g{place}", "language": language, "prompt": None, "text": text,
                 "image": image, "image_key": content_key(image), "source": "mine", "licence": "CC0-1.0",
                 "synthetic": False}
            )  # fmt: skip
    return found
