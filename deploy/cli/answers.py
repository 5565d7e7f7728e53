"""`kauli generate`, `transcribe`, `describe` and `embed`: answers without a service.

Heavy imports are inside the functions, so that `kauli --help` answers at once.
"""

import sys
from pathlib import Path
from typing import Annotated

import typer

from kauli.deploy.cli.terminal import Json, Storage, answer_fields, output
from kauli.models.errors import UsageError, whole
from kauli.models.paths import default_storage
from kauli.models.progress import note

NoRepeat = Annotated[
    int | None,
    typer.Option(
        "--no-repeat",
        min=0,
        max=64,
        help="Length of token runs that may not repeat; 0: no limit [the adapter's own].",
    ),
]


def generate(
    prompt: Annotated[str, typer.Argument(help="The prompt; `-` reads stdin.")],
    model: Annotated[str, typer.Option("--model", help="text, an adapter (text-sw@1) or a base.")] = "text",
    language: Annotated[str | None, typer.Option("--language", help="Choose the adapter by language.")] = None,
    max_tokens: Annotated[
        int | None,
        typer.Option("--max-tokens", min=1, help="Most new tokens [the adapter's own, else 128]."),
    ] = None,
    no_repeat: NoRepeat = None,
    temperature: Annotated[float, typer.Option("--temperature", min=0.0, max=5.0, help="0 is greedy.")] = 0.0,
    top_p: Annotated[float, typer.Option("--top-p", min=0.0, max=1.0)] = 1.0,
    seed: Annotated[int | None, typer.Option("--seed", help="For temperatures above 0.")] = None,
    storage: Storage = None,
    as_json: Json = False,
) -> None:
    """Generate text with an adapter or a base, without a service."""
    from kauli.models.requests import TextRequest
    from kauli.serving.local import Local, in_language

    asked = whole(stdin_text() if prompt == "-" else prompt, "the prompt")
    request = TextRequest.of_prompt(
        asked, max_tokens=max_tokens, no_repeat=no_repeat, temperature=temperature, top_p=top_p, seed=seed
    )
    with Local(storage or default_storage()) as local:
        route = local.choose("text", model, language)
        note(f"{route.model} answers{in_language(route)}")
        answer = local.generate(route, request, None if as_json else lambda text: print(text, end="", flush=True))
    # Without --json the text is printed already, but for the end of its line.
    output(as_json, answer_fields(answer) | {"finish_reason": answer.finish}, "")


def transcribe(
    files: Annotated[list[Path], typer.Argument(metavar="FILE...", help="Audio: WAV, FLAC, Ogg, MP3, ...")],
    model: Annotated[str, typer.Option("--model", help="transcribe, an adapter (transcribe-be@1) or a base.")] = (
        "transcribe"
    ),
    language: Annotated[
        str | None, typer.Option("--language", help="The language of the audio; auto: detected [auto].")
    ] = None,
    form: Annotated[
        str | None,
        typer.Option(
            "--format",
            help="text, subtitles (srt, vtt), annotations (eaf, textgrid), or OpenAI's json, verbose_json [text].",
        ),
    ] = None,
    into: Annotated[
        Path | None,
        typer.Option("--into", help="With --format eaf or textgrid: a file of ELAN or Praat that gets one more tier."),
    ] = None,
    words: Annotated[
        bool, typer.Option("--words", help="Add the times of words to --json or --format verbose_json.")
    ] = False,
    prompt: Annotated[
        str | None, typer.Option("--prompt", help="The text before the audio, or names and words that may occur.")
    ] = None,
    hotwords: Annotated[
        str | None, typer.Option("--hotwords", help="Words that are likely, such as names, with commas between them.")
    ] = None,
    language_model: Annotated[
        bool,
        typer.Option("--language-model/--no-language-model", help="Use the adapter's language model, if it has one."),
    ] = True,
    no_speech_threshold: Annotated[
        float | None,
        typer.Option(
            "--no-speech-threshold", min=0.0, max=1.0,
            help="Leave out unlikely text and loops where the probability of no speech is higher; 1: never [0.6].",
        ),
    ] = None,
    logprob_threshold: Annotated[
        float | None,
        typer.Option("--logprob-threshold", help="Text of a lower mean log probability is unlikely [-1]."),
    ] = None,
    compression_ratio_threshold: Annotated[
        float | None,
        typer.Option("--compression-ratio-threshold", min=1.0, help="Text that zlib shortens more is a loop [2.4]."),
    ] = None,
    storage: Storage = None,
    as_json: Json = False,
) -> None:  # fmt: skip
    """Transcribe audio files, without a service. Use --json for full details."""
    from kauli.deploy.cli.media import read_each
    from kauli.deploy.cli.transcripts import as_result, check_format, rendered

    if as_json and form:
        raise UsageError(f"--json and --format {form} are two formats of one result: give one of them")
    check_format(form or "text", len(files))
    if into is not None and form not in ("eaf", "textgrid"):
        raise UsageError(f"--into {into}: add --format eaf or --format textgrid")
    if words and not as_json and form != "verbose_json":
        raise UsageError(f"--words does not apply to {form or 'text'}: add --json or --format verbose_json")
    words = words or form in ("srt", "vtt")
    clips, errors = read_each(files)
    from kauli.models.speech.hot_words import check_hot_words, hot_words_of
    from kauli.serving.local import Local, in_language

    asked = whole(prompt, "--prompt") if prompt is not None else None
    wanted = hot_words_of(whole(hotwords or "", "--hotwords"))
    try:
        check_hot_words(wanted)
    except ValueError as fault:
        raise UsageError(f"--hotwords: {fault}") from None
    with Local(storage or default_storage()) as local:
        route = local.choose("transcribe", model, None if language == "auto" else language, allow_base=True)
        note(f"{route.model} transcribes {sum(clip.seconds for clip in clips.values()):.1f} s{in_language(route)}")
        thresholds = {
            "no_speech_threshold": no_speech_threshold, "logprob_threshold": logprob_threshold,
            "compression_ratio_threshold": compression_ratio_threshold,
        }  # fmt: skip
        guards = local.args.audio.guards.model_copy(
            update={key: value for key, value in thresholds.items() if value is not None}
        )
        transcripts = local.transcribe(
            route, list(clips.values()), asked, words, guards, language_model=language_model, hot_words=wanted
        )
        found = dict(zip(clips, transcripts, strict=True))
    results = [
        {"file": str(path), "error": errors[path]} if path in errors else as_result(path, found[path], route, words)
        for path in files
    ]
    output(as_json, results if len(results) > 1 else results[0], rendered(results, form or "text", into).rstrip("\n"))
    if errors:
        for error in errors.values():
            print(f"error: {error}", file=sys.stderr, flush=True)
        raise typer.Exit(1)


def describe(
    image: Annotated[Path | None, typer.Option("--image", help="An image: PNG, JPEG, WEBP, GIF or BMP.")] = None,
    audio: Annotated[Path | None, typer.Option("--audio", help="An audio file: WAV, FLAC, Ogg or MP3.")] = None,
    prompt: Annotated[
        str | None, typer.Option("--prompt", help="The prompt [the instruction that the adapter was trained with].")
    ] = None,
    model: Annotated[str, typer.Option("--model", help="describe, or an adapter (describe-multi@1).")] = "describe",
    language: Annotated[str | None, typer.Option("--language", help="The language of the description.")] = None,
    max_tokens: Annotated[int, typer.Option("--max-tokens", min=1, help="At most this many new tokens.")] = 64,
    no_repeat: NoRepeat = None,
    temperature: Annotated[
        float | None, typer.Option("--temperature", min=0.0, max=5.0, help="0 is greedy [0; 0.8 with --rerank].")
    ] = None,
    seed: Annotated[int | None, typer.Option("--seed", help="For temperatures above 0.")] = None,
    rerank: Annotated[
        int,
        typer.Option(
            "--rerank", min=1, max=16, help="Generate N candidates and return the one most similar to the image."
        ),
    ] = 1,
    storage: Storage = None,
    as_json: Json = False,
) -> None:
    """Describe an image, an audio file or both in a language, without a service."""
    from kauli.deploy.cli.media import attachments

    if rerank > 1 and image is None:
        raise UsageError("--rerank compares candidates with an image: give --image FILE")
    attached = attachments(image, audio)
    from kauli.serving.local import Local, in_language

    asked = whole(prompt, "--prompt") if prompt is not None else None
    with Local(storage or default_storage()) as local:
        route = local.choose("describe", model, language)
        note(f"{route.model} answers{in_language(route)}")
        answer = local.describe(
            route, attached, asked, rerank=rerank, temperature=temperature, no_repeat=no_repeat, max_tokens=max_tokens,
            seed=seed,
        )  # fmt: skip
    more = {"prompt": answer.prompt, "reranked": rerank if rerank > 1 else None}
    output(as_json, answer_fields(answer) | more, answer.text)


def embed(
    texts: Annotated[list[str] | None, typer.Argument(metavar="[TEXT]...", help="Texts, in any language.")] = None,
    image: Annotated[list[Path] | None, typer.Option("--image", help="An image; may be given several times.")] = None,
    model: Annotated[str, typer.Option("--model", help="A base for images and texts.")] = "kauli-clip",
    storage: Storage = None,
    as_json: Json = False,
) -> None:
    """Embed texts and images in one space: prints their cosines, with --json the embeddings."""
    from kauli.deploy.cli.media import cosine_table, read_image

    words, paths = [whole(text, "the text") for text in texts or []], image or []
    images = [read_image(path) for path in paths]
    if not words and not images:
        raise UsageError("nothing to embed: give texts, or images with --image FILE")
    from kauli.serving.local import Local

    with Local(storage or default_storage()) as local:
        rows = local.embed(local.choose("embed", model, None), [*words, *images])
    inputs = [*({"text": text} for text in words), *({"image": str(path)} for path in paths)]
    found = [one | {"embedding": row.tolist()} for one, row in zip(inputs, rows, strict=True)]
    output(as_json, found, cosine_table([*words, *(path.name for path in paths)], rows))


def stdin_text() -> str:
    """All of stdin. Raises UsageError where it is not UTF-8: by default Python's reading depends on the locale."""
    try:
        return sys.stdin.buffer.read().decode("utf-8-sig")
    except UnicodeDecodeError as error:
        advice = "convert it, for example with: iconv -f WINDOWS-1252 -t UTF-8"
        raise UsageError(f"stdin is not UTF-8 (byte {error.start + 1}): {advice}") from None
