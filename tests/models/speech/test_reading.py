"""Text as symbols: every language of eSpeak by sounds that the voice knows, words in their places, marks and pauses."""

import re
import time
from contextlib import suppress
from html import unescape
from itertools import pairwise
from pathlib import Path

import langcodes
import pytest

from kauli.models.bases.find import fetch_base
from kauli.models.bases.packages import fetch_package
from kauli.models.errors import KauliError, UsageError
from kauli.models.speech.espeak import espeak, espeak_languages, espeak_voice
from kauli.models.speech.reading import read
from kauli.models.speech.sounds import Symbols
from kauli.models.text.detection import _TEXTS

ENGLISH = "abdefhijklmnopstuvwxzæðŋɐɑɔəɚɛɜɡɪɹɾʃʊʌʒʔˈˌː̩̃θᵻ !,.:;?"
VOICE = Symbols({one: at for at, one in enumerate("_^$" + ENGLISH + "rɣ")}, frozenset(ENGLISH), True, "en-us")
LETTERS = Symbols({one: at for at, one in enumerate("|abcdehilmnorstuyz' -")}, frozenset("abc"), False)


def symbols_of(text: str, language: str, voice: Symbols = VOICE) -> list[str]:
    return [one.symbols for one in read(text, language, voice).sentences]


def test_known_answers() -> None:
    assert symbols_of("Hello world!", "en") == ["həlˈoʊ wˈɜːld!"]
    assert symbols_of("Habari za asubuhi, rafiki?", "sw") == ["hɑːbˈɑːɹiː zɑː ˌɑːsuːbˈuːhiː, ɹɑːfˈiːkiː?"]
    assert symbols_of("жыта", "be") == ["ʒˈᵻta"]  # the sounds ʐ and ɨ are not English
    assert symbols_of("Бул жаңы үй.", "ky") == ["bˈuːl dʒɑŋˈᵻ ˈuj."]  # its own notation, not the IPA
    assert "tʃ" in symbols_of("ናቸው።", "am")[0]


def test_every_word_knows_its_symbols() -> None:
    [sentence] = read("Of the people, by the people.", "en", VOICE).sentences
    found = {one.text: sentence.symbols[one.begin : one.end] for one in sentence.words}
    assert found == {"Of": "ʌv", "the": "ðə", "people,": "pˈiːpəl", "by": "baɪ", "people.": "pˈiːpəl"}
    assert sentence.symbols.startswith("ʌvðə")  # which are spoken as one
    [sentence] = read("Mama ana 25 (au 26) leo.", "sw", VOICE).sentences
    assert [one.text for one in sentence.words] == ["Mama", "ana", "25", "(au", "26)", "leo."]
    places = [(one.begin, one.end) for one in sentence.words]
    assert all(one < other for one, other in places)
    assert all(before[1] <= after[0] for before, after in pairwise(places))


def test_sentences_end_at_their_marks_in_any_script() -> None:
    assert len(symbols_of("Dr. Smith is here. He waits!", "en")) == 2
    assert len(symbols_of("ሰዎች ሁሉ ነጻ ናቸው። ሰላም።", "am")) == 2
    assert [one[-1] for one in symbols_of("Хто там? Гэта я! Так.", "be")] == ["?", "!", "."]
    long = "neno jingine la maneno mengi " * 40
    parts = symbols_of(long, "sw")
    assert len(parts) > 4
    assert max(map(len, parts)) < 300


def test_markup_gives_sounds_and_pauses() -> None:
    reading = read("A [tomato](/təmˈɑːtəʊ/) [pause:1.5s] is red.\n\nIt is.", "en", VOICE)
    assert [one.pause for one in reading.sentences] == [1.5, 0.5, 0.2]
    assert "təmˈɑːtəʊ" in reading.sentences[0].symbols
    lexicon = {"Tomato": "təmˈɑːtəʊ"}
    assert "təmˈɑːtəʊ" in read("TOMATO soup", "en", VOICE, lexicon).sentences[0].symbols
    assert "ɹˈʌt" in read("x [rat](/rˈʌt/)", "en", VOICE).sentences[0].symbols  # by the nearest sounds
    for text, words in (
        ("[pause:11s] a", r"\[pause:11s\] is too long: 10s at most"), ("[a](/Ж/)", "'Ж' in /Ж/ is no sound of the"),
        ("", "the text is empty"), (" \n ", "the text is empty"), ("...", "the text has nothing to read in English"),
    ):  # fmt: skip
        with pytest.raises(UsageError, match=words):
            read(text, "en", VOICE)


def test_what_is_not_read_is_told() -> None:
    reading = read("слова 你好 мова", "be", VOICE)
    assert reading.unread == ("你", "好")
    assert [one.text for one in reading.sentences[0].words] == ["слова", "мова"]
    with pytest.raises(
        UsageError,
        match=r"which is written in the script Latin: it has the letters 你好. Languages .* ja, ko, yue, zh",
    ):
        read("你好", "sw", VOICE)
    with pytest.raises(UsageError, match=r"eSpeak has no voice for Yoruba \(yo\)"):
        read("Báwo ni", "yo", VOICE)


def test_a_voice_that_reads_letters_is_given_letters() -> None:
    reading = read("Habari, DUNIA 5!", "sw", LETTERS)
    assert reading.sentences[0].symbols == "habari dunia"
    assert reading.unread == ("5",)
    assert LETTERS.tokens("ab") == [0, 1, 0, 2, 0]
    with pytest.raises(UsageError, match="the text has no letter that the voice reads"):
        read("你好", "sw", LETTERS)


@pytest.mark.parametrize("text", ["a" * 5000, "( " * 2000, "-- " * 3000, "1" * 3000, "🙂" * 500, "a." * 1500])
def test_odd_texts_end_soon(text: str) -> None:
    began = time.monotonic()
    with suppress(UsageError):
        read(text, "en", VOICE)
    assert time.monotonic() - began < 20


@pytest.mark.weights
def test_no_language_of_espeak_has_a_sound_without_a_symbol() -> None:
    """By the Universal Declaration of Human Rights, in each language that has both."""
    base = fetch_base("piper-vits")
    voice = Symbols.read(base.folder, base.name)
    folder = Path(fetch_package(_TEXTS), "package", "declaration")
    seen = 0
    for language in espeak_languages():
        code = langcodes.Language.get(language).to_alpha3()
        texts = sorted(path for path in folder.iterdir() if re.split(r"[._-]", path.name)[0] in (code, language))
        if not texts:
            continue
        plain = " ".join(unescape(re.sub(r"<[^>]+>", " ", texts[0].read_text("utf-8"))).split())[:3000]
        pieces = re.split(r"(?<=[.;:!?։።।၊။])", plain)
        for piece in pieces:
            try:
                [ipa] = espeak().phonemes([piece[:300]], espeak_voice(language))
            except KauliError:  # it crashes at some texts of Burmese and Greenlandic
                continue
            assert not voice.unmapped(ipa, language), (language, piece)
            if ipa:
                assert set(voice.sounds(ipa, language)) <= voice.trained, (language, piece)
                seen += 1
    assert seen > 1000
