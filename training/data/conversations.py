"""Conversations (OpenAI's `messages`, ShareGPT's `conversations`) as rows of a prompt and a text."""

from collections.abc import Iterator
from typing import Any

_ROLES = {
    "assistant": ("assistant", "gpt", "chatgpt", "model", "bot", "ai"),
    "user": ("user", "human"),
    "system": ("system", "developer"),
    "tool": ("tool", "function", "observation"),
}
_KNOWN = {name: role for role, names in _ROLES.items() for name in names}
BREAK = "\n\n"
"""Between the messages of a prompt: chat templates without a system turn put the same between it and the user's."""


def answers(messages: Any) -> Iterator[tuple[str | None, str]]:
    """(prompt, text) for each answer of the assistant: the prompt is all that was said before, None where nothing was.

    Raises ValueError for what is no conversation, holds media, or has no answer.
    """
    before: list[str] = []
    found = False
    for role, text in list(_turns(messages)):
        if role == "assistant" and text:
            yield BREAK.join(before) or None, text
            found = True
        before += [text] if text else []
    if not found:
        raise ValueError("a conversation without an answer of the assistant")


def ends_open(messages: Any) -> bool:
    """Whether something is said after the last answer, which no row can use."""
    said = [role for role, text in _turns(messages) if text]
    return said[-1] != "assistant"


def _turns(messages: Any) -> Iterator[tuple[str, str]]:
    """(role, text) of each message."""
    for message in messages if isinstance(messages, list) else [messages]:
        if not isinstance(message, dict):
            raise ValueError(f"a message is {type(message).__name__}, not an object with role and content")
        name = message.get("role", message.get("from"))
        if not isinstance(name, str) or name not in _KNOWN:
            raise ValueError(f"unknown role '{name}' in a conversation (system, user, assistant or tool)")
        yield _KNOWN[name], _content(message.get("content", message.get("value"))).strip()


def _content(content: Any) -> str:
    if content is None:  # of a message that calls a tool
        return ""
    if isinstance(content, list) and all(isinstance(part, dict) for part in content):
        texts = [part["text"] for part in content if part.get("type") == "text" and isinstance(part.get("text"), str)]
        content = "".join(texts) if len(texts) == len(content) else content
    if not isinstance(content, str):
        raise ValueError("a message holds something else than text")
    return content
