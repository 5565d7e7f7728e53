"""How speech sounds: DNSMOS, the distance of its spectrum to a recording's, and that of its melody."""

from functools import cache
from typing import Any

import numpy as np
from scipy.fft import dct

from kauli.models.bases.packages import Package, fetch_package
from kauli.models.media.decode import RATE

MOS = Package(
    kind="pypi", name="speechmos", version="0.0.1.1",
    sha256="31c4c9d3234f6ee10102edff74333014c50006a3f389daf7ecacae34e68ebbf7",
)  # fmt: skip
_MOS_SECONDS = 9.01
_POLYNOMIAL = (-0.06766283, 1.11546468, 0.04602535)  # of DNSMOS P.835, overall
FRAMES_PER_SECOND = 100
_FRAME, _HOP = RATE * 32 // 1000, RATE // FRAMES_PER_SECOND
_MELS, _CEPSTRA = 40, 13
_LOWEST, _HIGHEST = 60.0, 420.0  # Hz, of a voice
_VOICED = 0.2  # of the normalised difference: YIN's threshold is 0.1 for clean speech


class Dnsmos:
    """The network of DNSMOS P.835 (Reddy et al. 2022, arXiv 2110.01763) from the package speechmos."""

    def __init__(self) -> None:
        """Fetches the package once."""
        import onnxruntime

        path = fetch_package(MOS) / "speechmos/dnsmos_models/sig_bak_ovr.onnx"
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = 1
        self._session = onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])

    def overall(self, samples: Any) -> float:
        """Of samples (n,) at 16 kHz, from 1 to 5; they are repeated where they are shorter than what it takes."""
        length = int(_MOS_SECONDS * RATE)
        repeated = np.tile(samples, -(-length // max(1, len(samples))))[:length].astype(np.float32)
        [[[_, _, overall]]] = self._session.run(None, {"input_1": repeated[None]})
        return float(np.polyval(_POLYNOMIAL, overall))


def cepstra(samples: Any) -> Any:
    """(F, 13) mel cepstra of samples (n,) at 16 kHz, 100 a second, without the level: see `of_spectra`."""
    return of_spectra(mel_spectra(samples))


def mel_spectra(samples: Any) -> Any:
    """(F, 40) natural logarithms of the power in mel bands of samples (n,) at 16 kHz, 100 a second."""
    frames = _frames(samples) * np.hanning(_FRAME)
    power = np.abs(np.fft.rfft(frames, axis=1)) ** 2
    return np.log(np.maximum(power @ _bank(), 1e-8))


def of_spectra(logs: Any) -> Any:
    """(F, B) natural logarithms of power in B bands -> (F, 13): cosines that add up to that of the amplitude."""
    return dct(logs, axis=1, norm="ortho")[:, 1 : _CEPSTRA + 1] / np.sqrt(2 * logs.shape[1])


def aligned_frames(one: Any, other: Any) -> Any:
    """(P, 2) places in both sequences (F, W) and (G, W) on the path of the least distance: dynamic time warping."""
    costs = np.sqrt(np.maximum((one**2).sum(1)[:, None] + (other**2).sum(1)[None] - 2 * one @ other.T, 0))
    total = np.full((len(one) + 1, len(other) + 1), np.inf)
    total[0, 0] = 0.0
    for diagonal in range(2, len(one) + len(other) + 1):  # what lies on one diagonal does not depend on each other
        rows = np.arange(max(1, diagonal - len(other)), min(len(one), diagonal - 1) + 1)
        columns = diagonal - rows
        beside = np.minimum(total[rows - 1, columns], total[rows, columns - 1])
        total[rows, columns] = costs[rows - 1, columns - 1] + np.minimum(beside, total[rows - 1, columns - 1])
    path, at, to = [], len(one), len(other)
    while at and to:
        path.append((at - 1, to - 1))
        step = int(np.argmin([total[at - 1, to - 1], total[at - 1, to], total[at, to - 1]]))
        at, to = at - (step != 2), to - (step != 1)
    return np.array(path[::-1])


def distortion(one: Any, other: Any) -> tuple[float, float]:
    """(sum, frames) of the mel-cepstral distortion in dB (Kubichek 1993) of samples at 16 kHz, aligned in time."""
    mine, theirs = cepstra(one), cepstra(other)
    path = aligned_frames(mine, theirs)
    each = decibels(mine[path[:, 0]] - theirs[path[:, 1]])
    return float(each.sum()), float(len(path))


def decibels(apart: Any) -> Any:
    """(F, 13) differences of cepstra -> (F,) dB: the root mean square over frequency of the spectra's difference."""
    return 10 / np.log(10) * np.sqrt(2 * (apart**2).sum(1))


def melody_error(one: Any, other: Any) -> tuple[float, float]:
    """(sum of squares, frames): semitones between both pitches, each around its own median, where both are voiced."""
    path = aligned_frames(cepstra(one), cepstra(other))
    mine, theirs = pitch(one)[path[:, 0]], pitch(other)[path[:, 1]]
    both = np.isfinite(mine) & np.isfinite(theirs)
    if not both.any():
        return 0.0, 0.0
    mine, theirs = mine[both] - np.median(mine[both]), theirs[both] - np.median(theirs[both])
    return float(((mine - theirs) ** 2).sum()), float(both.sum())


def pitch(samples: Any) -> Any:
    """(F,) the pitch in semitones, 100 a second, NaN where nothing is voiced: YIN (de Cheveigné and Kawahara 2002)."""
    frames = _frames(samples)
    shortest, longest = int(RATE / _HIGHEST), min(int(RATE / _LOWEST), _FRAME // 2)
    size = 2 * _FRAME
    spectrum = np.fft.rfft(frames, size, axis=1)
    head = np.fft.rfft(frames[:, : _FRAME // 2], size, axis=1)
    products = np.fft.irfft(np.conj(head) * spectrum, size, axis=1)[:, : longest + 1]
    squares = np.cumsum(np.pad(frames**2, ((0, 0), (1, 0))), axis=1)
    lags = np.arange(longest + 1)
    energy = squares[:, lags + _FRAME // 2] - squares[:, lags]
    difference = np.maximum(energy[:, :1] + energy - 2 * products, 0)
    running = np.cumsum(difference[:, 1:], axis=1) / np.arange(1, longest + 1)
    normal = difference[:, 1:] / np.maximum(running, 1e-12)
    found = np.full(len(frames), np.nan)
    for row, values in enumerate(normal):
        below = np.flatnonzero(values[shortest - 1 :] < _VOICED)
        if len(below) and energy[row, 0] > 1e-6 * _FRAME:
            lag = below[0] + shortest - 1
            while lag + 1 < longest and values[lag + 1] < values[lag]:
                lag += 1
            found[row] = 12 * np.log2(RATE / (lag + 1))
    return found


def _frames(samples: Any) -> Any:
    samples = np.asarray(samples, np.float64)
    padded = np.pad(samples, (0, max(0, _FRAME - len(samples))))
    return np.lib.stride_tricks.sliding_window_view(padded, _FRAME)[::_HOP]


@cache
def _bank() -> Any:
    from torchaudio.functional import melscale_fbanks  # here: a stored report is drawn without torch

    return melscale_fbanks(_FRAME // 2 + 1, 20.0, RATE / 2, _MELS, RATE, norm="slaney").double().numpy()
