"""Pictures and recordings as requests carry them: data: URIs, base64 and content types -> the bytes of a file.

Whether those can be decoded is for `kauli.models.media.decode` to say. Whatever is wrong here is a `MediaError`, too.
"""

import base64

from kauli.models.media.decode import (
    AudioLimits,
    ImageLimits,
    MediaError,
    audio_format,
    image_format,
    picture_format,
    recording_format,
)

_PICTURE_TYPES = {
    "image/png": "PNG",
    "image/apng": "PNG",
    "image/jpeg": "JPEG",
    "image/jpg": "JPEG",  # wrong, and common
    "image/webp": "WEBP",
    "image/gif": "GIF",
    "image/bmp": "BMP",
    "image/x-ms-bmp": "BMP",
}
_AUDIO_FORMATS = {"wav": "WAV", "flac": "FLAC", "ogg": "Ogg", "opus": "Ogg", "mp3": "MP3"}
_AUDIO_TYPES = ("audio/", "application/ogg", "application/octet-stream", "binary/octet-stream", "video/ogg")
_OF_PICTURES, _OF_RECORDINGS = ImageLimits(), AudioLimits()


def read_data_uri(uri: str, limits: ImageLimits = _OF_PICTURES) -> bytes:
    """The bytes in `data:image/png;base64,...`, a format that `decode_image` reads and that the URI says it is.

    Raises `MediaError`; for a remote address too, since nothing is ever fetched.
    """
    header, comma, _ = uri[:256].partition(",")
    kind, *marks = header.lower().split(";")
    scheme, colon, media_type = kind.partition(":")
    if scheme != "data" or not colon:
        raise MediaError(
            f"remote pictures are not fetched: send a data: URI (data:image/png;base64,...), not '{_short(uri)}'."
        )
    if not comma or not marks or marks[-1].strip() != "base64":
        raise MediaError(f"the data: URI must begin like 'data:image/png;base64,', not like '{_short(uri)}'.")
    if media_type == "image/svg+xml":
        raise MediaError(image_format.refusal("an SVG drawing"))
    if media_type not in _PICTURE_TYPES:
        raise MediaError(f"'{_short(media_type)}' is no media type of a picture: {', '.join(_PICTURE_TYPES)} are read.")
    encoded = uri[len(header) + 1 :]
    limits.check_bytes(_decoded_bytes(encoded))
    try:
        data = base64.b64decode(encoded, validate=True)
    except ValueError as error:
        raise MediaError(f"the data: URI is not valid base64 ({error}): encode the whole file again.") from error
    name = picture_format(data)
    if name != _PICTURE_TYPES[media_type]:
        raise MediaError(f"the data: URI says {media_type}, and its bytes are a {name} picture: correct one of them.")
    return data


def read_input_audio(data: str, format: str, limits: AudioLimits = _OF_RECORDINGS) -> bytes:
    """The bytes in an `input_audio` part of OpenAI's chat, of the format that it says they are.

    Raises `MediaError`; for an address too, since nothing is ever fetched.
    """
    expected = _AUDIO_FORMATS.get(format.lower())
    if expected is None:
        raise MediaError(f"'{_short(format)}' is no format of input_audio: {', '.join(_AUDIO_FORMATS)} are read.")
    limits.check_bytes(_decoded_bytes(data))
    try:
        decoded = base64.b64decode(data, validate=True)
    except ValueError as error:
        raise MediaError(
            f"the data of input_audio must be the base64 of a whole file, no address and no data: URI ('{_short(data)}'"
            f" is not: {error})."
        ) from error
    name = recording_format(decoded)
    if name != expected:
        raise MediaError(f"the input_audio says '{format}', and its bytes are {name}: correct one of them.")
    return decoded


def check_audio_type(content_type: str | None) -> None:
    """Refuse an upload that says it is no sound; none at all, and those that say nothing, go by their bytes."""
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
