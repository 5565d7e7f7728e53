"""Loops are told from speech in any script, and collapsed sets of transcripts from sound ones."""

import random

import pytest

from kauli.models.speech.loops import collapsed, looped

LOOPS = [
    "слон слон слон слон слон слон",
    "Слон, слон, слон, слон, Слон!",
    "ааааааааааааааааааа",
    "Ружовы фламінга. Ружовы фламінга. Ружовы фламінга.",
    "Гэта і і і і і і і і і і і і і і",
    "пілпілпілпілпілпіл",
    "пил бара жатат пил бара жатат пил бара жатат пил бара",
    "ооооооооооооо",
    "ዝሆን ዝሆን ዝሆን ዝሆን ዝሆን",
    "ሰው። ሰው። ሰው። ሰው። ሰው።",
    "እኔ ወደ ትምህርት ቤት እሄዳለሁ፣ እኔ ወደ ትምህርት ቤት እሄዳለሁ፣ እኔ ወደ ትምህርት ቤት እሄዳለሁ፣",
    "Thank you. Thank you. Thank you. Thank you. Thank you.",
    "I'm going to the the the the the the the the the the the",
    "2 2 2 2 2 2 2 2 2 2",
]
SPEECH = [
    "",
    " ",
    "...",
    "Слон.",
    "так так",
    "Так, так, так, я чую.",
    "Клоўн смяецца: ха-ха-ха-ха-ха!",
    "Аааа!",
    "Кап-кап-кап.",
    "Не, не, не, гэта не слон.",
    "Эне, бене, раба, квінтэр, фінтэр, жаба.",
    "Пил, пил, кайда барасың?",
    "ቀስ በቀስ እንቁላል በእግሩ ይሄዳል።",
    "ቶሎ ቶሎ ና",
    "ha ha ha, that was funny",
    "How much wood would a woodchuck chuck if a woodchuck could chuck wood?",
    "Row, row, row your boat, gently down the stream. Merrily, merrily, merrily, merrily, life is but a dream.",
    "1 000 000",
]
LETTERS = {
    "be": "абвгдеёжзійклмнопрстуўфхцчшыьэюя",
    "ka": "აბგდევზთიკლმნოპჟრსტუფქღყშჩცძწჭხჯჰ",
    "am": "ሀለሐመሠረሰሸቀበተቸነኘአከወዘየደጀገጠፈ",
    "en": "abcdefghijklmnopqrstuvwxyz",
}


@pytest.mark.parametrize("text", LOOPS)
def test_loops_are_found(text: str) -> None:
    assert looped(text)
    assert looped(text.upper())


@pytest.mark.parametrize("text", SPEECH)
def test_speech_is_no_loop(text: str) -> None:
    assert not looped(text)


def made_up(letters: str, count: int, words: int = 400) -> str:
    """`count` words, each drawn from a made-up vocabulary of `words` words of 2 to 7 letters."""
    chance = random.Random(0)
    vocabulary = ["".join(chance.choices(letters, k=chance.randint(2, 7))) for _ in range(words)]
    return " ".join(chance.choices(vocabulary, k=count))


@pytest.mark.parametrize("letters", LETTERS.values(), ids=LETTERS)
def test_long_speech_is_no_loop_and_one_with_a_loop_in_it_is(letters: str) -> None:
    speech = made_up(letters, 600)
    assert len(speech) > 2500
    assert not looped(speech)
    word = speech.split()[0]
    assert looped(f"{speech} {' '.join([word] * 200)} {speech}")
    assert looped(f"{speech} {' '.join([word] * 200)}")


@pytest.mark.parametrize("letters", LETTERS.values(), ids=LETTERS)
def test_few_words_over_and_over_in_any_order_are_a_loop(letters: str) -> None:
    assert looped(made_up(letters, 150, words=2))
    assert not looped(made_up(letters, 150, words=100))


RIGHT = ["Слон.", "Кот.", "Сабака.", "Дом.", "Ружовы фламінга.", "Мора.", "Лес.", "Куртка.", "Яблык.", "Бульба."]


def test_sound_transcripts_have_nothing_wrong() -> None:
    assert collapsed(RIGHT, RIGHT) is None
    assert collapsed(["слан"] * 5 + RIGHT[5:], RIGHT) is None  # five of ten is not more than half
    assert collapsed([], []) is None


def test_empty_transcripts_are_a_collapse_unless_the_references_are_empty() -> None:
    assert collapsed([""] * 5 + [" ..."] + RIGHT[6:], RIGHT) == "6 of 10 transcripts are empty"
    assert collapsed([""] * 5 + RIGHT[5:], RIGHT) is None
    assert collapsed([""] * 10, [""] * 10) is None


def test_one_transcript_for_all_is_a_collapse_unless_the_references_are_the_same() -> None:
    found = collapsed(["Дзякуй."] * 5 + ["дзякуй "] + RIGHT[6:], RIGHT)
    assert found == "6 of 10 transcripts are the same, and wrong: 'Дзякуй.'"
    assert collapsed(["Дзякуй"] * 10, ["Дзякуй!"] * 10) is None
    assert collapsed(["Дзякуй"] * 7, RIGHT[:7]) is None  # of so few it may be chance
    assert collapsed(["Дзякуй"] * 8, RIGHT[:8]) is not None


def test_more_than_a_tenth_of_loops_are_a_collapse_unless_the_references_have_them() -> None:
    loop = " ха" * 40
    assert collapsed([loop, *RIGHT[1:]], RIGHT) is None
    found = collapsed([loop, *RIGHT[1:9], loop], RIGHT)
    assert found == f"2 of 10 transcripts repeat without end, such as '{loop.strip()[:60]}'"
    assert collapsed([loop, *RIGHT[1:9], loop], [loop, *RIGHT[1:]]) is None


def test_every_transcript_needs_its_reference() -> None:
    with pytest.raises(ValueError, match="shorter"):
        collapsed(RIGHT, RIGHT[1:])
