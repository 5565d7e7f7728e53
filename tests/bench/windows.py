"""What padding short clips costs and gains: an adapter on validation clips, by the window that they are padded to.

    kauli train transcribe-be --set train.steps=60 --set train.minutes=null --set name=transcribe-young
    python tests/bench/windows.py transcribe-young

By it the rule of `choose_window` was decided. The test split is not looked at.
"""

import argparse
import shutil
import tempfile
import time
from pathlib import Path

from kauli.deploy.cli.terminal import table
from kauli.models.adapters.registry import Registry
from kauli.models.bases.find import find_base
from kauli.models.paths import default_storage
from kauli.models.speech.task import Recogniser
from kauli.models.tasks import load_served
from kauli.training.card import machine
from kauli.training.data.dataset import load_data
from kauli.training.evaluation.results import bracket, paired
from kauli.training.evaluation.scorers import Tally, score_answers, score_bits
from kauli.training.evaluation.transcribe import transcribe
from kauli.training.features.audio import audio_rows

KEY = "adapter"


def main() -> None:
    """Print a line a window: bits per byte and character error rate, each beside those of clips at their own length."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("adapter", help="NAME or NAME@VERSION of the task transcribe")
    parser.add_argument("--storage", default=default_storage())
    options = parser.parse_args()
    registry = Registry(options.storage)
    card = registry.card(options.adapter)
    assert card.data is not None
    limit = card.evaluation.max_chars_per_second or 25.0
    rows = audio_rows(load_data(card.data.name, card.language), "validation", card.language, limit).rows
    task: Recogniser = load_served("transcribe", find_base(card.base.name, task="transcribe"))
    references = [row["text"] for row in rows]
    found: dict[float, dict[str, Tally]] = {}
    lines = []
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch) / "adapter"
        shutil.copytree(registry.fetch(card.spec), folder)
        for window in (0.0, task.seconds / 8, task.seconds / 4, task.seconds):
            task.set_window(folder, window)
            task.add_adapter(KEY, folder)
            began = time.monotonic()
            texts = transcribe(task, rows, KEY)
            took = time.monotonic() - began
            bits = score_bits(rows, task.bits(rows, KEY))
            task.remove_adapter(KEY)
            found[window] = score_answers(texts, references, rows, ("transcript",)) | {"bits_per_byte": bits}
            line = {"window": f"{window:g} s" if window else "own length", "seconds": round(took, 1)}
            for name, tally in (("bits_per_byte", bits), ("cer", found[window]["cer"])):
                change = paired(tally, found[0.0][name])
                line[name] = f"{tally.value():.3f}"
                line[f"{name} against own length"] = f"{change.value:+.3f} {bracket(name, change, sign=True)}"
            lines.append(line)
    print(f"{card.spec}, {card.training.steps} steps, {len(rows)} validation clips, {machine()}")
    print(table(lines, list(lines[0])))


if __name__ == "__main__":
    main()
