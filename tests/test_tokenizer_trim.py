"""Trimming a prompt against the rule written out frame by frame."""

import math

import numpy as np
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
