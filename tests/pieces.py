"""Cutting a signal in any way, for tests that a stream equals the whole."""

from collections.abc import Iterator

import torch
from hypothesis import strategies as st
from torch import Tensor

from stepaudio.decoder.convolution import Stream

sizes = st.lists(st.integers(0, 7), max_size=6)


def cut(signal: Tensor, sizes: list[int]) -> Iterator[tuple[Tensor, bool]]:
    """Pieces of the last dimension in these sizes, then the rest; and whether it is the last one."""
    begin = 0
    for size in sizes:
        if begin + size >= signal.shape[-1]:
            break
        yield signal[..., begin : begin + size], False
        begin += size
    yield signal[..., begin:], True


def through(layer, signal: Tensor, sizes: list[int], dim: int = -1) -> Tensor:
    """The output of a layer that takes a `Stream`, for a signal that comes in pieces."""
    stream, outputs = Stream(), []
    for piece, last in cut(signal, sizes):
        stream = stream.following(last=last)
        outputs.append(layer(piece, stream))
    return torch.cat(outputs, dim)


def spoken(vocoder, mel: Tensor, sizes: list[int], seed: int = 0) -> Tensor:
    """The samples of a vocoder for mel frames that come in pieces."""
    state, outputs = Stream(seed), []
    for piece, last in cut(mel, sizes):
        samples, state = vocoder(piece, state, last=last)
        outputs.append(samples)
    return torch.cat(outputs, 1)
