import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from pieces import cut, sizes
from stepaudio.decoder.tempo import Tempo
from stepaudio.errors import InputError


class Plain:
    """Gives the mel itself as samples, one per frame."""

    rate, hop = 100, 1

    def __call__(self, mel, state=None, *, last=True):
        return mel[:, 0], None


@settings(max_examples=50, deadline=None)
@given(st.integers(1, 30), st.floats(0.25, 4), sizes)
def test_pieces_are_linear_interpolation_of_the_whole(frames, speed, cuts):
    mel = torch.randn(1, 1, frames, generator=torch.Generator().manual_seed(0))
    vocoder, state, given = Tempo(Plain(), speed), None, []
    for piece, last in cut(mel, cuts):
        samples, state = vocoder(piece, state, last=last)
        given.append(samples)
    given = torch.cat(given, 1)[0].numpy()
    at = np.arange(-int(-frames / speed // 1)) * speed
    np.testing.assert_allclose(given, np.interp(at, np.arange(frames), mel[0, 0].numpy()), atol=1e-5)


def test_nothing_stays_nothing_and_a_speed_is_above_zero():
    assert Tempo(Plain(), 2.0)(torch.zeros(1, 1, 0))[0].shape == (1, 0)
    with pytest.raises(InputError, match="above 0"):
        Tempo(Plain(), 0.0)
