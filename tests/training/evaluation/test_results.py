"""The values that headlines rest on: differences from baselines and the gain of the right image, counted by hand."""

import pytest

from kauli.training.evaluation.results import EvalResult, Scores, Verdict, format_value
from kauli.training.evaluation.scorers import Tally, tally


def bits(*rates: float, size: float = 4.0) -> Tally:
    """Bits per byte of one group each, `size` bytes long."""
    return tally("bits_per_byte", [f"g{n}" for n in range(len(rates))], [[rate * size, size] for rate in rates])


def exact(*right: float) -> Tally:
    return tally("exact", [f"g{n}" for n in range(len(right))], [[one, 1.0] for one in right])


def evaluation(seed: int = 0) -> EvalResult:
    second = "new_pictures_bits_per_byte"
    ours = {"sw": {"bits_per_byte": bits(1.0, 2.0), "exact": exact(1, 0)}, "am": {second: bits(3.0)}}
    base = {"sw": {"bits_per_byte": bits(2.0, 2.5), "exact": exact(1, 1)}, "am": {second: bits(3.5)}}
    wrong = {"sw": {"bits_per_byte": bits(2.0, 2.5)}, "am": {second: bits(4.0)}}
    frequent = {"sw": {"exact": exact(0, 0)}, "am": {}}
    return EvalResult(
        "describe-x@1", "base", ("sw", "am"), "test", seed, 3, 2, 3, Scores(ours), Scores(base),
        task="describe", baselines={"wrong_image": Scores(wrong), "most_frequent": Scores(frequent)},
    )  # fmt: skip


def test_the_gain_of_the_right_image_is_a_quotient_of_all_bits() -> None:
    gain = evaluation().wrong_image_gain()
    assert set(gain) == {"bits_per_byte", "new_pictures_bits_per_byte"}
    # (4 + 8) / 8 bytes against (8 + 10) / 8: -1/3; by group -1/2 and -1/5, the ends of the resamples of two groups
    one = gain["bits_per_byte"]
    assert [one.value, one.low, one.high] == pytest.approx([-1 / 3, -1 / 2, -1 / 5])
    assert gain["new_pictures_bits_per_byte"].value == pytest.approx(3 / 4 - 1)
    assert not gain["new_pictures_bits_per_byte"].known  # of one group
    assert set(evaluation().wrong_image_gain(["sw"])) == {"bits_per_byte"}


def test_baselines_are_taken_off_the_adapter_in_the_metrics_that_both_have() -> None:
    against = evaluation().against_baselines()
    assert {name: list(found) for name, found in against.items()} == {
        "wrong_image": ["bits_per_byte", "new_pictures_bits_per_byte"], "most_frequent": ["exact"],
    }  # fmt: skip
    bits = against["wrong_image"]["bits_per_byte"]
    assert [bits.value, bits.low, bits.high] == pytest.approx([1.5 - 2.25, -1.0, -0.5])
    exact = against["most_frequent"]["exact"]
    assert [exact.value, exact.low, exact.high] == pytest.approx([0.5, 0.0, 1.0])
    assert list(evaluation().against_baselines(["am"])["wrong_image"]) == ["new_pictures_bits_per_byte"]


def test_the_difference_is_adapter_minus_base() -> None:
    change = evaluation().differences["bits_per_byte"]
    assert [change.value, change.low, change.high] == pytest.approx([-0.75, -1.0, -0.5])


def test_the_terminal_shows_both() -> None:
    text = evaluation().summary()
    assert "bits_per_byte, the right image against a wrong one: -33.3% [-50.0%, -20.0%]" in text
    assert "Swahili beside the baselines" in text


@pytest.mark.parametrize(
    ("metric", "value", "text"),
    [
        ("chrf", 38.123, "38.1"),
        ("synthetic_chrf", 0.04, "0.0"),
        ("noise_0db_cer", 0.12345, "0.123"),
        ("wer", None, "-"),
    ],
)
def test_a_metric_has_its_own_digits(metric: str, value: float | None, text: str) -> None:
    assert format_value(metric, value) == text


def judged(**figures: tuple[Tally, Tally]) -> Verdict:
    ours, base = ({"sw": {name: both[at] for name, both in figures.items()}} for at in (0, 1))
    return EvalResult("x@1", "debug", ("sw",), "test", 0, 3, 3, 3, Scores(ours), Scores(base)).verdict


def rate(metric: str, *values: float) -> Tally:
    return tally(metric, [f"g{n}" for n in range(len(values))], [[value, 1.0] for value in values])


@pytest.mark.parametrize(
    ("figures", "better", "text"),
    [
        ({"bits_per_byte": (bits(1, 2), bits(2, 3))}, True, "x@1 is better than its base debug: "
         "bits per byte 1.500, base 2.500."),
        ({"bits_per_byte": (bits(2, 3), bits(1, 2))}, False, "x@1 is worse than its base debug: "
         "bits per byte 2.500, base 1.500."),
        ({"bits_per_byte": (bits(2, 2), bits(1, 3))}, False, "x@1 is not better than its base debug: "
         "bits per byte 2.000, base 2.000 (no clear difference)."),
        ({"bits_per_byte": (bits(1), bits(2))}, False, "x@1 is not better than its base debug: "
         "bits per byte 1.000, base 2.000 (no clear difference)."),  # of one group
        # The answers decide, and other figures are said
        ({"bits_per_byte": (bits(1, 2), bits(2, 3)), "accuracy": (rate("accuracy", 1, 0), rate("accuracy", 0, 1))},
         False, "x@1 is not better than its base debug: accuracy 50.0 %, base 50.0 % (no clear difference); "
         "bits per byte 1.500, base 2.500 (better)."),
        ({"cer": (rate("cer", 0.1, 0.3), rate("cer", 0.5, 0.5)), "wer": (rate("wer", 0.2, 0.6), rate("wer", 0.4, 0.4))},
         True, "x@1 is better than its base debug: character error rate 20.0 %, base 50.0 %; "
         "word error rate 40.0 %, base 40.0 % (no clear difference)."),
        ({"cer": (rate("cer", 0.1, 0.3), rate("cer", 0.5, 0.5)), "wer": (rate("wer", 0.5, 0.6), rate("wer", 0.4, 0.4))},
         False, "x@1 is not better than its base debug: character error rate 20.0 %, base 50.0 % (better); "
         "word error rate 55.0 %, base 40.0 % (worse)."),
        ({"synthetic_cer": (rate("cer", 0.1, 0.3), rate("cer", 0.5, 0.5))}, True,
         "x@1 is better than its base debug: character error rate 20.0 %, base 50.0 %."),
    ],
)  # fmt: skip
def test_whether_it_is_better_is_said_in_words(
    figures: dict[str, tuple[Tally, Tally]], better: bool, text: str
) -> None:
    assert judged(**figures) == Verdict(better, text)


def test_the_verdict_stands_in_summary_and_json() -> None:
    one = evaluation()
    assert one.verdict.text in one.summary()
    assert one.to_json()["verdict"] == {"better": one.verdict.better, "text": one.verdict.text}
