"""How a conversation becomes tokens: the one owner of chat rendering, for training, evaluation and serving alike."""

from collections.abc import Mapping, Sequence
from typing import Any

from transformers import PreTrainedTokenizerBase

from kauli.models.bases.folder import PLAIN
from kauli.models.engine.packing import FEATURE, Document
from kauli.models.errors import UsageError
from kauli.models.languages import nfc
from kauli.models.requests import MARK, Media, Message, TextRequest
from kauli.models.text.picture_memory import with_captions


class Prompts:
    """The prompts of one language model."""

    def __init__(self, tokenizer: PreTrainedTokenizerBase, template: str | None, end: int, vocabulary: int) -> None:
        """`template` is jinja's; None is the tokenizer's own, else one message a line. `end` is the end token.

        `vocabulary` is the model's: some tokenizers have tokens beyond it, such as Gemma's for images.
        """
        self.template: str = template or tokenizer.chat_template or PLAIN
        self._size = min(len(tokenizer), vocabulary)
        self._tokenizer, self._end = tokenizer, end
        # Tokens that the tokenizer puts before any text, such as Gemma's <bos>
        self._start: list[int] = tokenizer("").input_ids
        self._opening = self._start or [self._separator()]
        """What stands before a document."""
        self._written = str(tokenizer.decode(self._opening))

    def tokens(self, request: TextRequest) -> list[int]:
        """The tokens before the answer, `FEATURE` where those of media belong; never empty.

        Raises UsageError where the marks in the text are not as many as the media, and for tokens that are none of
        this model's.
        """
        self._check([token for token, _ in request.logit_bias])
        if isinstance(request.prompt, tuple):
            self._check(request.prompt)
            return list(request.prompt)
        if request.messages is None:
            tokens = self._marked_tokens(request.prompt or "", request.media)
            return self._opening[: self.before(request)] + tokens
        tokens = self._marked_tokens(self._rendered(request.messages), request.media)
        return tokens if tokens[: len(self._start)] == self._start else self._start + tokens

    def before(self, request: TextRequest) -> int:
        """How many tokens `tokens` puts before a raw prompt: none before tokens, or a text that begins with them."""
        given = isinstance(request.prompt, tuple) or (request.prompt or "").startswith(self._written)
        return 0 if given else len(self._opening)

    def document(self, row: Mapping[str, Any], limit: int) -> Document:
        """An example's prompt, its text and the end token, truncated to `limit` tokens.

        Raises UsageError where a prompt with media takes more than half of them and does not leave enough for the text.
        """
        media = tuple(row.get("media") or ())
        asked = with_captions(row["prompt"], row.get("captions") or ())
        prompt = self.tokens(TextRequest.of_prompt(asked, media))
        answer = [*self.text_tokens(row["text"]), self._end]
        if len(prompt) > limit // 2 and len(prompt) + len(answer) > limit:
            if media:
                text = f"row {row.get('id')}: with its media the prompt has {len(prompt)} tokens"
                raise UsageError(f"{text}, which leaves too few of {limit} for the answer: raise train.max_length.")
            prompt = prompt[-(limit // 2) :]  # a long prompt is truncated: at least half of the tokens are the answer's
        tokens = prompt + answer
        spans = self._spans(row["prompt"], row.get("targets") or (), prompt)
        return Document(tokens[:limit], len(prompt), len(tokens) <= limit, media, spans)

    def _spans(
        self, content: str, places: Sequence[tuple[int, int]], tokens: Sequence[int]
    ) -> tuple[tuple[int, int], ...]:
        """The tokens of parts of a message, which are given in characters, in its whole prompt.

        None where the prompt was truncated, or the tokenizer is one without offsets.
        """
        if not places or not self._tokenizer.is_fast:
            return ()
        text = self._rendered((Message("user", content),))
        found = self._tokenizer(text, add_special_tokens=False, return_offsets_mapping=True)
        before = len(tokens) - len(found.input_ids)
        if list(tokens[max(0, before) :]) != list(found.input_ids) or before < 0:
            return ()
        start, spans = text.index(nfc(content)), []
        for first, last in places:
            inside = [
                at for at, (begin, end) in enumerate(found["offset_mapping"])
                if begin < start + last and end > start + first and end > begin and before + at > 0
            ]  # fmt: skip
            if inside:
                spans.append((before + inside[0], before + inside[-1] + 1))
        return tuple(spans)

    def _rendered(self, messages: Sequence[Message]) -> str:
        return str(
            self._tokenizer.apply_chat_template(
                [{"role": message.role, "content": nfc(message.content)} for message in messages],
                chat_template=self.template, add_generation_prompt=True, tokenize=False,
            )
        )  # fmt: skip

    def text_tokens(self, text: str) -> list[int]:
        """A text's tokens (after NFC) without anything before or behind them."""
        return self._plain_tokens(nfc(text))

    def _plain_tokens(self, text: str) -> list[int]:
        tokens: list[int] = self._tokenizer(text, add_special_tokens=False).input_ids if text else []
        self._check(tokens)
        return tokens

    def _marked_tokens(self, text: str, media: Sequence[Media]) -> list[int]:
        if not media:
            return self._plain_tokens(text.replace(MARK, ""))
        first, *others = text.split(MARK)
        if len(others) != len(media):
            raise UsageError(f"the text has {len(others)} marks for media, but {len(media)} images or clips are given.")
        tokens = self._plain_tokens(first)
        for one, piece in zip(media, others, strict=True):
            tokens += [FEATURE] * len(one.features) + self._plain_tokens(piece)
        return tokens

    def _check(self, tokens: Sequence[int]) -> None:
        if unknown := [token for token in tokens if not 0 <= token < self._size]:
            raise UsageError(f"token {unknown[0]} is unknown: the tokens of this model are 0 to {self._size - 1}.")

    def _separator(self) -> int:
        """The token between documents in pretraining, for a text without a prompt and a tokenizer without a start."""
        found = self._tokenizer.convert_tokens_to_ids("<|endoftext|>")
        unknown = found is None or found == self._tokenizer.unk_token_id
        return found if isinstance(found, int) and not unknown else self._end
