"""From logits to tokens: each row by its own settings, the same alone and in company."""

import pytest
import torch
from torch import Tensor
from transformers import MinPLogitsWarper, RepetitionPenaltyLogitsProcessor, TopKLogitsWarper, TopPLogitsWarper

from kauli.models.engine.sampling import Draw, Sampling, choose

ENDS = frozenset({0, 2})


def draw(prompt: tuple[int, ...] = (), index: int = 0, **settings: object) -> Draw:
    return Draw(Sampling(**settings), ENDS, prompt, index)  # type: ignore[arg-type]


def some_logits(rows: int, vocabulary: int = 50, seed: int = 0, width: float = 2.0) -> Tensor:
    return width * torch.randn(rows, vocabulary, generator=torch.Generator().manual_seed(seed))


def drawn(logits: Tensor, count: int, **settings: object) -> Tensor:
    """How often each token is drawn, of `count` times, in calls of 500 rows with one seed each."""
    found: list[int] = []
    for start in range(0, count, 500):
        rows = [draw(seed=start + row, **settings) for row in range(min(500, count - start))]
        found += choose(logits.expand(len(rows), -1).clone(), rows)
    return torch.bincount(torch.tensor(found), minlength=logits.shape[-1])


def check_frequencies(counts: Tensor, probabilities: Tensor) -> None:
    """A chi-square test: far looser than chance allows, far tighter than any mistake."""
    assert counts[probabilities == 0].sum() == 0
    expected = probabilities.double() * counts.sum()
    rare = expected < 8
    seen = torch.cat([counts[~rare].double(), counts[rare].sum()[None].double()])
    wanted = torch.cat([expected[~rare], expected[rare].sum()[None]])
    kept = wanted > 0
    chi = float(((seen - wanted)[kept] ** 2 / wanted[kept]).sum())
    freedom = int(kept.sum()) - 1
    assert chi < freedom + 5 * (2 * max(freedom, 1)) ** 0.5


def test_greedy_is_the_likeliest() -> None:
    logits = some_logits(4)
    assert choose(logits.clone(), [draw(seed=row) for row in range(4)]) == logits.argmax(-1).tolist()


def test_the_repetition_penalty_by_hand() -> None:
    logits = torch.tensor([[3.0, 4.0, -1.0, 2.5]])
    row = draw(prompt=(1,), repetition_penalty=2.0)
    assert choose(logits.clone(), [row]) == [0]  # 4 / 2 falls below 3
    assert choose(logits.clone(), [row]) == [3]  # 3 / 2 as well
    assert choose(logits.clone(), [row]) == [1]  # 1.5, 2, -1 and 1.25 are left
    below = torch.tensor([[-1.0, -1.5]])
    assert choose(below.clone(), [draw(prompt=(0,), repetition_penalty=2.0)]) == [1]  # -1 x 2
    assert choose(below.clone(), [draw(prompt=(0,))]) == [0]


@pytest.mark.parametrize("penalty", [0.7, 1.3, 5.0])
def test_the_repetition_penalty_is_that_of_transformers(penalty: float) -> None:
    prompts = [(5, 5, 7), (1,), ()]
    rows = [draw(prompt=prompt, repetition_penalty=penalty, ignore_eos=False) for prompt in prompts]
    seen = [list(prompt) for prompt in prompts]
    reference = RepetitionPenaltyLogitsProcessor(penalty)
    for step in range(20):
        logits = some_logits(3, seed=step, width=1.0)
        expected = [
            int(reference(torch.tensor([tokens], dtype=torch.long), logits[place : place + 1].clone()).argmax())
            for place, tokens in enumerate(seen)
        ]
        assert choose(logits.clone(), rows) == expected
        for tokens, token in zip(seen, expected, strict=True):
            tokens.append(token)


def test_frequencies_follow_the_temperature() -> None:
    logits = some_logits(1)[0]
    for temperature in (0.5, 1.0, 2.0):
        check_frequencies(drawn(logits, 8000, temperature=temperature), torch.softmax(logits / temperature, -1))
    with pytest.raises(AssertionError):  # the check itself is able to fail
        check_frequencies(drawn(logits, 8000, temperature=1.0), torch.softmax(logits / 1.2, -1))


@pytest.mark.parametrize("temperature", [0.7, 1.5])
@pytest.mark.parametrize(("top_k", "top_p"), [(1, 1.0), (7, 1.0), (500, 1.0), (0, 0.8), (0, 0.0), (12, 0.6)])
def test_top_k_and_top_p_are_those_of_transformers(top_k: int, top_p: float, temperature: float) -> None:
    logits = some_logits(1)
    cut = TopKLogitsWarper(top_k)(None, logits / temperature) if top_k else logits / temperature
    cut = TopPLogitsWarper(top_p)(None, cut) if top_p < 1 else cut
    counts = drawn(logits[0], 4000, temperature=temperature, top_k=top_k, top_p=top_p)
    check_frequencies(counts, torch.softmax(cut[0], -1))


@pytest.mark.parametrize(("min_p", "top_k", "top_p"), [(0.1, 0, 1.0), (0.3, 12, 1.0), (0.05, 0, 0.7), (1.0, 0, 1.0)])
@pytest.mark.parametrize("vocabulary", [50, 3000])
def test_min_p_is_that_of_transformers(min_p: float, top_k: int, top_p: float, vocabulary: int) -> None:
    logits = some_logits(1, vocabulary)
    cut = TopKLogitsWarper(top_k)(None, logits) if top_k else logits
    cut = TopPLogitsWarper(top_p)(None, cut) if top_p < 1 else cut
    counts = drawn(logits[0], 2000, temperature=1.0, min_p=min_p, top_k=top_k, top_p=top_p)
    check_frequencies(counts, torch.softmax(MinPLogitsWarper(min_p)(None, cut)[0], -1))


def test_what_is_added_to_scores_by_hand() -> None:
    """OpenAI's formula: bias - count x frequency penalty - (count > 0) x presence penalty, of the answer alone."""
    logits = torch.tensor([[3.0, 2.0, 1.0, 0.0]])
    row = draw(prompt=(0, 0), frequency_penalty=0.5, presence_penalty=0.75, logit_bias=((3, 2.6),))
    plain = draw()
    found = [choose(logits.expand(2, -1).clone(), [row, plain]) for _ in range(5)]
    # 3, 2, 1, 2.6 -> 1.75, 2, 1, 2.6 -> 1.75, 2, 1, 1.35 -> 1.75, 0.75, 1, 1.35 -> 1.25, 0.75, 1, 1.35
    assert [one[0] for one in found] == [0, 3, 1, 0, 3]
    assert [one[1] for one in found] == [0] * 5
    forbidden = draw(logit_bias=((0, -100.0),))
    assert choose(logits.clone(), [forbidden]) == [1]


@pytest.mark.parametrize(("top_k", "top_p"), [(0, 0.9), (1500, 1.0), (2500, 0.95)])
def test_a_nucleus_wider_than_what_is_sorted_first(top_k: int, top_p: float) -> None:
    logits = some_logits(1, vocabulary=3000, width=0.1)
    cut = TopKLogitsWarper(top_k)(None, logits) if top_k else logits
    allowed = (TopPLogitsWarper(top_p)(None, cut) if top_p < 1 else cut)[0] > float("-inf")
    assert allowed.sum() > 1100
    counts = drawn(logits[0], 3000, temperature=1.0, top_k=top_k, top_p=top_p)
    assert counts[~allowed].sum() <= 4  # the border may fall one token apart by rounding
    assert (counts[allowed] > 0).float().mean() > 0.6
    likeliest = logits[0].topk(1024).indices
    share = torch.softmax(logits[0].masked_fill(~allowed, float("-inf")), -1)[likeliest].sum()
    assert float(counts[likeliest].sum() / 3000) == pytest.approx(float(share), abs=0.03)


def test_end_tokens_wait_for_min_tokens_and_never_come_when_ignored() -> None:
    logits = torch.tensor([[9.0, 1.0, 8.0, 2.0]])
    row = draw(min_tokens=2)
    assert [choose(logits.clone(), [row])[0] for _ in range(3)] == [3, 3, 0]
    row = draw(ignore_eos=True)
    assert [choose(logits.clone(), [row])[0] for _ in range(3)] == [3, 3, 3]
    warm = draw(temperature=5.0, seed=1, min_tokens=40)
    found = [choose(logits.clone(), [warm])[0] for _ in range(80)]
    assert not ENDS & set(found[:40])
    assert set(found[40:]) >= ENDS


MIXED: list[dict[str, object]] = [
    {},
    {"temperature": 1.0, "seed": 4},
    {"temperature": 1.0, "seed": 4, "top_p": 0.7},
    {"temperature": 2.0, "seed": 5, "top_k": 3, "repetition_penalty": 1.5},
    {"temperature": 0.3, "seed": 6, "top_k": 20, "top_p": 0.5, "min_tokens": 9},
    {"repetition_penalty": 3.0, "ignore_eos": True},
    {"temperature": 1.0, "seed": 7, "top_p": 0.99},  # of flat logits wider than 1024
]


@pytest.mark.parametrize("rounded", [False, True])
@pytest.mark.parametrize("vocabulary", [50, 3000])
def test_each_row_of_different_settings_gets_what_it_gets_alone(vocabulary: int, rounded: bool) -> None:
    def run(kept: list[int]) -> list[list[int]]:
        rows = [draw(prompt=(3, 4, place), **MIXED[place]) for place in kept]
        found: list[list[int]] = [[] for _ in kept]
        for step in range(12):
            logits = some_logits(len(MIXED), vocabulary, seed=step, width=1.0)[kept]
            # In bf16 many tokens are equally likely.
            for answer, token in zip(
                found, choose(logits.bfloat16().float() if rounded else logits, rows), strict=True
            ):
                answer.append(token)
        return found

    together = run(list(range(len(MIXED))))
    assert together == [run([place])[0] for place in range(len(MIXED))]
    assert run([2, 1]) == [together[2], together[1]]
    assert len({tuple(answer) for answer in together}) == len(MIXED)


def test_seeds_repeat_and_indices_differ() -> None:
    logits = some_logits(1)

    def answer(**settings: object) -> list[int]:
        row = draw(temperature=1.0, **settings)  # type: ignore[arg-type]
        return [choose(logits.clone(), [row])[0] for _ in range(12)]

    for seed in (0, 1, -5, 2**63 - 1):
        assert answer(seed=seed) == answer(seed=seed)
    assert len({tuple(answer(seed=seed, index=index)) for seed in (1, 2) for index in (0, 1, 2)}) == 6
    assert answer() != answer()  # no seed: not the same again
