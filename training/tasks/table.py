"""The one table of tasks in training: the loop, `kauli train`, `kauli eval` and recipes reach a task through it."""

from typing import TYPE_CHECKING, cast

from kauli.models.errors import UsageError, nearest
from kauli.models.tasks import TASKS as MODEL_TASKS
from kauli.models.tasks import resolve, task_of

if TYPE_CHECKING:
    from kauli.models.adapters.card import Card
    from kauli.training.recipe import Recipe
    from kauli.training.tasks.base import TrainingTask

TASKS = {
    "text": "kauli.training.tasks.text:TextTraining",
    "translate": "kauli.training.tasks.translate:TranslateTraining",
    "prompt": "kauli.training.tasks.prompt:PromptTraining",
    "describe": "kauli.training.tasks.describe:DescribeTraining",
    "align": "kauli.training.tasks.align:AlignTraining",
    "head": "kauli.training.tasks.head:HeadTraining",
    "transcribe": "kauli.training.tasks.transcribe:TranscribeTraining",
    "speak": "kauli.training.tasks.speak:SpeakTraining",
}
"""Row of `kauli.models.tasks.TASKS` -> module and `TrainingTask`, imported when it is asked for."""


def training_task(task: str, kind: str = "") -> "TrainingTask":
    """The task that a recipe or card calls `task`, with a method of this kind. Raises UsageError for an unknown one."""
    try:
        place = TASKS[task_of(task, kind).name]
    except KeyError:
        allowed = list(dict.fromkeys(MODEL_TASKS[name].card_task for name in TASKS))
        raise UsageError(f"there is no task '{task}'.{nearest(task, allowed)} Allowed: {', '.join(allowed)}.") from None
    return cast("TrainingTask", resolve(place)())


def task_of_recipe(recipe: "Recipe") -> "TrainingTask":
    """The task of a recipe."""
    return training_task(recipe.task, recipe.method.kind)


def task_of_card(card: "Card") -> "TrainingTask":
    """The task of an adapter."""
    return training_task(card.task, str(card.method.get("kind", "")))
