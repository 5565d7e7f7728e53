"""Commands about pictures: describing one, and embedding pictures and texts in one space."""

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from kauli.models.errors import UsageError
from kauli.models.progress import note

ALIGNED = "kauli-clip"
_WARMTH = 0.8  # of the samples that are reranked, unless a temperature is given


def read_picture(path: Path) -> bytes:
    """The bytes of a picture file; raises UsageError where it can't be read or is no picture that kauli takes."""
    from kauli.models.media import MediaError, decode_image

    try:
        content = path.read_bytes()
        decode_image(content)
    except OSError as error:
        raise UsageError(
            f"picture {path}: {error.strerror or error}. Give the path of a PNG, JPEG or WEBP file."
        ) from None
    except MediaError as error:
        raise UsageError(f"picture {path}: {error}") from None
    return content


def describe_picture(
    image: Path,
    prompt: str | None,
    model: str,
    language: str | None,
    storage: str,
    *,
    max_tokens: int,
    temperature: float | None,
    seed: int | None,
    rerank: int,
) -> dict[str, Any]:
    """Describe one picture in this process, with the adapter that the service would choose.

    `prompt` None is the instruction that the adapter was trained with. With `rerank` over 1 so many answers are
    sampled, and the one nearest to the picture in the space of `kauli-clip` is taken.
    """
    from kauli.models.adapters import check_base
    from kauli.models.bases import find_base
    from kauli.models.connector import Connector
    from kauli.models.errors import KauliError
    from kauli.models.image_tower import ImageTower
    from kauli.models.languages import display_name
    from kauli.models.media import decode_image
    from kauli.models.registry import Registry
    from kauli.models.requests import NO_REPEAT, Media, TextRequest
    from kauli.models.tasks import load_task
    from kauli.serving.catalogue import Catalogue, choose_bases, newest_cards

    content = read_picture(image)
    registry = Registry(storage)
    if not any(card.task == "describe" for card in newest_cards(registry)):
        raise UsageError(f"no adapter in {storage} describes pictures. Train one: kauli train describe-multi")
    bases = choose_bases(registry, tasks=("describe",))
    route = Catalogue(registry, bases).route(model, language)
    if route.adapter is None:
        raise UsageError(
            f"'{model}' takes no pictures: give --language, or an adapter of the task describe with --model. "
            "Train one: kauli train describe-multi"
        )
    card = registry.card(route.adapter)
    folder = registry.fetch(route.adapter)
    base = next(one for one in bases if one.name == card.base.name or one.sha256 == card.base.sha256)
    check_base(card, base)
    connector = Connector.load(folder)
    if connector is None or "image" not in connector.settings:
        raise UsageError(f"{route.adapter} takes no pictures: it is an adapter of the task {card.task}.")
    settings = connector.settings["image"]
    tower = ImageTower.load(find_base(settings.encoder, task="align", allow_noncommercial=True))
    if tower.sha256 != settings.sha256:
        raise KauliError(f"the tower of {settings.encoder} is not the one that {route.adapter} was trained with.")
    spoken = language or route.language or card.language[0]
    if prompt is None:
        template = (card.recipe or {}).get("prompt") or ""
        prompt = template.replace("{language}", display_name(spoken)) or None
    note(f"{route.adapter} describes {image} ({spoken})")
    features = tower.features([decode_image(content)], settings.grid)[0].numpy()
    warmth = temperature if temperature is not None else (_WARMTH if rerank > 1 else 0.0)
    request = TextRequest.of_prompt(
        prompt,
        (Media("image", features),),
        max_tokens=max_tokens,
        temperature=warmth,
        seed=seed,
        n=rerank,
        no_repeat=NO_REPEAT,
    )
    task = load_task("describe", base)
    task.add_adapter(route.adapter, folder)
    texts, tokens = [""] * rerank, 0
    for chunks in task.generate([request], [route.adapter]):
        for chunk in chunks:
            texts[chunk.index] += chunk.text
            tokens += chunk.tokens
    best, similarities = 0, None
    if rerank > 1:
        similarities = similarity(content, texts)
        best = max(range(rerank), key=similarities.__getitem__)
    prompt_tokens = len(task.prompt_tokens(replace(request, n=1)))
    return {
        "text": texts[best].strip(), "model": route.model, "base": base.name, "adapter": route.adapter,
        "language": spoken, "prompt": prompt, "reranked": rerank if rerank > 1 else None,
        "usage": {"prompt_tokens": prompt_tokens, "completion_tokens": tokens},
    }  # fmt: skip


def similarity(image: bytes, texts: Sequence[str]) -> list[float]:
    """The cosine of a picture with each text in the space of `kauli-clip`."""
    from kauli.models.media import decode_image

    task = _aligned(ALIGNED)
    picture = task.embed_images([decode_image(image)])[0]
    return [float(value) for value in task.embed_texts([text or " " for text in texts]) @ picture]


def embed_all(inputs: Sequence[str], images: Sequence[Path], base: str) -> list[dict[str, Any]]:
    """The embeddings of texts and pictures in the one space of an align base, in this order."""
    from kauli.models.media import decode_image

    pictures = [decode_image(read_picture(path)) for path in images]
    if not inputs and not pictures:
        raise UsageError("nothing to embed: give texts, or pictures with --image FILE")
    task = _aligned(base)
    found = [
        {"text": text, "embedding": row.tolist()}
        for text, row in zip(inputs, _rows(task.embed_texts, inputs), strict=True)
    ]
    shown = zip(images, _rows(task.embed_images, pictures), strict=True)
    return found + [{"image": str(path), "embedding": row.tolist()} for path, row in shown]


def cosine_table(found: Sequence[dict[str, Any]]) -> str:
    """The cosines of all pairs as a table; a single input is its first numbers."""
    import numpy as np

    from kauli.deploy.commands import table

    names = [one.get("text") or Path(one["image"]).name for one in found]
    rows = np.array([one["embedding"] for one in found])
    if len(found) == 1:
        return " ".join(f"{value:.4f}" for value in rows[0][:8]) + f" ... ({rows.shape[1]} numbers; --json shows all)"
    cosines = rows @ rows.T
    columns = ["", *(str(number + 1) for number in range(len(names)))]
    lines = [
        {"": f"{at + 1} {name}", **{str(to + 1): float(cosines[at, to]) for to in range(len(names))}}
        for at, name in enumerate(names)
    ]
    return table(lines, columns)


def _rows(embed: Any, values: Sequence[Any]) -> Any:
    return embed(list(values)) if values else []


def _aligned(name: str) -> Any:
    from kauli.models.bases import find_base
    from kauli.models.tasks import load_task

    return load_task("align", find_base(name, task="align", allow_noncommercial=True))
