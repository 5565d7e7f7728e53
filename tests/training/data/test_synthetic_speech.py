"""Texts synthesised by eSpeak: voices drawn by a seed, rows that keep their side of the split, a prefix of metrics."""

import io
import json
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest
import soundfile

from kauli.models.adapters.registry import Registry
from kauli.models.bases.find import find_base
from kauli.models.errors import KauliError, UsageError
from kauli.models.media.decode import decode_audio
from kauli.models.speech.espeak import espeak_languages
from kauli.training.compare import Cell, compare
from kauli.training.data import starter, synthetic_speech
from kauli.training.data.dataset import load_data
from kauli.training.data.profile import leaks, profile
from kauli.training.data.schema import SCHEMA, write_parquet
from kauli.training.data.synthetic_speech import espeak_files, synthetic_rows
from kauli.training.evaluation.report import render_report
from kauli.training.evaluation.request import EvalRequest
from kauli.training.evaluation.results import Scores
from kauli.training.evaluation.scorers import tally
from kauli.training.evaluation.transcribe import evaluate_transcribe
from kauli.training.features.audio import audio_rows
from kauli.training.recipe import Recipe
from kauli.training.recipe_file import load_recipe, parse_recipe
from kauli.training.tasks.transcribe import TranscribeRecipe
from kauli.training.train import train

SENTENCE = "Ар бир адам өз өлкөсүнө кайтып келүүгө укуктуу."


def synthesise(text: str, language: str, seed: int) -> synthetic_speech.Samples:
    """Samples (n,) at 16 kHz."""
    return synthetic_speech._synthesised(synthetic_speech._request(text, language, seed))


def starter_row(number: int, text: str, **other: Any) -> dict[str, Any]:
    empty: dict[str, Any] = dict.fromkeys(SCHEMA.names)
    split = ("train", "validation", "test")[number % 3]
    row = {"id": f"ky-{number}", "group": f"g{number}", "language": "ky", "text": text, "split": split}
    return empty | row | {"prompt": "Translate", "source": "cldr", "licence": "X", "synthetic": False} | other


@pytest.fixture
def write_starter(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., None]:
    """Makes Kyrgyz starter data of given rows, as if it had been built."""
    monkeypatch.setenv("KAULI_HOME", str(tmp_path / "home"))
    monkeypatch.setattr(starter, "ready", lambda languages, folder, full: (folder / "ky.parquet").is_file())
    monkeypatch.setattr(starter, "build", lambda languages, full: pytest.fail("built though it is there"))

    def write(rows: list[dict[str, Any]], stamp: str = "{}") -> None:
        write_parquet(rows, starter.starter_folder() / "ky.parquet", {starter.STAMP: stamp.encode()})

    return write


def test_a_longer_text_takes_longer_at_sixteen_kilohertz() -> None:
    seconds = [len(synthesise(text, "ky", 1)) / 16_000 for text in ("Ооба.", SENTENCE, f"{SENTENCE} {SENTENCE}")]
    assert 0.2 < seconds[0] < 1.2
    assert 2 < seconds[1] < 6
    assert 1.7 * seconds[1] < seconds[2] < 2.5 * seconds[1]
    samples = synthesise(SENTENCE, "ky", 1)
    assert samples.dtype == np.float32
    assert 0.1 < np.abs(samples).max() <= 1.05
    spectrum = np.abs(np.fft.rfft(samples))
    assert spectrum[np.fft.rfftfreq(len(samples), 1 / 16_000) < 4000].sum() > spectrum.sum() / 2


def test_the_seed_draws_the_voice_whatever_was_said_before() -> None:
    first = synthesise(SENTENCE, "ky", 3)
    other = synthesise(SENTENCE, "ky", 4)
    time.sleep(1.1)  # its breath would begin at the clock
    assert np.array_equal(synthesise(SENTENCE, "ky", 3), first)
    assert other.shape != first.shape or not np.allclose(other, first)
    requests = [synthetic_speech._request(SENTENCE, "ky", seed) for seed in range(200)]
    assert len({voice for _, voice, _ in requests}) == 12
    assert {voice[:3] for _, voice, _ in requests} == {"ky+"}


def test_kyrgyz_letters_are_spoken() -> None:
    """Each of them sounds, and otherwise than the letter that it would be taken for."""
    assert all(len(synthesise(letter, "ky", 0)) for letter in "үөң")
    for word, lookalike in (("жүк", "жук"), ("көл", "кол"), ("таң", "тан")):
        one, other = (synthesise(text, "ky", 0) for text in (word, lookalike))
        assert one.shape != other.shape or np.abs(one - other).max() > 0.05


def test_a_language_without_a_voice_is_refused_before_any_work(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("KAULI_HOME", str(tmp_path))
    calls: list[Callable[[], Any]] = [lambda: synthesise("Báwo ni", "yo", 0), lambda: espeak_files(["ky", "yo"])]
    for call in calls:
        with pytest.raises(
            UsageError, match=r"eSpeak has no voice for Yoruba \(yo\). It has voices for af, am, .* ky, "
        ):
            call()
    assert not list(tmp_path.iterdir())
    assert {"be", "ka", "kk", "ky", "sw", "tt", "uz", "en"} <= set(espeak_languages())
    assert len(synthesise("добры дзень", "be-tarask", 0))  # by its fallback, be


def test_rows_keep_group_split_and_licence() -> None:
    given = [starter_row(number, f"{SENTENCE[: 20 + number]} {'ү' * number}") for number in range(1, 7)]
    rows = synthetic_rows("ky", given)
    by_text = {row["text"]: row for row in given}
    assert len(rows) == len(given)
    for row in rows:
        origin = by_text[row["text"]]
        assert tuple(row) == tuple(SCHEMA.names)
        assert [row[name] for name in ("group", "split", "licence")] == [
            origin[name] for name in ("group", "split", "licence")
        ]
        assert (row["synthetic"], row["source"], row["language"]) == (True, "espeak/cldr", "ky")
        assert [row[name] for name in ("prompt", "image", "flags")] == [None] * 3
        found = soundfile.info(io.BytesIO(row["audio"]))
        assert (found.format, found.subtype, found.samplerate, found.channels) == ("FLAC", "PCM_16", 16_000, 1)
        assert not decode_audio(row["audio"]).warnings
    assert len({row["id"] for row in rows}) == len({row["audio"] for row in rows}) == len(rows)
    assert synthetic_rows("ky", given[::-1]) == rows  # the same bytes, whatever the order


def test_only_texts_are_spoken_that_sound_as_they_are_written() -> None:
    good = ["көк жүрөк", "Сан-Томе жана Принсипи", "«Жаңы» жыл!", "көк ЖҮРӨК"]  # the last is the first
    bad = [
        "жүрөк",
        "кнопка 5",
        "CL баскычы",
        '"эски" жыл',
        "жүрөк (көк)",
        "& белгиси",
        "узун сөз " * 14,
        "",
        "– …",
        "… … …",
    ]
    rows = synthetic_rows("ky", [starter_row(0, text, id=str(at)) for at, text in enumerate(good + bad)])
    assert sorted(row["text"].lower() for row in rows) == sorted(text.lower() for text in good[:3])


def test_the_most_rows_are_taken_in_turn_from_each_source(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(synthetic_speech, "MOST_ROWS", 8)
    letters = "абвгдежзийкл"
    rows = [starter_row(0, f"көк {one}{two}", id=f"{one}{two}") for one in letters for two in letters]
    rows += [starter_row(0, f"кызыл {one}", id=one, source="udhr") for one in letters[:3]]
    assert Counter(row["source"] for row in synthetic_rows("ky", rows)) == {"espeak/cldr": 5, "espeak/udhr": 3}


def test_load_data_makes_files_once_until_the_starter_data_differs(
    write_starter: Callable[..., None], monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(UsageError, match="no starter-espeak is made yet: name its languages"):
        load_data("starter-espeak")
    write_starter([starter_row(number, f"көк {'жүрөк' * number}") for number in range(1, 4)])
    dataset = load_data("starter-espeak", ["ky"])
    assert (dataset.name, dataset.languages, len(dataset.rows())) == ("starter-espeak", ("ky",), 3)
    assert profile(dataset)["languages"]["ky"]["synthetic"] == 3
    assert len(audio_rows(dataset, "train", ["ky"], 25).rows) == 1
    path = dataset.reference.paths[0]
    before = path.read_bytes()
    real = synthetic_speech.synthetic_rows
    monkeypatch.setattr(synthetic_speech, "synthetic_rows", lambda *_: pytest.fail("made again"))
    assert load_data("starter-espeak").sha256 == dataset.sha256
    monkeypatch.setattr(synthetic_speech, "synthetic_rows", real)
    path.unlink()
    load_data("starter-espeak", ["ky"])
    assert path.read_bytes() == before
    write_starter([starter_row(1, "кызыл жүрөк")], '{"build": "other"}')
    assert [row["text"] for row in load_data("starter-espeak", ["ky"]).rows()] == ["кызыл жүрөк"]
    write_starter([starter_row(1, "жүрөк")], '{"build": "third"}')
    with pytest.raises(UsageError, match=r"the starter data has no text in Kyrgyz \(ky\) that eSpeak can read"):
        load_data("starter-espeak", ["ky"])


def test_what_is_learned_of_synthetic_rows_alone_is_measured_under_names_of_its_own(
    write_starter: Callable[..., None], tmp_path: Path
) -> None:
    words = ("көк", "кызыл", "жаңы", "эски")
    texts = [f"{one} {two}" for one in words for two in words]
    write_starter([starter_row(number, text) for number, text in enumerate(texts)])
    content = {
        "name": "transcribe-k", "task": "transcribe", "base": "debug", "language": "ky", "data": "starter-espeak",
        "method": {"kind": "lora", "rank": 2}, "transcribe": {"init_from_languages": {"ky": ["kk"]}},
        "train": {"steps": 2, "batch_tokens": 400, "max_length": 300, "validate_every": 1},
    }  # fmt: skip
    storage = str(tmp_path)
    result = train(parse_recipe(content), storage, use_ray=False)
    names = {"synthetic_cer", "synthetic_wer", "synthetic_looped", "synthetic_bits_per_byte"}
    assert set(result.metrics) == names
    assert result.evaluation.base_metrics is not None
    assert set(result.evaluation.base_metrics) == names
    assert "synthetic_cer" in result.evaluation.summary()
    card = Registry(storage).card(result.adapter)
    assert card.data is not None
    assert card.data.synthetic_rows == card.data.rows == 6
    assert set(card.data.sources) == {"espeak/cldr"}
    readme = (Registry(storage).fetch(result.adapter) / "README.md").read_text()
    assert "6 rows in 6 groups, 6 of them synthetic" in readme
    assert "Character error rate (synthetic rows)" in readme
    assert set(json.loads(json.dumps(result.evaluation.to_json(), allow_nan=False))["metrics"]) == names
    assert "has a character error rate, on synthetic rows, of" in render_report(result.evaluation, card)
    base = find_base("debug", task="transcribe")
    dataset = load_data("starter-espeak", ["ky"])
    folder = Registry(storage).fetch(result.adapter)
    again = evaluate_transcribe(EvalRequest(folder, base, dataset, ("ky",), base_languages={"ky": "kk"}))
    assert "debug-whisper does not know ky and was asked for kk" in again.notes
    with pytest.raises(UsageError, match="debug-whisper does not know the language 'ky'"):
        evaluate_transcribe(EvalRequest(folder, base, dataset, ("ky",)))
    assert set(again.metrics) == names


def test_recipes_are_compared_by_their_synthetic_metrics(tmp_path: Path) -> None:
    def speech(prefix: str, edits: float) -> Scores:
        rates = {"cer": [[edits, 10.0]] * 3, "bits_per_byte": [[edits, 20.0]] * 3}
        return Scores({"ky": {prefix + name: tally(name, ["a", "b", "c"], rate) for name, rate in rates.items()}})

    def run(recipe: Recipe, storage: str) -> Cell:
        prefix, edits = ("synthetic_", 4.0) if recipe.data == "starter-espeak" else ("", 2.0)
        edits -= recipe.train.steps / 1000
        return Cell(recipe.name, recipe.sha256(), 0, "x@1", 1.0, speech(prefix, edits), speech(prefix, 8.0))

    ky = load_recipe("transcribe-ky")
    longer = load_recipe("transcribe-ky", ["train.steps=2200", "name=longer"])
    result = compare([ky, longer], 1, str(tmp_path), run)
    assert result.metrics == ["synthetic_bits_per_byte", "synthetic_cer"]
    found = result.to_json()
    assert found["recipes"][0]["metrics"]["synthetic_cer"] == pytest.approx(0.28)
    assert found["recipes"][0]["base_metrics"]["synthetic_cer"] == pytest.approx(0.8)
    assert found["differences"][0]["metrics"]["synthetic_cer"] == pytest.approx(-0.1)
    assert any(line.startswith("synthetic_cer") for line in result.summary().splitlines())
    people = load_recipe("transcribe-ky", ["data=starter", "name=people"])
    with pytest.raises(KauliError, match="people and transcribe-ky were scored on different test rows"):
        compare([ky, people], 1, str(tmp_path), run)


def test_the_recipe_says_how_kyrgyz_begins() -> None:
    ky, be = load_recipe("transcribe-ky"), load_recipe("transcribe-be")
    assert (ky.base, ky.data, ky.language) == ("whisper-base", "starter-espeak", ("ky",))
    assert isinstance(ky, TranscribeRecipe)
    assert ky.transcribe.init_from_languages == {"ky": ("kk", "tt", "uz")}
    assert (ky.method, ky.augment, ky.train) == (be.method, be.augment, be.train)


@pytest.mark.weights
@pytest.mark.timeout(600)
def test_the_real_texts_fill_every_split_and_keep_their_sides() -> None:
    dataset = load_data("starter-espeak", ["ky"])
    assert not any(leaks(dataset).values())
    rows = dataset.rows(columns=SCHEMA.names)
    counts = Counter(row["split"] for row in rows)
    assert counts["train"] > 1000
    assert min(counts["validation"], counts["test"]) > 100
    assert {row["source"] for row in rows} == {"espeak/cldr", "espeak/iso-codes", "espeak/udhr"}
    origins = {
        (row["text"], row["group"], row["split"], row["licence"])
        for row in load_data("starter", ["ky"]).rows(languages=["ky"])
    }
    assert all((row["text"], row["group"], row["split"], row["licence"]) in origins for row in rows)
    found = audio_rows(dataset, "test", ["ky"], 25)
    assert found.notes() == []
    seconds = [len(row["samples"]) / 16_000 for row in found.rows]
    assert max(seconds) < 12
    assert pq.read_schema(dataset.reference.paths[0]).metadata
