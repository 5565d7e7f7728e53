"""The text metrics: counted by hand, and equal to what sacrebleu prints for a whole corpus."""

import json

import numpy as np
import pytest
import sacrebleu

from kauli.models.metrics import METRICS, plain_name
from kauli.training.evaluation.scorers import (
    FINISH,
    SCORERS,
    chrf_signature,
    merge,
    score_answers,
    score_bits,
    sentence_chrf,
    tally,
    tally_from_json,
)

REFERENCES = ["Watu wote wamezaliwa huru", "paka mweusi", "nyumba kubwa ya bibi", "samaki"]
PREDICTIONS = ["Watu wote ni huru", "paka", "nyumba ya babu", ""]


def rows(*groups: str, language: str = "sw") -> list[dict[str, str]]:
    return [{"group": group, "language": language} for group in groups]


def test_bits_per_byte_is_all_bits_over_all_bytes() -> None:
    scored = score_bits(rows("a", "b", "a"), [(8.0, 4), (30.0, 10), (2.0, 2)])
    assert scored.groups == ("a", "b")
    assert scored.sums.tolist() == [[10.0, 6.0], [30.0, 10.0]]
    assert scored.value() == pytest.approx(40 / 16)  # not the mean of the rows' rates, 2.0


def test_chrf_is_that_of_sacrebleu() -> None:
    scored = score_answers(PREDICTIONS, REFERENCES, rows("a", "b", "a", "c"))["chrf"]
    assert scored.value() == pytest.approx(sacrebleu.corpus_chrf(PREDICTIONS, [REFERENCES]).score, abs=1e-9)
    assert sentence_chrf("paka", "paka mweusi") == pytest.approx(sacrebleu.sentence_chrf("paka", ["paka mweusi"]).score)
    assert score_answers(REFERENCES, REFERENCES, rows("a", "b", "c", "d"))["chrf"].value() == pytest.approx(100)
    assert chrf_signature().startswith("nrefs:1|case:mixed|eff:yes|nc:6|nw:0|space:no|version:")


def test_chrf_of_a_subset_of_groups_is_that_of_its_rows() -> None:
    scored = score_answers(PREDICTIONS, REFERENCES, rows("a", "b", "a", "c"))["chrf"]
    twice_a = scored.finish(np.array([2.0, 0.0, 1.0]) @ scored.sums)
    order = [0, 2, 0, 2, 3]
    expected = sacrebleu.corpus_chrf([PREDICTIONS[i] for i in order], [[REFERENCES[i] for i in order]]).score
    assert float(twice_a) == pytest.approx(expected, abs=1e-9)


def test_exact_is_blind_to_outer_space_and_unicode_form() -> None:
    composed, decomposed = "caf\u00e9", "cafe\u0301"
    scored = score_answers([decomposed + " \n", "paka "], [composed, "Paka"], rows("a", "b"))["exact"]
    assert scored.value() == 0.5


def test_distinct_2_counts_different_word_pairs() -> None:
    texts = ["a b a b", "b a", "x"]  # pairs: ab ba ab | ba | none -> 2 different of 4
    assert score_answers(texts, texts, rows("a", "b", "c"))["distinct_2"].value() == pytest.approx(2 / 4)
    assert np.isnan(score_answers(["x"], ["x"], rows("a"))["distinct_2"].value())


def test_self_bleu_is_one_for_copies_and_zero_for_strangers() -> None:
    same, apart = ["paka mweusi analala sana"] * 3, ["moja mbili", "tatu nne", "tano sita"]
    assert score_answers(same, same, rows("a", "b", "c"))["self_bleu"].value() == pytest.approx(1.0)
    assert score_answers(apart, apart, rows("a", "b", "c"))["self_bleu"].value() == pytest.approx(0.0)
    assert np.isnan(score_answers(["moja"], ["moja"], rows("a"))["self_bleu"].value())


def test_self_bleu_is_the_mean_of_sacrebleu_against_the_others() -> None:
    texts = ["paka mweusi analala hapa", "paka mweusi anakula hapa sasa", "mbwa mweupe analala hapa"]
    scorer = sacrebleu.BLEU(effective_order=True)
    expected = np.mean([scorer.sentence_score(t, [o for o in texts if o != t]).score for t in texts]) / 100
    assert score_answers(texts, texts, rows("a", "b", "c"))["self_bleu"].value() == pytest.approx(expected)


@pytest.mark.parametrize(
    ("language", "text", "share"),
    [
        ("am", "ሰላም abc", 3 / 6),
        ("be", "Усе людзі 123!", 1.0),
        ("sw", "Watu ሰላ", 4 / 6),
        ("ja", "日本のテレビ", 1.0),
    ],
)
def test_script_share_counts_letters(language: str, text: str, share: float) -> None:
    scored = score_answers([text], [text], rows("a", language=language))
    assert scored["script_share"].value() == pytest.approx(share)


def test_script_share_of_no_letters_is_undefined() -> None:
    assert np.isnan(score_answers(["123 !"], ["x"], rows("a"))["script_share"].value())


def test_merging_adds_the_sums_of_shared_groups() -> None:
    one = tally("exact", ["a", "b"], [[1, 1], [0, 1]])
    two = tally("exact", ["b", "c"], [[1, 1], [1, 2]])
    both = merge([one, two])
    assert both.groups == ("a", "b", "c")
    assert both.sums.tolist() == [[1, 1], [1, 2], [1, 2]]


def test_sums_survive_json() -> None:
    scored = score_answers(PREDICTIONS, REFERENCES, rows("a", "b", "a", "c"))
    for name, one in scored.items():
        back = tally_from_json(name, json.loads(json.dumps(one.to_json())))
        assert back.groups == one.groups
        assert back.value() == one.value()


@pytest.mark.parametrize("prefix", ["", "synthetic_", "new_pictures_synthetic_", "noise_10db_", "noise_0db_synthetic_"])
def test_a_plain_name_has_none_of_the_prefixes_that_stand_together(prefix: str) -> None:
    assert plain_name(prefix + "cer") == "cer"


def test_every_metric_of_answers_can_be_finished() -> None:
    assert {metric.finish for metric in METRICS.values()} <= {*FINISH, ""}
    assert all(METRICS[name].finish for name in SCORERS)


def test_macro_f1_is_the_mean_over_classes_that_occur() -> None:
    # rows are (class, guess) counts of 3 classes: a 3 right, 1 taken for b; b 1 right, 1 taken for a; c never occurs
    counts = np.array([3, 1, 0, 1, 1, 0, 0, 0, 0], dtype=float)
    # a: 2 * 3 / (4 + 4); b: 2 * 1 / (2 + 2)
    assert float(FINISH["macro_f1"](counts)) == pytest.approx((6 / 8 + 2 / 4) / 2)
    # a third class that is guessed once for a, and never right, counts with 0: a has 5 rows then
    counts[2] = 1
    assert float(FINISH["macro_f1"](counts)) == pytest.approx((6 / 9 + 2 / 4 + 0) / 3)
    assert FINISH["macro_f1"](np.stack([counts, 2 * counts])) == pytest.approx([(6 / 9 + 1 / 2) / 3] * 2)


def test_the_median_rank_of_an_even_number_of_queries_is_the_lower_middle() -> None:
    sums = np.zeros(8)
    sums[[1, 2, 5, 6]] = 1  # ranks 2, 3, 6, 7
    assert float(FINISH["median_rank"](sums)) == 3.0
    sums[5] = 2  # 2, 3, 6, 6, 7
    assert float(FINISH["median_rank"](sums)) == 6.0


def test_each_kind_of_answer_has_its_metrics() -> None:
    rates = score_answers(["a"], ["a"], rows("g"), ("description", "transcript"))
    assert list(rates) == ["chrf", "exact", "cer", "wer", "looped"]
