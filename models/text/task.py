"""A language model that answers: requests become streamed text, each with its own adapter, for `text` and `describe`.

An adapter with a connector takes images and audio in its prompts as well. Training is in `kauli.models.text.training`.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

import torch
from torch import nn
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from kauli.models.adapters.card import CARD_FILE, Decoding, read_card
from kauli.models.adapters.folder import PROMPTS
from kauli.models.adapters.mixture import loosest
from kauli.models.bases.find import Base
from kauli.models.engine.engine import Engine
from kauli.models.engine.generative import SLOTS, Generative, LoadedAdapter
from kauli.models.engine.lora_batch import LoraBatch
from kauli.models.engine.packing import FEATURE, MediaFeatures
from kauli.models.engine.sampling import Sampling
from kauli.models.engine.ticket import Generation, Part, Ticket
from kauli.models.errors import KauliError, UsageError
from kauli.models.requests import DEFAULT_TOKENS, MARK, Media, Progress, TextRequest
from kauli.models.text.connector import Connector, Fused
from kauli.models.text.language_model import LanguageModel, Row, load_model
from kauli.models.text.picture_memory import PictureMemory, read_pictures, with_captions


@dataclass(frozen=True)
class _Runner:
    """One model: the base with all adapters, or a fully fine-tuned one."""

    model: PreTrainedModel
    batches: tuple[LoraBatch]
    engine: Engine

    def step(self) -> list[tuple[Ticket, Progress]]:
        """One pass; see `Engine.step`."""
        return self.engine.step()


@dataclass(frozen=True, kw_only=True)
class LoadedTextAdapter(LoadedAdapter):
    """With its connector, if it has one, and how it answers a request that does not say."""

    connector: Connector | None = None
    pictures: PictureMemory | None = None
    """Captions for the prompts of pictures."""
    decoding: Decoding = field(default_factory=Decoding)


class TextTask(LanguageModel, Generative):
    """A causal language model with any number of adapters, on one device. Not for several threads at once.

    It generates `slots` answers at a time, each of up to `window` tokens with its prompt (default: the context).
    """

    def __init__(
        self,
        model: PreTrainedModel,
        tokenizer: PreTrainedTokenizerBase,
        base: Base,
        slots: int = SLOTS,
        window: int | None = None,
    ) -> None:
        LanguageModel.__init__(self, model, tokenizer, base)
        Generative.__init__(self, slots)
        self._window = min(window or self.context, self.context)
        configured = model.generation_config.eos_token_id if model.generation_config else None
        others = configured if isinstance(configured, list) else [configured]
        self.ends = frozenset({self.end, *(int(token) for token in others if token is not None)})

    @property
    def window(self) -> int:
        return self._window

    def _new_runner(self, model: PreTrainedModel) -> _Runner:
        # A full model is wrapped like the base: this is faster for few tokens
        lora = LoraBatch(model, self.slots if model is self.model else 1)
        engine = Engine(model, self.token_bytes, self.ends, lora, slots=self.slots, context=self.window)
        return _Runner(model, (lora,), engine)

    def read_adapter(self, folder: Path) -> LoadedTextAdapter:
        connector = Connector.load(folder)
        decoding = read_card(folder).decoding if (folder / CARD_FILE).exists() else Decoding()
        if connector is not None:
            wanted = self.model.get_input_embeddings().embedding_dim
            if connector.hidden != wanted:
                raise KauliError(
                    f"the connector in {folder} maps to {connector.hidden} dimensions, the embeddings of base "
                    f"'{self.base.name}' have {wanted}: it was made for another base."
                )
            connector.to(self.device)
        seen = connector.settings.get("image") if connector else None
        pictures = read_pictures(folder, seen.sha256 if seen else None)
        if (folder / "model.safetensors").exists():
            model: PreTrainedModel = load_model(folder, self.model.dtype).to(self.device)  # type: ignore[arg-type]
            model.train(False)
            return LoadedTextAdapter(model=model, connector=connector, pictures=pictures, decoding=decoding)
        [lora] = self._shared().batches
        deltas = {} if (folder / PROMPTS).exists() else lora.read(folder)
        return LoadedTextAdapter(deltas=deltas, connector=connector, pictures=pictures, decoding=decoding)

    def mix_adapters(self, parts: Sequence[tuple[LoadedTextAdapter, float]]) -> LoadedTextAdapter:
        mixed: LoadedTextAdapter = super().mix_adapters(parts)
        return replace(mixed, decoding=loosest([loaded.decoding for loaded, _ in parts]))

    def _connector(self, adapter: str | None) -> Connector | None:
        loaded: LoadedTextAdapter | None = self._loaded.get(adapter or "")
        return loaded.connector if loaded else None

    def has_pictures(self, adapter: str) -> bool:
        """Whether a loaded adapter has a memory of pictures."""
        loaded: LoadedTextAdapter = self._loaded[adapter]
        return loaded.pictures is not None

    def captions(self, media: Sequence[Media], language: str | None, adapter: str | None) -> tuple[str, ...]:
        """Those of similar pictures that an adapter's memory finds for one image; none for other media."""
        loaded: LoadedTextAdapter | None = self._loaded.get(adapter or "")
        images = [one for one in media if one.kind == "image"]
        if loaded is None or loaded.pictures is None or len(images) != 1:
            return ()
        return loaded.pictures.near(images[0].features, language)

    def _shown(self, request: TextRequest, adapter: str | None) -> TextRequest:
        """The request with captions behind its image, before what is said of it."""
        found = request.captions
        if found is None:
            found = self.captions(request.media, request.language, adapter)
        messages = list(request.messages or ())
        place = next((at for at in reversed(range(len(messages))) if MARK in messages[at].content), None)
        if not found or place is None:
            return request
        before, mark, behind = messages[place].content.rpartition(MARK)
        messages[place] = replace(messages[place], content=f"{before}{mark}{with_captions(behind, found)}")
        return replace(request, messages=tuple(messages), captions=())

    def prompt_tokens(self, request: TextRequest) -> list[int]:
        """The tokens before the answer; see `kauli.models.text.prompts.Prompts.tokens`."""
        return self.prompts.tokens(request)

    def bits(self, rows: Sequence[Row], adapter: str | None) -> list[tuple[float, int]]:
        """For each row the bits that its text costs the model, and the text's UTF-8 bytes (after NFC).

        The end token is not counted: bits per byte are the text's alone. A text truncated at the context counts the
        bytes that are left.
        """
        rows = [
            row if "captions" in row or not row.get("media")
            else {**row, "captions": self.captions(row["media"], row.get("language"), adapter)}
            for row in rows
        ]  # fmt: skip
        name = adapter or self.base.name
        full = self._full.get(adapter or "")
        model: nn.Module = self.model if full is None else full.model
        if connector := self._connector(adapter):
            model = Fused(model, connector)
        if adapter is None or full is not None:
            return self._score(model, rows, name)
        [lora] = self._shared().batches
        return self._score(
            model, rows, name, lambda tokens, scored: lora.apply([(adapter, tokens)], kept=[(adapter, scored)])
        )

    def guarded(self, request: TextRequest, adapter: str | None, tokens: list[int] | None = None) -> TextRequest:
        """The request with `no_repeat` and `max_tokens` where it has none: those of the adapter's card."""
        loaded: LoadedTextAdapter | None = self._loaded.get(adapter or "")
        own = loaded.decoding if loaded else Decoding()
        by_source = (
            DEFAULT_TOKENS
            if request.messages is None
            else own.limit(len(tokens or self.prompt_tokens(request)), DEFAULT_TOKENS)
        )
        return replace(
            request,
            no_repeat=own.no_repeat if request.no_repeat is None else request.no_repeat,
            max_tokens=max(by_source, request.min_tokens) if request.max_tokens is None else request.max_tokens,
        )

    def submit(self, request: TextRequest, adapter: str | None, tokens: list[int] | None = None) -> list[Ticket]:
        """Queue a request, which has `n` answers; UsageError for a prompt that leaves no room in the context."""
        shown = self._shown(request, adapter)
        if shown is not request:
            request, tokens = shown, None
        prompt = tokens or self.prompt_tokens(request)
        if len(prompt) >= self.window:
            raise UsageError(
                f"the prompt has {len(prompt)} tokens; the context of {self.base.name} holds {self.window} here."
            )
        runner, key = self._runner_of(adapter)
        request = self.guarded(request, adapter, prompt)
        sampling = Sampling(
            request.temperature, request.top_p, request.top_k, request.seed, request.repetition_penalty,
            request.min_tokens, request.ignore_eos, request.no_repeat or 0, request.min_p, request.frequency_penalty,
            request.presence_penalty, request.logit_bias,
        )  # fmt: skip
        parts = self._parts(prompt, request.media, adapter)
        limit = request.max_tokens or 0
        echo = len(prompt) - self.prompts.before(request) if request.echo else 0
        first = Generation(parts, key, limit, sampling, request.stop, request.logprobs, echo)
        others = [replace(first, index=index, echo=0) for index in range(1, request.n)]
        return [runner.engine.submit(one) for one in (first, *others)]

    @torch.inference_mode()
    def _parts(self, tokens: list[int], media: Sequence[Media], adapter: str | None) -> list[Part]:
        """A prompt as the engine takes it: tokens, and embeddings of media in the place of their marks."""
        if not media:
            return [tokens]
        connector = self._connector(adapter)
        parts: list[Part] = []
        for one in media:
            if connector is None or one.kind not in connector.settings:
                raise UsageError(
                    f"{adapter or self.base.name} takes no {one.kind}: it has no connector for that kind of media."
                )
            at, count = tokens.index(FEATURE), len(one.features)
            values = torch.as_tensor(one.features).float().to(self.device)
            places = torch.arange(count, device=self.device)
            parts += [tokens[:at], connector(one.kind, MediaFeatures(values, places, places))]
            tokens = tokens[at + count :]
        return [part for part in [*parts, tokens] if len(part)]
