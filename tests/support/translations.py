"""A worker for text that answers by a rule, and a service around it, for tests of translations."""

from collections.abc import AsyncGenerator, Callable, Sequence
from pathlib import Path
from typing import Any

from kauli.models.adapters.registry import Registry
from kauli.models.bases.find import find_base
from kauli.models.requests import TextRequest
from kauli.serving.backends import Backends
from kauli.serving.events import Event, Piece, Started
from kauli.serving.routing import Catalogue
from kauli.serving.settings import ServeArgs
from kauli.serving.workers.memory import MemoryWorker
from support.memories import LetterEmbedder


class Answering:
    """A text worker: `answer` makes a text of the message that is asked."""

    def __init__(self, answer: Callable[[str], str]) -> None:
        self.answer, self.asked, self.requests = answer, list[str](), list[TextRequest]()
        self.likelier: dict[str, float] = {}
        """Text -> what a byte of it costs; others cost 1."""

    async def stream(self, request: TextRequest, adapter: str | None, whole: bool = False) -> AsyncGenerator[Event]:
        assert request.messages is not None
        self.asked.append(request.messages[0].content)
        self.requests.append(request)
        yield Started(1)
        yield Piece(f" {self.answer(self.asked[-1])}\n", 3, "stop")

    async def count_tokens(self, texts: Sequence[str]) -> list[int]:
        return [len(text.encode()) for text in texts]

    async def costs(self, prompt: str, texts: Sequence[str], adapter: str | None) -> list[tuple[float, int]]:
        assert self.asked[-1].startswith(prompt[:20])
        return [(len(text.encode()) * self.likelier.get(text, 1.0), len(text.encode())) for text in texts]

    async def check(self) -> str | None:
        return None


def backends(folder: Path, answer: Callable[[str], str], **settings: Any) -> tuple[Backends, Answering]:
    """A service with such a worker and memories in a folder; `folder` holds the adapters."""
    args = ServeArgs(storage=str(folder), refresh_s=0, **settings)
    base = find_base("debug")
    worker = Answering(answer)
    memory = MemoryWorker(LetterEmbedder(), args)  # type: ignore[arg-type]
    catalogue = Catalogue(Registry(str(folder)), {"text": [base]})
    return Backends({"text": {base.name: worker}, "memory": {"kauli-towers": memory}}, catalogue, args), worker
