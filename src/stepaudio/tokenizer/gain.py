"""Loudness for the tokenizer: by the peak of the whole utterance, or by the peak so far.

The released tokenizer scales an utterance so that its peak is 0.999, which needs all of it. A stream is
scaled by the loudest sample so far instead, one that fades so that a cough does not quieten the rest of a
conversation.
"""

from __future__ import annotations

import numpy as np

from stepaudio.tokenizer.fbank import RATE, Floats

TARGET = 0.999
QUIETEST = 0.01
"""Peaks below this are noise and are not brought up further, so silence stays silent."""


def normalise_peak(samples: Floats) -> Floats:
    """Samples [T] scaled to a peak of 0.999; by no more than 99.9."""
    peak = float(np.abs(samples).max(initial=0.0))
    return samples * np.float32(TARGET / max(peak, QUIETEST))


class RunningGain:
    """Causal loudness normalisation: out = 0.999 x / max(peak so far, 0.01), never above 0.999.

    The peak starts at `start` (ordinary close speech, so that the first quiet breath is not blown up) and
    halves every `half_life` seconds while nothing is as loud. It fades at fixed times, every 10 ms of the
    stream, so the output does not depend on how the stream is cut.
    """

    _STEP = RATE // 100

    def __init__(self, *, start: float = 0.1, half_life: float = 10.0) -> None:
        self._start = np.float32(start)
        self._fade = np.float32(0.5 ** (0.01 / half_life))
        self.reset()

    def reset(self) -> None:
        self._peak = self._start
        self._phase = 0

    def push(self, samples: Floats) -> Floats:
        """Samples [T] to as many normalised samples [T], at once."""
        out = np.empty(len(samples), dtype=np.float32)
        done = 0
        while done < len(samples):
            piece = samples[done : done + self._STEP - self._phase]
            peaks = np.maximum.accumulate(np.maximum(np.abs(piece), self._peak))
            out[done : done + len(piece)] = piece * (np.float32(TARGET) / np.maximum(peaks, np.float32(QUIETEST)))
            self._peak = peaks[-1]
            self._phase += len(piece)
            done += len(piece)
            if self._phase == self._STEP:
                self._phase = 0
                self._peak = self._peak * self._fade
        return out
