"""Whether a base can spell a language: letters in the vocabulary, bytes a token, beside English."""

from pathlib import Path
from typing import Any

import pytest

from kauli.models.bases.find import find_base
from kauli.training.tasks.spelling import Speller, Spelling, spelling_warnings


def rows(language: str, text: str) -> list[dict[str, Any]]:
    return [{"language": language, "text": text}] * 3


def test_letters_of_single_bytes_are_not_spelled(tmp_path: Path) -> None:
    speller = Speller(find_base("debug"))  # a tokenizer of bytes
    assert speller.spelling(["moto maji"]) == Spelling(1.0, 1.0, 4.5)
    assert speller.spelling(["ሰላም"]) == Spelling(0.0, 1.0, 9.0)
    assert speller.spelling(["ab ሰላ"]).letters == 0.5


@pytest.mark.parametrize("task", ["text", "describe"])
def test_a_warning_names_the_language_and_a_base_that_would_do(task: str) -> None:
    base = find_base("debug", task=task)
    assert spelling_warnings(base, [*rows("sw", "moto na maji"), *rows("en", "ሰላም")]) == []
    [told] = spelling_warnings(base, [*rows("sw", "moto na maji"), *rows("am", "ሰላም ለዓለም")])
    assert told.startswith(
        "debug-text cannot spell Amharic: its vocabulary has 0% of the letters of this data (1.0 bytes"
    )
    assert "gemma-3-270m-q4 (once: kauli fetch gemma-3-270m-q4 --accept-terms; then --set base=gemma-3-270m-q4)" in told
    assert "Hugging Face hub" in told
    assert "smollm2" not in told
