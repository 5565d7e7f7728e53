"""Continuous batching: whatever the company, each request gets what it gets alone, and what transformers gives."""

import math
import random
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from kauli.models.engine.engine import Engine
from kauli.models.engine.kv_cache import SlotCache, SlotMemory, SlotPass, Span
from kauli.models.engine.sampling import Sampling
from kauli.models.engine.ticket import Generation, Part, Ticket
from kauli.models.requests import Progress
from support.engines import (
    BASES,
    ENDS,
    Answer,
    ask,
    drain,
    greedy,
    of_transformers,
    prompt,
    save_adapters,
    serve,
    step,
    token_bytes,
)
from support.random_adapters import fresh, peft_logits

pytestmark = pytest.mark.filterwarnings("ignore:Model has `tie_word_embeddings=True`:UserWarning")


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, dict[str, Path]]:
    return save_adapters(tmp_path_factory)


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


def test_answers_stay_right_while_the_cache_grows_and_shrinks(folders: dict[str, dict[str, Path]]) -> None:
    for base in ("debug", "debug-gemma"):
        served = serve(folders, base)
        engine = served.engine(slots=3, prompt_tokens=100)
        first, longer = greedy(20, max_tokens=40), greedy(240, max_tokens=40)
        for wanted in ([first, longer, greedy(600)], [first]):
            answers = ask(engine, wanted)
            assert [answer.tokens for answer in answers] == [of_transformers(base, None, one) for one in wanted]


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
