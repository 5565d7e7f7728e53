"""What is written of noise, and whether speech is lost to the guards against text out of nothing.

    python tests/bench/noise.py whisper-base
    python tests/bench/noise.py transcribe-be

Made-up noises of many kinds, and the spoken validation clips of a language, go through the same code as
`kauli transcribe`, with the guards and without. The test split is not looked at.
"""

import argparse
from collections.abc import Iterator
from typing import Any

import numpy as np

from kauli.deploy.cli.terminal import table
from kauli.models.media.decode import RATE, DecodedAudio, decode_audio
from kauli.models.paths import default_storage
from kauli.models.speech.chunking import as_text
from kauli.models.speech.guards import Guards
from kauli.serving.local import Local
from kauli.training.card import machine
from kauli.training.data.dataset import load_data
from kauli.training.evaluation.scorers import clean, score_answers

SECONDS = 15
OFF = Guards(no_speech_threshold=1)


def noises() -> Iterator[tuple[str, np.ndarray]]:
    """Names, and samples (n,) float32 at 16 kHz without a word."""
    draw = np.random.default_rng(1)
    times = np.arange(SECONDS * RATE) / RATE

    def white(level: float) -> np.ndarray:
        return level * draw.standard_normal(len(times))

    for level in (0.0003, 0.0015, 0.005, 0.02, 0.1):
        yield f"white noise {20 * np.log10(level):.0f} dB", white(level)
    yield "hum of 50 Hz", 0.02 * np.sin(2 * np.pi * 50 * times) + white(0.001)
    hum = sum(np.sin(2 * np.pi * 50 * one * times) / one for one in range(1, 12))
    yield "hum with overtones", 0.05 * hum + white(0.001)
    spectrum = np.fft.rfft(white(1.0)) / np.sqrt(np.maximum(np.arange(len(times) // 2 + 1), 1))
    pink = np.fft.irfft(spectrum, len(times))
    yield "pink noise", 0.2 * pink / np.abs(pink).max()
    yield "a tone of 440 Hz", 0.3 * np.sin(2 * np.pi * 440 * times)
    clicks = white(0.0005)
    clicks[::RATE] += 0.8
    yield "clicks", clicks
    yield "wind", white(0.03) * (0.5 + 0.5 * np.sin(2 * np.pi * 0.3 * times))


def main() -> None:
    """Print a line a noise, and the error rates of speech with the guards and without."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", help="a base or an adapter that transcribes")
    parser.add_argument("--language", default="be")
    parser.add_argument("--storage", default=default_storage())
    options = parser.parse_args()
    columns = ["id", "group", "language", "text", "audio", "flags"]
    dataset = load_data("starter", [options.language])
    rows = [row for row in dataset.rows("validation", [options.language], columns) if row["audio"] and not row["flags"]]
    spoken = [decode_audio(row["audio"]) for row in rows]
    made = dict(noises())
    silent = [DecodedAudio(samples.astype(np.float32), SECONDS) for samples in made.values()]
    with Local(options.storage) as local:
        route = local.choose("transcribe", options.model, options.language, True)
        texts: dict[str, list[str]] = {}
        for name, guards in (("guards", Guards()), ("no guards", OFF)):
            found = local.transcribe(route, [*silent, *spoken], guards=guards)
            texts[name] = [as_text(one.segments) for one in found]
            if guards is not OFF:
                warned = [bool(one.warnings) for one in found]
    lines: list[dict[str, Any]] = [
        {"noise": name, "with guards": kept, "warned": "yes" if told else "no", "without": free[:60]}
        for name, kept, told, free in zip(made, texts["guards"], warned, texts["no guards"], strict=False)
    ]
    print(f"{route.model}, {options.language}, {machine()}")
    print(table(lines, list(lines[0])))
    for name, all_texts in texts.items():
        said = [clean(text) for text in all_texts[len(silent) :]]
        cer = score_answers(said, [row["text"] for row in rows], rows, ("transcript",))["cer"].value()
        lost = sum(not text for text in said)
        print(f"{name}: {len(rows)} spoken validation clips, character error rate {cer:.4f}, {lost} without a text")
    print(f"{sum(warned[len(silent) :])} of the spoken clips have a warning")


if __name__ == "__main__":
    main()
