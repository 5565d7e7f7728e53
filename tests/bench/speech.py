"""How well speech is understood, beside people and eSpeak; and how fast it comes.

    python tests/bench/speech.py quality --language be --split test
    python tests/bench/speech.py likelihood --language sw --rewritten i=iː --pace 0.85
    python tests/bench/speech.py speed
    python tests/bench/speech.py watermark --split test
    python tests/bench/speech.py dialogue --text-base smollm2-135m-q4

quality: held-out captions with a recording, and held-out sentences, are spoken by eSpeak, by the base with eSpeak's
sounds as they are, and by the base with the nearest sounds that it was trained on. Each judge transcribes each clip:
the character error rate (letters and digits, small; of a clip 1 at most), the error rate of the sounds that eSpeak
reads in transcript and text, and the bits that the text costs the judge, which are less noisy. The recordings are
judged in the same way: they show what the judge costs; those too short for their text are left out. DNSMOS tells how
clean speech is, from 1 to 5. Choose by `--split validation`, with `--neighbour SOUND=SYMBOLS`.

likelihood: the bits that Whisper gives texts of the training split when it hears them spoken, with and without a
change; it is less noisy than the error rate, and was used to choose what models/speech/sounds.yaml says.

watermark: held-out texts in four languages, spoken by both voices, as mp3 and Opus: how many are found to be marked;
and how many recordings of people are.

dialogue: held-out recordings, joined to four seconds, are transcribed, answered by a base of text (32 tokens) and
spoken, in this process: seconds to the transcript, to the first speech and to the end.

speed: seconds to the first sentence, and seconds of speech in a second, of one text and of several at once.

mixed: eight sentences in a batch, each with an adapter of its own (random weights of the shape that speak-be has), in
turn with the same sentences by the base alone: how fast, as a ratio.
"""

import argparse
import statistics
import tempfile
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import regex
from results_file import update_section

from kauli.deploy.cli.terminal import table
from kauli.models.adapters.registry import Registry
from kauli.models.bases.find import find_base
from kauli.models.media.decode import RATE, DecodedAudio, decode_audio
from kauli.models.media.encode import RATE as SPOKEN_RATE
from kauli.models.media.encode import encoded
from kauli.models.media.resample import resampled
from kauli.models.paths import default_storage
from kauli.models.progress import note
from kauli.models.requests import SpeechRequest
from kauli.models.speech import sounds
from kauli.models.speech.reading import BETWEEN_SENTENCES
from kauli.models.speech.sounds import Symbols
from kauli.models.speech.speak import Job, SpeakTask
from kauli.models.speech.watermark import SHORTEST, THRESHOLD, watermark
from kauli.models.tasks import load_served
from kauli.serving.dialogue import Asked, Dialogue
from kauli.serving.local import Local
from kauli.serving.routing import Catalogue
from kauli.training.card import machine
from kauli.training.data.dataset import load_data
from kauli.training.data.groups import short_hash
from kauli.training.evaluation.acoustics import Dnsmos
from kauli.training.evaluation.intervals import difference, interval
from kauli.training.evaluation.judges import Judge, understood
from kauli.training.evaluation.request import MAX_CHARS_PER_SECOND
from kauli.training.evaluation.results import bracket
from kauli.training.evaluation.scorers import clean
from kauli.training.evaluation.speak import once
from kauli.training.features.audio import audio_rows
from kauli.training.features.voices import trimmed

_JUDGED = ("CER", "phoneme error", "bits a byte")
SENTENCES = {
    "be": "Дзеці гуляюць у садзе каля старой ліпы.", "sw": "Watoto wanacheza katika bustani karibu na mti.",
    "am": "ልጆቹ በአትክልቱ ስፍራ ከዛፉ አጠገብ እየተጫወቱ ነው።", "ky": "Балдар бакта эски дарактын жанында ойноп жүрүшөт.",
}  # fmt: skip


def plain(text: str) -> str:
    """Small letters and digits alone."""
    return " ".join(regex.sub(r"[^\p{L}\p{M}\p{N}\s]", "", text.lower()).split())


def rows_of(language: str, split: str, limit: int) -> tuple[list[dict[str, Any]], list[str]]:
    """Held-out captions with a recording, each text once, and sentences of the Declaration; none with a digit."""
    dataset = load_data("starter", [language])
    written = regex.compile(r"[\p{N}$€%]")
    recorded = audio_rows(dataset, split, [language], MAX_CHARS_PER_SECOND).rows
    clips = [row for row in once(recorded) if not written.search(row["text"]) and not row["synthetic"]]
    rows = dataset.rows(split=split, languages=[language], columns=["text", "source"])
    texts = [row["text"] for row in rows if row["source"] == "udhr" and row["text"]]
    sentences = dict.fromkeys(text for text in texts if 20 < len(text) <= 160 and not written.search(text))
    return clips[:limit], list(sentences)[:limit]


def spoken(
    task: SpeakTask, texts: Sequence[str], language: str, voice: str | None, rate: int = RATE,
    adapter: str | None = None,
) -> list[Any]:  # fmt: skip
    """The samples (n,) of each text, by default at 16 kHz."""
    found = []
    for at, text in enumerate(texts):
        request = SpeechRequest(text, language, voice, seed=at)
        reading, tag = task.read(request, adapter)
        jobs = [Job(one, request, tag, number, adapter) for number, one in enumerate(reading.sentences)]
        parts = [made.samples for _, made in sorted(task.speak(jobs), key=lambda pair: pair[0])]
        found.append(resampled(parts, SPOKEN_RATE, rate))
    return found


def read_by(task: SpeakTask, symbols: Symbols) -> None:
    """Have the base read by these symbols from now on."""
    task.symbols = task._read[None] = symbols


def quality(options: argparse.Namespace) -> str:
    """Print and return the table."""
    for change in options.neighbour:
        sound, _, near = change.partition("=")
        sounds._table()["neighbours"][sound] = near
    language = options.language
    clips, sentences = rows_of(language, options.split, options.limit)
    task: SpeakTask = load_served("speak", find_base(options.base, task="speak"))
    mapped, raw = task.symbols, Symbols(task.symbols.numbers, frozenset(task.symbols.numbers) - set("_^$"), True,
                                        task.symbols.espeak)  # fmt: skip
    mos = Dnsmos()
    if options.adapter:
        task.add_adapter(options.adapter, Registry(options.storage).fetch(options.adapter))
    lines, scored = [], dict[tuple[str, str, str], Any]()
    judges = [Judge.load(name, {}, Registry(options.storage)) for name in options.judges]
    for kind, texts in (("captions", [row["text"] for row in clips]), ("sentences", sentences)):
        audio: dict[str, list[Any]] = {}
        if kind == "captions":
            audio["recording"] = [row["samples"] for row in clips]
        audio["espeak"] = spoken(task, texts, language, "espeak")
        for name, symbols in (("as it is", raw), ("nearest", mapped)):
            read_by(task, symbols)
            audio[name] = spoken(task, texts, language, None)
        if options.adapter:
            audio[options.adapter] = spoken(task, texts, language, None, adapter=options.adapter)
        audio = {name: [trimmed(one) for one in samples] for name, samples in audio.items()}
        rows = [{"text": text, "language": language} for text in texts]
        for judge in judges:
            for name, samples in audio.items():
                note(f"{judge.name} hears {len(samples)} {kind} of {name}")
                found = understood([clean(text) for text in texts], judge.transcripts(samples, rows), language)
                scored[kind, name, judge.name] = tuple(
                    np.array(one, float)
                    for one in (found["round_trip_cer"], found["phoneme_error"], judge.bits(samples, rows))
                )
        heard = {name: statistics.mean(mos.overall(one) for one in samples) for name, samples in audio.items()}
        for judge in judges:
            for name in audio:
                own = [interval(sums, _rate) for sums in scored[kind, name, judge.name]]
                lines.append(
                    {"texts": f"{len(texts)} {kind}", "judge": judge.name, "speech": name,
                     **dict(zip(_JUDGED, map(_shown, own), strict=True)), "DNSMOS": f"{heard[name]:.2f}"}
                )  # fmt: skip
            pairs = [("nearest", "espeak"), ("nearest", "as it is")]
            pairs += [(options.adapter, "nearest"), (options.adapter, "espeak")] if options.adapter else []
            for mine, other in pairs:
                ours, theirs = (scored[kind, name, judge.name] for name in (mine, other))
                gaps = [difference(one, two, _rate) for one, two in zip(ours, theirs, strict=True)]
                lines.append(
                    {"texts": "", "judge": judge.name, "speech": f"{mine} - {other}",
                     **dict(zip(_JUDGED, map(_shown, gaps), strict=True)), "DNSMOS": ""}
                )  # fmt: skip
    columns = ("texts", "judge", "speech", *_JUDGED, "DNSMOS")
    print(table(lines, columns))
    head = (
        f"Held-out texts in {language} ({options.split}) spoken by {task.base.name}; 95 % intervals over texts; "
        f"{machine()}.\n\n"
    )
    return head + _markdown(lines, columns)


def likelihood(options: argparse.Namespace) -> str:
    """Print and return the table."""
    import torch

    language = options.language
    rows = load_data("starter", [language]).rows(split="train", languages=[language], columns=["text", "source"])
    found: dict[str, dict[str, str]] = {}
    for row in rows:
        if row["text"] and 10 < len(row["text"]) <= 110 and not regex.search(r"[\p{N}$€%]", row["text"]):
            found.setdefault(row["source"], {})[plain(row["text"])] = row["text"]
    share = options.limit // min(3, len(found))
    texts = [text for _, own in sorted(found.items()) for text in sorted(own.values(), key=short_hash)[:share]]
    texts = texts[: options.limit]
    task: SpeakTask = load_served("speak", find_base(options.base, task="speak"))
    judge = load_served("transcribe", find_base("whisper-base", task="transcribe"), dtype=torch.bfloat16)
    sums = []
    for changed in (False, True):
        if changed:
            table_ = sounds._table()
            table_["neighbours"].update(one.split("=") for one in options.neighbour)
            own = dict(one.split("=") for one in options.rewritten)
            table_["rewritten"][language] = table_["rewritten"].get(language, {}) | own
            given = {"pace": options.pace, "noise": options.noise}
            table_["foreign"] |= {key: value for key, value in given.items() if value is not None}
            read_by(task, Symbols.read(task.base.folder, task.base.name))
        audio = spoken(task, texts, language, None)
        rows_ = [{"samples": one, "text": plain(text), "language": language}
                 for one, text in zip(audio, texts, strict=True)]  # fmt: skip
        sums.append(
            np.array([one for at in range(0, len(rows_), 8) for one in judge.bits(rows_[at : at + 8], None)], float)
        )
    gap = difference(sums[1], sums[0], _rate)
    names = ("as it is", "changed")
    lines = [{"": name, "bits a byte": f"{_rate(one.sum(0)):.3f}"} for name, one in zip(names, sums, strict=True)]
    lines.append({"": "difference", "bits a byte": f"{gap.value:+.3f} [{gap.low:+.3f}, {gap.high:+.3f}]"})
    print(table(lines, tuple(lines[0])))
    return f"{len(texts)} training texts in {language}.\n\n" + _markdown(lines, tuple(lines[0]))


def speed(options: argparse.Namespace) -> str:
    """Print and return the table."""
    import torch

    task: SpeakTask = load_served("speak", find_base(options.base, task="speak"))
    lines = []
    for voices in (list(SENTENCES)[:1], list(SENTENCES)):
        firsts, rates = [], []
        for turn in range(options.rounds + 1):
            began = time.perf_counter()
            jobs = []
            for language in voices:
                request = SpeechRequest(SENTENCES[language], language, seed=turn)
                reading, tag = task.read(request)
                jobs += [Job(one, request, tag, number) for number, one in enumerate(reading.sentences)]
            times, seconds = [], 0.0
            for _, made in task.speak(jobs):
                times.append(time.perf_counter() - began)
                seconds += len(made.samples) / SPOKEN_RATE
            if turn:  # the first loads dictionaries and the watermark
                firsts.append(times)
                rates.append(seconds / times[-1])
        lines.append(
            {
                "texts at once": len(voices), "first of them, s": f"{statistics.median(one[0] for one in firsts):.2f}",
                "last of them, s": f"{statistics.median(one[-1] for one in firsts):.2f}",
                "speech a second, s": f"{statistics.median(rates):.1f} ({min(rates):.1f} to {max(rates):.1f})",
            }
        )  # fmt: skip
    columns = tuple(lines[0])
    print(table(lines, columns))
    head = f"Sentences of 6 to 8 words in be, sw, am and ky; {torch.get_num_threads()} threads; {machine()}.\n\n"
    return head + _markdown(lines, columns)


def marks(options: argparse.Namespace) -> str:
    """Print and return the table."""
    task: SpeakTask = load_served("speak", find_base(options.base, task="speak"))
    scores: dict[str, list[float]] = {}
    recorded = []
    for language in SENTENCES:
        clips, sentences = rows_of(language, options.split, options.limit)
        dataset = load_data("starter", [language])
        rows = dataset.rows(split=options.split, languages=[language], columns=["text", "source"])
        captions = [row["text"] for row in rows if row["source"] == "tuxpaint" and row["text"]]
        texts = ([row["text"] for row in clips] or captions)[: options.limit] + sentences
        for voice in (task.voices[0].id, "espeak"):
            note(f"{language}: {len(texts)} texts by {voice}")
            for text in texts:
                samples = spoken(task, [text], language, voice, rate=SPOKEN_RATE)[0]
                if len(samples) < (SHORTEST + BETWEEN_SENTENCES) * SPOKEN_RATE:
                    continue
                for form in ("mp3", "opus"):
                    clip = decode_audio(encoded(samples, form, "bench"))
                    scores.setdefault(form, []).append(watermark().score(clip.samples, RATE))
    for language in ("be", "ru"):
        columns = ["audio", "synthetic"]
        rows = [row for row in load_data("starter", [language]).rows(languages=[language], columns=columns)]
        recorded += [row["audio"] for row in rows if row["audio"] and not row["synthetic"]][:100]
    alarms = [watermark().score(decode_audio(clip).samples, RATE) for clip in recorded]
    lines = [
        {"audio": f"{len(found)} spoken texts as {form}", "marked": f"{np.mean(np.array(found) > THRESHOLD):.2%}",
         "least score": f"{min(found):.3f}", "greatest": f"{max(found):.3f}"}
        for form, found in [*scores.items(), ("recordings of people", alarms)]
    ]  # fmt: skip
    lines[-1]["audio"] = f"{len(alarms)} recordings of people"
    columns_ = tuple(lines[0])
    print(table(lines, columns_))
    head = f"Held-out texts ({options.split}) in {', '.join(SENTENCES)} by both voices; {machine()}.\n\n"
    return head + _markdown(lines, columns_)


def mixed(options: argparse.Namespace) -> str:
    """Print and return the table."""
    import torch

    from kauli.models.adapters.kinds.lora import Lora
    from kauli.models.speech.vits_training import TARGETS, TrainableVoice

    base = find_base(options.base, task="speak")
    task: SpeakTask = load_served("speak", base)
    text, count = SENTENCES["be"], 8
    with tempfile.TemporaryDirectory() as scratch:
        for seed in range(count):
            voice = TrainableVoice.load(base, device="cpu")
            voice.learn_sounds([(text, "be")], ["be"])
            torch.manual_seed(seed)
            voice.attach(Lora(rank=16, alpha=16, targets=TARGETS))
            assert voice._durations is not None
            with torch.no_grad():
                for name, parameter in voice.trained.named_parameters():
                    if "lora_B" in name:
                        parameter.normal_(std=1e-3)
                voice._durations.out.bias.fill_(0.6)  # about as long as the base's
            voice.save(Path(scratch) / str(seed))
            task.add_adapter(str(seed), Path(scratch) / str(seed))
    request = SpeechRequest(text, "be")
    rates: dict[str, list[float]] = {"base": [], "8 adapters": []}
    for turn in range(options.rounds + 1):
        for name, found in rates.items():
            jobs = []
            for at in range(count):
                key = None if name == "base" else str(at)
                [sentence] = task.read(request, key)[0].sentences
                jobs.append(Job(sentence, request, "be", at, key))
            began = time.perf_counter()
            seconds = sum(len(made.samples) for _, made in task.speak(jobs)) / SPOKEN_RATE
            if turn:
                found.append(seconds / (time.perf_counter() - began))
    ratios = [one / other for one, other in zip(rates["8 adapters"], rates["base"], strict=True)]
    lines = [
        {"batch of 8": name, "speech a second, s": f"{statistics.median(found):.1f}"} for name, found in rates.items()
    ]
    lines.append({"batch of 8": "ratio", "speech a second, s":
                  f"{statistics.median(ratios):.2f} ({min(ratios):.2f} to {max(ratios):.2f})"})  # fmt: skip
    columns = tuple(lines[0])
    print(table(lines, columns))
    head = f"{options.rounds} rounds in turn; {torch.get_num_threads()} threads; {machine()}.\n\n"
    return head + _markdown(lines, columns)


def dialogue(options: argparse.Namespace) -> str:
    """Print and return the table."""
    import torch

    clips, _ = rows_of(options.language, options.split, 200)
    samples = np.concatenate([row["samples"] for row in clips])
    length = 4 * RATE
    questions = [samples[at * length : (at + 1) * length] for at in range(min(options.rounds, len(samples) // length))]
    tasks = {"audio": ("transcribe", "whisper-base"), "text": ("text", options.text_base)}
    tasks["voice"] = ("speak", options.base)
    bases = {worker: [find_base(name, task=task)] for worker, (task, name) in tasks.items()}
    times = []
    with Local(options.storage) as local:
        for worker, [base] in bases.items():
            local.load(worker, base)
        local.catalogue = Catalogue(local.registry, bases)

        async def talk(question: Any) -> tuple[list[float], Dialogue]:
            began, found = time.perf_counter(), list[float]()
            told = Dialogue(Asked(options.language, max_tokens=32))
            async for part in told.events(local, DecodedAudio(question, len(question) / RATE)):
                if not found or (len(found) == 1 and not isinstance(part, str)):
                    found.append(time.perf_counter() - began)
            return [*found, time.perf_counter() - began], told

        for turn, question in enumerate([questions[0], *questions]):
            found, told = local.run(talk(question))
            note(f"{told.transcript} | {told.text} | {told.seconds:.1f} s, {told.routes}")
            if turn and len(found) == 3:  # the first loads adapters; an answer of marks alone is not spoken
                times.append(found)
    middle = [statistics.median(one[at] for one in times) for at in range(3)]
    worst = [max(one[at] for one in times) for at in range(3)]
    steps = ("transcript, s", "first speech, s", "end, s")
    lines = [
        {"": name} | {step: f"{one:.2f}" for step, one in zip(steps, found, strict=True)}
        for name, found in (("median", middle), ("slowest", worst))
    ]
    columns = tuple(lines[0])
    print(table(lines, columns))
    models = ", ".join(route.adapter or route.base for route in told.routes.values())
    threads = f"{torch.get_num_threads()} threads; {machine()}"
    head = f"{len(times)} recordings of 4 s in {options.language}; {models}; {threads}.\n\n"
    return head + _markdown(lines, columns)


def _rate(sums: Any) -> Any:
    return sums[..., 0] / sums[..., 1]


def _shown(found: Any) -> str:
    return f"{found.value:.3f} {bracket('cer', found)}"


def _markdown(rows: Sequence[Mapping[str, Any]], columns: Sequence[str]) -> str:
    lines = [f"| {' | '.join(columns)} |", "|" + " --- |" * len(columns)]
    return "\n".join([*lines, *(f"| {' | '.join(str(row[name]) for name in columns)} |" for row in rows)])


COMMANDS = {
    "quality": (quality, "How well speech is understood"), "likelihood": (likelihood, "What Whisper hears"),
    "speed": (speed, "How fast speech comes"), "watermark": (marks, "The mark in speech"),
    "dialogue": (dialogue, "From voice to voice"), "mixed": (mixed, "Adapters of voices in one batch"),
}  # fmt: skip
"""Command -> what it runs, and the title of its section."""


def main() -> None:
    """Run a measurement, and write its section of a file."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("command", choices=COMMANDS)
    parser.add_argument("--base", default="piper-vits")
    parser.add_argument("--language", default="be")
    parser.add_argument("--split", default="validation")
    parser.add_argument("--limit", type=int, default=60, help="captions, and sentences")
    parser.add_argument("--judges", nargs="+", default=["whisper-base"], help="bases or adapters that transcribe")
    parser.add_argument("--neighbour", action="append", default=[], help="SOUND=SYMBOLS, to try another one")
    parser.add_argument("--rewritten", action="append", default=[], help="as --neighbour, before it, for the language")
    parser.add_argument("--pace", type=float, help="of a language that is not the voice's own")
    parser.add_argument("--noise", type=float, help="the same")
    parser.add_argument("--adapter", help="for quality: NAME@VERSION of the task speak, to measure beside its base")
    parser.add_argument("--text-base", default="smollm2-135m-q4", help="for dialogue")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--storage", default=default_storage())
    parser.add_argument("--results", type=Path, help="a file such as RESULTS.md, whose section is written anew")
    options = parser.parse_args()
    run, title = COMMANDS[options.command]
    found = run(options)
    if options.results is not None:
        section = f"voice-{options.command}" + (f"-{options.language}" if options.command == "quality" else "")
        section += "-adapter" if options.adapter else ""
        update_section(options.results, section, f"### {title}\n\n{found}")


if __name__ == "__main__":
    main()
