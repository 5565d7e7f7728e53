"""The one table of tasks in the models layer; importing it needs no torch.

Training has its own table (`kauli.training.tasks.table`), and so has the service (`kauli.serving.tasks`): all three go
by the names here. Everything that a task needs is named by a string "module:attribute" and imported when it is used.
A served class has `load`, `base` and `add_adapter`, `remove_adapter`, `adapters`; one that generates is a `Generative`.
A trainable class has `load`, `base`, `device`, `model`, `trained`, `attach`, `start_from`, `save` and `served`, as
`kauli.models.adapters.peft_weights.PeftTrainable` has; losses and batches are its own.
"""

from dataclasses import dataclass
from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import torch

    from kauli.models.bases.find import Base


@dataclass(frozen=True)
class Peft:
    """How plain PEFT treats the bases of a task, for adapters that come from outside."""

    auto_model: str
    """The class of transformers that it wraps."""
    task_type: str | None
    """PEFT's task type; it has none for recognisers: by SEQ_2_SEQ_LM it would give them `input_ids`."""
    refused: tuple[tuple[str, str], ...] = ()
    """(`model_type` of a base, why its adapters can't be taken)."""


@dataclass(frozen=True)
class Task:
    """One row of the table."""

    name: str
    card_task: str
    """What a card's and a recipe's field `task` says; with `TASKS` of one such name the method's kind decides."""
    takes: str
    """The task that bases.yaml lists its bases under."""
    debug: str
    """The debug base."""
    served: str
    trainable: str
    """"" for a task that is fitted on a served base, or that has no adapters."""
    usage: str
    """Renders the section "Use" of a model card from the card; "" for a task without adapters."""
    command: str
    """The command to try an adapter with."""
    headline: tuple[str, ...]
    """Metrics; the first that an adapter has tells it apart from others in a list."""
    validation: str
    """The metric on the validation split by which a run's checkpoint is chosen."""
    check: str
    """Refuses a folder that is no base of this task: (folder, name) -> None."""
    peft: Peft | None = None
    certified: str = ""
    """The metric of an answer's certificate; "": answers of the task have none."""
    model_types: tuple[str, ...] = ()
    """`model_type`s in config.json by which a base of this task is recognised; none: by the architecture's suffix."""


_LANGUAGE_MODEL = Peft("AutoModelForCausalLM", "CAUSAL_LM")
_ROWS = (
    Task(
        "text", "text", takes="text", debug="debug-text",
        served="kauli.models.text.task:TextTask", trainable="kauli.models.text.training:TrainableText",
        usage="kauli.models.adapters.usage:text_usage", command="kauli generate Habari",
        headline=("bits_per_byte",), validation="bits_per_byte", check="kauli.models.bases.folder:check_text",
        certified="chrf3",
        peft=_LANGUAGE_MODEL,
    ),
    Task(
        "translate", "translate", takes="text", debug="debug-text",
        served="kauli.models.text.task:TextTask", trainable="kauli.models.text.training:TrainableText",
        usage="kauli.models.adapters.usage:translate_usage", command="kauli translate Hello --to am",
        headline=("chrf_pp", "bits_per_byte"), validation="bits_per_byte",
        check="kauli.models.bases.folder:check_text",
        certified="chrf3",
    ),
    Task(
        "prompt", "translate", takes="text", debug="debug-text",
        served="kauli.models.text.task:TextTask", trainable="",
        usage="kauli.models.adapters.usage:prompt_usage", command="kauli translate Hello --to am",
        headline=("chrf_pp", "bits_per_byte"), validation="bits_per_byte",
        check="kauli.models.bases.folder:check_text",
        certified="chrf3",
    ),
    Task(
        "describe", "describe", takes="text", debug="debug-text",
        served="kauli.models.text.task:TextTask", trainable="kauli.models.text.describe:TrainableDescribe",
        usage="kauli.models.adapters.usage:describe_usage", command="kauli describe --image image.png",
        headline=("bits_per_byte",), validation="bits_per_byte", check="kauli.models.bases.folder:check_text",
        certified="chrf3",
    ),
    Task(
        "align", "align", takes="align", debug="debug-clip",
        served="kauli.models.vision.align:AlignTask", trainable="kauli.models.vision.training:TrainableAlign",
        usage="kauli.models.adapters.usage:align_usage", command="kauli eval",
        headline=("i2t_r10",), validation="one_minus_mrr", check="kauli.models.bases.folder:check_aligned",
    ),
    Task(
        "head", "align", takes="align", debug="debug-clip",
        served="kauli.models.vision.align:AlignTask", trainable="",
        usage="kauli.models.adapters.usage:head_usage", command="kauli eval",
        headline=("macro_f1",), validation="one_minus_macro_f1", check="kauli.models.bases.folder:check_aligned",
    ),
    Task(
        "transcribe", "transcribe", takes="transcribe", debug="debug-whisper",
        served="kauli.models.speech.task:Recogniser", trainable="kauli.models.speech.task:TrainableRecogniser",
        usage="kauli.models.adapters.usage:transcribe_usage", command="kauli transcribe clip.ogg",
        headline=("cer",), validation="bits_per_byte", check="kauli.models.bases.folder:check_recogniser",
        certified="cer",
        peft=Peft(
            "AutoModelForSpeechSeq2Seq", None,
            (("wav2vec2", "plain PEFT does not keep the characters that such an adapter writes"),),
        ),
        model_types=("whisper", "wav2vec2"),
    ),
    Task(
        "speak", "speak", takes="speak", debug="debug-vits",
        served="kauli.models.speech.speak:SpeakTask", trainable="kauli.models.speech.vits_training:TrainableVoice",
        usage="kauli.models.adapters.usage:speak_usage", command="kauli speak Habari --out a.mp3",
        headline=("round_trip_cer",), validation="frame_nats", check="kauli.models.bases.folder:check_voice",
        model_types=("vits",),
    ),
)  # fmt: skip
TASKS: dict[str, Task] = {row.name: row for row in _ROWS}
"""By name. A new task is a row here and the modules that it names."""
RESERVED = frozenset({*TASKS, "classify", "embed"})
"""What a request's model may be beside bases and adapters: no adapter is called so."""


def task_of(card_task: str, kind: str = "") -> Task:
    """The row of what a card or a recipe says: its `task`, and its method's `kind` where the task has several rows.

    KeyError for a task without a row.
    """
    from kauli.models.adapters.kinds.table import KINDS  # here: bases, which lie below adapters, import this table

    rows = [row for row in TASKS.values() if row.card_task == card_task]
    if not rows:
        raise KeyError(card_task)
    return next((row for row in rows if kind in KINDS and row.name in KINDS[kind].tasks), rows[0])


def load_served(
    name: str, base: "Base", device: str | None = None, dtype: "torch.dtype | None" = None, **options: Any
) -> Any:
    """A task's base, ready to answer with adapters. `options` are those of its class (`slots`, `window`).

    By default it is on the GPU in bf16 where there is one, else on the CPU in fp32.
    """
    return resolve(TASKS[name].served).load(base, device=device, dtype=dtype, **options)


def load_trainable(name: str, base: "Base", device: str | None = None, dtype: "torch.dtype | None" = None) -> Any:
    """A task's base, ready to learn an adapter; device and precision as in `load_served`."""
    return resolve(TASKS[name].trainable).load(base, device=device, dtype=dtype)


def resolve(name: str) -> Any:
    """What "module:attribute" names."""
    module, _, attribute = name.partition(":")
    return getattr(import_module(module), attribute)
