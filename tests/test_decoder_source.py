import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from torch.testing import assert_close

from pieces import sizes, through
from stepaudio.decoder.convolution import Stream
from stepaudio.decoder.source import Source, SourceConfig

SAMPLE = SourceConfig(rate=22_050, hop=16, phase="sample")
FRAME = SourceConfig(rate=24_000, hop=12, phase="frame")


def pitches(frames, rows=1):
    """Pitch that glides and has unvoiced stretches."""
    generator = torch.Generator().manual_seed(1)
    pitch = 100 + 200 * torch.rand(rows, frames, generator=generator)
    return pitch * (torch.rand(rows, frames, generator=generator) > 0.3)


def plain_sines(config, pitch):
    """The sines alone, sample by sample in float64, the harmonics' first phases aside; 0 where unvoiced."""
    hop, rate = config.hop, config.rate
    length = len(pitch) * hop
    sines = np.zeros((length, config.harmonics))
    for harmonic in range(1, config.harmonics + 1):
        if config.phase == "sample":
            phase, total = [], 0.0
            for n in range(length):
                total += pitch[n // hop] * harmonic / rate
                phase.append(total)
        else:
            middles, total = [], 0.0
            for value in pitch:
                total += value * harmonic / rate
                middles.append(total * hop)
            at = np.clip((np.arange(length) + 0.5) / hop - 0.5, 0, len(pitch) - 1)
            phase = np.interp(at, np.arange(len(pitch)), middles)
        sines[:, harmonic - 1] = 0.1 * np.sin(2 * math.pi * np.asarray(phase))
    return sines * (np.repeat(pitch, hop) > 10)[:, None]


@pytest.mark.parametrize("config", [SAMPLE, FRAME])
def test_sines_are_the_formula(config):
    quiet = SourceConfig(config.rate, config.hop, config.phase, noise=0.0)
    pitch = pitches(40)
    source = Source(quiet)
    source._first_phases = lambda seed: torch.zeros(9)
    sines = source.sines(pitch, Stream().following(last=True))[0]
    voiced = pitch[0].repeat_interleave(config.hop) > 10
    expected = torch.from_numpy(plain_sines(quiet, pitch[0].double().numpy())).float()
    assert 0 < voiced.sum() < len(voiced)
    assert_close(sines[voiced], expected[voiced], rtol=0, atol=1e-5)


def test_noise_is_a_third_of_the_amplitude_where_unvoiced_and_small_where_voiced():
    for pitch, deviation in ((0.0, 0.1 / 3), (10.0, 0.1 / 3), (200.0, 0.003)):
        noise = Source(SAMPLE).sines(torch.full((1, 400), pitch), Stream().following(last=True))
        if pitch == 200:
            voiced = SourceConfig(SAMPLE.rate, SAMPLE.hop, "sample", noise=0.0)
            noise = noise - Source(voiced).sines(torch.full((1, 400), pitch), Stream().following(last=True))
        assert noise.std() == pytest.approx(deviation, rel=0.02)
        assert noise.mean() == pytest.approx(0, abs=deviation / 20)


@settings(max_examples=30, deadline=None)
@given(sizes)
def test_pieces_are_the_whole(cuts):
    for config in (SAMPLE, FRAME):
        torch.manual_seed(0)
        source, pitch = Source(config), pitches(30, rows=2)
        whole = source(pitch, Stream().following(last=True))
        assert whole.shape == (2, 30 * config.hop)
        assert_close(through(source, pitch, cuts), whole, rtol=0, atol=1e-6)


def test_rows_of_a_batch_are_what_they_are_alone():
    source, pitch = Source(FRAME), pitches(10, rows=3)
    together = source(pitch, Stream().following(last=True))
    for row in range(3):
        assert_close(together[row : row + 1], source(pitch[row : row + 1], Stream().following(last=True)))


@pytest.mark.parametrize("config", [SAMPLE, FRAME])
def test_the_seed_decides(config):
    source, pitch = Source(config), pitches(10)
    once, again, other = (source(pitch, Stream(seed).following(last=True)) for seed in (1, 1, 2))
    assert_close(once, again, rtol=0, atol=0)
    assert not torch.allclose(once, other)


def test_phase_does_not_drift_over_ten_minutes():
    source = Source(SourceConfig(rate=24_000, hop=480, phase="frame", noise=0.0, harmonics=1))
    frames = 30_000
    state = Stream()
    for begin in range(0, frames, 10_000):
        state = state.following(last=begin + 10_000 == frames)
        sines = source.sines(torch.full((1, 10_000), 123.5), state)
    # Middles of frames accumulate the frame's own pitch too, so the phase of sample n is that of n + 240.5.
    n = np.arange(frames * 480 - len(sines[0]), frames * 480 - 240) + 240.5
    expected = 0.1 * np.sin(2 * math.pi * 123.5 * n / 24_000)
    np.testing.assert_allclose(sines[0, :-240, 0].numpy(), expected, atol=1e-4)


def test_only_the_mixing_of_harmonics_is_learnt():
    source = Source(FRAME)
    source(pitches(10), Stream().following(last=True)).sum().backward()
    assert [name for name, p in source.named_parameters() if p.grad is not None] == ["l_linear.weight", "l_linear.bias"]
