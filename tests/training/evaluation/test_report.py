"""The report page, from made-up evaluations."""

import json
import re
import subprocess
import sys
from base64 import b64encode
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pytest

from kauli.models.adapters.card import Attribution, BaseReference, Card, Training, Validation
from kauli.models.metrics import METRICS
from kauli.training.evaluation.charts import learning_curve, spectrograms
from kauli.training.evaluation.report import render_report
from kauli.training.evaluation.results import EvalResult, Sample, Scores
from kauli.training.evaluation.scorers import Tally, score_answers, tally

TEXTS = {
    "am": ["የሰው ልጅ ሁሉ ሲወለድ ነጻ ነው", "ድመት", "ውሻ ይሮጣል", "ትልቅ ቤት"],
    "be": ["Усе людзі нараджаюцца свабоднымі", "кот", "сабака бяжыць", "вялікі дом"],
    "ar": ["يولد جميع الناس أحراراً", "قطة", "كلب", "بيت كبير"],
}


def scores(rate: float, tags: list[str]) -> Scores:
    """Scores of a system that needs about `rate` bits per byte, and whose answers are half of each reference."""
    random = np.random.default_rng(1)

    def bits(groups: int, mean: float) -> Tally:
        sizes = random.integers(5, 60, groups)
        sums = [[size * random.normal(mean, 0.3), size] for size in sizes]
        return tally("bits_per_byte", [f"g{i}" for i in range(groups)], sums)

    by_language = {}
    for tag in tags:
        rows = [{"group": f"g{i}", "language": tag} for i in range(4)]
        half = [text[: max(1, int(len(text) / rate))] for text in TEXTS[tag]]
        by_language[tag] = {"bits_per_byte": bits(80, rate), **score_answers(half, TEXTS[tag], rows)}
    by_source = {"cldr": bits(60, rate), "udhr": bits(6, rate - 0.3)}
    return Scores(by_language, by_source, {"udhr": bits(6, 0.9 + rate / 50)})


def made_up(tags: list[str]) -> EvalResult:
    samples = [
        Sample(
            f"{tag}-{i}-{copy}",
            tag,
            ["udhr", "cldr"][i % 2],
            f"Translate into something: number {i} <b>&",
            text,
            f"{text[:2]} <script>alert(1)</script>",
            text[::-1],
            41.5,
        )
        for copy in range(4)
        for tag in tags
        for i, text in enumerate(TEXTS[tag])
    ]
    return EvalResult(
        adapter="text-x@3",
        base="smollm2-135m-q4",
        languages=tuple(tags),
        split="test",
        seed=0,
        examples=212,
        groups=80,
        generated=len(samples),
        scores=scores(2.4, tags),
        base_scores=scores(3.6, tags),
        samples=tuple(samples),
        signatures={"chrf": "nrefs:1|case:mixed"},
        data={"name": "starter", "sha256": "0" * 64},
    )


def card(tags: list[str]) -> Card:
    curve: list[list[float | None]] = [
        [step, 3.0 - step / 200, 3.4 - step / 250 if step % 50 == 0 else None] for step in range(10, 310, 10)
    ]
    return Card(
        name="text-x",
        version=3,
        task="text",
        language=tags,
        base=BaseReference(name="smollm2-135m-q4", reference="org/base", sha256="0" * 64, licence="Apache-2.0"),
        method={"kind": "lora", "rank": 8},
        licence="CC-BY-SA-3.0",
        attributions=[Attribution(source="udhr", licence="free to reproduce", rows=1234)],
        recipe={"name": "text-x", "language": tags, "train": {"steps": 300}},
        validation=Validation(base=3.4, adapter=2.2),
        training=Training(steps=300, seconds=612.0, tokens=307200, machine="2 cores", seed=0, curve=curve),
        versions={"torch": "2.14"},
    )


class Outline(HTMLParser):
    """What a page loads and runs, which of its elements are left open, and its text."""

    VOID = frozenset({"meta", "img", "br"})

    def __init__(self, page: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.links: list[str] = []
        self.tags: set[str] = set()
        self.text = ""
        self.feed(page)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.add(tag)
        self.links += [value or "" for key, value in attrs if key in ("src", "href", "srcset", "data")]
        if tag not in self.VOID:
            self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        self.text += data


def test_page_stands_alone_and_shows_everything() -> None:
    page = render_report(made_up(["am", "be"]), card(["am", "be"]), "rows   2,431")
    outline = Outline(page)
    assert outline.open == []
    assert not outline.tags & {"script", "link", "iframe"}
    assert all(link.startswith("data:image/svg+xml;base64,") for link in outline.links)
    assert not re.search(r"url\(|@import|https?://", page)
    for expected in [
        "text-x@3: Amharic and Belarusian",
        "Bits per byte",
        "chrF",
        "Learning curve",
        "300 steps, 307,200 tokens, 10.2 minutes on 2 cores; seed 0.",
        "rows   2,431",
        "steps: 300",
        "1,234",
        *TEXTS["am"],
        *TEXTS["be"],
    ]:
        assert expected in outline.text
    assert len(outline.links) == 2


def test_text_of_the_data_is_never_markup() -> None:
    page = render_report(made_up(["am"]))
    assert "<script>alert" not in page
    assert "&lt;script&gt;alert(1)" in page


def test_same_evaluation_gives_the_same_page() -> None:
    assert render_report(made_up(["ar"]), card(["ar"])) == render_report(made_up(["ar"]), card(["ar"]))


def test_the_table_has_a_row_for_each_metric() -> None:
    page = render_report(made_up(["am"]))
    assert "On 212 Amharic examples that were held out of training (80 groups), the adapter text-x" in page
    rows = page.split("<h2>Metrics</h2>")[1].split("</table>")[0].split("<tr>")[2:]
    assert [row.count("<td") for row in rows] == [5] * 6


def test_a_stored_result_is_rendered_without_torch_or_the_trainer(tmp_path: Path) -> None:
    stored = tmp_path / "scores.json"
    stored.write_text(json.dumps(scores(2.4, ["am"]).to_json()))
    script = """
import json, sys
from kauli.training.evaluation.report import render_report
from kauli.training.evaluation.results import EvalResult, scores_from_json
with open(sys.argv[1]) as file:
    scores = scores_from_json(json.load(file))
result = EvalResult("text-x@1", "base", ("am",), "test", 0, 80, 80, 4, scores, scores)
assert "Bits per byte" in render_report(result)
loaded = {name.partition(".")[0] for name in sys.modules} & {"torch", "ray", "transformers", "accelerate"}
loaded |= set(sys.modules) & {"kauli.training.train", "kauli.training.recipe", "kauli.training.compare"}
sys.exit(f"loaded: {sorted(loaded)}" if loaded else 0)
"""
    done = subprocess.run([sys.executable, "-c", script, str(stored)], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-2000:]


@pytest.mark.parametrize(
    ("metric", "words"),
    [
        ("bits_per_byte", "validation (bits per byte): from 0.90 to 0.40"),
        ("one_minus_mrr", "validation (1 - mean reciprocal rank): from 0.90 to 0.40"),
        ("one_minus_macro_f1", "validation (1 - macro-F1): from 0.90 to 0.40"),
    ],
)
def test_the_learning_curve_names_the_metric_of_the_validation(metric: str, words: str) -> None:
    drawn = learning_curve([[1, 3.0, 0.9], [2, 2.0, None], [3, 1.0, 0.4]], metric)
    assert drawn is not None
    assert words in drawn.words
    assert "training loss (nats): from 3.00 to 1.00" in drawn.words


def test_speech_is_heard_and_seen() -> None:
    tone = np.sin(np.arange(16_000) / 5)
    drawing = spectrograms({"adapter": tone, "recording": tone[:8000]})
    assert drawing.words == "Spectrograms of adapter, recording."
    result = made_up(["be"])
    heard = replace(result.samples[0], audio=(("adapter", b"mp3 one"), ("recording", b"mp3 two")), drawing=drawing.uri)
    page = render_report(replace(result, samples=(heard, *result.samples[1:])))
    assert page.count("<audio controls") == 2
    for content in (b"mp3 one", b"mp3 two"):
        assert b64encode(content).decode() in page
    assert drawing.uri in page
    assert "<audio" not in render_report(result)


def test_the_page_of_an_aligned_adapter_never_speaks_of_bits() -> None:
    groups = [f"g{n}" for n in range(30)]
    names = [name for name in METRICS if name.startswith(("i2t", "t2i"))]
    half = {name: tally(name, groups, [[n % 2, 1] for n in range(30)]) for name in names}
    found = Scores({"am": {**half, "median_rank": tally("median_rank", groups, [[0, 1, 0]] * 30)}})
    result = EvalResult("align-x@1", "kauli-clip", ("am",), "test", 0, 30, 30, 0, found, found, task="align")
    one = card(["am"]).model_copy(
        update={"task": "align", "validation": Validation(base=0.9, adapter=0.4, metric="one_minus_mrr")}
    )
    page = render_report(result, one)
    assert "validation (1 - mean reciprocal rank)" in page
    assert "bits per byte" not in page.lower()
    assert "has an image to text, recall at 10 of 0.500 where its base kauli-clip has 0.500" in page
    for name in names:
        assert METRICS[name].label in page
    assert page.count("Lower is better.") == 1  # the median rank's


def test_a_headline_is_a_tile_and_a_row_and_the_others_are_rows() -> None:
    page = render_report(made_up(["am"]))
    tiles = re.findall(r'<div class="name">(.*?)</div>', page)
    assert tiles == ["Bits per byte", "chrF, 0 to 100", "English, bits per byte"]
    for name in ("exact", "self_bleu", "script_share"):
        assert f"<td>{METRICS[name].label}" in page


def test_languages_are_told_by_the_headlines_of_their_task() -> None:
    page = render_report(made_up(["am", "be"]))
    table = page.split("<h2>By language</h2>")[1].split("</table>")[0]
    heads = re.findall(r'<th class="number">(.*?)</th>', table)
    assert heads == ["Bits per byte", "of the base", "difference", "95 % interval", "chrF, 0 to 100", "of the base"]
    assert [len(re.findall("<td", row)) for row in table.split("<tr>")[2:]] == [7, 7]
