"""The language model of a recogniser's adapter: made from texts, its weights chosen on validation clips."""

from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from kauli.models.adapters.card import LanguageModelReference
from kauli.models.requests import BeamSearch
from kauli.models.speech.language_model import LanguageModel, Weights
from kauli.models.speech.token_lm import fit
from kauli.training.evaluation.request import ADAPTER
from kauli.training.evaluation.rows import some_groups
from kauli.training.evaluation.scorers import Row, Tally, clean, score_answers
from kauli.training.evaluation.systems import generate
from kauli.training.evaluation.transcribe import request_for

CLIPS = 48
"""Validation clips, about, by which the weights are chosen."""
FEWEST_TEXTS = 50
_WEIGHTS, _BONUS = (0.2, 0.4, 0.7), 0.5
_BONUSES = (0.0, 1.5)


def choose_language_model(
    served: Any, rows: Sequence[Row], folder: Path, texts: Sequence[str], language: str, order: int, beams: int,
    tell: Callable[[str], None],
) -> LanguageModelReference | None:  # fmt: skip
    """Write the language model of `texts` to an adapter's folder if it makes fewer errors; its figures for the card.

    The weight is chosen first, then the bonus, by the character error rate of about `CLIPS` validation clips of the
    language. Nothing is written where greedy transcripts are as good, and where there are too few texts or clips.

    Args:
        served: the recogniser, without the adapter.
        rows: validation clips.
        folder: the adapter's.
        texts: of the language.
        language: BCP-47 tag.
        order: the number of tokens in the longest n-grams.
        beams: answers that are kept at each step.
        tell: is told what was found, as a sentence.
    """
    rows, _ = some_groups([row for row in rows if row["language"] == language], CLIPS, "validation")
    if len(texts) < FEWEST_TEXTS or not rows:
        lacking = f"{len(texts)} texts" if rows else "no validation clip"
        tell(f"No language model for {language}: {lacking}, and {FEWEST_TEXTS} texts and clips to choose by are needed")
        return None
    tokens = [served.tokenizer(f" {text}", add_special_tokens=False).input_ids for text in texts]
    model = fit(
        tokens, vocabulary=int(served.model.config.vocab_size), end=served.end, order=order, language=language,
        tokenizer=served.tokenizer_sha256,
    )  # fmt: skip
    served.add_adapter(ADAPTER, folder)

    def rate(beam: BeamSearch | None) -> Tally:
        asked = [replace(request_for(row), beam=beam) for row in rows]
        answers = [clean(text) for text in generate(served, asked, [ADAPTER] * len(rows))]
        return score_answers(answers, [row["text"] for row in rows], rows, ("transcript",))["cer"]

    try:
        greedy, found = rate(None), dict[tuple[float, float], Tally]()
        size = min(beams, served.slots)
        for weight in _WEIGHTS:
            found[weight, _BONUS] = rate(BeamSearch(size, model, weight, _BONUS))
        best = min(found, key=lambda one: found[one].value())
        for bonus in _BONUSES:
            found[best[0], bonus] = rate(BeamSearch(size, model, best[0], bonus))
    finally:
        served.remove_adapter(ADAPTER)
    best = min(found, key=lambda one: found[one].value())
    figures = f"CER of {len(rows)} validation clips {found[best].value():.3f}, without it {greedy.value():.3f}"
    if not found[best].value() < greedy.value():
        tell(f"No language model for {language}: it does not help ({figures})")
        return None
    own = LanguageModel(model, Weights(*best, size))
    own.save(folder)
    tell(f"Language model of {language}: {len(texts):,} texts, weight {best[0]:g}, bonus {best[1]:g}; {figures}")
    return LanguageModelReference(
        order=model.order, texts=len(texts), ngrams=sum(map(len, model.keys)), weight=best[0], bonus=best[1],
        beams=size, clips=len(rows), cer=found[best].value(), greedy_cer=greedy.value(),
    )  # fmt: skip
