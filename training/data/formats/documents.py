"""Documents as rows: translations as pairs, texts that have none, annotations with their piece of the recording."""

import io
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import soundfile

from kauli.models.documents.document import Annotations, Document, DocumentOptions
from kauli.models.documents.table import open_document
from kauli.models.errors import UsageError
from kauli.models.languages import check_tag, likely_tag
from kauli.training.data.columns import SUFFIXES
from kauli.training.data.options import DataOptions

Rows = Iterator[tuple[str, dict[str, Any] | str]]


def read_pairs(file: Path, options: DataOptions) -> Rows:
    """The segments of a document in two languages; see `table.Reader`. One that nobody confirmed has no text."""
    try:
        document = _opened(file, options)
        said = document.languages
        source = _language(said[0], options.input_language, "--input-language", "input_language")
        target = _language(said[1], options.language, "--language", "language")
    except UsageError as error:
        yield "", str(error)
        return
    for number, one in enumerate(document.segments, 1):
        text = one.target if one.state == "confirmed" else None
        row = {"input": one.source, "input_language": source, "text": text, "language": target, "source": file.name}
        yield f"segment {number}", row


def read_segments(file: Path, options: DataOptions) -> Rows:
    """The texts of a document in one language; see `table.Reader`."""
    try:
        segments = _opened(file, options).segments
    except UsageError as error:
        yield "", str(error)
        return
    for number, one in enumerate(segments, 1):
        yield f"segment {number}", {"text": one.source, "source": file.name}


def read_annotations(file: Path, options: DataOptions) -> Rows:
    """The annotations of a tier, each with its piece of the recording beside the file; see `table.Reader`."""
    try:
        document = _opened(file, options)
        assert isinstance(document, Annotations)
        names = [*document.recordings, *(file.stem + suffix for suffix in SUFFIXES["audio"])]
        found = [file.parent / name for name in names if (file.parent / name).is_file()]
        if not found:
            raise UsageError(f"its recording is not beside it: put {names[0]} into {file.parent}")
        with soundfile.SoundFile(found[0]) as sound:
            for number, (begin, end, text) in enumerate(document.spans, 1):
                place = f"annotation {number}"
                first, last = (round(seconds * sound.samplerate) for seconds in (begin, end))
                if last > sound.frames + sound.samplerate:
                    yield place, f"it ends at {end:.1f} s, after the end of {found[0].name}"
                    continue
                sound.seek(min(first, sound.frames))
                clip = io.BytesIO()
                soundfile.write(clip, sound.read(last - first), sound.samplerate, format="FLAC", subtype="PCM_24")
                yield place, {"audio": clip.getvalue(), "text": text, "source": found[0].name}
    except UsageError as error:
        yield "", str(error)
    except soundfile.LibsndfileError as error:
        yield "", f"its recording can't be read ({error}): make a WAV or FLAC file of it"


def _opened(file: Path, options: DataOptions) -> Document:
    try:
        data = file.read_bytes()
    except OSError as error:
        raise UsageError(f"{file.name} can't be read: {error.strerror}") from None
    asked = DocumentOptions(options.input_language, options.language, options.encoding, tier=options.tier)
    return open_document(data, file.name, asked)


def _language(said: str | None, given: str | None, option: str, key: str) -> str:
    """The language that a document says it is in, which must be the one that is given, if one is."""
    if said is None and given is None:
        raise UsageError(f"it does not say its {key}: add {option} TAG (in a recipe data_options.{key})")
    tags = {likely_tag(check_tag(one)) for one in (said, given) if one is not None}
    if len(tags) > 1:
        raise UsageError(f"it says that its {key} is '{said}', and '{given}' is asked for: see {option}")
    return given or said or ""
