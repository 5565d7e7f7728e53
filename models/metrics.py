"""The one table of metrics: how each is called, shown and compared, in training, evaluation, model cards and reports.

A new metric is a row here and the function that scores it (`kauli.training.evaluation.scorers`).
"""

from dataclasses import dataclass
from typing import Literal


@dataclass(frozen=True)
class Metric:
    """One figure of a model on a data set."""

    name: str
    label: str
    explanation: str
    better: Literal["lower", "higher"] | None
    """None: neither end is good in itself."""
    finish: str
    """How the sums over groups of rows become the figure (`scorers.FINISH`); "" for a figure that is no sum."""
    unit: str = ""
    """Words behind the number in a sentence."""
    percent: bool = False
    """A fraction, which reports show as percent."""
    digits: int = 3
    """Digits behind the point."""
    headline: bool = False
    """Shown large at the top of a report."""


_WAYS = {"i2t": "Image to text", "t2i": "Text to image"}
_HELD_OUT = "What each byte of held-out text costs a model that predicts it: the steadiest figure here."
_ROWS = (
    Metric("bits_per_byte", "Bits per byte", _HELD_OUT, "lower", "ratio", "bits per byte", headline=True),
    Metric(
        "chrf", "chrF, 0 to 100", "Letter sequences that answer and reference share.", "higher", "chrf", "chrF",
        digits=1, headline=True,
    ),
    Metric(
        "chrf_pp", "chrF++, 0 to 100", "chrF that counts words as well.", "higher", "chrf_pp", "chrF++",
        digits=1, headline=True,
    ),
    Metric("chrf3", "chrF3, 0 to 100", "chrF of one answer, in which what is missing counts three times as much.",
           "higher", "", "chrF3", digits=1),
    Metric("bleu", "BLEU, 0 to 100", "Runs of up to four words that answer and reference share.", "higher", "bleu",
           "BLEU", digits=1),
    Metric("exact", "Exact answers", "Answers equal to the reference, letter for letter.", "higher", "ratio",
           percent=True),
    Metric("distinct_2", "Distinct word pairs", "Of all word pairs in the answers; low where a model repeats itself.",
           None, "ratio", percent=True),
    Metric("self_bleu", "Self-BLEU", "How alike the answers are to each other; low where they vary.", None, "ratio",
           percent=True),
    Metric("script_share", "Letters in the right script",
           "Of all letters in the answers, those of the language's script.", "higher", "ratio", percent=True),
    Metric("copied", "Copied captions", "Answers that are the caption of a training picture, letter for letter.", None,
           "ratio", percent=True),
    Metric("clip_similarity", "Similarity to the image", "Cosine of image and answer in a shared space.", "higher",
           "ratio"),
    Metric("macro_f1", "Macro-F1", "The mean over classes of precision and recall in one.", "higher", "macro_f1",
           percent=True, headline=True),
    Metric("accuracy", "Accuracy", "The share of images that got their class.", "higher", "ratio", percent=True,
           headline=True),
    *(
        Metric(f"{way}_r{cut}", f"{words}, recall at {cut}", f"The right one is among the first {cut}.", "higher",
               "ratio", headline=cut == 10)
        for way, words in _WAYS.items()
        for cut in (1, 5, 10)
    ),
    Metric("median_rank", "Median rank", "Of the right text among those of all groups.", "lower", "median_rank"),
    Metric("cer", "Character error rate", "Edits that make the transcript right, over the reference's characters.",
           "lower", "ratio", percent=True, headline=True),
    Metric("wer", "Word error rate", "The same in whole words.", "lower", "ratio", percent=True, headline=True),
    Metric("round_trip_cer", "Character error rate of a listener",
           "A recogniser transcribes the speech; edits over the text's letters, of a clip its length at most.",
           "lower", "ratio", percent=True, headline=True),
    Metric("phoneme_error", "Phoneme error rate of a listener", "The same over the sounds of transcript and text.",
           "lower", "ratio", percent=True, headline=True),
    Metric("listener_bits", "Bits per byte of a listener",
           "What the text costs a recogniser that hears the speech: less noisy "
           "than the errors of its transcript.", "lower", "ratio", "bits per byte"),
    Metric("dnsmos", "DNSMOS, 1 to 5", "How clean speech sounds, as a network predicts it of listeners.", "higher",
           "ratio", digits=2),
    Metric("mcd", "Mel-cepstral distortion, dB", "Distance of the sound to the recording's, aligned in time.", "lower",
           "ratio", "dB", digits=2),
    Metric("f0_rmse", "Melody error, semitones", "Of the pitch around its median, against the recording's.", "lower",
           "root", "semitones", digits=2),
    Metric("rtf", "Seconds to make a second of speech", "The real-time factor on the machine that measured.", "lower",
           "ratio"),
    Metric("looped", "Loops", "Transcripts that repeat themselves without end.", "lower", "ratio", percent=True),
    # Figures that are made of others, and those of validation
    Metric("english_bits_per_byte", "Bits per byte of English", "Higher than the base's: some English was forgotten.",
           "lower", "ratio", "bits per byte"),
    Metric("frame_nats", "Nats per latent value", "What recorded speech costs the text encoder.", "lower", "",
           "nats per latent value"),
    Metric("one_minus_mrr", "1 - mean reciprocal rank", "Of the right text for an image, and the reverse.", "lower", "",
           "1 - mean reciprocal rank"),
    Metric("one_minus_macro_f1", "1 - macro-F1", "Of the classes of images.", "lower", "", "1 - macro-F1"),
)  # fmt: skip
METRICS: dict[str, Metric] = {row.name: row for row in _ROWS}
"""In the order in which tables list them."""

SYNTHETIC = "synthetic_"
NEW_PICTURES = "new_pictures"
REVERSE = "reverse_"
"""Of metrics of translations out of the languages of an adapter."""
NOISE_LEVELS = (10, 0)
"""Decibels by which speech is louder than the noise laid over it, in the evaluation of images with audio."""


def noise_prefix(level: int) -> str:
    """Of metrics under noise: 0 -> "noise_0db_"."""
    return f"noise_{level}db_"


_PREFIXES = {
    f"{NEW_PICTURES}_": "new images of known concepts",
    REVERSE: "out of the language",
    **{noise_prefix(level): f"speech in noise at {level} dB" for level in NOISE_LEVELS},
    SYNTHETIC: "synthetic rows",
}
"""Of metrics on a second test set, in the other direction, under noise, and on synthetic rows: in the order in which
they precede a name."""


def plain_name(name: str) -> str:
    """A metric's name without its prefixes."""
    for prefix in _PREFIXES:
        name = name.removeprefix(prefix)
    return name


def metric_of(name: str) -> Metric:
    """The row of a metric, with or without prefixes; KeyError for an unknown one."""
    return METRICS[plain_name(name)]


def label(name: str) -> str:
    """A metric's label, with its prefixes in words: "Exact answers (synthetic rows)"; an unknown name as it is."""
    sets, rest = [], name
    for prefix, words in _PREFIXES.items():
        if rest.startswith(prefix):
            rest = rest.removeprefix(prefix)
            sets.append(words)
    text = METRICS[rest].label if rest in METRICS else rest
    return f"{text} ({', '.join(sets)})" if sets else text


def explanation(name: str) -> str:
    """What a metric tells and which end is better, in one line; "" for an unknown one."""
    row = METRICS.get(plain_name(name))
    if row is None:
        return ""
    return f"{row.better.capitalize()} is better. {row.explanation}" if row.better else row.explanation


def lower_is_better(name: str) -> bool:
    """Whether a smaller value is the better one."""
    return metric_of(name).better == "lower"
