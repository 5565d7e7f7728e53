"""Untrusted bytes become one channel of sound at 16 kHz, or one clear refusal."""

import io
import resource
import struct
import time
import tracemalloc
from typing import Any

import numpy as np
import pytest
import soundfile

from kauli.models.errors import MediaError
from kauli.models.media.decode import RATE, AudioLimits, DecodedAudio, decode_audio
from kauli.models.media.resample import Array, resampled

LIMITS = AudioLimits()
KINDS = [
    ("WAV", "PCM_U8"),
    ("WAV", "PCM_16"),
    ("WAVEX", "PCM_24"),
    ("WAV", "PCM_32"),
    ("WAV", "FLOAT"),
    ("WAV", "DOUBLE"),
    ("FLAC", "PCM_16"),
    ("FLAC", "PCM_24"),
    ("OGG", "VORBIS"),
    ("OGG", "OPUS"),
    ("MP3", "MPEG_LAYER_III"),
    ("WAV", "ULAW"),
    ("WAVEX", "ALAW"),
    ("WAV", "IMA_ADPCM"),
    ("WAV", "MS_ADPCM"),
    ("RF64", "PCM_16"),
    ("W64", "PCM_16"),
    ("AIFF", "PCM_16"),
    ("AIFF", "ULAW"),
    ("AU", "PCM_24"),
    ("CAF", "PCM_16"),
    ("CAF", "ALAC_16"),
    ("NIST", "PCM_16"),
]
ALLOWED = "send WAV, FLAC, Ogg or MP3, for instance by: ffmpeg -i IN -ac 1 -ar 16000 OUT.wav"


def sine(seconds: float = 1.0, rate: int = RATE, hertz: float = 440.0, height: float = 0.5) -> Array:
    return (height * np.sin(2 * np.pi * hertz * np.arange(round(seconds * rate)) / rate)).astype(np.float32)


def encoded(samples: Any, kind: str = "WAV", codec: str = "PCM_16", rate: int = RATE, **options: Any) -> bytes:
    buffer = io.BytesIO()
    channels = 1 if samples.ndim == 1 else samples.shape[1]
    with soundfile.SoundFile(buffer, "w", rate, channels, codec, format=kind, **options) as file:
        for start in range(0, len(samples), 20_000):  # libsndfile's Vorbis writer crashes on many frames at once
            file.write(samples[start : start + 20_000])
    return buffer.getvalue()


def loudest(decoded: DecodedAudio) -> float:
    """The frequency with the most power."""
    samples = decoded.samples
    power = np.abs(np.fft.rfft(samples * np.hanning(len(samples))))
    return float(np.fft.rfftfreq(len(samples), 1 / RATE)[power.argmax()])


def refusal(data: bytes, limits: AudioLimits = LIMITS) -> str:
    with pytest.raises(MediaError) as caught:
        decode_audio(data, limits)
    return str(caught.value)


def with_frames(flac: bytes, frames: int) -> bytes:
    """A FLAC whose header states another number of frames (36 bits); 0: unknown."""
    start = int.from_bytes(flac[18:26], "big") >> 36 << 36
    return flac[:18] + (start | frames).to_bytes(8, "big") + flac[26:]


def ogg_page(flags: int, frames: int, number: int, packets: list[bytes]) -> bytes:
    """A page of whole packets, with the checksum that libogg demands."""
    lacing = b"".join(b"\xff" * (len(packet) // 255) + bytes([len(packet) % 255]) for packet in packets)
    page = b"OggS\0" + struct.pack("<BqIIIB", flags, frames, 7, number, 0, len(lacing)) + lacing + b"".join(packets)
    checksum = 0
    for byte in page:
        checksum ^= byte << 24
        for _ in range(8):
            checksum = (checksum << 1) ^ (0x104C11DB7 if checksum >> 31 else 0)
    return page[:22] + struct.pack("<I", checksum) + page[26:]


def opus_of_silence(pages: int) -> bytes:
    """15.3 s a page of 255 packets of one byte: packets of 60 ms without content."""
    head = b"OpusHead\1\1" + struct.pack("<HIhB", 0, 48_000, 0, 0)
    start = ogg_page(2, 0, 0, [head]) + ogg_page(0, 0, 1, [b"OpusTags" + bytes(8)])
    rest = [ogg_page(4 * (page == pages), page * 255 * 2880, page + 1, [b"\x18"] * 255) for page in range(1, pages + 1)]
    return start + b"".join(rest)


def vorbis_of_books(books: int, size: int) -> bytes:
    """A valid Vorbis stream that decodes to silence, with codebooks of 15 x 2^size numbers, each of 21 bytes."""
    bits: list[tuple[int, int]] = [(books - 1, 8)]
    book = [(0x564342, 24), (15, 16), (2**size, 24), (1, 1), (size - 1, 5), (2**size, size + 1)]
    book += [(1, 4), (0, 64), (0, 4), (0, 1), (0, 2)]
    bits += book * books
    bits += [(0, 6), (0, 16)]  # times
    bits += [(0, 6), (1, 16), (0, 5), (0, 2), (4, 4)]  # floors
    bits += [(0, 6), (0, 16), (0, 72), (0, 6), (0, 8), (0, 4)]  # residues
    bits += [(0, 6), (0, 16), (0, 4), (0, 24)]  # mappings
    bits += [(0, 6), (0, 1), (0, 32), (0, 8), (1, 1)]  # modes
    value = place = 0
    for number, width in bits:
        value |= number << place
        place += width
    setup = b"\x05vorbis" + value.to_bytes(-(-place // 8), "little")
    head = b"\x01vorbis" + struct.pack("<IBIiiiBB", 0, 1, RATE, 0, 64_000, 0, 0xB8, 1)
    comment = b"\x03vorbis" + bytes(8) + b"\1"
    return ogg_page(2, 0, 0, [head]) + ogg_page(0, 0, 1, [comment, setup]) + ogg_page(4, RATE, 2, [bytes(20)] * 100)


def test_a_wav_of_16_bits_at_16_khz_is_its_integers() -> None:
    values = np.random.default_rng(0).integers(-32_768, 32_768, RATE, dtype=np.int16)
    decoded = decode_audio(encoded(values))
    assert decoded.samples.dtype == np.float32
    assert np.array_equal(decoded.samples, values.astype(np.float32) / 32_768)
    assert decoded.seconds == 1.0
    assert decoded.warnings == ()


@pytest.mark.parametrize(("kind", "codec"), KINDS)
def test_every_allowed_format_and_codec_becomes_one_channel_at_16_khz(kind: str, codec: str) -> None:
    rate = 48_000 if codec == "OPUS" else 44_100
    stereo = np.stack([sine(1.3, rate), 0.5 * sine(1.3, rate)], 1)
    decoded = decode_audio(encoded(stereo, kind, codec, rate))
    # ADPCM has blocks of some hundred samples, the last one filled up with silence
    assert abs(len(decoded.samples) - 1.3 * RATE) <= (800 if "ADPCM" in codec else 1)
    assert decoded.seconds == len(decoded.samples) / RATE
    assert abs(loudest(decoded) - 440) < 1
    middle = decoded.samples[2000:-2000]
    assert abs(np.abs(middle).max() - 0.375) < 0.03  # the mean of the channels
    assert decoded.warnings == ()


@pytest.mark.parametrize("rate", [4000, 8000, 11_025, 12_345, 15_991, 16_001, 22_050, 32_000, 44_101, 96_000, 191_999])
def test_rates_are_resampled_without_a_change_of_pitch_or_length(rate: int) -> None:
    begin = time.process_time()
    decoded = decode_audio(encoded(sine(4.0, rate), rate=rate))
    assert time.process_time() - begin < 5
    usual = rate in (4000, 8000, 11_025, 22_050, 32_000, 96_000)
    assert abs(len(decoded.samples) - 4 * RATE) <= (1 if usual else 4 * RATE / 1000)
    assert abs(loudest(decoded) - 440) < 0.7
    assert abs(np.abs(decoded.samples[1000:-1000]).max() - 0.5) < 0.005


@pytest.mark.parametrize("rate", [8000, 11_025, 44_100, 48_000])
def test_blocks_are_resampled_as_torchaudio_resamples_the_whole(rate: int) -> None:
    import torch
    from torchaudio.transforms import Resample

    whole = np.random.default_rng(0).standard_normal(rate * 2 + 77).astype(np.float32)
    for size in (1, 999, 65_536):
        part = whole[: 300 * size]
        expected = Resample(rate, RATE)(torch.from_numpy(part)).numpy()
        blocks = [part[start : start + size] for start in range(0, len(part), size)]
        assert np.allclose(resampled(blocks, rate, RATE), expected, atol=3e-6)


def test_limits_on_bytes_seconds_and_samples_are_exact() -> None:
    data = encoded(np.stack([sine(2.0)] * 2, 1))
    assert decode_audio(data, AudioLimits(len(data), 2.0, 64_000, 2.0)).seconds == 2.0
    message = refusal(data, AudioLimits(max_bytes=len(data) - 1))
    assert f"{len(data):,} bytes, {len(data) - 1:,} are allowed: send it compressed" in message
    assert "at least 2.0 s, 1.9 are allowed" in refusal(data, AudioLimits(max_seconds=1.9))
    assert "64,000 samples in 2 channels, 63,999 are allowed" in refusal(data, AudioLimits(max_samples=63_999))
    assert "lasts 2 s, at least 2.1 s are needed" in refusal(data, AudioLimits(min_seconds=2.1))


def test_what_cannot_be_speech_is_refused() -> None:
    assert "the audio is empty" in refusal(b"")
    assert "lasts 0.05 s, at least 0.1 s are needed" in refusal(encoded(sine(0.05)))
    assert "lasts 0 s" in refusal(encoded(sine(0)))
    assert "the audio is silent" in refusal(encoded(np.zeros(RATE, np.int16)))
    assert "the audio is silent" in refusal(encoded(sine(height=9e-5)))
    assert decode_audio(encoded(sine(height=2e-4), codec="FLOAT")).warnings == ()
    assert "send one of its channels" in refusal(encoded(np.stack([sine(), -sine()], 1), codec="FLOAT"))
    assert "9 channels, at most 8 are read" in refusal(encoded(np.stack([sine()] * 9, 1)))
    for rate in (3999, 192_001):
        assert f"{rate:,} samples a second, 4,000 to 192,000 are read" in refusal(encoded(sine(1, rate), rate=rate))


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_samples_that_are_not_finite_are_refused_with_their_place(value: float) -> None:
    samples = sine(10)
    samples[9 * RATE + RATE // 4] = value
    assert "not finite (NaN or infinite), at 9.25 s" in refusal(encoded(samples, codec="FLOAT"))
    huge = sine(1).astype(np.float64)
    huge[100] = 1e300
    assert "not finite" in refusal(encoded(huge, codec="DOUBLE"))
    huge[100] = 1e30
    assert "samples of 1.0e+30: scale them" in refusal(encoded(huge, codec="DOUBLE"))


def test_a_clipped_audio_is_read_with_a_warning_and_a_full_one_without() -> None:
    clipped = decode_audio(encoded(np.clip(sine(height=3.0), -1, 1)))
    assert clipped.warnings == ("78% of the samples are at full scale (clipped): record at a lower level.",)
    assert decode_audio(encoded(sine(height=1.0))).warnings == ()


def test_floats_beyond_full_scale_are_scaled_down_with_a_warning() -> None:
    decoded = decode_audio(encoded(sine(height=0.5) * 40_000, codec="FLOAT"))
    assert np.allclose(decoded.samples, sine(height=1.0), atol=1e-4)
    assert decoded.warnings == ("the samples reach 2e+04, beyond full scale, and were scaled down to 1.",)


def test_resampling_never_leaves_full_scale() -> None:
    square = np.sign(sine(1.0, 44_100, 300.0)).astype(np.float32)
    samples = decode_audio(encoded(square, "WAV", "FLOAT", 44_100)).samples
    assert np.abs(samples).max() == 1.0
    overshot = decode_audio(encoded(square, "OGG", "VORBIS", 44_100))  # a codec's own ringing, which needs no warning
    assert np.abs(overshot.samples).max() <= 1.0
    assert not any("scaled" in warning for warning in overshot.warnings)


@pytest.mark.parametrize(
    ("data", "named"),
    [
        (b"0&\xb2u\x8ef\xcf\x11\xa6\xd9", "a WMA"),
        (b"FORM\0\0\0\x2e8SVXVHDR", "an IFF"),
        (b"RIFF\x24\0\0\0AVI LIST", "an AVI"),
        (b"RIFF\x24\0\0\0WEBPVP8 ", "an image"),
        (b"\xff\xfd\xa4\x04", "layer I or II"),
        (b"\x89PNG\r\n\x1a\n", "an image"),
        (b"\xff\xd8\xff\xe0\0\x10JFIF", "an image"),
        (b"PK\3\4\x14\0", "a ZIP"),
        (b"%PDF-1.7\n", "a PDF"),
        (b"\xef\xbb\xbf\n<!DOCTYPE html><html>", "an HTML page"),
        (b"Habari ya dunia", "Habari ya du"),
        (bytes(4000), "a file of an unknown type"),
    ],
)
def test_what_is_no_allowed_audio_is_named_and_so_is_what_is_allowed(data: bytes, named: str) -> None:
    message = refusal(data)
    assert named in message
    assert message.endswith(ALLOWED)


@pytest.mark.parametrize("codec", ["GSM610", "G721_32"])
def test_a_wav_of_a_telephone_exchange_is_read(codec: str) -> None:
    decoded = decode_audio(encoded(sine(1, 8000), "WAV", codec, 8000))
    assert abs(decoded.seconds - 1) < 0.05
    assert abs(loudest(decoded) - 440) < 1.5
    assert decoded.warnings == ()


def test_other_codecs_of_a_wav_are_named() -> None:
    data = bytearray(encoded(sine()))
    for tag, named in ((0x161, "WMA"), (0xFF, "AAC"), (0x1234, "the codec 0x1234")):
        data[20:22] = struct.pack("<H", tag)
        assert f"this is a WAV file that holds {named}" in refusal(bytes(data))


@pytest.mark.parametrize(
    ("packet", "named"),
    [
        (b"\x80theora\3\2\1", "Theora video"),
        (b"Speex   1.2", "Speex"),
        (b"\x7fFLAC\1\0\0", "FLAC"),
        (b"\x01video\0\0", "an unknown"),
    ],
)
def test_other_codecs_of_an_ogg_are_named(packet: bytes, named: str) -> None:
    assert f"this is an Ogg file that holds {named}" in refusal(ogg_page(2, 0, 0, [packet]))


def test_an_mp3_behind_tags_is_read() -> None:
    mp3 = encoded(sine(2, 44_100), "MP3", "MPEG_LAYER_III", 44_100)
    tag = b"ID3\4\0\0" + bytes([0, 0, 2, 0]) + b"TIT2\0\0\0\5\0\0\0abcd" + bytes(256 - 15)
    assert decode_audio(tag + mp3 + b"TAG" + bytes(125)).seconds == 2.0


@pytest.mark.parametrize(("kind", "codec"), KINDS)
def test_a_file_that_is_cut_off_is_its_beginning_with_a_warning_or_refused(kind: str, codec: str) -> None:
    rate = 48_000 if codec == "OPUS" else RATE
    noise = 0.1 * np.random.default_rng(0).standard_normal(4 * rate).astype(np.float32)
    data = encoded(noise, kind, codec, rate)
    assert decode_audio(data).warnings == ()
    for share in (0.9, 0.5):
        cut = data[: int(len(data) * share)]
        if kind in ("FLAC", "CAF"):
            assert f"the {kind} audio is broken or truncated: send the whole file again" in refusal(cut)
            continue
        decoded = decode_audio(cut)
        assert abs(decoded.seconds - 4 * share) < 1.5  # an Ogg is lost by the page
        assert len(decoded.warnings) == (kind != "NIST")  # libsndfile does not tell what its header states
        for warning in decoded.warnings:
            assert "is truncated: only its first" in warning
            lost = float(warning.rpartition(", ")[2].split()[0]) if kind != "OGG" else 4 - decoded.seconds
            assert abs(lost + decoded.seconds - 4) < 0.16
    assert "broken or truncated" in refusal(data[:16])


@pytest.mark.parametrize("order", ["RIFF", "RIFX"])
def test_a_wav_whose_sizes_are_0_is_read_to_its_end(order: str) -> None:
    data = encoded(sine(), "WAV", endian="BIG" if order == "RIFX" else "LITTLE")
    assert data.startswith(order.encode())
    at = data.index(b"data") + 4
    unfinished = data[:4] + bytes(4) + data[8:at] + bytes(4) + data[at + 4 :]
    decoded = decode_audio(unfinished)
    assert (decoded.seconds, decoded.warnings) == (1.0, ())
    assert np.allclose(decoded.samples, sine(), atol=1e-4)
    empty = data[:at] + bytes(4) + b"LIST" + struct.pack("<I" if order == "RIFF" else ">I", 4) + b"INFO"
    assert "lasts 0 s" in refusal(empty)


@pytest.mark.parametrize("stated", [0x7FFFFFFF, 0x80000000, 0xFFFFFFFF])
def test_a_wav_that_was_written_to_a_pipe_is_read_to_its_end(stated: int) -> None:
    data = encoded(sine())
    at = data.index(b"data") + 4
    piped = data[:4] + b"\xff" * 4 + data[8:at] + struct.pack("<I", stated) + data[at + 4 :]
    decoded = decode_audio(piped)
    assert decoded.seconds == 1.0
    assert decoded.warnings == ()


def test_what_lies_behind_the_end_that_a_header_states_is_reported() -> None:
    noise = 0.1 * np.random.default_rng(0).standard_normal(20 * RATE).astype(np.float32)
    decoded = decode_audio(with_frames(encoded(noise, "FLAC"), 2 * RATE))
    assert decoded.seconds == 2.0
    assert "is behind its stated end" in decoded.warnings[0]
    for codec in ("VORBIS", "OPUS"):
        two = decode_audio(encoded(sine(2), "OGG", codec) + encoded(sine(2), "OGG", codec))
        assert two.seconds == 2.0
        assert two.warnings == (
            "the Ogg file has 2 streams, only the first was read: send the others as separate files.",
        )


def test_small_files_that_expand_to_hours_are_refused_by_their_headers() -> None:
    quiet = np.zeros(RATE * 60 * 10, np.int16)
    quiet[::RATE] = 9
    flac = encoded(quiet, "FLAC", compression_level=1.0)
    for data, length in ((with_frames(flac, 2**36 - 1), 4_294_967.3), (opus_of_silence(500), 7_650.0)):
        assert len(data) < 2**20
        tracemalloc.start()
        before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        begin = time.process_time()
        message = refusal(data)
        taken = time.process_time() - begin
        held = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
        assert f"lasts at least {length:,.1f} s, 1,800.0 are allowed: send parts" in message
        assert taken < 1
        assert held < 3 * 2**20
        assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 20_000  # KiB


def test_a_file_that_hides_its_length_is_stopped_while_decoding_and_memory_stays_flat() -> None:
    quiet = np.zeros((44_100 * 120, 4), np.int16)
    quiet[::44_100] = 9
    data = with_frames(encoded(quiet, "FLAC", rate=44_100), 0)
    assert len(data) < 300_000
    limits = AudioLimits(max_seconds=60)
    decode_audio(encoded(sine(1, 44_100), rate=44_100))  # what libraries take for themselves
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    tracemalloc.start()
    message = refusal(data, limits)
    held = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert "60.0 are allowed" in message
    # The minute at 16 kHz, 4 MB, and a few blocks: at its own rate and channels it is 42 MB, and the whole file 85 MB.
    assert held < 8 * 2**20
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 30_000  # KiB
    assert "samples in 4 channels" in refusal(data, AudioLimits(max_samples=4_000_000))


def test_vorbis_codebooks_that_unfold_to_gigabytes_are_refused() -> None:
    assert "the audio is silent" in refusal(vorbis_of_books(2, 15))  # no broken file, refused for that
    data = vorbis_of_books(200, 19)
    assert len(data) < 10_000
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    begin = time.process_time()
    assert "Vorbis codebooks of 7,864,320 numbers or more" in refusal(data)
    assert time.process_time() - begin < 0.5
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 20_000  # KiB
    # The headers may be spread over pages; where libogg could see other ones than are checked, nothing is decoded.
    second = data.index(b"OggS", 4)
    third = data.index(b"OggS", second + 4)
    assert "broken" in refusal(data[:second] + b"junk" + data[second:])
    assert "broken" in refusal(data[:second] + data[second : third - 1] + b"?" + data[third:])


def test_marks_of_pages_without_end_take_no_time() -> None:
    data = encoded(sine(), "OGG", "VORBIS") + b"OggS" * 200_000
    begin = time.process_time()
    assert "more than 100,000 pages" in refusal(data)
    assert time.process_time() - begin < 0.5


@pytest.mark.parametrize(("kind", "codec"), KINDS)
def test_damaged_files_are_audio_or_refused(kind: str, codec: str) -> None:
    random = np.random.default_rng(5)
    rate = 48_000 if codec == "OPUS" else RATE
    data = encoded(0.2 * random.standard_normal(rate // 2).astype(np.float32), kind, codec, rate)
    for number in range(20):
        broken = bytearray(data)
        for place in random.integers(0, len(data) if number % 2 else 200, 6):
            broken[place] = random.integers(256)
        if number % 5 == 0:
            del broken[int(random.integers(len(data))) :]
        try:
            decoded = decode_audio(bytes(broken))
        except MediaError:
            continue
        assert np.abs(decoded.samples).max() <= 1
        assert len(decoded.samples) >= 0.1 * RATE - 1
