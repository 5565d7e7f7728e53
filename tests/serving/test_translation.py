"""Translations: marks, checks and the second try, what a prompt shows, documents, tenants."""

import asyncio
from collections.abc import Callable, Coroutine
from pathlib import Path
from typing import Any, TypeVar

import pytest

from kauli.models.adapters.card import Prompting, PromptPair
from kauli.models.adapters.registry import Registry
from kauli.models.bases.find import find_base
from kauli.models.documents.document import DocumentOptions
from kauli.models.documents.table import open_document
from kauli.models.errors import UsageError
from kauli.models.text.memory import Confirmed
from kauli.models.text.translation import Example
from kauli.serving.events import Refused
from kauli.serving.routing import UnknownLanguage
from kauli.serving.translation import Draft, Translator, count_marks
from support.text_adapters import publish_prompt, publish_translator
from support.translations import Answering, backends

T = TypeVar("T")
LAST = "\n\nEnglish: "


def asked(prompt: str) -> str:
    """The text that a prompt asks for."""
    return prompt.rpartition(LAST)[2].removesuffix("\nAmharic:")


@pytest.fixture(scope="module")
def storage(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("storage")
    publish_translator(folder, "translate-am", "am", find_base("debug"))
    return folder


def run(waiting: Coroutine[Any, Any, T]) -> T:
    return asyncio.run(waiting)


async def translator(
    storage: Path, answer: Callable[[str], str], pairs: list[Confirmed] | None = None, tenant: str = "local"
) -> tuple[Translator, Answering]:
    found, worker = backends(storage, answer)
    if pairs:
        await found.memory().delete(tenant, "m")
        added = await found.memory().add(tenant, "m", pairs)
        assert isinstance(added, list), added
    return await Translator.of(found, "translate", "en", "am", ["m"] if pairs else [], tenant), worker


def drafted(
    storage: Path, text: str, answer: Callable[[str], str], *pairs: Confirmed, **options: Any
) -> tuple[Draft, Answering]:
    async def ask() -> tuple[Draft, Answering]:
        found, worker = await translator(storage, answer, list(pairs))
        return await found.draft(text, **options), worker

    return run(ask())


def pair(source: str, target: str, kind: Any = "pair") -> Confirmed:
    return Confirmed(source, target, "en", "am", "", kind)


def test_what_the_memory_has_is_not_generated(storage: Path) -> None:
    draft, worker = drafted(storage, "  Open %s\n", lambda prompt: "x", pair("Open %s", "%s ክፈት"))
    assert draft == Draft("  %s ክፈት\n", "exact", (), 100.0, similar=Example("Open %s", "%s ክፈት"))
    assert worker.asked == []


def test_a_memory_s_pair_that_lost_a_placeholder_is_not_taken(storage: Path) -> None:
    draft, worker = drafted(storage, "Open %s", lambda prompt: "%s ክ", pair("Open %s", "ክፈት"))
    assert (draft.text, draft.mark) == ("%s ክ", "fuzzy")
    assert len(worker.asked) == 1


def test_similar_pairs_stand_in_the_prompt_and_say_how_alike_they_are(storage: Path) -> None:
    draft, worker = drafted(storage, "Open the file", asked, pair("Open the files", "ፋይሎች ክፈት"), pair("zzz", "q"))
    assert "English: Open the files\nAmharic:\nፋይሎች ክፈት" in worker.asked[0]
    assert (draft.text, draft.mark, draft.examples) == ("Open the file", "fuzzy", 2)
    assert draft.score == pytest.approx(100 * 13 / 14)
    draft, _ = drafted(storage, "Something else", asked, pair("Open the files", "ፋይሎች ክፈት"))
    assert draft.mark == "drafted"
    draft, worker = drafted(storage, "Alone", asked)
    assert (draft.mark, draft.score, draft.examples) == ("drafted", None, 0)
    assert worker.asked[0] == "Translate from English into Amharic.\n\nEnglish: Alone\nAmharic:"


def test_a_prompt_without_weights_answers_by_its_own_words_where_no_other_adapter_does(tmp_path: Path) -> None:
    base = find_base("debug")
    pair = PromptPair(source="red", target="ቀይ", source_language="en", target_language="am")
    prompting = Prompting(instruction="Into {target_language}:", pair="{source}\n{target}", fixed=[pair])
    publish_translator(tmp_path, "translate-am", "am", base)
    publish_prompt(tmp_path, "translate-prompt", "am", base, prompting)  # the newer one
    found, worker = backends(tmp_path, lambda prompt: "x")

    async def ask(model: str, source: str, target: str) -> str | None:
        one = await Translator.of(found, model, source, target)
        await one.draft("blue car")
        return one.route.adapter

    assert run(ask("translate", "en", "am")) == "translate-am@1"
    assert run(ask("translate-prompt", "en", "am")) == run(ask("translate-prompt", "am", "en")) == "translate-prompt@1"
    assert worker.asked[1:] == ["Into Amharic:\n\nred\nቀይ\n\nblue car", "Into English:\n\nቀይ\nred\n\nblue car"]
    Registry(str(tmp_path)).set_alias("translate-prompt", 1, "prod")
    found, _ = backends(tmp_path, lambda prompt: "x")  # which has not looked yet
    assert run(ask("translate", "en", "am")) == "translate-prompt@1"


def test_what_has_no_letters_is_left_as_it_is(storage: Path) -> None:
    draft, worker = drafted(storage, " 12 % ", asked)
    assert (draft.text, draft.mark, worker.asked) == (" 12 % ", "exact", [])


def test_a_lost_placeholder_is_asked_for_again_and_marked_where_it_stays_lost(storage: Path) -> None:
    draft, worker = drafted(storage, "Open %s", lambda prompt: "ክፈት %s" if "%s = %s" in prompt else "ክፈት")
    assert (draft.text, draft.mark) == ("ክፈት %s", "drafted")
    assert "Use these terms: %s = %s." in worker.asked[1]
    draft, worker = drafted(storage, "Open %s", lambda prompt: "ክፈት")
    assert (draft.mark, draft.reasons) == ("red", ("%s is missing",))
    assert len(worker.asked) == 2


def test_the_glossary_is_prompted_and_checked(storage: Path) -> None:
    term = pair("file", "ፋይል", "term")
    draft, worker = drafted(storage, "Open the file", lambda prompt: "ፋይል ክፈት", term)
    assert "Use these terms: file = ፋይል." in worker.asked[0]
    assert draft.mark == "drafted"
    draft, worker = drafted(storage, "Open the file", lambda prompt: "ሰነድ", term)
    assert (draft.mark, draft.reasons) == ("red", ("the term 'ፋይል' for 'file' is missing",))
    assert len(worker.requests) == 2
    assert worker.requests[1].temperature > 0  # the same greedy question would have the same answer


@pytest.mark.parametrize(
    ("answer", "reason"), [("", "no translation came"), ("ሀ" * 9, "it has 9 characters, its place 5")]
)
def test_empty_and_too_long_answers_are_red(storage: Path, answer: str, reason: str) -> None:
    draft, _ = drafted(storage, "Open", lambda prompt: answer, limit=5)
    assert (draft.mark, draft.reasons) == ("red", (reason,))


PO = b"""msgid ""
msgstr "Content-Type: text/plain; charset=UTF-8\\n"

msgid "Open %s"
msgstr ""

msgid "Same"
msgstr ""

msgctxt "again"
msgid "Same"
msgstr ""

msgid "Kept"
msgstr "\xe1\x88\x80"

#, fuzzy
msgid "A draft"
msgstr "\xe1\x88\x81"
"""


@pytest.mark.parametrize("only_missing", [False, True])
def test_a_document(storage: Path, only_missing: bool) -> None:
    document = open_document(PO, "a.po", DocumentOptions("en", "am"))
    told: list[str] = []

    async def translate() -> tuple[dict[str, Draft], Answering]:
        found, worker = await translator(storage, lambda prompt: "ሰ" if "Same" in prompt else "ሌላ")
        drafts = await found.document(
            document, only_missing=only_missing, advance=lambda segment, draft: told.append(segment.id),
            done={"1:": Draft("%s ክፈት", "exact")},
        )  # fmt: skip
        return drafts, worker

    drafts, worker = run(translate())
    assert list(drafts) == ["1:", "2:", "3:"] + ["5:"] * (not only_missing)
    assert sorted(told) == sorted(drafts)
    assert len(worker.asked) == 2 - only_missing  # the same text once, and what was done before never
    assert count_marks(drafts) == {"exact": 1, "fuzzy": 0, "drafted": 3 - only_missing, "red": 0}
    written = document.write().decode()
    assert 'msgid "Open %s"\nmsgstr "%s ክፈት"' in written
    assert written.count("#, fuzzy") == 3
    assert 'msgid "Kept"\nmsgstr "ሀ"' in written
    assert ('msgstr "ሁ"' in written) == only_missing


def test_a_tenant_sees_its_own_memories_alone(storage: Path) -> None:
    async def translate() -> list[Any]:
        found, _ = backends(storage, asked)
        for tenant, target in (("a" * 16, "የሀ"), ("b" * 16, "የለ")):
            await found.memory().add(tenant, "shared", [pair("Open", target)])
        drafts = []
        for tenant in ("a" * 16, "b" * 16, "c" * 16):
            one = await Translator.of(found, "translate", "en", "am", ["shared"], tenant)
            try:
                drafts.append((await one.draft("Open")).text)
            except Refused as error:
                drafts.append(str(error))
        return drafts

    first, second, third = run(translate())
    assert (first, second) == ("የሀ", "የለ")
    assert "there is no memory 'shared'" in third


def test_an_addition_counts_at_the_next_text_and_a_deletion_too(storage: Path) -> None:
    async def translate() -> list[str]:
        found, _ = backends(storage, lambda prompt: "ሌላ")
        await found.memory().add("local", "fresh", [pair("x y", "z")])
        one = await Translator.of(found, "translate", "en", "am", ["fresh"])
        marks = [(await one.draft("Open")).mark]
        [id] = await found.memory().add("local", "fresh", [pair("Open", "ክፈት")])
        marks.append((await one.draft("Open")).mark)
        await found.memory().remove("local", "fresh", [id])
        return [*marks, (await one.draft("Open")).mark]

    assert run(translate()) == ["drafted", "exact", "drafted"]


def test_a_pair_of_languages_that_nothing_translates_names_those_that_are(storage: Path) -> None:
    async def of(source: str, target: str, model: str = "translate") -> str:
        found, _ = backends(storage, asked)
        return (await Translator.of(found, model, source, target)).route.model

    assert run(of("en", "am")) == run(of("am-ET", "en-GB")) == run(of("en", "am", "translate-am")) == "translate-am@1"
    with pytest.raises(UnknownLanguage, match=r"nothing translates 'en' to 'sw' here\. Served: en to am"):
        run(of("en", "sw"))
    with pytest.raises(UsageError, match="are the same language"):
        run(of("en", "eng"))
    with pytest.raises(UsageError, match="does not translate; use model 'translate'"):
        run(of("en", "am", "debug-text"))


def test_a_person_s_translation_counts_more_than_the_glossary(storage: Path) -> None:
    own = pair("Open the file", " ሰነዱን ክፈት ")
    draft, worker = drafted(storage, "Open the file", asked, own, pair("file", "ፋይል", "term"))
    assert (draft.text, draft.mark, worker.asked) == ("ሰነዱን ክፈት", "exact", [])


def test_the_glossary_is_not_looked_up_in_placeholders(storage: Path) -> None:
    draft, worker = drafted(storage, "Open %(file)s", lambda prompt: "ክፈት %(file)s", pair("file", "ፋይል", "term"))
    assert (draft.mark, len(worker.asked)) == ("drafted", 1)
    assert "Use these terms" not in worker.asked[0]


def test_what_has_several_translations_is_never_confirmed_by_a_memory(storage: Path) -> None:
    text = b'msgctxt "a"\nmsgid "Open"\nmsgstr ""\n\nmsgctxt "b"\nmsgid "Open"\nmsgstr ""\n\nmsgid "Car"\nmsgstr ""\n'
    document = open_document(text, "a.po", DocumentOptions("en", "am"))

    async def translate() -> dict[str, Draft]:
        found, _ = await translator(storage, asked, [pair("Open", "ክፈት"), pair("Car", "መኪና")])
        return await found.document(document)

    assert [one.mark for one in run(translate()).values()] == ["fuzzy", "fuzzy", "exact"]
    assert document.write().count(b"#, fuzzy") == 2


def test_a_pair_of_two_memories_is_one_example(storage: Path) -> None:
    async def translate() -> int:
        found, _ = backends(storage, asked)
        for name in ("one", "two"):
            await found.memory().add("local", name, [pair("Open the files", "ፋይሎች ክፈት")])
        one = await Translator.of(found, "translate", "en", "am", ["one", "two"])
        return (await one.draft("Open the file")).examples

    assert run(translate()) == 1


def test_a_document_that_cannot_hold_the_language_is_refused(storage: Path) -> None:
    document = open_document(b"One\n\nTwo", "a.txt", DocumentOptions(encoding="cp1252"))

    async def translate() -> None:
        found, _ = await translator(storage, lambda prompt: "ሀ")
        await found.document(document)

    with pytest.raises(UsageError, match="its encoding cp1252 has no 'ሀ'"):
        run(translate())
    assert document.write() == b"One\n\nTwo"


def test_the_memory_s_translation_stands_where_the_adapter_finds_it_likelier(storage: Path) -> None:
    async def ask(likelier: dict[str, float], text: str = "Open the file", *more: Confirmed) -> Draft:
        found, worker = await translator(storage, lambda prompt: "መልስ", [pair("Open the files", "ፋይሎች ክፈት"), *more])
        worker.likelier = likelier
        return await found.draft(text)

    draft = run(ask({"ፋይሎች ክፈት": 0.5}))
    assert (draft.text, draft.mark, draft.score) == ("ፋይሎች ክፈት", "fuzzy", pytest.approx(100 * 13 / 14))
    assert draft.reasons == (
        "the memory's translation of 'Open the files', which the adapter finds likelier than its own",
    )
    assert run(ask({"ፋይሎች ክፈት": 1.5})).text == run(ask({})).text == "መልስ"
    assert run(ask({"ፋይሎች ክፈት": 0.5}, "Open the file %s")).mark == "red"  # it has no placeholder
    term = pair("file", "ሰነድ", "term")
    assert "ፋይሎች ክፈት" not in run(ask({"ፋይሎች ክፈት": 0.5}, "Open the file", term)).text
