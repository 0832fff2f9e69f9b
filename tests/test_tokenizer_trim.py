"""Trimming a prompt against the rule written out frame by frame."""

import math

import librosa
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from stepaudio.tokenizer.trim import trim_silence


def by_the_rule(samples):
    n = len(samples)
    loud = []
    for frame in range(1 + n // 128):
        around = [samples[i] if 0 <= i < n else 0.0 for i in range(128 * frame - 256, 128 * frame + 256)]
        loud.append(max(math.sqrt(sum(float(x) ** 2 for x in around) / 512), 1e-5))
    voiced = [frame for frame, level in enumerate(loud) if 20 * math.log10(level / max(loud)) > -20]
    begin, end = voiced[0] * 128, min(n, voiced[-1] * 128 + 128)
    start = begin - 800
    length = math.ceil((end - begin) / 240) * 240 + 4320
    return [samples[i] if 0 <= i < n else 0.0 for i in range(start, start + length)]


@settings(max_examples=25, deadline=None)
@given(st.integers(1, 6000), st.integers(0, 1000), st.booleans())
def test_trim_is_the_rule(length, seed, quiet_ends):
    rng = np.random.default_rng(seed)
    samples = rng.normal(0, 0.3, length).astype(np.float32)
    if quiet_ends:
        samples[: length // 3] *= 0.01
        samples[-(length // 4) :] *= 0.01
    np.testing.assert_array_equal(trim_silence(samples), np.array(by_the_rule(samples), dtype=np.float32))


@pytest.mark.parametrize(("before", "after"), [(0, 0), (4000, 8000), (100, 30)])
def test_the_voiced_part_is_librosas(before, after):
    rng = np.random.default_rng(0)
    voice = rng.normal(0, 0.3, 24_000) * np.sin(np.arange(24_000) * np.pi / 24_000)
    noisy = np.pad(voice, (before, after)) + 1e-4 * rng.normal(size=len(voice) + before + after)
    trimmed = trim_silence(noisy.astype(np.float32))
    _, (start, stop) = librosa.effects.trim(noisy, top_db=20, frame_length=512, hop_length=128)
    length = -(-(stop - start) // 240) * 240 + int(0.27 * 16_000)
    assert len(trimmed) == length
    np.testing.assert_allclose(trimmed, np.pad(noisy, (800, length))[start : start + length], atol=1e-6)


def test_silence_stays():
    trimmed = trim_silence(np.zeros(16000, dtype=np.float32))
    assert len(trimmed) == math.ceil(16000 / 240) * 240 + 4320
    assert not trimmed.any()


def test_the_voiced_part_is_where_it_was():
    samples = np.zeros(48000, dtype=np.float32)
    samples[16000:24000] = np.sin(np.arange(8000) / 5)
    trimmed = trim_silence(samples)
    first = int(np.flatnonzero(trimmed)[0])
    assert 800 - 128 <= first <= 800 + 512
    np.testing.assert_array_equal(trimmed[first : first + 7000], samples[16001 : 16001 + 7000])
