"""What kind of audio the bytes of a file are, by their first bytes alone: nothing is decoded.

The allow-list is here. Sources: RIFF/WAVE (Microsoft 1994, and mmreg.h for codec tags), RFC 9639 (FLAC), RFC 3533
(Ogg pages), Vorbis I (Xiph 2020), ISO/IEC 11172-3 (frame headers of MPEG audio).
"""

import struct
import zlib
from collections.abc import Iterator
from typing import Literal

from kauli.models.errors import MediaError

ALLOWED = "WAV, FLAC, Ogg or MP3"

CONTAINERS = frozenset(("WAV", "WAVEX", "RF64", "W64", "AIFF", "AU", "CAF", "NIST", "FLAC", "OGG", "MP3"))
"""Those that libsndfile decodes here, by its names. Its others are rare, and their parsers hardly tested."""
CODECS = frozenset(
    [f"PCM_{form}" for form in ("U8", "S8", "16", "24", "32")]
    + ["FLOAT", "DOUBLE", "ULAW", "ALAW", "IMA_ADPCM", "MS_ADPCM", "GSM610", "G721_32", "G723_24", "G723_40"]
    + [f"NMS_ADPCM_{form}" for form in ("16", "24", "32")]
    + [f"ALAC_{form}" for form in ("16", "20", "24", "32")]
    + ["VORBIS", "OPUS", "MPEG_LAYER_I", "MPEG_LAYER_II", "MPEG_LAYER_III"]
)
"""libsndfile's subtypes that are decoded."""
FOREIGN = {"M4A": "an M4A, MP4 or 3GP file", "WebM": "a WebM or Matroska file", "AAC": "an AAC file",
           "AMR": "an AMR file"}  # fmt: skip
"""What `kauli.models.media.foreign_audio` reads."""

_MARKS = (
    (b"fLaC", "FLAC"),
    (b"OggS", "Ogg"),
    (b"ID3", "MP3"),
    (b"RF64", "RF64"),
    (b"riff.\x91\xcf\x11", "W64"),
    (b"caff", "CAF"),
    (b".snd", "AU"),
    (b"NIST_1A", "SPHERE"),
    (b"\x1aE\xdf\xa3", "WebM"),
    (b"#!AMR", "AMR"),
    *((bytes((0xFF, last)), "AAC") for last in (0xF0, 0xF1, 0xF8, 0xF9)),
)
_OTHER_MARKS = (
    (b"0&\xb2u\x8ef\xcf\x11", "a WMA or other ASF file"),
    (b"#!SILK", "a SILK file"),
    (b"FORM", "an IFF file"),
    (b"MThd", "a MIDI file"),
    (b"FLV", "a Flash video"),
    (b"\0\0\1\xba", "an MPEG video"),
    (b"PK\3\4", "a ZIP archive"),
    (b"\x1f\x8b", "a gzip archive"),
    (b"%PDF", "a PDF"),
    (b"version https://git-lfs", "a pointer of Git LFS (git lfs pull fetches the file)"),
    (b"\x89PNG", "an image"),
    (b"\xff\xd8\xff", "an image"),
    (b"GIF8", "an image"),
)
_WAV_READ = (1, 2, 3, 6, 7, 0x11, 0x31, 0x38, 0x40, 0x55)  # integers, ADPCM, floats, A-law, mu-law, GSM, G.721, MP3
_WAV_EXTENSIBLE = 0xFFFE
_WAV_CODECS = {0x50: "MPEG layer II", 0xFF: "AAC", 0x160: "WMA", 0x161: "WMA", 0x2000: "AC-3"}
_OGG_READ = (b"\x01vorbis", b"OpusHead")
_OGG_CODECS = {b"\x80theora": "Theora video", b"Speex   ": "Speex", b"\x7fFLAC": "FLAC"}

_MOST_CHUNKS = 1000  # of a WAV that are looked at; those of an honest one are fewer than ten
_MOST_PAGES = 100_000  # of an Ogg: one for each 20 ms of half an hour; a mark that is no page costs libogg 15 us
_MOST_CODES = 2**20  # numbers in the codebooks of a Vorbis stream; libvorbis writes fewer than 100,000
_MP3_TAIL = 16_384  # bytes of an MP3 that are looked at; a frame has at most 1,441
_KILOBITS = (
    (0, 8, 16, 24, 32, 40, 48, 56, 64, 80, 96, 112, 128, 144, 160),  # MPEG-2 and 2.5, layer III
    (0, 32, 40, 48, 56, 64, 80, 96, 112, 128, 160, 192, 224, 256, 320),  # MPEG-1
)
_UNKNOWN_SIZE = 0x7FFF0000  # and more: what writers to a pipe put for a WAV whose end they can't know


def _audio_name(data: bytes) -> str | None:
    """The container by the first bytes; None for one that is not read."""
    if data[:4] in (b"RIFF", b"RIFX") and data[8:12] == b"WAVE":
        return "WAV"
    if data[:4] == b"FORM" and data[8:12] in (b"AIFF", b"AIFC"):
        return "AIFF"
    if data[4:8] == b"ftyp":
        return "M4A"
    return next((name for mark, name in _MARKS if data.startswith(mark)), "MP3" if _mpeg_layer(data) == 3 else None)


def audio_format_of(data: bytes) -> str:
    """The container by the first bytes; `MediaError`, with what to send, for one that is not read, or its codec."""
    if not data:
        raise MediaError(f"the audio is empty: send the bytes of a {ALLOWED} file.")
    name = _audio_name(data)
    if name is None:
        raise refusal(_what_instead(data))
    codec = _foreign_codec(name, data)
    if codec:
        raise refusal(f"{'an' if name == 'Ogg' else 'a'} {name} file that holds {codec}")
    if name == "Ogg":
        _check_ogg(data)
    return name


def broken(name: str) -> MediaError:
    """Of a file that is `name` by its first bytes, and can't be decoded."""
    return MediaError(f"the {name} audio is broken or truncated: send the whole file again.")


def refusal(what: str, why: str = "") -> MediaError:
    """Of a file that is `what`; `why` begins with a blank."""
    way = "ffmpeg -i IN -ac 1 -ar 16000 OUT.wav"
    return MediaError(f"this is {what}, which is not read{why}: send {ALLOWED}, for instance by: {way}")


def ends_early(name: str, data: bytes) -> bool:
    """Whether a file lacks its end, as its last bytes show."""
    if name == "Ogg":
        page = data[data.rfind(b"OggS") :]
        lacing = page[27 : 27 + page[26]] if len(page) > 26 else b""
        last = bool(lacing) and bool(page[5] & 4)  # the flag of the stream's last page
        return not last or len(page) < 27 + len(lacing) + sum(lacing)
    return _mp3_ends_early(data) if name == "MP3" else missing_share(name, data) > 0


def missing_share(name: str, data: bytes) -> float:
    """The bytes that a file lacks by its header, in parts of those that are there; 0 where it states none."""
    stated, there = 0, len(data)
    if name == "WAV":
        stated, there = next(((size, there - at) for kind, at, size in _wav_chunks(data) if kind == b"data"), (0, 1))
    elif name == "AIFF":
        stated = 8 + int.from_bytes(data[4:8], "big")
    elif name == "AU":
        stated = sum(struct.unpack(">II", data[4:12].ljust(8, b"\0")))
    elif name == "RF64":
        stated = 8 + int.from_bytes(data[20:28], "little")
    elif name == "W64":
        stated = int.from_bytes(data[16:24], "little")
    return max(0, stated - there) / max(there, 1) if stated < _UNKNOWN_SIZE else 0.0


def with_sizes(data: bytes) -> bytes:
    """A WAV whose header states 0 bytes of samples, as after a crash of the recorder, with the true sizes."""
    chunks = list(_wav_chunks(data))
    _, last, size = chunks[-1] if chunks else (b"", 0, 0)
    at = next((at for kind, at, size in chunks if kind == b"data" and not size), len(data))
    if at == len(data) or at < last == len(data) - size:  # nothing follows, or true chunks
        return data
    order: Literal["big", "little"] = "big" if data[:4] == b"RIFX" else "little"
    whole, samples = ((len(data) - start).to_bytes(4, order) for start in (8, at))
    return data[:4] + whole + data[8 : at - 4] + samples + data[at:]


def ogg_streams(data: bytes) -> int:
    """How many streams an Ogg file has, in a row or side by side; libsndfile reads the first."""
    return sum(data.count(mark) for mark in _OGG_READ)


def _what_instead(data: bytes) -> str:
    """What a file is that has no `_audio_name`, in words."""
    if data[:4] == b"RIFF":
        return "an image" if data[8:12] == b"WEBP" else "an AVI video or other RIFF file"
    if _mpeg_layer(data):
        return "an MPEG audio file of layer I or II (MP1, MP2)"
    for mark, what in _OTHER_MARKS:
        if data.startswith(mark):
            return what
    if data[:256].lstrip(b"\xef\xbb\xbf").lstrip().startswith(b"<"):
        return "an HTML page or other XML"
    return f"a file of an unknown type (its first bytes are {data[:12]!r})"


def _foreign_codec(name: str, data: bytes) -> str:
    """What codec the container `name` holds, where that is none which is read; an empty string otherwise.

    FLAC and MP3 are their own codecs; a WAV without a format chunk is left to the decoder, which refuses it.
    """
    if name == "WAV":
        tag = next((_wav_tag(data, at) for kind, at, _ in _wav_chunks(data) if kind == b"fmt "), _WAV_READ[0])
        return "" if tag in _WAV_READ else _WAV_CODECS.get(tag, f"the codec 0x{tag:04X}")
    if name == "Ogg":
        first = data[27 + int.from_bytes(data[26:27], "little") :][:8]  # the first packet, behind the page's lacing
        if len(first) == 8 and not first.startswith(_OGG_READ):  # less is a file that is cut off
            return next((what for mark, what in _OGG_CODECS.items() if first.startswith(mark)), "an unknown codec")
    return ""


def _mpeg_layer(data: bytes) -> int:
    """1, 2 or 3 where a frame of MPEG audio begins, 0 otherwise."""
    header = int.from_bytes(data[:4], "big")
    sync, version, layer = header >> 21, header >> 19 & 3, header >> 17 & 3
    good = sync == 0x7FF and version != 1 and header >> 12 & 15 != 15 and header >> 10 & 3 != 3
    return 4 - layer if good and layer else 0


def _mp3_ends_early(data: bytes) -> bool:
    """Whether the last frame of an MP3 lacks bytes: found by frames that follow one another at its end."""
    tail = data[-_MP3_TAIL:]
    start = tail.find(b"\xff")
    while start >= 0:
        at, frames = start, 0
        while size := _mp3_frame(tail[at : at + 4]):
            at, frames = at + size, frames + 1
        if frames >= 3:
            return at > len(tail)
        start = tail.find(b"\xff", start + 1)
    return False


def _mp3_frame(header: bytes) -> int:
    """Bytes of the frame of MPEG audio, layer III, that begins so; 0 for anything else, or a free bit rate."""
    if len(header) < 4 or _mpeg_layer(header) != 3:
        return 0
    first = header[1] >> 3 & 3 == 3  # MPEG-1; else MPEG-2 or 2.5
    kilobits = _KILOBITS[first][header[2] >> 4]
    rate = (44_100, 48_000, 32_000)[header[2] >> 2 & 3] >> (0, 1, 2)[3 - max(header[1] >> 3 & 3, 1)]
    return (144 if first else 72) * 1000 * kilobits // rate + (header[2] >> 1 & 1) if kilobits else 0


def _wav_chunks(data: bytes) -> Iterator[tuple[bytes, int, int]]:
    """(kind, where its content begins, the size that it states)."""
    at, form = 12, ">4sI" if data[:4] == b"RIFX" else "<4sI"
    for _ in range(_MOST_CHUNKS):
        if at + 8 > len(data):
            return
        kind, size = struct.unpack_from(form, data, at)
        yield kind, at + 8, size
        at += 8 + size + size % 2


def _wav_tag(data: bytes, at: int) -> int:
    """The codec of a format chunk; an extensible one has it at the start of its GUID."""
    tag = int.from_bytes(data[at : at + 2], "big" if data[:4] == b"RIFX" else "little")
    return int.from_bytes(data[at + 24 : at + 26], "little") if tag == _WAV_EXTENSIBLE else tag


def _check_ogg(data: bytes) -> None:
    """Refuse an Ogg file that would take libogg a minute, or libvorbis gigabytes before the first sample."""
    if data.count(b"OggS") > _MOST_PAGES:
        raise refusal(f"an Ogg file of more than {_MOST_PAGES:,} pages")
    packets = _ogg_packets(data, 3)
    if packets[:1] and packets[0].startswith(b"OpusHead"):
        return
    if len(packets) < 3:
        raise broken("Ogg")
    codes = _vorbis_codes(packets[2])
    if codes > _MOST_CODES:
        raise refusal(f"an Ogg file with Vorbis codebooks of {codes:,} numbers or more")


def _ogg_packets(data: bytes, count: int) -> list[bytes]:
    """The first packets of the first stream; fewer where a page is not what libogg, too, must take for the next."""
    packets: list[bytes] = []
    packet = bytearray()
    at = pages = 0
    while len(packets) < count and data[at : at + 4] == b"OggS" and at + 27 <= len(data):
        lacing = data[at + 27 : at + 27 + data[at + 26]]
        body = at + 27 + len(lacing)
        end = body + sum(lacing)
        if data[at + 14 : at + 18] == data[14:18]:  # the stream's serial number
            goes_on, number = bool(data[at + 5] & 1), int.from_bytes(data[at + 18 : at + 22], "little")
            if goes_on != bool(packet) or number != pages or not _ogg_checksum(data[at:end]):
                break
            pages += 1
            for size in lacing:
                packet += data[body : body + size]
                body += size
                if size < 255:
                    packets.append(bytes(packet))
                    packet.clear()
        at = end
    return packets


_REVERSED = bytes(int(f"{byte:08b}"[::-1], 2) for byte in range(256))


def _ogg_checksum(page: bytes) -> bool:
    """Whether a page's checksum is right: zlib's with the bits of each byte in reverse, from 0, not inverted."""
    found = zlib.crc32((page[:22] + bytes(4) + page[26:]).translate(_REVERSED), 0xFFFFFFFF) ^ 0xFFFFFFFF
    return page[22:26] == found.to_bytes(4, "big").translate(_REVERSED)


def _vorbis_codes(setup: bytes) -> int:
    """Entries x dimensions of all codebooks (Vorbis I, 3.2.1), of which a few bytes may announce millions each.

    Each begins with the same three bytes, at any bit: found by them, none can hide, and chance hardly adds one.
    """
    codes = 0
    bits = int.from_bytes(setup, "little")
    for shift in range(8):
        shifted = (bits >> shift).to_bytes(len(setup), "little")
        at = shifted.find(b"BCV")
        while at >= 0 and codes <= _MOST_CODES:
            dimensions, entries = struct.unpack("<HI", shifted[at + 3 : at + 8].ljust(6, b"\0"))
            codes += max(1, dimensions) * max(1, entries)
            at = shifted.find(b"BCV", at + 1)
    return codes
