"""The plan: every example once an epoch, whatever the number of workers; a step number is the whole cursor."""

from collections import Counter
from itertools import islice

from kauli.training.tasks.sampler import Plan, micro_batches, share_out

LENGTHS = [5, 90, 33, 12, 60, 7, 41, 18, 77, 25, 9, 50]


def test_an_epoch_takes_every_example_exactly_once_within_the_budget() -> None:
    plan = Plan(LENGTHS, 100, seed=3)
    for epoch in range(3):
        steps = plan.epoch(epoch)
        assert sorted(index for step in steps for index in step) == list(range(len(LENGTHS)))
        assert all(sum(LENGTHS[index] for index in step) <= 100 for step in steps)
    assert plan.epoch(0) != plan.epoch(1)
    assert Plan(LENGTHS, 100, seed=4).epoch(0) != plan.epoch(0)


def test_a_run_taken_up_sees_what_it_would_have_seen() -> None:
    whole = list(islice(Plan(LENGTHS, 100, 0, [30, 20, 10], 0.2).steps(), 40))
    for start in (1, 7, 23):
        assert list(islice(Plan(LENGTHS, 100, 0, [30, 20, 10], 0.2).steps(start), 40 - start)) == whole[start:]


def test_workers_share_a_step_without_loss_or_double() -> None:
    step = Plan(LENGTHS, 300, 0).epoch(0)[0]
    for workers in (1, 2, 3, 20):
        shares = share_out(step, LENGTHS, workers)
        assert len(shares) == workers
        assert sorted(index for share in shares for index in share) == sorted(step)
    loads = [sum(LENGTHS[index] for index in share) for share in share_out(step, LENGTHS, 2)]
    assert max(loads) - min(loads) <= max(LENGTHS)


def test_another_number_of_workers_in_mid_epoch_still_takes_each_example_once() -> None:
    plan = Plan(LENGTHS, 100, 0)
    steps = plan.epoch(0)
    taken: Counter[int] = Counter()
    for number, step in enumerate(steps):
        workers = 2 if number < 2 else 3  # a worker joins after two steps
        for share in share_out(step, LENGTHS, workers):
            taken.update(index for pack in micro_batches(share, LENGTHS, 64) for index in pack)
    assert taken == Counter(range(len(LENGTHS)))


def test_micro_batches_keep_their_size() -> None:
    packs = micro_batches([1, 8, 4, 11, 6], LENGTHS, 100)
    assert [index for pack in packs for index in pack] == [1, 8, 4, 11, 6]
    assert all(sum(LENGTHS[index] for index in pack) <= 100 or len(pack) == 1 for pack in packs)


def test_replay_keeps_its_share_of_tokens() -> None:
    lengths, replayed = [40] * 100, [30, 50, 20, 60]
    plan = Plan(lengths, 200, 0, replayed, 0.25)
    tokens = Counter[str]()
    for step in islice(plan.steps(), 200):
        for index in step:
            kind = "own" if index < 100 else "replay"
            tokens[kind] += lengths[index] if kind == "own" else replayed[index - 100]
    assert abs(tokens["replay"] / 200 - 50) < 1  # a quarter of 200 tokens a step
