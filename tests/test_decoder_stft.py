import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.testing import assert_close

from pieces import sizes, through
from stepaudio.decoder.convolution import Stream
from stepaudio.decoder.stft import InverseStft, Stft


@settings(max_examples=30, deadline=None)
@given(st.integers(3, 20), sizes)
def test_transform_in_pieces_is_torchs(hops, cuts):
    torch.manual_seed(0)
    x = torch.randn(2, 4 * hops)
    whole = torch.stft(x, 16, 4, 16, torch.hann_window(16), return_complex=True)
    assert_close(through(Stft(16, 4), x, cuts), whole)


@settings(max_examples=30, deadline=None)
@given(st.integers(5, 20), sizes)
def test_inverse_in_pieces_is_torchs(frames, cuts):
    torch.manual_seed(0)
    spectrum = torch.randn(2, 9, frames, dtype=torch.complex64)
    whole = torch.istft(spectrum, 16, 4, 16, torch.hann_window(16))
    assert_close(through(InverseStft(16, 4), spectrum, cuts), whole)


@settings(max_examples=30, deadline=None)
@given(st.integers(1, 9), sizes)
def test_every_frame_can_give_one_hop(frames, cuts):
    """With the other trim: an explicit loop that adds up windowed frames and divides by the windows' squares."""
    torch.manual_seed(0)
    n_fft, hop, trim = 32, 8, 12
    spectrum = torch.randn(2, n_fft // 2 + 1, frames, dtype=torch.complex64)
    window = torch.hann_window(n_fft)
    total, squares = torch.zeros(2, (frames - 1) * hop + n_fft), torch.zeros((frames - 1) * hop + n_fft)
    for frame in range(frames):
        place = slice(frame * hop, frame * hop + n_fft)
        total[:, place] += torch.fft.irfft(spectrum[..., frame], n_fft) * window
        squares[place] += window**2
    whole = (total / squares)[:, trim:-trim]
    assert whole.shape[1] == frames * hop
    assert_close(through(InverseStft(n_fft, hop, trim=trim), spectrum, cuts), whole, rtol=1e-4, atol=1e-5)


def test_the_inverse_undoes_the_transform():
    torch.manual_seed(0)
    x = torch.randn(3, 400)
    whole = Stream().following(last=True)
    assert_close(InverseStft(64, 16)(Stft(64, 16)(x, whole), whole), x)


def test_a_hop_must_divide_the_transform():
    with pytest.raises(ValueError, match="does not divide"):
        InverseStft(16, 5)
