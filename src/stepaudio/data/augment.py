"""Recordings made worse, as the world would: pace and pitch, rooms, noise, telephones, distance.

`augment` draws what happens to one recording; each effect is a function of samples [T] at 16 kHz and its measure.
"""

from __future__ import annotations

import numpy as np
import scipy.signal
import soxr

from stepaudio.tokenizer.fbank import RATE, Floats


def augment(samples: Floats, rng: np.random.Generator) -> tuple[Floats, float]:
    """The recording after some effects, and how much longer it became (times of events grow by it); half of all
    recordings stay as they are."""
    stretch = 1.0
    if rng.random() < 0.5:
        return samples, stretch
    if rng.random() < 0.3:
        stretch = float(rng.uniform(0.9, 1.12))
        samples = resampled(samples, stretch)
    if rng.random() < 0.25:
        samples = in_room(samples, float(rng.uniform(0.1, 0.5)), float(rng.uniform(0, 12)), rng)
    if rng.random() < 0.1:
        samples = band_limited(samples, float(rng.uniform(100, 350)), float(rng.uniform(3200, 6000)))
    if rng.random() < 0.4:
        samples = noisy(samples, float(rng.uniform(8, 35)), float(rng.uniform(0, 2)), rng)
    return samples, stretch


def resampled(samples: Floats, stretch: float) -> Floats:
    """Slower and deeper by `stretch`, as a tape that runs slow."""
    slow: Floats = soxr.resample(samples, RATE, RATE * stretch, quality="QQ").astype(np.float32, copy=False)
    return slow


def in_room(samples: Floats, decay: float, direct: float, rng: np.random.Generator) -> Floats:
    """Reverberated by noise that falls by 60 dB in `decay` seconds, `direct` dB below the direct sound."""
    tail = rng.standard_normal(round(decay * RATE)).astype(np.float32)
    tail *= np.exp(np.linspace(0, -np.log(1000), len(tail), dtype=np.float32))
    tail *= np.float32(10 ** (-direct / 20) / np.sqrt(np.square(tail).sum()))
    late = scipy.signal.oaconvolve(samples, tail)[: len(samples)].astype(np.float32)
    wet: Floats = samples + late
    return wet


def band_limited(samples: Floats, low: float, high: float) -> Floats:
    """What is left between two frequencies in hertz."""
    sections = scipy.signal.butter(2, [low, high], "bandpass", fs=RATE, output="sos")
    passed: Floats = scipy.signal.sosfilt(sections, samples).astype(np.float32)
    return passed


def noisy(samples: Floats, snr: float, colour: float, rng: np.random.Generator) -> Floats:
    """With noise `snr` dB below the speech, whose power falls with frequency to the power of `colour`."""
    spectrum = np.fft.rfft(rng.standard_normal(len(samples)).astype(np.float32))
    spectrum *= np.maximum(np.arange(len(spectrum)), 1).astype(np.float32) ** np.float32(-colour / 2)
    noise = np.fft.irfft(spectrum, len(samples)).astype(np.float32)
    power, loudness = float(np.square(samples).mean()), float(np.square(noise).mean())
    mixed: Floats = samples + noise * np.float32(np.sqrt(power / max(loudness, 1e-12)) * 10 ** (-snr / 20))
    return mixed
