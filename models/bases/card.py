"""What is known of a base: an entry of bases.yaml, and the same of a hub model or a local folder."""

from typing import Literal

from kauli.models.bases.debug import Shape
from kauli.models.bases.packages import Package
from kauli.models.frozen import FrozenModel


class PackagedFile(FrozenModel):
    """A file inside an unpacked package."""

    package: Package
    file: str


class JoinedFile(FrozenModel):
    """A file (a GGUF), cut into one or more packaged parts; `sha256` is that of the joined file."""

    parts: tuple[PackagedFile, ...]
    sha256: str


class Towers(FrozenModel):
    """The packaged towers that are joined to an open_clip model."""

    text: PackagedFile
    image: PackagedFile


class Whisper(JoinedFile):
    """A Whisper as CTranslate2 keeps it; the joined file is its `model.bin`."""

    tokenizer: PackagedFile
    settings: PackagedFile


class PiperVoice(FrozenModel):
    """A voice of Piper: its ONNX file and the JSON beside it."""

    model: PackagedFile
    settings: PackagedFile


class BaseCard(FrozenModel):
    """One entry of bases.yaml, or what is known of a hub model or a local folder."""

    title: str
    source: Literal["package", "debug", "hub", "folder", "recipe"]
    tasks: tuple[str, ...]
    licence: str
    licence_url: str | None = None
    noncommercial: bool = False
    terms: str | None = None
    """Text that must be accepted once (--accept-terms) before the base is fetched."""
    languages: tuple[str, ...] = ()
    derived_from: str | None = None
    """The hub id of the original, when this is a changed copy (dequantised)."""
    hub_id: str | None = None
    template: str | None = None
    """The jinja chat template; None means the tokenizer's own."""
    gguf: JoinedFile | None = None
    towers: Towers | None = None
    whisper: Whisper | None = None
    piper: PiperVoice | None = None
    recipe: str | None = None
    """For source "recipe": the shipped recipe that trains the base."""
    notices: tuple[PackagedFile, ...] = ()
    """Licence texts that must travel with the weights."""
    shape: Shape | None = None
    """For source "debug": what to build."""
