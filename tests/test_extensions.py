"""What an extension touches, counted: a toy of each kind from one new file (`support/toys/`) and some table lines.

Each is taken through training (without Ray), evaluation, publication and service on debug bases. An edit is a line in a
table that exists; the tables are patched before anything that reads them is imported, in a process of its own, as an
edit of the file would be.
"""

import json
import os
import subprocess
import sys
from collections.abc import MutableMapping
from contextlib import ExitStack, closing
from pathlib import Path
from typing import Any

import pytest

ALLOWED = {"task": 5, "kind": 2, "augmentation": 2, "metric": 2, "format": 2}
WORDS = ("moto", "maji", "ndege", "samaki", "mti", "jua", "mwezi", "nyota", "mlima", "mto", "bahari", "upepo")


class Edits:
    """Lines added to tables."""

    def __init__(self) -> None:
        self.count = 0

    def add(self, table: Any, name: str, row: Any) -> None:
        """Add a row to a table of the product."""
        assert isinstance(table, MutableMapping)
        assert name not in table
        table[name] = row
        self.count += 1


def rows(count: int = 48) -> list[tuple[str, str]]:
    """(prompt, text)."""
    return [(f"sema neno {at}", f"{WORDS[at % 12]} {at} {WORDS[at * 5 % 12]}") for at in range(count)]


def trained(folder: Path, **keys: Any) -> tuple[Any, Any, tuple[str, int]]:
    """A recipe of 6 steps trained, published, and evaluated again; (result, card, `answered`)."""
    from kauli.models.adapters.registry import Registry
    from kauli.training.evaluation.run import evaluate
    from kauli.training.recipe_file import parse_recipe
    from kauli.training.train import train

    data = folder / "rows.jsonl"
    lines = [{"prompt": prompt, "text": text, "language": "sw"} for prompt, text in rows()]
    data.write_text("\n".join(json.dumps(line) for line in lines))
    content = {
        "name": "toy", "base": "debug", "language": "sw", "data": str(data),
        "train": {"steps": 6, "batch_tokens": 600, "max_length": 128, "validate_every": 3, "learning_rate": 0.02},
    }  # fmt: skip
    result = train(parse_recipe(content | keys), str(folder / "store"), use_ray=False, generated=2)
    again = evaluate("toy@1", str(folder / "store"), out=folder / "report.html", limit=2)
    assert again.metrics == pytest.approx(result.metrics)
    assert again.base_metrics is not None
    assert again.metrics["bits_per_byte"] < again.base_metrics["bits_per_byte"]  # type: ignore[operator]
    card = Registry(str(folder / "store")).card("toy")
    return result, card, answered(folder / "store", str(keys.get("task", "text")))


def answered(storage: Path, task: str) -> tuple[str, int]:
    """What the service's own workers answer in this process, and the number of its tokens: another text than the bare
    base's.
    """
    from kauli.models.requests import TextRequest
    from kauli.serving.local import Local

    request = TextRequest.of_prompt("sema neno 3", max_tokens=12, ignore_eos=True)
    answers = []
    for model in ("toy", "debug"):
        with closing(Local(str(storage))) as local:
            route = local.choose(task if model == "toy" else "text", model, None)
            assert route.worker == (task if model == "toy" else "text")
            answers.append(local.run(local.answer(route, request))[1])
    assert answers[0].text != answers[1].text
    return answers[0].text, answers[0].completion_tokens


def asked_over_http(storage: Path, path: str, **body: Any) -> tuple[str, int]:
    """The adapter that answers at a path of the service, and the number of its tokens.

    The worker for text runs beside it, on the same base.
    """
    from fastapi.testclient import TestClient

    from kauli.models.adapters.registry import Registry
    from kauli.models.tasks import resolve
    from kauli.serving.http.app import create_app
    from kauli.serving.routing import Catalogue, public_name
    from kauli.serving.settings import ServeArgs
    from kauli.serving.tasks import WORKERS
    from kauli.serving.topology import choose_topology

    args = ServeArgs(storage=str(storage), tasks=("text", "reverse"), bases=("debug",))
    topology = choose_topology(Registry(str(storage)), args)
    with ExitStack() as stack:
        workers = {
            worker: {public_name(base): stack.enter_context(closing(resolve(WORKERS[worker].build)(args, base, True)))}
            for worker, [base] in topology.bases.items()
        }
        assert len(workers) == 2
        catalogue = Catalogue(Registry(str(storage)), topology.answering, tasks=topology.tasks)
        client = TestClient(create_app(workers, catalogue, args), base_url="http://127.0.0.1:8000")
        assert client.get("/health").status_code == 200
        options = {"prompt": "sema neno 3", "max_tokens": 12, "ignore_eos": True}
        answer = client.post(path, json=options | body)
        assert answer.status_code == 200, answer.text
        return answer.headers["X-Kauli-Adapter"], answer.json()["tokens"]


def extend_by_a_task(folder: Path, edits: Edits) -> None:
    import kauli.models.tasks
    import kauli.serving.tasks
    import kauli.training.tasks.table
    from support.toys import task

    edits.add(kauli.models.tasks.TASKS, "reverse", task.MODELS)
    edits.add(kauli.training.tasks.table.TASKS, "reverse", task.TRAINING)
    edits.add(kauli.serving.tasks.TASKS, "reverse", task.SERVING)
    edits.add(kauli.serving.tasks.WORKERS, "reverse", task.WORKER)
    result, card, (_, tokens) = trained(folder, task="reverse")
    assert tokens == task.MOST_TOKENS  # of 12 that were asked for: its own worker answered
    assert asked_over_http(folder / "store", "/v1/reverse", model="reverse", language="sw") == ("toy@1", tokens)
    assert (result.evaluation.task, card.task, card.method["kind"]) == ("reverse", "reverse", "lora")
    assert "Ask toy@1 for anything backwards." in (Path(result.path) / "README.md").read_text()
    assert {sample.reference for sample in result.evaluation.samples} & {text[::-1] for _, text in rows()}


def extend_by_a_kind(folder: Path, edits: Edits) -> None:
    import kauli.models.adapters.kinds.table
    from support.toys.kind import LoHa

    edits.add(kauli.models.adapters.kinds.table.KINDS, "loha", LoHa)
    result, card, _ = trained(folder, method={"kind": "loha", "rank": 3})
    assert card.method == {"kind": "loha", "rank": 3}
    assert json.loads((Path(result.path) / "adapter_config.json").read_text())["peft_type"] == "LOHA"
    trained_on, base = card.validation.adapter, card.validation.base
    assert trained_on < base


def extend_by_a_augmentation(folder: Path, edits: Edits) -> None:
    import kauli.training.augment.table

    place = "support.toys.augmentation:DropWord"
    edits.add(kauli.training.augment.table.AUGMENTATIONS["text"], "drop_word", place)
    plain, augmented = folder / "plain", folder / "augmented"
    seen = []
    for where, keys in (
        (plain, {}),
        (augmented, {"augment": [{"kind": "drop_word", "p": 1.0}], "text": {"views": 3}}),
    ):
        where.mkdir()
        result, _, _ = trained(where, **keys)
        seen.append((Path(result.path) / "adapter_model.safetensors").read_bytes())
    assert seen[0] != seen[1]
    from kauli.training.augment.text import augmented_rows
    from support.toys.augmentation import DropWord

    row = {"id": "1", "prompt": "sema neno 1", "text": "moto", "language": "sw"}
    assert augmented_rows([row], [DropWord(p=1.0)], 0) == [row]
    views = [augmented_rows([row], [DropWord(p=1.0)], view)[0]["prompt"] for view in range(1, 9)]
    assert {len(one.split()) for one in views} == {2}
    assert len(set(views)) > 1
    assert views == [augmented_rows([row], [DropWord(p=1.0)], view)[0]["prompt"] for view in range(1, 9)]


def extend_by_a_metric(folder: Path, edits: Edits) -> None:
    import kauli.models.metrics
    import kauli.training.evaluation.scorers
    from support.toys import metric

    edits.add(kauli.models.metrics.METRICS, "length_ratio", metric.LENGTH)
    edits.add(kauli.training.evaluation.scorers.SCORERS, "length_ratio", metric.SCORER)
    result, card, _ = trained(folder)
    assert result.metrics["length_ratio"] > 0
    assert card.metrics["length_ratio"] == result.metrics["length_ratio"]
    assert {"length_ratio"} <= result.evaluation.intervals.keys()
    for page in (Path(result.path) / "README.md", folder / "report.html"):
        assert "Length of the answers" in page.read_text()


def extend_by_a_format(folder: Path, edits: Edits) -> None:
    import kauli.training.data.formats.table
    from support.toys.format import read_bars

    edits.add(kauli.training.data.formats.table.FORMATS, ".bars", read_bars)
    data = folder / "mine.bars"
    data.write_text("".join(f"{prompt}|{text}\n" for prompt, text in rows()))
    _, card, _ = trained(folder, data=str(data))
    assert card.data.rows > 20
    from kauli.models.errors import UsageError
    from kauli.training.data.dataset import load_data

    data.write_text("no bar here\n")
    with pytest.raises(UsageError, match=r"mine\.bars line 1: no bar"):
        load_data(str(data))


@pytest.mark.parametrize("name", ALLOWED)
def test_an_extension_is_one_file_and_few_lines(name: str, tmp_path: Path) -> None:
    code = (
        "import sys, test_extensions\nfrom pathlib import Path\nedits = test_extensions.Edits()\n"
        "getattr(test_extensions, 'extend_by_a_' + sys.argv[1])(Path(sys.argv[2]), edits)\nprint(edits.count)"
    )
    home = {"HOME": str(tmp_path), "KAULI_HOME": str(tmp_path / "home")}
    done = subprocess.run(
        [sys.executable, "-c", code, name, str(tmp_path)], cwd=Path(__file__).parent, env=os.environ | home,
        capture_output=True, text=True,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert 1 <= int(done.stdout.splitlines()[-1]) <= ALLOWED[name]
