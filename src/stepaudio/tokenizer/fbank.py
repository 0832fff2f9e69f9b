"""Kaldi's log-mel filterbank in numpy.

It differs from Whisper's (`stepaudio.audio.features`) in the scale of the samples, window, mel scale and
normalisation: a model trained on one does not understand the other.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import Literal

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float32]

RATE = 16_000
HOP = 160
"""Samples between frames: 10 ms."""


@dataclass(frozen=True)
class KaldiFbank:
    """Kaldi-compatible log-mel filterbank: pre-emphasis, DC removal, no dither, `snip_edges`. The window is Hamming's,
    or Povey's, which is Kaldi's own default.

    Frame t covers samples [t * hop, t * hop + window), so frames never depend on how a stream was cut.
    Samples are scaled to 16-bit range first, as Kaldi reads them. Source: Kaldi's feature-window and
    mel-computations.
    """

    n_mels: int = 80
    rate: int = RATE
    window: int = 400
    hop: int = HOP
    low_hz: float = 20.0
    preemphasis: float = 0.97
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
        frames = frames * np.float32(32768)
        frames -= frames.mean(axis=1, keepdims=True)
        # Kaldi's first sample has no predecessor and is emphasised against itself.
        before = np.concatenate([frames[:, :1], frames[:, :-1]], axis=1)
        frames -= np.float32(self.preemphasis) * before
        spectrum = np.fft.rfft(frames * self._taper, n=self.n_fft)
        power = spectrum.real**2 + spectrum.imag**2
        mel = power[:, :-1] @ self._filters
        floor = np.finfo(np.float32).eps
        return np.log(np.maximum(mel, floor)).astype(np.float32, copy=False)

    @cached_property
    def _taper(self) -> Floats:
        curve = np.hanning(self.window) ** 0.85 if self.taper == "povey" else np.hamming(self.window)
        return curve.astype(np.float32)

    @cached_property
    def _filters(self) -> Floats:
        """Triangles on Kaldi's mel scale, [n_fft // 2, n_mels]; the Nyquist bin is unused."""
        mel_of_bin = _kaldi_mel(np.arange(self.n_fft // 2) * self.rate / self.n_fft)
        edges = np.linspace(_kaldi_mel(self.low_hz), _kaldi_mel(self.rate / 2), self.n_mels + 2)
        left, centre, right = edges[:-2], edges[1:-1], edges[2:]
        rising = (mel_of_bin[:, None] - left) / (centre - left)
        falling = (right - mel_of_bin[:, None]) / (right - centre)
        return np.maximum(0.0, np.minimum(rising, falling)).astype(np.float32)


def _kaldi_mel(hz: NDArray[np.float64] | float) -> NDArray[np.float64]:
    return np.asarray(1127.0 * np.log1p(np.asarray(hz) / 700.0))
