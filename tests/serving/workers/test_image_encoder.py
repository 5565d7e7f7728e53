"""The image encoder as a plain class: what it computes, once, together, within bounds, and what it refuses."""

import asyncio
import threading
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL.Image import Image

from kauli.models.adapters.registry import Registry
from kauli.models.bases.find import Base, find_base
from kauli.models.media.decode import decode_image
from kauli.models.vision.align import AlignTask
from kauli.models.vision.heads import Head
from kauli.models.vision.image_tower import ImageTower
from kauli.serving.events import EncodedMedia, Failed, MediaForm, Vectors, not_served
from kauli.serving.workers.feature_cache import FeatureCache
from kauli.serving.workers.image_encoder import ImageEncoder
from support.picture_adapters import CLASSES, png, publish_head
from support.settings import worker_args


@pytest.fixture(scope="module")
def base() -> Base:
    return find_base("debug", task="align")


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("store")


@pytest.fixture
def encoder(base: Base, store: Path) -> Iterator[ImageEncoder]:
    running = ImageEncoder(worker_args(store, image={"batch": 4}, max_queue=8), base, True)
    yield running
    running.close()


def form(encoder: ImageEncoder, grid: int = 1) -> MediaForm:
    return MediaForm("debug-clip", encoder._tower.sha256, grid)


class Watched:
    """Stands before an encoder's tower: how many pictures went through it at a time, and when they may."""

    def __init__(self, encoder: ImageEncoder) -> None:
        self._tower, self.name, self.sha256 = encoder._tower, encoder._tower.name, encoder._tower.sha256
        self.sizes: list[int] = []
        self.open = threading.Event()
        self.open.set()
        self.broken = False
        encoder._tower = self  # type: ignore[assignment]

    def features(self, images: Sequence[Image], grid: int) -> Any:
        self.open.wait(10)
        if self.broken:
            raise RuntimeError("out of memory")
        self.sizes.append(len(images))
        return self._tower.features(images, grid)


def test_features_are_those_of_training_and_the_second_time_cached(base: Base, encoder: ImageEncoder) -> None:
    async def run() -> list[EncodedMedia | Failed]:
        return [await encoder.features(png("red"), form(encoder, grid)) for grid in (2, 2, 0)]

    first, second, other = asyncio.run(run())
    assert isinstance(first, EncodedMedia)
    assert isinstance(second, EncodedMedia)
    assert isinstance(other, EncodedMedia)
    expected = ImageTower.load(base).features([decode_image(png("red"))], 2)[0].numpy().astype(np.float16)
    assert np.array_equal(first.values, expected)
    assert np.array_equal(second.values, expected)
    assert [first.cached, second.cached, other.cached] == [False, True, False]
    assert (other.values.shape, other.values.dtype) == ((1, 64), np.float16)
    counts = asyncio.run(encoder.counts())
    assert (counts["hits"], counts["misses"]) == (1, 2)
    assert counts["miss_ms"] > counts["hit_ms"] > 0


def test_pictures_and_texts_are_embedded_as_the_task_does(base: Base, encoder: ImageEncoder) -> None:
    found = asyncio.run(encoder.embed(["gari", png("red"), "e\u0301", "\u00e9"]))
    assert isinstance(found, Vectors)
    task = AlignTask.load(base)
    expected = torch.cat(
        [task.embed_texts(["gari"]), task.embed_images([decode_image(png("red"))]), task.embed_texts(["\u00e9"])]
    )
    assert np.allclose(found.values[:3], expected.numpy(), atol=1e-5)
    assert np.array_equal(found.values[2], found.values[3])  # one text in NFC
    assert found.tokens == 4 + 2 + 2  # bytes


def test_one_picture_asked_for_at_once_is_computed_once(encoder: ImageEncoder) -> None:
    watched = Watched(encoder)

    async def run() -> list[EncodedMedia | Failed]:
        return await asyncio.gather(*(encoder.features(png("red"), form(encoder)) for _ in range(5)))

    found = asyncio.run(run())
    assert watched.sizes == [1]
    assert all(isinstance(one, EncodedMedia) for one in found)


def test_pictures_asked_for_together_go_together_up_to_a_batch(encoder: ImageEncoder) -> None:
    watched = Watched(encoder)
    colours = ["red", "green", "blue", "white", "black", "grey"]

    async def run() -> list[EncodedMedia | Failed]:
        return await asyncio.gather(*(encoder.features(png(colour), form(encoder)) for colour in colours))

    found = asyncio.run(run())
    assert sum(watched.sizes) == 6
    assert max(watched.sizes) == 4
    alone = [asyncio.run(encoder.features(png(colour), form(encoder))) for colour in colours]
    for one, other in zip(found, alone, strict=True):
        assert isinstance(one, EncodedMedia)
        assert isinstance(other, EncodedMedia)
        assert other.cached
        assert np.array_equal(one.values, other.values)


@pytest.mark.parametrize(
    ("content", "said"),
    [(png("red")[:-20], "truncated"), (b"<svg xmlns='http://www.w3.org/2000/svg'/>", "SVG"), (b"", "is empty")],
)
def test_what_is_no_picture_fails_alone(encoder: ImageEncoder, content: bytes, said: str) -> None:
    async def run() -> list[EncodedMedia | Failed]:
        return await asyncio.gather(*(encoder.features(one, form(encoder)) for one in (content, png("blue"))))

    bad, good = asyncio.run(run())
    assert isinstance(bad, Failed)
    assert (bad.status, bad.code) == (400, "invalid_image")
    assert said in bad.message
    assert isinstance(good, EncodedMedia)
    several = asyncio.run(encoder.embed(["text", content]))
    assert isinstance(several, Failed)
    assert several.param == "input.1"


def test_another_tower_is_refused_by_name(encoder: ImageEncoder) -> None:
    failed = asyncio.run(encoder.features(png("red"), MediaForm("kauli-towers", "0" * 64, 1)))
    assert isinstance(failed, Failed)
    assert (failed.status, failed.code) == (503, "wrong_encoder")
    assert "kauli-towers (000000000000)" in failed.message
    assert f"debug-clip ({encoder._tower.sha256[:12]})" in failed.message


def test_the_queue_is_bounded_and_a_deadline_kept(base: Base, store: Path) -> None:
    encoder = ImageEncoder(worker_args(store, image={"batch": 1}, max_queue=2, deadline_s=0.3), base, True)
    watched = Watched(encoder)
    watched.open.clear()

    async def run() -> list[EncodedMedia | Failed]:
        first = asyncio.create_task(encoder.features(png("red"), form(encoder)))
        await asyncio.sleep(0.1)  # it is in the tower now
        others = [encoder.features(png(colour), form(encoder)) for colour in ("blue", "green", "white")]
        return [*await asyncio.gather(*others), await first]

    found = asyncio.run(run())
    watched.open.set()
    assert sorted(one.status for one in found if isinstance(one, Failed)) == [429, 504, 504, 504]
    encoder.close()
    after = asyncio.run(encoder.features(png("red"), form(encoder)))
    assert isinstance(after, Failed)
    assert after.status == 503


def test_a_failing_batch_does_not_end_the_service(encoder: ImageEncoder) -> None:
    watched = Watched(encoder)
    watched.broken = True
    failed = asyncio.run(encoder.features(png("red"), form(encoder)))
    assert isinstance(failed, Failed)
    assert failed.status == 500
    assert "memory" not in failed.message
    watched.broken = False
    assert isinstance(asyncio.run(encoder.features(png("red"), form(encoder))), EncodedMedia)
    assert asyncio.run(encoder.check()) is None


def test_towers_alone_see_and_have_no_shared_space(base: Base, store: Path) -> None:
    encoder = ImageEncoder(worker_args(store), base, False)
    assert isinstance(asyncio.run(encoder.features(png("red"), form(encoder))), EncodedMedia)
    assert asyncio.run(encoder.embed(["text"])) == not_served("image")
    assert asyncio.run(encoder.classify("head@1", ["text"])) == not_served("image")
    assert asyncio.run(encoder.classify_as(["a", "b"], ["text"])) == not_served("image")
    encoder.close()


def test_heads_classify_pictures_and_texts(base: Base, store: Path, encoder: ImageEncoder) -> None:
    task = AlignTask.load(base)
    shots = task.embed_images([decode_image(png(colour)) for colour in ("red", "blue")])
    spec = publish_head(store, "topic-sw", "sw", shots, torch.tensor([0, 1]))
    found = asyncio.run(encoder.classify(spec, [png("blue"), png("red"), "neno"]))
    assert isinstance(found, list)
    assert [ranked[0][0] for ranked in found[:2]] == [CLASSES[1], CLASSES[0]]
    expected = Head.load(Registry(str(store)).fetch(spec)).probabilities(task.embed_texts(["neno"]))[0]
    assert dict(found[2]) == pytest.approx(dict(zip(CLASSES, expected.tolist(), strict=True)), abs=1e-5)
    assert all(ranked[0][1] >= ranked[1][1] for ranked in found)
    assert [entry["adapter"] for entry in asyncio.run(encoder.adapters())] == [spec]
    assert asyncio.run(encoder.unload(spec))
    assert not asyncio.run(encoder.unload(spec))
    weights = store / "adapters" / "topic-sw" / "1" / "head.safetensors"
    weights.write_bytes(weights.read_bytes()[:-1] + b"x")
    failed = asyncio.run(encoder.load(spec))
    assert failed is not None
    assert (failed.status, failed.code) == (503, "adapter_failed")


def test_towers_without_a_trained_space_serve_heads_on_images(
    base: Base, store: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("kauli.serving.workers.image_encoder.is_aligned", lambda base: False)
    shots = AlignTask.load(base).embed_images([decode_image(png(colour)) for colour in ("red", "blue")])
    spec = publish_head(store, "colour-sw", "sw", shots, torch.tensor([0, 1]))
    encoder = ImageEncoder(worker_args(store), base, True)
    found = asyncio.run(encoder.classify(spec, [png("blue"), png("red")]))
    assert isinstance(found, list)
    assert [ranked[0][0] for ranked in found] == [CLASSES[1], CLASSES[0]]
    for refused in (encoder.classify(spec, ["neno"]), encoder.classify_as(["a", "b"], [png("red")]),
                    encoder.embed([png("red")])):  # fmt: skip
        failed = asyncio.run(refused)
        assert isinstance(failed, Failed)
        assert (failed.status, "kauli fetch kauli-clip" in failed.message) == (400, True)
    encoder.close()


def test_classes_by_name_are_the_cosines_of_the_space(base: Base, encoder: ImageEncoder) -> None:
    found = asyncio.run(encoder.classify_as(["gari", "nyumba", "ndege"], [png("red")]))
    assert isinstance(found, list)
    task = AlignTask.load(base)
    cosines = task.embed_images([decode_image(png("red"))]) @ task.embed_texts(["gari", "nyumba", "ndege"]).T
    expected = (task.logit_scale * cosines[0]).softmax(0).tolist()
    assert dict(found[0]) == pytest.approx(dict(zip(["gari", "nyumba", "ndege"], expected, strict=True)), abs=1e-4)


def test_the_cache_keeps_the_latest_within_its_bytes() -> None:
    cache = FeatureCache(100)
    for name in "abc":
        cache.put((0, name), np.zeros(10, dtype=np.float32))  # 40 bytes: two fit
        assert cache.get((0, "a" if name != "c" else "c")) is not None
    assert [cache.get((0, name)) is not None for name in "abc"] == [True, False, True]
    cache.put((0, "large"), np.zeros(1000))
    assert [cache.get((0, name)) is not None for name in ("a", "c", "large")] == [True, True, False]
    values = np.zeros(3)
    cache.put((0, "a"), values)
    with pytest.raises(ValueError, match="read-only"):
        values[0] = 1
