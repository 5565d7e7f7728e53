"""Audio clips, adapters of random weights that transcribe them or take them in chat, and their answers, for tests."""

import io
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import soundfile
import torch
from peft import LoraConfig, get_peft_model
from transformers import AutoModelForCausalLM

from kauli.models.adapters.card import BaseReference, Card, EncoderReference
from kauli.models.adapters.peft_import import from_peft
from kauli.models.adapters.registry import Registry
from kauli.models.bases.find import find_base
from kauli.models.media.decode import RATE, decode_audio, decode_image
from kauli.models.requests import Media, Message, TextRequest, TranscriptionRequest, Word
from kauli.models.speech.audio_tower import AudioTower
from kauli.models.speech.chunking import Segment, cut, join
from kauli.models.speech.whisper import WhisperTask
from kauli.models.speech.whisper_training import TrainableWhisper
from kauli.models.text.connector import Connector, PartSettings
from kauli.models.text.task import TextTask
from kauli.models.vision.image_tower import ImageTower

RELATED = {"ky": ("kk", "tt", "uz")}
STACK = 4


def sound(seconds: float, pitch: float = 300.0) -> Any:
    """(n,) float32: a tone in a little noise, the same every time."""
    count = int(seconds * RATE)
    noise = np.random.default_rng(int(pitch)).normal(0, 0.01, count)
    return (0.4 * np.sin(2 * np.pi * pitch * np.arange(count) / RATE) + noise).astype(np.float32)


def words(count: int, seconds: float = 1.5, pause: float = 0.5) -> Any:
    """(n,) float32: tones of rising pitch with pauses between them."""
    silence = np.random.default_rng(0).normal(0, 1e-4, int(pause * RATE)).astype(np.float32)
    return np.concatenate([part for at in range(count) for part in (sound(seconds, 200 + 90 * at), silence)])


def encoded(samples: Any, kind: str = "WAV", rate: int = RATE, subtype: str | None = None) -> bytes:
    """The samples as a file."""
    out = io.BytesIO()
    soundfile.write(out, samples, rate, format=kind, subtype=subtype)
    return out.getvalue()


def wav(seconds: float = 1.0, pitch: float = 300.0) -> bytes:
    """A tone as a WAV file."""
    return encoded(sound(seconds, pitch))


def publish_transcribe(storage: Path, name: str, language: str, seed: int) -> str:
    """A transcribe adapter on the debug base with a random LoRA that changes every answer; returns its spec."""
    folder = storage / "scratch" / f"{name}-{seed}"
    base = find_base("debug", task="transcribe")
    task = TrainableWhisper.load(base)
    torch.manual_seed(seed)
    task.model = get_peft_model(
        task.model, LoraConfig(r=4, target_modules=["q_proj", "v_proj"], base_model_name_or_path=base.reference)
    )
    with torch.no_grad():
        for key, parameter in task.model.named_parameters():
            if "lora_B" in key:
                parameter.normal_(std=0.5)
    task.add_languages(language.split(","), RELATED)
    task.save(folder)
    (folder / "README.md").unlink(missing_ok=True)
    reference = BaseReference.of(base)
    card = Card(
        name=name, task="transcribe", language=language.split(","), base=reference, method={"kind": "lora"},
        licence="CC0-1.0",
    )  # fmt: skip
    return Registry(str(storage)).publish(folder, card).spec


def publish_hearing(storage: Path, name: str, language: str, seed: int, *, tower: str | None = None) -> str:
    """A describe adapter with a random LoRA and a random connector for images and audio; returns its spec."""
    scratch = storage / "scratch" / f"{name}-{seed}"
    lm, seeing = find_base("debug"), find_base("debug", task="align")
    hearing = find_base("debug", task="transcribe")
    image_tower, audio_tower = ImageTower.load(seeing), AudioTower.load(hearing)
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
    parts = {
        "image": PartSettings(
            encoder=seeing.name, sha256=image_tower.sha256, width=image_tower.width, places=2, grid=1, inner=8
        ),
        "audio": PartSettings(
            encoder=hearing.name, sha256=tower or audio_tower.sha256, width=audio_tower.width(STACK), places=16,
            stack=STACK, inner=8,
        ),
    }  # fmt: skip
    connector = Connector(parts, 64)
    with torch.no_grad():
        for parameter in connector.parameters():
            parameter.normal_(std=0.3)
    connector.save(scratch / "ours")
    encoders = {"image": EncoderReference(base=seeing.name), "audio": EncoderReference(base=hearing.name)}
    card = card.model_copy(update={"task": "describe", "encoders": encoders})
    return Registry(str(storage)).publish(scratch / "ours", card).spec


def transcribed_here(storage: Path, spec: str | None, content: bytes, **options: Any) -> list[Segment]:
    """What the models say without a service."""
    task = _recogniser(storage)
    if spec and spec not in task.adapters():
        task.add_adapter(spec, Registry(str(storage)).fetch(spec))
    samples = decode_audio(content).samples
    spans = cut(samples, task.seconds)
    requests = [TranscriptionRequest(span.of(samples), **options) for span in spans]
    texts = [""] * len(spans)
    words: list[tuple[Word, ...]] = [()] * len(spans)
    for step in task.generate(requests, [spec] * len(spans)):
        for chunk in step:
            texts[chunk.row] += chunk.text
            words[chunk.row] = chunk.words
    return join(texts, spans, words if options.get("words") else ())


@cache
def _recogniser(storage: Path) -> WhisperTask:
    return WhisperTask.load(find_base("debug", task="transcribe"))


def said_here(storage: Path, spec: str, content: str, media: list[bytes]) -> tuple[str, int]:
    """What the models answer to images and audio in 12 tokens, and how many tokens the prompt has."""
    image_tower = ImageTower.load(find_base("debug", task="align"))
    audio_tower = AudioTower.load(find_base("debug", task="transcribe"))
    found = []
    for one in media:
        if one.startswith(b"\x89PNG"):
            found.append(Media("image", image_tower.features([decode_image(one)], 1)[0].numpy().astype(np.float16)))
        else:
            features = audio_tower.features([decode_audio(one).samples], STACK)[0]
            found.append(Media("audio", features.numpy().astype(np.float16)))
    task = TextTask.load(find_base("debug"))
    task.add_adapter(spec, Registry(str(storage)).fetch(spec))
    request = TextRequest((Message("user", content),), max_tokens=12, ignore_eos=True, media=tuple(found))
    answer = "".join(chunk.text for step in task.generate([request], [spec]) for chunk in step)
    return answer, len(task.prompt_tokens(request))
