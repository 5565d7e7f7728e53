"""What pictures cost: a training step with cached features, a request over HTTP with and without the encoder's cache;
and what few examples are worth: macro-F1 of each head at 1 to 16 shots.
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
from openai import DefaultHttpxClient, OpenAI
from PIL import Image

from kauli.models.adapters.kinds.projection import Projection
from kauli.models.bases.find import find_base
from kauli.models.media.decode import decode_image
from kauli.models.tasks import load_task
from kauli.models.vision.align import AlignTask
from kauli.serving.settings import ServeArgs, choose_proxy
from kauli.training.data.dataset import load_data
from kauli.training.evaluation.few_shot import few_shot_scores
from kauli.training.evaluation.report import update_section
from kauli.training.features.pictures import load_tower, part_settings, picture_rows, with_media
from kauli.training.loop.loop import Loop
from kauli.training.loop.session import LocalSession
from kauli.training.recipe_file import load_recipe
from kauli.training.tasks.head import class_names, labelled
from kauli.training.tasks.text import Examples, TextLearner
from kauli.training.train import machine, train

BASE, ALIGNED, TOPICS = "smollm2-135m-q4", "kauli-clip", "starter-topics"


def seconds(run: Callable[[], Any]) -> float:
    began = time.perf_counter()
    run()
    return time.perf_counter() - began


def steps(rounds: int) -> list[str]:
    """One step of each task, its pictures decoded and encoded in it or read from the cache."""
    recipe = load_recipe("describe-multi", ["train.batch_tokens=512", "train.steps=100000"])
    assert recipe.fusion is not None
    tower = load_tower(recipe.fusion)
    data = load_data("starter", recipe.language)
    rows = with_media(picture_rows(data, "train", recipe.language, recipe.prompt)[:200], tower, recipe.fusion.grid)
    task = load_task("describe", find_base(recipe.base), device="cpu", dtype=torch.float32)
    learner = TextLearner(
        task, recipe, Examples(rows, rows[:4], (), "bench"), {"image": part_settings(recipe.fusion, tower)}
    )
    with tempfile.TemporaryDirectory() as folder:
        loop = Loop(learner, recipe, "bench", LocalSession(Path(folder)))
        plan = list(loop.plan.epoch(0))
        loop.step(plan[0])
        times: dict[str, list[float]] = {"cached": [], "uncached": []}
        for number in range(1, rounds + 1):
            step = plan[number % len(plan)]
            images = [rows[index]["image"] for index in step]
            times["cached"].append(seconds(lambda step=step: loop.step(step)))
            encode = seconds(lambda images=images: tower.features([decode_image(one) for one in images], 2))
            times["uncached"].append(times["cached"][-1] + encode)
    lines = [line("`describe` (SmolLM2, some 25 pictures a step)", times)]
    aligned = AlignTask.load(find_base("kauli-towers", task="align"))
    aligned.model = Projection().attach(aligned.model, "")
    pairs = picture_rows(data, "train", ["en"], None)[:64]
    documents = aligned.encode(pairs)
    times = {"cached": [], "uncached": []}
    for _ in range(rounds):
        times["cached"].append(seconds(lambda: aligned.loss(aligned.collate(documents)).backward()))
        times["uncached"].append(seconds(lambda: aligned.loss(aligned.collate(aligned.encode(pairs))).backward()))
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
    classes = class_names(dataset, ["sw"])
    found = {split: labelled(task, dataset, split, ["sw"], classes) for split in ("train", "test")}
    features = {split: one.features for split, one in found.items()}
    labels = {split: one.labels for split, one in found.items()}
    scores = few_shot_scores(features, labels, task.embed_texts(list(classes)), seeds=seeds, scale=task.logit_scale)
    shots = sorted({one.shots for one in scores if one.shots})
    lines = [
        f"{len(classes)} topics with Swahili names, {len(labels['test'])} test pictures, {seeds} draws of the shots; "
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
    """A picture described and embedded through `kauli serve`, the first time and again."""
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
                    picture = painted(number, what)
                    for kind in ("miss", "hit"):
                        took = seconds(lambda call=call, picture=picture: call(client, picture))
                        if number:  # the first round warms up
                            times[f"{what}, {kind}"].append(took)
            httpx.get(f"{service.url}/health", trust_env=False, timeout=60).raise_for_status()
        finally:
            service.stop()
    cells = [
        f"{name} {1000 * statistics.median(values):.0f} ms ({1000 * min(values):.0f} to {1000 * max(values):.0f})"
        for name, values in times.items()
    ]
    return [f"One request at a time over HTTP, {rounds} pictures, 8 tokens a description: {'; '.join(cells)}."]


def painted(number: int, salt: str) -> str:
    """A data URI of a picture that was not sent before."""
    out = io.BytesIO()
    Image.new("RGB", (224, 224), (7 * number % 255, len(salt) * 20, 40 + number)).save(out, "PNG")
    return f"data:image/png;base64,{base64.b64encode(out.getvalue()).decode()}"


def describe(client: OpenAI, picture: str) -> None:
    content: Any = [{"type": "image_url", "image_url": {"url": picture}}, {"type": "text", "text": "Describe."}]
    client.chat.completions.create(
        model="describe",
        messages=[{"role": "user", "content": content}],
        max_tokens=8,
        extra_body={"language": "sw", "ignore_eos": True},
    )


def embed(client: OpenAI, picture: str) -> None:
    client.embeddings.create(model=ALIGNED, input=picture)


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
