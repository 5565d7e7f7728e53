"""CTC models: losses as transformers computes them, learning, adapters of three kinds in one batch, MMS's own files."""

import asyncio
import json
import shutil
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import soundfile
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM, Wav2Vec2Config, Wav2Vec2ForCTC

from kauli.models.adapters.folder import check_files
from kauli.models.adapters.kinds.attention_adapter import AttentionAdapter
from kauli.models.adapters.kinds.full import Full
from kauli.models.adapters.kinds.lora import Lora
from kauli.models.adapters.registry import Registry
from kauli.models.bases.find import Base, find_base
from kauli.models.errors import KauliError, UsageError
from kauli.models.media.decode import RATE
from kauli.models.requests import TranscriptionRequest
from kauli.models.speech.audio_tower import AudioTower
from kauli.models.speech.ctc import CtcTask
from kauli.models.speech.ctc_batch import SPELLED, CtcRunner
from kauli.models.speech.ctc_model import CtcBatch
from kauli.models.speech.ctc_training import TrainableCtc
from kauli.models.speech.task import Recogniser, TrainableRecogniser
from kauli.models.speech.vocabulary import Vocabulary, find_code, normalised
from kauli.models.speech.whisper import WhisperTask
from kauli.models.speech.whisper_training import TrainableWhisper
from kauli.serving.events import Piece, Started
from kauli.serving.workers.transcriber import Transcriber
from kauli.training.evaluation.run import evaluate
from kauli.training.recipe_file import parse_recipe
from kauli.training.tasks.base import Examples
from kauli.training.tasks.transcribe import TranscribeLearner, TranscribeRecipe
from kauli.training.train import train
from support.settings import worker_args

PITCHES = {letter: 250 * 2 ** (place / 2) for place, letter in enumerate("abdeimoў")}
TEXTS = ("mama ab", "ba dodo", "ami be", "dado mi", "bibi", "eda oma", "mo be ada", "abide mў")
METHODS: dict[str, tuple[Any, float]] = {
    "attention": (AttentionAdapter(), 0.02),
    "lora": (Lora(rank=8, targets="all-linear"), 0.01),
    "full": (Full(), 0.005),
}


def say(text: str) -> Any:
    """Each letter a tone of its own pitch, each space a pause."""
    times = np.arange(800) / 16_000
    parts = [
        np.zeros(1120)
        if letter == " "
        else np.pad(np.sin(2 * np.pi * PITCHES[letter] * times) * np.hanning(800) ** 0.3, (0, 320))
        for letter in text
    ]
    return (0.3 * np.concatenate([np.zeros(400), *parts, np.zeros(400)])).astype(np.float32)


ROWS = [
    {"id": str(at), "group": str(at), "samples": say(text), "text": text, "language": "be"}
    for at, text in enumerate(TEXTS)
]


@pytest.fixture(scope="module")
def base() -> Base:
    return find_base("debug-wav2vec2", task="transcribe")


def load(base: Base) -> CtcTask:
    return CtcTask.load(base, device="cpu")


def trainable(base: Base) -> TrainableCtc:
    return TrainableCtc.load(base, device="cpu")


def mean_loss(task: TrainableCtc, batch: CtcBatch) -> torch.Tensor:
    """Nats per letter."""
    found: torch.Tensor = task.trained(batch).sum() / batch.lengths.sum()
    return found


def fit(task: TrainableCtc, kind: str, steps: int, until: float = 0.0) -> list[float]:
    """Learn the rows, at most until a letter costs so many nats; the losses."""
    method, rate = METHODS[kind]
    torch.manual_seed(0)
    task.attach(method)
    batch = task.collate(task.encode(ROWS))
    parameters = [value for value in task.trained.parameters() if value.requires_grad]
    optimizer = torch.optim.AdamW(parameters, lr=rate, weight_decay=0.0)
    task.trained.train()
    losses: list[float] = []
    while len(losses) < steps and (not losses or losses[-1] > until):
        loss = mean_loss(task, batch)
        optimizer.zero_grad()
        loss.backward()
        assert all(value.grad is not None for value in parameters)  # else several workers could not train it
        torch.nn.utils.clip_grad_norm_(parameters, 1.0)
        optimizer.step()
        losses.append(float(loss.detach()))
    task.trained.eval()
    return losses


@pytest.fixture(scope="module")
def trained(base: Base, tmp_path_factory: pytest.TempPathFactory) -> dict[str, tuple[Path, list[tuple[float, int]]]]:
    """Of each method the adapter's folder, and what the rows cost when it was saved."""
    found = {}
    for kind in METHODS:
        task = trainable(base)
        task.add_languages(["be"], {}, TEXTS)
        # How many steps it takes differs between machines, which round differently
        assert fit(task, kind, 200, until=0.005)[-1] <= 0.005
        folder = tmp_path_factory.mktemp(kind) / "adapter"
        task.save(folder)
        found[kind] = folder, task.current_bits(ROWS)
    return found


def transcribe(task: CtcTask, keys: Sequence[str | None], rows: Sequence[Any] = ROWS) -> list[str]:
    texts = [""] * len(rows)
    for chunks in task.generate([TranscriptionRequest(row["samples"], row["language"]) for row in rows], keys):
        for chunk in chunks:
            texts[chunk.row] += chunk.text
            assert chunk.finish == "stop"
    return texts


def costs(bits: Sequence[tuple[float, int]]) -> list[float]:
    return [cost for cost, _ in bits]


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("  Ça va?! L’eau — №3 ❤️ ", "ça va l'eau 3"),
        ("м'якота, сьнег-дождж", "м'якота сьнег дождж"),
        ("“rock ’n’ roll”", "rock n roll"),
        ("ʼt\u200bis", "tis"),
        ("ភាសាខ្មែរ។", "ភាសាខ្មែរ"),
    ],
)
def test_a_transcript_is_normalised(text: str, expected: str) -> None:
    assert normalised(text) == expected


def test_letters_are_found_in_any_case_and_new_ones_follow() -> None:
    own = Vocabulary(("<pad>", "<unk>", "|", "A", "B", "’"))
    assert own.encode("B a'b, c!") == ([4, 2, 3, 5, 4, 2], 1)
    assert own.decode([4, 1, 2, 2, 3]) == "B A"
    more = own.with_those_of(["cab", "d'b"])
    assert more.tokens == (*own.tokens, "c", "d")
    assert more.encode("cad") == ([6, 3, 7], 0)
    assert Vocabulary().with_those_of(["ab a"]).tokens == ("<pad>", "|", "a", "b")


def test_codes_of_mms_are_found_by_tag() -> None:
    codes = ("eng", "swh", "uzb-script_cyrillic", "uzb-script_latin", "no-language", "kir")
    assert [find_code(tag, codes) for tag in ("sw", "ky", "uz", "uz-Cyrl", "be")] == [
        "swh", "kir", "uzb-script_latin", "uzb-script_cyrillic", None,
    ]  # fmt: skip


def test_a_base_is_loaded_by_its_architecture(base: Base) -> None:
    assert isinstance(Recogniser.load(base, device="cpu"), CtcTask)
    assert isinstance(Recogniser.load(find_base("debug", task="transcribe"), device="cpu"), WhisperTask)
    assert isinstance(TrainableRecogniser.load(base, device="cpu"), TrainableCtc)
    whisper = TrainableRecogniser.load(find_base("debug", task="transcribe"), device="cpu")
    assert isinstance(whisper, TrainableWhisper)
    for loaded in (load(base), trainable(base), whisper):
        dims = loaded.model_input(np.zeros(RATE, np.float32)).ndim
        assert (loaded.input_kind, dims, loaded.pads) in (("wave", 1, False), ("spectrogram", 2, True))


def test_a_base_without_an_encoder_for_a_connector_is_refused(base: Base) -> None:
    with pytest.raises(UsageError, match="'debug-wav2vec2' has no encoder for a connector: use a Whisper such as"):
        AudioTower.load(base, "cpu")


def test_clips_can_not_be_padded_to_a_window(base: Base) -> None:
    task = load(base)
    with pytest.raises(UsageError, match="debug-wav2vec2 takes clips at their own length"):
        task.submit(TranscriptionRequest(ROWS[0]["samples"], full_window=True), None)
    with pytest.raises(UsageError, match="takes clips at their own length"):
        task.bits(ROWS, None, full_window=True)
    assert task.bits(ROWS, None, full_window=False) == task.bits(ROWS, None)


def test_losses_are_those_of_transformers(base: Base) -> None:
    task = trainable(base)
    model: Any = Wav2Vec2ForCTC.from_pretrained(base.folder)
    rows = ROWS[:4]
    batch = task.collate(task.encode(rows))
    values = torch.nn.utils.rnn.pad_sequence(list(batch.waves), batch_first=True)
    mask = torch.nn.utils.rnn.pad_sequence([torch.ones(len(wave)) for wave in batch.waves], batch_first=True).long()
    labels = torch.nn.utils.rnn.pad_sequence(list(torch.split(batch.letters, batch.lengths.tolist())), True, -100)
    model.config.ctc_loss_reduction = "sum"
    with torch.no_grad():
        wanted = model.eval()(values, attention_mask=mask, labels=labels).loss
        found = task.trained(batch)
    torch.testing.assert_close(found.sum(), wanted)
    assert [task.num_targets(example) for example in task.encode(rows)] == batch.lengths.tolist()
    bits = load(base).bits(rows, None)
    nats = [cost * np.log(2) for cost in costs(bits)]
    assert nats == pytest.approx(found.tolist(), rel=1e-5)
    assert costs(task.current_bits(rows)) == pytest.approx(costs(bits))


@pytest.mark.parametrize("norm", ["layer", "group"])
def test_a_clip_costs_in_a_batch_what_it_costs_alone(base: Base, tmp_path: Path, norm: str) -> None:
    if norm == "group":
        base = changed(base, tmp_path, feat_extract_norm="group", do_stable_layer_norm=False)
    task = load(base)
    alone = [task.bits([row], None)[0][0] for row in ROWS]
    assert costs(task.bits(ROWS, None)) == pytest.approx(alone, rel=1e-4)
    assert transcribe(task, [None] * 8) == [transcribe(task, [None], [row])[0] for row in ROWS]


@pytest.mark.parametrize("kind", METHODS)
def test_eight_clips_are_learned_and_the_saved_adapter_writes_the_same(
    base: Base, trained: dict[str, tuple[Path, list[tuple[float, int]]]], kind: str
) -> None:
    folder, before = trained[kind]
    check_files(folder)
    task = load(base)
    task.add_adapter("x@1", folder)
    bits = task.bits(ROWS, "x@1")
    assert costs(bits) == pytest.approx(costs(before), rel=1e-3, abs=1e-3)
    assert [size for _, size in bits] == [len(text.encode()) for text in TEXTS]
    assert transcribe(task, ["x@1"] * 8) == list(TEXTS)
    assert task.languages("x@1") == ("be",)
    task.remove_adapter("x@1")
    assert task.adapters() == []


def test_rows_of_one_batch_have_their_own_adapters(
    base: Base, trained: dict[str, tuple[Path, list[tuple[float, int]]]]
) -> None:
    alone: dict[str | None, list[str]] = {None: transcribe(load(base), [None] * 8)}
    task = load(base)
    for kind, (folder, _) in trained.items():
        task.add_adapter(kind, folder)
        # Half learned, so that a mistake would show in the text
        half = folder.parent / "half"
        shutil.copytree(folder, half, dirs_exist_ok=True)
        for path in half.glob("*.safetensors"):
            save_file({name: 0.7 * value for name, value in load_file(path).items()}, path, {"format": "pt"})
        task.add_adapter(f"half-{kind}", half)
    for key in task.adapters():
        one = load(base)
        one.add_adapter(key, trained[key.removeprefix("half-")][0].parent / ("half" if "half" in key else "adapter"))
        alone[key] = transcribe(one, [key] * 8)
    assert len({tuple(texts) for texts in alone.values()}) >= 4
    keys = [None, "half-lora", "attention", "full", "half-attention", "half-full", "lora", "half-attention"]
    assert transcribe(task, keys) == [alone[key][row] for row, key in enumerate(keys)]


def test_requests_are_cancelled_cut_and_asked_several_times(
    base: Base, trained: dict[str, tuple[Path, list[tuple[float, int]]]]
) -> None:
    task = load(base)
    task.prepare()
    assert task.prompt_tokens(TranscriptionRequest(ROWS[0]["samples"])) == []
    task.add_adapter("x", trained["attention"][0])
    request = TranscriptionRequest(ROWS[0]["samples"], max_tokens=4, logprobs=0, n=2)
    first, second = task.submit(request, "x")
    (gone,) = task.submit(replace(request, n=1), None)
    gone.cancelled = True
    assert task.busy
    found = dict(task.step())
    assert not task.busy
    assert found[gone].finish == "cancelled"
    assert found[first] == found[second]
    assert (found[first].text, found[first].tokens, found[first].finish) == ("mama", 4, "length")
    assert b"".join(one.bytes for one in found[first].logprobs) == b"mama"
    assert all(-3 < one.logprob <= 0 for one in found[first].logprobs)
    assert found[first].language == "be"
    with pytest.raises(UsageError, match=r"31\.0 seconds; debug-wav2vec2 takes 30 at most"):
        task.submit(TranscriptionRequest(np.zeros(16_000 * 31, np.float32)), None)
    (chunks,) = task.generate([request], ["x"], cancelled=lambda row: True)
    assert [chunk.finish for chunk in chunks] == ["cancelled"] * 2


def logits_by_pitch(runner: Any, waves: Sequence[torch.Tensor], heads: Sequence[Any]) -> list[torch.Tensor]:
    """The logits of a model that writes each letter in the frames of its tone, unlike one that learned eight clips."""
    out = []
    for wave, head in zip(waves, heads, strict=True):
        letters = head.letters
        frames = wave.numpy()[: len(wave) // 320 * 320].reshape(-1, 320)
        spectrum = np.abs(np.fft.rfft(frames * np.hanning(320), 4096))
        pitch = spectrum.argmax(1) * RATE / 4096
        quiet = [bool(frame.std() < 0.3) for frame in frames]
        found = torch.zeros(len(frames), len(letters.tokens))
        for at, row in enumerate(found):
            if not quiet[at]:
                nearest = np.abs(np.array(list(PITCHES.values())) - pitch[at]).argmin()
                row[letters.places[list(PITCHES)[nearest]]] = 9
            elif at > 0 and all(quiet[at - 1 : at + 2]):
                row[letters.places[" "]] = 9
            else:
                row[letters.blank] = 9
        out.append(found)
    return out


def test_words_have_the_times_of_their_letters(base: Base, trained: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(CtcRunner, "logits", logits_by_pitch)
    task = load(base)
    task.add_adapter("a@1", trained["attention"][0])
    for text in TEXTS[:6]:
        (chunk,) = next(task.generate([TranscriptionRequest(say(text), "be", words=True)], ["a@1"]))
        assert chunk.text == text
        assert [word.text for word in chunk.words] == text.split()
        at = 0
        for word in chunk.words:
            at = text.index(word.text, at)
            # A letter is 50 ms of 70, behind 25 at the beginning
            assert word.start == pytest.approx(0.025 + 0.07 * at, abs=0.021), (text, chunk.words)
            at += len(word.text)
            assert word.end == pytest.approx(0.025 + 0.07 * at - 0.02, abs=0.021), (text, chunk.words)
    (cut,) = next(task.generate([TranscriptionRequest(say("mama ab"), "be", max_tokens=6, words=True)], ["a@1"]))
    assert [word.text for word in cut.words] == ["mama", "a"]
    (plain,) = next(task.generate([TranscriptionRequest(say("mama ab"), "be")], ["a@1"]))
    assert plain.words == ()


def test_the_service_runs_it(base: Base, tmp_path: Path) -> None:
    async def streamed() -> list[Any]:
        task: Any = load(base)
        transcriber = Transcriber(task, worker_args(tmp_path))
        try:
            assert await transcriber.check() is None
            return [event async for event in transcriber.stream(TranscriptionRequest(ROWS[0]["samples"], "be"), None)]
        finally:
            transcriber.close()

    started, *pieces = asyncio.run(streamed())
    assert started == Started(0)
    assert [type(piece) for piece in pieces] == [Piece]
    assert (pieces[0].finish, pieces[0].language) == ("stop", "be")
    assert pieces[0].text == transcribe(load(base), [None], ROWS[:1])[0]


def test_numbers_that_are_not_finite_fail_their_own_clip_alone(base: Base, tmp_path: Path) -> None:
    task = load(base)
    good, bad = (
        task.submit(TranscriptionRequest(say("ab")), None),
        task.submit(TranscriptionRequest(say("ab") * np.nan), None),
    )
    found = dict(task.step())
    assert (found[good[0]].finish, found[bad[0]].finish) == ("stop", "failed")


def test_a_clip_too_short_for_its_transcript_is_left_out(base: Base, capsys: pytest.CaptureFixture[str]) -> None:
    task = trainable(base)
    short = {**ROWS[0], "samples": ROWS[0]["samples"][:1000], "text": "aabbaabb"}
    assert len(task.encode([*ROWS, short])) == 8
    assert "1 of 9 clips are too short for their transcripts: left out" in capsys.readouterr().err
    with pytest.raises(UsageError, match="all 1 clips are too short"):
        task.encode([short])
    task = load(base)
    assert task.bits([short], None)[0] == pytest.approx((8 * SPELLED, 8))
    silence = {**short, "samples": np.zeros(3, np.float32), "text": "..."}
    ((cost, size),) = task.bits([silence], None)
    assert np.isfinite(cost)
    assert size == 0


def test_what_the_base_can_not_write_is_spelt(base: Base) -> None:
    task = load(base)
    known, unknown = task.bits([{**ROWS[0], "text": text} for text in ("Mama!", "ўmamaў")], None)
    assert unknown[0] - known[0] == pytest.approx(2 * SPELLED)
    assert (known[1], unknown[1]) == (4, 8)


@pytest.mark.parametrize(
    ("damage", "says"),
    [
        (lambda folder: (folder / "speech.json").unlink(), "speech.json is missing"),
        (
            lambda folder: settings(folder, vocabulary=["<pad>", "|"]),
            r"lm_head\.bias is \(33,\), the place for it \(2",
        ),
        (lambda folder: settings(folder, vocabulary=7), "not that of a CTC adapter: vocabulary"),
        (lambda folder: settings(folder, blank=99), "blank at 99, beyond its 33 letters"),
        (lambda folder: settings(folder, dim=8), r"linear_1\.bias is \(16,\), the place for it \(8,\)"),
        (lambda folder: tensors(folder, lambda name, value: value[:, :-1] if value.ndim == 2 else value), "not fit"),
        (lambda folder: tensors(folder, lambda name, value: None if "layers.1." in name else value), "is missing"),
        (lambda folder: tensors(folder, lambda name, value: value * torch.inf), "not finite"),
    ],
)
def test_a_folder_that_does_not_fit_is_refused(
    base: Base, trained: dict[str, tuple[Path, list[tuple[float, int]]]], tmp_path: Path, damage: Any, says: str
) -> None:
    folder = shutil.copytree(trained["attention"][0], tmp_path / "adapter")
    damage(folder)
    with pytest.raises(KauliError, match=says):
        load(base).add_adapter("x", folder)


def settings(folder: Path, **changes: Any) -> None:
    content = json.loads((folder / "speech.json").read_text(encoding="utf-8"))
    (folder / "speech.json").write_text(json.dumps({**content, **changes}), encoding="utf-8")


def tensors(folder: Path, change: Any) -> None:
    path = folder / "attention_adapter.safetensors"
    found = {name: change(name, value) for name, value in load_file(path).items()}
    save_file({name: value.contiguous() for name, value in found.items() if value is not None}, path)


def test_a_model_of_another_shape_is_refused(
    base: Base, trained: dict[str, tuple[Path, list[tuple[float, int]]]], tmp_path: Path
) -> None:
    folder = shutil.copytree(trained["full"][0], tmp_path / "adapter")
    with pytest.raises(KauliError, match=r"conv_stride is \[80, 4\], the base's \[80, 2\]"):
        load(changed(base, tmp_path / "base", conv_stride=(80, 2))).add_adapter("x", folder)
    tensors = load_file(folder / "model.safetensors")
    save_file({name: value for name, value in tensors.items() if "layers.0" not in name}, folder / "model.safetensors")
    with pytest.raises(KauliError, match="is incomplete"):
        load(base).add_adapter("x", folder)


def changed(base: Base, folder: Path, **changes: Any) -> Base:
    """A base of random weights whose configuration differs."""
    shutil.copytree(base.folder, folder, dirs_exist_ok=True)
    config: Any = Wav2Vec2Config.from_pretrained(base.folder, **changes)
    torch.manual_seed(1)
    Wav2Vec2ForCTC(config).save_pretrained(folder)
    return find_base(str(folder), task="transcribe")


@pytest.fixture
def mms(base: Base, tmp_path: Path) -> Base:
    """As MMS is laid out: one encoder, for each language a vocabulary and an adapter file, English built in."""
    folder = tmp_path / "mms"
    changed(base, folder, adapter_attn_dim=8, vocab_size=6)
    letters = {"eng": "abde", "swh": "abdeimo"}
    content = {code: {name: at for at, name in enumerate(["<pad>", "|", *text])} for code, text in letters.items()}
    (folder / "vocab.json").write_text(json.dumps(content))
    (folder / "tokenizer_config.json").write_text(json.dumps({"target_lang": "eng"}))
    model: Any = Wav2Vec2ForCTC.from_pretrained(folder)
    for code, vocabulary in content.items():
        model.lm_head = torch.nn.Linear(64, len(vocabulary))
        for value in model._get_adapters().values():
            torch.nn.init.normal_(value, std=0.3)
        save_file({name: value.detach() for name, value in model._get_adapters().items()},
                  folder / f"adapter.{code}.safetensors")  # fmt: skip
    return find_base(str(folder), task="transcribe")


def test_the_languages_of_an_mms_are_transcribed_by_their_own_adapters(mms: Base) -> None:
    task = load(mms)
    assert task.languages() == ("en", "sw")
    model: Any = Wav2Vec2ForCTC.from_pretrained(mms.folder)
    model.eval()
    rows = [{**ROWS[0], "text": "mama ab", "language": tag} for tag in ("sw", "en", "be")]
    found = task.bits([{**row, "text": "ab ba"} for row in rows], None)
    model.load_adapter("swh")
    model.config.ctc_loss_reduction = "sum"
    wave = task.model_input(ROWS[0]["samples"])[None]
    with torch.no_grad():
        loss = model(wave, labels=torch.tensor([[2, 3, 1, 3, 2]])).loss
    assert found[0][0] * np.log(2) == pytest.approx(float(loss), rel=1e-4)
    assert found[1][0] != pytest.approx(found[0][0], rel=0.01)
    assert np.isfinite(found[2][0])  # by what is built in
    texts = transcribe(task, [None] * 3, rows)
    assert texts == [transcribe(load(mms), [None], [row])[0] for row in rows]


@pytest.mark.parametrize("kind", ["attention", "lora"])
def test_training_continues_from_the_adapter_that_an_mms_has(
    mms: Base, tmp_path: Path, kind: str, monkeypatch: Any
) -> None:
    monkeypatch.setitem(METHODS, "attention", (AttentionAdapter(dim=8), 0.01))
    rows = [{**row, "language": "sw", "text": row["text"].replace("ў", "o")} for row in ROWS]
    bare = load(mms).bits(rows, None)
    task = trainable(mms)
    task.add_languages(["sw"], {}, TEXTS)
    assert costs(task.current_bits(rows)) == pytest.approx(costs(bare))
    assert task.letters.tokens == ("<pad>", "|", *"abdeimo", "ў")
    losses = fit(task, kind, 5)
    assert losses[-1] < losses[0]
    task.save(tmp_path / "adapter")
    loaded = load(mms)
    loaded.add_adapter("x", tmp_path / "adapter")
    assert costs(loaded.bits(ROWS, "x")) == pytest.approx(costs(task.current_bits(ROWS)), rel=1e-4)
    assert costs(loaded.bits(rows, None)) == pytest.approx(costs(bare), rel=1e-5)
    if kind == "lora":
        settings(tmp_path / "adapter", begins="kir")
        with pytest.raises(KauliError, match=r"no adapter\.kir\.safetensors"):
            loaded.add_adapter("y", tmp_path / "adapter")


def test_a_bare_encoder_writes_nothing_and_learns_letters(base: Base, tmp_path: Path) -> None:
    folder = shutil.copytree(base.folder, tmp_path / "encoder")
    (folder / "vocab.json").unlink()
    (folder / "base.json").unlink()
    weights = {name: value for name, value in load_file(folder / "model.safetensors").items() if "lm_head" not in name}
    save_file(weights, folder / "model.safetensors", {"format": "pt"})
    served = load(find_base(str(folder), task="transcribe"))
    assert transcribe(served, [None] * 8) == [""] * 8
    assert sum(costs(served.bits(ROWS, None))) > SPELLED * 6 * 8
    task = trainable(served.base)
    task.add_languages(["be"], {}, TEXTS)
    assert task.letters.tokens == ("<pad>", "|", *"abdeimoў")
    losses = fit(task, "attention", 8)
    assert losses[-1] < losses[0]


@pytest.mark.parametrize("kind", [None, *METHODS])
@pytest.mark.parametrize("language", ["sw", "be"])
def test_training_gives_the_base_back_as_it_was_loaded(
    mms: Base, kind: str | None, language: str, monkeypatch: Any
) -> None:
    monkeypatch.setitem(METHODS, "attention", (AttentionAdapter(dim=8), 0.01))
    rows = [{**row, "language": tag} for row in ROWS[:3] for tag in ("sw", "en")]
    task = trainable(mms)
    task.add_languages([language], {}, TEXTS)
    if kind is not None:
        fit(task, kind, 2)
    read_again = []
    real = CtcTask.load
    monkeypatch.setattr(CtcTask, "load", lambda *given, **named: read_again.append(1) or real(*given, **named))
    served = task.served()
    assert bool(read_again) == (kind == "full")
    fresh = load(mms)
    found = dict(served.model.named_parameters())
    assert found.keys() == dict(fresh.model.named_parameters()).keys()
    assert all(torch.equal(found[name], value) for name, value in fresh.model.named_parameters())
    assert served.model.config.vocab_size == fresh.model.config.vocab_size
    assert served.bits(rows, None) == fresh.bits(rows, None)
    assert transcribe(served, [None] * 6, rows) == transcribe(fresh, [None] * 6, rows)


@pytest.mark.parametrize("kind", ["attention", "lora"])
def test_training_starts_from_another_adapter(
    base: Base, trained: dict[str, tuple[Path, list[tuple[float, int]]]], kind: str
) -> None:
    folder, before = trained[kind]
    task = trainable(base)
    task.add_languages(["ky"], {}, [*TEXTS, "ың"])
    task.attach(METHODS[kind][0])
    task.start_from(folder)
    # The same but for what the new letters take of the likelihood
    assert sum(costs(task.current_bits(ROWS))) < sum(costs(before)) + 8 * 40
    other = trained["lora" if kind == "attention" else "attention"][0]
    with pytest.raises(KauliError, match="is missing"):
        task.start_from(other)


def test_attention_adapters_are_refused_where_they_have_no_place(base: Base, mms: Base, tmp_path: Path) -> None:
    after = load(changed(base, tmp_path / "after", do_stable_layer_norm=False))
    with pytest.raises(UsageError, match="Wav2Vec2ForCTC with the norm after attention"):
        AttentionAdapter().attach(after.model, "x/y")
    models: list[Any] = [
        AutoModelForCausalLM.from_pretrained(find_base("debug").folder),
        WhisperTask.load(find_base("debug", task="transcribe"), device="cpu").model,
    ]
    for model, kind in zip(models, ("LlamaForCausalLM", "WhisperForConditionalGeneration"), strict=True):
        with pytest.raises(UsageError, match=f"the base is a {kind}, which has no place for attention adapters"):
            AttentionAdapter().attach(model, "x/y")
    with pytest.raises(UsageError, match=r"method\.dim 16: the base's own attention adapters have 8"):
        AttentionAdapter().attach(load(mms).model, "x/y")


def recipe(data: str, **changes: Any) -> TranscribeRecipe:
    content = {
        "name": "transcribe-x", "task": "transcribe", "base": "debug-wav2vec2", "language": "be", "data": data,
        "method": {"kind": "attention_adapter"}, "transcribe": {},
        "augment": [{"kind": "gain"}, {"kind": "noise", "p": 0.1}],
        "train": {"steps": 75, "batch_tokens": 300, "max_length": 100, "validate_every": 25, "learning_rate": 0.02},
    }  # fmt: skip
    parsed = parse_recipe({**content, **changes})
    assert isinstance(parsed, TranscribeRecipe)
    return parsed


def test_a_recipe_is_trained_published_and_measured_again_alike(tmp_path: Path) -> None:
    rows = []
    for number in range(60):
        text = f"{'abdeimo'[number % 7]}{'abdei'[number // 7 % 5]} {'imoў'[number % 3]}{'oў'[number // 35]}"
        soundfile.write(tmp_path / f"{number}.wav", say(text), 16_000)
        rows.append({"audio": f"{number}.wav", "text": text.capitalize() + "!", "language": "be", "source": "mine"})
    (tmp_path / "rows.jsonl").write_text("\n".join(json.dumps(row) for row in rows))
    result = train(recipe(str(tmp_path / "rows.jsonl")), str(tmp_path / "store"), use_ray=False)
    assert list(result.aliases) == ["latest"]
    evaluation = result.evaluation
    assert evaluation.base_metrics is not None
    assert evaluation.metrics["cer"] < 0.5 * evaluation.base_metrics["cer"]  # type: ignore[operator]
    assert evaluation.metrics["bits_per_byte"] < 0.5 * evaluation.base_metrics["bits_per_byte"]  # type: ignore[operator]
    registry = Registry(str(tmp_path / "store"))
    assert registry.card("transcribe-x").method == {"kind": "attention_adapter", "dim": 16}
    folder = registry.fetch("transcribe-x")
    assert {path.name for path in folder.iterdir()} == {
        "attention_adapter.safetensors", "speech.json", "card.json", "README.md",
    }  # fmt: skip
    assert evaluate("transcribe-x", str(tmp_path / "store")).metrics == pytest.approx(result.metrics)


def test_one_worker_two_workers_and_small_packs_have_the_same_gradient(base: Base) -> None:
    gradients = []
    for world, micro in ((1, 2048), (2, 2048), (1, 300)):
        made = TranscribeLearner(
            trainable(base),
            recipe("x", augment=[], train={"batch_tokens": 500, "micro_tokens": micro, "max_length": 300}),
            Examples(ROWS, ROWS, (), "x"),
        )
        torch.manual_seed(0)
        made.attach(None)
        step = [0, 1, 2, 3]
        for rank in range(world):
            for batch, weight in made.batches(step, rank, world):
                (made.objective()(batch).sum() * (weight / made.num_targets(step))).backward()
        gradients.append(torch.cat([p.grad.flatten() for p in made.trained.parameters() if p.grad is not None]))
    assert gradients[0].norm() > 0
    for other in gradients[1:]:
        torch.testing.assert_close(other, gradients[0], atol=1e-5, rtol=1e-4)
