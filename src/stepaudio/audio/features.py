"""Spectral front ends in numpy: Kaldi's log-mel filterbank and Whisper's log-mel spectrogram.

Both take mono float32 samples [T] at 16 kHz in [-1, 1] and frame every 10 ms. They differ in scale of the
samples, window, mel scale and normalisation, and models trained on one do not understand the other.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property, lru_cache

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float32]

RATE = 16_000
HOP = 160
"""Samples between frames: 10 ms."""

WHISPER_FFT = 400
WHISPER_FLOOR = 1e-10


@dataclass(frozen=True)
class KaldiFbank:
    """Kaldi-compatible log-mel filterbank: Hamming window, pre-emphasis, DC removal, no dither, `snip_edges`.

    Frame t covers samples [t * hop, t * hop + window), so frames never depend on how a stream was cut.
    Samples are scaled to 16-bit range first, as Kaldi reads them. Source: Kaldi's feature-window and mel-computations.
    """

    n_mels: int = 80
    rate: int = RATE
    window: int = 400
    hop: int = HOP
    low_hz: float = 20.0
    preemphasis: float = 0.97

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
        spectrum = np.fft.rfft(frames * self._hamming, n=self.n_fft)
        power = spectrum.real**2 + spectrum.imag**2
        mel = power[:, :-1] @ self._filters
        floor = np.finfo(np.float32).eps
        return np.log(np.maximum(mel, floor)).astype(np.float32, copy=False)

    @cached_property
    def _hamming(self) -> Floats:
        return np.hamming(self.window).astype(np.float32)

    @cached_property
    def _filters(self) -> Floats:
        """Triangles on Kaldi's mel scale, [n_fft // 2, n_mels]; the Nyquist bin is unused."""
        mel_of_bin = _kaldi_mel(np.arange(self.n_fft // 2) * self.rate / self.n_fft)
        edges = np.linspace(_kaldi_mel(self.low_hz), _kaldi_mel(self.rate / 2), self.n_mels + 2)
        return _triangles(mel_of_bin, edges).astype(np.float32)


def whisper_log_mel(samples: Floats, n_mels: int = 128) -> Floats:
    """Samples [T] at 16 kHz to Whisper's log-mel spectrogram [T // 160, n_mels].

    The dynamic range is cut 8 decades of power below the loudest point of these samples, so a clip's features
    depend on all of it. Needs more than 200 samples (the reflected edge). Source: arXiv 2212.04356, section 2.2.
    """
    half = WHISPER_FFT // 2
    padded = np.pad(samples.astype(np.float32, copy=False), half, mode="reflect")
    frames = np.lib.stride_tricks.sliding_window_view(padded, WHISPER_FFT)[::HOP][: len(samples) // HOP]
    spectrum = np.fft.rfft(frames * _periodic_hann(WHISPER_FFT))
    power = spectrum.real**2 + spectrum.imag**2
    log_mel = np.log10(np.maximum(power @ _slaney_filters(n_mels), WHISPER_FLOOR))
    log_mel = np.maximum(log_mel, log_mel.max(initial=-np.inf) - 8.0)
    return ((log_mel + 4.0) / 4.0).astype(np.float32, copy=False)


@lru_cache
def _periodic_hann(size: int) -> Floats:
    return np.hanning(size + 1)[:-1].astype(np.float32)


@lru_cache
def _slaney_filters(n_mels: int) -> Floats:
    """Area-normalised triangles on Slaney's mel scale from 0 Hz to Nyquist, [n_fft // 2 + 1, n_mels]."""
    hz = np.fft.rfftfreq(WHISPER_FFT, 1 / RATE)
    edges = _slaney_hz(np.linspace(0.0, _slaney_mel(RATE / 2), n_mels + 2))
    weights = _triangles(hz, edges) * (2.0 / (edges[2:] - edges[:-2]))
    return weights.astype(np.float32)


def _triangles(points: NDArray[np.float64], edges: NDArray[np.float64]) -> NDArray[np.float64]:
    """Weight of each point [P] in the triangles edges[i], edges[i+1], edges[i+2]: [P, len(edges) - 2]."""
    left, centre, right = edges[:-2], edges[1:-1], edges[2:]
    rising = (points[:, None] - left) / (centre - left)
    falling = (right - points[:, None]) / (right - centre)
    return np.maximum(0.0, np.minimum(rising, falling))


def _kaldi_mel(hz: NDArray[np.float64] | float) -> NDArray[np.float64]:
    return np.asarray(1127.0 * np.log1p(np.asarray(hz) / 700.0))


# Slaney's mel scale: linear up to 1 kHz, 27 logarithmic steps for each factor of 6.4 above it.
_HZ_PER_MEL = 200.0 / 3.0
_BREAK_HZ = 1000.0
_LOG_STEP = np.log(6.4) / 27.0


def _slaney_mel(hz: float) -> float:
    if hz < _BREAK_HZ:
        return hz / _HZ_PER_MEL
    return _BREAK_HZ / _HZ_PER_MEL + float(np.log(hz / _BREAK_HZ)) / _LOG_STEP


def _slaney_hz(mel: NDArray[np.float64]) -> NDArray[np.float64]:
    above = np.maximum(mel - _BREAK_HZ / _HZ_PER_MEL, 0.0)
    return np.where(above > 0, _BREAK_HZ * np.exp(_LOG_STEP * above), mel * _HZ_PER_MEL)
