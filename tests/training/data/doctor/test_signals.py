"""Each signal of the doctor on hand-made rows of which one is wrong, and its arithmetic by hand."""

import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from scipy.stats import false_discovery_control, median_abs_deviation, norm

from kauli.models.errors import UsageError
from kauli.training.data.dataset import Dataset
from kauli.training.data.doctor.alignment import Links
from kauli.training.data.doctor.characters import CharacterModel
from kauli.training.data.doctor.copies import near_copies
from kauli.training.data.doctor.examined import FOLDS, Examined
from kauli.training.data.doctor.outliers import deviations, strengths
from kauli.training.data.doctor.ranking import suspects
from kauli.training.data.doctor.table import SIGNALS
from kauli.training.data.schema import SCHEMA, write_parquet
from support.speech_adapters import wav

COLOURS = {"red": "nyekundu", "blue": "bluu", "green": "kijani", "black": "nyeusi", "white": "nyeupe"}
THINGS = {"car": "gari", "house": "nyumba", "tree": "mti", "book": "kitabu", "door": "mlango", "cup": "kikombe"}


def examined(folder: Path, rows: Sequence[dict[str, Any]], language: str = "sw") -> Examined:
    """Rows with the columns that are given; the others have their usual values."""
    usual = dict.fromkeys(SCHEMA.names) | {"language": language, "synthetic": False, "split": "train"}
    whole = [{**usual, "id": f"r{at}", "group": f"g{at}", **row} for at, row in enumerate(rows)]
    write_parquet(whole, folder / "rows.parquet")
    return Examined(Dataset("rows", [folder / "rows.parquet"], sorted({row["language"] for row in whole})))


def found(name: str, rows: Examined) -> dict[str, tuple[float, str]]:
    """Id -> (strength, reason) of one signal."""
    return {rows.rows[one.row]["id"]: (one.strength, one.reason) for one in SIGNALS[name](rows)}


def pairs() -> list[dict[str, Any]]:
    """Thirty pairs of which each word is in several."""
    return [
        {"input": f"the {colour} {thing}", "input_language": "en", "text": f"{theirs} {ours}"}
        for colour, ours in COLOURS.items()
        for thing, theirs in THINGS.items()
    ]


def test_deviations_and_their_false_discovery_rate_are_those_of_scipy() -> None:
    values = np.random.default_rng(3).normal(2, 5, 200)
    values[:4] += 60
    z = deviations(values)
    np.testing.assert_allclose(z, (values - np.median(values)) / (1.4826 * median_abs_deviation(values)))
    expected = 0.8 * (1 - false_discovery_control(norm.sf(z))) * np.maximum(z, 0) / (np.maximum(z, 0) + 3.5)
    np.testing.assert_allclose(strengths(z, 0.8), expected)
    assert set(np.argsort(-strengths(z, 0.8))[:4]) == {0, 1, 2, 3}


def test_a_character_model_is_a_distribution_over_what_follows() -> None:
    texts = ["aba", "abba", "ab"]
    model = CharacterModel(texts, "abc", order=3)
    # all texts over {a, b, c, unknown} that end within 1, 2, ... characters: the probabilities never sum to over 1
    chars = "abc?"
    total = sum(
        2 ** -model.bits([one + two]).item() for one in ["", *chars] for two in (chars if one else ["", *chars])
    )
    assert 0.2 < total < 1
    assert model.bits(["abba"]) < model.bits(["aabb"]) < model.bits(["?cc?"])


def test_folds_hold_whole_groups_and_are_even(tmp_path: Path) -> None:
    rows = [{"text": f"maneno {at // 2} tofauti kabisa hapa"} for at in range(40)]  # two rows of each text
    one = examined(tmp_path, rows)
    assert len(set(one.groups)) == 20
    assert all(one.folds[at] == one.folds[at + 1] for at in range(0, 40, 2))
    assert sorted(np.bincount(one.folds).tolist()) == [8] * FOLDS


def test_a_model_never_scores_a_group_that_it_saw(tmp_path: Path) -> None:
    one = examined(tmp_path, [{"text": f"maneno {at // 2} tofauti kabisa hapa"} for at in range(40)])
    places = list(range(0, 40, 3))
    scored = []
    for learned, asked in one.folds_of(places):
        groups = [{one.groups[places[at]] for at in side} for side in (learned, asked)]
        assert not groups[0] & groups[1]
        scored += asked.tolist()
    assert sorted(scored) == list(range(len(places)))


def test_a_text_of_other_letters_is_surprising(tmp_path: Path) -> None:
    rows = [
        {"text": f"{theirs} {ours} {at}"} for at in "abcd" for ours in COLOURS.values() for theirs in THINGS.values()
    ]
    rows[17]["text"] = "xqzvwx jqxzv q"
    told = found("surprise", examined(tmp_path, rows))
    assert max(told, key=lambda one: told[one][0]) == "r17"
    assert "bits a character" in told["r17"][1]


def test_a_text_in_the_language_of_the_inputs_is_found(tmp_path: Path) -> None:
    rows = pairs()
    rows[4]["text"] = "a white door and the black car"  # English, and no copy
    told = found("surprise", examined(tmp_path, rows))
    assert told["r4"][0] > 0.5
    assert "likelier en than sw" in told["r4"][1]


def test_letters_of_another_script_are_a_share(tmp_path: Path) -> None:
    rows = [{"text": f"слова {at}"} for at in range(12)]
    rows[3]["text"] = "слова word and"
    told = found("script", examined(tmp_path, rows, "be"))
    assert list(told) == ["r3"]
    assert told["r3"][1] == "58% of its letters are not Cyrillic, the script of be"  # 7 of 12


def test_model_one_learns_what_word_translates_what(tmp_path: Path) -> None:
    rows = pairs()
    links = Links([row["input"] for row in rows], [row["text"] for row in rows])
    everyone = np.arange(len(rows))
    right = links.evidence(everyone[1:], everyone[:1])[0]
    swapped = Links([row["input"] for row in rows], ["mlango bluu", *(row["text"] for row in rows[1:])])
    wrong = swapped.evidence(everyone[1:], everyone[:1])[0]
    # The first pair is "the red car": each of its words is in 4 or 5 others, so a wrong one costs at most log 1/5, 1/6
    assert right > 2
    assert math.log(1 / 6) + math.log(1 / 7) <= wrong < -1


def test_texts_that_were_swapped_are_found_by_their_words(tmp_path: Path) -> None:
    rows = [row | {"group": f"{row['input']} {again}"} for again in range(2) for row in pairs()]
    rows[0]["text"], rows[16]["text"] = rows[16]["text"], rows[0]["text"]
    told = found("words", examined(tmp_path, rows))
    assert set(sorted(told, key=lambda one: -told[one][0])[:2]) == {"r0", "r16"}


def test_a_copied_source_a_lost_mark_and_a_length_are_found(tmp_path: Path) -> None:
    rows = pairs()
    for row in rows:
        row |= {"input": f"{row['input']} 7.", "text": f"{row['text']} 7."}
    rows[2]["text"] = rows[2]["input"]
    rows[5]["text"] = rows[5]["text"].removesuffix(" 7.") + "."
    rows[9]["text"] = rows[9]["text"].removesuffix(".")
    rows[12]["text"] = f"{rows[12]['text']} {rows[13]['text']} {rows[14]['text']} {rows[15]['text']}"
    one = examined(tmp_path, rows)
    assert found("source", one)["r2"][1] == "the text is a copy of what it translates"
    marks = found("marks", one)
    assert marks["r5"][1].startswith("the input has the numbers 7, the text none; in 9")
    assert marks["r9"][1] == "the input ends with '.', the text does not; in 96.7% of the pairs it is not so"
    lengths = found("length", one)
    assert max(lengths, key=lambda name: lengths[name][0]) == "r12"
    assert "longer than usual" in lengths["r12"][1]


def test_a_wrong_label_is_found_by_the_other_folds(tmp_path: Path) -> None:
    kinds = {"animal": "paka mbwa simba", "plant": "mti ua majani", "food": "wali nyama samaki"}
    rows = [
        {"prompt": f"{word} {other} {at}", "text": label}
        for label, words in kinds.items()
        for at, word in enumerate(words.split() * 4)
        for other in [words.split()[(at + 1) % 3]]
    ]
    rows[3]["text"] = "food"
    told = found("label", examined(tmp_path, rows))
    assert max(told, key=lambda one: told[one][0]) == "r3"
    assert told["r3"][1].startswith("the label is 'food' and looks like 'animal': ")


def test_near_copies_are_those_of_a_full_comparison() -> None:
    draw = np.random.default_rng(5)
    words = ["moto", "maji", "mti", "jua", "mto", "bahari", "upepo", "mvua", "nyumba", "kiti", "mlango", "mkate"]
    texts = [" ".join(draw.choice(words, 12)) for _ in range(80)]
    texts += [f"{text}o" for text in texts[:30]]
    grams = [{text[at : at + 4] for at in range(len(text) - 3)} for text in texts]
    full = {
        (one, other): len(grams[one] & grams[other]) / len(grams[one] | grams[other])
        for other in range(len(texts))
        for one in range(other)
    }
    expected = {pair: share for pair, share in full.items() if share >= 0.8}
    got = {(one, other): share for one, other, share in near_copies(texts)}
    assert len(expected) >= 30
    assert got == pytest.approx(expected)


def test_another_answer_to_the_same_prompt_is_found(tmp_path: Path) -> None:
    rows = [{"prompt": f"kitu {at}", "text": "ndiyo" if at % 2 else "hapana"} for at in range(20)]
    rows += [{"prompt": "kitu 3", "text": "ndiyo", "group": "other"}, {"prompt": "Kitu 3!", "text": "hapana"}]
    told = found("answers", examined(tmp_path, rows))
    assert max(told, key=lambda one: told[one][0]) == "r21"
    assert told["r21"][1] == "2 of 3 rows with the same prompt or media have another text"


def test_a_text_longer_than_what_is_said_is_found(tmp_path: Path) -> None:
    rows = []
    for at in range(30):
        seconds = 1 + at % 3 + 0.05 * (at % 7)
        rows.append({"text": "neno " * round(2 * seconds), "audio": wav(seconds, 200.0 + at)})
    rows[8]["text"] = "neno " * 20
    told = found("speed", examined(tmp_path, rows))
    assert max(told, key=lambda one: told[one][0]) == "r8"
    assert told["r8"][1].endswith("usual in sw are 10: the text may be longer than what is said")


def test_what_repeats_itself_and_what_the_check_counts_are_found(tmp_path: Path) -> None:
    rows = [{"text": f"maneno {at} tofauti kabisa"} for at in range(12)]
    rows[1]["text"] = "hahahahahahahahahahaha"
    rows[2]["text"] = "CoraÃ§Ã£o de maneno"
    rows[4]["text"] = rows[3]["text"]
    one = examined(tmp_path, rows)
    assert found("diversity", one)["r1"][1] == "it repeats itself: 10% of its trigrams are different"  # 2 of 20
    problems = found("problem", one)
    assert set(problems) == {"r2", "r4"}
    assert problems["r2"][0] > problems["r4"][0]


def test_the_score_is_a_noisy_or(tmp_path: Path) -> None:
    rows = pairs()
    rows[7]["text"] = rows[7]["input"]
    one = examined(tmp_path, rows)
    left = 1.0
    for name in SIGNALS:
        left *= 1 - found(name, one).get("r7", (0.0, ""))[0]
    worst = suspects(one)[0]
    assert (worst.id, worst.score) == ("r7", round(1 - left, 4))
    assert worst.reasons


def test_too_few_rows_say_how_many_are_needed(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="rows has 9 rows in sw: at least 10 are needed"):
        examined(tmp_path, [{"text": f"neno {at}"} for at in range(9)])
