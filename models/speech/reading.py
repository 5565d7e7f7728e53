"""Text as a voice reads it: sentences of symbols, by eSpeak's pronunciation or by letters, with the place of each word.

Numbers, dates and abbreviations are read as eSpeak's rules for the language read them; a voice that reads letters does
not read digits. In a text, `[word](/ipa/)` gives a pronunciation and `[pause:0.5s]` a silence.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cache
from typing import Any

import regex

from kauli.models.errors import KauliError, UsageError
from kauli.models.languages import check_tag, display_name, nfc, script_share, scripts
from kauli.models.speech.espeak import espeak, espeak_languages, espeak_voice
from kauli.models.speech.sounds import Symbols

LONGEST_PAUSE = 10.0
"""Seconds of a `[pause:...]`."""
BETWEEN_SENTENCES, BETWEEN_PARAGRAPHS = 0.2, 0.5
"""Seconds of silence after a sentence, beside what the voice itself is silent."""
_LONGEST = 200  # characters of a sentence that is read at once: attention costs their square
PRONOUNCED = regex.compile(r"\[[^\]\[]+\]\(/[^/)]+/\)")
"""A word with its pronunciation."""
_MARKUP = regex.compile(r"\[pause:(?P<pause>\d+(?:\.\d+)?)s\]|\[(?P<word>[^\]\[]+)\]\(/(?P<ipa>[^/)]+)/\)")
_UNIT = regex.compile(r"\S+")
# Marks around a word, apart from those that belong to it, such as a minus or a currency
_AROUND = regex.compile(r"(?V1)^(?P<before>[\p{P}--[%&@#*\-−]]*)(?P<core>.*?)(?P<after>[\p{P}--[%&@#*]]*)$")
_BREAK = regex.compile(r"[,;:.!?…،؛؟。！？、，；：।॥።፣፤፥፦፧۔։՝՞՜–—]")
_PARAGRAPH = regex.compile(r"\n\s*\n")


@dataclass(frozen=True)
class SpokenWord:
    """A word of a sentence, and its symbols."""

    text: str
    begin: int
    end: int


@dataclass(frozen=True)
class Sentence:
    """What is synthesised at once."""

    text: str
    symbols: str
    words: tuple[SpokenWord, ...]
    pause: float = 0.0
    """Seconds of silence after it."""


@dataclass(frozen=True)
class Reading:
    """A text by its sentences."""

    sentences: tuple[Sentence, ...]
    unread: tuple[str, ...] = ()
    """Letters and sounds that are left out: of scripts that the language does not use, or that the voice lacks."""


@dataclass(frozen=True)
class _Unit:
    """A word as it is written, what eSpeak is given of it, and the mark that follows."""

    text: str
    core: str
    mark: str
    ipa: str | None = None


def read(text: str, language: str, symbols: Symbols, lexicon: Mapping[str, str] | None = None) -> Reading:
    """The sentences of a text in a language; `lexicon` has the IPA of words, whatever their case.

    Raises UsageError for a language without a voice of eSpeak, a text of which nothing can be read, a pause that is too
    long and a pronunciation that is no IPA.
    """
    language, text = check_tag(language), nfc(text)
    if not text.strip():
        raise UsageError("the text is empty")
    own = {nfc(word).casefold(): symbols.exactly(ipa) for word, ipa in (lexicon or {}).items()}
    voice = _voice(language, symbols) if symbols.phonemes else ""
    unread: dict[str, None] = {}
    chunks: list[tuple[list[_Unit], str, float]] = []
    for sentence, pronounced, pause in _sentences(text, language):
        for part in _parts(sentence):
            units = _units(part, pronounced, own, language, symbols, unread)
            chunks.append((units, part, 0.0))
        if chunks:
            chunks[-1] = (*chunks[-1][:2], chunks[-1][2] + pause)
    found = _Spoken(symbols, language, voice, unread).sentences(chunks)
    sentences: list[Sentence] = []
    for one in found:
        if one.words:
            sentences.append(one)
        elif sentences:  # only marks: what follows waits for as long
            sentences[-1] = replace(sentences[-1], pause=sentences[-1].pause + one.pause)
    if not sentences:
        raise UsageError(_nothing(language, symbols, tuple(unread)))
    return Reading(tuple(sentences), tuple(unread))


def _voice(language: str, symbols: Symbols) -> str:
    """eSpeak's voice whose sounds are asked for: the one that the model was trained on, where it fits."""
    found = espeak_voice(language)
    return symbols.espeak if symbols.espeak and symbols.native(language) else found


def _nothing(language: str, symbols: Symbols, unread: Sequence[str]) -> str:
    if not symbols.phonemes:
        return f"the text has no letter that the voice reads. It reads: {''.join(sorted(symbols.numbers))}"
    written = ", ".join(sorted(scripts(language)))
    text = f"the text has nothing to read in {display_name(language)}, which is written in the script {written}"
    if not unread:
        return f"{text}: it has no word"
    letters = "".join(unread)
    fitting = [tag for tag in espeak_languages() if script_share(letters, tag) > 0.5]
    advice = f". Languages that write them: {', '.join(fitting)}" if fitting else ""
    return f"{text}: it has the letters {letters[:40]}{advice}"


def _sentences(text: str, language: str) -> list[tuple[str, dict[str, str], float]]:
    """(sentence, the pronunciations that are given in it, seconds of silence after it)."""
    import sentencex

    found: list[tuple[str, dict[str, str], float]] = []
    for at, paragraph in enumerate(_PARAGRAPH.split(text)):
        if at and found:
            found[-1] = (*found[-1][:2], max(found[-1][2], BETWEEN_PARAGRAPHS))
        begin = 0
        pieces: list[tuple[str, float | None]] = []
        given: dict[str, str] = {}
        plain = ""
        for match in _MARKUP.finditer(paragraph):
            plain += paragraph[begin : match.start()]
            begin = match.end()
            if match["pause"] is not None:
                pieces.append((plain, _pause(match["pause"])))
                plain = ""
            else:
                given[nfc(match["word"]).strip().casefold()] = match["ipa"]
                plain += match["word"]
        pieces.append((plain + paragraph[begin:], None))
        for piece, pause in pieces:
            own = [one.strip() for one in sentencex.segment(language.partition("-")[0], piece) if one.strip()]
            found += [(one, given, BETWEEN_SENTENCES) for one in own]
            if pause is not None:
                if not found:
                    found.append(("", given, 0.0))
                found[-1] = (*found[-1][:2], pause)
    return found


def _pause(seconds: str) -> float:
    if float(seconds) > LONGEST_PAUSE:
        raise UsageError(f"[pause:{seconds}s] is too long: {LONGEST_PAUSE:g}s at most")
    return float(seconds)


def _parts(sentence: str) -> list[str]:
    """A sentence in parts that are not too long, cut at marks if possible, else between words."""
    parts = []
    while len(sentence) > _LONGEST:
        head = sentence[:_LONGEST]
        marks = [found.end() for found in _BREAK.finditer(head) if found.end() > _LONGEST // 3]
        spaces = [found.end() for found in regex.finditer(r"\s", head)]
        end = marks[-1] if marks else spaces[-1] if spaces else _LONGEST
        parts.append(sentence[:end].strip())
        sentence = sentence[end:].strip()
    return [*parts, sentence]


def _units(
    sentence: str, given: Mapping[str, str], lexicon: Mapping[str, str], language: str, symbols: Symbols,
    unread: dict[str, None],
) -> list[_Unit]:  # fmt: skip
    """The words of a sentence; letters that are not read are left out and noted in `unread`."""
    units: list[_Unit] = []
    for match in _UNIT.finditer(sentence):
        around = _AROUND.match(match[0])
        assert around is not None  # it fits any text
        core = around["core"]
        kept = _readable(core, language, symbols)
        unread.update(dict.fromkeys(letter for letter in core if letter.isalnum() and letter not in kept))
        mark = next((found for sign in around["after"] if (found := symbols.mark(sign))), "")
        if mark == "." and match.end() < len(sentence):  # of an abbreviation
            mark = ""
        if around["before"] and units and not units[-1].mark:  # a bracket opens
            opening = next((found for sign in around["before"] if (found := symbols.mark(sign))), "")
            units[-1] = replace(units[-1], mark=opening)
        word = core.casefold()
        ipa = symbols.exactly(given[word]) if word in given else lexicon.get(word)
        units.append(_Unit(match[0], kept, mark, ipa))
    return units


def _readable(core: str, language: str, symbols: Symbols) -> str:
    """The characters that are read: eSpeak knows the language's own script, and names Latin letters and symbols."""
    if not symbols.phonemes:
        known = {*symbols.numbers}
        return "".join(one for one in core if (one.lower() if symbols.lower else one) in known)
    return _foreign(language).sub("", core)


def without_foreign(text: str, language: str) -> str:
    """A text with a space for each letter of a script that the language does not use, Latin apart."""
    return _foreign(language).sub(" ", text)


@cache
def _foreign(language: str) -> "regex.Pattern[str]":
    own = "".join(rf"\p{{Script={name}}}" for name in sorted({*scripts(language), "Latin"}))
    return regex.compile(rf"(?V1)[\p{{L}}--[{own}\p{{Script=Inherited}}\p{{Script=Common}}]]")


class _Spoken:
    """Units by their symbols."""

    def __init__(self, symbols: Symbols, language: str, voice: str, unread: dict[str, None]) -> None:
        """Sounds that no symbol of the voice is near are noted in `unread`."""
        self._symbols, self._language, self._voice, self._unread = symbols, language, voice, unread

    def sentences(self, chunks: Sequence[tuple[list[_Unit], str, float]]) -> list[Sentence]:
        """Each chunk as a sentence."""
        if not self._symbols.phonemes:
            return [self._lettered(*chunk) for chunk in chunks]
        runs = [run for units, _, _ in chunks for run in _runs(units)]
        asked = [" ".join(units[at].core for at in run) for units, run in runs]
        sounds = self._phonemes(asked)
        self._unread.update(dict.fromkeys(self._symbols.unmapped("".join(sounds), self._language)))
        heard = dict(zip(map(id, (run for _, run in runs)), sounds, strict=True))
        mixed = [(units, run) for units, run in runs if len(heard[id(run)].split()) != len(run)]
        alone = iter(self._phonemes([units[at].core for units, run in mixed for at in run]))
        apart = {id(run): _divided([next(alone) for _ in run], heard[id(run)]) for _, run in mixed}
        runs_of = iter(runs)
        found = []
        for units, text, pause in chunks:
            pieces: list[list[tuple[str, bool]]] = [[(unit.ipa, True)] if unit.ipa else [] for unit in units]
            for _ in _runs(units):
                _, run = next(runs_of)
                words = apart.get(id(run)) or [(one, True) for one in heard[id(run)].split()]
                for at, (ipa, spaced) in zip(run, words, strict=True):
                    pieces[at] = [(self._symbols.sounds(ipa, self._language), spaced)]
            found.append(self._joined(units, pieces, text, pause))
        return found

    def _joined(
        self, units: Sequence[_Unit], pieces: Sequence[list[tuple[str, bool]]], text: str, pause: float
    ) -> Sentence:
        symbols, words = "", []
        for unit, own in zip(units, pieces, strict=True):
            sounds, spaced = own[0] if own else ("", True)
            if symbols and spaced and sounds.strip():
                symbols += " "
            begin = len(symbols)
            symbols += sounds
            if sounds.strip():
                words.append(SpokenWord(unit.text, begin, len(symbols)))
            if unit.mark and symbols and symbols[-1] not in ".,;:!?":
                symbols += unit.mark
        return Sentence(text, symbols.strip(), tuple(words), pause)

    def _lettered(self, units: Sequence[_Unit], text: str, pause: float) -> Sentence:
        pieces = [[(self._symbols.letters(unit.core), True)] for unit in units]
        return self._joined(units, pieces, text, pause)

    def _phonemes(self, texts: Sequence[str]) -> list[str]:
        """Of each text; one at which eSpeak fails is asked for word by word, and what fails then is silent."""
        if not texts:
            return []
        try:
            return espeak().phonemes(texts, self._voice)
        except KauliError:
            if len(texts) == 1 and len(texts[0].split()) < 2:
                return [""]
        if len(texts) > 1:
            return [one for text in texts for one in self._phonemes([text])]
        return [" ".join(one for word in texts[0].split() for one in self._phonemes([word]))]


def _runs(units: Sequence[_Unit]) -> list[tuple[Sequence[_Unit], list[int]]]:
    """The places of words that eSpeak reads together: up to a mark, or to a word whose pronunciation is given."""
    runs: list[list[int]] = [[]]
    for at, unit in enumerate(units):
        if unit.core.strip() and unit.ipa is None:
            runs[-1].append(at)
        if unit.mark or unit.ipa is not None:
            runs.append([])
    return [(units, run) for run in runs if run]


def _divided(alone: Sequence[str], together: str) -> list[tuple[str, bool]]:
    """Sounds that were read together, divided among their words, whose sounds alone are known: (sounds, spaced)."""
    from rapidfuzz.distance import Levenshtein

    source = ["".join(one.split()) for one in alone]
    target = "".join(together.split())
    spaces, place = set(), 0
    for group in together.split():
        spaces.add(place)
        place += len(group)
    steps = Levenshtein.opcodes("".join(source), target)
    found, begin, length = list[tuple[str, bool]](), 0, 0
    for at, one in enumerate(source):
        length += len(one)
        end = len(target) if at == len(source) - 1 else _placed(length, steps)
        words = "".join(" " * (place in spaces and place > begin) + target[place] for place in range(begin, end))
        found.append((words, begin in spaces))
        begin = max(begin, end)
    return found


def _placed(place: int, steps: Any) -> int:
    """Where a place of one text is in the other."""
    found = 0
    for step in steps:
        if step.src_start <= place <= step.src_end:
            found = step.dest_start + min(place - step.src_start, step.dest_end - step.dest_start)
            if place < step.src_end:
                break
    return found
