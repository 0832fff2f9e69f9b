import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.testing import assert_close

from pieces import sizes, through
from stepaudio.decoder.convolution import Conv1d, ConvTranspose1d, Stream, align


@settings(max_examples=40, deadline=None)
@given(st.integers(1, 7), st.integers(1, 3), st.integers(1, 3), st.integers(1, 20), sizes)
def test_convolution_in_pieces_is_torchs(kernel, stride, dilation, length, cuts):
    stride = min(stride, dilation * (kernel - 1) + 1)
    torch.manual_seed(0)
    layer = Conv1d(3, 4, kernel, stride=stride, dilation=dilation)
    x = torch.randn(2, 3, length)
    whole = F.conv1d(F.pad(x, layer.pads), layer.weight, layer.bias, stride, 0, dilation)
    assert_close(through(layer, x, cuts), whole)


@settings(max_examples=40, deadline=None)
@given(st.integers(2, 6), st.integers(0, 3), st.integers(1, 12), sizes)
def test_transposed_convolution_in_pieces_is_torchs(stride, overlap, length, cuts):
    torch.manual_seed(0)
    kernel = stride + 2 * min(overlap, stride)
    layer = ConvTranspose1d(3, 2, kernel, stride=stride)
    x = torch.randn(2, 3, length)
    whole = F.conv_transpose1d(x, layer.weight, layer.bias, stride, (kernel - stride) // 2)
    assert whole.shape[2] == stride * length
    assert_close(through(layer, x, cuts), whole)


def test_a_convolution_waits_for_what_it_looks_ahead_to():
    layer = Conv1d(1, 1, 5, pads=(1, 3))
    stream = Stream().following(last=False)
    assert layer(torch.randn(1, 1, 4), stream).shape[2] == 1


def test_align_gives_what_all_branches_have_and_keeps_the_rest():
    stream = Stream()
    near, far = align("sum", stream, torch.arange(5.0), torch.arange(2.0))
    assert near.tolist() == far.tolist() == [0, 1]
    near, far = align("sum", stream, torch.tensor([5.0]), torch.tensor([2.0, 3.0, 4.0, 5.0]))
    assert near.tolist() == far.tolist() == [2, 3, 4, 5]


def test_an_old_state_still_continues_where_it_stood():
    torch.manual_seed(0)
    layer = ConvTranspose1d(2, 2, 8, stride=4)
    x = torch.randn(1, 2, 6)
    state = Stream().following(last=False)
    layer(x[..., :3], state)
    answers = [layer(x[..., 3:], state.following(last=True)) for _ in range(2)]
    assert_close(answers[0], answers[1], rtol=0, atol=0)
