"""What the networks of the decoder share: convolutions over time, masks, what attention remembers, packing.

Shapes: B batch, T time, C channels, H heads, S keys, D head width.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from stepaudio.tokenizer.packed import PackedLinear, can_pack


class TimeConv(nn.Conv1d):
    """A convolution over the time of [B, T, C]: as one matrix product, which needs no transposing.

    Parameters are those of `Conv1d`; `padding` puts zeros on both sides.
    """

    def forward(self, x_BTC: Tensor) -> Tensor:
        return F.linear(_windows(x_BTC, self), self.flat_weight, self.bias)

    @property
    def flat_weight(self) -> Tensor:
        return self.weight.transpose(1, 2).flatten(1)


class GeluLinear(nn.Linear):
    """A linear layer and GELU; `approximate` is "none" or "tanh"."""

    def __init__(self, inputs: int, outputs: int, approximate: str = "none") -> None:
        super().__init__(inputs, outputs)
        self.approximate = approximate

    def forward(self, x: Tensor) -> Tensor:
        return F.gelu(super().forward(x), approximate=self.approximate)


class _PackedTimeConv(nn.Module):
    """A `TimeConv` that cannot be changed any more."""

    def __init__(self, conv: TimeConv, rows: int) -> None:
        super().__init__()
        self.kernel_size, self.stride, self.padding = conv.kernel_size, conv.stride, conv.padding
        self._product = PackedLinear(conv.flat_weight, conv.bias, rows)

    def forward(self, x_BTC: Tensor) -> Tensor:
        return self._product(_windows(x_BTC, self))  # type: ignore[no-any-return]


def _windows(x_BTC: Tensor, conv: TimeConv | _PackedTimeConv) -> Tensor:
    """What each step of a convolution sees, [B, T', kernel * C]."""
    kernel, stride, padding = conv.kernel_size[0], conv.stride[0], int(conv.padding[0])
    if padding:
        x_BTC = F.pad(x_BTC, (0, 0, padding, padding))
    if kernel == 1:
        return x_BTC
    end = x_BTC.shape[1] - kernel + 1
    return torch.cat([x_BTC[:, k : end + k : stride] for k in range(kernel)], dim=-1)


def pack(module: nn.Module, rows: int) -> None:
    """Lay out the weights of every linear layer and `TimeConv` for this CPU; a layer that it cannot do stays.

    The module can then no longer be trained, moved or saved.
    """
    for name, child in module.named_children():
        if isinstance(child, nn.Linear) and can_pack(child.weight):
            gelu = child.approximate if isinstance(child, GeluLinear) else None
            setattr(module, name, PackedLinear(child.weight, child.bias, rows, gelu=gelu))
        elif isinstance(child, TimeConv) and can_pack(child.weight):
            setattr(module, name, _PackedTimeConv(child, rows))
        else:
            pack(child, rows)


def split(x: Tensor, *, groups: int) -> Tensor:
    """The last axis as `groups` by whatever each then has."""
    return x.view(*x.shape[:-1], groups, x.shape[-1] // groups)


def masked_group_norm(x_BTC: Tensor, norm: nn.GroupNorm, mask_BT1: Tensor | None) -> Tensor:
    """Group norm over the time and channels of [B, T, C], its statistics from where the mask is 1 (default: all)."""
    wide = torch.promote_types(x_BTC.dtype, torch.float32)
    x_BTGD = split(x_BTC.to(wide), groups=norm.num_groups)
    if mask_BT1 is None:
        var_B1G1, mean_B1G1 = torch.var_mean(x_BTGD, dim=(1, 3), correction=0, keepdim=True)
    else:
        mask_BT11 = mask_BT1[..., None].to(wide)
        count_B111 = mask_BT11.sum(1, keepdim=True) * x_BTGD.shape[-1]
        mean_B1G1 = (x_BTGD * mask_BT11).sum((1, 3), keepdim=True) / count_B111
        var_B1G1 = ((x_BTGD - mean_B1G1).square() * mask_BT11).sum((1, 3), keepdim=True) / count_B111
    scale_B1G1 = torch.rsqrt(var_B1G1 + norm.eps)
    weight_GD, bias_GD = (p.to(wide).view(norm.num_groups, -1) for p in (norm.weight, norm.bias))
    scale_B1GD = weight_GD * scale_B1G1
    shift_B1GD = bias_GD - mean_B1G1 * scale_B1GD
    return torch.addcmul(shift_B1GD, x_BTGD, scale_B1GD).flatten(2).to(x_BTC.dtype)


def valid(lengths_B: Tensor, steps: int) -> Tensor:
    """True [B, T] at the first `lengths_B` of `steps` positions."""
    return torch.arange(steps, device=lengths_B.device) < lengths_B[:, None]


def chunk_mask(ends: Tensor, steps: int, *, window: int, prompt: int = 0) -> Tensor:
    """Who attends to whom [T, T] in a sequence of chunks that stop before the positions `ends`, the last at `steps`.

    A position sees its own chunk, the `window` positions before it, and the first `prompt` ones.
    """
    position_T = torch.arange(steps, device=ends.device)
    chunk_T = torch.searchsorted(ends, position_T, right=True)
    start_T = torch.cat([ends.new_zeros(1), ends])[chunk_T]
    in_past = (position_T >= start_T[:, None] - window) | (position_T < prompt)
    return in_past & (chunk_T <= chunk_T[:, None])


class Memory:
    """Keys and values of earlier positions: all those of the prompt, and a window of the latest others.

    Nothing in it is changed in place, so that memories share what they have in common.
    """

    def __init__(self, prompt: Tensor | None = None, recent: Tensor | None = None) -> None:
        self._prompt = prompt
        self._recent = recent

    def extend(self, kv_2BHSD: Tensor) -> Tensor:
        """Remembered and new keys and values in order, [2, B, H, S, D]."""
        parts = [part for part in (self._prompt, self._recent) if part is not None]
        return torch.cat([*parts, kv_2BHSD], dim=3) if parts else kv_2BHSD

    def after_prompt(self, kv_2BHSD: Tensor) -> Memory:
        return Memory(prompt=kv_2BHSD)

    def after(self, kv_2BHSD: Tensor, window: int) -> Memory:
        """The memory once a chunk has followed."""
        recent = kv_2BHSD if self._recent is None else torch.cat([self._recent, kv_2BHSD], dim=3)
        # A copy: a view would keep everything it was cut from.
        return Memory(self._prompt, recent[:, :, :, max(0, recent.shape[3] - window) :].clone())
