"""Fundamental frequency by YIN (de Cheveigné and Kawahara 2002), and what it says of a voice."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from stepaudio.audio.pcm import Samples
from stepaudio.errors import AudioError

RATE = 16_000
HOP = 160
_LOW, _HIGH = 60.0, 500.0
_WINDOW = 800
_THRESHOLD = 0.15
_QUIET = 0.01
"""Of the loudest frame: what is quieter is a pause."""


@dataclass(frozen=True, slots=True)
class Pitch:
    """Statistics of the voiced frames: median in Hz, spread (standard deviation) and range (5 % to 95 %) in semitones,
    and the share of frames that are voiced."""

    median: float
    spread: float
    range: float
    voiced: float


def f0(samples: Samples) -> NDArray[np.float64]:
    """Hz of every 10 ms of samples [T] at 16 kHz; NaN where there is no voice. Raises AudioError under 75 ms."""
    longest = int(RATE / _LOW)
    size = _WINDOW + longest
    if len(samples) < size:
        raise AudioError("pitch needs at least 75 ms of audio")
    frames = np.lib.stride_tricks.sliding_window_view(samples.astype(np.float64), size)[::HOP]
    difference = _difference(frames, longest)
    running = np.cumsum(difference[:, 1:], axis=1)
    lags = np.arange(1, longest + 1)
    with np.errstate(invalid="ignore", divide="ignore"):
        normal = np.where(running > 0, difference[:, 1:] * lags / running, 1.0)
    normal[:, : int(RATE / _HIGH) - 1] = np.inf
    energy = (frames[:, :_WINDOW] ** 2).mean(axis=1)
    heights = np.array([_period(row) for row in normal])
    heights[energy < _QUIET**2 * energy.max(initial=0.0)] = np.nan
    return RATE / heights


def statistics(samples: Samples) -> Pitch | None:
    """Statistics of samples [T] at 16 kHz; None when no frame is voiced."""
    heights = f0(samples)
    voiced = heights[np.isfinite(heights)]
    if not len(voiced):
        return None
    semitones = 12 * np.log2(voiced / np.median(voiced))
    low, high = np.percentile(semitones, [5, 95])
    return Pitch(float(np.median(voiced)), float(semitones.std()), float(high - low), len(voiced) / len(heights))


def _difference(frames: NDArray[np.float64], longest: int) -> NDArray[np.float64]:
    """d(lag) = sum over the window of (x[t] - x[t + lag])², [frames, longest + 1], by way of the correlation."""
    length = 2 ** int(np.ceil(np.log2(frames.shape[1] + _WINDOW)))
    window = np.fft.rfft(frames[:, :_WINDOW], length)
    whole = np.fft.rfft(frames, length)
    correlation = np.fft.irfft(whole * window.conj(), length)[:, : longest + 1]
    squares = np.concatenate([np.zeros((len(frames), 1)), np.cumsum(frames**2, axis=1)], axis=1)
    lags = np.arange(longest + 1)
    moved = squares[:, lags + _WINDOW] - squares[:, lags]
    difference: NDArray[np.float64] = np.maximum(squares[:, [_WINDOW]] + moved - 2 * correlation, 0.0)
    return difference


def _period(normal: NDArray[np.float64]) -> float:
    """The first dip below the threshold, refined by a parabola; NaN if there is none."""
    below = np.flatnonzero(normal < _THRESHOLD)
    if not len(below):
        return float("nan")
    lag = int(below[0])
    while lag + 1 < len(normal) and normal[lag + 1] < normal[lag]:
        lag += 1
    if 0 < lag < len(normal) - 1 and np.isfinite(normal[lag - 1]):
        before, here, after = normal[lag - 1 : lag + 2]
        bend = before - 2 * here + after
        if bend > 0:
            return float(lag + 1 + 0.5 * (before - after) / bend)
    return float(lag + 1)
