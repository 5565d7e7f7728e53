"""`kauli certify`: a new version of an adapter, with the same weights, whose card says how good each answer will be."""

import shutil
import tempfile
from collections import defaultdict
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path

from kauli.models.adapters.card import CARD_FILE, README_FILE
from kauli.models.adapters.certificate import Certificate
from kauli.models.adapters.folder import write_card
from kauli.models.adapters.registry import Registry
from kauli.models.errors import UsageError
from kauli.models.progress import note
from kauli.models.tasks import task_of
from kauli.training.evaluation.certify import FEWEST_GROUPS, FEWEST_ROWS, Answered, fit_certificate
from kauli.training.evaluation.request import published_request
from kauli.training.tasks.table import task_of_card

ROWS = 200
"""Rows that are answered where nobody asks for another number."""
SPLIT = "validation"


@dataclass(frozen=True)
class Certified:
    """A version with certificates."""

    adapter: str
    """`name@version`."""
    certificates: Mapping[str, Certificate]
    """By the language of answers."""
    aliases: tuple[str, ...]


def certify(
    spec: str, storage: str, *, rows: int = ROWS, data: str | None = None, thresholds: tuple[float, float] | None = None
) -> Certified:
    """Answer validation rows with a published adapter, and publish what their figures say of their score.

    Args:
        spec: NAME, NAME@VERSION or NAME@ALIAS.
        storage: URI of the store that holds the registry.
        rows: of the validation split that are answered; of translations, of each direction.
        data: whose validation split is taken; by default what the adapter was trained on.
        thresholds: (green, yellow), in the metric of the task's certificates.

    The alias `latest` moves along where it meant the version. Raises UsageError: a task without certificates, too few
    rows, thresholds out of order.
    """
    registry = Registry(storage)
    name, version = registry.resolve(spec)
    exact = f"{name}@{version}"
    card = registry.card(exact)
    metric = task_of(card.task, str(card.method.get("kind", ""))).certified
    if not metric:
        raise UsageError(f"{exact} is for the task '{card.task}', whose answers get no certificate.")
    request = replace(published_request(registry, card, data), split=SPLIT, limit=rows)
    answers: dict[str, list[Answered]] = defaultdict(list)
    for one in task_of_card(card).answered(request):
        answers[one.language].append(one)
    try:
        found = {tag: fit_certificate(mine, metric, thresholds) for tag, mine in sorted(answers.items())}
    except ValueError as error:
        raise UsageError(f"--green and --yellow: {error}") from None
    few = {
        tag: f"{len(answers[tag])} rows of {len({one.group for one in answers[tag]})} groups"
        for tag, one in found.items() if one is None
    }  # fmt: skip
    needed = f"{FEWEST_ROWS} rows of {FEWEST_GROUPS} groups are needed"
    certificates = {tag: one for tag, one in found.items() if one is not None}
    if not certificates:
        counts = ", ".join(f"{tag} {count}" for tag, count in few.items()) or "none"
        raise UsageError(f"too little validation data for a certificate of {exact}: {counts}; {needed}.")
    for tag, count in few.items():
        note(f"No certificate for {tag}: {count}; {needed}.")
    with tempfile.TemporaryDirectory(prefix="kauli-certify-") as scratch:
        folder = Path(scratch) / "adapter"
        shutil.copytree(registry.fetch(exact), folder, ignore=shutil.ignore_patterns(CARD_FILE, README_FILE))
        new = card.model_copy(update={"version": None, "files": {}, "certificates": certificates})
        published = registry.publish(folder, write_card(folder, new))
    aliases = []
    if registry.aliases(name).get("latest") == version:
        registry.set_alias(name, published.version, "latest")
        aliases.append("latest")
    return Certified(published.spec, certificates, tuple(aliases))
