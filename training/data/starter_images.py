"""Image sources of the starter data: emoji with CLDR names, Tux Paint's stamps with captions read by people."""

import io
import json
import re
from collections.abc import Iterator
from functools import cache
from pathlib import Path

import soundfile

from kauli.training.data.groups import english_key, media_key
from kauli.training.data.starter_text import Folders, Pair, Source, locale_tag, tidy

FASTEST_SPEECH = 25.0  # characters a second; nobody reads faster, so the clip is of another text
_NOT_TRANSLATED = "↑↑↑"  # CLDR's mark for "as in the parent locale"


class Cldr(Source):
    """Names of emoji and symbols from the CLDR, with the Twitter images that exist (PNG, 64 px)."""

    def links(self, folders: Folders) -> Iterator[tuple[str, ...]]:
        for code, name in self._names("en", folders).items():
            keys = [f"code:{code}", f"code:{_without_gender(code)}", english_key(name)]
            if image := self._images(folders).get(code):
                keys.append(media_key("image", image))
            yield tuple(keys)

    def languages(self, folders: Folders) -> set[str]:
        folder = _annotations(folders)
        return {tag for path in folder.iterdir() if path.name != "und" and (tag := locale_tag(path.name))}

    def pairs(self, language: str, folders: Folders) -> Iterator[Pair]:
        english = self._names("en", folders)
        images = self._images(folders)
        for code, name in self._names(language, folders).items():
            if code in english:
                yield Pair(english[code], name, (f"code:{code}", english_key(english[code])), image=images.get(code))

    def _names(self, language: str, folders: Folders) -> dict[str, str]:
        """Spoken name by code points (`1F418`), the first locale folder of the language that has one."""
        names: dict[str, str] = {}
        for folder in sorted(_annotations(folders).iterdir(), key=lambda path: (len(path.name), path.name)):
            if locale_tag(folder.name) != language:
                continue
            content = json.loads((folder / "annotations.json").read_text(encoding="utf-8"))
            for symbol, entry in content["annotations"]["annotations"].items():
                name = tidy(entry.get("tts", [""])[0])
                if name and name != _NOT_TRANSLATED:
                    names.setdefault(_code(symbol), name)
        return names

    def _images(self, folders: Folders) -> dict[str, bytes]:
        return _read_emoji(folders["pictures"]) if "pictures" in folders else {}


def _annotations(folders: Folders) -> Path:
    return folders["names"] / "package" / "annotations"


def _code(symbol: str) -> str:
    """Code points in hexadecimal, the invisible "show me in colour" (FE0F) left out: fonts and files differ in it."""
    return "-".join(f"{ord(char):04X}" for char in symbol if char != "\ufe0f")


def _without_gender(code: str) -> str:
    """One code for `man climbing`, `woman climbing` and `person climbing`, with nearly the same names and images."""
    neutral = re.sub(r"-200D-(2640|2642)$", "", code)
    return re.sub(r"^(1F468|1F469)(?=-200D-)", "1F9D1", neutral)


@cache
def _read_emoji(folder: Path) -> dict[str, bytes]:
    files = sorted((folder / "package" / "img" / "twitter" / "64").glob("*.png"))
    codes = ("-".join(part for part in file.stem.upper().split("-") if part != "FE0F") for file in files)
    return {code: file.read_bytes() for code, file in zip(codes, files, strict=True)}


class TuxPaint(Source):
    """Captioned photographs and drawings with clips read by people, from Debian's `tuxpaint-stamps-default`."""

    def links(self, folders: Folders) -> Iterator[tuple[str, ...]]:
        for path in _stamps(folders["stamps"]):
            keys = [f"stamp:{path.stem}", english_key(_captions(path).get("en", path.stem))]
            keys += [media_key("image", file.read_bytes()) for file in [path.with_suffix(".png")] if file.is_file()]
            keys += [media_key("audio", clip.read_bytes()) for clip in _clips(path).values()]
            yield tuple(keys)

    def languages(self, folders: Folders) -> set[str]:
        return {tag for path in _stamps(folders["stamps"]) for tag in _captions(path)}

    def pairs(self, language: str, folders: Folders) -> Iterator[Pair]:
        for path in _stamps(folders["stamps"]):
            captions = _captions(path)
            if "en" in captions and language in captions:
                image, clip = path.with_suffix(".png"), self._clip(path, language)
                yield Pair(
                    captions["en"],
                    captions[language],
                    (f"stamp:{path.stem}",),
                    image=image.read_bytes() if image.is_file() else None,
                    audio=clip.read_bytes() if clip else None,
                )

    def _clip(self, path: Path, language: str) -> Path | None:
        """The clip of the caption in the language; English clips have no language in their name."""
        clips = _clips(path)
        if language == "en":
            return clips.get("")
        return next((clip for name, clip in clips.items() if name and locale_tag(name[1:]) == language), None)


@cache
def _stamps(folder: Path) -> tuple[Path, ...]:
    return tuple(sorted((folder / "usr/share/tuxpaint/stamps").rglob("*.txt")))


@cache
def _clips(path: Path) -> dict[str, Path]:
    """A stamp's clips by what follows `_desc` in their names: nothing, or `_be`."""
    clips = sorted(path.parent.glob(f"{path.stem}_desc*.ogg"))
    return {clip.stem.removeprefix(f"{path.stem}_desc"): clip for clip in clips}


@cache
def _captions(path: Path) -> dict[str, str]:
    """Caption by tag: line one is English, the others are like `be.utf8=Слон.`"""
    lines = path.read_text(encoding="utf-8", errors="strict").splitlines()
    captions = {"en": tidy(lines[0])} if lines and lines[0].strip() else {}
    for line in lines[1:]:
        match = re.fullmatch(r"([\w@]+)\.utf8=(.*)", line.strip())
        tag = locale_tag(match[1]) if match else None
        if match and tag and tag != "en" and (text := tidy(match[2])):
            captions.setdefault(tag, text)
    return captions


def audio_flag(text: str, audio: bytes) -> str | None:
    """`audio_too_fast` if the clip is too short for anyone to read the caption, `audio_unreadable`, or None."""
    try:
        seconds = soundfile.info(io.BytesIO(audio)).duration
    except soundfile.LibsndfileError:
        return "audio_unreadable"
    return "audio_too_fast" if len(text) > FASTEST_SPEECH * seconds else None
