"""How an answer ends: by an end token, a stop string or the context, cancelled, or failed alone."""

from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from kauli.models.engine.engine import Engine
from kauli.models.engine.sampling import Sampling
from kauli.models.engine.ticket import Generation, Ticket
from support.engines import ENDS, Answer, ask, drain, greedy, of_transformers, save_adapters, serve, step, token_bytes

pytestmark = pytest.mark.filterwarnings("ignore:Model has `tie_word_embeddings=True`:UserWarning")


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, dict[str, Path]]:
    return save_adapters(tmp_path_factory)


def test_end_tokens_min_tokens_and_ignored_ends(folders: dict[str, dict[str, Path]]) -> None:
    served = serve(folders)
    one = replace(greedy(9), sampling=Sampling())
    free = ask(served.engine(ends=frozenset()), [one])[0]
    assert free.finish == "length"
    assert len(free.tokens) == 20
    at, end = next((at, token) for at, token in enumerate(free.tokens) if at > 3 and token not in free.tokens[:at])
    engine = served.engine(ends=frozenset({end}))
    (ended, longer, ignoring) = ask(
        engine,
        [
            replace(one, logprobs=0),
            replace(one, sampling=Sampling(min_tokens=at + 4)),
            replace(one, sampling=Sampling(ignore_eos=True)),
        ],
    )
    assert (ended.finish, ended.tokens) == ("stop", free.tokens[: at + 1])
    assert b"".join(each.bytes for each in ended.logprobs[:-1]).decode(errors="ignore") == ended.text
    assert end not in longer.tokens[: at + 4]
    assert len(longer.tokens) >= at + 4
    assert end not in ignoring.tokens
    assert ignoring.finish == "length"


def test_a_cancelled_request_gives_its_slot_to_the_next_at_once(folders: dict[str, dict[str, Path]]) -> None:
    served = serve(folders)
    engine = served.engine(slots=2, prompt_tokens=16)
    answering, reading, waiting, later = (engine.submit(greedy(length)) for length in (5, 100, 30, 12))
    answers: dict[Ticket, Answer] = {}
    for _ in range(3):
        step(engine, answers)
    answering.cancelled = reading.cancelled = waiting.cancelled = True
    step(engine, answers)
    assert [answers[ticket].finish for ticket in (answering, reading, waiting)] == ["cancelled"] * 3
    assert len(answers[later].tokens) == 1  # it came in and answered in the same step
    drain(engine, answers)
    assert answers[later].tokens == of_transformers("debug", None, later.generation)
    assert not engine.busy


def test_an_adapter_that_is_not_finite_fails_alone(folders: dict[str, dict[str, Path]]) -> None:
    served = serve(folders, loaded=["a", "broken", "b"])
    engine = served.engine(slots=4, prompt_tokens=20)
    company = [greedy(9, "a"), greedy(5, "b"), greedy(50, "a")]
    bad = engine.submit(greedy(30, "broken"))
    tickets = [engine.submit(generation) for generation in company]
    answers = drain(engine)
    assert (answers[bad].finish, answers[bad].text, answers[bad].tokens) == ("failed", "", [])
    for ticket in tickets:
        key = ticket.generation.adapter or ""
        assert answers[ticket].tokens == of_transformers("debug", served.folders[key], ticket.generation)
    half = served.engine(slots=2, prompt_tokens=20)
    for cancelled in (False, True):
        ticket = half.submit(greedy(90, "broken"))
        step(half, {})
        ticket.cancelled = cancelled
        assert drain(half)[ticket].finish == ("cancelled" if cancelled else "failed")
        # The next in the slot is shorter than its company: what the failed one read lies behind its mask.
        after, _ = ask(half, [greedy(3, "a"), greedy(60)])
        assert after.tokens == of_transformers("debug", served.folders["a"], greedy(3, "a"))


def test_the_context_ends_an_answer_and_impossible_requests_are_refused(folders: dict[str, dict[str, Path]]) -> None:
    served = serve(folders, loaded="a")
    engine = served.engine(context=40)
    (answer,) = ask(engine, [greedy(30, max_tokens=100)])
    assert (answer.finish, len(answer.tokens)) == ("length", 10)
    assert answer.tokens == of_transformers("debug", None, greedy(30, max_tokens=10))
    for wrong in (greedy(40), Generation([[]]), Generation([]), greedy(3, "unknown")):
        with pytest.raises(ValueError, match=r"prompt|loaded"):
            engine.submit(wrong)
    assert not engine.busy


class Script(nn.Module):
    """A stand-in whose greedy answer to a prompt of one token is a given text, byte by byte."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.embeddings = nn.Embedding(259, 8)
        self.tokens = torch.tensor([byte + 3 for byte in text.encode()] + [2])

    def get_input_embeddings(self) -> nn.Embedding:
        return self.embeddings

    def forward(self, position_ids: Tensor, logits_to_keep: Tensor, **_: Any) -> SimpleNamespace:
        places = position_ids[0, logits_to_keep]
        return SimpleNamespace(logits=nn.functional.one_hot(self.tokens[places], 259)[None] * 50.0)


def test_streams_give_whole_characters_and_stop_strings_are_never_shown() -> None:
    text = "ሰላም ለዓለም! é"
    engine = Engine(Script(text), token_bytes(), ENDS)  # type: ignore[arg-type]
    size = len(text.encode())
    answers = ask(engine, [Generation([[5]], None, limit) for limit in range(1, size + 2)])
    for limit, answer in enumerate(answers, start=1):
        assert answer.text == text.encode()[:limit].decode(errors="ignore")
        assert answer.finish == ("stop" if limit > size else "length")
    ticket = engine.submit(Generation([[5]]))
    pieces = []
    while engine.busy:
        pieces += [progress.text for found, progress in engine.step() if found is ticket]
    assert [piece for piece in pieces if piece] == list(text)  # each letter once its last byte is there
    for stop, shown in ((("ለዓ",), "ሰላም "), (("xyz", "ም ለ", "ላም ለዓለ"), "ሰላ"), (("ዓለምx",), text), (("",), text)):
        (answer,) = ask(engine, [Generation([[5]], stop=stop)])
        assert (answer.text, answer.finish) == (shown, "stop")
    (cut,) = ask(engine, [Generation([[5]], None, 13, stop=("ለዓለም! éx",))])
    assert cut.text == text.encode()[:13].decode(errors="ignore")  # what was held back comes at the end
