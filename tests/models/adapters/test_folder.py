"""Adapter folders: cards, pages, what is refused, and plain PEFT in both directions."""

import dataclasses
import json
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from peft import IA3Config, LoraConfig, PeftModel, get_peft_model
from safetensors.torch import load_file, save_file
from transformers import AutoConfig, AutoModelForCausalLM, PreTrainedModel

from kauli.models.adapters.card import Attribution, BaseReference, Card, DataReference, Training, Validation, read_card
from kauli.models.adapters.folder import check_base, check_files, check_folder, write_card
from kauli.models.adapters.page import render_readme
from kauli.models.adapters.peft_import import from_peft
from kauli.models.bases.find import Base, find_base
from kauli.models.errors import KauliError, UsageError
from kauli.models.requests import TextRequest
from kauli.models.text.task import TextTask

TOKENS = torch.tensor([[5, 17, 99, 3, 250, 64, 8]])


@pytest.fixture(scope="module")
def bases(tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[str, Base]]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("KAULI_HOME", str(tmp_path_factory.mktemp("home")))
        yield {name: find_base(name) for name in ("debug", "debug-qwen")}


@pytest.fixture
def base(bases: dict[str, Base]) -> Base:
    return bases["debug"]


def load(base: Base) -> PreTrainedModel:
    model: PreTrainedModel = AutoModelForCausalLM.from_pretrained(base.folder, dtype=torch.float32)
    return model


def logits(model: torch.nn.Module) -> torch.Tensor:
    with torch.no_grad():
        answer: torch.Tensor = model(input_ids=TOKENS).logits
    return answer


def plain_peft(base: Base, folder: Path, **settings: Any) -> torch.Tensor:
    """What a user of plain PEFT has: a trained adapter in a folder. Returns its logits."""
    torch.manual_seed(7)
    defaults: dict[str, Any] = {"r": 4, "target_modules": "all-linear", "task_type": "CAUSAL_LM"}
    model = get_peft_model(load(base), LoraConfig(**(defaults | settings)))
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "lora_B" in name:
                parameter.normal_(std=0.2)
    model.eval().save_pretrained(str(folder))
    return logits(model)


def make_card(base: Base, **changes: Any) -> Card:
    fields: dict[str, Any] = {
        "name": "text-sw",
        "task": "text",
        "language": "sw",
        "base": BaseReference.of(base),
        "method": {"kind": "lora", "rank": 4},
        "licence": "CC-BY-SA-4.0",
    }
    return Card(**fields | changes)


@pytest.fixture
def folder(base: Base, tmp_path: Path) -> Path:
    """One of our adapter folders."""
    plain_peft(base, tmp_path / "plain")
    from_peft(tmp_path / "plain", tmp_path / "ours", name="text-sw", language="sw", base=base)
    return tmp_path / "ours"


# The card and its page


def test_card_returns_as_written(folder: Path, base: Base) -> None:
    card = make_card(
        base,
        language=["sw", "am"],
        data=DataReference(name="starter", sha256="ab", rows=9, groups=5, languages=["sw"], sources=["udhr"]),
        attributions=[Attribution(source="FreeDict", licence="GPL-2.0-or-later", rows=4)],
        metrics={"bits_per_byte": 2.5, "exact": float("nan")},
        intervals={"bits_per_byte": [2.4, 2.6]},
        validation=Validation(base=3.0, adapter=2.0),
        training=Training(steps=3, seconds=1.5, tokens=40, machine="2 cores", seed=0, curve=[[1, 3.0, None]]),
        recipe={"name": "text-sw"},
    )
    written = write_card(folder, card)
    assert card.files == {}
    assert set(written.files) == {"README.md", "adapter_config.json", "adapter_model.safetensors"}
    read = read_card(folder)
    assert read.metrics == {"bits_per_byte": 2.5, "exact": None}  # JSON has no NaN
    assert read.model_copy(update={"metrics": written.metrics}) == written
    assert json.loads((folder / "card.json").read_text())["schema"] == 2
    check_folder(folder)


def test_unknown_key_or_later_schema_is_named(folder: Path) -> None:
    content = json.loads((folder / "card.json").read_text())
    for change in ({"colour": "red"}, {"schema": 3}):
        (folder / "card.json").write_text(json.dumps(content | change))
        with pytest.raises(KauliError, match=next(iter(change))):
            read_card(folder)


def test_folder_without_card_says_what_to_do(tmp_path: Path) -> None:
    with pytest.raises(KauliError, match="kauli adapters add"):
        read_card(tmp_path)


@pytest.mark.parametrize("name", ["../x", "a/b", "A", "", ".x", "a..b", "a b", "x" * 65, "naïve", "a\n"])
def test_names_with_path_characters_are_refused(base: Base, name: str) -> None:
    with pytest.raises(UsageError, match="adapter name"):
        make_card(base, name=name)


@pytest.mark.parametrize(
    "path", ["../evil.json", "/etc/evil.json", "a\\b.json", "model.bin", "a/../b.json", "card.json"]
)
def test_card_cannot_name_a_file_outside(folder: Path, path: str) -> None:
    content = json.loads((folder / "card.json").read_text())
    content["files"][path] = "0" * 64
    (folder / "card.json").write_text(json.dumps(content))
    with pytest.raises(KauliError, match="not a file that an adapter may hold"):
        read_card(folder)


def test_page_holds_what_a_stranger_needs(base: Base) -> None:
    card = make_card(
        base,
        version=3,
        metrics={"bits_per_byte": 2.5, "chrf": 31.25},
        base_metrics={"bits_per_byte": 3.5},
        intervals={"bits_per_byte": [2.4, 2.6]},
        attributions=[Attribution(source="FreeDict | eng-swh", licence="GPL-2.0-or-later", rows=1234)],
        template="{% raw %}```{% endraw %}",
    )
    page = render_readme(card)
    metadata = yaml.safe_load(page.split("---\n")[1])
    assert metadata["base_model"] == "kauli/debug-text"
    assert metadata["language"] == ["sw"]
    assert metadata["library_name"] == "peft"
    assert metadata["license"] == "cc-by-sa-4.0"
    assert "# text-sw@3\n" in page
    assert 'from_pretrained("kauli/debug-text")' in page
    assert "| Bits per byte (lower is better) | 3.5 | 2.5 | 2.4 to 2.6 |" in page
    assert "| FreeDict \\| eng-swh | GPL-2.0-or-later | 1,234 |" in page
    assert "\n````jinja\n" in page  # the template's own fence does not end the block
    other = yaml.safe_load(render_readme(make_card(base, licence="GPL-2.0 AND MIT")).split("---\n")[1])
    assert (other["license"], other["license_name"]) == ("other", "GPL-2.0 AND MIT")


# What is refused


def add_pickle(folder: Path) -> None:
    torch.save({"x": torch.zeros(2)}, folder / "adapter_model.bin")


def add_link(folder: Path) -> None:
    (folder / "notes.md").symlink_to("/etc/hostname")


def truncate(folder: Path) -> None:
    path = folder / "adapter_model.safetensors"
    path.write_bytes(path.read_bytes()[:-100])


def no_weights(folder: Path) -> None:
    (folder / "adapter_model.safetensors").unlink()


def no_config(folder: Path) -> None:
    (folder / "adapter_config.json").unlink()


def change_a_byte(folder: Path) -> None:
    path = folder / "adapter_model.safetensors"
    content = bytearray(path.read_bytes())
    content[-1] ^= 1
    path.write_bytes(content)


def edit_config(folder: Path, **changes: Any) -> None:
    path = folder / "adapter_config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (add_pickle, r"adapter_model\.bin is not allowed"),
        (lambda folder: (folder / "modeling.py").write_text("1"), r"modeling\.py is not allowed"),
        (add_link, r"notes\.md is a symbolic link"),
        (truncate, r"adapter_model\.safetensors is not a sound safetensors file"),
        (no_weights, "holds no weights"),
        (no_config, r"adapter_config\.json is missing"),
        (change_a_byte, r"adapter_model\.safetensors differs from the SHA-256"),
        (lambda folder: (folder / "extra.md").write_text("?"), r"extra\.md is not in its card"),
        (lambda folder: (folder / "README.md").unlink(), r"README\.md is missing"),
        (lambda folder: (folder / "adapter_config.json").write_text("{"), "not readable JSON"),
        (lambda folder: (folder / "adapter_config.json").write_text("[" * 100_000), "not readable JSON"),
        (lambda folder: edit_config(folder, auto_map={"AutoModel": "evil.Model"}), "auto_map"),
        (lambda folder: edit_config(folder, deep=[{"trust_remote_code": True}]), "trust_remote_code"),
        (lambda folder: edit_config(folder, auto_mapping={"parent_library": "evil"}), "auto_mapping"),
        (lambda folder: edit_config(folder, base_model_name_or_path="/home/me/model"), "no hub id"),
        (lambda folder: edit_config(folder, peft_type=None), "peft_type"),
    ],
)
def test_damaged_or_unsafe_folder_is_refused_by_file(folder: Path, damage: Any, message: str) -> None:
    check_folder(folder)
    damage(folder)
    with pytest.raises(KauliError, match=message):
        check_folder(folder)


def test_full_weights_are_an_adapter_too(base: Base, tmp_path: Path) -> None:
    for name in ("model.safetensors", "config.json"):
        shutil.copyfile(base.folder / name, tmp_path / name)
    card = make_card(base, method={"kind": "full"})
    write_card(tmp_path, card)
    check_folder(tmp_path)
    assert "AutoModelForCausalLM.from_pretrained(folder)" in (tmp_path / "README.md").read_text()
    assert "PeftModel" not in (tmp_path / "README.md").read_text()


def test_another_base_is_refused(bases: dict[str, Base]) -> None:
    card = make_card(bases["debug"])
    check_base(card, bases["debug"])
    with pytest.raises(KauliError, match=r"made on debug-text .*base here is debug-qwen .*Use that base"):
        check_base(card, bases["debug-qwen"])


# Plain PEFT


@pytest.mark.parametrize(
    "settings", [{}, {"use_rslora": True, "r": 2}, {"target_modules": ["q_proj"], "use_dora": True}]
)
def test_plain_peft_in_and_out_gives_equal_outputs(base: Base, tmp_path: Path, settings: dict[str, Any]) -> None:
    theirs = plain_peft(base, tmp_path / "plain", **settings)
    assert not torch.allclose(theirs, logits(load(base)))
    from_peft(tmp_path / "plain", tmp_path / "ours", name="text-sw", language="sw", base=base)
    check_folder(tmp_path / "ours")
    ours = logits(PeftModel.from_pretrained(load(base), tmp_path / "ours").eval())
    torch.testing.assert_close(ours, theirs, rtol=0, atol=0)


def test_an_imported_adapter_generates_what_plain_peft_does(base: Base, tmp_path: Path) -> None:
    plain_peft(base, tmp_path / "plain")
    from_peft(tmp_path / "plain", tmp_path / "ours", name="text-sw", language="sw", base=base)
    task = TextTask.load(base, dtype=torch.float32)
    task.add_adapter("text-sw@1", tmp_path / "ours")
    request = TextRequest.of_prompt("Habari ya leo?", max_tokens=24, ignore_eos=True)
    prompt = torch.tensor([task.prompt_tokens(request)])
    theirs = PeftModel.from_pretrained(load(base), tmp_path / "plain").eval()
    with torch.no_grad():
        tokens = theirs.generate(  # type: ignore[no-untyped-call]
            input_ids=prompt,
            attention_mask=torch.ones_like(prompt),
            max_new_tokens=24,
            min_new_tokens=24,
            do_sample=False,
        )
    expected = task.tokenizer.decode(tokens[0, prompt.shape[1] :], skip_special_tokens=True)
    ours = "".join(chunk.text for chunks in task.generate([request], ["text-sw@1"]) for chunk in chunks)
    bare = "".join(chunk.text for chunks in task.generate([request], [None]) for chunk in chunks)
    assert ours == str(expected).replace("\ufffd", "")  # a random model makes broken bytes, which kauli drops
    assert ours != bare


def test_import_rewrites_the_base_and_tells_what_it_is(base: Base, tmp_path: Path) -> None:
    plain_peft(base, tmp_path / "plain")
    (tmp_path / "plain" / "README.md").write_text("---\nlicense: mit\n---\n")
    (tmp_path / "plain" / "chat_template.jinja").write_text("{{ messages }}")
    config = json.loads((tmp_path / "plain" / "adapter_config.json").read_text())
    assert config["base_model_name_or_path"] == str(base.folder)  # what peft writes for a model loaded from a folder
    card = from_peft(tmp_path / "plain", tmp_path / "ours", name="mine", language=["swh_Latn"], base=base)
    config = json.loads((tmp_path / "ours" / "adapter_config.json").read_text())
    assert config["base_model_name_or_path"] == "kauli/debug-text"
    assert (card.language, card.licence, card.exceptions, card.base.sha256) == (["sw"], "mit", [], base.sha256)
    assert card.method["rank"] == 4
    assert sorted(path.name for path in (tmp_path / "ours").iterdir()) == [
        "README.md", "adapter_config.json", "adapter_model.safetensors", "card.json",
    ]  # fmt: skip


def test_a_stated_other_base_needs_a_word(base: Base, tmp_path: Path) -> None:
    plain_peft(base, tmp_path / "plain")
    edit_config(tmp_path / "plain", base_model_name_or_path="someone/else")
    with pytest.raises(UsageError, match=r"someone/else.*--accept-base"):
        from_peft(tmp_path / "plain", tmp_path / "ours", name="mine", language="sw", base=base)
    assert not (tmp_path / "ours").exists()
    card = from_peft(tmp_path / "plain", tmp_path / "ours", name="mine", language="sw", base=base, accept_base=True)
    assert "someone/else" in card.exceptions[0]


def test_an_adapter_of_another_base_does_not_pass_even_when_accepted(base: Base, tmp_path: Path) -> None:
    config = AutoConfig.from_pretrained(base.folder)
    config.hidden_size = 32
    narrow = AutoModelForCausalLM.from_config(config)  # type: ignore[no-untyped-call]
    narrow.save_pretrained(tmp_path / "narrow")
    plain_peft(dataclasses.replace(base, folder=tmp_path / "narrow"), tmp_path / "plain")
    arguments: dict[str, Any] = {"name": "mine", "language": "sw", "base": base}
    with pytest.raises(UsageError, match=r"states that it was made on .*narrow"):
        from_peft(tmp_path / "plain", tmp_path / "ours", **arguments)
    with pytest.raises(KauliError, match=r"was made for another base than debug-text: .*lora_.* is .*32"):
        from_peft(tmp_path / "plain", tmp_path / "ours", accept_base=True, **arguments)


def break_shape(tensors: dict[str, torch.Tensor]) -> None:
    key = next(key for key in tensors if "lora_A" in key)
    tensors[key] = torch.zeros(tensors[key].shape[0], 7)


def break_name(tensors: dict[str, torch.Tensor]) -> None:
    key = next(iter(tensors))
    tensors[key.replace("layers.0", "layers.9")] = tensors.pop(key)


def break_number(tensors: dict[str, torch.Tensor]) -> None:
    next(iter(tensors.values()))[0, 0] = float("nan")


@pytest.mark.parametrize(
    ("change", "message"),
    [(break_shape, "4 x 7, but debug-text needs"), (break_name, "is missing"), (break_number, "not finite")],
)
def test_tensors_that_do_not_fit_are_refused(base: Base, tmp_path: Path, change: Any, message: str) -> None:
    plain_peft(base, tmp_path / "plain")
    weights = tmp_path / "plain" / "adapter_model.safetensors"
    tensors = load_file(weights)
    change(tensors)
    save_file(tensors, weights)
    with pytest.raises(KauliError, match=message):
        from_peft(tmp_path / "plain", tmp_path / "ours", name="mine", language="sw", base=base)
    assert not (tmp_path / "ours").exists()


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (add_pickle, r"adapter_model\.bin is refused"),
        (lambda folder: torch.save({}, folder / "training_args.pt"), r"training_args\.pt is refused"),
        (truncate, "not a sound safetensors file"),
        (no_weights, "has no adapter_model.safetensors"),
        (lambda folder: edit_config(folder, auto_map={"a": "b"}), "auto_map"),
        (lambda folder: edit_config(folder, target_modules=["no_such_module"]), "does not fit debug-text"),
        (lambda folder: edit_config(folder, r=8), "was made for another base than|does not fit"),
        (lambda folder: edit_config(folder, init_lora_weights="pissa"), "changed base"),
        (lambda folder: edit_config(folder, peft_type="PROMPT_TUNING"), "LORA"),
    ],
)
def test_unfit_plain_folder_is_refused(base: Base, tmp_path: Path, damage: Any, message: str) -> None:
    plain_peft(base, tmp_path / "plain")
    damage(tmp_path / "plain")
    with pytest.raises(KauliError, match=message):
        from_peft(tmp_path / "plain", tmp_path / "ours", name="mine", language="sw", base=base)
    assert not (tmp_path / "ours").exists()


def test_untrained_adapter_is_told(base: Base, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    get_peft_model(load(base), LoraConfig(r=4, task_type="CAUSAL_LM")).save_pretrained(str(tmp_path / "plain"))
    from_peft(tmp_path / "plain", tmp_path / "ours", name="mine", language="sw", base=base)
    assert "is untrained" in capsys.readouterr().err


def test_import_of_an_unknown_language_or_name(base: Base, tmp_path: Path) -> None:
    plain_peft(base, tmp_path / "plain")
    with pytest.raises(UsageError, match="unknown language"):
        from_peft(tmp_path / "plain", tmp_path / "ours", name="mine", language="xx-not", base=base)
    with pytest.raises(UsageError, match="adapter name"):
        from_peft(tmp_path / "plain", tmp_path / "ours", name="../mine", language="sw", base=base)


def test_files_alone_need_no_card(folder: Path) -> None:
    (folder / "card.json").unlink()
    check_files(folder)


def test_an_ia3_adapter_of_plain_peft_is_taken_and_changes_answers(tmp_path: Path) -> None:
    base = find_base("debug")
    config = IA3Config(
        task_type="CAUSAL_LM", target_modules=["k_proj", "down_proj"], feedforward_modules=["down_proj"],
        init_ia3_weights=False,
    )  # fmt: skip
    torch.manual_seed(0)
    get_peft_model(AutoModelForCausalLM.from_pretrained(base.folder), config).save_pretrained(tmp_path / "plain")
    card = from_peft(tmp_path / "plain", tmp_path / "ours", name="text-sw", language="sw", base=base, accept_base=True)
    assert card.method["kind"] == "ia3"
    task = TextTask.load(base, device="cpu")
    task.add_adapter("ia3", tmp_path / "ours")
    row = [{"prompt": "hello", "text": "dunia"}]
    assert task.bits(row, "ia3") != task.bits(row, None)
