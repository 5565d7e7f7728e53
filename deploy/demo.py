"""`kauli demo`: the whole path on this machine, from a package with a base to an adapter that answers over HTTP."""

import time
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

from kauli.models.progress import bar, note

RECIPE = "text-sw"
LANGUAGE = "sw"
QUESTIONS_PER_SOURCE = 2
ANSWER_TOKENS = 32
GENERATED = 12  # test examples answered for the metrics; bits per byte cover all of them in any case


@dataclass(frozen=True)
class Answer:
    """One held-out row and what base and adapter said to its prompt."""

    source: str
    prompt: str
    reference: str
    base: str
    adapter: str


def run_demo(storage: str, *, minutes: float, port: int, once: bool) -> None:
    """Fetch, build data, train, serve and ask; prints the measures and answers, then stays up unless `once`.

    Every step says what it does and how long it took. Raises KauliError and UsageError.
    """
    from kauli.serving.app import check_port, start
    from kauli.serving.settings import ServeArgs

    args = ServeArgs(storage=storage, port=port, bases=("smollm2-135m-q4",))
    check_port(args.host, args.port)  # before minutes of training, not after
    steps = _Steps(5)

    with steps.step("Fetching the base smollm2-135m-q4 (once, about 100 MB)"):
        from kauli.models.bases import find_base

        base = find_base(args.bases[0])

    with steps.step("Building Swahili data from open packages (once)"):
        from kauli.training.data import load_data

        data = load_data("starter", [LANGUAGE])
        rows = data.rows(split="test", languages=[LANGUAGE])

    with steps.step(f"Training a LoRA adapter by the recipe {RECIPE} for {minutes:g} minutes, then measuring it"):
        from kauli.training.recipe import load_recipe
        from kauli.training.train import train

        trained = train(load_recipe(RECIPE, [f"train.minutes={minutes}"]), storage, generated=GENERATED)

    with steps.step("Starting the service (Ray Serve)"):
        service = start(args)
    try:
        with steps.step("Asking the base and the adapter the same held-out questions"):
            answers = ask_both(f"{service.url}/v1", base.name, trained.adapter, choose(rows))
        print(render(trained.adapter, base.name, card_metrics(storage, trained.adapter), answers), flush=True)
        note(f"\nDone in {steps.total():.0f} s. Adapter: {trained.path}")
        if not once:
            from kauli.deploy.commands import wait_for_stop

            note(
                f"The service stays up at {service.url} (Ctrl-C ends it). Try:\n"
                f"  curl {service.url}/v1/chat/completions -H 'Content-Type: application/json' \\\n"
                f'    -d \'{{"model": "text", "language": "sw", "messages": [{{"role": "user", "content": '
                f'"Translate into Swahili: red car"}}]}}\''
            )
            wait_for_stop()
    finally:
        service.stop()


def choose(rows: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """A few short held-out rows of each source, the same at every call."""
    chosen: list[dict[str, Any]] = []
    for source in sorted({row["source"] for row in rows}):
        fitting = [row for row in rows if row["source"] == source and row["prompt"] and 4 <= len(row["text"]) <= 160]
        chosen += sorted(fitting, key=lambda row: str(row["id"]))[:QUESTIONS_PER_SOURCE]
    return chosen


def ask_both(url: str, base: str, adapter: str, rows: Sequence[dict[str, Any]]) -> list[Answer]:
    """The answers of base and adapter to each row's prompt, greedy, all asked at once through the `openai` client."""
    from openai import DefaultHttpxClient, OpenAI

    # trust_env=False: a proxy of the environment has nothing to do with this machine's own service
    http = DefaultHttpxClient(trust_env=False)
    client = OpenAI(base_url=url, api_key="none needed on loopback", http_client=http, max_retries=0)

    def answer(question: tuple[str, str]) -> str:
        model, prompt = question
        response = client.chat.completions.create(
            model=model, messages=[{"role": "user", "content": prompt}], max_tokens=ANSWER_TOKENS, temperature=0
        )
        advance()
        return response.choices[0].message.content or ""

    questions = [(model, str(row["prompt"])) for model in (base, adapter) for row in rows]
    with bar("Asking", len(questions)) as advance, ThreadPoolExecutor(max_workers=len(questions) or 1) as pool:
        answers = list(pool.map(answer, questions))

    return [
        Answer(row["source"], row["prompt"], row["text"], plain, adapted)
        for row, plain, adapted in zip(rows, answers[: len(rows)], answers[len(rows) :], strict=True)
    ]


def card_metrics(storage: str, adapter: str) -> list[dict[str, Any]]:
    """The measures on the untouched test split, base beside adapter, as the adapter's card has them."""
    from kauli.models.registry import Registry

    card = Registry(storage).card(adapter)
    rows = []
    for metric, value in card.metrics.items():
        low, high = (card.intervals.get(metric) or [None, None])[:2]
        interval = f"{low:.3f} .. {high:.3f}" if low is not None and high is not None else None
        row = {"metric": metric, "base": (card.base_metrics or {}).get(metric), "adapter": value}
        rows.append({**row, "95 % interval": interval})
    return rows


def render(adapter: str, base: str, metrics: list[dict[str, Any]], answers: Sequence[Answer]) -> str:
    """The demo's result as text."""
    from kauli.deploy.commands import table

    lines = [f"{adapter} beside its base {base}, on held-out test rows", ""]
    lines += [table(metrics, ["metric", "base", "adapter", "95 % interval"]), ""]
    for answer in answers:
        shown = {"prompt": answer.prompt, "reference": answer.reference, "base": answer.base, "adapter": answer.adapter}
        lines += [f"[{answer.source}]"]
        lines += [f"  {name:<10}{_line(text)}" for name, text in shown.items()]
    return "\n".join(lines)


def _line(text: str, width: int = 150) -> str:
    text = " ".join(text.split())
    return text if len(text) <= width else text[: width - 1] + "\u2026"


class _Steps:
    """Numbers the steps and says how long each took."""

    def __init__(self, count: int) -> None:
        self._count = count
        self._done = 0
        self._began = time.monotonic()

    @contextmanager
    def step(self, what: str) -> Iterator[None]:
        self._done += 1
        note(f"[{self._done}/{self._count}] {what}")
        began = time.monotonic()
        yield
        note(f"[{self._done}/{self._count}] done in {time.monotonic() - began:.1f} s")

    def total(self) -> float:
        return time.monotonic() - self._began
