"""`kauli demo`: adapters trained on this machine one by one, each asked beside its base in a service that stays up."""

import os
from collections.abc import Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from typing import TYPE_CHECKING, Any

from kauli.deploy.cli.commands import bring_base, wait_for_stop
from kauli.deploy.cli.demo_lessons import HEARING, Client, Lesson, lessons, spoken_samples
from kauli.deploy.cli.demo_output import Story, any_right, quiet, sample_table, sentence
from kauli.models.errors import UsageError
from kauli.models.paths import kauli_home

if TYPE_CHECKING:
    from kauli.serving.app import Service
    from kauli.serving.settings import ServeArgs

_SERVICE_CPUS = 1
"""Logical CPUs beside those of the cores: Ray gives a training all cores, and the service shares them."""


def run_demo(storage: str, *, tasks: Sequence[str], minutes: float, port: int, once: bool) -> None:
    """Train an adapter of each of `tasks` (none: all), serve it and ask it; then further ones, unless `once`.

    A training takes `minutes`. The service stays up until Ctrl-C, unless `once`. Raises KauliError and UsageError.
    """
    first, later = lessons(tasks, later=False), [] if once else lessons(tasks, later=True)
    if not first + later:
        raise UsageError(f"--tasks {','.join(tasks)}: with --once only the first round runs, which has none of these.")
    args = _settings(storage, port, first + later)
    from kauli.serving.settings import choose_proxy

    choose_proxy(args)
    log = kauli_home() / "demo" / "log.txt"
    with quiet(log) as screen:
        story = Story(screen)
        story.say(f"What libraries print, and all notes, are in {log}. Next: Ray, and the service beside it.")
        _run(Demo(story, storage, minutes), args, first, later, once)


def _run(demo: "Demo", args: "ServeArgs", first: list[Lesson], later: list[Lesson], once: bool) -> None:
    import ray

    from kauli.models.cluster import start_ray
    from kauli.serving.app import check_port

    check_port(args.host, args.port)  # before minutes of training, not after
    with ThreadPoolExecutor(1) as beside:
        service: Future[Service] | None = None
        try:
            with demo.story.step("Ray and the first base are there", f"training by {(first + later)[0].recipe}"):
                start_ray(cpus=(os.cpu_count() or 1) + _SERVICE_CPUS)
                demo.prepare((first + later)[0])
            service = beside.submit(_serve, demo, args, first + later)
            for place, lesson in enumerate(first):
                then = first[place + 1].recipe if place + 1 < len(first) else ""
                demo.teach(lesson, service, then)
                if lesson.name == HEARING:
                    demo.speak(service, then)
            demo.story.say(_ending(demo, args.url, once))
            for place, lesson in enumerate(later):
                demo.teach(lesson, service, then=later[place + 1].recipe if place + 1 < len(later) else "")
            if not once:
                demo.story.say(f"All trained. The service stays up at {args.url} (Ctrl-C ends it).")
                wait_for_stop()
        except KeyboardInterrupt:
            demo.story.say("Stopping...")
        finally:
            if service is not None and not service.cancel():
                service.exception()  # waits: Ray must not end while the service starts
            ray.shutdown()  # and the service with it


class Demo:
    """What the trainings of a demo have in common."""

    def __init__(self, story: Story, storage: str, minutes: float) -> None:
        self.story, self._storage, self._minutes = story, storage, minutes

    def recipe(self, lesson: Lesson) -> Any:
        """The recipe of a lesson, with the demo's time."""
        from kauli.training.recipe_file import load_recipe

        return load_recipe(lesson.recipe, [f"train.minutes={self._minutes}", *lesson.overrides])

    def prepare(self, lesson: Lesson) -> None:
        """Bring base and data."""
        from kauli.training.data.dataset import load_data

        recipe = self.recipe(lesson)
        bring_base(recipe.base, False)
        load_data(recipe.data, recipe.language, recipe.data_options)

    def teach(self, lesson: Lesson, service: "Future[Service]", then: str) -> None:
        """Train, ask base and adapter, and show what came of it; `then` is the next recipe."""
        from kauli.training.train import train

        recipe = self.recipe(lesson)
        with self.story.step(f"Trained and measured {recipe.name}: {lesson.what}", "asking it beside its base"):
            result = train(recipe, self._storage, generated=lesson.generated, scored=lesson.scored)
        found = result.evaluation
        next_one = f"training by {then}" if then else "the times"
        with self.story.step(f"{result.adapter} answers in the service", next_one):
            client = Client(service.result().url)
            samples = lesson.ask(client, recipe, found.base, result.adapter)
            report = self._report(result, recipe)
        for metric, things in lesson.figures:
            counted = things.format(examples=found.examples, generated=found.generated)
            self.story.tell(sentence(found, metric, counted))
        if not result.verdict.better:
            self.story.tell(f"Its answers are no better than its base's, beyond chance. {lesson.otherwise}.")
        elif any_right(samples):
            self.story.say(f"\n{sample_table(samples)}\n")
        else:
            self.story.tell(f"Better, but none of {len(samples)} answers looked at is right. {lesson.otherwise}.")
        self.story.tell(f"All figures, samples and notes: {report}")

    def speak(self, service: "Future[Service]", then: str) -> None:
        """Have two sentences spoken and transcribed back; `then` is the next recipe."""
        next_one = f"training by {then}" if then else "the times"
        with self.story.step("Two sentences are spoken, and transcribed back", next_one):
            samples = spoken_samples(Client(service.result().url))
        self.story.say(f"\n{sample_table(samples)}\n")
        self.story.tell(f"The voice is English and has an accent. The files: {kauli_home() / 'demo'}/speech-*.wav")

    def _report(self, result: Any, recipe: Any) -> str:
        """Write the page of an evaluation."""
        from kauli.models.adapters.registry import Registry
        from kauli.models.bases.find import find_base
        from kauli.training.data.dataset import load_data
        from kauli.training.evaluation.run import write_report

        out = kauli_home() / "demo" / f"{recipe.name}.html"
        dataset = load_data(recipe.data, recipe.language, recipe.data_options)
        card = Registry(self._storage).card(result.adapter)
        write_report(result.evaluation, card, dataset, find_base(recipe.base, task=recipe.task), out)
        return str(out)


def _settings(storage: str, port: int, chosen: Sequence[Lesson]) -> "ServeArgs":
    """A service for the tasks and bases of all lessons, which leaves Ray's CPUs to the trainings."""
    from kauli.serving.settings import ServeArgs
    from kauli.training.recipe_file import load_recipe

    bases: dict[str, list[str]] = {}
    for lesson in chosen:
        bases.setdefault(lesson.worker, []).append(load_recipe(lesson.recipe, list(lesson.overrides)).base)
    hears = any(lesson.name == HEARING for lesson in chosen)
    tasks = tuple(dict.fromkeys([*(lesson.served for lesson in chosen), *(("speak",) if hears else ())]))
    share = {"num_cpus": 0.2}
    workers: dict[str, Any] = {
        worker: {**share, "base": bases[worker][0]} for worker in ("image", "audio") if worker in bases
    } | {"memory": share, "voice": share}
    texts = tuple(dict.fromkeys(bases.get("text", ())))
    values: dict[str, Any] = {
        "storage": storage,
        "port": port,
        "tasks": tasks,
        "bases": texts,
        "text": share,
        **workers,
    }
    return ServeArgs.model_validate(values)


def _serve(demo: Demo, args: "ServeArgs", chosen: Sequence[Lesson]) -> "Service":
    """Bring the bases and data of all lessons, and start the service."""
    from kauli.serving.app import start

    for lesson in chosen:
        demo.prepare(lesson)
    if "speak" in args.tasks:
        bring_base(args.voice.base, False)
    return start(args)


def _ending(demo: Demo, url: str, once: bool) -> str:
    more = "" if once else f"\nThe service is up at {url}, with a page at / and the API at /docs. More adapters follow."
    return (
        f"\nTimes:\n{demo.story.times()}\n{more}\nTry next:\n"
        + ("  kauli serve\n" if once else "")
        + "  kauli transcribe YOUR.wav --language be\n"
        "  kauli speak 'Habari za asubuhi' --language sw --out habari.mp3\n"
        "  kauli data check YOUR.jsonl             # then the command that it prints\n"
        "  kauli train text-sw-gemma               # after: kauli fetch gemma-3-270m-q4 --accept-terms\n"
    )
