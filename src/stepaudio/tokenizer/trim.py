"""Silence around a prompt, cut as the released tokenizer cuts it before it makes codes of a voice to clone."""

from __future__ import annotations

import numpy as np

from stepaudio.tokenizer.fbank import RATE, Floats

_FRAME, _HOP = 512, 128
_QUIET = 10 ** (-20 / 20)
"""Frames whose root mean square is 20 dB or more below that of the loudest are silence."""
_FLOOR = 1e-5
_BEFORE, _MARGINS = round(0.05 * RATE), round(0.27 * RATE)
_GRID = 240
"""15 ms: the voiced length is rounded up to whole ones."""


def trim_silence(samples: Floats) -> Floats:
    """Samples [T] at 16 kHz to the voiced stretch with 50 ms before it and 220 ms after its last 15 ms.

    Where the recording has less, there are zeros. Digital silence counts as voiced. Loudness is measured over frames
    of 512 samples around every 128th, as librosa's trim does.
    """
    padded = np.pad(samples, _FRAME // 2)
    power = np.lib.stride_tricks.sliding_window_view(np.square(padded, dtype=np.float64), _FRAME)[::_HOP].mean(axis=1)
    loudness = np.maximum(np.sqrt(power), _FLOOR)
    voiced = np.flatnonzero(loudness > loudness.max() * _QUIET)
    begin, end = int(voiced[0]) * _HOP, min(len(samples), (int(voiced[-1]) + 1) * _HOP)
    length = -(-(end - begin) // _GRID) * _GRID + _MARGINS
    padded = np.pad(samples, (_BEFORE, length))
    return padded[begin : begin + length]
