"""Odd recipes, overrides and settings files: taken as they are meant, or one error that names the value and what is
allowed.
"""

from pathlib import Path
from typing import Any

import pytest

from kauli.models.errors import UsageError
from kauli.serving.settings import ServeArgs, load_settings
from kauli.training.recipe_file import load_recipe

RECIPE = "name: mine\nbase: debug\nlanguage: sw\ndata: mine.csv\ntrain: {steps: 3}\n"


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    for name in ("KAULI_HOST", "KAULI_PORT", "KAULI_TASKS", "KAULI_BASES", "KAULI_API_KEYS", "KAULI_PROXY"):
        monkeypatch.delenv(name, raising=False)


def write(name: str, content: str | bytes) -> Path:
    Path(name).write_bytes(content.encode() if isinstance(content, str) else content)
    return Path(name)


@pytest.mark.parametrize(
    "content",
    [
        "\ufeff" + RECIPE,
        RECIPE.replace("\n", "\r\n"),
        "# ours\n---\n" + RECIPE,
        '{"name": "mine", "base": "debug", "language": ["sw"], "data": "mine.csv", "train": {"steps": 3}}',
        RECIPE.replace("steps: 3", "steps: '3'"),
        RECIPE.replace("language: sw", "language: [SW]"),
    ],
)
def test_recipes_that_are_taken(content: str) -> None:
    recipe = load_recipe(str(write("mine.yaml", content)))
    assert (recipe.name, recipe.language, recipe.data, recipe.train.steps) == ("mine", ("sw",), "mine.csv", 3)


@pytest.mark.parametrize(
    ("content", "words"),
    [
        ("", "mine.yaml holds no recipe: it must be a mapping with name, base and language"),
        ("- name: mine\n", "mine.yaml holds no recipe"),
        ("name: mine\n\tbase: debug\n", "mine.yaml is not YAML"),
        ("name: a: b\n", "mapping values are not allowed here"),
        (RECIPE + "---\n" + RECIPE, "expected a single document"),
        (RECIPE + "name: other\n", "mine.yaml is not YAML: the key 'name' is there twice"),
        (RECIPE.replace("{steps: 3}", "{steps: 3, steps: 4}"), "the key 'steps' is there twice"),
        (RECIPE.encode("utf-16"), "mine.yaml is not UTF-8 (byte 1): save it as UTF-8"),
        (b"\0\1\2", "special characters are not allowed"),
        (RECIPE + "x: !!python/object/apply:os.system [true]\n", "could not determine a constructor"),
        (RECIPE + "x: &x {y: *x}\n", "holds itself by an alias"),
        (RECIPE + "1: 2\n", "1: Keys should be strings (got 1)"),
        (RECIPE.replace("name: mine", "name: 2024-01-01"), "name: Input should be a valid string"),
        (RECIPE.replace("name: mine", "name:"), "name: Input should be a valid string (got None)"),
        (RECIPE.replace("data: ", "dataset: "), "unknown key 'dataset'. Did you mean 'data'?"),
        ('{"name": "mine"}', "'base' is missing.\n  'language' is missing."),
    ],
)
def test_recipes_that_are_refused(content: str | bytes, words: str) -> None:
    with pytest.raises(UsageError) as caught:
        load_recipe(str(write("mine.yaml", content)))
    assert words in str(caught.value)


@pytest.mark.parametrize("name", ["mine.yml", "", ".", "folder.yaml", "mine.json", "a\0b.yaml", "text_sw"])
def test_recipes_that_are_not_there(name: str) -> None:
    Path("folder.yaml").mkdir()
    with pytest.raises(UsageError, match=r"there is no recipe '.*Shipped: .*text-sw.*give the path of a .yaml file"):
        load_recipe(name)


@pytest.mark.parametrize(
    ("override", "key", "value"),
    [
        ("train.steps=1e3", "steps", 1000),
        ("train.steps=1_000", "steps", 1000),
        ("train.steps = 5", "steps", 5),
        ("train.steps=5 # five", "steps", 5),
        ("train.steps=", "steps", None),
        ("train.learning_rate=5E-4", "learning_rate", 5e-4),
        ("train.minutes=null", "minutes", None),
    ],
)
def test_overrides_that_are_taken(override: str, key: str, value: Any) -> None:
    assert getattr(load_recipe("text-sw", [override]).train, key) == value


@pytest.mark.parametrize(
    ("override", "words"),
    [
        ("train.steps", "--set takes key=value, not 'train.steps'; for example --set train.steps=100"),
        ("=5", "--set takes key=value"),
        ("train.steps=abc", "train.steps: Input should be a valid integer, unable to parse string as an integer (got"),
        ("train.steps=1.5", "got a number with a fractional part (got 1.5)"),
        ("train.steps=0", "greater than or equal to 1 (got 0)"),
        ("train.steps.x=5", "'steps' is not a section of a recipe"),
        ("train=5", "train: Input should be a valid dictionary"),
        ("train={steps: 5", "the value is not YAML"),
        ("Train.steps=5", "unknown key 'Train'. Did you mean 'train'?"),
        ("train.learning_rate=0,001", "unable to parse string as a number (got '0,001')"),
        ("train.learning_rate=inf", "train.learning_rate: Input should be a finite number (got 'inf')"),
        ("train.learning_rate=.nan", "train.learning_rate: Input should be a finite number (got nan)"),
        ("train.minutes=.inf", "train.minutes: Input should be a finite number"),
        ("name=a/b", "'a/b' is no adapter name: 1 to 64 characters of a-z, 0-9, '.', '_' and '-' are allowed"),
        ("name=Ñandú", "'Ñandú' is no adapter name"),
        ("language=sw;name=x", "unknown language 'sw;name=x': give a BCP-47 tag such as sw, am or be"),
        ("language=[sw, sw]", "a language is given twice in ['sw', 'sw']"),
        ("language=[]", "language: Tuple should have at least 1 item"),
        ("augment=5", "augment: Input should be a list, such as [a, b] (got 5)"),
        ("method.kind=LORA", "'method': no kind 'LORA' for this task. Allowed: lora, full"),
        ("task=transcript", "there is no task 'transcript'. Did you mean 'transcribe'?"),
        ("scale.gpu=maybe", "scale.gpu: Input should be a valid boolean"),
        ("scale.workers=0", "workers is a number from 1 up, or [min, max]"),
        ("data_options.encoding=utf9", "unknown encoding 'utf9': such as utf-8, utf-16, cp1252"),
    ],
)
def test_overrides_that_are_refused(override: str, words: str) -> None:
    with pytest.raises(UsageError) as caught:
        load_recipe("text-sw", [override])
    assert words in str(caught.value)


@pytest.mark.parametrize(
    ("content", "changed"),
    [
        ("", {}),
        ("# nothing\n", {}),
        ("\ufeffport: '8001'\r\n", {"port": 8001}),
        ("host: localhost\n", {"host": "localhost"}),
        ("host: ::1\n", {"host": "::1"}),
        ("tasks: [text]\n", {"tasks": ("text",)}),
    ],
)
def test_settings_that_are_taken(content: str, changed: dict[str, Any]) -> None:
    assert load_settings(write("mine.yaml", content)) == ServeArgs(**changed)


@pytest.mark.parametrize(
    ("content", "words"),
    [
        ("- 1\n", "mine.yaml must hold `key: value` lines"),
        ("port: 1\nport: 2\n", "the key 'port' is there twice"),
        ("text: {batch: 1, batch: 2}\n", "the key 'batch' is there twice"),
        ("text:\n\tbatch: 2\n", "mine.yaml is not readable YAML"),
        ("host: café\n".encode("latin-1"), "mine.yaml is not readable YAML"),
        ("port: http\n", "setting port='http': Input should be a valid integer"),
        ("port: 70000\n", "setting port=70000: Input should be less than or equal to 65535"),
        ("host: http://127.0.0.1\n", "setting host='http://127.0.0.1': give an address or the name of a host alone"),
        ("host: ''\n", "setting host='': give an address"),
        ("prot: 1\n", "unknown setting 'prot'. Did you mean 'port'?"),
        ("text: {bacth: 3}\n", "unknown setting 'text.bacth'. Did you mean 'batch'?"),
        ("tasks: text\n", "setting tasks='text': Input should be a list, such as [a, b]"),
        ("tasks: [tekst]\n", "task 'tekst' can't be served: use text, translate, describe"),
        ("text: {replicas: 2}\n", "setting text.replicas=2: Input should be a list"),
        ("text: {replicas: [3, 1]}\n", "replicas [3, 1]: give [fewest, most], both 1 or more"),
        ("deadline_s: .inf\n", "setting deadline_s=inf: Input should be a finite number"),
        (
            "audio: {guards: {logprob_threshold: .nan}}\n",
            "audio.guards.logprob_threshold=nan: Input should be a finite",
        ),
        ("max_body_bytes: 8MB\n", "setting max_body_bytes='8MB': Input should be a valid integer"),
        ("cors_origins: [a.example]\n", "'a.example' is no origin: write SCHEME://HOST"),
        ("key_hashes: [secret]\n", "set the keys themselves in KAULI_API_KEYS"),
        ("max_batch: 4\n", "the setting 'max_batch' is now 'text.batch': write text: {batch: 4}"),
    ],
)
def test_settings_that_are_refused(content: str | bytes, words: str) -> None:
    with pytest.raises(UsageError) as caught:
        load_settings(write("mine.yaml", content))
    assert words in str(caught.value)
