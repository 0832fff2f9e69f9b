"""Weight-only quantisation: int8 with one scale per output row, int4 in groups on a GPU.

Decoding is bound by how fast weights are read, so halving their bytes nearly halves its time. Activations
stay as they are here; the C++ step of a CPU rounds them for each product (`native.cpp`). Embeddings and norms,
which are not read in full, are not quantised.

Shapes: N output rows, K input columns.
"""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from stepaudio.errors import InputError

Quantization = Literal["int8", "int4"]
INT4_GROUP = 128


class Int8Linear(nn.Module):
    """y = (x · weightᵀ) * scale, with weight [N, K] int8 and scale [N] float32."""

    weight: Tensor
    scale: Tensor

    def __init__(self, weight: Tensor) -> None:
        super().__init__()
        wide = weight.detach().float()
        scale = wide.abs().amax(dim=1).clamp(min=1e-12) / 127
        self.register_buffer("weight", (wide / scale[:, None]).round().to(torch.int8))
        self.register_buffer("scale", scale)

    def forward(self, x: Tensor) -> Tensor:
        return F.linear(x, self.weight.to(x.dtype)) * self.scale.to(x.dtype)


class Int4Linear(nn.Module):
    """Groups of INT4_GROUP inputs share a scale and an offset; runs on torch's CUDA int4 kernel (bfloat16
    only)."""

    packed: Tensor
    scales: Tensor

    def __init__(self, weight: Tensor) -> None:
        super().__init__()
        rows, width = weight.shape
        if width % INT4_GROUP:
            raise InputError(f"int4 needs a width that is a multiple of {INT4_GROUP}, not {width}")
        levels, scales = quantize_int4(weight)
        tiles = 8  # the kernel's inner unrolling over K; 8 needs K to be a multiple of 128, which it is
        pairs = levels[:, ::2] << 4 | levels[:, 1::2]
        self.register_buffer("packed", torch._convert_weight_to_int4pack(pairs.to(torch.uint8), tiles))
        self.register_buffer("scales", scales.to(torch.bfloat16))
        self.rows = rows

    def forward(self, x: Tensor) -> Tensor:
        flat = x.reshape(-1, x.shape[-1])
        y = torch._weight_int4pack_mm(flat, self.packed, INT4_GROUP, self.scales)
        return y.view(*x.shape[:-1], self.rows)


def quantize_int4(weight: Tensor) -> tuple[Tensor, Tensor]:
    """Levels 0..15 [N, K] (int32) and (scale, middle) [K / group, N, 2]: value = (level - 8) * scale +
    middle."""
    groups = weight.detach().float().view(weight.shape[0], -1, INT4_GROUP)
    low, high = groups.amin(dim=2, keepdim=True), groups.amax(dim=2, keepdim=True)
    scale = (high - low).clamp(min=1e-8) / 15
    middle = low + 8 * scale
    levels = ((groups - low) / scale).round().clamp(0, 15).to(torch.int32).flatten(1)
    return levels, torch.stack((scale[..., 0], middle[..., 0]), dim=-1).transpose(0, 1).contiguous()


def quantize(model: nn.Module, kind: Quantization) -> None:
    """Replace every linear layer of the model in place, one at a time. Raises InputError for int4 off a
    GPU."""
    for parent in list(model.modules()):
        for name, child in list(parent.named_children()):
            if isinstance(child, nn.Linear):
                setattr(parent, name, quantized_linear(child.weight, kind))


def quantized_linear(weight: Tensor, kind: Quantization) -> nn.Module:
    """A layer that stands in for `nn.Linear` with this weight [N, K], on its device."""
    if kind == "int8":
        return Int8Linear(weight)
    if kind != "int4":
        raise InputError(f"no quantisation {kind!r}; there are int8 and int4", param="quantize")
    if not weight.is_cuda:
        raise InputError("int4 weights need a CUDA device; use int8 on a CPU", param="quantize")
    return Int4Linear(weight)
