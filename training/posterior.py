"""The posterior encoder of a voice, taught by the voice's own speech: `kauli fetch speak-base`, or a first training.

The base speaks texts of several languages, each twice for the encoder: as it is, and faster or slower with other pitch
and timbre, as another reader would sound. Its latent frames are known exactly; the network learns them by the
likelihood of a normal distribution. An interrupted run goes on where it was, with the same result.
"""

import hashlib
import math
import shutil
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import regex
import torch
from safetensors.torch import load_file, save
from torch import Tensor, nn

from kauli.models.bases.find import Base, find_base
from kauli.models.errors import UsageError
from kauli.models.files import file_lock, write_atomically
from kauli.models.media.decode import RATE
from kauli.models.media.resample import resampled
from kauli.models.paths import kauli_home
from kauli.models.progress import bar, note
from kauli.models.requests import SpeechRequest
from kauli.models.speech.posterior import SETTINGS, Posterior, at_frames, encoder_states
from kauli.models.speech.speak import SpeakTask
from kauli.models.speech.task import Recogniser
from kauli.models.speech.vits_model import Utterance, latents, samples_per_frame, sound
from kauli.training.data.dataset import load_data
from kauli.training.data.groups import short_hash
from kauli.training.loop.checkpoint import Checkpoint, TrainState, copy_of, trainable

HEARING = "whisper-base"
"""The base whose encoder hears the speech."""
VOICE = "piper-vits"
"""The base that `kauli fetch speak-base` teaches a posterior encoder for."""
LEVEL = 0.06
"""The root mean square that speech is brought to before it is heard."""
_SHARD = 32  # sentences of which are spoken between two writes
_LONGEST = 120  # characters of a text
_SHARE = 20  # one sentence of so many is held out, to tell how good the network is


@dataclass(frozen=True)
class Effort:
    """How much a posterior encoder is taught."""

    languages: tuple[str, ...] = ("am", "be", "en", "ky", "sw")
    seconds: float = 1500.0
    """Of the base's speech."""
    steps: int = 2200
    batch: int = 16
    frames: int = 96
    """Of each row of a batch."""
    learning_rate: float = 2e-3
    width: int = 256
    speeds: tuple[float, float] = (0.82, 1.42)
    """Of the second view: they move pitch and formants as well."""
    save_every: int = 100
    seed: int = 0


DEFAULT = Effort()
SMALL = Effort(languages=("sw",), seconds=20.0, steps=40, batch=4, frames=24, width=32, save_every=10)
"""For debug bases."""


@dataclass
class _Spoken:
    """Sentences of the base: latent frames (F, W), and the encoder's states of each view with its speed."""

    frames: list[Tensor] = field(default_factory=list)
    views: list[list[tuple[Tensor, float]]] = field(default_factory=list)


def posterior_of(base: Base, effort: Effort | None = None, hearing: str = "") -> Path:
    """The folder of a voice's posterior encoder, which is made where it is not there: about 20 minutes on two cores.

    Raises UsageError for a base that is no voice with one speaker.
    """
    small = base.name.startswith("debug")
    effort, hearing = effort or (SMALL if small else DEFAULT), hearing or ("debug-whisper" if small else HEARING)
    heard = find_base(hearing, task="transcribe")
    made_of = f"1 {base.sha256} {heard.sha256} {sorted(asdict(effort).items())}"
    folder = kauli_home() / "posteriors" / hashlib.sha256(made_of.encode()).hexdigest()[:24]
    if (folder / SETTINGS).is_file():
        return folder
    with file_lock(kauli_home() / "locks" / f"posterior-{folder.name}.lock"):
        if not (folder / SETTINGS).is_file():
            work = folder.with_name(f"{folder.name}.work")
            work.mkdir(parents=True, exist_ok=True)
            note(f"{base.name} has no posterior encoder: it is taught by the voice's own speech, once")
            spoken = _speech(base, heard, effort, work)
            network = _taught(spoken, effort, work, made_of, base, hearing)
            done = work / "done"
            shutil.rmtree(done, ignore_errors=True)
            done.mkdir()
            network.save(done)
            done.rename(folder)
            shutil.rmtree(work)
    return folder


def leveled(samples: Any) -> Any:
    """Samples (n,) at the level at which speech is heard."""
    return samples * (LEVEL / max(1e-4, float(np.sqrt(np.mean(np.square(samples))))))


def frame_rate(model: Any) -> float:
    """Latent frames a second of a VITS."""
    return float(model.config.sampling_rate / samples_per_frame(model))


def _texts(effort: Effort) -> list[tuple[str, str]]:
    """(language, text): of the training rows of the starter data, as many of each language and source."""
    found: list[tuple[str, str]] = []
    for tag in effort.languages:
        sources: dict[str, dict[str, None]] = {}
        for row in load_data("starter", [tag]).rows(split="train", languages=[tag], columns=["text", "source"]):
            text = row["text"] or ""
            if 3 < len(text) <= _LONGEST and not regex.search(r"\p{N}", text):
                sources.setdefault(row["source"], {})[text] = None
        for _, texts in sorted(sources.items()):
            found += [(tag, text) for text in sorted(texts, key=short_hash)[:80]]
    return sorted(found, key=lambda pair: short_hash(f"{effort.seed} {pair}"))


def _speech(base: Base, heard: Base, effort: Effort, work: Path) -> _Spoken:
    """The base's speech, from the work folder where it is there."""
    speaker, whisper = SpeakTask.load(base), Recogniser.load(heard)
    if not speaker.symbols.phonemes or speaker.model.config.num_speakers > 1:
        raise UsageError(f"'{base.name}' is no voice of Piper with one speaker: only those learn adapters.")
    texts, found, seconds = _texts(effort), _Spoken(), 0.0
    rate = frame_rate(speaker.model)
    with bar("Speaking", round(effort.seconds)) as advance:
        for at in range(0, len(texts), _SHARD):
            path = work / f"speech-{at:06d}.safetensors"
            if not path.is_file():
                write_atomically(path, save(_shard(speaker, whisper, texts[at : at + _SHARD], at, effort)))
            tensors = load_file(path)
            before = seconds
            for number in range(sum(name.startswith("frames") for name in tensors)):
                found.frames.append(tensors[f"frames.{number}"])
                views = [(tensors[f"states.{number}.{view}"], float(tensors[f"speed.{number}.{view}"]))
                         for view in range(2)]  # fmt: skip
                found.views.append(views)
                seconds += len(found.frames[-1]) / rate
            advance(max(0, min(round(seconds), round(effort.seconds)) - round(before)))
            if seconds >= effort.seconds:
                break
    return found


def _shard(
    speaker: SpeakTask, whisper: Any, texts: Sequence[tuple[str, str]], start: int, effort: Effort
) -> dict[str, Tensor]:  # fmt: skip
    draw = np.random.default_rng((effort.seed, start))
    utterances = []
    for at, (tag, text) in enumerate(texts):
        reading, _ = speaker.read(SpeechRequest(text, tag))
        for sentence in reading.sentences:
            speed, noise = float(draw.uniform(0.75, 1.15)), float(draw.uniform(0.4, 0.8))
            tokens = speaker.symbols.tokens(sentence.symbols)
            utterances.append(Utterance(tokens, speed, seed=start + at, noise=noise))
    made = [one for at in range(0, len(utterances), 8) for one in latents(speaker.model, utterances[at : at + 8])]
    rate = int(speaker.model.config.sampling_rate)
    clips, tensors = [], dict[str, Tensor]()
    for number, latent in enumerate(made):
        tensors[f"frames.{number}"] = latent.frames.T.half().contiguous()
        samples = sound(speaker.model, latent).float().cpu().numpy()
        for view in range(2):
            low, high = effort.speeds
            speed = float(np.exp(draw.uniform(np.log(low), np.log(high)))) if view else 1.0
            tensors[f"speed.{number}.{view}"] = torch.tensor(speed)
            clips.append(_varied(resampled([samples], round(rate * speed), RATE), draw))
    states = [one for at in range(0, len(clips), 16) for one in encoder_states(whisper, clips[at : at + 16])]
    for at, one in enumerate(states):
        tensors[f"states.{at // 2}.{at % 2}"] = one.half().contiguous()
    return tensors


def _varied(samples: Any, draw: np.random.Generator) -> Any:
    """With another tilt of the spectrum, another level and some noise: another microphone."""
    samples = np.concatenate([samples[:1], samples[1:] + draw.uniform(-0.6, 0.6) * samples[:-1]])
    samples = leveled(samples) * np.exp(draw.uniform(-0.5, 0.5))
    noise = draw.standard_normal(len(samples)) * LEVEL * 10 ** (-draw.uniform(25, 60) / 20)
    return (samples + noise).astype(np.float32)


def _taught(spoken: _Spoken, effort: Effort, work: Path, made_of: str, base: Base, hearing: str) -> Posterior:
    """The network, trained from the work folder's checkpoint on."""
    if not spoken.frames:
        raise UsageError(f"the starter data hold no text in {', '.join(effort.languages)} for '{base.name}' to speak.")
    rate = _rate_of(base)
    inputs = [[at_frames(states.float(), len(frames), rate, speed).half() for states, speed in views]
              for frames, views in zip(spoken.frames, spoken.views, strict=True)]  # fmt: skip
    targets = [one.T.float() for one in spoken.frames]
    torch.manual_seed(effort.seed)
    network = Posterior(inputs[0][0].shape[0], targets[0].shape[0], effort.width, hearing)
    few = torch.cat([one[0][:, ::10].float() for one in inputs], 1)
    network.mean.copy_(few.mean(1, keepdim=True))
    network.deviation.copy_(few.std(1, keepdim=True) + 1e-3)
    parameters = trainable(network)
    optimizer = torch.optim.AdamW(parameters.values(), lr=effort.learning_rate, weight_decay=0.01)
    identity, progress = {"data": hashlib.sha256(made_of.encode()).hexdigest()}, TrainState()
    checkpoint = Checkpoint(work / "checkpoint")
    if (work / "checkpoint" / "state.json").is_file():
        progress, _ = checkpoint.load(parameters, optimizer, identity)
    known = [at for at, one in enumerate(targets) if at % _SHARE and one.shape[1] >= effort.frames]
    if not known:
        raise UsageError(f"'{base.name}' speaks too briefly to learn from: no sentence has {effort.frames} frames.")
    with bar("Teaching the posterior encoder", effort.steps) as advance:
        advance(progress.step)
        while progress.step < effort.steps:
            done = progress.step / effort.steps
            for group in optimizer.param_groups:
                warm = min(1.0, (progress.step + 1) / 50)
                group["lr"] = effort.learning_rate * warm * (0.5 + 0.5 * math.cos(math.pi * done))
            draw = np.random.default_rng((effort.seed, 7, progress.step))
            states, wanted = (
                torch.stack(list(one)) for one in zip(*_pieces(inputs, targets, known, draw, effort), strict=True)
            )
            means, logs = network(states)
            loss = (logs + 0.5 * ((wanted - means) * torch.exp(-logs)).square()).mean()
            optimizer.zero_grad(set_to_none=True)
            loss.backward()
            nn.utils.clip_grad_norm_(parameters.values(), 1.0)
            optimizer.step()
            progress.step += 1
            advance()
            if progress.step % effort.save_every == 0:
                fresh = Checkpoint(work / "checkpoint.new")
                shutil.rmtree(fresh.folder, ignore_errors=True)
                fresh.save(parameters, copy_of(parameters), optimizer, progress, identity)
                shutil.rmtree(checkpoint.folder, ignore_errors=True)
                fresh.folder.rename(checkpoint.folder)
    note(f"posterior encoder of {base.name}: {_left(network, inputs, targets):.2f} of the variance is not heard")
    return network.eval().requires_grad_(False)


def _pieces(
    inputs: Sequence[Sequence[Tensor]], targets: Sequence[Tensor], known: Sequence[int], draw: np.random.Generator,
    effort: Effort,
) -> Iterator[tuple[Tensor, Tensor]]:  # fmt: skip
    for at in draw.choice(known, effort.batch):
        begin = int(draw.integers(0, targets[at].shape[1] - effort.frames + 1))
        view = inputs[at][int(draw.integers(0, 2))]
        yield view[:, begin : begin + effort.frames].float(), targets[at][:, begin : begin + effort.frames]


@torch.no_grad()
def _left(network: Posterior, inputs: Sequence[Sequence[Tensor]], targets: Sequence[Tensor]) -> float:
    """The error of the means on held-out sentences, of the variance of the frames."""
    wrong = total = 0.0
    for at in range(0, len(targets), _SHARE):
        for view in inputs[at]:
            wrong += float((network(view.float()[None])[0][0] - targets[at]).square().sum())
            total += float((targets[at] - targets[at].mean(1, keepdim=True)).square().sum())
    return wrong / max(total, 1e-9)


def _rate_of(base: Base) -> float:
    return frame_rate(SpeakTask.load(base).model)
