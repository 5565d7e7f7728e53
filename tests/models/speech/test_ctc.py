"""CTC models without an adapter: letters, losses as transformers computes them, the service, MMS's own files."""

import asyncio
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from transformers import Wav2Vec2ForCTC

from kauli.models.bases.find import Base, find_base
from kauli.models.errors import UsageError
from kauli.models.media.decode import RATE
from kauli.models.requests import TranscriptionRequest
from kauli.models.speech.audio_tower import AudioTower
from kauli.models.speech.ctc import CtcTask
from kauli.models.speech.ctc_batch import SPELLED
from kauli.models.speech.ctc_training import TrainableCtc
from kauli.models.speech.task import Recogniser, TrainableRecogniser
from kauli.models.speech.vocabulary import Vocabulary, find_code, normalised
from kauli.models.speech.whisper import WhisperTask
from kauli.models.speech.whisper_training import TrainableWhisper
from kauli.serving.events import Piece, Started
from kauli.serving.workers.transcriber import Transcriber
from support.ctc import ROWS, changed, costs, load, save_mms, say, trainable, transcribe
from support.settings import worker_args


@pytest.fixture(scope="module")
def base() -> Base:
    return find_base("debug-wav2vec2", task="transcribe")


@pytest.fixture
def mms(base: Base, tmp_path: Path) -> Base:
    return save_mms(base, tmp_path / "mms")


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


def test_what_the_base_can_not_write_is_spelt(base: Base) -> None:
    task = load(base)
    known, unknown = task.bits([{**ROWS[0], "text": text} for text in ("Mama!", "ўmamaў")], None)
    assert unknown[0] - known[0] == pytest.approx(2 * SPELLED)
    assert (known[1], unknown[1]) == (4, 8)


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
