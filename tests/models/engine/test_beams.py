"""Beam search: what an exhaustive search finds, the same in any company, greedy where the beam holds one answer."""

from dataclasses import replace
from itertools import product
from typing import Any

import numpy as np
import pytest

from kauli.models.engine.beams import Beam, fused, repeats
from kauli.models.errors import UsageError
from kauli.models.requests import BeamSearch, TranscriptionRequest
from kauli.models.speech.token_lm import TokenModel, fit
from support.whisper import adapter, sound, whisper

END = 3


def model() -> TokenModel:
    texts = [[0, 1, 0], [0, 1, 1], [1, 0, 2, 0, 1], [0, 1]]
    return fit(texts, vocabulary=4, end=END, order=3, language="be", tokenizer="ab" * 32)


def acoustic(tokens: tuple[int, ...]) -> Any:
    """(4,) log probabilities after these tokens, which stand for a model's."""
    logits = np.random.default_rng([7, *tokens]).normal(size=4)
    return logits - np.log(np.exp(logits).sum())


def exhaustive(search: BeamSearch, limit: int) -> tuple[float, tuple[int, ...]]:
    """The best of all answers of at most `limit` tokens that end."""
    found = []
    for length in range(limit):
        for middle in product(range(3), repeat=length):
            answer = (*middle, END)
            score = search.bonus * length
            for at, token in enumerate(answer):
                score += acoustic(answer[:at])[token]
                if search.scorer is not None:
                    history = np.array([search.scorer.history(answer[:at])])
                    score += search.weight * search.scorer.log_probs(history, np.array([[token]]))[0, 0]
            found.append((float(score), answer))
    return max(found)


@pytest.mark.parametrize("weight", [0.0, 0.5, 2.0])
@pytest.mark.parametrize("bonus", [-0.5, 0.0, 1.0])
def test_a_wide_beam_finds_what_an_exhaustive_search_finds(weight: float, bonus: float) -> None:
    search, limit = BeamSearch(400, model(), weight, bonus), 5
    beam = Beam(search, frozenset({END}), limit)
    while (best := beam.best()) is None:
        answers = [path.tokens for path in beam.paths if path is not None]
        tokens = np.tile(np.arange(4), (len(answers), 1))
        own = np.stack([acoustic(one) for one in answers])
        scores = fused([search] * len(answers), answers, tokens, own)
        beam.advance(tokens, scores - (tokens == END) * bonus, own)
    score, answer = exhaustive(search, limit)
    assert best.score == pytest.approx(score, rel=1e-5)
    assert best.tokens == answer
    assert best.logprobs == pytest.approx([acoustic(answer[:at])[token] for at, token in enumerate(answer)])


def test_a_slot_is_never_overwritten_before_it_is_read() -> None:
    beam = Beam(BeamSearch(3), frozenset(), 9)
    tokens = np.arange(4)[None]
    first = np.array([[-1.0, -2.0, -3.0, -9.0]])
    beam.advance(tokens, first, first)
    # All that is left begins with the worst path: it stays in its slot, and the others take its contents over.
    second = np.array([[-90.0] * 4, [-90.0] * 4, [-1.0, -2.0, -3.0, -4.0]])
    moves = beam.advance(np.tile(tokens, (3, 1)), second, second)
    assert dict(moves) == {0: 2, 1: 2, 2: 2}
    assert [path.tokens for path in beam.paths if path is not None] == [(2, 1), (2, 2), (2, 0)]


def test_runs_that_would_repeat() -> None:
    assert repeats([1, 2, 3, 1, 2], 3) == [3]
    assert repeats([1, 2], 3) == []


def texts_of(task: Any, requests: list[TranscriptionRequest], keys: list[str | None]) -> list[str]:
    texts = [""] * len(requests)
    for chunks in task.generate(requests, keys):
        for chunk in chunks:
            texts[chunk.row] += chunk.text
    return texts


def test_many_beams_with_adapters_and_language_models_share_passes(tmp_path: Any) -> None:
    task = whisper()
    for seed in (1, 2):
        task.add_adapter(f"a{seed}@1", adapter(tmp_path / str(seed), seed))
    vocabulary = int(task.model.config.vocab_size)
    lms = [
        fit([task.tokenizer(text, add_special_tokens=False).input_ids for text in texts], vocabulary=vocabulary,
            end=task.end, order=3, language="be", tokenizer="ab" * 32)
        for texts in ([" слон і кот", " жаба"], [" мора", " рака і лес"])
    ]  # fmt: skip
    plain = [TranscriptionRequest(sound(0.3 + 0.2 * at, at), "be", max_tokens=12) for at in range(6)]
    beams = [None, BeamSearch(3), BeamSearch(4, lms[0], 3.0, 5.0), BeamSearch(4, lms[1], 3.0, 5.0), BeamSearch(1), None]
    requests = [replace(request, beam=beam) for request, beam in zip(plain, beams, strict=True)]
    keys = [None, "a2@1", "a1@1", "a1@1", "a1@1", "a2@1"]
    alone = [texts_of(task, [one], [key])[0] for one, key in zip(requests, keys, strict=True)]
    assert texts_of(task, requests, keys) == alone
    greedy = texts_of(task, plain, keys)
    assert [alone[at] for at in (0, 4, 5)] == [greedy[at] for at in (0, 4, 5)]
    assert alone[2] != texts_of(task, [replace(plain[2], beam=BeamSearch(4, None, 0.0, 5.0))], keys[2:3])[0]


@pytest.mark.parametrize(
    ("change", "named"),
    [
        ({"beam": BeamSearch(0)}, "beam.size is 0"),
        ({"beam": BeamSearch(999)}, "beam.size is 999"),
        ({"beam": BeamSearch(2), "temperature": 0.5}, "temperature 0"),
        ({"beam": BeamSearch(2), "logprobs": 3}, "no likeliest tokens"),
    ],
)
def test_a_beam_that_cannot_be_searched_is_refused(change: dict[str, Any], named: str) -> None:
    with pytest.raises(UsageError, match=named):
        whisper().submit(replace(TranscriptionRequest(sound(0.5, 1), "be"), **change), None)


def test_a_cancelled_beam_frees_its_slots() -> None:
    task = whisper()
    request = TranscriptionRequest(sound(0.5, 1), "be", max_tokens=12, beam=BeamSearch(task.slots))
    for _ in task.generate([request], [None], cancelled=lambda row: True):
        pass
    assert texts_of(task, [request], [None]) == texts_of(whisper(), [request], [None])


def test_a_beam_gives_the_log_probabilities_of_its_answer() -> None:
    task = whisper()
    request = TranscriptionRequest(sound(0.5, 1), "be", max_tokens=12, logprobs=0)

    def costs(beam: BeamSearch | None) -> list[tuple[int, float]]:
        chunks = [one for some in task.generate([replace(request, beam=beam)], [None]) for one in some]
        return [(token.token, token.logprob) for one in chunks for token in one.logprobs]

    greedy, narrow = costs(None), costs(BeamSearch(1))
    assert [token for token, _ in narrow] == [token for token, _ in greedy]
    assert [cost for _, cost in narrow] == pytest.approx([cost for _, cost in greedy], abs=1e-4)
    assert sum(cost for _, cost in costs(BeamSearch(4))) >= sum(cost for _, cost in greedy) - 1e-4
