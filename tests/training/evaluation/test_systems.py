"""Systems side by side: which media each gets, which answer once, which rows count, how sums are stored."""

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import pytest

from kauli.models.bases.find import Base
from kauli.models.metrics import METRICS, Metric
from kauli.models.requests import Chunk, TextRequest
from kauli.training.evaluation.report import render_report
from kauli.training.evaluation.request import ADAPTER, EvalRequest
from kauli.training.evaluation.scorers import SCORERS, Scorer
from kauli.training.evaluation.systems import BASE, Answering, System, Systems
from kauli.training.features.left_out import LeftOut

LM = Base("lm", Path("lm"), "0" * 64, "CC0-1.0", False, (), None, None, None, "text")


class Data:
    name, sha256 = "made up", "1" * 64


class Echo:
    """Answers with what it is shown, an adapter in upper case; a byte costs 8 bits, or 2 with an adapter."""

    def __init__(self) -> None:
        self.asked: list[tuple[str | None, str]] = []
        self.scored: list[tuple[str | None, int, dict[str, Any]]] = []

    def bits(self, rows: Sequence[Mapping[str, Any]], adapter: str | None, **options: Any) -> list[tuple[float, int]]:
        self.scored.append((adapter, len(rows), options))
        sizes = [len(row["text"].encode()) for row in rows]
        return [((2.0 if adapter else 8.0) * size, size) for size in sizes]

    def generate(self, requests: Sequence[TextRequest], adapters: Sequence[str | None]) -> Iterator[list[Chunk]]:
        for place, (request, adapter) in enumerate(zip(requests, adapters, strict=True)):
            assert request.prompt is not None
            self.asked.append((adapter, request.prompt))
            answer = request.prompt.upper() if adapter else request.prompt
            yield [Chunk(answer[:1], 1, row=place)]
            yield [Chunk(answer[1:], 1, "stop", row=place)]


def row(number: int, **changes: Any) -> dict[str, Any]:
    plain = {"id": f"r{number}", "group": f"g{number}", "language": "sw", "prompt": f"p{number}", "text": f"P{number}",
             "source": "made", "synthetic": False}  # fmt: skip
    return plain | changes


def systems(languages: tuple[str, ...] = ("sw",), **how: Any) -> Systems:
    data: Any = Data()
    request = EvalRequest(Path("x"), LM, data, languages)
    answering = Answering("text", ("text",), lambda one: TextRequest(prompt=one["prompt"]), **how)
    return Systems(request, answering, LeftOut("test"))


def test_bits_and_answers_become_metrics_by_language_and_kind() -> None:
    rows = [row(0), row(1, synthetic=True), row(2, language="am", text="other")]
    found, task = systems(("sw", "am")), Echo()
    compared = [System(ADAPTER, rows, ADAPTER), System(BASE, rows)]
    texts = found.compare(task, compared, rows, rows[:2], "new_pictures_")
    assert texts == {ADAPTER: ["P0", "P1"], BASE: ["p0", "p1"]}
    found.show(rows[:2], texts, ["a", "b"], ", new image")
    result = found.result(rows, 2)
    assert result.metrics["new_pictures_exact"] == 1.0
    assert result.metrics["new_pictures_synthetic_bits_per_byte"] == 2.0
    assert result.base_metrics is not None
    assert result.base_metrics["new_pictures_bits_per_byte"] == 8.0
    assert "exact" not in {name.removeprefix("new_pictures_") for name in result.scores.total(["am"])}
    assert (result.examples, result.groups, result.generated, result.adapter) == (3, 3, 2, "x")
    assert [one.source for one in result.samples] == ["made, new image"] * 2
    assert result.signatures.keys() == {"chrf"}
    assert result.data == {"name": "made up", "sha256": "1" * 64}


def test_a_language_without_rows_has_no_metrics_but_a_place() -> None:
    found = systems(("sw", "am"))
    found.compare(Echo(), [System(ADAPTER, [row(0)], ADAPTER), System(BASE, [row(0)])], [row(0)], [])
    result = found.result([row(0)])
    assert result.to_json()["by_language"]["am"]["metrics"] == {}
    assert "Amharic" in render_report(result)


def test_who_is_shown_no_media_answers_a_prompt_once() -> None:
    bare = [row(n, prompt="same", media=()) for n in range(3)]
    shown = [row(n, prompt="same", media=("image",)) for n in range(3)]
    task = Echo()
    texts = systems().answers(
        task, [System(BASE, bare), System("no_image", bare, "a"), System(ADAPTER, shown, "a")], bare
    )
    assert len(task.asked) == 1 + 1 + 3
    assert texts == {BASE: ["same"] * 3, "no_image": ["SAME"] * 3, ADAPTER: ["SAME"] * 3}


def test_other_captions_are_another_question() -> None:
    found, served = systems(), Echo()
    rows = [
        row(0, media=(), captions=("a",)),
        row(1, prompt="p0", media=(), captions=()),
        row(2, prompt="p0", media=()),
    ]
    found.answers(served, [System(ADAPTER, rows, "a")], rows)
    assert len(served.asked) == 2


def test_rows_are_scored_in_order_of_length_a_few_at_a_time_or_as_the_task_wants() -> None:
    rows = [row(n, text="x" * (100 - n)) for n in range(100)]
    task = Echo()
    bits = systems().bits(task, System(BASE, rows, None, {"full_window": True}))
    assert [(count, options) for _, count, options in task.scored] == [
        (64, {"full_window": True}),
        (36, {"full_window": True}),
    ]
    assert bits["r3"] == (8.0 * 97, 97)
    whole = Echo()
    assert systems(length=None).bits(whole, System(BASE, rows)) == bits
    assert [count for _, count, _ in whole.scored] == [100]


def test_a_row_can_be_shown_otherwise_than_it_is_counted() -> None:
    rows, other = [row(0, language="ky")], [row(0, language="kk", prompt="q")]
    found = systems(("ky",))
    compared = [System(ADAPTER, rows, ADAPTER), System(BASE, other)]
    assert found.compare(Echo(), compared, rows, rows) == {ADAPTER: ["P0"], BASE: ["q"]}
    assert list(found.result(rows, 1).base_scores.by_language) == ["ky"]


def test_a_metric_is_a_row_of_the_table_and_its_scorer(monkeypatch: pytest.MonkeyPatch) -> None:
    length = Metric("length", "Letters", "Letters of an answer.", "lower", "ratio", headline=True)
    monkeypatch.setitem(METRICS, "length", length)
    count = Scorer(frozenset({"text"}), lambda texts, targets, rows: [[len(text), 1.0] for text in texts])
    monkeypatch.setitem(SCORERS, "length", count)
    rows = [row(0), row(1, prompt="longer")]
    found = systems()
    found.show(rows, found.compare(Echo(), [System(ADAPTER, rows, ADAPTER), System(BASE, rows)], rows, rows), ["", ""])
    result = found.result(rows, 2)
    assert result.metrics["length"] == 4.0  # P0 and LONGER
    assert "length" in result.summary()
    page = render_report(result)
    assert '<div class="name">Letters</div>' in page
    assert "Lower is better. Letters of an answer." in page
