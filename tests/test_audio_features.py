"""Whisper's features against the formula over librosa's filters."""

import librosa
import numpy as np
import pytest

from stepaudio.audio.features import RATE, mel_filters, whisper_log_mel


@pytest.mark.parametrize(("bands", "samples"), [(80, 16_000), (128, 16_000 + 159), (128, 201)])
def test_features_are_the_formula(bands, samples):
    """400-point periodic Hann windows every 160 samples, mirrored ends, the last frame left out, power, Slaney's mel
    filters, the logarithm to base 10 from 1e-10 and not more than 8 below the loudest, then (x + 4) / 4."""
    rng = np.random.default_rng(0)
    audio = (rng.normal(0, 0.2, samples) * np.linspace(0, 1, samples) ** 8).astype(np.float32)  # from silence to loud
    padded = np.pad(audio.astype(np.float64), 200, mode="reflect")
    window = 0.5 - 0.5 * np.cos(2 * np.pi * np.arange(400) / 400)
    frames = [padded[start : start + 400] * window for start in range(0, samples // 160 * 160, 160)]
    power = np.abs(np.fft.rfft(np.stack(frames), axis=1)) ** 2
    mel = librosa.filters.mel(sr=16_000, n_fft=400, n_mels=bands) @ power.T
    logarithm = np.log10(np.maximum(mel, 1e-10))
    expected = (np.maximum(logarithm, logarithm.max() - 8) + 4) / 4
    features = whisper_log_mel(audio, bands)
    assert features.shape == (bands, samples // 160)
    np.testing.assert_allclose(features, expected, atol=1e-4)
    if samples > 201:
        assert (np.isclose(features, features.max() - 2)).any()  # something is at the floor


def test_mel_filters_are_equal_in_area_and_cover_the_band() -> None:
    filters = mel_filters(80)
    assert filters.shape == (80, 201)
    assert (filters >= 0).all()
    assert (filters.sum(axis=0)[1:-1] > 0).all()
    np.testing.assert_allclose(filters[40:].sum(axis=1) * RATE / 400, 1.0, rtol=0.1)
    peaks = filters.argmax(axis=1) * RATE / 400
    below = peaks[peaks < 900]
    assert np.ptp(np.diff(below)) <= RATE / 400  # evenly spaced to within a bin
