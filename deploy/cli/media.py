"""Images and audio files on the command line: read and checked; and the table that `kauli embed` prints."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from kauli.models.errors import MediaError, UsageError
from kauli.models.progress import note

if TYPE_CHECKING:
    from kauli.models.media.decode import DecodedAudio
    from kauli.serving.backends import Attachment

# A local file may be longer than what a service takes; it is held in memory, 230 MB an hour.
_MOST_SECONDS, _MOST_BYTES, _MOST_SAMPLES = 7200.0, 2**31, 2_000_000_000


def read_image(source: Path | bytes) -> bytes:
    """The bytes of an image, a file or such bytes; raises UsageError where it can't be read or decoded."""
    from kauli.models.media.decode import decode_image

    with _reading("image", source, "PNG, JPEG or WEBP"):
        content = source if isinstance(source, bytes) else source.read_bytes()
        decode_image(content)
    return content


def read_audio(source: Path | bytes) -> tuple[bytes, "DecodedAudio"]:
    """The bytes of audio, a file or such bytes, and its samples. Warnings go to stderr.

    Raises UsageError where it can't be read or decoded.
    """
    from kauli.models.media.decode import AudioLimits, decode_audio

    limits = AudioLimits(max_bytes=_MOST_BYTES, max_seconds=_MOST_SECONDS, max_samples=_MOST_SAMPLES)
    with _reading("audio", source, "WAV, FLAC, Ogg or MP3"):
        if not isinstance(source, bytes) and source.stat().st_size > _MOST_BYTES:
            raise UsageError(f"audio {source}: it is larger than {_MOST_BYTES >> 30} GiB. Compress it, or cut it.")
        content = source if isinstance(source, bytes) else source.read_bytes()
        audio = decode_audio(content, limits)
    for warning in audio.warnings:
        note(f"{_shown(source)}: {warning}")
    return content, audio


def read_each(paths: Sequence[Path]) -> tuple[dict[Path, "DecodedAudio"], dict[Path, str]]:
    """The audio of each file that can be read, and what is wrong with each other.

    Raises UsageError where none can be read.
    """
    clips, errors = {}, {}
    for path in dict.fromkeys(paths):
        try:
            clips[path] = read_audio(path)[1]
        except UsageError as error:
            errors[path] = str(error)
    if not clips:
        raise UsageError("\n       ".join(errors.values()))
    return clips, errors


@contextmanager
def _reading(kind: str, source: Path | bytes, formats: str) -> Iterator[None]:
    """A file that can't be read or decoded is a UsageError that names it."""
    try:
        yield
    except OSError as error:
        named = f"{kind} {_shown(source)}: {error.strerror or error}"
        raise UsageError(f"{named}. Give the path of a {formats} file.") from None
    except MediaError as error:
        raise UsageError(f"{kind} {_shown(source)}: {error}") from None


def _shown(source: Path | bytes) -> str:
    return f"of {len(source):,} bytes" if isinstance(source, bytes) else str(source)


def attachments(image: Path | None, audio: Path | None) -> list["Attachment"]:
    """The files of `kauli describe`, the image first. Raises UsageError."""
    from kauli.serving.backends import Attachment

    if image is None and audio is None:
        raise UsageError("nothing to describe: give --image FILE, --audio FILE, or both")
    found = [Attachment("image", read_image(image))] if image else []
    return [*found, Attachment("audio", read_audio(audio)[0])] if audio else found


def cosine_table(names: Sequence[str], rows: Any) -> str:
    """The cosines of all pairs of embeddings (N, dim) as a table; for a single input its first numbers."""
    from kauli.deploy.cli.terminal import table

    if len(names) == 1:
        return " ".join(f"{value:.4f}" for value in rows[0][:8]) + f" ... ({rows.shape[1]} numbers; --json shows all)"
    cosines = rows @ rows.T
    columns = ["", *(str(number + 1) for number in range(len(names)))]
    lines = [
        {"": f"{at + 1} {name}", **{str(to + 1): float(cosines[at, to]) for to in range(len(names))}}
        for at, name in enumerate(names)
    ]
    return table(lines, columns)
