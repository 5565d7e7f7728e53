"""How a voice speaks a language that is not its own, and one that it can't speak."""

import pytest

from kauli.models.bases.find import find_base
from kauli.models.errors import UsageError
from kauli.models.requests import SpeechRequest
from kauli.models.speech.reading import Sentence
from kauli.models.speech.sounds import foreign
from kauli.models.speech.speak import Job, SpeakTask


def test_another_language_is_spoken_slower_and_with_less_noise() -> None:
    task = SpeakTask.load(find_base("debug", task="speak"), device="cpu")
    sentence = Sentence("habari", "habˈaɾi", ())
    own, other = (task._utterance(Job(sentence, SpeechRequest("habari", tag), tag)) for tag in ("en", "sw"))
    assert (own.speed, own.noise) == (1.0, None)
    assert (other.speed, other.noise) == (foreign()["pace"], foreign()["noise"]) == (0.85, 0.333)
    assert task.symbols.sounds("ˈi u", "en") == "ˈi u"
    assert task.symbols.sounds("ˈi u", "be") == "ˈiː uː"


def test_a_language_that_a_voice_can_not_speak_is_refused() -> None:
    task = SpeakTask.load(find_base("debug", task="speak"), device="cpu")
    for voice in task.voices:
        with pytest.raises(UsageError, match="eSpeak has no voice for Yoruba"):
            task.read(SpeechRequest("Báwo ni", "yo", voice.id))
