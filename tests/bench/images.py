"""The time that images take: a training step with cached features, a request over HTTP with and without the encoder's
cache; and macro-F1 of each head at 1 to 16 shots.
"""

import argparse
import base64
import io
import os
import statistics
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import httpx
import torch
from few_shot import few_shot_scores
from openai import DefaultHttpxClient, OpenAI
from PIL import Image
from results_file import update_section
from torch import Tensor
from torch.nn import functional

from kauli.models.adapters.kinds.projection import Projection
from kauli.models.bases.find import find_base
from kauli.models.media.decode import decode_image
from kauli.models.text.describe import TrainableDescribe
from kauli.models.vision.align import AlignTask
from kauli.models.vision.training import TrainableAlign, pair_losses
from kauli.serving.settings import ServeArgs, choose_proxy
from kauli.training.card import machine
from kauli.training.data.dataset import load_data
from kauli.training.evaluation.head import embedded, label_of
from kauli.training.features.images import image_rows, load_tower, part_settings, with_media
from kauli.training.loop.loop import Loop
from kauli.training.loop.session import LocalSession
from kauli.training.recipe_file import load_recipe
from kauli.training.tasks.base import Examples
from kauli.training.tasks.describe import DescribeLearner, DescribeRecipe
from kauli.training.train import train

BASE, ALIGNED, TOPICS = "smollm2-135m-q4", "kauli-clip", "starter-topics"


def seconds(run: Callable[[], Any]) -> float:
    began = time.perf_counter()
    run()
    return time.perf_counter() - began


def steps(rounds: int) -> list[str]:
    """One step of each task, its images decoded and encoded in it or read from the cache."""
    recipe = load_recipe("describe-multi", ["train.batch_tokens=512", "train.steps=100000"])
    assert isinstance(recipe, DescribeRecipe)
    section = recipe.describe
    tower = load_tower(section.encoder)
    data = load_data("starter", recipe.language)
    rows = with_media(image_rows(data, "train", recipe.language, section.prompt)[:200], tower, section.grid)
    task = TrainableDescribe.load(find_base(recipe.base), device="cpu", dtype=torch.float32)
    learner = DescribeLearner(
        task, recipe, Examples(rows, rows[:4], (), "bench"), {"image": part_settings(section, tower)}
    )
    with tempfile.TemporaryDirectory() as folder:
        loop = Loop(learner, recipe, "bench", LocalSession(Path(folder)))
        plan = list(loop.plan.epoch(0))
        loop.step(plan[0])
        times: dict[str, list[float]] = {"cached": [], "uncached": []}
        for number in range(1, rounds + 1):
            step = plan[number % len(plan)]
            images = [bytes(rows[index]["image"]) for index in step]
            times["cached"].append(seconds(lambda step=step: loop.step(step)))
            encode = seconds(lambda images=images: tower.features([decode_image(one) for one in images], 2))
            times["uncached"].append(times["cached"][-1] + encode)
    lines = [line("`describe` (SmolLM2, some 25 images a step)", times)]
    aligned = TrainableAlign.load(find_base("kauli-towers", task="align"))
    aligned.attach(Projection())
    pairs = image_rows(data, "train", ["en"])[:64]
    names = sorted({row["group"] for row in pairs})
    groups = torch.tensor([names.index(row["group"]) for row in pairs])

    def features() -> tuple[Tensor, Tensor]:
        images = aligned.image_features([decode_image(bytes(row["image"])) for row in pairs])
        return images, aligned.text_features([row["text"] for row in pairs])

    def step_on(images: Tensor, texts: Tensor) -> None:
        own = aligned.model
        ours, theirs = (functional.normalize(one, dim=-1) for one in (own.image(images), own.text(texts)))
        pair_losses(ours, theirs, groups, own.logit_scale, None).mean().backward()

    cached = features()
    times = {"cached": [], "uncached": []}
    for _ in range(rounds):
        times["cached"].append(seconds(lambda: step_on(*cached)))
        times["uncached"].append(seconds(lambda: step_on(*features())))
    return [*lines, line("`align` (projections, 64 pairs; without the optimiser)", times)]


def line(title: str, times: dict[str, list[float]]) -> str:
    ratios = [slow / fast for slow, fast in zip(times["uncached"], times["cached"], strict=True)]
    fast, slow = (1000 * statistics.median(times[name]) for name in ("cached", "uncached"))
    spread = f"{statistics.median(ratios):.1f}x ({min(ratios):.1f} to {max(ratios):.1f})"
    return f"| {title} | {fast:.1f} ms | {slow:.0f} ms | {spread} |"


def heads(seeds: int) -> list[str]:
    """Macro-F1 on the test split of the topics, Swahili names, by head and shots."""
    task = AlignTask.load(find_base(ALIGNED, task="align"))
    dataset = load_data(TOPICS, ["sw"])
    rows = {split: image_rows(dataset, split, ["sw"]) for split in ("train", "test")}
    classes = sorted({label_of(row) for row in rows["train"]})
    known = {split: [row for row in mine if label_of(row) in classes] for split, mine in rows.items()}
    found = {split: embedded(task, mine, classes) for split, mine in known.items()}
    features = {split: one.features for split, one in found.items()}
    labels = {split: one.labels for split, one in found.items()}
    scores = few_shot_scores(features, labels, task.embed_texts(classes), seeds=seeds, scale=task.logit_scale)
    shots = sorted({one.shots for one in scores if one.shots})
    lines = [
        f"{len(classes)} topics with Swahili names, {len(labels['test'])} test images, {seeds} draws of the shots; "
        "mean macro-F1 [95 % over the draws].",
        "",
        f"| head | {' | '.join(f'{count} shots' for count in shots)} |",
        f"| --- |{' ---: |' * len(shots)}",
    ]
    zero = next(one for one in scores if one.kind == "zero_shot")
    lines.append(f"| zero_shot (no shots) | {zero.mean:.3f} |{' |' * (len(shots) - 1)}")
    for kind in dict.fromkeys(one.kind for one in scores if one.shots):
        cells = [f"{one.mean:.3f} [{one.interval[0]:.3f}, {one.interval[1]:.3f}]" for one in scores if one.kind == kind]
        lines.append(f"| {kind} | {' | '.join(cells)} |")
    return lines


def over_http(rounds: int, port: int) -> list[str]:
    """An image described and embedded through `kauli serve`, the first time and again."""
    with tempfile.TemporaryDirectory() as folder:
        recipe = load_recipe("describe-multi", ["train.minutes=null", "train.steps=2", "train.validate_every=2"])
        train(recipe, folder, use_ray=False, generated=1, scored=8)
        args = ServeArgs(storage=folder, bases=(BASE,), port=port)
        choose_proxy(args)
        from kauli.serving.app import start

        service = start(args)
        try:
            client = OpenAI(
                base_url=f"{service.url}/v1",
                api_key="-",
                max_retries=0,
                http_client=DefaultHttpxClient(trust_env=False),
            )
            times: dict[str, list[float]] = {
                "describe, miss": [],
                "describe, hit": [],
                "embed, miss": [],
                "embed, hit": [],
            }
            for number in range(rounds + 1):
                for what, call in (("describe", describe), ("embed", embed)):
                    image = painted(number, what)
                    for kind in ("miss", "hit"):
                        took = seconds(lambda call=call, image=image: call(client, image))
                        if number:  # the first round warms up
                            times[f"{what}, {kind}"].append(took)
            httpx.get(f"{service.url}/health", trust_env=False, timeout=60).raise_for_status()
        finally:
            service.stop()
    cells = [
        f"{name} {1000 * statistics.median(values):.0f} ms ({1000 * min(values):.0f} to {1000 * max(values):.0f})"
        for name, values in times.items()
    ]
    return [f"One request at a time over HTTP, {rounds} images, 8 tokens a description: {'; '.join(cells)}."]


def painted(number: int, salt: str) -> str:
    """A data URI of an image that was not sent before."""
    out = io.BytesIO()
    Image.new("RGB", (224, 224), (7 * number % 255, len(salt) * 20, 40 + number)).save(out, "PNG")
    return f"data:image/png;base64,{base64.b64encode(out.getvalue()).decode()}"


def describe(client: OpenAI, image: str) -> None:
    content: Any = [{"type": "image_url", "image_url": {"url": image}}, {"type": "text", "text": "Describe."}]
    client.chat.completions.create(
        model="describe",
        messages=[{"role": "user", "content": content}],
        max_tokens=8,
        extra_body={"language": "sw", "ignore_eos": True},
    )


def embed(client: OpenAI, image: str) -> None:
    client.embeddings.create(model=ALIGNED, input=image)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--seeds", type=int, default=10)
    parser.add_argument("--port", type=int, default=8767)
    parser.add_argument("--parts", nargs="+", default=["steps", "heads", "http"], choices=["steps", "heads", "http"])
    parser.add_argument("--results", type=Path)
    options = parser.parse_args()
    where = f"{machine()}, load {os.getloadavg()[0]:.1f}. Command: `make bench`."
    sections: dict[str, Sequence[str]] = {}
    if "steps" in options.parts:
        heads_ = [
            "",
            "| a step of | features cached | encoded in the step | cached is faster by |",
            "| --- | ---: | ---: | ---: |",
        ]
        sections["pictures-steps"] = [f"{options.rounds} steps; {where}", *heads_, *steps(options.rounds)]
    if "heads" in options.parts:
        sections["pictures-heads"] = [*heads(options.seeds), "", where]
    if "http" in options.parts:
        sections["pictures-http"] = [*over_http(options.rounds, options.port), where]
    for name, lines in sections.items():
        print("\n".join(lines) + "\n")
        if options.results:
            update_section(options.results, name, "\n".join(lines))


if __name__ == "__main__":
    main()
