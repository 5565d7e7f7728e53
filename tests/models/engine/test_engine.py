"""Continuous batching: whatever the company, each request gets what it gets alone, and what transformers gives."""

import math
import random
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field, replace
from functools import cache
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from peft import LoraConfig
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from transformers import AutoTokenizer

from kauli.models.adapters.delta import LinearDelta
from kauli.models.bases.find import find_base
from kauli.models.engine.detokenize import TokenBytes
from kauli.models.engine.engine import Engine
from kauli.models.engine.kv_cache import SlotCache, SlotMemory, SlotPass, Span
from kauli.models.engine.lora_batch import LoraBatch
from kauli.models.engine.sampling import Sampling
from kauli.models.engine.ticket import Generation, Part, Ticket
from kauli.models.requests import Progress, TokenLogprob
from support.random_adapters import EVERY, fresh, peft_logits, peft_model, save_adapter

BASES = ["debug", "debug-gemma", "debug-qwen"]
ENDS = frozenset({0, 2})
pytestmark = pytest.mark.filterwarnings("ignore:Model has `tie_word_embeddings=True`:UserWarning")


@dataclass
class Served:
    """A base and the adapters that a test may load into it."""

    base: str
    folders: dict[str, Path]
    model: Any
    lora: LoraBatch
    terms: dict[str, dict[str, LinearDelta]]

    def engine(self, ends: frozenset[int] = ENDS, **options: Any) -> Engine:
        return Engine(self.model, token_bytes(), ends, self.lora, **options)


@cache
def token_bytes() -> TokenBytes:
    return TokenBytes(AutoTokenizer.from_pretrained(find_base("debug").folder))


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, dict[str, Path]]:
    """By base the folders of its adapters."""
    kinds = {
        "a": {"r": 4, "target_modules": EVERY},
        "b": {"r": 9, "target_modules": ["q_proj", "down_proj"]},
        "c": {"r": 2, "target_modules": ["v_proj", "up_proj", "lm_head"], "use_dora": True},
    }
    found: dict[str, dict[str, Path]] = {}
    for base in BASES:
        found[base] = {}
        for seed, (key, kind) in enumerate(kinds.items()):
            folder = tmp_path_factory.mktemp(f"{base}-{key}")
            found[base][key] = save_adapter(folder, base, LoraConfig(lora_alpha=8, **kind), seed)  # type: ignore[arg-type]
    tensors = load_file(found["debug"]["a"] / "adapter_model.safetensors")
    tensors[sorted(tensors)[0]][0, 0] = float("nan")
    broken = found["debug"]["broken"] = tmp_path_factory.mktemp("broken")
    (broken / "adapter_config.json").write_text((found["debug"]["a"] / "adapter_config.json").read_text())
    save_file(tensors, broken / "adapter_model.safetensors")
    return found


def serve(folders: dict[str, dict[str, Path]], base: str = "debug", loaded: Iterable[str] = ()) -> Served:
    model = fresh(base)
    lora = LoraBatch(model, 4)
    terms = {key: lora.read(folder) for key, folder in folders[base].items()}
    for key in loaded:
        lora.add(key, terms[key])
    return Served(base, folders[base], model, lora, terms)


@dataclass
class Answer:
    """What came of a request."""

    text: str = ""
    finish: str | None = None
    logprobs: list[TokenLogprob] = field(default_factory=list)
    tokens: list[int] = field(default_factory=list)


def step(engine: Engine, answers: dict[Ticket, Answer]) -> None:
    for ticket, progress in engine.step():
        answer = answers.setdefault(ticket, Answer())
        assert answer.finish is None
        assert "\ufffd" not in progress.text
        answer.text += progress.text
        answer.finish = progress.finish
        answer.logprobs += progress.logprobs
        answer.tokens = list(ticket.answer)


def drain(engine: Engine, answers: dict[Ticket, Answer] | None = None) -> dict[Ticket, Answer]:
    answers = {} if answers is None else answers
    while engine.busy:
        step(engine, answers)
    assert engine.step() == []
    assert all(answer.finish for answer in answers.values())
    return answers


def ask(engine: Engine, generations: Sequence[Generation]) -> list[Answer]:
    tickets = [engine.submit(generation) for generation in generations]
    answers = drain(engine)
    return [answers[ticket] for ticket in tickets]


def prompt(length: int, seed: int = 0) -> list[int]:
    return random.Random(1000 * seed + length).choices(range(3, 259), k=length)


def greedy(length: int, adapter: str | None = None, max_tokens: int = 20, seed: int = 0) -> Generation:
    """A request that never ends early."""
    return Generation([prompt(length, seed)], adapter, max_tokens, Sampling(ignore_eos=True))


def of_transformers(base: str, folder: Path | None, generation: Generation) -> list[int]:
    """The tokens that transformers' own generation gives, with PEFT's own model."""
    ids = torch.tensor(generation.prompt)
    found = peft_model(base, folder).generate(
        input_ids=ids, attention_mask=torch.ones_like(ids), max_new_tokens=generation.max_tokens, do_sample=False,
        suppress_tokens=sorted(ENDS), eos_token_id=None, pad_token_id=0,
    )  # fmt: skip
    tokens: list[int] = found[0, ids.shape[1] :].tolist()
    return tokens


@pytest.mark.parametrize("base", BASES)
def test_greedy_tokens_are_those_of_transformers(folders: dict[str, dict[str, Path]], base: str) -> None:
    served = serve(folders, base)
    wanted = [greedy(length) for length in (1, 40, 3, 200, 17, 90, 33)]  # Gemma's window is 16
    expected = [of_transformers(base, None, one) for one in wanted]
    for prompt_tokens in (256, 24):
        assert [
            answer.tokens for answer in ask(served.engine(slots=3, prompt_tokens=prompt_tokens), wanted)
        ] == expected
    bare = Engine(fresh(base), token_bytes(), ENDS, slots=8)
    assert [answer.tokens for answer in ask(bare, wanted)] == expected


@pytest.mark.parametrize("base", BASES)
def test_adapters_together_answer_as_pefts_own_models_and_are_never_swapped(
    folders: dict[str, dict[str, Path]], base: str
) -> None:
    served = serve(folders, base, "abc")
    wanted = [greedy(length, key, 12) for length in (50, 9) for key in ("c", "a", None, "b", "a")]
    expected = [of_transformers(base, folders[base][one.adapter] if one.adapter else None, one) for one in wanted]
    assert len({tuple(tokens) for tokens in expected}) == 8
    for slots, prompt_tokens in ((10, 256), (4, 13)):
        answers = ask(served.engine(slots=slots, prompt_tokens=prompt_tokens), wanted)
        assert [answer.tokens for answer in answers] == expected


@pytest.mark.parametrize("seed", range(10))
def test_joining_leaving_and_loading_never_change_an_answer(folders: dict[str, dict[str, Path]], seed: int) -> None:
    chance = random.Random(seed)
    base = BASES[seed % 3]
    served, other = serve(folders, base), serve(folders, base, "abc")
    slots = chance.randint(1, 5)
    engine = served.engine(slots=slots, prompt_tokens=chance.choice([5, 32, 256]))
    answers: dict[Ticket, Answer] = {}
    tickets: list[Ticket] = []
    for _ in range(40):
        event, key = chance.random(), chance.choice("abc")
        used = {one.generation.adapter for one in tickets if one not in answers or not answers[one].finish}
        if event < 0.15 and key not in served.lora:
            served.lora.add(key, served.terms[key])
        elif event < 0.25 and key in served.lora and key not in used:
            served.lora.remove(key)
        elif event < 0.55:
            sampling = Sampling(
                chance.choice([0.0, 0.8]), chance.choice([1.0, 0.9]), chance.choice([0, 20]), chance.randrange(99),
                chance.choice([1.0, 1.3]), chance.choice([0, 4]), chance.random() < 0.5,
            )  # fmt: skip
            tickets.append(
                engine.submit(
                    Generation(
                        [prompt(chance.choice([1, 7, 30, 60]), chance.randrange(99))],
                        chance.choice([None, *served.lora.keys()]), chance.randint(1, 12), sampling,
                        chance.choice([(), ("e",), ("\n", "xy")]),
                    )
                )
            )  # fmt: skip
        elif event < 0.62 and tickets:
            chance.choice(tickets).cancelled = True
        step(engine, answers)
    drain(engine, answers)
    assert not engine.busy
    assert answers.keys() == set(tickets)
    alone = other.engine(slots=1)
    for ticket, answer in answers.items():
        (expected,) = ask(alone, [ticket.generation])
        if answer.finish == "cancelled":
            assert expected.text.startswith(answer.text)
        else:
            assert (answer.text, answer.finish, answer.tokens) == (expected.text, expected.finish, expected.tokens)


@pytest.mark.parametrize("base", BASES)
def test_embeddings_of_tokens_answer_as_the_tokens(folders: dict[str, dict[str, Path]], base: str) -> None:
    served = serve(folders, base, "a")
    tokens = prompt(24)
    with torch.no_grad():
        embedded = served.model.get_input_embeddings()(torch.tensor(tokens))
    prompts: list[list[Part]] = [
        [tokens],
        [embedded],
        [tokens[:6], embedded[6:20], tokens[20:]],
        [embedded[:5], tokens[5:6], embedded[6:15], embedded[15:23], tokens[23:]],
    ]
    for prompt_tokens in (256, 24, 7):
        engine = served.engine(slots=3, prompt_tokens=prompt_tokens)
        wanted = [Generation(parts, "a", 8, Sampling(ignore_eos=True)) for parts in prompts]
        answers = ask(engine, wanted)
        assert [answer.tokens for answer in answers] == [of_transformers(base, served.folders["a"], wanted[0])] * 4


def test_several_answers_read_their_prompt_once_and_equal_those_asked_alone(
    folders: dict[str, dict[str, Path]],
) -> None:
    served = serve(folders, loaded="c")
    for length, temperature in ((100, 0.0), (100, 1.0), (1, 1.0)):
        one = replace(greedy(length, "c"), sampling=Sampling(temperature, seed=3, ignore_eos=True))
        wanted = [replace(one, index=index) for index in range(4)]
        engine = served.engine(slots=5, prompt_tokens=50)
        rival = engine.submit(greedy(100, seed=1))
        tickets = [engine.submit(generation) for generation in wanted]
        answers: dict[Ticket, Answer] = {}
        for _ in range(5):  # two passes for each prompt, and one for the last token of those that share
            step(engine, answers)
        assert all(ticket.answer for ticket in tickets)
        drain(engine, answers)
        found = [answers[ticket].tokens for ticket in tickets]
        assert len(set(map(tuple, found))) == (4 if temperature else 1)
        assert found == [ask(served.engine(slots=1), [generation])[0].tokens for generation in wanted]
        assert answers[rival].tokens == of_transformers("debug", None, rival.generation)


def test_log_probabilities_are_those_of_the_model_before_any_setting(folders: dict[str, dict[str, Path]]) -> None:
    served = serve(folders, loaded="ab")
    sampling = Sampling(0.8, 0.9, 50, 3, 1.3, ignore_eos=True)
    wanted = [
        replace(greedy(12, "a"), logprobs=3),
        greedy(8, "b"),
        Generation([prompt(30)], "b", 20, sampling, logprobs=0),
    ]
    answers = ask(served.engine(prompt_tokens=9), wanted)
    assert answers[1].logprobs == []
    for generation, answer in ((wanted[0], answers[0]), (wanted[2], answers[2])):
        assert generation.adapter
        ids = [*generation.prompt[0], *answer.tokens]  # type: ignore[misc]
        logits = peft_logits("debug", served.folders[generation.adapter], torch.tensor([ids]))[0]
        expected = torch.log_softmax(logits, -1)[len(ids) - 21 : -1]
        assert [one.token for one in answer.logprobs] == answer.tokens
        assert [one.logprob for one in answer.logprobs] == pytest.approx(
            [float(row[token]) for row, token in zip(expected, answer.tokens, strict=True)], abs=1e-4
        )
        assert b"".join(one.bytes for one in answer.logprobs).decode(errors="ignore") == answer.text
        for one, row in zip(answer.logprobs, expected, strict=True):
            assert [top.token for top in one.top] == row.topk(generation.logprobs or 0).indices.tolist()
            assert [top.logprob for top in one.top] == sorted((top.logprob for top in one.top), reverse=True)


@pytest.mark.parametrize("base", BASES)
def test_an_echoed_prompt_is_scored_as_peft_scores_it(folders: dict[str, dict[str, Path]], base: str) -> None:
    """Read in pieces, beside other prompts with other adapters and none, while others answer."""
    served = serve(folders, base, ["a", "b", "c"])
    wanted = [
        Generation([prompt(40)], "a", 3, Sampling(ignore_eos=True), logprobs=2, echo=40),
        greedy(20, "b"),
        Generation([prompt(23)], None, 0, logprobs=0, echo=20),
        Generation([prompt(9)], "c", 2, logprobs=1, echo=9),
        Generation([prompt(1)], "c", 0, logprobs=1, echo=1),
        Generation([prompt(12)], "b", 1, echo=4),
    ]
    engine = served.engine(slots=4, prompt_tokens=13)
    tickets = [engine.submit(one) for one in wanted]
    found: dict[Ticket, Progress] = {}
    answers: dict[Ticket, list[int]] = {}
    while engine.busy:
        for ticket, progress in engine.step():
            assert not (progress.echo and ticket in found)
            found.setdefault(ticket, progress)
            answers[ticket] = ticket.answer
    alone = served.engine(slots=1)
    for generation, ticket in zip(wanted, tickets, strict=True):
        first, ids = found[ticket], generation.prompt[0]
        assert [one.token for one in first.echo] == ids[len(ids) - generation.echo :]
        assert len(answers[ticket]) == generation.max_tokens
        plain = replace(generation, echo=0, logprobs=None)
        assert not generation.max_tokens or ask(alone, [plain])[0].tokens == answers[ticket]
        if generation.logprobs is None or not generation.echo:
            assert all(math.isnan(one.logprob) for one in first.echo)
            continue
        folder = served.folders[generation.adapter] if generation.adapter else None
        logits = peft_logits(base, folder, torch.tensor([ids]))[0]
        expected = torch.log_softmax(logits, -1)[len(ids) - generation.echo : -1]
        assert math.isnan(first.echo[0].logprob)
        for one, row in zip(first.echo[1:], expected, strict=True):
            assert one.logprob == pytest.approx(float(row[one.token]), abs=1e-4)
            assert [top.token for top in one.top] == row.topk(generation.logprobs).indices.tolist()
            assert one.bytes == token_bytes().written(one.token)


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


def test_answers_stay_right_while_the_cache_grows_and_shrinks(folders: dict[str, dict[str, Path]]) -> None:
    for base in ("debug", "debug-gemma"):
        served = serve(folders, base)
        engine = served.engine(slots=3, prompt_tokens=100)
        first, longer = greedy(20, max_tokens=40), greedy(240, max_tokens=40)
        for wanted in ([first, longer, greedy(600)], [first]):
            answers = ask(engine, wanted)
            assert [answer.tokens for answer in answers] == [of_transformers(base, None, one) for one in wanted]


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


def test_each_token_attends_to_the_memory_of_its_own_slot_and_to_nothing_that_lay_there_before() -> None:
    chance = torch.Generator().manual_seed(0)
    memory, cache = SlotMemory(4), SlotCache(4, 16, torch.device("cpu"))
    memory.put(2, [(torch.full((9, 2, 8), float("nan")),) * 2])  # longer, and not finite
    held = {slot: tuple(torch.randn(2, count, 2, 8, generator=chance)) for slot, count in ((0, 5), (2, 3), (3, 7))}
    for slot, (keys, values) in held.items():
        memory.put(slot, [(keys, values)])
    decoding, prompts = [Span(3, 4, 5), Span(0, 2, 3)], [Span(2, 0, 2)]  # slot 1 is empty
    query = torch.randn(1, 2, 4, 8, generator=chance)
    out = SlotPass(cache, decoding, prompts, torch.float32).attend_memory(0, query, memory)
    for token, slot in enumerate([3, 0, 2, 2]):
        keys, values = (one.transpose(0, 1) for one in held[slot])
        weights = torch.softmax(query[0, :, token, None] @ keys.mT / 8**0.5, -1)
        torch.testing.assert_close(out[0, token], (weights @ values)[:, 0])
