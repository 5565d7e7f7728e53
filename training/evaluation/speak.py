"""A voice measured: how well a recogniser understands it, how clean it sounds, how near it is to recordings.

The base is the same voice with the nearest sounds that it was trained on. The baselines are eSpeak, the recordings
themselves (what the judge makes of a person), and their copies: recordings that went through the posterior encoder and
the decoder, which is as good as an adapter can learn. A judge's loop counts as many errors as the text has letters.
"""

import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import regex

from kauli.models.languages import nfc
from kauli.models.media.decode import RATE
from kauli.models.media.encode import RATE as SPOKEN_RATE
from kauli.models.media.encode import encoded
from kauli.models.media.resample import resampled
from kauli.models.requests import SpeechRequest
from kauli.models.speech.speak import ESPEAK, Job
from kauli.models.speech.vits_adapter import read_settings, write_settings
from kauli.models.speech.vits_model import Latent, sound
from kauli.training.data.dataset import Dataset
from kauli.training.evaluation.acoustics import Dnsmos, distortion, melody_error
from kauli.training.evaluation.charts import spectrograms
from kauli.training.evaluation.intervals import difference
from kauli.training.evaluation.judges import Judge, understood
from kauli.training.evaluation.request import ADAPTER, MAX_CHARS_PER_SECOND, EvalRequest
from kauli.training.evaluation.results import EvalResult, Sample
from kauli.training.evaluation.rows import by_language, choose, source_of
from kauli.training.evaluation.scorers import FINISH, Row, clean, sentence_chrf, tally
from kauli.training.evaluation.systems import BASE, Answering, Systems
from kauli.training.features.audio import AudioRows, audio_rows
from kauli.training.features.voices import Listener, trimmed
from kauli.training.posterior import posterior_of

RECORDING, COPY = "recording", "copy"
JUDGED = 60
"""Recorded validation texts, at most, by which an adapter is promoted; and others, that nobody recorded."""
NOISES = (0.0, 0.3, 0.5, 0.667)
"""Spreads of the sound of which an adapter gets the best."""
CHOOSING = 24
"""Recorded validation texts, at most, by which it is chosen; and others, that nobody recorded."""
MOST_WORSE = 0.3
"""Of DNSMOS: an adapter that sounds less clean than its base by more is not promoted."""
_SHOWN = 12
_SENTENCE = regex.compile(r"\p{L}[\p{L}\p{M}\s,'’.!?-]{8,98}\S")  # without digits and markup


def evaluate_speak(request: EvalRequest) -> EvalResult:
    """Evaluate a voice adapter beside its base on `request.limit` texts of a split that were recorded.

    Raises:
        UsageError: no audio in the split.
        KauliError: a damaged adapter, or one of another base.
    """
    found = spoken_rows(request)
    rows = choose(found.rows, request.limit if request.scored is None else min(request.limit, request.scored))
    systems = Systems(request, Answering("speak"), found.left_out)
    task = request.task("speak")
    listener = Listener(task.model, posterior_of(request.base))
    audio, factor = _spoken(task, rows)
    recordings = [trimmed(np.asarray(row["samples"])) for row in rows]
    audio |= {RECORDING: recordings, COPY: _copies(task, listener, recordings)}
    judge = Judge.load(request.judges[0], request.base_languages, request.registry)
    mos = listening(judge.name)
    heard = {name: judge.transcripts(clips, rows) for name, clips in audio.items()}
    costs = {name: judge.bits(clips, rows) for name, clips in audio.items()}
    for tag, kind, mine in by_language(rows):
        places = [at for at, row in enumerate(rows) if any(row is one for one in mine)]
        groups = [row["group"] for row in mine]
        texts = [clean(row["text"]) for row in mine]
        for name, clips in audio.items():
            scored: dict[str, list[Sequence[float]]] = {**understood(texts, [heard[name][at] for at in places], tag)}
            scored["listener_bits"] = [costs[name][at] for at in places]
            if mos is not None:
                scored["dnsmos"] = [(mos.overall(clips[at]), 1.0) for at in places]
            if name != RECORDING:
                scored["mcd"] = [distortion(clips[at], recordings[at]) for at in places]
                scored["f0_rmse"] = [melody_error(clips[at], recordings[at]) for at in places]
            if name in factor:
                scored["rtf"] = [factor[name][at] for at in places]
            systems.add(name, {tag: {kind + metric: tally(metric, groups, one) for metric, one in scored.items()}})
    systems.notes += [
        f"{judge.name} does not know {tag} and was asked for {request.base_languages[tag]}"
        for tag in request.tags if tag in request.base_languages
    ]  # fmt: skip
    systems.notes += [
        f"the judge of speech is {judge.name}: it makes errors with people too, see the row 'recording'",
        "the mel-cepstral distortion and the melody are those of two different readers: compare systems by them alone",
    ]
    _show(systems, rows, audio, heard)
    return systems.result(rows, len(rows))


def spoken_rows(request: EvalRequest) -> AudioRows:
    """The rows with audio and a text, each text once; UsageError, with the reasons, where there is none."""
    fastest = request.max_chars_per_second or MAX_CHARS_PER_SECOND
    found = audio_rows(request.dataset, request.split, request.tags, fastest)
    if not found.rows:
        raise request.nothing("recorded texts", found.left_out)
    return AudioRows(once(found.rows), found.left_out, found.letters)


def once(rows: Sequence[Row]) -> list[Any]:
    """The first row of each text: one word may be read for several images."""
    first = {(row["language"], nfc(row["text"]).casefold()): row for row in reversed(rows)}
    return [row for row in rows if row is first[row["language"], nfc(row["text"]).casefold()]]


def judges_of(request: EvalRequest) -> list[Judge]:
    """Those that listen. Raises UsageError for one that is not here."""
    return [Judge.load(name, request.base_languages, request.registry) for name in request.judges]


def listening(judge: str) -> Dnsmos | None:
    """What hears how clean speech is; None beside a debug judge, which needs no package."""
    return None if judge.startswith("debug") else Dnsmos()


def judged_rows(dataset: Dataset, tags: Sequence[str], recorded: Sequence[Row], most: int = JUDGED) -> list[Any]:
    """Validation rows whose texts tell how good an adapter is: `most` recorded ones, then as many that are not."""
    rows = choose(once(recorded), most)
    columns = ["id", "group", "text", "language", "audio"]
    known = {nfc(row["text"]).casefold() for row in recorded}
    others = [
        row
        for row in dataset.rows(split="validation", languages=tags, columns=columns)
        if row["text"] and not row["audio"] and _SENTENCE.fullmatch(row["text"])
        and nfc(row["text"]).casefold() not in known
    ]  # fmt: skip
    return rows + choose(once(others), most)


def choose_noise(served: Any, folder: Path, rows: Sequence[Row], judge: Judge) -> str:
    """Write into the adapter in `folder` with how much noise it speaks best; returns a sentence for the user.

    That is where the texts of these validation rows cost the judge the fewest bits.
    """
    settings, costs = read_settings(folder), dict[float, float]()
    for noise in NOISES:
        write_settings(folder, settings.model_copy(update={"noise": noise}))
        served.add_adapter(ADAPTER, folder)
        clips = [speak(served, row, ADAPTER)[0] for row in rows]
        served.remove_adapter(ADAPTER)
        bits, sizes = zip(*judge.bits(clips, rows), strict=True)
        costs[noise] = sum(bits) / sum(sizes)
    best = min(costs, key=lambda noise: costs[noise])
    write_settings(folder, settings.model_copy(update={"noise": best}))
    told = ", ".join(f"{noise:g}: {cost:.3f}" for noise, cost in costs.items())
    return f"Noise {best:g} was chosen on {len(rows)} validation texts, by their bits per byte to {judge.name}: {told}"


def worse_speech(served: Any, adapter: str, rows: Sequence[Row], judges: Sequence[Judge]) -> str | None:
    """Why an adapter's speech is not better than its base's on these rows, as the end of a sentence; None where it is.

    Every judge has to understand it better: fewer errors of sounds, with a 95 % interval over texts; and it has to
    sound as clean.
    """
    clips = {key: [speak(served, row, key)[0] for row in rows] for key in (adapter, None)}
    for judge in judges:
        errors = []
        for own in clips.values():
            scored = [
                understood([clean(row["text"])], [text], row["language"])["phoneme_error"][0]
                for row, text in zip(rows, judge.transcripts(own, rows), strict=True)
            ]
            errors.append(np.array(scored))
        apart = difference(errors[0], errors[1], FINISH["ratio"])
        if not apart.high < 0:
            return (
                f"{judge.name} does not understand it better than its base on {len(rows)} validation texts: phoneme "
                f"error {apart.value:+.3f} [{apart.low:+.3f}, {apart.high:+.3f}]"
            )
    mos = listening(judges[0].name)
    if mos is not None:
        mine, base = (float(np.mean([mos.overall(clip) for clip in own])) for own in clips.values())
        if mine < base - MOST_WORSE:
            return f"its speech sounds less clean than its base's: DNSMOS {mine:.2f}, base {base:.2f}"
    return None


def speak(task: Any, row: Row, adapter: str | None, voice: str | None = None) -> tuple[Any, float]:
    """A row's text as speech (n,) at 16 kHz, trimmed as recordings are, and the seconds that it took to make."""
    began = time.perf_counter()
    request = SpeechRequest(row["text"], row["language"], voice)
    reading, tag = task.read(request, adapter)
    jobs = [Job(one, request, tag, at, adapter) for at, one in enumerate(reading.sentences)]
    parts = [made.samples for _, made in sorted(task.speak(jobs), key=lambda pair: pair[0])]
    took = time.perf_counter() - began
    return trimmed(resampled(parts, SPOKEN_RATE, RATE)), took


def _spoken(task: Any, rows: Sequence[Row]) -> tuple[dict[str, list[Any]], dict[str, list[tuple[float, float]]]]:
    """The clips of adapter, base and eSpeak, and (seconds to make, seconds) of each of the first two."""
    clips, factor = dict[str, list[Any]](), dict[str, list[tuple[float, float]]]()
    for name, adapter, voice in ((ADAPTER, ADAPTER, None), (BASE, None, None), ("espeak", None, ESPEAK.id)):
        made = [speak(task, row, adapter, voice) for row in rows]
        clips[name] = [samples for samples, _ in made]
        if voice is None:
            factor[name] = [(took, len(samples) / RATE) for samples, took in made]
    return clips, factor


def _copies(task: Any, listener: Listener, recordings: Sequence[Any]) -> list[Any]:
    """Recordings through the posterior encoder and the decoder."""
    rate, found = int(task.model.config.sampling_rate), []
    for clip in recordings:
        ((means, _),) = listener.latents([clip])
        samples = sound(task.model, Latent(means, means.new_zeros(0))).float().cpu().numpy()
        found.append(trimmed(resampled([samples], rate, RATE)))
    return found


def _show(
    systems: Systems, rows: Sequence[Row], audio: Mapping[str, Sequence[Any]], heard: Mapping[str, Sequence[str]]
) -> None:  # fmt: skip
    for at, row in enumerate(rows):
        text = clean(row["text"])
        heard_of = {name: audio[name][at] for name in (ADAPTER, BASE, RECORDING, COPY)} if at < _SHOWN else {}
        players = tuple(
            (name, encoded(resampled([samples], RATE, SPOKEN_RATE), "mp3", f"{name} of an evaluation"))
            for name, samples in heard_of.items()
        )
        systems.samples.append(
            Sample(
                id=row["id"], language=row["language"], source=source_of(row), prompt="(what the judge heard)",
                reference=text, base=heard[BASE][at], adapter=heard[ADAPTER][at],
                chrf=sentence_chrf(heard[ADAPTER][at], text), audio=players,
                drawing=spectrograms(heard_of).uri if heard_of else "",
            )
        )  # fmt: skip
