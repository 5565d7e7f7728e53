"""Tokens a second with many adapters in one batch, beside transformers and PEFT, and over HTTP (`make bench`)."""

import argparse
import os
import statistics
import tempfile
import threading
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import httpx
import torch
from openai import DefaultHttpxClient, OpenAI
from peft import LoraConfig, PeftModel, get_peft_model
from results_file import update_section
from transformers import AutoModelForCausalLM

from kauli.models.adapters.peft_import import from_peft
from kauli.models.adapters.registry import Registry
from kauli.models.bases.find import find_base
from kauli.models.requests import TextRequest
from kauli.models.text.task import TextTask
from kauli.serving.settings import ServeArgs, choose_proxy
from kauli.training.card import machine
from kauli.training.data.dataset import load_data

BASE = "smollm2-135m-q4"
REQUESTS, TOKENS = 16, 32
ADAPTERS = (1, 2, 4, 8, 16, 64)
OVER_HTTP = 8


def main() -> None:
    """Measure in rounds, each system once a round, and print (or write) the table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--results", type=Path, help="a Markdown file whose section is replaced")
    options = parser.parse_args()
    torch.set_num_threads(min(2, os.cpu_count() or 1))
    with tempfile.TemporaryDirectory(prefix="kauli-bench-") as scratch:
        lines = measure(Path(scratch), options.rounds)
    text = "\n".join(lines)
    print(text)
    if options.results:
        update_section(options.results, "serving", text)


def measure(scratch: Path, rounds: int) -> list[str]:
    """The lines of the report."""
    base = find_base(BASE)
    folders = make_adapters(scratch / "adapters", max(ADAPTERS))
    rows = [row for row in load_data("starter", ["sw"]).rows(split="test", languages=["sw"]) if row["prompt"]]
    prompts = [str(row["prompt"]) for row in sorted(rows, key=lambda row: str(row["id"]))[:REQUESTS]]
    task = TextTask.load(base)
    loads = []
    for index, folder in enumerate(folders):
        began = time.perf_counter()
        task.add_adapter(f"a{index}", folder)
        loads.append(time.perf_counter() - began)
    requests = [TextRequest.of_prompt(prompt, max_tokens=TOKENS, ignore_eos=True) for prompt in prompts]
    plain = AutoModelForCausalLM.from_pretrained(base.folder, dtype=torch.float32)
    inputs = padded([task.prompt_tokens(request) for request in requests], task.end)
    mixed = PeftModel.from_pretrained(
        AutoModelForCausalLM.from_pretrained(base.folder, dtype=torch.float32), str(folders[0]), adapter_name="a0"
    )
    for index in range(1, OVER_HTTP):
        mixed.load_adapter(str(folders[index]), adapter_name=f"a{index}")
    names = [f"a{index % OVER_HTTP}" for index in range(REQUESTS)]
    systems: dict[str, Callable[[], None]] = {
        "transformers generate, no adapter": lambda: generate(plain, inputs),
        f"PEFT generate, {OVER_HTTP} adapters in one batch": lambda: generate(mixed, inputs, adapter_names=names),
        "kauli, no adapter": lambda: run(task, requests, [None] * REQUESTS),
    }
    for count in ADAPTERS:
        # With more adapters than requests each round takes others: what is changed in the stack is part of the time.
        systems[f"kauli, {count} adapters"] = lambda count=count, turn=[0]: run(task, requests, chosen(count, turn))
    rates = timed(systems, rounds)
    own, peft = rates["kauli, no adapter"], rates[f"PEFT generate, {OVER_HTTP} adapters in one batch"]
    reference = rates["transformers generate, no adapter"]
    lines = [
        f"{BASE}, fp32, LoRA r=8 on all linear layers with random weights, {REQUESTS} requests of {TOKENS} greedy "
        f"tokens at once, prompts from the Swahili test split; {machine()}, {torch.get_num_threads()} threads, load "
        f"{os.getloadavg()[0]:.1f}; {rounds} rounds, each system once a round. Command: `make bench`.",
        "",
        "| system | tokens/s: median (least to most) | of transformers | of PEFT, mixed | of kauli, no adapter |",
        "| --- | --- | --- | --- | --- |",
    ]
    for name, found in rates.items():
        shown = " | ".join(ratio(found, other) for other in (reference, peft, own))
        lines.append(f"| {name} | {spread(found)} | {shown} |")
    lines += ["", f"An adapter is loaded in {statistics.median(loads):.3f} s (most {max(loads):.3f} s).", ""]
    return lines + over_http(scratch / "store", folders[:OVER_HTTP], task, prompts, rounds)


def make_adapters(out: Path, count: int) -> list[Path]:
    """Adapters of random weights that are large enough to change answers."""
    base = find_base(BASE)
    config = LoraConfig(r=8, lora_alpha=16, target_modules="all-linear", init_lora_weights=False, task_type="CAUSAL_LM")
    model: Any = get_peft_model(AutoModelForCausalLM.from_pretrained(base.folder), config)
    folders = []
    for index in range(count):
        torch.manual_seed(index)
        with torch.no_grad():
            for name, parameter in model.named_parameters():
                if "lora_" in name:
                    parameter.normal_(std=0.02)
        model.save_pretrained(str(out / str(index)), save_embedding_layers=False)
        folders.append(out / str(index))
    return folders


def padded(prompts: Sequence[list[int]], fill: int) -> dict[str, Any]:
    """Prompts padded on the left to the longest."""
    longest = max(map(len, prompts))
    ids = [[fill] * (longest - len(prompt)) + prompt for prompt in prompts]
    mask = [[0] * (longest - len(prompt)) + [1] * len(prompt) for prompt in prompts]
    return {"input_ids": torch.tensor(ids), "attention_mask": torch.tensor(mask), "pad_token_id": fill}


@torch.inference_mode()
def generate(model: Any, inputs: dict[str, Any], **options: Any) -> None:
    """Transformers' own generation."""
    model.generate(**inputs, do_sample=False, min_new_tokens=TOKENS, max_new_tokens=TOKENS, **options)


def chosen(count: int, turn: list[int]) -> list[str]:
    """The adapter of each request, `count` in turn, going on from round to round."""
    keys = [f"a{(turn[0] + index) % count}" for index in range(REQUESTS)]
    turn[0] += REQUESTS
    return keys


def run(task: TextTask, requests: Sequence[TextRequest], keys: Sequence[str | None]) -> None:
    """Our engine in this process."""
    tokens = sum(chunk.tokens for chunks in task.generate(requests, keys) for chunk in chunks)
    assert tokens == REQUESTS * TOKENS


def timed(systems: dict[str, Callable[[], Any]], rounds: int) -> dict[str, list[float]]:
    """System -> tokens a second in each round; a round before them warms up."""
    rates: dict[str, list[float]] = {name: [] for name in systems}
    for turn in range(rounds + 1):
        for name, system in systems.items():
            began = time.perf_counter()
            system()
            if turn:
                rates[name].append(REQUESTS * TOKENS / (time.perf_counter() - began))
    return rates


def over_http(store: Path, folders: Sequence[Path], task: TextTask, prompts: Sequence[str], rounds: int) -> list[str]:
    """The same requests as streams through `kauli serve`, in turn with the engine in this process."""
    args = ServeArgs(storage=str(store), bases=(BASE,), port=8765)
    choose_proxy(args)
    from kauli.serving.app import start

    registry, base = Registry(str(store)), find_base(BASE)
    for index, folder in enumerate(folders):
        name = f"text-bench-{index}"
        card = from_peft(folder, store / "ours" / name, name=name, language="sw", base=base, accept_base=True)
        registry.publish(store / "ours" / name, card)
    began = time.perf_counter()
    service = start(args)
    try:
        http = DefaultHttpxClient(trust_env=False)
        client = OpenAI(base_url=f"{service.url}/v1", api_key="-", max_retries=0, http_client=http)
        models = [f"text-bench-{index % len(folders)}" for index in range(REQUESTS)]
        stream(client, models[0], prompts[0], [])
        ready = time.perf_counter() - began
        requests = [TextRequest.of_prompt(prompt, max_tokens=TOKENS, ignore_eos=True) for prompt in prompts]
        keys = [f"a{index % len(folders)}" for index in range(REQUESTS)]
        firsts: list[float] = []
        rates = timed(
            {
                "in process": lambda: run(task, requests, keys),
                "over HTTP": lambda: streams(client, models, prompts, firsts),
            },
            rounds,
        )
        url = f"{service.url}/v1/adapters/{models[0]}@1"
        others = [pair for pair in zip(models, prompts, strict=True) if pair[0] != models[0]]
        traffic = threading.Thread(target=streams, args=(client, *zip(*others, strict=True), []))
        traffic.start()
        time.sleep(1)
        httpx.delete(url, trust_env=False, timeout=60)
        began = time.perf_counter()
        added = httpx.post(f"{service.url}/v1/adapters", json={"adapter": models[0]}, trust_env=False, timeout=60)
        added.raise_for_status()
        loading = time.perf_counter() - began
        traffic.join()
    finally:
        service.stop()
    firsts.sort()
    inside, outside = rates["in process"], rates["over HTTP"]
    return [
        f"Over HTTP ({REQUESTS} streams, {len(folders)} adapters, client on the same cores): "
        f"{spread(outside)} tokens/s, {ratio(outside, inside)} of the engine in process measured in turn "
        f"({spread(inside)}). First text after {statistics.median(firsts):.2f} s (median), "
        f"{firsts[int(len(firsts) * 0.95)]:.2f} s (95 %, with the cold first round). From the start of the "
        f"service to its first answer: {ready:.0f} s. "
        f"An adapter loaded over HTTP with traffic flowing: {loading:.2f} s."
    ]


def streams(client: OpenAI, models: Sequence[str], prompts: Sequence[str], firsts: list[float]) -> None:
    """All requests at once, each as a stream; `firsts` collects the seconds to the first text."""
    threads = [
        threading.Thread(target=stream, args=(client, model, prompt, firsts))
        for model, prompt in zip(models, prompts, strict=True)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()


def stream(client: OpenAI, model: str, prompt: str, firsts: list[float]) -> None:
    """One request."""
    began = time.perf_counter()
    chunks = client.chat.completions.create(
        model=model, messages=[{"role": "user", "content": prompt}], max_tokens=TOKENS, stream=True,
        extra_body={"ignore_eos": True},
    )  # fmt: skip
    first = None
    for chunk in chunks:
        if first is None and chunk.choices and chunk.choices[0].delta.content:
            first = time.perf_counter() - began
    firsts.append(first or time.perf_counter() - began)


def spread(values: Sequence[float]) -> str:
    """Median (least to most)."""
    return f"{statistics.median(values):.1f} ({min(values):.1f} to {max(values):.1f})"


def ratio(values: Sequence[float], others: Sequence[float]) -> str:
    """The median of the rounds' ratios: what slows the machine down slows both of a round."""
    if values is others:
        return ""
    return f"{statistics.median(a / b for a, b in zip(values, others, strict=True)):.2f}x"


if __name__ == "__main__":
    main()
