"""Commands about pictures: describing one, or a recording, or both; embedding pictures and texts in one space."""

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from kauli.models.errors import KauliError, UsageError
from kauli.models.progress import note

if TYPE_CHECKING:
    from kauli.models.adapters.card import Card
    from kauli.models.adapters.registry import Registry
    from kauli.models.requests import Media
    from kauli.models.text.connector import PartSettings

ALIGNED = "kauli-clip"
_WORDS = {"image": "pictures", "audio": "recordings"}
_WARMTH = 0.8  # of the samples that are reranked, unless a temperature is given


def read_picture(path: Path) -> bytes:
    """The bytes of a picture file; raises UsageError where it can't be read or is no picture that kauli takes."""
    from kauli.models.media.decode import MediaError, decode_image

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


def describe(
    image: Path | None,
    audio: Path | None,
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
    """Describe a picture, a recording or both in this process, with the adapter that the service would choose.

    `prompt` None is the instruction that the adapter was trained with. With `rerank` over 1 so many answers are
    sampled, and the one nearest to the picture in the space of `kauli-clip` is taken.
    """
    from kauli.deploy.cli.recordings import hear, read_recording
    from kauli.models.adapters.folder import check_base
    from kauli.models.adapters.registry import Registry
    from kauli.models.languages import display_name
    from kauli.models.requests import NO_REPEAT, TextRequest
    from kauli.models.tasks import load_task
    from kauli.models.text.connector import Connector
    from kauli.serving.routing import Catalogue, choose_bases, newest_cards

    if image is None and audio is None:
        raise UsageError("nothing to describe: give --image FILE, --audio FILE, or both")
    if rerank > 1 and image is None:
        raise UsageError("--rerank takes the answer nearest to a picture, and there is none: give --image FILE")
    picture = read_picture(image) if image else None
    samples = read_recording(audio).samples if audio else None
    registry = Registry(storage)
    cards = [card for card in newest_cards(registry) if card.task == "describe"]
    if not cards:
        raise UsageError(
            f"no adapter in {storage} describes pictures or recordings. Train one: kauli train describe-multi"
        )
    bases = choose_bases(registry, tasks=("describe",))
    route = Catalogue(registry, bases).route(model, language)
    if route.adapter is None:
        raise UsageError(
            f"'{model}' takes no pictures or recordings: give --language, or an adapter of the task describe with "
            "--model. Train one: kauli train describe-multi"
        )
    card = registry.card(route.adapter)
    folder = registry.fetch(route.adapter)
    base = next(one for one in bases if one.name == card.base.name or one.sha256 == card.base.sha256)
    check_base(card, base)
    connector = Connector.load(folder)
    parts = connector.settings if connector else {}
    for kind, given in (("image", image), ("audio", audio)):
        if given is not None and kind not in parts:
            raise UsageError(f"{route.adapter} takes no {_WORDS[kind]}: {_advice(kind, registry, cards)}")
    spoken = language or route.language or card.language[0]
    if prompt is None:
        template = (card.recipe or {}).get("prompt") or ""
        prompt = template.replace("{language}", display_name(spoken)) or None
    note(f"{route.adapter} describes {' and '.join(str(path) for path in (image, audio) if path)} ({spoken})")
    media = []
    if picture is not None:
        media.append(_see(picture, parts["image"], route.adapter))
    if audio is not None:
        media.append(hear(audio, samples, parts["audio"], route.adapter))
    warmth = temperature if temperature is not None else (_WARMTH if rerank > 1 else 0.0)
    request = TextRequest.of_prompt(
        prompt,
        tuple(media),
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
    best = 0
    if rerank > 1 and picture is not None:
        similarities = similarity(picture, texts)
        best = max(range(rerank), key=similarities.__getitem__)
    prompt_tokens = len(task.prompt_tokens(replace(request, n=1)))
    return {
        "text": texts[best].strip(), "model": route.model, "base": base.name, "adapter": route.adapter,
        "language": spoken, "prompt": prompt, "reranked": rerank if rerank > 1 else None,
        "usage": {"prompt_tokens": prompt_tokens, "completion_tokens": tokens},
    }  # fmt: skip


def _see(picture: bytes, part: "PartSettings", adapter: str) -> "Media":
    """What an adapter's connector takes of an encoded picture."""
    import numpy as np

    from kauli.models.bases.find import find_base
    from kauli.models.media.decode import decode_image
    from kauli.models.requests import Media
    from kauli.models.vision.image_tower import ImageTower

    tower = ImageTower.load(find_base(part.encoder, task="align", allow_noncommercial=True))
    if tower.sha256 != part.sha256:
        raise KauliError(f"the tower of {part.encoder} is not the one that {adapter} was trained with.")
    return Media("image", tower.features([decode_image(picture)], part.grid)[0].numpy().astype(np.float16))


def _advice(kind: str, registry: "Registry", cards: "Sequence[Card]") -> str:
    """What to ask in the place of an adapter that takes no media of this kind."""
    from kauli.models.text.connector import Connector

    for card in cards:
        connector = Connector.load(registry.fetch(card.spec))
        if connector is not None and kind in connector.settings:
            return f"name one that does, such as --model {card.name}"
    recipe = {"image": "describe-multi", "audio": "describe-be-fused"}[kind]
    return f"no adapter here does. Train one: kauli train {recipe}"


def similarity(image: bytes, texts: Sequence[str]) -> list[float]:
    """The cosine of a picture with each text in the space of `kauli-clip`."""
    from kauli.models.media.decode import decode_image

    task = _aligned(ALIGNED)
    picture = task.embed_images([decode_image(image)])[0]
    return [float(value) for value in task.embed_texts([text or " " for text in texts]) @ picture]


def embed_all(inputs: Sequence[str], images: Sequence[Path], base: str) -> list[dict[str, Any]]:
    """The embeddings of texts and pictures in the one space of an align base, in this order."""
    from kauli.models.media.decode import decode_image

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

    from kauli.deploy.cli.terminal import table

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
    from kauli.models.bases.find import find_base
    from kauli.models.tasks import load_task

    return load_task("align", find_base(name, task="align", allow_noncommercial=True))
