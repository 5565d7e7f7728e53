"""Images and audio in requests: data: URIs and base64 -> the bytes of a file.

The bytes say what a file is, not the type that a client names: many name one for all. `kauli.models.media.decode`
decodes them. Errors here are `MediaError`s, too.
"""

import base64
import re

from kauli.models.errors import MediaError
from kauli.models.media import image_format
from kauli.models.media.audio_format import audio_format_of
from kauli.models.media.decode import AudioLimits, ImageLimits
from kauli.models.media.image_format import image_format_of

_DATA_URI = re.compile(r"data:[^,;]{0,80}(?:;[^,;]{0,80})*;\s*base64,", re.IGNORECASE)
_OF_IMAGES, _OF_AUDIO = ImageLimits(), AudioLimits()


def is_data_uri(text: str) -> bool:
    """Whether a text is the base64 of a file, as `read_data_uri` takes it."""
    return _DATA_URI.match(text[:512]) is not None


def read_data_uri(uri: str, limits: ImageLimits = _OF_IMAGES) -> bytes:
    """The bytes in `data:image/png;base64,...`, of a format that `decode_image` reads, whatever type the URI names.

    Raises `MediaError`; for a remote address too, since nothing is ever fetched.
    """
    if not uri[:5].lower() == "data:":
        raise MediaError(
            f"remote images are not fetched: send a data: URI (data:image/png;base64,...), not '{_short(uri)}'."
        )
    header = _DATA_URI.match(uri[:512])
    if header is None:
        raise MediaError(f"the data: URI must begin like 'data:image/png;base64,', not like '{_short(uri)}'.")
    if header[0].lower().startswith("data:image/svg+xml"):
        raise image_format.refusal("an SVG drawing")
    encoded = uri[header.end() :]
    limits.check_bytes(_decoded_bytes(encoded))
    try:
        data = base64.b64decode(encoded, validate=True)
    except ValueError as error:
        raise MediaError(f"the data: URI is not valid base64 ({error}): encode the whole file again.") from error
    image_format_of(data)
    return data


def read_input_audio(data: str, limits: AudioLimits = _OF_AUDIO) -> bytes:
    """The bytes in an `input_audio` part of OpenAI's chat, of a format that `decode_audio` reads.

    Raises `MediaError`; for an address too, since nothing is ever fetched.
    """
    limits.check_bytes(_decoded_bytes(data))
    try:
        decoded = base64.b64decode(data, validate=True)
    except ValueError as error:
        raise MediaError(
            f"the data of input_audio must be the base64 of a whole file, not an address or a data: URI"
            f" ('{_short(data)}': {error})."
        ) from error
    audio_format_of(decoded)
    return decoded


def _decoded_bytes(encoded: str) -> int:
    """How many bytes base64 holds, without decoding it."""
    return -(-len(encoded) // 4) * 3 - encoded[-2:].count("=")


def _short(text: str) -> str:
    return text if len(text) <= 40 else f"{text[:40]}..."
