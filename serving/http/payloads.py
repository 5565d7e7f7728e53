"""Images and audio in requests: data: URIs, base64 and content types -> the bytes of a file.

`kauli.models.media.decode` decodes them. Errors here are `MediaError`s, too.
"""

import base64

from kauli.models.errors import MediaError
from kauli.models.media import audio_format, image_format
from kauli.models.media.audio_format import audio_format_of
from kauli.models.media.decode import AudioLimits, ImageLimits
from kauli.models.media.image_format import image_format_of

_IMAGE_TYPES = {
    "image/png": "PNG", "image/apng": "PNG", "image/jpeg": "JPEG",
    "image/jpg": "JPEG",  # wrong, and common
    "image/webp": "WEBP", "image/gif": "GIF", "image/bmp": "BMP", "image/x-ms-bmp": "BMP",
}  # fmt: skip
_AUDIO_FORMATS = {"wav": "WAV", "flac": "FLAC", "ogg": "Ogg", "opus": "Ogg", "mp3": "MP3"}
_AUDIO_TYPES = ("audio/", "application/ogg", "application/octet-stream", "binary/octet-stream", "video/ogg")
_OF_IMAGES, _OF_AUDIO = ImageLimits(), AudioLimits()


def read_data_uri(uri: str, limits: ImageLimits = _OF_IMAGES) -> bytes:
    """The bytes in `data:image/png;base64,...`, a format that `decode_image` reads and that the URI says it is.

    Raises `MediaError`; for a remote address too, since nothing is ever fetched.
    """
    header, comma, _ = uri[:256].partition(",")
    kind, *marks = header.lower().split(";")
    scheme, colon, media_type = kind.partition(":")
    if scheme != "data" or not colon:
        raise MediaError(
            f"remote images are not fetched: send a data: URI (data:image/png;base64,...), not '{_short(uri)}'."
        )
    if not comma or not marks or marks[-1].strip() != "base64":
        raise MediaError(f"the data: URI must begin like 'data:image/png;base64,', not like '{_short(uri)}'.")
    if media_type == "image/svg+xml":
        raise image_format.refusal("an SVG drawing")
    if media_type not in _IMAGE_TYPES:
        raise MediaError(f"'{_short(media_type)}' is not a supported image type; use one of {', '.join(_IMAGE_TYPES)}.")
    encoded = uri[len(header) + 1 :]
    limits.check_bytes(_decoded_bytes(encoded))
    try:
        data = base64.b64decode(encoded, validate=True)
    except ValueError as error:
        raise MediaError(f"the data: URI is not valid base64 ({error}): encode the whole file again.") from error
    name = image_format_of(data)
    if name != _IMAGE_TYPES[media_type]:
        raise MediaError(f"the data: URI says {media_type}, and its bytes are a {name} image: correct one of them.")
    return data


def read_input_audio(data: str, format: str, limits: AudioLimits = _OF_AUDIO) -> bytes:
    """The bytes in an `input_audio` part of OpenAI's chat, of the format that it says they are.

    Raises `MediaError`; for an address too, since nothing is ever fetched.
    """
    expected = _AUDIO_FORMATS.get(format.lower())
    if expected is None:
        raise MediaError(
            f"'{_short(format)}' is not a supported format of input_audio; use one of {', '.join(_AUDIO_FORMATS)}."
        )
    limits.check_bytes(_decoded_bytes(data))
    try:
        decoded = base64.b64decode(data, validate=True)
    except ValueError as error:
        raise MediaError(
            f"the data of input_audio must be the base64 of a whole file, not an address or a data: URI"
            f" ('{_short(data)}': {error})."
        ) from error
    name = audio_format_of(decoded)
    if name != expected:
        raise MediaError(f"the input_audio says '{format}', and its bytes are {name}: correct one of them.")
    return decoded


def check_audio_type(content_type: str | None) -> None:
    """Refuse an upload whose content type is not audio; one without a type, or of a general one, passes."""
    kind = (content_type or "").partition(";")[0].strip().lower()
    if kind and not kind.startswith(_AUDIO_TYPES):
        raise MediaError(
            f"the upload's content type is '{_short(kind)}': send a {audio_format.ALLOWED} file as audio/..., or as "
            "application/octet-stream."
        )


def _decoded_bytes(encoded: str) -> int:
    """How many bytes base64 holds, without decoding it."""
    return -(-len(encoded) // 4) * 3 - encoded[-2:].count("=")


def _short(text: str) -> str:
    return text if len(text) <= 40 else f"{text[:40]}..."
