"""Sample-rate conversion: any cut gives the same samples, the right number of them, and the same signal."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from stepaudio.audio.resample import Resampler, resample
from stepaudio.errors import InputError

RATES = st.sampled_from([4_000, 8_000, 11_025, 16_000, 22_050, 24_000, 44_100, 48_000, 96_000, 384_000])


def noise(samples: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).uniform(-0.5, 0.5, samples).astype(np.float32)


@settings(deadline=None)
@given(in_rate=RATES, out_rate=RATES, samples=st.integers(0, 20_000), data=st.data())
def test_streamed_equals_offline(in_rate: int, out_rate: int, samples: int, data: st.DataObject) -> None:
    signal = noise(samples)
    cuts = sorted(data.draw(st.lists(st.integers(0, samples), max_size=8)))
    resampler = Resampler(in_rate, out_rate)
    pieces = [resampler.push(piece) for piece in np.split(signal, cuts)]
    streamed = np.concatenate([*pieces, resampler.flush()])
    np.testing.assert_array_equal(streamed, resample(signal, in_rate, out_rate))
    assert abs(len(streamed) - samples * out_rate / in_rate) <= 1
    assert streamed.dtype == np.float32


@pytest.mark.parametrize(("in_rate", "out_rate"), [(44_100, 16_000), (8_000, 16_000), (384_000, 24_000)])
def test_a_tone_keeps_its_frequency_phase_and_level(in_rate: int, out_rate: int) -> None:
    def tone(rate: int) -> np.ndarray:
        return (0.5 * np.sin(2 * np.pi * 440 * np.arange(rate) / rate)).astype(np.float32)

    converted = resample(tone(in_rate), in_rate, out_rate)
    inner = slice(out_rate // 10, -out_rate // 10)  # the filter rings at the abrupt ends
    np.testing.assert_allclose(converted[inner], tone(out_rate)[inner], atol=1e-4)


def test_what_the_new_rate_cannot_carry_is_removed() -> None:
    t = np.arange(48_000) / 48_000
    above = (0.5 * np.sin(2 * np.pi * 12_000 * t)).astype(np.float32)
    assert np.abs(resample(above, 48_000, 16_000)[1_000:-1_000]).max() < 1e-4


def test_flush_and_reset_both_start_afresh() -> None:
    signal = noise(3_000)
    resampler = Resampler(24_000, 16_000)
    first = np.concatenate([resampler.push(signal), resampler.flush()])
    second = np.concatenate([resampler.push(signal), resampler.flush()])
    np.testing.assert_array_equal(first, second)
    resampler.push(noise(1_000, seed=1))
    resampler.reset()
    third = np.concatenate([resampler.push(signal), resampler.flush()])
    np.testing.assert_array_equal(first, third)


def test_the_same_rate_changes_nothing() -> None:
    signal = noise(1_000)
    np.testing.assert_array_equal(resample(signal, 16_000, 16_000), signal)


@pytest.mark.parametrize("rate", [0, -1, 999, 768_001, 2**40])
def test_impossible_rates_are_refused(rate: int) -> None:
    with pytest.raises(InputError, match="out of range"):
        Resampler(rate, 16_000)
    with pytest.raises(InputError, match="out of range"):
        Resampler(16_000, rate)
