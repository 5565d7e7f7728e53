"""The text task through its surface: generation, rows alone or in company, streams, adapters by row."""

import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import PeftModel
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM

from kauli.models.adapters.card import BaseReference, Card, Decoding
from kauli.models.adapters.folder import write_card
from kauli.models.adapters.kinds.lora import Lora
from kauli.models.bases.find import find_base
from kauli.models.engine.detokenize import TextStream
from kauli.models.errors import KauliError, UsageError
from kauli.models.requests import Message, TextRequest
from kauli.models.text.prompts import Prompts
from kauli.models.text.task import TextTask
from kauli.models.text.training import TrainableText


@pytest.fixture(scope="module")
def task() -> TextTask:
    return TextTask.load(find_base("debug"), device="cpu")


def adapter_folder(folder: Path, seed: int, base: str = "debug", scale: float = 0.3) -> Path:
    """An adapter that changes the answers: random weights in A and B."""
    task = TrainableText.load(find_base(base), device="cpu")
    torch.manual_seed(seed)
    task.attach(Lora(rank=4, targets="all-linear"))
    for name, parameter in task.model.named_parameters():
        if "lora_B" in name:
            torch.nn.init.normal_(parameter, std=scale)
    task.save(folder)
    return folder


def texts(task: TextTask, requests: Sequence[TextRequest], adapters: Sequence[str | None]) -> list[str]:
    answers = [""] * len(requests)
    for chunks in task.generate(requests, adapters):
        for chunk in chunks:
            assert "\ufffd" not in chunk.text
            answers[chunk.row] += chunk.text
    return answers


def asked(*prompts: str, **options: Any) -> list[TextRequest]:
    return [TextRequest.of_prompt(prompt, **{"max_tokens": 24, **options}) for prompt in prompts]


PROMPTS = ("hello", "a much longer prompt than the others are, by far", "ሰላም", "x")


@pytest.mark.parametrize("base", ["debug", "debug-gemma", "debug-qwen"])
def test_greedy_answers_are_those_of_transformers(base: str) -> None:
    task = TextTask.load(find_base(base), device="cpu")
    reference = AutoModelForCausalLM.from_pretrained(task.base.folder, dtype=torch.float32)
    requests = asked(*PROMPTS, ignore_eos=True)
    ours = texts(task, requests, [None] * 4)
    for request, answer in zip(requests, ours, strict=True):
        prompt = torch.tensor([task.prompt_tokens(request)])
        output = reference.generate(
            prompt, attention_mask=torch.ones_like(prompt), max_new_tokens=24, do_sample=False,
            suppress_tokens=sorted(task.ends), eos_token_id=None, pad_token_id=task.end,
        )  # fmt: skip
        tokens = output[0, prompt.shape[1] :].tolist()
        expected = b"".join(task.token_bytes(token) for token in tokens).decode("utf-8", errors="ignore")
        assert answer == expected


def test_a_row_gets_in_company_what_it_gets_alone(task: TextTask, tmp_path: Path) -> None:
    for seed in (1, 2):
        task.add_adapter(f"mixed-{seed}", adapter_folder(tmp_path / str(seed), seed))
    adapters = ["mixed-1", None, "mixed-2", "mixed-1"]
    requests = asked(*PROMPTS)
    together = texts(task, requests, adapters)
    alone = [texts(task, [request], [key])[0] for request, key in zip(requests, adapters, strict=True)]
    assert together == alone
    assert len({texts(task, requests[:1], [key])[0] for key in ("mixed-1", "mixed-2", None)}) == 3
    # bits per byte switch adapters as well
    row = {"prompt": "hello", "text": "dunia"}
    assert len({task.bits([row], key)[0][0] for key in ("mixed-1", "mixed-2", None)}) == 3
    for seed in (1, 2):
        task.remove_adapter(f"mixed-{seed}")
    assert (
        texts(task, requests[:1], [None])[0]
        == texts(TextTask.load(find_base("debug"), device="cpu"), requests[:1], [None])[0]
    )


def test_our_adapter_answers_as_in_plain_peft(task: TextTask, tmp_path: Path) -> None:
    folder = adapter_folder(tmp_path / "a", 3)
    task.add_adapter("plain@1", folder)
    plain = PeftModel.from_pretrained(
        AutoModelForCausalLM.from_pretrained(task.base.folder, dtype=torch.float32), folder
    )
    prompt = task.prompt_tokens(asked("hello")[0])
    answer = task.tokenizer("dunia", add_special_tokens=False).input_ids
    with torch.no_grad():
        logits = plain(input_ids=torch.tensor([prompt + answer])).logits[0, len(prompt) - 1 : -1]
    nats = torch.nn.functional.cross_entropy(logits, torch.tensor(answer), reduction="sum")
    bits, count = task.bits([{"prompt": "hello", "text": "dunia"}], "plain@1")[0]
    assert bits == pytest.approx(float(nats) / math.log(2), rel=1e-5)
    assert count == 5
    task.remove_adapter("plain@1")


@pytest.mark.parametrize("damage", ["missing", "surplus", "shape"])
def test_tensors_that_do_not_fit_are_refused(task: TextTask, tmp_path: Path, damage: str) -> None:
    file = adapter_folder(tmp_path, 1) / "adapter_model.safetensors"
    tensors = load_file(file)
    name = sorted(tensors)[0]
    if damage == "missing":
        del tensors[name]
    elif damage == "surplus":
        tensors[name.replace("layers.0", "layers.7")] = tensors[name].clone()
    else:
        tensors[name] = tensors[name][:, :-1].contiguous()
    save_file(tensors, file)
    before = texts(task, asked("hello"), [None])
    with pytest.raises(KauliError, match="does not fit"):
        task.add_adapter("wrong", file.parent)
    assert "wrong" not in task.adapters()
    assert texts(task, asked("hello"), [None]) == before


def test_bits_count_the_text_and_not_the_end(task: TextTask) -> None:
    composed, decomposed = "caf\u00e9", "cafe\u0301"
    one, other = task.bits([{"prompt": None, "text": composed}, {"prompt": None, "text": decomposed}], None)
    assert one == other
    assert one[1] == 5  # bytes after NFC: the e with its accent has two


def test_bits_of_a_text_longer_than_the_context_cover_what_fits(task: TextTask) -> None:
    (bits, count), = task.bits([{"prompt": None, "text": "a" * (task.context + 50)}], None)  # fmt: skip
    assert 0 < count < task.context
    assert bits > 0


def test_a_long_prompt_gives_way_to_the_answer(task: TextTask) -> None:
    (document,) = task.encode([{"prompt": "p" * 500, "text": "t" * 20}], max_length=64)
    assert len(document.tokens) == 32 + 21
    assert document.ended


def test_tokens_that_only_the_tokenizer_has_are_refused(task: TextTask) -> None:
    ids = task.prompt_tokens(TextRequest(prompt="Habari"))
    prompts = Prompts(task.tokenizer, None, task.end, max(ids))
    for prompt in ("Habari", tuple(ids)):
        with pytest.raises(UsageError, match=f"token {max(ids)} is unknown: the tokens of this model are 0 to"):
            prompts.tokens(TextRequest(prompt=prompt))


def test_max_tokens_min_tokens_stop_and_context(task: TextTask) -> None:
    def finish(**options: Any) -> tuple[int, str | None]:
        count, reason = 0, None
        for chunks in task.generate(asked("hello", **options), [None]):
            for chunk in chunks:
                count += chunk.tokens
                reason = chunk.finish or reason
        return count, reason

    assert finish(max_tokens=5, ignore_eos=True) == (5, "length")
    whole = texts(task, asked("hello", max_tokens=40, ignore_eos=True), [None])[0]
    stop = whole[6:9]
    cut = texts(task, asked("hello", max_tokens=40, ignore_eos=True, stop=(stop,)), [None])[0]
    assert cut == whole[: whole.index(stop)]
    count, reason = finish(max_tokens=100_000, ignore_eos=True)
    assert reason == "length"
    assert count == task.context - len(task.prompt_tokens(asked("hello")[0]))
    with pytest.raises(UsageError, match="context"):
        list(task.generate(asked("y" * (task.context + 1)), [None]))


def test_a_cancelled_row_leaves_and_the_others_go_on(task: TextTask) -> None:
    requests = asked(*PROMPTS[:2], ignore_eos=True)
    expected = texts(task, requests, [None, None])
    answers = ["", ""]
    finish: list[str | None] = [None, None]
    for chunks in task.generate(requests, [None, None], cancelled=lambda row: row == 0 and len(answers[0]) >= 3):
        for chunk in chunks:
            answers[chunk.row] += chunk.text
            finish[chunk.row] = chunk.finish or finish[chunk.row]
    assert finish == ["cancelled", "length"]
    assert answers[1] == expected[1]
    assert expected[0].startswith(answers[0])
    assert len(answers[0]) < len(expected[0])


def test_sampling_with_a_seed_repeats_and_differs_without_company(task: TextTask) -> None:
    def sample(seed: int, company: int) -> str:
        return texts(task, asked("hello", *["other"] * company, temperature=1.0, seed=seed), [None] * (company + 1))[0]

    assert sample(1, 0) == sample(1, 2)
    assert sample(1, 0) != sample(2, 0)


def test_a_stream_gives_whole_characters_only(task: TextTask) -> None:
    stream = TextStream(task.token_bytes)
    tokens = task.tokenizer("ሰላም, é!", add_special_tokens=False).input_ids
    pieces = [stream.push(token) for token in tokens]
    assert "".join(pieces) + stream.close() == "ሰላም, é!"
    assert next(piece for piece in pieces if piece) == "ሰ"  # three bytes, one letter, one chunk
    cut = TextStream(task.token_bytes)
    assert "".join(cut.push(token) for token in tokens[:4]) + cut.close() == "ሰ"  # the unfinished letter is dropped


def test_a_stop_string_across_tokens_is_never_shown(task: TextTask) -> None:
    stream = TextStream(task.token_bytes, stop=("END", "xyz"))
    shown = ""
    for token in task.tokenizer("one ENE then xy and END of it", add_special_tokens=False).input_ids:
        shown += stream.push(token)
        if stream.stopped:
            break
    assert shown + stream.close() == "one ENE then xy and "
    assert stream.stopped


def test_system_messages_are_rendered(task: TextTask) -> None:
    request = TextRequest(messages=(Message("system", "be brief"), Message("user", "hi")))
    assert "be brief" in task.tokenizer.decode(task.prompt_tokens(request))


def test_an_adapter_s_own_guards_hold_where_a_request_does_not_say(task: TextTask, tmp_path: Path) -> None:
    folder = adapter_folder(tmp_path / "guarded", 5)
    decoding = Decoding(no_repeat=1, max_tokens=40, tokens_per_prompt_token=0.5)
    base = BaseReference.of(task.base)
    card = Card(
        name="guarded", task="text", language=["sw"], base=base, method={}, licence="CC0-1.0", decoding=decoding
    )
    write_card(folder, card)
    task.add_adapter("guarded", folder)

    def answered(adapter: str | None = "guarded", **options: Any) -> list[int]:
        request = TextRequest.of_prompt("x" * 50, ignore_eos=True, logprobs=0, **options)
        chunks = [chunk for step in task.generate([request], [adapter]) for chunk in step]
        return [one.token for chunk in chunks for one in chunk.logprobs]

    size = len(task.prompt_tokens(TextRequest.of_prompt("x" * 50)))
    own = answered()
    assert len(own) == min(40, math.ceil(size / 2))
    assert len(set(own)) == len(own)  # no token twice
    free = answered(no_repeat=0, max_tokens=60)
    assert len(free) == 60
    assert len(set(free)) < 60
    assert own[0] == free[0]
    assert len(answered(min_tokens=41)) == 41  # what a request wants goes first
    assert len(answered(None)) == 128  # the base has none
    raw = TextRequest(prompt="x", max_tokens=None)
    assert task.guarded(raw, "guarded").max_tokens == 128  # a text to continue has no length of its own
