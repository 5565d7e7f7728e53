"""Sections of a file that are written anew, and all else left as it is."""

from pathlib import Path

import pytest
from results_file import update_section

from kauli.models.errors import UsageError


def test_sections_are_replaced_in_place(tmp_path: Path) -> None:
    path = tmp_path / "RESULTS.md"
    update_section(path, "one", "first")
    update_section(path, "two", "second")
    path.write_text("# Results\n\nWritten by hand.\n\n" + path.read_text() + "\nAt the end.\n")
    update_section(path, "one", "| a |\n| b |\n")
    text = path.read_text()
    assert "<!-- begin:one -->\n| a |\n| b |\n<!-- end:one -->\n\n<!-- begin:two -->\nsecond\n<!-- end:two -->" in text
    assert "first" not in text
    assert text.startswith("# Results\n\nWritten by hand.\n")
    assert text.endswith("\nAt the end.\n")
    update_section(path, "one", "| a |\n| b |\n")
    assert path.read_text() == text


@pytest.mark.parametrize("text", ["<!-- begin:x -->", "<!-- end:x -->\n<!-- begin:x -->"])
def test_broken_markers_are_not_written_over(tmp_path: Path, text: str) -> None:
    path = tmp_path / "RESULTS.md"
    path.write_text(text)
    with pytest.raises(UsageError, match="markers"):
        update_section(path, "x", "new")
    assert path.read_text() == text


def test_section_names_are_plain(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="no name of a section"):
        update_section(tmp_path / "R.md", "a --> b", "x")
