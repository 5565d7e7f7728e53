"""Evaluation: known sums through a made-up model, and the whole path on the debug base."""

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import LoraConfig, get_peft_model
from transformers import AutoModelForCausalLM

from kauli.models.adapters.peft_import import from_peft
from kauli.models.adapters.registry import Registry
from kauli.models.bases.find import Base, find_base
from kauli.models.errors import UsageError
from kauli.models.requests import Chunk, TextRequest
from kauli.training.data.dataset import Dataset
from kauli.training.data.schema import write_parquet
from kauli.training.evaluation.request import EvalRequest
from kauli.training.evaluation.results import EvalResult, scores_from_json
from kauli.training.evaluation.rows import choose, english_rows
from kauli.training.evaluation.run import evaluate
from kauli.training.evaluation.text import evaluate_text, generated, reference_for, request_for

LONG = "Watu wote wamezaliwa huru hadhi na haki zao ni sawa"


def row(number: int, **changes: Any) -> dict[str, Any]:
    plain = {
        "id": f"r{number}",
        "group": f"g{number}",
        "language": "sw",
        "prompt": f"Translate into Swahili: number {number}",
        "text": "abcd",
        "source": "names",
        "licence": "CC0-1.0",
        "synthetic": False,
        "split": "test",
        "image": None,
        "audio": None,
    }
    return plain | changes


def dataset(path: Path, rows: Sequence[Mapping[str, Any]], languages: Sequence[str] | None = None) -> Dataset:
    """Rows as they are: reading foreign data would bring rows of one text into one group."""
    write_parquet(rows, path)
    return Dataset("made up", [path], languages or sorted({one["language"] for one in rows}))


@pytest.fixture(autouse=True)
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("KAULI_HOME", str(tmp_path / "home"))
    return tmp_path / "home"


class MadeUp:
    """A model that needs 8 bits for each byte without an adapter and 2 with one, and answers `abcd` or `xy`."""

    def add_adapter(self, key: str, folder: Path) -> None:
        self.loaded = key, folder

    def bits(self, rows: Sequence[Mapping[str, Any]], adapter: str | None) -> list[tuple[float, int]]:
        sizes = [len(one["text"].encode()) for one in rows]
        return [((2.0 if adapter else 8.0) * size, size) for size in sizes]

    def guarded(self, request: TextRequest, adapter: str | None) -> TextRequest:
        return replace(request, max_tokens=4, no_repeat=3 if adapter else 0)

    def generate(self, requests: Sequence[TextRequest], adapters: Sequence[str | None]) -> Iterator[list[Chunk]]:
        # Both systems with the guards of the adapter
        assert all((request.temperature, request.max_tokens, request.no_repeat) == (0, 4, 3) for request in requests)
        answers = ["abcd" if adapter else "xy" for adapter in adapters]
        for letter in range(4):
            yield [Chunk(text[letter : letter + 1], 1, row=n) for n, text in enumerate(answers) if letter < len(text)]


def measure(dataset: Dataset, languages: Sequence[str], **options: Any) -> EvalResult:
    base = Base("base", Path("base"), "0" * 64, "CC0-1.0", False, (), None, None, None, "text")
    return evaluate_text(EvalRequest(Path("x"), base, dataset, tuple(languages), served=MadeUp(), **options))


def test_known_sums_give_known_figures(tmp_path: Path) -> None:
    rows = [row(0), row(1, text="abcé"), row(2, split="train"), row(3, source="texts", prompt=None, text=LONG)]
    result = measure(dataset(tmp_path / "d.parquet", rows), ["sw"])
    assert (result.examples, result.groups, result.generated) == (3, 3, 3)
    assert result.metrics["bits_per_byte"] == 2.0
    assert result.base_metrics is not None
    assert result.base_metrics["bits_per_byte"] == 8.0
    assert result.metrics["exact"] == pytest.approx(1 / 3)
    assert result.base_metrics["exact"] == 0.0
    assert result.metrics["script_share"] == 1.0
    assert result.differences["bits_per_byte"].pair() == [-6.0, -6.0]
    sizes = [len(one["text"].encode()) for one in (rows[0], rows[1], rows[3])]
    assert result.scores.total()["bits_per_byte"].sums.sum(axis=0).tolist() == [2.0 * sum(sizes), sum(sizes)]
    assert {name: one["adapter"] for name, one in result.to_json()["by_source"].items()} == {"names": 2.0, "texts": 2.0}


def test_json_has_the_promised_shape(tmp_path: Path) -> None:
    result = measure(dataset(tmp_path / "d.parquet", [row(n) for n in range(4)]), ["sw"])
    found = json.loads(json.dumps(result.to_json(), allow_nan=False))
    promised = "adapter base task language split seed examples groups metrics base_metrics baselines intervals"
    assert set(promised.split()) <= set(found)
    assert found["language"] == "sw"
    assert found["task"] == "text"
    assert found["baselines"] == {}
    text = ["bits_per_byte", "chrf", "exact", "distinct_2", "self_bleu", "script_share"]
    assert list(found["metrics"]) == text
    assert found["metrics"]["distinct_2"] is None  # answers of one word hold no pairs
    assert found["intervals"]["bits_per_byte"] == [2.0, 2.0]
    assert "distinct_2" not in found["intervals"]


def test_synthetic_rows_are_kept_apart(tmp_path: Path) -> None:
    rows = [row(0), row(1), row(2, synthetic=True, text="wxyz"), row(3, synthetic=True)]
    result = measure(dataset(tmp_path / "d.parquet", rows), ["sw"])
    assert result.metrics["exact"] == 1.0
    assert result.metrics["synthetic_exact"] == 0.5
    assert result.metrics["synthetic_bits_per_byte"] == 2.0
    assert result.scores.total()["bits_per_byte"].groups == ("g0", "g1")
    assert result.scores.by_source["names"].groups == ("g0", "g1")


def test_english_of_the_same_split_shows_what_was_forgotten(tmp_path: Path) -> None:
    english = {"language": "en", "prompt": None}
    rows = [
        row(0),
        row(1, text="All human beings are born free and equal", **english),
        row(2, text="All are equal", split="train", **english),
        row(3, text="a black cat that sleeps on a mat", image=b"PNG", **english),
        row(4, text="black cat", **english),
    ]
    data = dataset(tmp_path / "d.parquet", rows, ["sw"])
    assert [one["id"] for one in english_rows(data, "test")] == ["r1"]
    result = measure(data, ["sw"])
    forgotten = result.english()
    assert forgotten is not None
    assert (forgotten["adapter"], forgotten["base"], forgotten["groups"]) == (2.0, 8.0, 1)
    assert result.metrics["bits_per_byte"] == 2.0
    assert result.scores.total()["bits_per_byte"].groups == ("g0",)
    assert measure(data, ["sw", "en"]).english() is None  # it is what is measured


def test_languages_are_counted_together_and_apart(tmp_path: Path) -> None:
    rows = [row(0), row(1), row(2, group="g0", language="am", text="ሰላም"), row(3, language="be", text="дом")]
    result = measure(dataset(tmp_path / "d.parquet", rows), ["sw", "am"])
    assert result.examples == 3
    assert result.groups == 2
    found = result.to_json()
    assert found["language"] == ["sw", "am"]
    assert found["by_language"]["am"]["metrics"]["script_share"] == 0.0
    assert found["by_language"]["sw"]["metrics"]["exact"] == 1.0
    assert found["metrics"]["exact"] == pytest.approx(2 / 3)


def test_sums_survive_json(tmp_path: Path) -> None:
    rows = [row(0), row(1, synthetic=True), row(2, language="en", text="two")]
    scores = measure(dataset(tmp_path / "d.parquet", rows), ["sw"]).scores
    back = scores_from_json(json.loads(json.dumps(scores.to_json())))
    assert back.to_json() == scores.to_json()
    assert back.total().keys() == scores.total().keys()


def test_choice_is_even_over_sources_and_stable() -> None:
    rows = [row(n, source="many") for n in range(50)] + [row(n, source="few") for n in range(50, 53)]
    by = ("language", "source")
    chosen = choose(rows, 10, by)
    assert [one["source"] for one in chosen].count("few") == 3
    assert choose(list(reversed(rows)), 10, by) == chosen
    assert choose(rows, 4, by) == chosen[:4]
    assert len(choose(rows, 1000, by)) == 53
    assert choose(rows, 0, by) == []


def test_a_text_without_prompt_is_continued() -> None:
    long, short = row(0, prompt=None, text=LONG), row(1, prompt=None, text="Watu wote")
    request = request_for(long)
    assert request.messages is None
    assert request.prompt == "Watu wote wamezaliwa huru hadhi"
    assert reference_for(long) == "na haki zao ni sawa"
    assert generated([long, short], 10, synthetic=False) == [long]
    asked = request_for(row(2))
    assert asked.messages is not None
    assert [(one.role, one.content) for one in asked.messages] == [("user", "Translate into Swahili: number 2")]


def test_a_split_without_text_is_an_error(tmp_path: Path) -> None:
    data = dataset(tmp_path / "d.parquet", [row(0), row(1, split="train")])
    with pytest.raises(UsageError, match="no text in sw in its 'validation' split"):
        measure(data, ["sw"], split="validation")


def published(tmp_path: Path, storage: str) -> str:
    """An adapter made by plain PEFT on the debug base, in the registry."""
    base = find_base("debug")
    torch.manual_seed(1)
    plain = AutoModelForCausalLM.from_pretrained(base.folder, dtype=torch.float32)
    model = get_peft_model(plain, LoraConfig(r=2, target_modules="all-linear", task_type="CAUSAL_LM"))
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "lora_B" in name:
                parameter.normal_(std=0.2)
    model.save_pretrained(str(tmp_path / "peft"))
    card = from_peft(tmp_path / "peft", tmp_path / "ours", name="text-x", language="sw", base=base, accept_base=True)
    return Registry(storage).publish(tmp_path / "ours", card).spec


def test_evaluating_a_published_adapter(tmp_path: Path) -> None:
    storage, path, page = str(tmp_path / "store"), tmp_path / "d.parquet", tmp_path / "pages" / "report.html"
    rows = [*(row(n, text=f"neno {n}") for n in range(4)), row(4, prompt=None, text=LONG), row(5, split="train")]
    dataset(path, rows)
    spec = published(tmp_path, storage)
    result = evaluate("text-x", storage, data=str(path), limit=2, out=page)
    assert result.adapter == spec == "text-x@1"
    assert (result.base, result.examples, result.generated) == ("debug-text", 5, 2)
    assert result.metrics["bits_per_byte"] != result.base_metrics["bits_per_byte"]  # type: ignore[index]
    assert "text-x@1: Swahili" in page.read_text(encoding="utf-8")


def test_data_must_be_named_when_the_adapter_does_not_know_it(tmp_path: Path) -> None:
    storage = str(tmp_path / "store")
    published(tmp_path, storage)
    with pytest.raises(UsageError, match="--data"):
        evaluate("text-x", storage)
    with pytest.raises(UsageError, match="text-x"):
        evaluate("text-y", storage)
