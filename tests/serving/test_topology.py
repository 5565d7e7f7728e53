"""What a service offers, by its settings and what the storage and this machine hold."""

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch

from kauli.models.adapters.registry import Registry
from kauli.models.bases.find import Base
from kauli.models.errors import UsageError
from kauli.serving.routing import Catalogue, UnknownModel
from kauli.serving.settings import ServeArgs
from kauli.serving.topology import Topology, choose_topology
from support.picture_adapters import publish_describe, publish_head
from support.speech_adapters import publish_hearing, publish_transcribe

Names = tuple[tuple[str, ...], list[str], str | None, str | None]
Audio = tuple[tuple[str, ...], str | None, str | None]


@pytest.fixture
def storage(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("KAULI_HOME", str(tmp_path / "home"))
    return tmp_path / "store"


def chosen(storage: Path, **settings: Any) -> Topology:
    return choose_topology(Registry(str(storage)), ServeArgs(storage=str(storage), **settings))


def base_of(bases: Mapping[str, Sequence[Base]], worker: str) -> str | None:
    return next((base.name for base in bases.get(worker, ())), None)


def names(found: Topology) -> Names:
    """Tasks, the bases for text, the image encoder, and the base that has the shared space."""
    texts = [base.name for base in found.bases.get("text", ())]
    return found.tasks, texts, base_of(found.bases, "image"), base_of(found.answering, "image")


def audio(found: Topology) -> Audio:
    """Tasks, the audio encoder, and the base that transcribes."""
    return found.tasks, base_of(found.bases, "audio"), base_of(found.answering, "audio")


def test_text_adapters_alone_need_no_encoder(storage: Path, publish: Callable[..., str]) -> None:
    publish(storage, "text-sw", "sw", 1)
    assert names(chosen(storage)) == (("text",), ["debug-text"], None, None)


def test_describe_adapters_bring_the_encoder_that_they_name(storage: Path) -> None:
    publish_describe(storage, "describe-sw", "sw", 1)
    tasks = ("text", "describe", "embed", "classify")
    assert names(chosen(storage)) == (tasks, ["debug-text"], "debug-clip", "debug-clip")
    assert names(chosen(storage, tasks=["text"], bases=["debug"])) == (("text",), ["debug-text"], None, None)


def test_a_head_brings_its_base(storage: Path, publish: Callable[..., str]) -> None:
    publish(storage, "text-sw", "sw", 1)
    publish_head(storage, "topic-sw", "sw", torch.eye(2, 32), torch.tensor([0, 1]))
    assert names(chosen(storage)) == (("text", "embed", "classify"), ["debug-text"], "debug-clip", "debug-clip")
    assert names(chosen(storage, tasks=["classify"])) == (("classify",), [], "debug-clip", "debug-clip")


def test_towers_that_were_only_joined_describe_and_do_not_embed(storage: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    publish_describe(storage, "describe-sw", "sw", 1)
    monkeypatch.setattr("kauli.serving.topology.is_aligned", lambda base: base.name != "debug-clip")
    assert names(chosen(storage)) == (("text", "describe"), ["debug-text"], "debug-clip", None)
    with pytest.raises(UsageError, match="kauli fetch kauli-clip"):
        chosen(storage, tasks=["text", "embed"])
    publish_head(storage, "topic-sw", "sw", torch.eye(2, 32), torch.tensor([0, 1]))
    assert names(chosen(storage)) == (("text", "describe", "classify"), ["debug-text"], "debug-clip", "debug-clip")
    assert names(chosen(storage, tasks=["classify"])) == (("classify",), [], "debug-clip", "debug-clip")


def test_transcribe_adapters_bring_their_base(storage: Path, publish: Callable[..., str]) -> None:
    publish(storage, "text-sw", "sw", 1)
    assert audio(chosen(storage)) == (("text",), None, None)
    publish_transcribe(storage, "transcribe-be", "be", 1)
    assert audio(chosen(storage)) == (("text", "transcribe"), "debug-whisper", "debug-whisper")
    assert names(chosen(storage))[1:] == (["debug-text"], None, None)
    assert audio(chosen(storage, tasks=["text"])) == (("text",), None, None)
    alone = chosen(storage, tasks=["transcribe"])
    assert (names(alone)[1], audio(alone)) == ([], (("transcribe",), "debug-whisper", "debug-whisper"))


def test_adapters_that_hear_bring_the_encoder_that_they_name(storage: Path) -> None:
    publish_hearing(storage, "describe-sw", "sw", 1)
    tasks = ("text", "describe", "transcribe", "embed", "classify")
    assert audio(chosen(storage)) == (tasks, "debug-whisper", "debug-whisper")
    assert audio(chosen(storage, tasks=["describe"])) == (("describe",), "debug-whisper", None)
    assert audio(chosen(storage, tasks=["text", "embed"], bases=["debug"])) == (("text", "embed"), None, None)


def test_what_the_settings_name_and_is_missing_is_an_error(storage: Path, publish: Callable[..., str]) -> None:
    publish(storage, "text-sw", "sw", 1)
    with pytest.raises(UsageError, match="task 'describe' needs an image encoder"):
        chosen(storage, tasks=["describe"])
    with pytest.raises(UsageError, match=r"task 'transcribe' needs a speech recogniser.*kauli fetch whisper-base"):
        chosen(storage, tasks=["transcribe"])
    assert audio(chosen(storage, tasks=["transcribe"], audio={"base": "debug-whisper"}))[1:] == ("debug-whisper",) * 2
    with pytest.raises(UsageError, match="kauli-nowhere"):
        chosen(storage, image={"base": "kauli-nowhere"})
    with pytest.raises(UsageError, match="whisper-nowhere"):
        chosen(storage, tasks=["transcribe"], audio={"base": "whisper-nowhere"})
    assert names(chosen(storage, image={"base": "debug-clip"}))[2:] == ("debug-clip", "debug-clip")


def test_a_service_of_one_task_answers_that_alone(storage: Path) -> None:
    publish_describe(storage, "describe-sw", "sw", 1)
    topology = chosen(storage, tasks=["embed"])
    catalogue = Catalogue(Registry(str(storage)), topology.answering, tasks=topology.tasks)
    assert catalogue.route("embed").model == "debug-clip"
    assert catalogue.adapters() == []
    for model in ("text", "describe", "classify", "describe-sw"):
        with pytest.raises(UnknownModel, match=r"is not served here[:;].* embed"):
            catalogue.route(model)
    with pytest.raises(UnknownModel, match="No speech recogniser is served"):
        catalogue.route("transcribe")


def test_an_adapter_with_the_name_of_a_base_or_task_is_reached_by_its_version_alone(
    storage: Path, publish: Callable[..., str], capsys: pytest.CaptureFixture[str]
) -> None:
    registry = Registry(str(storage))
    old = registry.card(publish(storage, "text-sw", "sw", 1))
    for name in ("debug-text", "text"):  # as earlier versions let them be called
        folder = storage / "scratch" / "text-sw-1" / "ours"
        registry.publish(folder, old.model_copy(update={"name": name, "version": None, "files": {}}))
    found = chosen(storage)
    said = capsys.readouterr().err
    assert all(f"requests reach it as {spec} only" in said for spec in ("debug-text@1", "text@1"))
    catalogue = Catalogue(registry, found.answering, tasks=found.tasks)
    assert [adapter.public for adapter in catalogue.adapters()] == ["debug-text@1", "text@1", "text-sw"]
    assert catalogue.route("debug-text").adapter is None
    assert catalogue.route("text").adapter is None
    assert catalogue.route("debug-text@1").adapter == "debug-text@1"
    assert catalogue.route("text@1", "sw").adapter == "text@1"
