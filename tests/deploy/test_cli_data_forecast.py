"""`kauli data forecast` on a recipe of one's own: its JSON, its page, how it refuses."""

import json
from pathlib import Path

import pytest

from support.cli import fails, run

WORDS = ["moto", "maji", "mti", "jua", "mto", "bahari", "upepo", "mvua", "nyumba", "kiti", "mlango", "mkate"]


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The current folder with `mine.jsonl` and `mine.yaml`; a home of its own."""
    monkeypatch.setenv("KAULI_HOME", str(tmp_path / "home"))
    monkeypatch.chdir(tmp_path)
    rows = []
    for at in range(240):
        one, other = WORDS[at % 12], WORDS[at // 12 % 12]
        row = {"text": f"{one} na {other} {at}", "input": f"{one[::-1]} {other[::-1]} {at}", "group": f"g{at}"}
        rows.append({**row, "input_language": "en", "split": "validation" if at % 6 == 0 else "train"})
    rows.append({**rows[0], "group": "test", "text": "jaribio", "input": "a test", "split": "test"})
    rows[0]["text"] += " ñanú"
    (tmp_path / "mine.jsonl").write_text("\n".join(map(json.dumps, rows)), encoding="utf-8")
    recipe = "name: {name}\ntask: {task}\nbase: debug\nlanguage: sw\ndata: mine.jsonl\nmethod: {{kind: lora}}\n"
    for task in ("text", "translate"):
        (tmp_path / f"{task}.yaml").write_text(recipe.format(name=f"mine-{task}", task=task))
    return tmp_path


def test_json_has_the_curve_the_forecast_and_what_is_uncovered(folder: Path) -> None:
    result = run("data", "forecast", "text.yaml", "--json", "--out", "page.html")
    assert result.exit_code == 0, result.output
    found = json.loads(result.stdout)
    assert (found["recipe"], found["proxy"]) == ("mine-text", "a character n-gram model of the texts")
    assert found["metric"] == "bits_per_byte"
    assert [one["times"] for one in found["forecast"]] == [2, 4]
    assert all(one["interval"][0] <= one["score"] <= one["interval"][1] for one in found["forecast"])
    assert [one["groups"] for one in found["sizes"]][-1] == 200
    assert found["forecast"][1]["groups"] == 800
    assert found["sizes"][0]["score"] > found["sizes"][-1]["score"]
    assert found["uncovered"]["characters"]["counts"] == {"ñ": 1, "ú": 1}
    assert found["uncovered"]["words"]["counts"]["ñanú"] == 1
    page = (folder / "page.html").read_text(encoding="utf-8")
    assert "A proxy, no training:" in page
    assert "data:image/svg+xml" in page
    assert "http://" not in page.replace("http://www.w3.org", "")
    again = run("data", "forecast", "text.yaml", "--json")
    assert again.stdout == result.stdout


def test_the_text_says_that_it_is_a_proxy_and_which() -> None:
    result = run("data", "forecast", "translate.yaml", "--minutes", "0.05")
    assert result.exit_code == 0, result.output
    assert "A PROXY, no training: chrF" in result.stdout
    assert "the text of the nearest training pair" in result.stdout
    assert "  4 x the data: " in result.stdout


def test_mistakes_of_the_user_are_one_clear_error() -> None:
    fails(2, "there is no recipe 'text-swx'", "data", "forecast", "text-swx")
    fails(2, "no data at 'other.jsonl'", "data", "forecast", "text.yaml", "--set", "data=other.jsonl")
    fails(2, "debug-text", "data", "forecast", "text.yaml", "--base", "debug-text")
    Path("few.jsonl").write_text("\n".join(json.dumps({"text": f"neno {at} {WORDS[at % 12]}"}) for at in range(30)))
    fails(2, "a forecast needs 32 groups", "data", "forecast", "text.yaml", "--set", "data=few.jsonl")
