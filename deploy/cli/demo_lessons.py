"""The trainings of `kauli demo`, in their order: recipe, figures, and how base and adapter are asked.

Questions go to the running service over HTTP, as any client would send them.
"""

import json
from base64 import b64decode, b64encode
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from kauli.models.errors import KauliError, UsageError, nearest
from kauli.models.media.image_format import media_type
from kauli.models.paths import kauli_home

GEMMA = "gemma-3-270m-q4"
_SHOWN = 6
"""Held-out examples that base and adapter are asked."""
_ANSWER_TOKENS = 32
_REMEMBERED = 200
"""Training pairs in the memory of the document that is translated."""
HEARING = "transcribe"
"""The lesson after which sentences are spoken."""
SPOKEN = {"sw": "Watoto wanacheza katika bustani karibu na mti.", "be": "Дзеці гуляюць у садзе каля старой ліпы."}
_LONGEST = 60  # characters of a text that fits into the table

Sample = dict[str, str]
"""Column -> text, `reference` and the answers of `base` and `adapter` among them."""


@dataclass(frozen=True)
class Client:
    """Sends questions to the service at `url`."""

    url: str

    def openai(self) -> Any:
        """The client of OpenAI."""
        from openai import DefaultHttpxClient, OpenAI

        # trust_env=False: requests to this machine's own service must not go through the environment's proxy
        http = DefaultHttpxClient(trust_env=False)
        return OpenAI(base_url=f"{self.url}/v1", api_key="none needed on loopback", http_client=http, max_retries=2)

    def chat(self, model: str, content: Any) -> str:
        """The greedy answer to one message."""
        found = self.openai().chat.completions.create(
            model=model, messages=[{"role": "user", "content": content}], max_tokens=_ANSWER_TOKENS, temperature=0
        )
        return found.choices[0].message.content or ""

    def transcribe(self, model: str, audio: bytes, language: str) -> str:
        """The transcript of an audio file, by the base where no adapter has the language."""
        text: str = (
            self.openai().audio.transcriptions.create(
                model=model, file=("clip.ogg", audio), language=language, extra_body={"allow_base": "true"}
            ).text
        )  # fmt: skip
        return text

    def classify(self, model: str, images: Sequence[bytes]) -> list[str]:
        """The likeliest class of each image."""
        body = {"model": model, "input": [data_uri(image) for image in images]}
        return [one["label"] for one in self.post("/v1/classify", body)["data"]]

    def post(self, path: str, body: dict[str, Any]) -> dict[str, Any]:
        """The JSON that a path answers. Raises KauliError for a status over 200."""
        found: dict[str, Any] = json.loads(self.bytes_of(path, body))
        return found

    def bytes_of(self, path: str, body: dict[str, Any]) -> bytes:
        """What a path answers. Raises KauliError for a status over 200."""
        import httpx

        with httpx.Client(trust_env=False, timeout=300) as client:
            response = client.post(f"{self.url}{path}", json=body)
        if response.status_code != 200:
            raise KauliError(f"the service refused {path}: {response.status_code} {response.text[:300]}")
        return response.content


def spoken_samples(client: Client) -> list[Sample]:
    """Sentences that the service speaks, and what it hears in them; the files are kept."""
    folder = kauli_home() / "demo"
    folder.mkdir(parents=True, exist_ok=True)
    found = []
    for tag, text in SPOKEN.items():
        body = {"model": "speak", "input": text, "language": tag, "response_format": "wav"}
        content = client.bytes_of("/v1/audio/speech", body)
        (folder / f"speech-{tag}.wav").write_bytes(content)
        found.append({"language": tag, "reference": text, "heard": client.transcribe("transcribe", content, tag)})
    return found


Ask = Callable[[Client, Any, str, str], list[Sample]]
"""(client, recipe, base, adapter) -> the answers to held-out examples of the recipe's data."""


@dataclass(frozen=True)
class Lesson:
    """One training of the demo."""

    name: str
    """As `--tasks` has it."""
    recipe: str
    what: str
    """What is learned, in words."""
    served: str
    """The service's task that asks for it."""
    worker: str
    """The worker whose base it takes."""
    ask: Ask
    figures: tuple[tuple[str, str], ...]
    """(metric, what it is measured on), with {generated} and {examples} filled in."""
    scored: int | None = None
    """Test rows that are measured, and answered: a quick look, `kauli eval` takes all."""
    generated: int = 12
    overrides: tuple[str, ...] = ()
    otherwise: str = ""
    """What to do about a result that is no better than its base."""


def lessons(tasks: Sequence[str], later: bool) -> list[Lesson]:
    """The first round, or the `later` ones; of `tasks` alone where some are named.

    Raises UsageError for a task that the demo does not have.
    """
    from kauli.models.bases.find import local_bases

    known = dict.fromkeys(lesson.name for lesson in (*FIRST, *LATER))
    for name in tasks:
        if name not in known:
            raise UsageError(f"--tasks: '{name}' is none of {', '.join(known)}.{nearest(name, known)}")
    first = [TEXT_GEMMA if one is TEXT and GEMMA in local_bases() else one for one in FIRST]
    return [lesson for lesson in (LATER if later else first) if not tasks or lesson.name in tasks]


def data_uri(image: bytes) -> str:
    """An image as OpenAI's `image_url` takes it."""
    return f"data:{media_type(image)};base64,{b64encode(image).decode()}"


def _transcripts(client: Client, recipe: Any, base: str, adapter: str) -> list[Sample]:
    from kauli.training.data.dataset import load_data
    from kauli.training.features.audio import audio_rows

    (tag,) = recipe.language
    dataset = load_data(recipe.data, recipe.language, recipe.data_options)
    whole = {row["id"] for row in audio_rows(dataset, "test", [tag], recipe.transcribe.max_chars_per_second).rows}
    rows = dataset.rows(split="test", languages=[tag], columns=["id", "group", "language", "text", "audio"])
    return [
        {"reference": row["text"]}
        | {name: client.transcribe(model, row["audio"], tag) for name, model in (("base", base), ("adapter", adapter))}
        for row in sorted((row for row in rows if row["id"] in whole), key=lambda row: str(row["id"]))[:_SHOWN]
    ]


def _classes(client: Client, recipe: Any, base: str, adapter: str) -> list[Sample]:
    """The base has no part in it: without examples it has no classes. The images are written for a look at them."""
    rows = _images(recipe)
    folder = kauli_home() / "demo" / "images"
    folder.mkdir(parents=True, exist_ok=True)
    names = [f"{number}.{media_type(bytes(row['image'])).split('/')[1]}" for number, row in enumerate(rows, start=1)]
    for name, row in zip(names, rows, strict=True):
        (folder / name).write_bytes(bytes(row["image"]))
    found = client.classify(adapter, [bytes(row["image"]) for row in rows])
    return [
        {"image": str((folder / name).relative_to(kauli_home())), "reference": row["text"], "adapter": label}
        for name, row, label in zip(names, rows, found, strict=True)
    ]


def _document(client: Client, recipe: Any, base: str, adapter: str) -> list[Sample]:
    """A small PO file of held-out strings, translated with a memory of training pairs; the file is kept for a look."""
    from kauli.models.text.translation import translation_prompt
    from kauli.training.data.dataset import load_data
    from kauli.training.evaluation.rows import choose
    from kauli.training.features.translations import pair_rows

    (tag,) = recipe.language
    dataset = load_data(recipe.data, recipe.language, recipe.data_options)
    short = [row for row in pair_rows(dataset, "test", [tag]) if max(len(row["input"]), len(row["text"])) <= _LONGEST]
    rows = choose(short, _SHOWN, ("source",))
    known = choose(pair_rows(dataset, "train", [tag]), _REMEMBERED, ("source",))
    languages = {"source": rows[0]["input_language"], "target": tag}
    pairs = [{"source": row["input"], "target": row["text"]} for row in known]
    client.post("/v1/memory", {"memory": "demo", "pairs": pairs, **languages})
    texts = [row["input"] for row in rows] + [known[0]["input"]]  # the last one is in the memory
    quoted = [json.dumps(text, ensure_ascii=False) for text in texts]
    content = "".join(f'\nmsgid {text}\nmsgstr ""\n' for text in quoted)
    document = f'msgid ""\nmsgstr "Content-Type: text/plain; charset=UTF-8\\n"\n{content}'.encode()
    body = {"name": "demo.po", "content": b64encode(document).decode()}
    found = client.post("/v1/translate", {"document": body, "memory": "demo", "model": adapter, **languages})
    folder = kauli_home() / "demo"
    folder.mkdir(parents=True, exist_ok=True)
    (folder / f"demo.{tag}.po").write_bytes(b64decode(found["document"]["content"]))
    return [
        {
            "text": text, "mark": one["mark"], "reference": reference, "adapter": one["text"],
            "base": client.chat(base, translation_prompt(text, languages["source"], tag, recipe.prompting)),
        }
        for text, one, reference in zip(
            texts, found["segments"], [*(row["text"] for row in rows), known[0]["text"]], strict=True
        )
    ]  # fmt: skip


def _answers(client: Client, recipe: Any, base: str, adapter: str) -> list[Sample]:
    from kauli.training.data.dataset import load_data
    from kauli.training.evaluation.rows import choose

    dataset = load_data(recipe.data, recipe.language, recipe.data_options)
    rows = dataset.rows(split="test", languages=list(recipe.language))
    short = [row for row in rows if row["prompt"] and max(len(row["prompt"]), len(row["text"])) <= _LONGEST]
    return [
        {"prompt": row["prompt"], "reference": row["text"]}
        | {name: client.chat(model, row["prompt"]) for name, model in (("base", base), ("adapter", adapter))}
        for row in choose(short, _SHOWN, ("source",))
    ]


def _descriptions(client: Client, recipe: Any, base: str, adapter: str) -> list[Sample]:
    """The base has no part in it: it sees no images."""
    return [
        {"language": row["language"], "reference": row["text"], "adapter": client.chat(adapter, _shown(row))}
        for row in _images(recipe)
    ]


def _shown(row: dict[str, Any]) -> list[dict[str, Any]]:
    image = {"type": "image_url", "image_url": {"url": data_uri(bytes(row["image"]))}}
    return [image, {"type": "text", "text": row["prompt"]}]


def _images(recipe: Any) -> list[dict[str, Any]]:
    from kauli.training.data.dataset import load_data
    from kauli.training.evaluation.rows import choose
    from kauli.training.features.images import image_rows

    prompt = recipe.describe.prompt if "describe" in type(recipe).model_fields else None
    dataset = load_data(recipe.data, recipe.language, recipe.data_options)
    return choose(image_rows(dataset, "test", recipe.language, prompt), _SHOWN)


_CHRF, _BITS = ("chrf", "{generated} held-out prompts"), ("bits_per_byte", "{examples} held-out texts")
_ENGLISH_ONLY = (
    "Its base knows English alone and is there to try the steps; for this language take Gemma: "
    f"kauli fetch {GEMMA} --accept-terms; kauli train text-sw-gemma"
)


def _text(recipe: str, what: str, otherwise: str = _ENGLISH_ONLY) -> Lesson:
    return Lesson("text", recipe, what, "text", "text", _answers, (_CHRF, _BITS), scored=120, otherwise=otherwise)


TEXT = _text("text-sw", "Swahili text")
TEXT_GEMMA = _text("text-sw-gemma", "Swahili text", "Give it more time: kauli train text-sw-gemma")
FIRST = (
    Lesson(
        "transcribe", "transcribe-be", "Belarusian speech", "transcribe", "audio", _transcripts,
        (("cer", "{examples} held-out clips"),), scored=24, otherwise="Give it more time: kauli train transcribe-be",
        overrides=("transcribe.language_model=null",),  # whose weights take minutes to choose
    ),
    Lesson(
        "head", "head-topics", "images in eleven topics from five examples of each", "classify", "image", _classes,
        (("accuracy", "{examples} held-out images"),),
        otherwise="Give it more examples: kauli train head-topics --set method.shots=20",
    ),
    TEXT,
)  # fmt: skip
LATER = (
    Lesson(
        "translate", "translate-sw", "English to Swahili and back, and a PO file with a memory", "translate", "text",
        _document, (("chrf_pp", "{generated} held-out pairs"),), scored=24,
        overrides=("base=smollm2-135m-q4",), otherwise=_ENGLISH_ONLY.replace("text-sw-gemma", "translate-sw"),
    ),
    Lesson(
        "describe", "describe-multi", "images described in English and Swahili", "describe", "text", _descriptions,
        (("chrf", "{generated} held-out images"), ("bits_per_byte", "{examples} held-out descriptions")), scored=120,
        otherwise="Give it more time: kauli train describe-multi",
    ),
    _text("text-am", "Amharic text"),
    _text("text-be", "Belarusian text"),
    _text("text-ky", "Kyrgyz text"),
)  # fmt: skip
"""Those that run while the service is up already; they take the bases of the first round."""
