"""Packed documents are computed as if each were alone: losses, gradients, attention windows."""

import pytest
import torch

from kauli.models.adapters.kinds.lora import Lora
from kauli.models.bases.find import find_base
from kauli.models.engine.packing import Batch, Document, pack
from kauli.models.text.language_model import answer_losses
from kauli.models.text.task import TextTask
from kauli.training.tasks.merged_lora import merge_while_training

SHAPES = ["debug", "debug-gemma", "debug-qwen"]
LENGTHS = (3, 40, 7, 23, 41, 12, 5, 90)


def documents(lengths: tuple[int, ...] = LENGTHS) -> list[Document]:
    draw = torch.Generator().manual_seed(1)
    return [
        Document(torch.randint(0, 250, (length,), generator=draw).tolist(), 1 + length // 3, True) for length in lengths
    ]


def plain_losses(task: TextTask, document: Document) -> torch.Tensor:
    """The losses of one document by transformers' own SDPA, without anything of ours."""
    model = task.model
    model.set_attn_implementation("sdpa")
    logits = model(input_ids=torch.tensor([document.tokens])).logits[0, document.answer_start - 1 : -1]
    model.set_attn_implementation("kauli_packed")
    return torch.nn.functional.cross_entropy(
        logits, torch.tensor(document.tokens[document.answer_start :]), reduction="none"
    )


@pytest.mark.parametrize("shape", SHAPES)
def test_packed_losses_are_those_of_documents_alone(shape: str) -> None:
    task = TextTask.load(find_base(shape), device="cpu")
    docs = documents()
    packed = answer_losses(task.model, pack(docs))
    alone = torch.cat([plain_losses(task, document) for document in docs])
    torch.testing.assert_close(packed, alone, atol=1e-5, rtol=1e-5)
    # the packed loss is the token-weighted mean of the single losses
    weights = [len(document.tokens) - document.answer_start for document in docs]
    means = [plain_losses(task, document).mean() for document in docs]
    expected = sum(w * m for w, m in zip(weights, means, strict=True)) / sum(weights)
    assert abs(float(answer_losses(task.model, pack(docs)).mean()) - float(expected)) < 1e-5


@pytest.mark.parametrize("shape", SHAPES)
def test_packed_gradients_are_those_of_documents_alone(shape: str) -> None:
    def gradients(batches: list[Batch]) -> dict[str, torch.Tensor]:
        task = TextTask.load(find_base(shape), device="cpu")
        torch.manual_seed(0)
        model = Lora(targets="all-linear").attach(task.model, "kauli/debug")
        for name, parameter in model.named_parameters():
            if "lora_B" in name:  # zero at first, and then A has no gradient
                torch.nn.init.normal_(parameter, std=0.05)
        model.train()
        for batch in batches:
            answer_losses(model, batch).sum().backward()
        return {name: p.grad for name, p in model.named_parameters() if p.grad is not None}

    docs = documents()
    together, alone = gradients([pack(docs)]), gradients([pack([document]) for document in docs])
    assert together
    for name, gradient in together.items():
        torch.testing.assert_close(gradient, alone[name], atol=2e-5, rtol=2e-4, msg=name)


def test_a_change_in_one_document_changes_no_other() -> None:
    task = TextTask.load(find_base("debug"), device="cpu")
    docs = documents((20, 30, 25))
    before = answer_losses(task.model, pack(docs))
    changed = docs[0]._replace(tokens=[(token + 1) % 250 for token in docs[0].tokens])
    after = answer_losses(task.model, pack([changed, *docs[1:]]))
    first = len(docs[0].tokens) - docs[0].answer_start
    assert torch.equal(before[first:], after[first:])
    assert not torch.equal(before[:first], after[:first])


def test_merged_lora_computes_what_peft_computes() -> None:
    def run(merged: bool) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
        task = TextTask.load(find_base("debug-qwen"), device="cpu")
        torch.manual_seed(0)
        model = Lora(targets="all-linear", rank=4).attach(task.model, "kauli/debug")
        for name, parameter in model.named_parameters():
            if "lora_B" in name:
                torch.nn.init.normal_(parameter, std=0.1)
        count = merge_while_training(model) if merged else 0
        assert (count == 14) is merged  # 7 linear modules in each of two layers
        model.train()
        losses = answer_losses(model, pack(documents()))
        losses.mean().backward()
        return losses.detach(), {name: p.grad for name, p in model.named_parameters() if p.grad is not None}

    (ours, our_gradients), (theirs, their_gradients) = run(True), run(False)
    torch.testing.assert_close(ours, theirs, atol=1e-5, rtol=1e-5)
    assert our_gradients.keys() == their_gradients.keys()
    for name, gradient in our_gradients.items():
        torch.testing.assert_close(gradient, their_gradients[name], atol=1e-5, rtol=1e-4, msg=name)


def test_merging_is_left_out_where_it_would_not_be_exact() -> None:
    task = TextTask.load(find_base("debug"), device="cpu")
    assert merge_while_training(Lora(dropout=0.1).attach(task.model, "kauli/debug")) == 0
