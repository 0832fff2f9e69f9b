"""Log-mel features as Whisper hears them (Radford et al. 2022, section 2.2): 25 ms windows every 10 ms at 16 kHz.

Shapes: T samples, N bands, F frames.
"""

from __future__ import annotations

from functools import cache

import numpy as np
from numpy.typing import NDArray

from stepaudio.audio.pcm import Samples

RATE = 16_000
HOP = 160
FFT = 400


def whisper_log_mel(samples: Samples, bands: int = 80) -> NDArray[np.float32]:
    """Samples [T] at 16 kHz to log-mel energies [N, T // 160], clamped to 80 dB below the loudest and scaled to
    about [-1, 1]. T is at least 201: the signal is mirrored at both ends."""
    mirrored = np.pad(samples, FFT // 2, mode="reflect")
    frames_FT = np.lib.stride_tricks.sliding_window_view(mirrored, FFT)[::HOP][: len(samples) // HOP]
    spectrum_FK = np.fft.rfft(frames_FT * _hann(), axis=-1)
    power_FK = (spectrum_FK.real**2 + spectrum_FK.imag**2).astype(np.float32)
    log_NF = np.log10(np.maximum(mel_filters(bands) @ power_FK.T, 1e-10))
    scaled: NDArray[np.float32] = (np.maximum(log_NF, log_NF.max() - 8.0) + 4.0) / 4.0
    return scaled


@cache
def mel_filters(bands: int, fft: int = FFT, rate: int = RATE, high_hz: float | None = None) -> NDArray[np.float32]:
    """Triangular filters [N, fft // 2 + 1] of equal area, evenly spaced on Slaney's mel scale from 0 Hz to `high_hz`,
    half the rate if None (linear below 1 kHz, logarithmic above; Auditory Toolbox, 1998)."""
    top = _mel(rate / 2 if high_hz is None else high_hz)
    edges = _hertz(np.linspace(0.0, top, bands + 2))
    bins = np.linspace(0.0, rate / 2, fft // 2 + 1)
    rising = (bins - edges[:-2, None]) / np.diff(edges)[:-1, None]
    falling = (edges[2:, None] - bins) / np.diff(edges)[1:, None]
    triangles = np.maximum(0.0, np.minimum(rising, falling))
    area = (edges[2:] - edges[:-2])[:, None] / 2
    return (triangles / area).astype(np.float32)


_BREAK_HERTZ = 1000.0
_HERTZ_PER_MEL = 200.0 / 3
_BREAK_MEL = _BREAK_HERTZ / _HERTZ_PER_MEL
_LOG_STEP = np.log(6.4) / 27


def _mel(hertz: float) -> float:
    """Mel of a frequency above the break."""
    return float(_BREAK_MEL + np.log(hertz / _BREAK_HERTZ) / _LOG_STEP)


def _hertz(mel: NDArray[np.float64]) -> NDArray[np.float64]:
    above = _BREAK_HERTZ * np.exp(_LOG_STEP * (mel - _BREAK_MEL))
    return np.where(mel < _BREAK_MEL, mel * _HERTZ_PER_MEL, above)


@cache
def _hann() -> NDArray[np.float32]:
    """A periodic Hann window."""
    return np.hanning(FFT + 1)[:-1].astype(np.float32)
