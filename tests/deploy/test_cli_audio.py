"""The `kauli` command on audio: transcribing, describing, and the errors of wrong use."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import soundfile
import torch
from peft import LoraConfig, get_peft_model
from transformers import AutoModelForCausalLM, WhisperForConditionalGeneration

from kauli.deploy.cli.transcripts import rendered
from kauli.models.adapters.card import BaseReference, Card, EncoderReference, PromptReference
from kauli.models.adapters.registry import Registry
from kauli.models.bases.find import Base, find_base
from kauli.models.media.decode import RATE, decode_audio, decode_image
from kauli.models.requests import Media, TextRequest, TranscriptionRequest
from kauli.models.speech.audio_tower import AudioTower
from kauli.models.speech.chunking import AudioSpan, as_text, cut, join
from kauli.models.speech.whisper import WhisperTask
from kauli.models.text.connector import Connector, PartSettings
from kauli.models.text.task import TextTask
from kauli.models.vision.image_tower import ImageTower
from support import picture_adapters
from support.cli import fails, run

STACK = 4


def speech_base() -> Base:
    return find_base("debug", task="transcribe")


def sound(seconds: float, pitch: float, seed: int = 0) -> Any:
    times = np.arange(round(seconds * RATE)) / RATE
    noise = 0.002 * np.random.default_rng(seed).standard_normal(len(times))
    return (0.3 * np.sin(2 * np.pi * pitch * times) + noise).astype(np.float32)


def card_of(name: str, task: str, languages: list[str], base: Base) -> Card:
    reference = BaseReference.of(base)
    return Card(
        name=name, task=task, language=languages, base=reference, method={"kind": "lora"}, licence="CC0-1.0",
    )  # fmt: skip


def save_random_lora(model: Any, base: Base, folder: Path, seed: int) -> None:
    torch.manual_seed(seed)
    model.name_or_path = base.reference
    adapted = get_peft_model(model, LoraConfig(r=4, target_modules=["q_proj", "v_proj"]))
    with torch.no_grad():
        for key, parameter in adapted.named_parameters():
            if "lora_B" in key:
                parameter.normal_(std=0.5)
    adapted.save_pretrained(folder, save_embedding_layers=False)


def publish_transcribe(storage: Path, name: str, language: str, seed: int) -> str:
    base, folder = speech_base(), storage / "scratch" / f"{name}-{seed}"
    save_random_lora(WhisperForConditionalGeneration.from_pretrained(base.folder), base, folder, seed)
    (folder / "speech.json").write_text(json.dumps({"languages": [language]}))
    return Registry(str(storage)).publish(folder, card_of(name, "transcribe", [language], base)).spec


def publish_fused(storage: Path, name: str, language: str, seed: int) -> str:
    """Takes pictures and recordings."""
    base, folder = find_base("debug"), storage / "scratch" / f"{name}-{seed}"
    save_random_lora(AutoModelForCausalLM.from_pretrained(base.folder), base, folder, seed)
    eyes, ears = ImageTower.load(find_base("debug", task="align")), AudioTower.load(speech_base())
    parts = {
        "image": PartSettings(
            encoder="debug-clip", sha256=eyes.sha256, width=eyes.width, places=2, grid=1, inner=8
        ),
        "audio": PartSettings(
            encoder="debug-whisper", sha256=ears.sha256, width=ears.width(STACK), places=16, stack=STACK, inner=8
        ),
    }  # fmt: skip
    connector = Connector(parts, 64)
    with torch.no_grad():
        for parameter in connector.parameters():
            parameter.normal_(std=0.3)
    connector.save(folder)
    card = card_of(name, "describe", [language], base)
    card.prompt = PromptReference(instruction="Say it in {language}.")
    card.encoders = {"image": EncoderReference(base="debug-clip"), "audio": EncoderReference(base="debug-whisper")}
    return Registry(str(storage)).publish(folder, card).spec


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("KAULI_HOME", str(tmp_path_factory.mktemp("home")))
        folder = tmp_path_factory.mktemp("store")
        patch.setenv("KAULI_STORAGE", str(folder))
        publish_transcribe(folder, "transcribe-be", "be", 1)
        publish_transcribe(folder, "transcribe-be", "be", 2)
        publish_transcribe(folder, "transcribe-uz", "uz", 3)
        publish_fused(folder, "fused-be", "be", 4)
        picture_adapters.publish_describe(folder, "describe-sw", "sw", 5)
        yield folder


@pytest.fixture(scope="module")
def clips(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """A short recording, another one, and one of 6.4 seconds with pauses, longer than the 4 that are heard at once."""
    folder = tmp_path_factory.mktemp("clips")
    long = [part for at in range(4) for part in (sound(1.1, 200 + 90 * at, at), 0.01 * sound(0.5, 0, at + 9))]
    found = {"one": sound(0.5, 300), "two": sound(0.7, 500), "long": np.concatenate(long)}
    for name, samples in found.items():
        soundfile.write(folder / f"{name}.wav", samples, RATE)
    return {name: folder / f"{name}.wav" for name in found}


@pytest.fixture(scope="module")
def picture(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("pictures") / "red.png"
    path.write_bytes(picture_adapters.png("red"))
    return path


def samples_of(path: Path) -> Any:
    return decode_audio(path.read_bytes()).samples


def expected(store: Path, path: Path, spans: list[AudioSpan], spec: str | None, language: str) -> list[str]:
    """What the model itself writes for the spans of a recording."""
    task = WhisperTask.load(speech_base())
    if spec:
        task.add_adapter(spec, Registry(str(store)).fetch(spec))
    texts = [""] * len(spans)
    requests = [TranscriptionRequest(span.of(samples_of(path)), language) for span in spans]
    for chunks in task.generate(requests, [spec] * len(spans)):
        for chunk in chunks:
            texts[chunk.row] += chunk.text
    return texts


def result(*words: str) -> Any:
    done = run("transcribe", *words)
    assert done.exit_code == 0, done.stderr
    return done.stdout


def test_the_language_chooses_the_newest_version_of_its_adapter(store: Path, clips: dict[str, Path]) -> None:
    found = json.loads(result(str(clips["one"]), "--language", "be-tarask", "--json"))
    assert (found["adapter"], found["base"], found["language"]) == ("transcribe-be@2", "debug-whisper", "be")
    whole = [AudioSpan(0, 0.5)]
    assert found["text"] == as_text(join(expected(store, clips["one"], whole, "transcribe-be@2", "be"), whole))
    assert found["seconds"] == 0.5
    named = result(str(clips["one"]), "--model", "transcribe-be@1")
    assert named.strip() == as_text(join(expected(store, clips["one"], whole, "transcribe-be@1", "be"), whole))
    assert named.strip() != found["text"]


def test_the_base_alone_hears_the_language_itself(store: Path, clips: dict[str, Path]) -> None:
    done = run("transcribe", str(clips["long"]), "--model", "debug", "--json")
    assert done.exit_code == 0, done.stderr
    found = json.loads(done.stdout)
    assert found["adapter"] is None
    assert found["language"] in ("en", "be", "kk", "tt", "uz")
    spans = cut(samples_of(clips["long"]), 4.0)
    texts = expected(store, clips["long"], spans, None, found["language"])
    assert found["text"] == as_text(join(texts, spans))


def test_a_long_recording_is_cut_at_its_pauses(store: Path, clips: dict[str, Path]) -> None:
    found = json.loads(result(str(clips["long"]), "--language", "be", "--json"))
    spans = cut(samples_of(clips["long"]), 4.0)
    assert len(spans) == 2
    segments = join(expected(store, clips["long"], spans, "transcribe-be@2", "be"), spans)
    assert [(one["start"], one["end"], one["text"]) for one in found["segments"]] == [
        (one.start, one.end, one.text) for one in segments
    ]
    assert found["text"] == as_text(segments)


def test_every_format_says_the_same(store: Path, clips: dict[str, Path]) -> None:
    words = [str(clips["long"]), "--language", "be"]
    text = result(*words).rstrip("\n")
    assert text
    found = [json.loads(result(*words, "--json", "--words"))]
    assert json.loads(rendered(found, "json")) == {"text": text}
    verbose = json.loads(rendered(found, "verbose_json"))
    assert (verbose["task"], verbose["language"], verbose["text"]) == ("transcribe", "be", text)
    assert verbose["duration"] == pytest.approx(6.4)
    assert [one["id"] for one in verbose["segments"]] == list(range(len(verbose["segments"])))
    assert rendered(found, "text") == text
    srt = result(*words, "--format", "srt")
    assert srt == rendered(found, "srt")
    assert srt.startswith("1\n00:00:0")
    vtt = rendered(found, "vtt")
    assert vtt.startswith("WEBVTT\n\n00:00:0")
    assert srt.count(" --> ") == vtt.count(" --> ") >= len(verbose["segments"])
    said = "".join(line for line in srt.splitlines() if "-->" not in line and not line.isdigit())
    assert "".join(said.split()) == "".join(text.split())


def test_words_come_with_their_times_when_they_are_asked_for(store: Path, clips: dict[str, Path]) -> None:
    asked = [str(clips["long"]), "--language", "be"]
    plain, found = (json.loads(result(*asked, "--json", *more)) for more in ((), ("--words",)))
    assert "words" not in plain["segments"][0]
    words = [word for segment in found["segments"] for word in segment["words"]]
    assert "".join("".join(word["text"] for word in words).split()) == "".join(found["text"].split())
    assert all(0 <= word["start"] <= word["end"] <= found["seconds"] for word in words)
    verbose = json.loads(result(*asked, "--format", "verbose_json", "--words"))
    assert verbose["words"] == [{"word": one["text"], "start": one["start"], "end": one["end"]} for one in words]
    assert "words" not in verbose["segments"][0]
    fails(2, "--words", "transcribe", *asked, "--words")


def test_several_recordings_are_one_line_each_or_one_list(store: Path, clips: dict[str, Path]) -> None:
    paths = [str(clips["one"]), str(clips["two"])]
    alone = [result(path, "--language", "be").rstrip("\n") for path in paths]
    lines = [f"{path}\t{text}\n" for path, text in zip(paths, alone, strict=True)]
    assert result(*paths, "--language", "be") == "".join(lines)
    found = json.loads(result(*paths, "--language", "be", "--json"))
    for several in (found, *(json.loads(rendered(found, form)) for form in ("json", "verbose_json"))):
        assert [(one["file"], one["text"]) for one in several] == list(zip(paths, alone, strict=True))


def test_each_recording_is_heard_in_its_own_language(store: Path, clips: dict[str, Path]) -> None:
    paths = [str(clips[name]) for name in ("one", "long", "two")]
    found = json.loads(result(*paths, "--model", "debug", "--json"))
    for path, one in zip(paths, found, strict=True):
        alone = json.loads(result(path, "--model", "debug", "--json"))
        assert one == alone


def test_a_prompt_and_what_is_odd_about_a_file_reach_the_model_and_the_user(
    store: Path, clips: dict[str, Path], tmp_path: Path
) -> None:
    plain = result(str(clips["one"]), "--model", "debug", "--language", "kk")
    assert result(str(clips["one"]), "--model", "debug", "--language", "kk", "--prompt", "добры дзень") != plain
    loud = tmp_path / "loud.wav"
    soundfile.write(loud, np.clip(9 * sound(1.0, 300), -1, 1), RATE)
    done = run("transcribe", str(loud), "--language", "be", "--json")
    assert "clipped" in done.stderr
    assert "clipped" in json.loads(done.stdout)["warnings"][0]


def test_hot_words(store: Path, clips: dict[str, Path], monkeypatch: pytest.MonkeyPatch) -> None:
    words = (str(clips["one"]), "--language", "be")
    assert result(*words, "--no-language-model") == result(*words)  # this adapter has none
    monkeypatch.setattr("kauli.models.speech.hot_words.BONUS", 30.0)  # of random weights, which want nothing
    assert "жаба" in result(*words, "--hotwords", "жаба").lower()


def test_wrong_use_of_transcribe_is_one_clear_error(store: Path, clips: dict[str, Path], tmp_path: Path) -> None:
    one, two = str(clips["one"]), str(clips["two"])
    fails(2, "none.wav", "transcribe", str(tmp_path / "none.wav"))
    fails(2, f"audio {tmp_path}", "transcribe", str(tmp_path))
    (tmp_path / "page.wav").write_text("<html>no sound</html>")
    fails(2, "page.wav", "transcribe", str(tmp_path / "page.wav"), str(tmp_path / "none.wav"), "--language", "be")
    soundfile.write(tmp_path / "silent.wav", np.zeros(RATE), RATE)
    fails(2, "silent", "transcribe", str(tmp_path / "silent.wav"), "--language", "be")
    fails(2, "Did you mean 'vtt'", "transcribe", one, "--format", "vt")
    fails(2, "one file", "transcribe", one, two, "--format", "srt")
    fails(2, "--json and --format srt", "transcribe", one, "--format", "srt", "--json")
    fails(2, "'ky'", "transcribe", one, "--model", "debug", "--language", "ky")
    fails(2, "not for 'kk'", "transcribe", one, "--model", "transcribe-be", "--language", "kk")
    fails(2, "transcribe-bee", "transcribe", one, "--model", "transcribe-bee")
    fails(2, "Model 'fused-be@1' cannot transcribe; use model 'transcribe'", "transcribe", one, "--model", "fused-be")
    fails(2, "nonsense-language", "transcribe", one, "--language", "nonsense-language")
    fails(2, f"--hotwords: '{'a' * 65}' has 65 characters", "transcribe", one, "--hotwords", "a" * 65)


def test_files_that_cannot_be_read_do_not_cost_the_others_their_transcripts(
    store: Path, clips: dict[str, Path], tmp_path: Path
) -> None:
    silent = tmp_path / "silent.wav"
    soundfile.write(silent, np.zeros(RATE), RATE)
    words = ["transcribe", str(clips["one"]), str(silent), str(clips["two"]), "--language", "be"]
    done = run(*words)
    assert done.exit_code == 1
    assert f"error: audio {silent}: the audio is silent" in done.stderr
    assert [line.partition("\t")[0] for line in done.stdout.splitlines()] == [str(clips["one"]), str(clips["two"])]
    for form in (["--json"], ["--format", "verbose_json"]):
        done = run(*words, *form)
        assert done.exit_code == 1
        first, failed, last = json.loads(done.stdout)
        assert failed["file"] == str(silent)
        assert "the audio is silent" in failed["error"]
        assert first["text"] != last["text"]


def test_hum_is_not_transcribed_unless_that_is_wanted(store: Path, tmp_path: Path) -> None:
    hum = tmp_path / "hum.wav"
    soundfile.write(hum, 0.02 * np.sin(2 * np.pi * 50 * np.arange(2 * RATE) / RATE), RATE)
    words = [str(hum), "--model", "debug", "--language", "auto", "--format", "verbose_json"]
    found = json.loads(result(*words))
    assert (found["text"], found["segments"]) == ("", [])
    assert found["warnings"] == ["the transcript from 0.0 to 2.0 s is empty: steady noise near silence"]
    found = json.loads(result(*words, "--no-speech-threshold", "1"))
    assert set(found["segments"][0]) == {
        "id", "seek", "start", "end", "text", "tokens", "temperature", "avg_logprob", "compression_ratio",
        "no_speech_prob",
    }  # fmt: skip
    lost = json.loads(result(*words, "--no-speech-threshold", "0", "--logprob-threshold", "0"))
    assert lost["text"] == ""


def described(store: Path, media: list[Media], prompt: str | None) -> str:
    """What the model itself says, in 6 tokens."""
    task = TextTask.load(find_base("debug"))
    task.add_adapter("fused-be@1", Registry(str(store)).fetch("fused-be@1"))
    request = TextRequest.of_prompt(prompt, tuple(media), max_tokens=6)
    return "".join(chunk.text for step in task.generate([request], ["fused-be@1"]) for chunk in step).strip()


def test_a_recording_is_described_alone_and_behind_a_picture(
    store: Path, clips: dict[str, Path], picture: Path
) -> None:
    ears, eyes = AudioTower.load(speech_base()), ImageTower.load(find_base("debug", task="align"))
    heard = Media("audio", ears.features([samples_of(clips["one"])], STACK)[0].numpy().astype(np.float16))
    seen = Media("image", eyes.features([decode_image(picture.read_bytes())], 1)[0].numpy().astype(np.float16))
    ask = ["describe", "--audio", str(clips["one"]), "--language", "be", "--max-tokens", "6"]
    alone = run(*ask, "--json")
    assert alone.exit_code == 0, alone.stderr
    found = json.loads(alone.stdout)
    assert (found["adapter"], found["prompt"]) == ("fused-be@1", "Say it in Belarusian.")
    assert found["text"] == described(store, [heard], "Say it in Belarusian.")
    both = run(*ask, "--image", str(picture), "--prompt", "What?", "--json")
    assert both.exit_code == 0, both.stderr
    found = json.loads(both.stdout)
    assert found["text"] == described(store, [seen, heard], "What?")
    other = run("describe", "--audio", str(clips["two"]), "--model", "fused-be", "--max-tokens", "6")
    assert other.exit_code == 0, other.stderr


def test_wrong_use_of_describe_is_one_clear_error(store: Path, clips: dict[str, Path], picture: Path) -> None:
    fails(2, "--audio FILE", "describe", "--language", "be")
    fails(
        2,
        "takes no audio: use an adapter that does, such as 'fused-be'",
        "describe",
        "--audio",
        str(clips["one"]),
        "--language",
        "sw",
    )
    fails(2, "4.0 are allowed", "describe", "--audio", str(clips["long"]), "--language", "be")
    fails(2, "--image FILE", "describe", "--audio", str(clips["one"]), "--language", "be", "--rerank", "2")
    fails(2, f"audio {picture}", "describe", "--audio", str(picture), "--language", "be")
