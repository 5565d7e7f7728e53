"""Adapters of random weights that take images, images to show them, and a head, for tests."""

import base64
import io
from pathlib import Path

import numpy as np
import torch
from peft import LoraConfig, get_peft_model
from PIL import Image
from transformers import AutoModelForCausalLM

from kauli.models.adapters.card import BaseReference, Card, EncoderReference
from kauli.models.adapters.peft_import import from_peft
from kauli.models.adapters.registry import Registry
from kauli.models.bases.find import Base, find_base
from kauli.models.media.decode import decode_image
from kauli.models.requests import Media, Message, TextRequest
from kauli.models.text.connector import Connector, PartSettings
from kauli.models.text.task import TextTask
from kauli.models.vision.heads import Head
from kauli.models.vision.image_tower import ImageTower

CLASSES = ("nyekundu", "bluu")


def png(colour: str, size: int = 40) -> bytes:
    """A PNG of one colour."""
    out = io.BytesIO()
    Image.new("RGB", (size, size), colour).save(out, "PNG")
    return out.getvalue()


def large_png() -> bytes:
    """Nearly 8 MiB of noise, which nothing makes smaller."""
    out = io.BytesIO()
    noise = np.random.default_rng(0).integers(0, 256, (1600, 1660, 3), dtype=np.uint8)
    Image.fromarray(noise).save(out, "PNG", compress_level=0)
    return out.getvalue()


def data_uri(content: bytes, kind: str = "image/png") -> str:
    """The content as a data: URI."""
    return f"data:{kind};base64,{base64.b64encode(content).decode()}"


def publish_describe(
    storage: Path, name: str, language: str, seed: int, *, base: str = "debug", grid: int = 1, tower: str | None = None
) -> str:
    """A describe adapter with a random LoRA and a random connector that change every answer; returns its spec."""
    scratch = storage / "scratch" / f"{name}-{seed}"
    lm, encoder = find_base(base), find_base("debug", task="align")
    image_tower = ImageTower.load(encoder)
    torch.manual_seed(seed)
    model = get_peft_model(
        AutoModelForCausalLM.from_pretrained(lm.folder), LoraConfig(r=4, target_modules=["q_proj", "v_proj"])
    )
    with torch.no_grad():
        for key, parameter in model.named_parameters():
            if "lora_B" in key:
                parameter.normal_(std=0.5)
    model.save_pretrained(scratch / "plain")
    card = from_peft(
        scratch / "plain", scratch / "ours", name=name, language=language.split(","), base=lm, accept_base=True
    )
    settings = PartSettings(
        encoder=encoder.name,
        sha256=tower or image_tower.sha256,
        width=image_tower.width,
        places=1 + grid**2,
        grid=grid,
        inner=8,
    )
    connector = Connector({"image": settings}, 64)
    with torch.no_grad():
        for parameter in connector.parameters():
            parameter.normal_(std=0.3)
    connector.save(scratch / "ours")
    encoders = {"image": EncoderReference(base=encoder.name)}
    card = card.model_copy(update={"task": "describe", "encoders": encoders})
    return Registry(str(storage)).publish(scratch / "ours", card).spec


def publish_head(storage: Path, name: str, language: str, shots: torch.Tensor, labels: torch.Tensor) -> str:
    """A prototype head on the debug base for images and texts; returns its spec.

    Args:
        storage: where.
        name: of the adapter.
        language: of the classes' names.
        shots: (N, dim) embeddings.
        labels: (N,) their places in `CLASSES`.
    """
    folder = storage / "scratch" / name
    Head.fit("prototype", shots, labels, CLASSES).save(folder)
    card = head_card(name, language, find_base("debug", task="align"))
    return Registry(str(storage)).publish(folder, card).spec


def head_card(name: str, language: str, base: Base) -> Card:
    """The card of a head on `base`."""
    reference = BaseReference.of(base)
    method = {"kind": "head", "head": "prototype"}
    return Card(name=name, task="align", language=[language], base=reference, method=method, licence="CC0-1.0")


def described_here(storage: Path, spec: str, content: str, colours: list[str], grid: int = 1) -> tuple[str, int]:
    """What the models say without a service in 12 tokens, and how many tokens the prompt has.

    `content` has a `MARK` for each of the images of one colour.
    """
    tower = ImageTower.load(find_base("debug", task="align"))
    found = tower.features([decode_image(png(colour)) for colour in colours], grid).numpy().astype(np.float16)
    task = TextTask.load(find_base("debug"))
    task.add_adapter(spec, Registry(str(storage)).fetch(spec))
    media = tuple(Media("image", features) for features in found)
    request = TextRequest((Message("user", content),), max_tokens=12, ignore_eos=True, media=media)
    answer = "".join(chunk.text for step in task.generate([request], [spec]) for chunk in step)
    return answer, len(task.prompt_tokens(request))
