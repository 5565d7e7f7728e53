"""Tokens as bytes, so that a stream never splits a character: in many scripts a letter takes several tokens."""

import codecs
import json
import re
from functools import lru_cache

from transformers import PreTrainedTokenizerBase
from transformers.convert_slow_tokenizer import bytes_to_unicode


@lru_cache(maxsize=1)
def byte_alphabet() -> dict[str, int]:
    """The printable characters that byte-level BPE writes for the 256 bytes -> those bytes."""
    return {letter: byte for byte, letter in bytes_to_unicode().items()}  # type: ignore[no-untyped-call]


class TokenBytes:
    """The bytes of each token of a tokenizer; special tokens have none.

    Knows byte-level BPE and SentencePiece-like vocabularies with byte fallback (`<0xE1>`), which is what causal
    language models use; raises ValueError for any other kind.
    """

    def __init__(self, tokenizer: PreTrainedTokenizerBase) -> None:
        decoder = json.dumps(json.loads(tokenizer.backend_tokenizer.to_str()).get("decoder") or {}, ensure_ascii=False)
        self._byte_level = '"ByteLevel"' in decoder
        if not self._byte_level and "▁" not in decoder:
            raise ValueError(f"a tokenizer of an unknown kind: its decoder is {decoder}")
        self._tokenizer = tokenizer
        self._special = set(tokenizer.all_special_ids)
        self._added = {index: token.content for index, token in tokenizer.added_tokens_decoder.items()}
        self._cache: dict[int, bytes] = {}

    def __call__(self, token: int) -> bytes:
        """The UTF-8 bytes of one token id; they need not be whole characters."""
        known = self._cache.get(token)
        if known is None:
            known = self._cache[token] = self._bytes(token)
        return known

    def written(self, token: int) -> bytes:
        """As a call, and the name of a special token."""
        return self(token) or self._added.get(token, "").encode()

    def _bytes(self, token: int) -> bytes:
        if token in self._special:
            return b""
        if token in self._added:
            return self._added[token].encode()
        piece = self._tokenizer.convert_ids_to_tokens(token)
        if not isinstance(piece, str):  # a row of the embedding that no token uses
            return b""
        if self._byte_level:
            return bytes(byte_alphabet()[letter] for letter in piece)
        byte = re.fullmatch(r"<0x([0-9A-F]{2})>", piece)
        return bytes([int(byte[1], 16)]) if byte else piece.replace("▁", " ").encode()


class TextStream:
    """Turns a growing sequence of tokens into text chunks of whole characters, up to the first stop string.

    Bytes that form no character (an untrained model writes such) are left out, never shown as U+FFFD.
    """

    def __init__(self, token_bytes: TokenBytes, stop: tuple[str, ...] = ()) -> None:
        self._token_bytes = token_bytes
        self._decoder = codecs.getincrementaldecoder("utf-8")(errors="ignore")
        self._stop = tuple(text for text in stop if text)
        self._held = ""
        self.stopped = False

    def push(self, token: int) -> str:
        """The text that is certain after one more token: whole characters that can't be the start of a stop string."""
        self._held += self._decoder.decode(self._token_bytes(token))
        found = [place for place in (self._held.find(text) for text in self._stop) if place >= 0]
        if found:
            self.stopped = True
            text, self._held = self._held[: min(found)], ""
            return text
        hold = max((self._overlap(text) for text in self._stop), default=0)
        cut = len(self._held) - hold
        text, self._held = self._held[:cut], self._held[cut:]
        return text

    def close(self) -> str:
        """What was held back; an unfinished character is dropped."""
        text, self._held = self._held, ""
        return "" if self.stopped else text

    def _overlap(self, stop: str) -> int:
        """How many characters at the end of the held text begin the stop string."""
        return next((n for n in range(min(len(stop) - 1, len(self._held)), 0, -1) if self._held.endswith(stop[:n])), 0)
