"""What people run today, as a yardstick: a plain Hugging Face Trainer with peft, in three common forms.

It takes the same rendered tokens as our own training, with labels on the answer alone, so that only the training
differs. Run as a program it trains one adapter:

    python tests/bench/plain_script.py --documents FILE --base FOLDER --out FOLDER --form padded --minutes 10

FILE is JSON: {"documents": [[tokens, answer_start], ...], "end": end token id}.
"""

import argparse
import json
import time
from pathlib import Path
from typing import Any

import torch
from peft import LoraConfig, get_peft_model
from transformers import AutoModelForCausalLM, Trainer, TrainerCallback, TrainingArguments
from transformers.utils import logging

BATCH = 8  # examples of a padded batch
TRIAL = 18  # steps that tell the speed; the first third warms up
PACKED_TOKENS = 1024  # tokens of a packed batch
QV = ["q_proj", "v_proj"]
FORMS = {
    "padded": "LoRA r=8 on q/v, batches of 8 padded to the longest",
    "grouped": "LoRA r=8 on q/v, batches of 8 examples of like length",
    "packed": "LoRA r=8 on all linear layers, packed rows of 1,024 tokens (block mask from position ids)",
}
logging.disable_progress_bar()


def examples_of(documents: list[list[Any]], form: str) -> list[dict[str, list[int]]]:
    """Examples as the Trainer takes them; packed ones carry the position ids that keep documents apart."""
    single = [
        {"input_ids": tokens, "labels": [-100] * start + tokens[start:], "position_ids": list(range(len(tokens)))}
        for tokens, start in documents
    ]
    if form == "grouped":
        # The Trainer's own grouping hardly groups a few dozen examples; in order of length the padding is least.
        single.sort(key=lambda example: len(example["input_ids"]))
    if form != "packed":
        return [{key: example[key] for key in ("input_ids", "labels")} for example in single]
    rows: list[dict[str, list[int]]] = []
    for example in single:
        if not rows or len(rows[-1]["input_ids"]) + len(example["input_ids"]) > PACKED_TOKENS:
            rows.append({key: [] for key in example})
        for key, values in example.items():
            rows[-1][key] += values
    return rows


def collate(examples: list[dict[str, list[int]]], end: int) -> dict[str, torch.Tensor]:
    """Right-padded tensors; packed rows come one by one and are as they are."""
    if "position_ids" in examples[0]:
        assert len(examples) == 1
        return {key: torch.tensor([values]) for key, values in examples[0].items()}
    longest = max(len(example["input_ids"]) for example in examples)
    return {
        "input_ids": torch.tensor([e["input_ids"] + [end] * (longest - len(e["input_ids"])) for e in examples]),
        "labels": torch.tensor([e["labels"] + [-100] * (longest - len(e["labels"])) for e in examples]),
        "attention_mask": torch.tensor(
            [[1] * len(e["input_ids"]) + [0] * (longest - len(e["input_ids"])) for e in examples]
        ),
    }


class Clock(TrainerCallback):
    """Stops at the end of the time, and keeps when each step ended."""

    def __init__(self, minutes: float | None) -> None:
        self.minutes = minutes
        self.ends: list[float] = []

    def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        self.begin = time.monotonic()

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        self.ends.append(time.monotonic())
        if self.minutes is not None and self.ends[-1] - self.begin > 60 * self.minutes:
            control.should_training_stop = True


def lora(base: Path, targets: str | list[str]) -> Any:
    """The base with a fresh adapter."""
    model = AutoModelForCausalLM.from_pretrained(base, dtype=torch.float32)
    return get_peft_model(model, LoraConfig(r=8, lora_alpha=16, target_modules=targets, task_type="CAUSAL_LM"))


def trainer_of(
    model: Any,
    examples: list[dict[str, list[int]]],
    end: int,
    form: str,
    steps: int,
    rate: float,
    seed: int,
    clock: Clock,
    out: Path,
) -> Trainer:
    """The Trainer, with a linear warm-up and a cosine over `steps`."""
    arguments = TrainingArguments(
        output_dir=str(out),
        per_device_train_batch_size=1 if form == "packed" else BATCH,
        max_steps=steps,
        learning_rate=rate,
        lr_scheduler_type="cosine",
        warmup_steps=0.05,
        train_sampling_strategy="sequential" if form == "grouped" else "random",
        use_cpu=True,
        report_to="none",
        save_strategy="no",
        logging_strategy="no",
        disable_tqdm=True,
        remove_unused_columns=False,
        seed=seed,
    )
    return Trainer(
        model=model,
        args=arguments,
        train_dataset=examples,  # type: ignore[arg-type]
        data_collator=lambda batch: collate(batch, end),
        callbacks=[clock],
    )


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--documents", type=Path, required=True)
    parser.add_argument("--base", type=Path, required=True)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--form", choices=FORMS, required=True)
    parser.add_argument("--minutes", type=float, required=True)
    parser.add_argument("--rate", type=float, default=5e-4)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--threads", type=int, required=True)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    content = json.loads(options.documents.read_text())
    examples = examples_of(content["documents"], options.form)
    # The length of the schedule: from the speed of some steps on a throw-away copy, before the clock starts.
    trial = Clock(None)
    targets = "all-linear" if options.form == "packed" else QV
    model = lora(options.base, targets)
    trainer_of(
        model, examples, content["end"], options.form, TRIAL, options.rate, options.seed, trial, options.out
    ).train()
    speed = (trial.ends[-1] - trial.ends[TRIAL // 3]) / (TRIAL - TRIAL // 3 - 1)
    steps = max(10, int(60 * options.minutes / speed))
    torch.manual_seed(options.seed)
    model = lora(options.base, targets)
    clock = Clock(options.minutes)
    trainer_of(
        model, examples, content["end"], options.form, steps, options.rate, options.seed, clock, options.out
    ).train()
    model.save_pretrained(options.out)
    seconds = clock.ends[-1] - clock.begin
    print(json.dumps({"steps": len(clock.ends), "planned_steps": steps, "seconds": round(seconds, 1)}))


if __name__ == "__main__":
    main()
