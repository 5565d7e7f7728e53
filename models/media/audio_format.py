"""What kind of audio the bytes of a file are, by their first bytes alone: nothing is decoded.

The allow-list is here. Sources: RIFF/WAVE (Microsoft 1994, and mmreg.h for codec tags), RFC 9639 (FLAC), RFC 3533
(Ogg pages), Vorbis I (Xiph 2020), ISO/IEC 11172-3 (frame headers of MPEG audio).
"""

import struct
import zlib
from collections.abc import Iterator

from kauli.models.errors import MediaError

ALLOWED = "WAV, FLAC, Ogg or MP3"

DECODED = frozenset(
    [(kind, f"PCM_{form}") for kind in ("WAV", "WAVEX") for form in ("U8", "16", "24", "32")]
    + [(kind, form) for kind in ("WAV", "WAVEX") for form in ("FLOAT", "DOUBLE")]
    + [("FLAC", f"PCM_{form}") for form in ("S8", "16", "24")]
    + [("OGG", "VORBIS"), ("OGG", "OPUS"), ("MP3", "MPEG_LAYER_III")]
)
"""libsndfile's format and subtype of all that is decoded."""

_OTHER_MARKS = (
    (b"\x1aE\xdf\xa3", "a WebM or Matroska file"),
    (b"0&\xb2u\x8ef\xcf\x11", "a WMA or other ASF file"),
    (b"#!AMR", "an AMR file"),
    (b"#!SILK", "a SILK file"),
    (b"caff", "a CAF file"),
    (b"FORM", "an AIFF or other IFF file"),
    (b".snd", "an AU file"),
    (b"RF64", "an RF64 file"),
    (b"MThd", "a MIDI file"),
    (b"FLV", "a Flash video"),
    (b"\0\0\1\xba", "an MPEG video"),
    (b"PK\3\4", "a ZIP archive"),
    (b"\x1f\x8b", "a gzip archive"),
    (b"%PDF", "a PDF"),
    (b"\x89PNG", "an image"),
    (b"\xff\xd8\xff", "an image"),
    (b"GIF8", "an image"),
)
_WAV_READ = (1, 3)  # integers, floats
_WAV_EXTENSIBLE = 0xFFFE
_WAV_CODECS = {2: "ADPCM", 6: "A-law", 7: "mu-law", 0x11: "ADPCM", 0x31: "GSM 6.10", 0x55: "MP3"}
_OGG_READ = (b"\x01vorbis", b"OpusHead")
_OGG_CODECS = {b"\x80theora": "Theora video", b"Speex   ": "Speex", b"\x7fFLAC": "FLAC"}

_MOST_CHUNKS = 1000  # of a WAV that are looked at; those of an honest one are fewer than ten
_MOST_PAGES = 100_000  # of an Ogg: one for each 20 ms of half an hour; a mark that is no page costs libogg 15 us
_MOST_CODES = 2**20  # numbers in the codebooks of a Vorbis stream; libvorbis writes fewer than 100,000
_UNKNOWN_SIZE = 0x7FFF0000  # and more: what writers to a pipe put for a WAV whose end they can't know


def _audio_name(data: bytes) -> str | None:
    """One of `ALLOWED` by the first bytes; None for anything else."""
    if data[:4] == b"RIFF" and data[8:12] == b"WAVE":
        return "WAV"
    if data[:4] == b"fLaC":
        return "FLAC"
    if data[:4] == b"OggS":
        return "Ogg"
    return "MP3" if data[:3] == b"ID3" or _mpeg_layer(data) == 3 else None


def audio_format_of(data: bytes) -> str:
    """WAV, FLAC, Ogg or MP3 by the first bytes; `MediaError`, with what to send, for another container or codec."""
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


def refusal(what: str) -> MediaError:
    """Of a file that is `what`."""
    way = "ffmpeg -i IN -ac 1 -ar 16000 OUT.wav"
    return MediaError(f"this is {what}, which is not read: send {ALLOWED}, for instance by: {way}")


def ends_early(name: str, data: bytes) -> bool:
    """Whether a WAV or Ogg file lacks bytes at its end; FLAC and MP3 tell by what is decoded."""
    if name == "WAV":
        size, room = next(((size, len(data) - at) for kind, at, size in _wav_chunks(data) if kind == b"data"), (0, 0))
        return room < size < _UNKNOWN_SIZE
    if name == "Ogg":
        page = data[data.rfind(b"OggS") :]
        lacing = page[27 : 27 + page[26]] if len(page) > 26 else b""
        last = bool(lacing) and bool(page[5] & 4)  # the flag of the stream's last page
        return not last or len(page) < 27 + len(lacing) + sum(lacing)
    return False


def ogg_streams(data: bytes) -> int:
    """How many streams an Ogg file has, in a row or side by side; libsndfile reads the first."""
    return sum(data.count(mark) for mark in _OGG_READ)


def _what_instead(data: bytes) -> str:
    """What a file is that has no `_audio_name`, in words."""
    if data[4:8] == b"ftyp":
        return "an M4A, MP4 or 3GP file"
    if data[:4] == b"RIFF":
        return "an image" if data[8:12] == b"WEBP" else "an AVI video or other RIFF file"
    if data[:2] in (b"\xff\xf0", b"\xff\xf1", b"\xff\xf8", b"\xff\xf9"):
        return "an AAC file"
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


def _wav_chunks(data: bytes) -> Iterator[tuple[bytes, int, int]]:
    """(kind, where its content begins, the size that it states)."""
    at = 12
    for _ in range(_MOST_CHUNKS):
        if at + 8 > len(data):
            return
        kind, size = struct.unpack_from("<4sI", data, at)
        yield kind, at + 8, size
        at += 8 + size + size % 2


def _wav_tag(data: bytes, at: int) -> int:
    """The codec of a format chunk; an extensible one has it at the start of its GUID."""
    tag = int.from_bytes(data[at : at + 2], "little")
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
