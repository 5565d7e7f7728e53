"""Error rates of transcripts: edits counted by hand, the same as jiwer's where it counts letters as we do."""

import json
import re
import unicodedata
from collections.abc import Sequence

import jiwer
import numpy as np
import pytest

from kauli.models.metrics import SYNTHETIC, lower_is_better
from kauli.training.evaluation.error_rates import NORMALISATION, normalised
from kauli.training.evaluation.intervals import difference, interval
from kauli.training.evaluation.report import render_report
from kauli.training.evaluation.results import EvalResult, Scores
from kauli.training.evaluation.scorers import Row, Tally, score_answers, score_bits, tally_from_json


def rows(*groups: str) -> list[dict[str, str]]:
    return [{"group": group} for group in groups]


def score_transcripts(predictions: Sequence[str], references: Sequence[str], of: Sequence[Row]) -> dict[str, Tally]:
    return score_answers(predictions, references, of, ("transcript",))


def sums(prediction: str, reference: str, metric: str) -> list[float]:
    """Edits and length of one transcript."""
    found: list[float] = score_transcripts([prediction], [reference], rows("a"))[metric].sums[0].tolist()
    return found


@pytest.mark.parametrize(
    ("text", "plain"),
    [
        ("  Ружовы\n ФЛАМІНГА. ", "ружовы фламінга"),
        ("сям’я, сямʼя, сям`я, сям´я і сям＇я", "сям'я сям'я сям'я сям'я і сям'я"),
        ("‘Слон’ — «кот», 'дом'", "слон кот дом"),
        ("чырвона-белы", "чырвона белы"),
        ("ሰላም፡ ለዓለም። እንዴት፣ ነህ፧", "ሰላም ለዓለም እንዴት ነህ"),
        ("Кы\u0301ргыз", "кы\u0301ргыз"),
        ("cafe\u0301", "café"),
        ("Straße", "strasse"),
        ("5 € + 10 % = ❤️", "5 10"),
        ("a_b/c\tд\u00a0е", "a b c д е"),
        ("co\u00adop \ufeffмова", "coop мова"),
        ("Հայերեն՝ հա՞յ։", "հայերեն հա յ"),
        ("«»…", ""),
        ("", ""),
    ],
)
def test_normalised_text_is_words_and_single_spaces(text: str, plain: str) -> None:
    assert normalised(text) == plain
    assert normalised(plain) == plain
    assert normalised(unicodedata.normalize("NFD", text)) == plain


@pytest.mark.parametrize(
    ("prediction", "reference", "cer", "wer"),
    [
        ("слон", "Слон.", [0, 4], [0, 1]),
        ("слан", "слон", [1, 4], [1, 1]),
        ("слоны", "слон", [1, 4], [1, 1]),
        ("сон", "слон", [1, 4], [1, 1]),
        ("кот і дом", "кот ідом", [1, 8], [2, 2]),  # one space too many; one word wrong, one too many
        ("", "кот дом", [7, 7], [2, 2]),
        ("слон слон слон", "слон", [10, 4], [2, 1]),  # above 1
        ("да дому", "", [7, 0], [2, 0]),  # silence
        ("", "...", [0, 0], [0, 0]),
        ("ዝሆ", "ዝሆን", [1, 3], [1, 1]),
    ],
)
def test_edits_by_hand(prediction: str, reference: str, cer: list[float], wer: list[float]) -> None:
    assert sums(prediction, reference, "cer") == cer
    assert sums(prediction, reference, "wer") == wer


def test_a_letter_with_its_marks_counts_once() -> None:
    assert sums("ы", "ы\u0301", "cer") == [1, 1]  # NFC has no letter for the two
    assert sums("കി", "കീ", "cer") == [1, 1]
    assert sums("കി തി", "കീ തി", "cer") == [1, 3]
    assert sums("é", "e\u0301", "cer") == [0, 1]


def test_rates_are_those_of_jiwer_on_plain_letters() -> None:
    random = np.random.default_rng(0)
    words = ["paka", "mbwa", "nyumba", "kubwa", "ya", "bibi", "samaki"]
    references = [" ".join(random.choice(words, 5)) for _ in range(30)]
    answers = ["".join(letter for letter in text if random.random() > 0.2).strip() or "x" for text in references]
    answers = [" ".join(text.split()) for text in answers]
    found = score_transcripts(answers, references, rows(*(f"g{place % 7}" for place in range(30))))
    assert found["cer"].value() == pytest.approx(jiwer.cer(references, answers))
    assert found["wer"].value() == pytest.approx(jiwer.wer(references, answers))
    assert 0.1 < found["cer"].value() < 0.3


def test_sums_are_kept_by_group_and_long_rows_weigh_more() -> None:
    found = score_transcripts(["кат", "слон", "дом"], ["кот", "слон", "дама"], rows("b", "a", "b"))
    assert found["cer"].groups == ("a", "b")
    assert found["cer"].sums.tolist() == [[0, 4], [1 + 2, 3 + 4]]
    assert found["cer"].value() == pytest.approx(3 / 11)
    assert found["wer"].value() == pytest.approx(2 / 3)


def test_the_share_of_loops_is_of_the_transcripts() -> None:
    found = score_transcripts(["слон", "слон " * 30, "", "ха-ха"], ["слон"] * 4, rows("a", "b", "c", "d"))["looped"]
    assert found.value() == 0.25


def test_nothing_said_at_all_has_no_rate() -> None:
    found = score_transcripts(["", "а"], ["", "."], rows("a", "b"))
    assert np.isnan(found["cer"].value())
    assert np.isnan(found["wer"].value())


def test_intervals_and_paired_differences_are_made_of_the_sums() -> None:
    references = [f"слон нумар {place}" for place in range(40)]
    groups = rows(*(f"g{place // 2}" for place in range(40)))
    worse = [text.replace("нумар", "намор") if place % 3 else "" for place, text in enumerate(references)]
    better = [text.replace("нумар", "нумор") if place % 3 else text for place, text in enumerate(references)]
    ours, theirs = (score_transcripts(answers, references, groups)["cer"] for answers in (better, worse))
    one = interval(ours.sums, ours.finish)
    assert one.value == pytest.approx(ours.value())
    assert one.low < one.value < one.high
    change = difference(ours.sums, theirs.sums, ours.finish)
    assert change.high < 0
    assert change.value == pytest.approx(ours.value() - theirs.value())


def test_sums_survive_json() -> None:
    for name, one in score_transcripts(["кат", "слон"], ["кот", "слон"], rows("a", "b")).items():
        assert tally_from_json(name, json.loads(json.dumps(one.to_json()))).value() == one.value()


def evaluation(prefix: str) -> EvalResult:
    references = [f"слон нумар {place}" for place in range(40)]
    groups = rows(*(f"g{place}" for place in range(40)))

    def scores(answers: list[str]) -> Scores:
        found = {
            "bits_per_byte": score_bits(groups, [(9.0, 12)] * 40),
            **score_transcripts(answers, references, groups),
        }
        return Scores({"be": {prefix + name: one for name, one in found.items()}})

    return EvalResult(
        adapter="transcribe-be@1",
        base="whisper-base",
        languages=("be",),
        split="test",
        seed=0,
        examples=40,
        groups=40,
        generated=0,
        scores=scores([text.replace("н", "м", 1) for text in references]),
        base_scores=scores([text.replace("н", "м") for text in references]),
        notes=(NORMALISATION,),
        task="transcribe",
    )


@pytest.mark.parametrize(("prefix", "where"), [("", ""), (SYNTHETIC, " (synthetic rows)")])
def test_reports_show_the_rates_and_call_fewer_errors_better(prefix: str, where: str) -> None:
    result = evaluation(prefix)
    assert list(result.metrics) == [prefix + name for name in ("bits_per_byte", "cer", "wer", "looped")]
    page = render_report(result)
    on = ", on synthetic rows," if where else ""
    assert f"has a character error rate{on} of 7." in page
    labels = ("Bits per byte", "Character error rate", "Word error rate", "Loops")
    assert re.findall(r'<td>(.*?)<div class="what">', page) == [label + where for label in labels]
    assert "points" in page
    assert "better" in page.split("Metrics")[1]
    assert "worse" not in page.split("Metrics")[1].lower().split("how to read")[0]
    assert NORMALISATION[1:20] in page


def test_fewer_errors_are_better() -> None:
    assert all(lower_is_better(name) for name in ("cer", "noise_0db_wer", "synthetic_looped"))
