"""Options of reading: what they take, what they refuse, and that they travel with the data."""

import pickle
from pathlib import Path
from typing import Any

import pytest

from kauli.models.errors import UsageError
from kauli.training.data.dataset import load_data, load_reference
from kauli.training.data.options import DataOptions


def test_values_in_any_form() -> None:
    options = DataOptions.model_validate(
        {"map": " text = sentence,id=", "language": "swh", "encoding": "Windows-1252", "delimiter": "tab"}
    )
    assert options.map == {"text": "sentence", "id": ""}
    assert (options.language, options.encoding, options.delimiter, options.leaks) == ("sw", "cp1252", "\t", "content")


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"map": "text"}, "map 'text': write COLUMN=NAME, such as text=sentence,language=locale"),
        ({"map": "=a"}, "map '=a': write COLUMN=NAME"),
        ({"language": "kiswahili"}, "unknown language 'kiswahili'"),
        ({"encoding": "cp12"}, "unknown encoding 'cp12': such as utf-8, utf-16, cp1252"),
        ({"encoding": "base64"}, "unknown encoding 'base64'"),
        ({"delimiter": ";;"}, "delimiter ';;': one character"),
        ({"delimiter": '"'}, "one character such as"),
        ({"leaks": "pairs"}, "leaks 'pairs': one of content, pair, group. Did you mean 'pair'?"),
    ],
)
def test_wrong_values_are_explained(given: dict[str, Any], message: str) -> None:
    with pytest.raises(UsageError) as caught:
        DataOptions.model_validate(given)
    assert message in str(caught.value)


def test_options_travel_with_the_data(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("KAULI_HOME", str(tmp_path / "home"))
    path = tmp_path / "mine.csv"
    path.write_bytes("neno;lugha\ncafé;fr\nthé;fr\nété;fr\n".encode("cp1252"))
    options = DataOptions.model_validate({"map": "text=neno,language=lugha", "encoding": "cp1252"})
    dataset = pickle.loads(pickle.dumps(load_data(str(path), ["fr"], options)))
    places = {row["text"]: dataset.place(row["id"]) for row in dataset.rows()}
    assert places == {"café": "mine.csv line 2", "thé": "mine.csv line 3", "été": "mine.csv line 4"}
    assert dataset.place("unknown") == "unknown"
    reference = pickle.loads(pickle.dumps(dataset.reference))
    reference.paths[0].unlink()  # as on another machine
    assert load_reference(reference).rows() == dataset.rows()
    with pytest.raises(UsageError, match=r"mine\.csv line 2: not UTF-8"):
        load_data(str(path), ["fr"])
