"""Prompts in training: of the task `translate` with the method `prompt`, which has no weights.

A prompt is searched by what the translations of validation rows cost the base after it; the pairs of the training split
are the memory, as in a trained adapter's validation. The base beside it is asked without examples.
"""

import json
import math
import shutil
import tempfile
import time
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from random import Random
from typing import Annotated, Any, ClassVar, Self

from pydantic import model_validator

from kauli.models.adapters.card import Prompting, TranslationReference
from kauli.models.adapters.folder import PROMPTS
from kauli.models.adapters.kinds.base import AdapterKind
from kauli.models.adapters.kinds.prompt import Prompt
from kauli.models.bases.find import Base
from kauli.models.engine.precision import choose_precision
from kauli.models.files import read_json
from kauli.models.progress import bar
from kauli.models.tasks import load_served
from kauli.training.data.dataset import Dataset
from kauli.training.evaluation.certify import Answered
from kauli.training.evaluation.request import EvalRequest
from kauli.training.evaluation.results import EvalResult
from kauli.training.evaluation.translate import PAIR_ROWS, answered_translations, evaluate_translate
from kauli.training.features.left_out import LeftOut
from kauli.training.features.room import Room
from kauli.training.features.translations import Prompter, directed, pair_rows
from kauli.training.loop.checkpoint import TrainState
from kauli.training.loop.session import Run
from kauli.training.recipe import method_of
from kauli.training.tasks.base import Examples, Fitted, Learner, Row
from kauli.training.tasks.decoding import decoding_of
from kauli.training.tasks.prompt_search import Cost, PromptSearch, axes, example_sets
from kauli.training.tasks.rows import check_rows, sample
from kauli.training.tasks.translate import TranslateRecipe, TranslateTraining, chosen_direction

BARE = Prompting(examples=0)
"""How the base beside the prompt is asked."""
_STATE = "search.json"
_READ = 1000  # training rows that limit the answers


class PromptRecipe(TranslateRecipe):
    """A recipe of the task `translate` with the method `prompt`; of `train` the seed alone is used."""

    method: Annotated[AdapterKind, method_of("prompt")] = Prompt()
    start_from: None = None
    """There are no weights."""

    @model_validator(mode="after")
    def _one_worker(self) -> Self:
        if self.scale.workers != 1:
            raise ValueError(f"scale.workers {self.scale.workers}: prompts are compared by one worker, set it to 1")
        return self


class PromptTraining(TranslateTraining):
    """A prompt for a base that is left as it is."""

    name = "prompt"
    proved = False
    recipe: ClassVar = PromptRecipe

    def card_fields(self, recipe: TranslateRecipe, rows: Sequence[Row] = ()) -> dict[str, Any]:
        """Both directions of the pairs, where validation has both."""
        there = {(row["from"], row["to"]) for row in rows if recipe.translate.reverse < 1}
        back = {(row["to"], row["from"]) for row in rows if recipe.translate.reverse > 0}
        return {"translation": TranslationReference(pairs=sorted(there | back), prompting=recipe.prompting)}

    def rows(self, recipe: TranslateRecipe, dataset: Dataset, base: Base) -> Examples:
        """The pairs of the training split without prompts: they are the memory. Validation as for an adapter."""
        memory, found = (pair_rows(dataset, split, recipe.language) for split in ("train", "validation"))
        left_out = LeftOut("validation", dataset.place)
        asked = sample([chosen_direction(row, recipe.translate.reverse) for row in found])
        validation = Room(base).fitting(Prompter(base, recipe.prompting, memory).prompted(asked), left_out)
        train, notes = [directed(row, reverse=False) for row in memory], left_out.notes(len(validation))
        notes += check_rows(recipe, (train, validation), PAIR_ROWS, notes)
        return Examples(train, validation, (), dataset.sha256, tuple(notes), 0, dataset.place)

    def learner(self, recipe: TranslateRecipe, base: Base, examples: Examples, device: str) -> Learner:
        """There is no gradient."""
        raise NotImplementedError

    def fit(self, run: Run, folder: Path) -> Fitted:
        """Search, and write all prompts that were compared. An interrupted search goes on where it was."""
        recipe, method, began = run.recipe, run.recipe.method, time.monotonic()
        assert isinstance(recipe, PromptRecipe)
        assert isinstance(method, Prompt)
        checkpoint = run.session.restore()
        saved: dict[str, Any] = read_json(checkpoint / _STATE) if checkpoint else {"seconds": 0.0, "costs": {}}
        precision = choose_precision(run.base, run.device, recipe.scale.precision)
        run.tell(f"Precision: {precision}")
        task = load_served(self.name, run.base, device=run.device, dtype=precision.dtype)
        prompter = Prompter(run.base, recipe.prompting, run.examples.train)
        random, rows = Random(recipe.train.seed), list(run.examples.validation)
        random.shuffle(rows)  # the first ones stand for all

        def cost(prompting: Prompting, first: int, last: int) -> Sequence[Cost]:
            found: Sequence[Cost] = task.bits(prompter.prompted(rows[first:last], prompting=prompting), None)
            return found

        search = PromptSearch(cost, len(rows), method.trials, saved["costs"])
        state = TrainState(precision=str(precision), base_validation=search.figure(BARE))

        def advance(best: Prompting) -> None:
            figure, before = search.figure(best), state.step
            state.step, state.best_validation = len(search.compared()), figure
            state.seconds = saved["seconds"] + time.monotonic() - began
            state.curve.append((state.step, math.nan, figure))
            shown(state.step - before, f"{figure:.3f} bits per byte")
            run.log({"step": state.step, "validation": figure, "budget": state.step / method.trials})
            report()

        def report() -> None:
            with tempfile.TemporaryDirectory() as scratch:
                shutil.copytree(folder, (path := Path(scratch) / "checkpoint") / "adapter")
                (path / _STATE).write_text(json.dumps({"seconds": state.seconds, "costs": search.costs}))
                run.session.report({"step": state.step}, path)

        sets = example_sets(run.examples.train, recipe.train.seed)
        with bar("Prompts compared", method.trials) as shown:
            best = search.best(recipe.prompting, axes(recipe.prompting, sets, recipe.train.seed), advance)
        state.finished, compared = True, search.compared()
        content = json.dumps([one.to_json() for one in compared], indent=2, ensure_ascii=False)
        (folder / PROMPTS).write_text(content + "\n", encoding="utf-8")
        report()
        run.tell(
            f"Prompts compared on {len(rows)} validation rows: {len(compared)}. Bits per byte with the best one "
            f"{search.figure(best):.3f}, with that of the recipe {search.figure(recipe.prompting):.3f}, of the base "
            f"without examples {state.base_validation:.3f}"
        )
        few = random.sample(run.examples.train, min(_READ, len(run.examples.train)))
        decoding = decoding_of(task.encode([{**row, "prompt": row["input"]} for row in few]))
        decoding = decoding.model_copy(update={"tokens_per_prompt_token": None})  # prompts differ in their examples
        reference: TranslationReference = self.card_fields(recipe, run.examples.train)["translation"]
        reference = reference.model_copy(update={"prompting": best, "compared": len(compared)})
        return Fitted(state, task, run.examples, decoding, {"translation": reference})

    def evaluate(self, request: EvalRequest) -> EvalResult:
        """As an adapter, but the base is asked without examples."""
        result, compared = evaluate_translate(request, weights=False), len(read_json(request.folder / PROMPTS))
        return replace(result, notes=(*result.notes, f"prompts compared on validation rows to choose it: {compared}"))

    def answered(self, request: EvalRequest) -> list[Answered]:
        """Translations in both directions."""
        return answered_translations(request)
