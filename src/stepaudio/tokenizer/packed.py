"""Linear layers with their weights laid out for this CPU, for large encoders that are only run.

A live stream multiplies few rows by large weights. oneDNN then spends about half of its time putting each weight into
the layout it wants; doing that once at loading is about twice as fast and gives the same numbers. The weights can no
longer be read, saved or trained.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn


class PackedLinear(nn.Module):
    """A linear layer that cannot be changed any more."""

    def __init__(self, weight: Tensor, bias: Tensor | None, rows: int, *, gelu: str | None = None) -> None:
        """`rows` is the number of input vectors to be fastest for; `gelu` ("none" or "tanh", how `torch` approximates
        it) is applied to what comes out."""
        super().__init__()
        # Plain attributes: an opaque tensor cannot be moved, converted or stored with the other weights.
        self._weight = torch.ops.mkldnn._reorder_linear_weight(weight.detach(), rows)
        self._gelu = gelu
        self._bias = None if bias is None else bias.detach()

    def forward(self, x: Tensor) -> Tensor:
        after = "none" if self._gelu is None else "gelu"
        y: Tensor = torch.ops.mkldnn._linear_pointwise(x, self._weight, self._bias, after, [], self._gelu or "")
        return y


def pack(module: nn.Module, rows: int) -> None:
    """Replace every linear layer inside a module, where its device and precision allow it."""
    for name, child in module.named_children():
        if not isinstance(child, nn.Linear):
            pack(child, rows)
        elif can_pack(child.weight):
            setattr(module, name, PackedLinear(child.weight, child.bias, rows))


def can_pack(weight: Tensor) -> bool:
    """Whether a weight's device and precision allow it."""
    if weight.device.type != "cpu" or not torch.backends.mkldnn.is_available():  # type: ignore[no-untyped-call]
        return False
    return weight.dtype == torch.float32 or bool(torch.ops.mkldnn._is_mkldnn_bf16_supported())
