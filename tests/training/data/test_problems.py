"""Rows that look wrong: each kind by known texts, what is right is left alone, and the row is named."""

from typing import Any

import pytest

from kauli.training.data.problems import find_problems, repaired, told


@pytest.mark.parametrize(
    ("text", "language", "meant"),
    [
        ("CoraÃ§Ã£o", "pt", "Coração"),
        ("CORAÃ‡ÃƒO", "pt", "CORAÇÃO"),
        ("Ã© isso, donâ€™t, 25Â°C", "pt", "é isso, don’t, 25°C"),
        ("CoraÃƒÂ§ÃƒÂ£o", "pt", "Coração"),  # twice
        ("Cora\u00c3\u0083\u00c2\u00a7\u00c3\u00a3o", "pt", "Coração"),  # Latin-1 and not Windows-1252
        ("dÉ” na É–e", "ak", "dɔ na ɖe"),
        ("ÐŸÑ€Ð¸Ð²ÐµÑ‚, сябар", "be", "Привет, сябар"),
        ("РџСЂРёРІРµС‚", "be", "Привет"),  # Windows-1251
        ("Ù…Ø±Ø­Ø¨Ø§", "ar", "مرحبا"),
        ("Ð¿Ñ€Ð¸ kwa wote", "sw", "при kwa wote"),  # several letters, so whatever the script
    ],
)
def test_garbled_letters_are_what_they_were_meant_to_be(text: str, language: str, meant: str) -> None:
    assert repaired(text, language) == meant
    assert repaired(meant, language) == meant


@pytest.mark.parametrize(
    ("text", "language"),
    [
        ("«café…» et “ÊTRE”, CAFÉ… 10 €", "fr"),  # é…» would be a Chinese letter, É… a rare Latin one
        ("É… Ñ”", "pt"),
        ("ÆØÅ…»", "da"),
        ("Рік новы, Сёння «Усё»", "be"),
        ("ሰላም ዓለም", "am"),
        ("naïve – œuvre™", "en"),
    ],
)
def test_right_letters_stay(text: str, language: str) -> None:
    assert repaired(text, language) == text


def row(number: int, text: str | None, prompt: str | None = None, language: str = "sw", **own: Any) -> dict[str, Any]:
    return {"id": f"id{number}", "language": language, "prompt": prompt, "text": text, "media": (None, None), **own}


def found(*rows: dict[str, Any]) -> dict[str, tuple[int, list[str]]]:
    problems = find_problems(rows, lambda one: f"mine.csv line {one[2:]}", {"am": 1.0})
    return {
        problem["kind"]: (problem["rows"], [f"{one['place']}: {one['shown']}" for one in problem["examples"]])
        for problem in problems
    }


def test_each_kind_is_named_with_its_row() -> None:
    assert found(row(2, "CoraÃ§Ã£o"))["garbled"] == (1, ["mine.csv line 2: 'CoraÃ§Ã£o', meant is 'Coração'"])
    assert set(found(row(2, "Ð¿Ñ€Ð¸Ð\x92ÐµÑ‚", language="be"))) == {"garbled"}  # no control character, no Latin letter
    assert found(row(2, "Leo\0mvua"), row(3, "a\x07"))["control"] == (
        2,
        [r"mine.csv line 2: 'Leo\x00mvua'", r"mine.csv line 3: 'a\x07'"],
    )
    words = ["None", "nan", "NULL", "N/A", "na", "Hakuna None"]
    assert found(*(row(at, word) for at, word in enumerate(words)))["nothing"][0] == 4
    assert found(row(2, "habari", "NaN"))["nothing"] == (1, ["mine.csv line 2: 'NaN'"])
    assert found(row(2, "Tom &amp; Jerry"), row(3, "a &b; c < d"), row(4, "moja<br/>mbili"))["html"][0] == 2
    assert found(row(2, "Мoва", language="be"))["mixed_script"] == (1, ["mine.csv line 2: 'Мoва'"])
    assert found(row(2, "hello there", language="am"))["script_am"] == (1, ["mine.csv line 2: 'hello there'"])
    assert found(row(2, "neno " * 500))["long"][0] == 1
    assert found(row(2, "ሰ" * 200, language="am"))["long"][0] == 1  # of 3 tokens each
    assert found(row(2, "ሰ" * 160, language="am")) == {}


def test_copies_are_those_of_input_and_output_together() -> None:
    same = [row(2, "Ndiyo", "Je, ni hivyo?"), row(3, "ndiyo!", "je ni hivyo"), row(4, "Ndiyo", "Je, ni vile?")]
    assert found(*same) == {"copy": (1, ["mine.csv line 3: 'ndiyo!', as mine.csv line 2"])}
    assert found(*(row(at, "mbwa", media=(str(at), None)) for at in range(3))) == {}


def test_blank_cells_are_told_where_most_rows_have_them() -> None:
    rows = [row(at, f"neno {'abc'[at]}", f"prompt {'abc'[at]}") for at in range(3)]
    assert found(*rows[:2], row(5, "neno d"))["blank_prompt"] == (1, ["mine.csv line 5: 'neno d'"])
    assert found(rows[0], row(5, "neno d"), row(6, "neno e")) == {}


def test_a_problem_is_a_line_or_a_line_a_file() -> None:
    problems = find_problems([row(2, "None"), row(3, "nan"), row(4, "null")], lambda one: one, {})
    what = "3 rows where a whole cell is a word for an empty one, and would be learned"
    assert told(problems[0], 1) == [f"  {what}, e.g. id2: 'None'"]
    assert told(problems[0], 2) == [
        f"  {what}:",
        "    id2: 'None'",
        "    id3: 'nan'",
        "    and 1 more, which --json lists",
    ]


def test_what_is_shown_of_a_long_text_is_the_place() -> None:
    shown = found(row(2, "neno " * 100 + "Ã§a" + " neno" * 100))["garbled"][1][0]
    assert "Ã§a" in shown
    assert "meant is" in shown
    assert len(shown) < 200
