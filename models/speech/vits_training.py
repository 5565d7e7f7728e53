"""A voice adapter in training: the text encoder learns the latent frames of recorded clips.

Flow and decoder are frozen, and so is the posterior encoder: what a clip's frames are in the space before the flow is
computed once. What is left of the training of a VITS (Kim et al. 2021, arXiv 2106.06103, equation 3) is the likelihood
of those frames by the text, aligned by monotonic alignment search, and a head for durations.
"""

import json
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

import torch
from peft import PeftModel
from peft.tuners.tuners_utils import BaseTunerLayer
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from kauli.models.adapters.folder import ADAPTER_CONFIG
from kauli.models.adapters.kinds.base import AdapterKind
from kauli.models.adapters.peft_weights import PeftTrainable, without_peft
from kauli.models.bases.find import Base
from kauli.models.engine.precision import place
from kauli.models.errors import KauliError, UsageError
from kauli.models.files import read_json
from kauli.models.speech.alignment import aligned
from kauli.models.speech.reading import read
from kauli.models.speech.sounds import Symbols
from kauli.models.speech.speak import SpeakTask
from kauli.models.speech.vits_adapter import (
    HEAD,
    ROWS,
    TEXT_ENCODER,
    VOICE,
    DurationHead,
    Settings,
    read_settings,
    write_settings,
)
from kauli.models.speech.vits_model import read_vits, voice_facts

TARGETS = ("q_proj", "k_proj", "v_proj", "out_proj", "conv_1", "conv_2", "project")
"""Modules of the text encoder that get a LoRA, where a recipe does not say otherwise."""
NOISE = 0.5
"""Spread of the sound of an adapter's speech, of that which it learned, before it is chosen on validation."""
_DURATIONS = 0.2  # weight of the durations' loss: the head is apart, so this sets its share of the clipped gradient


@dataclass(frozen=True)
class VoiceExample:
    """A clip: the symbols of its text, and its frames before the flow."""

    symbols: str
    frames: Tensor
    """(F, W)."""
    language: str


@dataclass(frozen=True)
class VoiceBatch:
    """N texts with their frames; T symbols with blanks and marks, F frames."""

    tokens: Tensor
    """(N, T), zeros behind the shorter ones."""
    lengths: tuple[int, ...]
    frames: tuple[Tensor, ...]
    """N times (W, F)."""

    def to(self, device: torch.device | str) -> "VoiceBatch":
        """The same batch on another device."""
        return VoiceBatch(self.tokens.to(device), self.lengths, tuple(one.to(device) for one in self.frames))


class TrainedTable(nn.Module):
    """A symbol table of which some rows are trained."""

    numbers: Tensor

    def __init__(self, table: nn.Embedding, numbers: Sequence[int], rows: Tensor) -> None:
        """The rows of these numbers start as `rows`; the table itself is not changed."""
        super().__init__()
        self.table = table
        self.register_buffer("numbers", torch.tensor(list(numbers), device=table.weight.device), persistent=False)
        self.rows = nn.Parameter(rows)

    def forward(self, tokens: Tensor) -> Tensor:
        """(N, T) -> (N, T, W)."""
        return nn.functional.embedding(tokens, self.table.weight.index_copy(0, self.numbers, self.rows))


class TrainableVoice(PeftTrainable):
    """A VITS that learns an adapter, on one device."""

    def __init__(self, base: Base, model: Any, symbols: Symbols, voice: str) -> None:
        self.base, self.model, self.voice, self.symbols = base, model, voice, symbols
        self.languages: tuple[str, ...] = ()
        self.learned: tuple[str, ...] = ()
        """The sounds that get rows of their own."""
        self.synthetic = 0.0
        """The share of the clips that no person spoke: for the adapter's settings."""
        self.consent: str | None = None
        """By whose leave the recordings are used: the same."""
        self._durations: DurationHead | None = None
        self._known = symbols

    @classmethod
    def load(cls, base: Base, device: str | None = None, dtype: torch.dtype | None = None) -> Self:
        """The base from its folder, in fp32. Raises UsageError for a voice of letters or of several readers."""
        where, _ = place(device, dtype)
        symbols = Symbols.read(base.folder, base.name)
        if not symbols.phonemes:
            raise UsageError(f"'{base.name}' reads letters: adapters are for voices of Piper, such as piper-vits.")
        model = read_vits(base.folder, where)
        if model.config.num_speakers > 1:
            raise UsageError(f"'{base.name}' has several speakers: adapters are trained on a voice with one.")
        return cls(base, model, symbols, str(voice_facts(base.folder).get("name") or base.name))

    @property
    def device(self) -> torch.device:
        """Where the model is."""
        device: torch.device = self._vits.device
        return device

    @property
    def _vits(self) -> Any:
        return self.model.get_base_model() if isinstance(self.model, PeftModel) else self.model

    def symbols_of(self, text: str, language: str, bare: bool = False) -> str:
        """A text as sounds that the adapter learns or, `bare`, as the nearest that the base was trained on."""
        known = self.symbols if bare else self._known
        return " ".join(one.symbols for one in read(text, language, known, {}).sentences)

    def learn_sounds(self, texts: Iterable[tuple[str, str]], languages: Sequence[str]) -> None:
        """Set the languages, and the sounds to learn: those of (text, language) pairs. Called once, before `attach`."""
        self.languages, every = tuple(languages), set(self.symbols.numbers) - set("_^$")
        self._known = self.symbols.with_trained(every)
        self.learned = tuple(sorted({sign for text, tag in texts for sign in self.symbols_of(text, tag)}))
        self._known = self.symbols.with_trained(self.learned)  # as a text is read when the adapter is served

    def attach(self, kind: AdapterKind) -> None:
        """A fresh adapter; a sound that the base was not trained on starts as the nearest that it was."""
        if kind.kind != "lora":
            raise UsageError(f"method.kind {kind.kind}: adapters of voices are trained by lora.")
        table = self._vits.text_encoder.embed_tokens
        numbers = self.symbols.numbers
        rows = table.weight.detach()[[numbers[sign] for sign in self.learned]].clone()
        for at, sign in enumerate(self.learned):
            near = [numbers[one] for one in self.symbols.near(sign)]
            if sign not in self.symbols.trained and near:
                rows[at] = table.weight.detach()[near].mean(0)
        encoder = self._vits.text_encoder
        encoder.embed_tokens = TrainedTable(table, [numbers[sign] for sign in self.learned], rows)
        encoder.encoder.layerdrop = 0.0  # it draws from numpy's random state, which no seed here sets
        for module in encoder.modules():  # the base's own dropout; that of an adapter is in its kind
            if isinstance(module, nn.Dropout):
                module.p = 0.0
            elif isinstance(getattr(module, "dropout", None), float):
                module.dropout = 0.0
        self._durations = DurationHead(table.embedding_dim).to(self.device)
        super().attach(kind)
        outside = [name for name, one in self._vits.named_modules()
                   if isinstance(one, BaseTunerLayer) and not name.startswith(TEXT_ENCODER)]  # fmt: skip
        if outside:
            raise UsageError(
                f"method.targets: '{outside[0]}' is no part of the text encoder, which is all that an adapter of a "
                f"voice may change: name modules of it, such as {', '.join(TARGETS)}."
            )

    @property
    def trained(self) -> nn.Module:
        """The module to train: called with a `VoiceBatch` it returns losses whose sum is minimised."""
        return _Trained(self)

    def collate(self, examples: Sequence[VoiceExample]) -> VoiceBatch:
        """A batch of examples."""
        numbers = [self.symbols.tokens(one.symbols) for one in examples]
        tokens = torch.zeros(len(numbers), max(map(len, numbers)), dtype=torch.long)
        for row, own in enumerate(numbers):
            tokens[row, : len(own)] = torch.tensor(own)
        return VoiceBatch(tokens, tuple(map(len, numbers)), tuple(one.frames.T for one in examples))

    def fits(self, example: VoiceExample) -> bool:
        """Whether a clip has as many frames as its text has symbols, which an alignment needs."""
        return len(self.symbols.tokens(example.symbols)) <= len(example.frames)

    def costs(self, batch: VoiceBatch) -> tuple[list[Tensor], list[Tensor], Tensor]:
        """What each clip's frames cost in nats, (F,) each; each symbol's frames; their predicted logarithms (N, T)."""
        there = torch.arange(batch.tokens.shape[1], device=self.device)[None] < torch.tensor(
            batch.lengths, device=self.device
        )[:, None]  # fmt: skip
        mask = there[..., None].float()
        encoder = self._vits.text_encoder
        encoded = encoder(batch.tokens, mask, there.long() if len(batch.lengths) > 1 else None)
        costs, durations = [], []
        for row, (length, frames) in enumerate(zip(batch.lengths, batch.frames, strict=True)):
            means, logs = encoded.prior_means[row, :length], encoded.prior_log_variances[row, :length]
            cost, own = aligned(means, logs, frames)
            costs.append(cost)
            durations.append(own)
        head, states = self._durations, encoded.last_hidden_state.detach()
        logs = states.new_zeros(states.shape[:2]) if head is None else head(states, mask)
        return costs, durations, logs

    def losses(self, batch: VoiceBatch) -> Tensor:
        """(1,): the costs of all frames, and how wrong the durations are."""
        costs, durations, logs = self.costs(batch)
        total = torch.stack([one.sum() for one in costs]).sum()
        width = batch.frames[0].shape[0]
        for row, (own, length) in enumerate(zip(durations, batch.lengths, strict=True)):
            # Poisson's: its best value is the mean duration; that of squared errors of logarithms is shorter
            found = logs[row, :length]
            total = total + _DURATIONS * width * (torch.exp(found) - own * found).sum()
        return total[None]

    @torch.no_grad()
    def current_costs(self, examples: Sequence[VoiceExample]) -> list[tuple[float, int]]:
        """For each clip what its frames cost in nats, and how many numbers they are, by the model as it is now."""
        found = []
        for one in examples:
            batch = self.collate([one]).to(self.device)
            costs, _, _ = self.costs(batch)
            found.append((float(costs[0].sum()), one.frames.numel()))
        return found

    def save(self, folder: Path) -> None:
        """Write the adapter: a PEFT folder with rows, head and settings beside."""
        assert self._durations is not None
        folder.mkdir(parents=True, exist_ok=True)
        super().save(folder)
        config = read_json(folder / ADAPTER_CONFIG)
        config["auto_mapping"] = {"base_model_class": "VitsModel", "parent_library": "transformers"}  # not our subclass
        config["base_model_name_or_path"] = self.base.reference
        (folder / ADAPTER_CONFIG).write_text(json.dumps(config, indent=2, sort_keys=True) + "\n", encoding="utf-8")
        tensors = {HEAD + name: value for name, value in self._durations.state_dict().items()}
        tensors[ROWS] = self._vits.text_encoder.embed_tokens.rows
        save_file({name: one.detach().cpu().contiguous() for name, one in tensors.items()}, folder / VOICE)
        settings = Settings(
            languages=tuple(self.languages), symbols=tuple(self.learned), noise=NOISE, voice=self.voice,
            synthetic=round(self.synthetic, 4), consent=self.consent,
        )  # fmt: skip
        write_settings(folder, settings)

    def start_from(self, folder: Path) -> None:
        """Take the weights of an adapter of the same base, the rows of the sounds that both have among them."""
        super().start_from(folder)
        assert self._durations is not None
        settings, tensors = read_settings(folder), load_file(folder / VOICE)
        theirs = {sign: row for sign, row in zip(settings.symbols, tensors.pop(ROWS), strict=True)}
        head = {name.removeprefix(HEAD): value for name, value in tensors.items()}
        try:
            self._durations.load_state_dict(head)
        except RuntimeError as error:
            raise KauliError(f"the adapter in {folder} does not fit base '{self.base.name}': {error}") from None
        with torch.no_grad():
            for at, sign in enumerate(self.learned):
                if sign in theirs:
                    self._vits.text_encoder.embed_tokens.rows[at] = theirs[sign].to(self.device)

    def served(self) -> SpeakTask:
        """The base as a `SpeakTask` on the same weights."""
        model: Any = without_peft(self.model)
        if isinstance(table := model.text_encoder.embed_tokens, TrainedTable):
            model.text_encoder.embed_tokens = table.table
        return SpeakTask.of(self.base, model.eval().requires_grad_(False))


class _Trained(nn.Module):
    """The parameters that are trained, with the losses of a batch as forward."""

    def __init__(self, voice: TrainableVoice) -> None:
        super().__init__()
        self.model, self.durations = voice.model, voice._durations
        self._losses = voice.losses

    def forward(self, batch: VoiceBatch) -> Tensor:
        """See `TrainableVoice.losses`."""
        return self._losses(batch)
