"""`kauli talk`: a recording answered or translated, and spoken, without a service."""

from pathlib import Path
from typing import Annotated

import typer

from kauli.deploy.cli.speak import format_of
from kauli.deploy.cli.terminal import Json, Storage, output
from kauli.models.errors import whole
from kauli.models.files import write_atomically
from kauli.models.paths import default_storage
from kauli.models.progress import note


def talk(
    file: Annotated[Path, typer.Argument(help="A recording: WAV, FLAC, Ogg, MP3, ...")],
    out: Annotated[Path, typer.Option("--out", help="The answer: .wav, .mp3, .opus, .flac, .aac or .pcm.")],
    language: Annotated[str, typer.Option("--language", help="The language of the recording.")],
    target: Annotated[
        str | None, typer.Option("--to", help="Translate into this language [answer in the recording's own].")
    ] = None,
    model: Annotated[
        str, typer.Option("--model", help="Who answers or translates: text, translate, an adapter or a base.")
    ] = "text",
    voice: Annotated[str | None, typer.Option("--voice", help="A voice; see kauli speak --voices [the first].")] = None,
    instructions: Annotated[
        str | None, typer.Option("--instructions", help="A system message to the model that answers.")
    ] = None,
    max_tokens: Annotated[int, typer.Option("--max-tokens", min=1, help="Of the answer, at most.")] = 64,
    storage: Storage = None,
    as_json: Json = False,
) -> None:
    """Transcribe a recording, answer or translate it, and speak the result, without a service."""
    from kauli.deploy.cli.media import read_audio
    from kauli.models.media.encode import encoded
    from kauli.serving.dialogue import Asked
    from kauli.serving.local import Local
    from kauli.serving.speech import provenance

    form = format_of(out)
    _, clip = read_audio(file)
    asked = Asked(
        language, target, model, voice=voice, max_tokens=max_tokens,
        instructions=whole(instructions, "--instructions") if instructions is not None else None,
    )  # fmt: skip
    with Local(storage or default_storage()) as local:
        told, samples = local.dialogue(asked, clip)
    models = {name: route.adapter or route.base for name, route in told.routes.items()}
    note(f"Heard: {told.transcript}")
    note(", ".join(f"{name}: {one}" for name, one in models.items()))
    if told.unread:
        note(f"Not read: {' '.join(told.unread)[:200]}")
    if len(samples):
        write_atomically(out, encoded(samples, form, provenance(told.voice, told.spoken_language or "und")))
    else:
        note("The answer has nothing to speak: no file is written")
    found = {
        "file": str(out) if len(samples) else None, "transcript": told.transcript, "language": told.language,
        "text": told.text, "spoken_language": told.spoken_language, "voice": told.voice,
        "seconds": round(told.seconds, 3), "unread": told.unread, "models": models,
    }  # fmt: skip
    output(as_json, found, told.text.strip())
