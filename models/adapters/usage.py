"""The section "Use" of a model card's page, one function a task (`kauli.models.tasks.Task.usage`)."""

from kauli.models.adapters.card import Card


def text_usage(card: Card) -> str:
    """For adapters of a language model."""
    return _language_model(card, f'kauli generate "..." --model {card.spec} --language {_language(card)}', "")


def translate_usage(card: Card) -> str:
    """For adapters that translate."""
    return _language_model(card, _translate(card), "")


def prompt_usage(card: Card) -> str:
    """For prompts that translate, without weights."""
    where = "There are no weights: the prompt is `translation.prompting` in `card.json`, and the base answers it."
    return f"## Use\n\nWith kauli:\n\n{fenced(_translate(card), 'sh')}\n\n{where}"


def describe_usage(card: Card) -> str:
    """For language models that take images, or images and audio."""
    command = f"kauli describe --image image.png --model {card.spec} --language {_language(card)}"
    return _language_model(card, command, " (text alone: `connector.safetensors`, which takes images, is kauli's)")


def align_usage(card: Card) -> str:
    """For projections into a shared space of images and texts."""
    return f"## Use\n\nWith kauli:\n\n{fenced(f'kauli eval {card.spec}', 'sh')}"


def head_usage(card: Card) -> str:
    """For classifiers of images."""
    body = '{"model": "' + card.spec + '", "input": "data:image/png;base64,..."}'
    return f"## Use\n\n`kauli serve`, then POST to `/v1/classify`:\n\n{fenced(body, 'json')}"


def transcribe_usage(card: Card) -> str:
    """For speech recognisers."""
    command = f"kauli transcribe clip.ogg --model {card.spec} --language {_language(card)}"
    ways = f"With kauli:\n\n{fenced(command, 'sh')}"
    if card.method.get("kind") == "lora":
        python = (
            "from peft import PeftModel\nfrom transformers import WhisperForConditionalGeneration\n\n"
            'folder = "..."  # of this page\n'
            f'base = WhisperForConditionalGeneration.from_pretrained("{card.base.reference}")\n'
            "model = PeftModel.from_pretrained(base, folder)"
        )
        padding = "with 30 s padding; it was trained on unpadded clips, which is also how kauli serves it"
        ways += f"\n\nWith plain PEFT on a Whisper ({padding}):\n\n{fenced(python, 'python')}"
    return f"## Use\n\n{ways}"


def speak_usage(card: Card) -> str:
    """For voices in a language."""
    command = f'kauli speak "..." --model {card.spec} --language {_language(card)} --out speech.mp3'
    return (
        f"## Use\n\nWith kauli:\n\n{fenced(command, 'sh')}\n\nThe voice is that of the base. Rows of the symbol table "
        "and the head for durations are in `voice.safetensors`, which plain PEFT does not read."
    )


def fenced(text: str, kind: str) -> str:
    """A code block whose fence is longer than any in `text`, so that no content can end it."""
    fence = "```"
    while fence in text:
        fence += "`"
    return f"{fence}{kind}\n{text.rstrip()}\n{fence}"


def _language(card: Card) -> str:
    return card.language[0] if card.language else "en"


def _translate(card: Card) -> str:
    targets = [target for _, target in card.translation.pairs] if card.translation else []
    target = next((one for one in targets if one in card.language), _language(card))
    return f'kauli translate "..." --model {card.spec} --to {target}'


def _language_model(card: Card, command: str, aside: str) -> str:
    if card.method.get("kind") == "full":
        title, load = "plain transformers", ""
        python = "model = AutoModelForCausalLM.from_pretrained(folder)"
    else:
        title, load = f"plain PEFT{aside}", "from peft import PeftModel\n"
        python = (
            f'base = AutoModelForCausalLM.from_pretrained("{card.base.reference}")\n'
            "model = PeftModel.from_pretrained(base, folder)"
        )
    template = ""
    if card.template:
        template = f"\n\nIt was trained with this chat template:\n\n{fenced(card.template, 'jinja')}"
    code = f'{load}from transformers import AutoModelForCausalLM\n\nfolder = "..."  # of this page\n{python}'
    ways = f"With kauli:\n\n{fenced(command, 'sh')}\n\nWith {title}:\n\n{fenced(code, 'python')}"
    return f"## Use\n\n{ways}{template}"
