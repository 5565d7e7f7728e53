"""The `kauli` command on images: describing, reranking and embedding without a service, and the errors of wrong use."""

import json
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

import pytest

from kauli.models.bases.find import find_base
from kauli.models.media.decode import decode_image
from kauli.models.requests import TextRequest
from kauli.models.tasks import load_served
from kauli.serving.backends import RERANK_TEMPERATURE, Attachment
from kauli.serving.local import Local
from support import picture_adapters
from support.cli import fails, run


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("KAULI_HOME", str(tmp_path_factory.mktemp("home")))
        folder = tmp_path_factory.mktemp("store")
        patch.setenv("KAULI_STORAGE", str(folder))
        picture_adapters.publish_describe(folder, "describe-sw", "sw", 1)
        yield folder


@pytest.fixture(scope="module")
def picture(tmp_path_factory: pytest.TempPathFactory) -> str:
    path = tmp_path_factory.mktemp("pictures") / "red.png"
    path.write_bytes(picture_adapters.png("red"))
    return str(path)


def test_a_picture_is_described(store: Path, picture: str) -> None:
    result = run("describe", "--image", picture, "--language", "sw", "--max-tokens", "6", "--json")
    assert result.exit_code == 0, result.stderr
    found = json.loads(result.stdout)
    assert found["adapter"] == "describe-sw@1"
    assert found["language"] == "sw"
    assert found["usage"]["completion_tokens"] <= 6
    named = run("describe", "--image", picture, "--model", "describe-sw", "--prompt", "nini?", "--max-tokens", "6")
    assert named.exit_code == 0, named.stderr
    assert "Traceback" not in named.output


def test_candidates_are_reranked_as_the_service_does(
    store: Path, picture: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("KAULI_IMAGE_BASE", "debug-clip")
    asked = {"max_tokens": 6, "seed": 3, "prompt": "nini?"}
    attached = [Attachment("image", Path(picture).read_bytes())]
    with closing(Local(str(store))) as local:
        route = local.choose("describe", "describe", "sw")

        async def candidates() -> list[str]:
            media, _ = await local.encode(await local.forms(route, ["image"]), attached)
            request = TextRequest.of_prompt("nini?", media, max_tokens=6, seed=3, n=4, temperature=RERANK_TEMPERATURE)
            return (await local.answer(route, request))[0]

        texts = local.run(candidates())
    task = load_served("align", find_base("debug", task="align"))
    cosines = task.embed_texts(texts) @ task.embed_images([decode_image(attached[0].content)])[0]
    options = [word for key, value in asked.items() for word in (f"--{key.replace('_', '-')}", str(value))]
    result = run("describe", "--image", picture, "--language", "sw", "--rerank", "4", "--json", *options)
    assert result.exit_code == 0, result.stderr
    found = json.loads(result.stdout)
    assert found["text"] == texts[int(cosines.argmax())].strip()
    assert (found["reranked"], len(set(texts)) > 1) == (4, True)


def test_texts_and_pictures_are_embedded_in_one_space(store: Path, picture: str) -> None:
    result = run("embed", "mbwa", "paka", "--image", picture, "--model", "debug", "--json")
    assert result.exit_code == 0, result.stderr
    found = json.loads(result.stdout)
    assert [one.get("text") for one in found] == ["mbwa", "paka", None]
    assert len({len(one["embedding"]) for one in found}) == 1
    assert all(sum(value * value for value in one["embedding"]) == pytest.approx(1, abs=1e-4) for one in found)
    table = run("embed", "mbwa", "--image", picture, "--model", "debug")
    assert "1.000" in table.stdout


def test_wrong_use_is_one_clear_error(store: Path, picture: str, tmp_path: Path) -> None:
    fails(2, "nothing to embed", "embed", "--model", "debug")
    fails(2, "the text '' has nothing to embed", "embed", "", "--model", "debug")
    fails(2, "none.png", "describe", "--image", str(tmp_path / "none.png"), "--language", "sw")
    (tmp_path / "page.svg").write_text("<svg xmlns='http://www.w3.org/2000/svg'></svg>")
    fails(2, "SVG", "describe", "--image", str(tmp_path / "page.svg"), "--language", "sw")
    fails(2, "'ky'", "describe", "--image", picture, "--language", "ky")
