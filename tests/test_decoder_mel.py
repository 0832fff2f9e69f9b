import librosa
import numpy as np
import pytest
import torch

from stepaudio.decoder.mel import MEL_22K, MEL_24K
from stepaudio.errors import AudioError


@pytest.mark.parametrize("spec", [MEL_22K, MEL_24K])
@pytest.mark.parametrize(("extra", "level"), [(0, 0.1), (1, 0.1), (255, 3e-5)])
def test_mel_is_the_formula(spec, extra, level):
    samples = np.random.default_rng(0).normal(0, level, 9 * spec.hop + extra).astype(np.float32)
    pad = (spec.n_fft - spec.hop) // 2
    padded = np.pad(samples.astype(np.float64), pad, mode="reflect")
    window = 0.5 - 0.5 * np.cos(2 * np.pi * np.arange(spec.n_fft) / spec.n_fft)
    starts = range(0, len(padded) - spec.n_fft + 1, spec.hop)
    spectrum = np.stack([np.fft.rfft(padded[start : start + spec.n_fft] * window) for start in starts], axis=1)
    magnitude = np.sqrt(np.abs(spectrum) ** 2 + 1e-9)
    filters = librosa.filters.mel(sr=spec.rate, n_fft=spec.n_fft, n_mels=80, fmin=0, fmax=8000)
    expected = np.log(np.maximum(filters @ magnitude, 1e-5))
    mel = spec(torch.from_numpy(samples)[None])
    assert mel.shape == (1, 80, spec.frames(len(samples))) == (1, 80, 9)
    np.testing.assert_allclose(mel[0].numpy(), expected, atol=2e-4)


def test_silence_is_the_floor():
    assert MEL_24K(torch.zeros(1, 4800)).max() == pytest.approx(np.log(1e-5), abs=1e-4)


def test_too_short_a_clip_is_refused():
    with pytest.raises(AudioError, match="721 are needed"):
        MEL_24K(torch.zeros(1, 720))
    assert MEL_24K(torch.zeros(1, 721)).shape[2] == 1
