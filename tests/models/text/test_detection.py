"""The language of a text, with the Declarations of the pinned package."""

import pytest

from kauli.models.errors import UsageError
from kauli.models.text.detection import detect

pytestmark = pytest.mark.weights

SENTENCES = {
    "am": "ልጆቹ ከቤት ውጭ ኳስ ይጫወታሉ።",
    "ar": "يلعب الأطفال بالكرة خارج المنزل.",
    "be": "Дзеці гуляюць у мяч каля дома.",
    "de": "Die Kinder spielen vor dem Haus mit dem Ball.",
    "el": "Τα παιδιά παίζουν μπάλα έξω από το σπίτι.",
    "en": "The children are playing with a ball outside the house.",
    "fi": "Lapset pelaavat palloa talon ulkopuolella.",
    "fr": "Les enfants jouent au ballon devant la maison.",
    "ka": "ბავშვები სახლის გარეთ ბურთს თამაშობენ.",
    "ru": "Дети играют в мяч возле дома.",
    "sw": "Watoto wanacheza mpira nje ya nyumba.",
    "yo": "Àwọn ọmọdé ń gbá bọ́ọ̀lù níta ilé.",
}


@pytest.mark.parametrize("tag", SENTENCES)
def test_a_sentence_is_in_its_language(tag: str) -> None:
    best = detect(SENTENCES[tag], among=SENTENCES)
    assert best[0][0] == tag
    assert sum(share for _, share in best) <= 1 + 1e-9
    assert [share for _, share in best] == sorted((share for _, share in best), reverse=True)


def test_only_languages_of_the_script_and_of_the_choice_are_found() -> None:
    assert [tag for tag, _ in detect(SENTENCES["am"], among=["en", "am", "sw"])] == ["am"]
    assert detect(SENTENCES["am"], among=["en", "sw"]) == []
    assert detect("12:30, 100 %", among=SENTENCES) == []
    assert detect("", among=SENTENCES) == []
    with pytest.raises(UsageError, match="unknown language 'english'"):
        detect("hello", among=["english"])
