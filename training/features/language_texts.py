"""What a language model of transcripts learns from: training texts of a language that are in no other split."""

from collections.abc import Sequence

from kauli.models.languages import nfc
from kauli.training.data.dataset import Dataset
from kauli.training.evaluation.error_rates import normalised


def language_texts(dataset: Dataset, language: str, others: Sequence[Dataset] = ()) -> list[str]:
    """The texts of the training split, whatever their medium, and those of other data sets, each once.

    One that shares its group or its wording (see `normalised`) with a validation or test row of `dataset` is left out.
    """
    held, groups = set[str](), set[str]()
    for split in ("validation", "test"):
        for row in dataset.iter_rows(split, [language], ["group", "text"]):
            held.add(normalised(row["text"] or ""))
            groups.add(row["group"])
    texts: dict[str, str] = {}
    for one in (dataset, *others):
        for row in one.iter_rows("train", [language], ["group", "text"]):
            text = nfc(row["text"] or "").strip()
            if text and (one is not dataset or row["group"] not in groups):
                texts.setdefault(normalised(text), text)
    return [text for words, text in texts.items() if words and words not in held]
