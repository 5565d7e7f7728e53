"""What the demo prints: figures in sentences, tables that fit, steps with their times; and which lessons it has."""

import io
import subprocess
import sys
from pathlib import Path

import pytest
from rich.cells import cell_len

from kauli.deploy.cli.demo_lessons import lessons
from kauli.deploy.cli.demo_output import WIDTH, Story, any_right, quiet, sample_table, sentence
from kauli.models.errors import UsageError
from kauli.training.evaluation.results import EvalResult, Scores
from kauli.training.evaluation.scorers import tally


def result(cer: float, base: float) -> EvalResult:
    """On two clips of 100 characters."""
    ours, theirs = (
        Scores({"be": {"cer": tally("cer", ["a", "b"], [[100 * rate, 100.0]] * 2)}}) for rate in (cer, base)
    )
    return EvalResult(
        adapter="x@1", base="whisper", languages=("be",), split="test", seed=0, examples=2, groups=2, generated=2,
        scores=ours, base_scores=theirs,
    )  # fmt: skip


def test_a_figure_is_a_sentence() -> None:
    assert sentence(result(0.17, 0.22), "cer", "2 held-out clips") == (
        "Character error rate: 0.170 on 2 held-out clips; its base 0.220 (lower is better)."
    )


def test_a_table_marks_what_is_right_and_fits_a_terminal() -> None:
    lines = sample_table(
        [
            {"reference": "Пажарная машына.", "base": "пожарная машина.", "adapter": "Пажарная  машына."},
            {"reference": "x " * 80, "base": "消防車" * 40, "adapter": "y"},
        ]
    ).splitlines()
    assert lines[0].split() == ["reference", "base", "adapter"]
    assert lines[1].endswith("  ✓ Пажарная машына.")
    assert lines[1].count("✓") == 1
    assert "…" in lines[2]
    assert max(cell_len(line) for line in lines) <= WIDTH
    assert lines[0].index("adapter") == lines[1].index("✓")


def test_samples_are_worth_showing_where_an_answer_is_right() -> None:
    assert any_right([{"reference": "a", "adapter": "b"}, {"reference": "кот ", "adapter": "кот"}])
    assert not any_right([{"reference": "a", "base": "a", "adapter": "kwa kwa"}])


def test_a_step_is_one_line_with_its_time_and_what_is_next() -> None:
    out = io.StringIO()
    story = Story(out)
    with story.step("Trained x", "asking it"):
        pass
    assert out.getvalue() == " 0:00  Trained x (0 s). Next: asking it.\n"
    assert [line.split(" s  ")[1] for line in story.times().splitlines()] == ["Trained x", "in all"]


def test_what_libraries_print_goes_to_the_log(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    with quiet(tmp_path / "demo" / "log.txt") as screen:
        print("seen", file=screen, flush=True)
        subprocess.run([sys.executable, "-c", "import sys; print('a'); print('b', file=sys.stderr)"], check=True)
    print("after", flush=True)
    assert sorted((tmp_path / "demo" / "log.txt").read_text().split()) == ["a", "b"]
    shown = capfd.readouterr()
    assert (shown.out, shown.err) == ("seen\nafter\n", "")


def test_lessons_are_chosen_by_task_and_begin_with_speech(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("KAULI_HOME", str(tmp_path))
    assert [one.recipe for one in lessons([], later=False)] == ["transcribe-be", "head-topics", "text-sw"]
    assert [one.recipe for one in lessons(["text", "head"], later=False)] == ["head-topics", "text-sw"]
    assert [one.recipe for one in lessons(["describe"], later=True)] == ["describe-multi"]
    assert [one.recipe for one in lessons(["translate"], later=True)] == ["translate-sw"]
    with pytest.raises(UsageError, match=r"--tasks: 'speach' is none of transcribe, head, text, translate, describe"):
        lessons(["speach"], later=False)
