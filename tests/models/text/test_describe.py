"""Images before a language model: the places of their features, what a connector computes, mixed adapters."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from kauli.models.adapters.kinds.lora import Lora
from kauli.models.bases.find import find_base
from kauli.models.engine.packing import FEATURE, MediaFeatures, pack
from kauli.models.errors import KauliError, UsageError
from kauli.models.requests import MARK, Media, Message, TextRequest
from kauli.models.tasks import load_served, load_trainable
from kauli.models.text.connector import SETTINGS, WEIGHTS, Connector, PartSettings
from kauli.models.text.language_model import answer_losses
from kauli.models.text.task import TextTask

WIDTH, PLACES = 24, 3
PARTS = {"image": PartSettings(encoder="made-up", sha256="0" * 64, width=WIDTH, places=PLACES, grid=1, inner=16)}


def image(seed: int) -> tuple[Media, ...]:
    return (Media("image", torch.randn(PLACES, WIDTH, generator=torch.Generator().manual_seed(seed)).numpy()),)


def rows(count: int = 6) -> list[dict[str, Any]]:
    return [{"prompt": "what?", "text": f"mti {at} mto", "media": image(at)} for at in range(count)]


def adapter(folder: Path, base: str, seed: int, connector: bool = True) -> Path:
    """An adapter of random weights that change every answer."""
    task = load_trainable("describe", find_base(base), device="cpu")
    torch.manual_seed(seed)
    if connector:
        task.add_connector(PARTS, rows())
        for parameter in task.connector.parameters():
            torch.nn.init.normal_(parameter, std=0.3)
    task.attach(Lora(rank=4, targets="all-linear"))
    for name, parameter in task.model.named_parameters():
        if "lora_B" in name:
            torch.nn.init.normal_(parameter, std=0.3)
    task.save(folder)
    return folder


@pytest.fixture(params=["debug", "debug-gemma", "debug-qwen"])
def base(request: pytest.FixtureRequest) -> str:
    return str(request.param)


def text_of(task: TextTask, requests: list[TextRequest], keys: list[str | None]) -> list[str]:
    texts = [""] * len(requests)
    for chunks in task.generate(requests, keys):
        for chunk in chunks:
            texts[chunk.row] += chunk.text
    return texts


def test_features_take_the_place_of_the_mark(base: str) -> None:
    task = load_served("describe", find_base(base), device="cpu")
    (one,) = image(0)
    request = TextRequest((Message("user", f"look {MARK} here"),), media=(one,))
    plain = task.prompt_tokens(TextRequest((Message("user", "look  here"),)))
    tokens = task.prompt_tokens(request)
    at = tokens.index(FEATURE)
    assert tokens[at : at + PLACES] == [FEATURE] * PLACES
    assert [token for token in tokens if token != FEATURE] == plain
    assert task.tokenizer.decode(tokens[:at]).endswith("look ")


def test_a_mark_without_an_image_is_no_place() -> None:
    task = load_served("describe", find_base("debug"), device="cpu")
    tokens = task.prompt_tokens(TextRequest.of_prompt(f"a{MARK}b"))
    assert FEATURE not in tokens
    assert tokens == task.prompt_tokens(TextRequest.of_prompt("ab"))


def test_marks_and_images_must_be_as_many() -> None:
    task = load_served("describe", find_base("debug"), device="cpu")
    with pytest.raises(UsageError, match="the text has 2 marks for media, but 1 images or clips are given"):
        task.prompt_tokens(TextRequest((Message("user", MARK * 2),), media=image(0)))


def test_a_connector_computes_its_formula() -> None:
    connector = Connector(PARTS, 8)
    for parameter in connector.parameters():
        torch.nn.init.normal_(parameter)
    part: Any = connector.parts["image"]
    part.mean.fill_(0.5)
    part.std.fill_(2.0)
    values = torch.randn(4, WIDTH)
    found = connector("image", MediaFeatures(values, torch.tensor([0, 1, 2, 9]), torch.arange(4)))
    x = (values - 0.5) / 2
    inner = torch.nn.functional.gelu(x @ part.up.weight.T + part.up.bias)
    expected = x @ part.straight.weight.T + part.straight.bias + inner @ part.down.weight.T + part.down.bias
    expected = expected + part.place[[0, 1, 2, 2]]  # a place beyond the last shares the last
    torch.testing.assert_close(found, expected)


def test_a_connector_is_initialised_by_ridge_regression() -> None:
    from sklearn.linear_model import Ridge

    features, targets = torch.randn(50, WIDTH), torch.randn(50, 8)
    connector = Connector(PARTS, 8)
    connector.initialise("image", features, targets, penalty=0.5)
    x = (features - features.mean(0)) / (features.std(0) + 1e-3)
    peer = Ridge(alpha=0.5 * 50).fit(x.double().numpy(), targets.double().numpy())
    zero = torch.zeros(50, dtype=torch.long)
    found = connector("image", MediaFeatures(features, zero, zero)).detach().numpy()
    np.testing.assert_allclose(found, peer.predict(x.double().numpy()), atol=1e-4)


def test_a_packed_loss_is_that_of_the_embeddings_put_in_by_hand(base: str) -> None:
    task = load_trainable("describe", find_base(base), device="cpu")
    task.add_connector(PARTS, rows())
    connector = task.connector
    assert connector is not None
    for parameter in connector.parameters():
        torch.nn.init.normal_(parameter, std=0.2)
    documents = task.encode(rows(3))
    with torch.no_grad():
        together = float(answer_losses(task.trained, pack(documents)).mean())
        losses = []
        for document, row in zip(documents, rows(3), strict=True):
            tokens = torch.tensor(document.tokens)
            marked = tokens == FEATURE
            embedded = task.model.get_input_embeddings()(tokens.clamp(min=0))
            values = torch.as_tensor(row["media"][0].features)
            embedded[marked] = connector("image", MediaFeatures(values, torch.arange(PLACES), torch.arange(PLACES)))
            logits = task.model(inputs_embeds=embedded[None]).logits[0, document.answer_start - 1 : -1]
            losses.append(torch.nn.functional.cross_entropy(logits, tokens[document.answer_start :], reduction="none"))
        assert together == pytest.approx(float(torch.cat(losses).mean()), rel=1e-4)


def test_mixed_connectors_and_adapters_answer_as_each_alone(base: str, tmp_path: Path) -> None:
    task = load_served("describe", find_base(base), device="cpu")
    for seed in (1, 2):
        task.add_adapter(f"fused-{seed}", adapter(tmp_path / str(seed), base, seed))
    task.add_adapter("reads", adapter(tmp_path / "reads", base, 3, connector=False))
    requests = [TextRequest.of_prompt("what?", image(at), max_tokens=10) for at in range(4)]
    requests += [TextRequest.of_prompt("what?", max_tokens=10)] * 3
    keys = ["fused-1", "fused-2", "fused-1", "fused-2", "fused-1", "reads", None]
    together = text_of(task, requests, keys)
    assert together == [text_of(task, [one], [key])[0] for one, key in zip(requests, keys, strict=True)]
    assert len(set(together)) > 3


def test_the_answer_depends_on_the_image(tmp_path: Path) -> None:
    task = load_served("describe", find_base("debug"), device="cpu")
    task.add_adapter("fused", adapter(tmp_path / "a", "debug", 1))
    requests = [TextRequest.of_prompt("what?", image(at), max_tokens=10) for at in range(6)]
    assert len(set(text_of(task, requests, ["fused"] * 6))) > 1


def test_a_bare_image_and_several_images_are_answered(tmp_path: Path) -> None:
    task = load_served("describe", find_base("debug"), device="cpu")
    task.add_adapter("fused", adapter(tmp_path / "a", "debug", 1))
    bare = TextRequest.of_prompt(None, image(0), max_tokens=4)
    two = TextRequest((Message("user", f"{MARK} and {MARK}"),), media=image(0) + image(1), max_tokens=4)
    assert all(text_of(task, [bare, two], ["fused", "fused"]))


def test_without_a_connector_an_image_is_refused(tmp_path: Path) -> None:
    task = load_served("describe", find_base("debug"), device="cpu")
    task.add_adapter("reads", adapter(tmp_path / "a", "debug", 1, connector=False))
    for key in (None, "reads"):
        with pytest.raises(UsageError, match="takes no image: it has no connector for that kind of media"):
            task.submit(TextRequest.of_prompt("what?", image(0)), key)
        with pytest.raises(UsageError, match="takes no images or audio: it has no connector"):
            task.bits(rows(2), key)


def test_a_prompt_whose_media_leave_no_room_for_the_text_is_refused() -> None:
    task = load_served("describe", find_base("debug"), device="cpu")
    with pytest.raises(UsageError, match=r"row 7: with its media the prompt has \d+ tokens"):
        task.encode([{**rows(1)[0], "id": 7}], max_length=12)


def test_a_connector_of_another_width_is_refused(tmp_path: Path) -> None:
    folder = adapter(tmp_path / "a", "debug", 1)
    Connector(PARTS, 63).save(folder)
    with pytest.raises(KauliError, match="maps to 63 dimensions, the embeddings of base 'debug-text' have 64"):
        load_served("describe", find_base("debug"), device="cpu").add_adapter("a", folder)


@pytest.mark.parametrize("damage", ["settings", "missing", "weights", "nan"])
def test_a_damaged_connector_is_refused(tmp_path: Path, damage: str) -> None:
    connector = Connector(PARTS, 8)
    if damage == "nan":
        torch.nn.init.constant_(connector.parts["image"].place, float("nan"))  # type: ignore[arg-type]
    connector.save(tmp_path)
    if damage == "settings":
        (tmp_path / SETTINGS).write_text('{"hidden": 8}')
    if damage == "missing":
        (tmp_path / WEIGHTS).unlink()
    if damage == "weights":
        (tmp_path / WEIGHTS).write_bytes(b"nothing")
    with pytest.raises(KauliError, match=r"the connector in .* is damaged"):
        Connector.load(tmp_path)


def test_start_from_takes_a_text_adapter_or_a_whole_one(tmp_path: Path) -> None:
    reads = adapter(tmp_path / "reads", "debug", 3, connector=False)
    fused = adapter(tmp_path / "fused", "debug", 1)
    for folder, takes_connector in ((reads, False), (fused, True)):
        task = load_trainable("describe", find_base("debug"), device="cpu")
        task.add_connector(PARTS, rows())
        before = {name: value.clone() for name, value in task.connector.state_dict().items()}
        task.attach(Lora(rank=4, targets="all-linear"))
        task.start_from(folder)
        changed = any(not torch.equal(value, before[name]) for name, value in task.connector.state_dict().items())
        assert changed == takes_connector
        task.save(tmp_path / "out")
        expected = load_served("describe", find_base("debug"), device="cpu")
        expected.add_adapter("theirs", folder)
        expected.add_adapter("ours", tmp_path / "out")
        request = TextRequest.of_prompt("what?", max_tokens=8)
        assert len(set(text_of(expected, [request, request], ["theirs", "ours"]))) == 1
