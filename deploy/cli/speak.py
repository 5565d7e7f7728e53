"""`kauli speak`: a text to an audio file, and the test whether a file is marked as generated."""

import sys
from pathlib import Path
from typing import Annotated, Any

import typer

from kauli.deploy.cli.terminal import Json, Storage, output, table
from kauli.models.errors import UsageError, whole
from kauli.models.files import write_atomically
from kauli.models.paths import default_storage
from kauli.models.progress import note


def speak(
    text: Annotated[str | None, typer.Argument(help="The text; `-` reads stdin. It may hold [word](/ipa/).")] = None,
    out: Annotated[
        Path | None,
        typer.Option("--out", help="The file to write: .wav, .mp3, .opus, .flac, .aac or .pcm; `-`: WAV on stdout."),
    ] = None,
    language: Annotated[
        str | None, typer.Option("--language", help="The language of the text [detected where it is long].")
    ] = None,
    voice: Annotated[
        str | None, typer.Option("--voice", help="A voice, or an adapter that speaks; see --voices [the first].")
    ] = None,
    model: Annotated[
        str, typer.Option("--model", help="speak, an adapter of that task, or a base with voices.")
    ] = "speak",
    speed: Annotated[float, typer.Option("--speed", min=0.25, max=4.0, help="1 is the voice's own pace.")] = 1.0,
    seed: Annotated[int, typer.Option("--seed", min=0, help="Another seed speaks a little otherwise.")] = 0,
    lexicon: Annotated[
        Path | None, typer.Option("--lexicon", help="A file of lines WORD<TAB>IPA: how words are pronounced.")
    ] = None,
    words: Annotated[
        Path | None, typer.Option("--words", help="Write when each word is spoken: a .vtt, .srt, .TextGrid or .json.")
    ] = None,
    voices: Annotated[bool, typer.Option("--voices", help="List the voices.")] = False,
    check: Annotated[
        Path | None, typer.Option("--check", help="Tell whether an audio file carries the mark of generated speech.")
    ] = None,
    storage: Storage = None,
    as_json: Json = False,
) -> None:
    """Speak a text into an audio file, without a service; every file is marked as generated."""
    if check is not None:
        _check(check, as_json)
        return
    if voices:
        _list(model, storage, as_json)
        return
    if text is None or out is None:
        raise UsageError("give a text and a file: kauli speak 'Habari' --language sw --out habari.mp3")
    from kauli.deploy.cli.answers import stdin_text
    from kauli.models.media.encode import RATE, encoded
    from kauli.models.requests import SpeechRequest
    from kauli.serving.local import Local
    from kauli.serving.speech import named_voice, provenance, spoken_by, spoken_language

    form, times = format_of(out), _times_of(words)
    asked = whole(stdin_text() if text == "-" else text, "the text")
    pairs = tuple(_lexicon(lexicon).items()) if lexicon else ()
    with Local(storage or default_storage()) as local:
        model, voice = named_voice(model, voice, local.registry.names() if voice else ())
        asked_in = language or (spoken_language(asked) if model == "speak" else None)
        route = spoken_by(local.choose("speak", model, asked_in, allow_base=True), voice)
        request = SpeechRequest(asked, route.language, voice, speed, seed, pairs)
        said, samples = local.speak(route, request)
    note(f"{said.voice.id} of {route.model} speaks {said.language}: {len(samples) / RATE:.1f} s")
    if said.unread:
        note(f"Not read: {' '.join(said.unread)[:200]}")
    content = encoded(samples, form, provenance(said.voice.id, said.language))
    if str(out) == "-":
        sys.stdout.buffer.write(content)
        return
    write_atomically(out, content)
    found = {
        "file": str(out), "voice": said.voice.id, "base": route.base, "adapter": route.adapter,
        "language": said.language,
        "seconds": round(said.seconds, 3), "words": said.words(), "unread": list(said.unread), "watermarked": True,
    }  # fmt: skip
    if words is not None:
        write_atomically(words, (_json(found) if times == "json" else said.times(times or "")).encode())
    output(as_json, found, str(out))


def format_of(out: Path) -> str:
    """The audio format that a file's suffix asks for. Raises UsageError where it asks for none."""
    from kauli.models.media.encode import SUFFIXES, check_format

    if str(out) == "-":
        return "wav"
    form = SUFFIXES.get(out.suffix.lower())
    if form is None:
        raise UsageError(f"--out {out}: the suffix '{out.suffix}' is no audio format; use {', '.join(SUFFIXES)}")
    check_format(form)
    if not out.parent.is_dir():
        raise UsageError(f"--out {out}: there is no folder {out.parent}")
    return form


def _times_of(words: Path | None) -> str | None:
    from kauli.serving.speech import TIMES

    if words is None:
        return None
    form = words.suffix.lower().removeprefix(".")
    if form not in (*TIMES, "json"):
        raise UsageError(f"--words {words}: times are written as .vtt, .srt, .TextGrid or .json")
    return form


def _lexicon(path: Path) -> dict[str, str]:
    try:
        lines = path.read_text("utf-8-sig").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise UsageError(f"--lexicon {path} can't be read: {error}") from None
    found = {}
    for number, line in enumerate(lines, 1):
        if not line.strip() or line.startswith("#"):
            continue
        word, tab, ipa = line.partition("\t")
        if not tab or not word.strip() or not ipa.strip():
            raise UsageError(f"--lexicon {path}, line {number}: write WORD, a tab and its IPA, as in jina<TAB>ˈdʒina")
        if " " in word.strip():
            raise UsageError(f"--lexicon {path}, line {number}: '{word.strip()}' is more than one word")
        found[word.strip()] = ipa.strip().strip("/")
    return found


def _list(model: str, storage: str | None, as_json: bool) -> None:
    from dataclasses import asdict

    from kauli.serving.local import Local
    from kauli.serving.speech import adapter_voices

    with Local(storage or default_storage()) as local:
        route = local.choose("speak", model, None)
        rows: list[dict[str, Any]] = [asdict(one) for one in local.run(local.of(route).voices())]
        rows += [asdict(one) for one, _ in adapter_voices(local.catalogue.adapters())]
    columns = ("id", "language", "licence", "consent")
    output(as_json, rows, table(rows, columns))


def _check(path: Path, as_json: bool) -> None:
    from kauli.deploy.cli.media import read_audio
    from kauli.models.media.decode import RATE
    from kauli.models.speech.watermark import SHORTEST, THRESHOLD, UNCERTAIN, watermark

    _, audio = read_audio(path)
    if len(audio.samples) < SHORTEST * RATE:
        raise UsageError(f"{path} is shorter than {SHORTEST:g} seconds: a mark can't be read in it")
    score = watermark().score(audio.samples, RATE)
    marked = score > THRESHOLD
    words = (
        "carries the mark of generated speech" if marked else
        "may carry the mark: single words and strong compression make it uncertain" if score > UNCERTAIN else
        "carries no mark that can be read"
    )  # fmt: skip
    found = {
        "file": str(path),
        "marked": marked,
        "uncertain": not marked and score > UNCERTAIN,
        "score": round(score, 4),
    }
    output(as_json, found, f"{path} {words} (score {score:.3f})")


def _json(found: dict[str, Any]) -> str:
    import json

    return json.dumps(found, ensure_ascii=False, indent=2) + "\n"
