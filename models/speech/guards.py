"""What guards against text out of nothing: recognisers invent words and loops in noise, hum and near-silence.

Whisper's own rules (Radford et al. 2022, arXiv 2212.04356, section 4.5) with two changes that were measured: a loop
counts as an unlikely text, since the model is sure of its loops; and steady noise near silence is not transcribed.
"""

import zlib
from typing import Any

import numpy as np
import regex
from pydantic import Field

from kauli.models.frozen import FrozenModel
from kauli.models.media.decode import RATE
from kauli.models.speech.loops import ZLIB_RATIO, looped

_FRAME = RATE // 50
_WORD = 10  # frames of the shortest word
_STEADY = 2.5  # dB from noise to the loudest word; speech 10 dB above white noise has 3.5 or more, the noise itself 1.7
_NEAR_SILENCE = -40.0  # dB of full scale, of differences; speech in the starter data has -38 or more
_SHOWN = 60  # characters
_LETTER = regex.compile(r"[\p{L}\p{N}]")


class Guards(FrozenModel):
    """Thresholds by which a part of a transcript is left out, or reported as doubtful."""

    no_speech_threshold: float = Field(default=0.6, ge=0, le=1)
    """The probability of no speech above which a text that is unlikely or loops is left out; 1: nothing is."""
    logprob_threshold: float = -1.0
    """The mean log probability of a text's tokens below which it is unlikely."""
    compression_ratio_threshold: float = Field(default=ZLIB_RATIO, gt=0)
    """How often zlib shortens a text that loops; of its characters, since of UTF-8 it shortens any text in Georgian."""

    def silent(self, samples: Any) -> bool:
        """Whether samples (n,) are steady noise near silence, which need not be transcribed."""
        # Differences weaken hum, by 29 dB at 50 Hz, and keep what sets speech apart
        frames = np.diff(samples, prepend=samples[:1])[: len(samples) // _FRAME * _FRAME].reshape(-1, _FRAME)
        if self.no_speech_threshold >= 1 or len(frames) < 2 * _WORD:
            return False
        level = np.sort(10 * np.log10(np.maximum((frames**2).mean(1), 1e-12)))
        word = level[-_WORD]
        return bool(word < _NEAR_SILENCE and word - level[len(level) // 20] < _STEADY)

    def judge(self, text: str, no_speech_prob: float | None, avg_logprob: float | None) -> tuple[bool, str]:
        """Whether a text is left out as none that was spoken, and what is wrong with it, as the end of a sentence."""
        unlikely = avg_logprob is not None and avg_logprob < self.logprob_threshold
        loops = looped(text, self.compression_ratio_threshold)
        faults = [
            *(["has no words"] if text.strip() and not _LETTER.search(text) else []),
            *([f"repeats itself (compression_ratio {compression_ratio(text):.1f})"] if loops else []),
            *([f"is uncertain (avg_logprob {avg_logprob:.2f})"] if unlikely else []),
        ]
        wrong = " and ".join(faults)
        if not faults or (no_speech_prob or 0.0) <= self.no_speech_threshold:
            return False, wrong
        line = " ".join(text.split())
        line = line if len(line) <= _SHOWN else f"{line[:_SHOWN]}..."
        why = f"nothing seems to be spoken (no_speech_prob {no_speech_prob:.2f}), and it {wrong}"
        return True, f"is left out: {why}: '{line}'"


def compression_ratio(text: str) -> float:
    """How much zlib shortens the text's UTF-8, as openai-whisper has it."""
    data = text.encode()
    return round(len(data) / len(zlib.compress(data)), 4)
