"""Translation beside what people run today, and beside a memory alone.

quality: for each language the recipe and a plain Hugging Face + peft script train at the same time, on the same pairs
in both directions, for the same minutes, with one half of the threads each. Both translate the same held-out strings
by source (interface strings, names, the Universal Declaration), beside the base, the text of the nearest training pair
and the text itself. `own` is what the adapter wrote, `ours` what a user gets: the nearest pair's text where the adapter
finds it likelier. editing: documents of 100 held-out strings in their order, each confirmed as soon as it was
translated; the second half with this memory beside the same adapter without.
"""

import argparse
import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from results_file import update_section

from kauli.models.adapters.card import Prompting
from kauli.models.adapters.registry import Registry
from kauli.models.bases.find import Base, find_base
from kauli.models.engine.precision import choose_precision, place
from kauli.models.paths import default_storage
from kauli.models.progress import note
from kauli.models.requests import TextRequest
from kauli.models.tasks import load_served
from kauli.models.text.language_model import load_prompts
from kauli.models.text.translation import STOP, Example, fitting, translation_prompt
from kauli.training.card import machine
from kauli.training.data.dataset import Dataset, load_data
from kauli.training.evaluation.intervals import difference
from kauli.training.evaluation.results import bracket
from kauli.training.evaluation.rows import choose
from kauli.training.evaluation.scorers import Tally, score_answers
from kauli.training.evaluation.systems import generate
from kauli.training.evaluation.translate import likelier_of
from kauli.training.features.neighbours import Neighbours
from kauli.training.features.translations import Prompter, directed, pair_rows
from kauli.training.recipe_file import load_recipe

MAX_TOKENS = 160
SYSTEMS = ("nearest", "copy", "base", "plain", "no_memory", "own", "ours")
Row = dict[str, Any]


def plain_prompt(row: Row) -> str:
    """How the plain script asks."""
    return translation_prompt(row["input"], row["from"], row["to"], Prompting())


def documents_of(base: Base, rows: Sequence[Row], path: Path) -> None:
    """What the plain script trains on: each pair in both directions."""
    prompts, _ = load_prompts(base)
    found = []
    for row in rows:
        for one in (directed(row, reverse=False), directed(row, reverse=True)):
            document = prompts.document({**one, "prompt": plain_prompt(one)}, 256)
            found.append([document.tokens, document.answer_start])
    end = found[0][0][-1]
    path.write_text(json.dumps({"documents": found, "end": end}))


def train_both(options: argparse.Namespace, base: Base, recipe: Any, rows: Sequence[Row], folder: Path) -> str:
    """Both trainings at once; the name of our adapter."""
    documents_of(base, rows, folder / "documents.json")
    threads = max(1, (os.cpu_count() or 2) // 2)
    plain = [
        sys.executable, str(Path(__file__).with_name("plain_script.py")), "--documents", str(folder / "documents.json"),
        "--base", str(base.folder), "--out", str(folder / "plain"), "--form", "padded",
        "--minutes", str(options.minutes), "--seed", str(options.seed), "--threads", str(threads),
    ]  # fmt: skip
    sets = [*options.set, f"train.minutes={options.minutes}", f"train.seed={options.seed}", f"name={recipe.name}"]
    ours = [
        "kauli", "train", options.recipe, "--no-ray", "--json", "--storage", options.storage,
        *(part for one in [*sets, f"language={recipe.language[0]}"] for part in ("--set", one)),
    ]  # fmt: skip
    ours[0] = str(Path(sys.executable).with_name("kauli"))
    environment = {**os.environ, "OMP_NUM_THREADS": str(threads)}
    with (folder / "plain.log").open("w") as log:
        other = subprocess.Popen(plain, stdout=subprocess.PIPE, stderr=log, text=True, env=environment)
        try:
            made = subprocess.run(ours, stdout=subprocess.PIPE, text=True, check=True, env=environment).stdout
            told = other.communicate()[0]
        finally:
            other.kill()
    note(f"plain: {told.strip()}")
    return str(json.loads(made)["adapter"])


def loaded(base: Base) -> Any:
    """The base as the service loads it: in bf16 where that is faster."""
    return load_served("translate", base, dtype=choose_precision(base, str(place()[0]), "auto").dtype)


def answers(served: Any, adapter: str | None, rows: Sequence[Row], prompts: Sequence[str]) -> list[str]:
    """Greedy translations, guarded as the adapter "ours" is: for all systems alike."""
    requests = []
    for prompt in prompts:
        guarded = served.guarded(TextRequest.of_prompt(prompt, stop=STOP), "ours")
        requests.append(replace(guarded, max_tokens=min(MAX_TOKENS, guarded.max_tokens or MAX_TOKENS)))
    return [text.strip() for text in generate(served, requests, [adapter] * len(rows))]


def quality(options: argparse.Namespace) -> str:
    """Markdown; trains what is not given."""
    parts = []
    for language in options.languages.split(","):
        sets = [f"language={language}", f"name=bench-translate-{language}"]
        recipe = load_recipe(options.recipe, [*options.set, *sets])
        base, dataset = find_base(recipe.base), load_data(recipe.data, [language])
        memory = pair_rows(dataset, "train", [language])
        with tempfile.TemporaryDirectory() as name:
            folder = Path(name)
            adapter = options.adapter or train_both(options, base, recipe, memory, folder)
            plain = options.plain or (None if options.adapter else folder / "plain")
            parts.append(measured(options, language, base, dataset, memory, adapter, plain))
    return "\n\n".join(parts)


def measured(
    options: argparse.Namespace, language: str, base: Base, dataset: Dataset, memory: Sequence[Row], adapter: str,
    plain: Path | None,
) -> str:  # fmt: skip
    """Markdown of one language: chrF++ by direction and source, with 95 % intervals of ours minus the others."""
    registry = Registry(options.storage)
    card = registry.card(adapter)
    assert card.translation is not None
    assert card.training is not None
    served = loaded(base)
    served.add_adapter("ours", registry.fetch(adapter))
    if plain is not None:
        served.add_adapter("plain", plain)
    systems = [name for name in SYSTEMS if name != "plain" or plain is not None]
    prompter = Prompter(base, card.translation.prompting, memory)
    found = pair_rows(dataset, options.split, [language])
    lines = [
        f"### {language}: {adapter}, {card.training.steps} steps; {options.minutes:g} minutes, seed {options.seed}",
        "",
        f"{machine()}. chrF++ of groups of the split `{options.split}`; in brackets the 95 % interval of `ours` minus "
        "the system.",
        "",
        f"| direction | source | rows | {' | '.join(systems)} |",
        "| --- | --- | --- |" + " --- |" * len(systems),
    ]
    for reverse in (False, True):
        pairs = choose(found, options.limit, by=("source",))
        rows = prompter.prompted([directed(row, reverse=reverse) for row in pairs])
        texts = {
            "own": answers(served, "ours", rows, [row["prompt"] for row in rows]),
            "no_memory": answers(served, "ours", rows, [row["prompt"] for row in prompter.prompted(rows, 0)]),
            "base": answers(served, None, rows, [row["prompt"] for row in rows]),
            "nearest": [row["nearest"] for row in rows],
            "copy": [row["input"] for row in rows],
        }
        if plain is not None:
            texts["plain"] = answers(served, "plain", rows, [plain_prompt(row) for row in rows])
        texts["ours"] = likelier_of(served, rows, texts["own"], "ours")
        for source in ("all", *sorted({row["source"] for row in rows})):
            places = [at for at, row in enumerate(rows) if source in ("all", row["source"])]
            mine = [rows[at] for at in places]
            scores = {name: _chrf_pp([texts[name][at] for at in places], mine) for name in systems}
            cells = [_cell(scores[name], scores["ours"] if name != "ours" else None) for name in systems]
            way = f"{rows[0]['from']} to {rows[0]['to']}"
            lines.append(f"| {way} | {source} | {len(mine)} | {' | '.join(cells)} |")
        for at in range(0, len(rows), max(1, len(rows) // 6)):
            note(f"{rows[at]['input']} | {rows[at]['text']} | {texts['ours'][at]} | {texts['own'][at]}")
    return "\n".join(lines)


def editing(options: argparse.Namespace) -> str:
    """Markdown: the second 50 strings of documents, with the memory of all before them and without."""
    registry = Registry(options.storage)
    card = registry.card(options.adapter)
    assert card.translation is not None
    assert card.data is not None
    language, prompting = card.language[0], card.translation.prompting
    base = find_base(card.base.name, allow_noncommercial=True)
    served = loaded(base)
    served.add_adapter("ours", registry.fetch(options.adapter))
    prompts, _ = load_prompts(base)
    dataset = load_data(card.data.name, [language])
    strings = [directed(row, reverse=False) for row in pair_rows(dataset, "test", [language])]
    strings = [row for row in strings if row["source"] == options.source]
    first = range(0, len(strings) - 99, max(100, len(strings) // options.documents))
    later: list[Row] = []
    for start in list(first)[: options.documents]:
        document = strings[start : start + 100]
        for at in range(50, 100):
            seen = Neighbours([(one["input"], one["text"]) for one in document[:at]], [""] * at)
            [found] = seen.of([document[at]["input"]], [document[at]["group"]], prompting.examples)
            pairs = fitting(
                [Example(one.source, one.target) for one in found], prompting, lambda t: len(prompts.text_tokens(t))
            )
            prompt = translation_prompt(document[at]["input"], document[at]["from"], language, prompting, pairs)
            later.append({**document[at], "prompt": prompt, "group": f"{start}"})
    alone = [translation_prompt(row["input"], row["from"], language, prompting) for row in later]
    texts = {
        "with": answers(served, "ours", later, [row["prompt"] for row in later]),
        "without": answers(served, "ours", later, alone),
    }
    scores = {name: _chrf_pp(found, later) for name, found in texts.items()}
    gain = difference(scores["with"].sums, scores["without"].sums, scores["with"].finish)
    return "\n".join([
        f"{options.adapter}, {options.source}: {len(later) // 50} documents of 100 held-out strings, each confirmed as "
        "soon as it was translated; the last 50 of each.",
        "",
        "| the same adapter | chrF++ |",
        "| --- | --- |",
        f"| without memory | {scores['without'].value():.1f} |",
        f"| with what was confirmed in the document before | {scores['with'].value():.1f} |",
        f"| difference (95 % interval over documents) | {gain.value:+.1f} {bracket('chrf_pp', gain, sign=True)} |",
    ])  # fmt: skip


def _chrf_pp(texts: Sequence[str], rows: Sequence[Row]) -> Tally:
    return score_answers(texts, [row["text"] for row in rows], rows, ("translation",))["chrf_pp"]


def _cell(theirs: Tally, ours: Tally | None) -> str:
    if ours is None:
        return f"{theirs.value():.1f}"
    gain = difference(ours.sums, theirs.sums, ours.finish)
    return f"{theirs.value():.1f} {bracket('chrf_pp', gain, sign=True)}"


COMMANDS: Mapping[str, Any] = {"quality": quality, "editing": editing}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("command", choices=COMMANDS)
    parser.add_argument("--recipe", default="translate-am")
    parser.add_argument("--languages", default="am", help="separated by commas")
    parser.add_argument("--minutes", type=float, default=40)
    parser.add_argument("--set", action="append", default=[], help="of the recipe")
    parser.add_argument("--limit", type=int, default=400, help="held-out pairs that are translated")
    parser.add_argument("--split", default="test", help="for quality; validation: to choose by")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--adapter", help="one that is trained already")
    parser.add_argument("--plain", type=Path, help="for quality with --adapter: the plain script's folder")
    parser.add_argument("--source", default="libreoffice", help="for editing")
    parser.add_argument("--documents", type=int, default=8, help="for editing")
    parser.add_argument("--storage", default=default_storage())
    parser.add_argument("--results", type=Path, help="a file such as RESULTS.md, whose section is written anew")
    options = parser.parse_args()
    markdown = COMMANDS[options.command](options)
    print(markdown)
    if options.results:
        update_section(options.results, f"translate-{options.command}", markdown)


if __name__ == "__main__":
    main()
