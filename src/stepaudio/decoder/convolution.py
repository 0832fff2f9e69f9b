"""Convolutional networks on pieces of a signal: any way of cutting the input gives the same output.

A layer that looks to the right answers later; it never guesses. What a network remembers between two pieces is one
`Stream`, passed down through `forward`, and the offline call is a stream of one piece that is also the last. So there
is one code path, and training sees the network that live speech runs.

Shapes: B batch, C channels, T steps in time (a piece may have none).
"""

from __future__ import annotations

from collections.abc import Hashable
from typing import Any, Self

import torch
import torch.nn.functional as F
from torch import Tensor, nn


class Stream:
    """What the layers of a network remember of a signal, by layer.

    Tensors in it are never changed in place: a copy is cheap, and an old copy still continues where it stood.
    `seed` is what anything random in the network is drawn from.
    """

    def __init__(self, seed: int = 0) -> None:
        self.seed = seed
        self.last = False
        self._kept: dict[Hashable, Any] = {}

    def following(self, *, last: bool) -> Self:
        """A copy that takes the next piece; after the `last` one there is nothing more to come."""
        copy = type(self)(self.seed)
        copy.last = last
        copy._kept = dict(self._kept)
        return copy

    def take(self, layer: Hashable) -> Any:
        """What a layer kept of earlier pieces; None before the first."""
        return self._kept.get(layer)

    def keep(self, layer: Hashable, value: Any) -> None:
        self._kept[layer] = value


class Conv1d(nn.Conv1d):
    """A convolution over time with `pads` zeros on the left and right: by default half of its reach on either side,
    so that a stride of 1 keeps the length. The right one is how many steps it looks ahead. No stride skips steps."""

    def __init__(
        self,
        inputs: int,
        outputs: int,
        kernel: int,
        *,
        stride: int = 1,
        dilation: int = 1,
        groups: int = 1,
        pads: tuple[int, int] | None = None,
    ) -> None:
        super().__init__(inputs, outputs, kernel, stride=stride, dilation=dilation, groups=groups)
        self.reach = dilation * (kernel - 1)
        self.pads = (self.reach // 2, self.reach - self.reach // 2) if pads is None else pads

    def forward(self, x_BCT: Tensor, stream: Stream) -> Tensor:  # type: ignore[override]
        before = stream.take(self)
        if before is None:
            before = x_BCT.new_zeros(*x_BCT.shape[:2], self.pads[0])
        after = [x_BCT.new_zeros(*x_BCT.shape[:2], self.pads[1])] if stream.last else []
        x_BCT = torch.cat([before, x_BCT, *after], dim=2)
        stride = self.stride[0]
        steps = max(0, (x_BCT.shape[2] - self.reach - 1) // stride + 1)
        stream.keep(self, x_BCT[..., steps * stride :])
        if steps == 0:
            return x_BCT.new_zeros(x_BCT.shape[0], self.out_channels, 0)
        return F.conv1d(x_BCT, self.weight, self.bias, self.stride, 0, self.dilation, self.groups)


class ConvTranspose1d(nn.ConvTranspose1d):
    """A transposed convolution that makes exactly `stride` steps of each; `kernel` - `stride` is even and at most
    twice the stride."""

    def __init__(self, inputs: int, outputs: int, kernel: int, *, stride: int) -> None:
        super().__init__(inputs, outputs, kernel, stride=stride)
        self.overlap = kernel - stride
        self.cut = self.overlap // 2

    def forward(self, x_BCT: Tensor, stream: Stream) -> Tensor:  # type: ignore[override]
        batch, _, steps = x_BCT.shape
        tail = stream.take(self)
        if steps:
            y_BCT = F.conv_transpose1d(x_BCT, self.weight, None, self.stride)
            if tail is not None:
                y_BCT = torch.cat([y_BCT[..., : self.overlap] + tail, y_BCT[..., self.overlap :]], dim=2)
        else:
            y_BCT = x_BCT.new_zeros(batch, self.out_channels, 0) if tail is None else tail
        begin = self.cut if tail is None else 0
        end = y_BCT.shape[2] - self.cut if stream.last else steps * self.stride[0]
        if steps or tail is not None:
            stream.keep(self, y_BCT[..., steps * self.stride[0] :])
        y_BCT = y_BCT[..., begin : max(begin, end)]
        return y_BCT if self.bias is None else y_BCT + self.bias[:, None]


def align(layer: Hashable, stream: Stream, *branches: Tensor) -> list[Tensor]:
    """Cut branches [..., T], some of which lag behind others, to the steps that all of them have; the rest waits."""
    waiting = stream.take(layer)
    joined = branches if waiting is None else [torch.cat(pair, dim=-1) for pair in zip(waiting, branches, strict=True)]
    steps = min(branch.shape[-1] for branch in joined)
    stream.keep(layer, [branch[..., steps:] for branch in joined])
    return [branch[..., :steps] for branch in joined]
