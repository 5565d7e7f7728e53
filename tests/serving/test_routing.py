"""What is served: settings, and who answers a request."""

from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import yaml

from kauli.models.adapters.registry import Registry
from kauli.models.bases.find import find_base
from kauli.models.errors import UsageError
from kauli.serving import routing
from kauli.serving.routing import Catalogue, UnknownLanguage, UnknownModel, choose_bases
from kauli.serving.settings import RENAMED, ImageArgs, ServeArgs, load_settings, parse_settings
from kauli.serving.tasks import WORKERS
from support.speech_adapters import publish_transcribe

# Settings


def test_flag_beats_variable_beats_file_beats_default(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    config = tmp_path / "serve.yaml"
    config.write_text("port: 1001\nhost: localhost\nmax_queue: 3\n")
    monkeypatch.setenv("KAULI_PORT", "1002")
    monkeypatch.setenv("KAULI_STORAGE", "/from/variable")
    settings = load_settings(config, port=None)
    assert (settings.port, settings.host, settings.max_queue, settings.text.batch) == (1002, "localhost", 3, 16)
    assert settings.storage == "/from/variable"
    assert load_settings(config, port=1003).port == 1003


def test_shipped_settings_are_the_defaults(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("KAULI_STORAGE", raising=False)
    shipped = Path(__file__).parents[2] / "deploy" / "local.yaml"
    assert load_settings(shipped) == load_settings()


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("prot: 1", "Did you mean 'port'"),
        ("port: 70000", "port"),
        ("tasks: [sing]", "task 'sing' can't be served"),
        ("text: {replicas: [2, 1]}", "fewest, most"),
        ("max_adapters: 2", "below text.batch"),
        ("audio: {batch: 64}", "below audio.batch"),
        ("audio: {replicas: [2, 1]}", "fewest, most"),
        ("text: {replicas: 2}", "text.replicas"),
        ("image: {bach: 2}", r"unknown setting 'image.bach'. Did you mean 'batch'"),
        ("image: 3", "setting image=3"),
        ("max_audio_clip: 2", "Did you mean 'max_audio_clips'"),
        ("key_hashes: [secret]", "KAULI_API_KEYS"),
        ("- 1", "key: value"),
        ("a: [", "is not readable YAML"),
        ("host: 0.0.0.0", "KAULI_API_KEYS"),
    ],
)
def test_bad_settings_are_named(tmp_path: Path, text: str, said: str) -> None:
    config = tmp_path / "serve.yaml"
    config.write_text(text)
    with pytest.raises(UsageError, match=said):
        load_settings(config)


@pytest.mark.parametrize("old", RENAMED)
def test_a_former_key_is_an_error_that_names_the_new_one(old: str) -> None:
    with pytest.raises(UsageError, match=f"setting '{old}' is now '{RENAMED[old]}'"):
        parse_settings({old: 1})


@pytest.mark.parametrize(("old", "new"), [("KAULI_ENCODER", "KAULI_IMAGE_BASE"), ("KAULI_SPEECH", "KAULI_AUDIO_BASE")])
def test_a_former_variable_is_an_error_that_names_the_new_one(
    old: str, new: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(old, "some-base")
    with pytest.raises(UsageError, match=f"variable {old} is now {new}"):
        load_settings()


def test_settings_of_workers_are_merged_key_by_key(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    config = tmp_path / "serve.yaml"
    config.write_text("image: {batch: 2, base: from-file}\n")
    assert load_settings(config).image == ImageArgs(batch=2, base="from-file")
    monkeypatch.setenv("KAULI_IMAGE_BASE", "from-variable")
    assert load_settings(config).image == ImageArgs(batch=2, base="from-variable")
    assert load_settings(config, image={"batch": 3}).image == ImageArgs(batch=3, base="from-variable")


def test_shipped_settings_show_every_key() -> None:
    text = (Path(__file__).parents[2] / "deploy" / "local.yaml").read_text()
    shown = yaml.safe_load(text) | {"threads": None, "storage": None}
    assert set(shown) == set(ServeArgs.model_fields)
    assert all(f"# {key}:" in text for key in ("threads", "storage"))
    for worker in WORKERS:
        assert set(shown[worker]) == set(type(ServeArgs().worker(worker)).model_fields)


def test_another_address_is_allowed_with_keys(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("KAULI_API_KEYS", "one, two")
    settings = load_settings(host="0.0.0.0")
    assert len(settings.key_hashes) == 2
    assert "one" not in settings.model_dump_json()
    assert settings.url == "http://127.0.0.1:8000"


# Who answers


def test_routes(storage: Path) -> None:
    base = find_base("debug")
    catalogue = Catalogue(Registry(str(storage)), {"text": choose_bases(Registry(str(storage)))})

    def route(*words: Any) -> tuple[str | None, str | None]:
        found = catalogue.route(*words)
        assert found.base == base.name
        return found.adapter, found.language

    assert route("text") == (None, None)
    assert route(base.name, "sw") == (None, "sw")
    assert route("text", "swh_Latn") == ("text-sw@2", "sw")  # neither alias: the newest version
    assert route("text", "be-tarask") == ("text-be@1", "be")  # the chain; one language is nearer than three
    assert route("text", "am") == ("text-many@1", "am")
    assert route("text-sw@1") == ("text-sw@1", "sw")
    assert route("text-many") == ("text-many@1", None)
    assert route("text", "ka", True) == (None, "ka")


@pytest.mark.parametrize(
    ("model", "language", "error", "said"),
    [
        ("text-ws", None, UnknownModel, "Did you mean 'text-sw'"),
        ("text-sw@9", None, UnknownModel, "no version or alias '9'; it has 1, 2"),
        ("../../etc", None, UnknownModel, "not served"),
        ("text", "ka", UnknownLanguage, "kauli train text-sw --set language=ka"),
        ("text-sw", "am", UnknownLanguage, "is for sw, not for 'am'"),
        ("text", "swahilli", UsageError, "unknown language"),
    ],
)
def test_routes_to_nowhere(storage: Path, model: str, language: str | None, error: type[Exception], said: str) -> None:
    catalogue = Catalogue(Registry(str(storage)), {"text": [find_base("debug")]})
    with pytest.raises(error, match=said):
        catalogue.route(model, language)


def test_aliases_and_new_adapters_are_seen(
    storage: Path, tmp_path: Path, publish: Callable[..., str], monkeypatch: pytest.MonkeyPatch
) -> None:
    now = 0.0
    monkeypatch.setattr(routing, "time", SimpleNamespace(monotonic=lambda: now))
    base = find_base("debug")
    registry = Registry(str(tmp_path))
    catalogue = Catalogue(registry, {"text": [base]}, refresh_s=3600)
    assert catalogue.adapters() == []
    publish(tmp_path, "text-ka", "ka", 1)
    assert catalogue.route("text-ka").adapter == "text-ka@1"  # an unknown name looks at the registry again
    publish(tmp_path, "text-lg", "lg", 4)
    now = 0.4  # but not twice in half a second
    with pytest.raises(UnknownModel):
        catalogue.route("text-lg")
    now = 0.6
    assert catalogue.route("text-lg").adapter == "text-lg@1"
    publish(tmp_path, "text-ka", "ka", 2)
    registry.set_alias("text-ka", 1, "prod")
    fresh = Catalogue(registry, {"text": [base]}, refresh_s=0)
    assert fresh.route("text-ka").adapter == "text-ka@1"
    assert fresh.route("text-ka@2").adapter == "text-ka@2"
    assert fresh.route("text", "ka").adapter == "text-ka@1"
    publish(tmp_path, "text-yo", "yo", 3)
    assert [adapter.name for adapter in catalogue.adapters()] == ["text-ka", "text-lg"]
    catalogue.reread()
    assert [adapter.name for adapter in catalogue.adapters()] == ["text-ka", "text-lg", "text-yo"]


def test_routes_of_transcripts(tmp_path: Path) -> None:
    registry = Registry(str(tmp_path))
    publish_transcribe(tmp_path, "transcribe-be", "be", 1)
    publish_transcribe(tmp_path, "transcribe-ky", "ky", 2)
    catalogue = Catalogue(registry, {"text": [find_base("debug")], "audio": [find_base("debug", task="transcribe")]})

    def route(*words: Any) -> tuple[str, str | None, str | None]:
        found = catalogue.route(*words)
        return found.base, found.adapter, found.language

    assert route("transcribe") == ("debug-whisper", None, None)  # which detects the language
    assert route("transcribe", "be-tarask") == ("debug-whisper", "transcribe-be@1", "be")
    assert route("transcribe-ky") == ("debug-whisper", "transcribe-ky@1", "ky")
    assert route("debug-whisper", "tt") == ("debug-whisper", None, "tt")
    assert route("transcribe", "tt", True) == ("debug-whisper", None, "tt")
    with pytest.raises(UnknownLanguage, match=r"task 'transcribe' serves 'tt'. Languages: be, ky.*allow_base"):
        catalogue.route("transcribe", "tt")
    with pytest.raises(UnknownModel, match=r"needs a speech recogniser.*kauli fetch whisper-base"):
        Catalogue(registry, {"text": [find_base("debug")]}).route("transcribe-be")
    other = Catalogue(registry, {"audio": [find_base("debug-wav2vec2", task="transcribe")]})
    with pytest.raises(UnknownModel, match=r"needs the base 'debug-whisper'.*audio.base: debug-whisper"):
        other.route("transcribe-be")


def test_an_adapter_of_a_base_that_is_not_served(storage: Path) -> None:
    other = find_base("debug-qwen")
    with pytest.raises(UnknownModel, match=r"needs the base 'debug-text'.*--base debug-text"):
        Catalogue(Registry(str(storage)), {"text": [other]}).route("text-sw")
    assert Catalogue(Registry(str(storage)), {"text": [other]}).adapters() == []
