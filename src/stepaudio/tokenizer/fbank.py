"""Kaldi's log-mel filterbank in numpy.

It differs from Whisper's (`stepaudio.audio.features`) in the scale of the samples, window, mel scale and
normalisation: a model trained on one does not understand the other.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import Literal

import numpy as np
import scipy.fft
from numpy.typing import NDArray

Floats = NDArray[np.float32]

RATE = 16_000
HOP = 160
"""Samples between frames: 10 ms."""


@dataclass(frozen=True)
class KaldiFbank:
    """Kaldi-compatible log-mel filterbank: tapered frames, pre-emphasis, DC removal, no dither, `snip_edges`.

    Frame t covers samples [t * hop, t * hop + window), so frames never depend on how a stream was cut.
    Samples are multiplied by `scale` first: Kaldi reads the 16-bit range, torchaudio's port takes them as they are.
    `taper` is Hamming's window or Kaldi's own ("povey"). Source: Kaldi's feature-window and mel-computations.
    """

    n_mels: int = 80
    rate: int = RATE
    window: int = 400
    hop: int = HOP
    low_hz: float = 20.0
    preemphasis: float = 0.97
    scale: float = 32768.0
    taper: Literal["hamming", "povey"] = "hamming"

    @property
    def n_fft(self) -> int:
        return 1 << (self.window - 1).bit_length()

    def frame_count(self, n_samples: int) -> int:
        return 0 if n_samples < self.window else 1 + (n_samples - self.window) // self.hop

    def __call__(self, samples: Floats) -> Floats:
        """Samples [T] to log-mel frames [frame_count(T), n_mels], natural logarithm."""
        count = self.frame_count(len(samples))
        if count == 0:
            return np.zeros((0, self.n_mels), dtype=np.float32)
        frames = np.lib.stride_tricks.sliding_window_view(samples, self.window)[:: self.hop][:count]
        frames = frames * np.float32(self.scale)
        frames -= frames.mean(axis=1, keepdims=True)
        # Kaldi's first sample has no predecessor and is emphasised against itself.
        before = np.concatenate([frames[:, :1], frames[:, :-1]], axis=1)
        frames -= np.float32(self.preemphasis) * before
        spectrum = scipy.fft.rfft(frames * self._taper, n=self.n_fft)
        power = spectrum.real**2 + spectrum.imag**2
        mel = power @ self._filters
        floor = np.finfo(np.float32).eps
        logarithms: Floats = np.log(np.maximum(mel, floor)).astype(np.float32, copy=False)
        return logarithms

    @cached_property
    def _taper(self) -> Floats:
        shape = np.hamming(self.window) if self.taper == "hamming" else np.hanning(self.window) ** 0.85
        return shape.astype(np.float32)

    @cached_property
    def _filters(self) -> Floats:
        """Triangles on Kaldi's mel scale, [n_fft // 2 + 1, n_mels]; the Nyquist bin is unused."""
        mel_of_bin = _kaldi_mel(np.arange(self.n_fft // 2) * self.rate / self.n_fft)
        edges = np.linspace(_kaldi_mel(self.low_hz), _kaldi_mel(self.rate / 2), self.n_mels + 2)
        left, centre, right = edges[:-2], edges[1:-1], edges[2:]
        rising = (mel_of_bin[:, None] - left) / (centre - left)
        falling = (right - mel_of_bin[:, None]) / (right - centre)
        triangles = np.maximum(0.0, np.minimum(rising, falling))
        # A row of zeros rather than a slice of the spectrum: numpy multiplies a slice many times more slowly.
        return np.pad(triangles, ((0, 1), (0, 0))).astype(np.float32)


def _kaldi_mel(hz: NDArray[np.float64] | float) -> NDArray[np.float64]:
    return np.asarray(1127.0 * np.log1p(np.asarray(hz) / 700.0))
