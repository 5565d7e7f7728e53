"""Speech beside what people run today: quality of a plain script, speed of short clips, and mixed adapters.

quality: a plain Hugging Face + peft script (LoRA r=8 on q and v, batches of 16 clips cut or padded to 4 seconds, AdamW
at 1e-3) and the recipe get the same rows, minutes and threads, one after the other; both are scored on the untouched
test groups, and the untrained base beside them with the 30 seconds of input that it was trained for. speed: the
recipe's adapter transcribes the test clips without padding and padded to 30 seconds, in turn. long: twelve test clips
in a row as one file, by how it is cut. mixed: batches of 16 clips with the base alone, one adapter, and eight.
"""

import argparse
import shutil
import statistics
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from peft import LoraConfig, get_peft_model
from results_file import update_section
from transformers import WhisperFeatureExtractor, WhisperForConditionalGeneration, WhisperTokenizer

from kauli.models.adapters.registry import Registry
from kauli.models.bases.find import Base, find_base
from kauli.models.media.decode import RATE
from kauli.models.progress import note
from kauli.models.requests import TranscriptionRequest
from kauli.models.speech.chunking import LONGEST, LONGEST_LEARNED, as_text, cut, join
from kauli.models.speech.whisper import WhisperTask
from kauli.training.card import machine
from kauli.training.data.dataset import load_data
from kauli.training.evaluation.intervals import interval, relative
from kauli.training.evaluation.results import bracket
from kauli.training.evaluation.scorers import Tally, score_answers
from kauli.training.evaluation.transcribe import ANSWERING, transcribe
from kauli.training.features.audio import audio_rows
from kauli.training.recipe_file import load_recipe
from kauli.training.tasks.transcribe import TranscribeRecipe
from kauli.training.train import train

SECONDS, BATCH = 4, 16
Row = Mapping[str, Any]


class Plain:
    """The plain script: Whisper by transformers with 4 seconds of input, LoRA by peft."""

    def __init__(self, folder: Path, language: str, seed: int) -> None:
        torch.manual_seed(seed)
        model = WhisperForConditionalGeneration.from_pretrained(folder, dtype=torch.float32)
        model.config.max_source_positions = 50 * SECONDS
        encoder = model.model.encoder
        encoder.max_source_positions = 50 * SECONDS
        encoder.embed_positions = torch.nn.Embedding.from_pretrained(encoder.embed_positions.weight[: 50 * SECONDS])
        model.config.use_cache = False
        self.model = get_peft_model(model, LoraConfig(r=8, lora_alpha=16, target_modules=["q_proj", "v_proj"]))
        self.tokenizer = WhisperTokenizer.from_pretrained(folder, language=language, task="transcribe")
        self.extractor = WhisperFeatureExtractor.from_pretrained(folder, chunk_length=SECONDS)
        self.language, self.seed = language, seed

    def inputs(self, rows: Sequence[Row]) -> torch.Tensor:
        found = self.extractor([np.asarray(row["samples"]) for row in rows], sampling_rate=RATE, return_tensors="pt")
        out: torch.Tensor = found["input_features"]
        return out

    def train(self, rows: Sequence[Row], minutes: float) -> int:
        """Steps done in the time."""
        optimizer = torch.optim.AdamW([p for p in self.model.parameters() if p.requires_grad], lr=1e-3)
        order = torch.Generator().manual_seed(self.seed)
        self.model.train()
        began, steps = time.monotonic(), 0
        while True:
            for places in torch.randperm(len(rows), generator=order).split(BATCH):
                if time.monotonic() - began > 60 * minutes:
                    return steps
                part = [rows[place] for place in places.tolist()]
                labels = [self.tokenizer(row["text"]).input_ids[1:] for row in part]  # the model puts the start before
                longest = max(map(len, labels))
                padded = torch.tensor([one + [-100] * (longest - len(one)) for one in labels])
                loss = self.model(input_features=self.inputs(part), labels=padded).loss
                optimizer.zero_grad()
                loss.backward()
                optimizer.step()
                steps += 1

    @torch.inference_mode()
    def transcribe(self, rows: Sequence[Row]) -> list[str]:
        self.model.train(False)
        self.model.config.use_cache = True
        texts: list[str] = []
        for start in range(0, len(rows), BATCH):
            tokens = self.model.generate(
                input_features=self.inputs(rows[start : start + BATCH]), language=self.language, task="transcribe",
                max_new_tokens=96,
            )  # fmt: skip
            texts += self.tokenizer.batch_decode(tokens, skip_special_tokens=True)
        return texts


def quality(options: Any, base: Base, storage: str) -> str:
    """Markdown; trains both."""
    recipe = load_recipe(options.recipe, [f"train.minutes={options.minutes}", f"train.seed={options.seed}"])
    assert isinstance(recipe, TranscribeRecipe)
    dataset = load_data(recipe.data, recipe.language)
    limit = recipe.transcribe.max_chars_per_second
    rows, test = (audio_rows(dataset, split, recipe.language, limit).rows for split in ("train", "test"))
    plain = Plain(base.folder, recipe.language[0], options.seed)
    steps = plain.train(rows, options.minutes)
    note(f"plain: {steps} steps")
    texts = {"plain": plain.transcribe(test)}
    if not options.adapter:
        options.adapter = train(recipe, storage, use_ray=False).adapter
    card = Registry(storage).card(options.adapter)
    task = WhisperTask.load(base, device="cpu")
    task.add_adapter("ours", Registry(storage).fetch(options.adapter))
    texts |= {"base": transcribe(task, test), "ours": transcribe(task, test, "ours")}
    scores = {name: score_transcripts(found, test) for name, found in texts.items()}
    names = {
        "base": "base, 30 s window, untrained",
        "plain": f"plain script, {options.minutes:g} minutes, {steps} steps",
        "ours": f"{options.recipe}, {card.training.seconds / 60 if card.training else 0:.1f} minutes, "
        f"{card.training.steps if card.training else 0} steps",
    }
    lines = [
        f"`{options.recipe}`, seed {options.seed}, {torch.get_num_threads()} thread(s); {len(test)} held-out clips of "
        f"{len({row['group'] for row in test})} groups (clips with more than {limit:g} characters a second "
        f"dropped); {machine()}; data {dataset.sha256[:12]}. Command: `python tests/bench/transcribe.py`.",
        "",
        "| | CER | WER | loops | CER against base | CER against plain |",
        "| --- | --- | --- | --- | --- | --- |",
    ]
    for name, title in names.items():
        cells = [_cell(scores[name][metric]) for metric in ("cer", "wer", "looped")]
        cells += [
            "" if name == other else _against(scores[name]["cer"], scores[other]["cer"]) for other in ("base", "plain")
        ]
        lines.append(f"| {title} | {' | '.join(cells)} |")
    return "\n".join(lines)


def long_recordings(options: Any, base: Base, folder: Path) -> str:
    """Markdown: audio files of twelve test clips in a row, cut as the service does it, and as a whole."""
    recipe = load_recipe(options.recipe)
    assert isinstance(recipe, TranscribeRecipe)
    dataset, limit = load_data(recipe.data, recipe.language), recipe.transcribe.max_chars_per_second
    clips = audio_rows(dataset, "test", recipe.language, limit).rows
    rows = [_in_a_row(clips[start : start + 12]) for start in range(0, len(clips), 12)]
    task = WhisperTask.load(base, device="cpu")
    task.add_adapter("ours", folder)
    lengths = [len(row["samples"]) / RATE for row in rows]
    lines = [
        f"`{options.recipe}`, {len(rows)} audio files of {min(lengths):.0f} to {max(lengths):.0f} seconds: twelve test "
        f"clips in a row, half a second of silence behind each; {machine()}. "
        "Command: `python tests/bench/transcribe.py --only long`.",
        "",
        "| cut at pauses to at most | base: CER | WER | adapter: CER | WER |",
        "| --- | --- | --- | --- | --- |",
    ]
    for longest in (7.0, LONGEST_LEARNED, LONGEST):
        cells = []
        for key in (None, "ours"):
            texts = []
            for row in rows:
                spans = cut(row["samples"], longest)
                parts = [{**row, "samples": span.of(row["samples"])} for span in spans]
                texts.append(as_text(join(transcribe(task, parts, key), spans)))
            scores = score_transcripts(texts, rows)
            cells += [f"{scores[metric].value():.3f}" for metric in ("cer", "wer")]
        lines.append(f"| {longest:g} s | {' | '.join(cells)} |")
    return "\n".join(lines)


def _in_a_row(clips: Sequence[Row]) -> Row:
    quiet = np.random.default_rng(0).normal(0, 1e-4, RATE // 2).astype(np.float32)
    return {
        **clips[0],
        "samples": np.concatenate([part for clip in clips for part in (np.asarray(clip["samples"]), quiet)]),
        "text": " ".join(clip["text"] for clip in clips),
    }


def score_transcripts(texts: Sequence[str], rows: Sequence[Row]) -> dict[str, Tally]:
    return score_answers(texts, [row["text"] for row in rows], rows, ANSWERING.kinds)


def _cell(tally: Tally) -> str:
    found = interval(tally.sums, tally.finish)
    return f"{found.value:.3f} {bracket(tally.metric, found)}" if tally.metric != "looped" else f"{found.value:.3f}"


def _against(ours: Tally, theirs: Tally) -> str:
    found = relative(ours.sums, theirs.sums, ours.finish)
    return f"{100 * found.value:+.0f} % [{100 * found.low:+.0f}, {100 * found.high:+.0f}]"


def in_turn(rounds: int, systems: Mapping[str, Callable[[], Any]]) -> dict[str, list[float]]:
    """Seconds of each system in each round; every system once before, for what is made at first use."""
    seconds: dict[str, list[float]] = {name: [] for name in systems}
    for number in range(rounds + 1):
        for name, system in systems.items():
            began = time.monotonic()
            system()
            if number:
                seconds[name].append(time.monotonic() - began)
    return seconds


def ratio(seconds: Mapping[str, Sequence[float]], slow: str, fast: str) -> str:
    """How many times as fast: the median of the rounds, and their spread."""
    found = [one / other for one, other in zip(seconds[slow], seconds[fast], strict=True)]
    return f"{statistics.median(found):.2f} ({min(found):.2f} to {max(found):.2f})"


def speed(options: Any, base: Base, folder: Path) -> str:
    """Markdown: short clips, and mixed adapters."""
    recipe = load_recipe(options.recipe)
    assert isinstance(recipe, TranscribeRecipe)
    dataset = load_data(recipe.data, recipe.language)
    rows = audio_rows(dataset, "test", recipe.language, recipe.transcribe.max_chars_per_second).rows
    task = WhisperTask.load(base, device="cpu")
    for number in range(8):
        task.add_adapter(f"adapter {number}", folder)
    seconds = in_turn(
        options.rounds,
        {
            "own": lambda: transcribe(task, rows, "adapter 0"),
            "whole": lambda: transcribe(task, rows, "adapter 0", full_window=True),
        },
    )
    texts = {full: transcribe(task, rows, "adapter 0", full_window=full) for full in (False, True)}
    cer = {full: score_transcripts(found, rows)["cer"] for full, found in texts.items()}
    bare = score_transcripts(transcribe(task, rows, None, False), rows)
    length = sum(len(row["samples"]) for row in rows) / RATE
    requests = [
        TranscriptionRequest(row["samples"], row["language"], full_window=False, max_tokens=24, ignore_eos=True)
        for row in rows[:48]
    ]

    def batch(adapters: Sequence[str | None]) -> None:
        chosen = [adapters[place % len(adapters)] for place in range(len(requests))]
        for _ in task.generate([replace(one) for one in requests], chosen):
            pass

    mixed = in_turn(
        options.rounds,
        {
            "base": lambda: batch([None]),
            "one": lambda: batch(["adapter 0"]),
            "eight": lambda: batch([f"adapter {number}" for number in range(8)]),
        },
    )
    own, whole = (statistics.median(seconds[name]) for name in ("own", "whole"))
    return "\n".join(
        [
            f"{len(rows)} clips, {length:.0f} seconds of speech, 16 at a time, {torch.get_num_threads()} thread(s), "
            f"median of {options.rounds} rounds in turn; {machine()}. "
            "Command: `python tests/bench/transcribe.py --only speed`.",
            "",
            "| the same adapter | seconds | real-time factor | CER |",
            "| --- | --- | --- | --- |",
            f"| clips without padding | {own:.1f} | {own / length:.3f} | {_cell(cer[False])} |",
            f"| padded to 30 s | {whole:.1f} | {whole / length:.3f} | {_cell(cer[True])} |",
            "",
            f"Without padding it is {ratio(seconds, 'whole', 'own')} times as fast.",
            "",
            f"The untrained base fails on clips of their own length: CER {bare['cer'].value():.2f}, "
            f"{100 * bare['looped'].value():.0f} % of its transcripts are loops.",
            "",
            "48 clips, 24 tokens each: one adapter has "
            f"{ratio(mixed, 'base', 'one')}, eight adapters in each batch {ratio(mixed, 'base', 'eight')} times the "
            "throughput of the base alone.",
        ]
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--recipe", default="transcribe-be")
    parser.add_argument("--minutes", type=float, default=10)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--only", choices=("quality", "speed", "long"))
    parser.add_argument("--adapter", help="one that is trained already, NAME@VERSION; by default it is trained")
    parser.add_argument("--storage", help="where it lies")
    parser.add_argument("--results", type=Path, default=Path(__file__).parents[2] / "RESULTS.md")
    options = parser.parse_args()
    recipe = load_recipe(options.recipe)
    base = find_base(recipe.base, task="transcribe")
    scratch = tempfile.mkdtemp(prefix="kauli-bench-")
    storage = options.storage or scratch
    try:
        if options.only in (None, "quality"):
            text = quality(options, base, storage)
            print(text)
            update_section(options.results, f"speech-quality-{recipe.name}-{options.minutes:g}", text)
        if options.only != "quality" and not options.adapter:
            short = load_recipe(options.recipe, ["train.minutes=2"])
            options.adapter = train(short, storage, use_ray=False).adapter
        for kind, measure in (("long", long_recordings), ("speed", speed)):
            if options.only in (None, kind):
                text = measure(options, base, Registry(storage).fetch(options.adapter))
                print(text)
                update_section(options.results, f"speech-{kind}-{recipe.name}", text)
    finally:
        shutil.rmtree(scratch, ignore_errors=True)


if __name__ == "__main__":
    main()
