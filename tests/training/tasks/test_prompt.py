"""A prompt from recipe to registry on the debug base: what is published, answered, measured, taken up again."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from kauli.models.adapters.card import Prompting
from kauli.models.adapters.registry import Registry
from kauli.models.bases.find import find_base
from kauli.models.errors import KauliError, UsageError
from kauli.models.requests import TextRequest
from kauli.models.text.task import TextTask
from kauli.models.text.translation import translation_prompt
from kauli.training.data.schema import write_parquet
from kauli.training.data.starter import STAMP
from kauli.training.evaluation.run import evaluate
from kauli.training.loop.session import LocalSession
from kauli.training.recipe import Recipe
from kauli.training.recipe_file import load_recipe, parse_recipe
from kauli.training.train import TrainResult, train
from support.text_adapters import publish_random

WORDS = ("red", "blue", "car", "house", "door", "window", "file", "open", "close", "save", "new", "old")


@pytest.fixture(scope="module", autouse=True)
def home(tmp_path_factory: pytest.TempPathFactory) -> Any:
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("KAULI_HOME", str(tmp_path_factory.mktemp("home")))
        yield


def data(folder: Path, test: Callable[[str], str] = lambda text: text) -> str:
    """60 pairs whose translations are the words read backwards; `test` changes those of the test split."""
    folder.mkdir()
    rows = []
    for at in range(60):
        split = "test" if at < 8 else "validation" if at < 20 else "train"
        english = f"{WORDS[at % 12]} {WORDS[at * 5 % 12]} {WORDS[at * 7 % 11]}"
        text = " ".join(word[::-1] for word in english.split())
        rows.append(
            {
                "id": str(at), "group": str(at), "language": "am", "input": english, "input_language": "en",
                "text": test(text) if split == "test" else text, "source": "made-up", "licence": "CC0-1.0",
                "synthetic": False, "split": split,
            }
        )  # fmt: skip
    write_parquet(rows, folder / "am.parquet", {STAMP: b'{"build": "x"}'})
    return str(folder)


def recipe(source: str, **changes: Any) -> Recipe:
    content = {
        "name": "prompt-x", "task": "translate", "base": "debug", "language": "am", "data": source,
        "method": {"kind": "prompt", "trials": 14}, "prompting": {"examples": 2},
    }  # fmt: skip
    return parse_recipe({**content, **changes})


def run(one: Recipe, storage: Path) -> TrainResult:
    return train(one, str(storage), use_ray=False, generated=2)


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> str:
    return data(tmp_path_factory.mktemp("data") / "rows")


@pytest.fixture(scope="module")
def store(source: str, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("store")
    assert list(run(recipe(source), folder).aliases) == ["latest"]
    return folder


def test_the_best_prompt_is_published_without_weights(store: Path) -> None:
    registry = Registry(str(store))
    folder, card = registry.fetch("prompt-x"), registry.card("prompt-x")
    assert sorted(path.name for path in folder.iterdir()) == ["README.md", "card.json", "prompts.json"]
    assert (card.task, card.method["kind"], card.translation is not None) == ("translate", "prompt", True)
    assert card.translation is not None
    assert card.translation.pairs == [("am", "en"), ("en", "am")]
    assert card.translation.compared == 14
    listed = json.loads((folder / "prompts.json").read_text())
    assert len(listed) == 14
    assert Prompting.model_validate(listed[0]["prompting"]) == card.translation.prompting
    full = [one for one in listed if one["rows"] == 12]
    assert listed[0]["bits_per_byte"] == min(one["bits_per_byte"] for one in full)
    assert card.validation is not None
    assert card.validation.adapter == pytest.approx(listed[0]["bits_per_byte"])
    assert card.validation.adapter < card.validation.base  # type: ignore[operator]
    page = (folder / "README.md").read_text()
    assert "14 prompts compared on validation rows" in page
    assert "kauli translate" in page
    assert "peft" not in page.partition("## Training")[0]
    assert [path.name for path in (store / "runs").rglob("checkpoint*")] == []


def test_it_is_measured_beside_the_base_without_examples(store: Path) -> None:
    result = evaluate("prompt-x", str(store), limit=2)
    card = Registry(str(store)).card("prompt-x")
    assert result.metrics["bits_per_byte"] == pytest.approx(card.metrics["bits_per_byte"])
    assert result.base_metrics != result.metrics
    assert {"usual_prompt", "memory", "copy", "no_memory"} <= result.baselines.keys()
    assert "prompts compared on validation rows to choose it: 14" in result.notes
    assert "reverse_bits_per_byte" in result.metrics


def test_the_base_answers_it_in_a_batch_with_adapters(store: Path, tmp_path: Path) -> None:
    base = find_base("debug", task="text")
    task = TextTask.load(base)
    card = Registry(str(store)).card("prompt-x")
    assert card.translation is not None
    prompt = translation_prompt("red car", "en", "am", card.translation.prompting)
    request = TextRequest.of_prompt(prompt, max_tokens=6, no_repeat=0)

    def answers(adapters: list[str | None]) -> list[str]:
        texts = [""] * len(adapters)
        for chunks in task.generate([request] * len(adapters), adapters):
            for chunk in chunks:
                texts[chunk.row] += chunk.text
        return texts

    alone = answers([None])[0]
    task.add_adapter("prompt", Registry(str(store)).fetch("prompt-x"))
    publish_random(tmp_path, "text-am", "am", 1, base)
    task.add_adapter("lora", Registry(str(tmp_path)).fetch("text-am"))
    mixed = answers(["lora", "prompt", None, "lora", "prompt"])
    assert mixed[1] == mixed[2] == mixed[4] == alone
    assert mixed[0] == mixed[3] != alone
    rows = [{"prompt": prompt, "text": "red car"}]
    assert task.bits(rows, "prompt")[0] == pytest.approx(task.bits(rows, None)[0])
    task.remove_adapter("prompt")
    assert task.adapters() == ["lora"]


def test_the_test_split_decides_nothing(source: str, store: Path, tmp_path: Path) -> None:
    run(recipe(data(tmp_path / "other", lambda text: text.upper() * 3)), tmp_path)
    ours, theirs = (Registry(str(one)).fetch("prompt-x") / "prompts.json" for one in (store, tmp_path))
    assert ours.read_text() == theirs.read_text()


def test_one_trial_publishes_the_recipe_s_prompt(source: str, tmp_path: Path) -> None:
    prompting = {"examples": 3, "instruction": "In {target_language}, please.", "order": "nearest_first"}
    run(recipe(source, method={"kind": "prompt"}, prompting=prompting), tmp_path)
    card = Registry(str(tmp_path)).card("prompt-x@1")
    assert card.translation is not None
    assert card.translation.prompting == Prompting.model_validate(prompting)
    assert card.translation.compared == 1


def test_a_killed_search_goes_on_where_it_was(source: str, store: Path, tmp_path: Path, monkeypatch: Any) -> None:
    scored = [0]
    bits, report = TextTask.bits, LocalSession.report

    def counted(self: TextTask, rows: Any, adapter: str | None) -> Any:
        scored[0] += len(rows) * (adapter is None)
        return bits(self, rows, adapter)

    def killed(self: LocalSession, metrics: dict[str, Any], checkpoint: Path | None) -> None:
        report(self, metrics, checkpoint)
        if metrics["step"] > 5:
            raise KeyboardInterrupt

    monkeypatch.setattr(TextTask, "bits", counted)
    run(recipe(source), tmp_path / "whole")
    undisturbed, scored[0] = scored[0], 0
    monkeypatch.setattr(LocalSession, "report", killed)
    with pytest.raises(KeyboardInterrupt):
        run(recipe(source), tmp_path / "killed")
    first, scored[0] = scored[0], 0
    assert not Registry(str(tmp_path / "killed")).names()
    monkeypatch.setattr(LocalSession, "report", report)
    run(recipe(source), tmp_path / "killed")
    assert first > 0
    assert first + scored[0] == undisturbed
    there = Registry(str(tmp_path / "killed")).fetch("prompt-x@1") / "prompts.json"
    assert there.read_text() == (Registry(str(store)).fetch("prompt-x") / "prompts.json").read_text()


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"method": {"kind": "prompt", "trials": 0}}, "method.prompt.trials"),
        ({"scale": {"workers": 2}}, "scale.workers 2: prompts are compared by one worker"),
        ({"start_from": "text-am"}, "start_from"),
        ({"method": {"kind": "prompt", "rank": 4}}, "unknown key 'method.prompt.rank'"),
    ],
)
def test_what_a_recipe_can_t_say(source: str, changes: dict[str, Any], message: str) -> None:
    with pytest.raises(UsageError, match=message):
        recipe(source, **changes)


def test_a_folder_without_weights_and_prompts_is_no_adapter(store: Path, tmp_path: Path) -> None:
    registry = Registry(str(store))
    card = registry.card("prompt-x")
    (tmp_path / "empty").mkdir()
    with pytest.raises(KauliError, match="holds no weights"):
        registry.publish(tmp_path / "empty", card.model_copy(update={"files": {}}))


def test_the_shipped_recipe_is_read() -> None:
    one = load_recipe("translate-am-prompt")
    assert one.method.kind == "prompt"
