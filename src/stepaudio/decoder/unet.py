"""The estimator of the 22.05 kHz generation: a one-dimensional U-Net of ResNet and transformer blocks (Matcha-TTS,
arXiv 2309.03199). Everything sees everything; time is halved once for each level but the last.

Parameter names are the tensor names of the released checkpoints.

Shapes: B batch, T frames, I inputs (4 M: noisy mel, encoded tokens, speaker, prompt mel), C channels, E time
embedding, D head width.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from stepaudio.decoder.layers import GeluLinear, TimeConv, masked_group_norm, split, valid


@dataclass(frozen=True)
class UNetConfig:
    """Sizes; the defaults are the released ones. `blocks` are the transformer blocks after each ResNet block."""

    channels: tuple[int, ...] = (256, 256)
    blocks: int = 4
    mid_blocks: int = 12
    heads: int = 8
    head_dim: int = 64
    ffn_factor: int = 4
    groups: int = 8
    time_factor: int = 4


Time = list[Tensor]
"""What a time says to each ResNet block, in order: [C] for a whole batch, or [B, 1, C]."""


@dataclass(frozen=True)
class _Mask:
    """Where a batch of sequences is, [B, T, 1] and for attention [B, 1, 1, T]; nothing when they are equally long."""

    frames: Tensor | None = None
    keys: Tensor | None = None

    @classmethod
    def of(cls, lengths_B: Tensor | None, steps: int, dtype: torch.dtype) -> _Mask:
        if lengths_B is None:
            return cls()
        inside = valid(lengths_B, steps)
        return cls(inside[..., None].to(dtype), inside[:, None, None])

    def halved(self) -> _Mask:
        if self.frames is None or self.keys is None:
            return self
        return _Mask(self.frames[:, ::2], self.keys[..., ::2])

    def __call__(self, x_BTC: Tensor) -> Tensor:
        return x_BTC if self.frames is None else x_BTC * self.frames


class _ConvBlock(nn.Module):
    """Convolution, group norm, Mish."""

    def __init__(self, inputs: int, outputs: int, groups: int) -> None:
        super().__init__()
        self.block = nn.ModuleList([TimeConv(inputs, outputs, 3, padding=1), nn.GroupNorm(groups, outputs)])

    def forward(self, x_BTC: Tensor, mask: _Mask) -> Tensor:
        conv, norm = self.block
        return F.mish(masked_group_norm(conv(mask(x_BTC)), cast(nn.GroupNorm, norm), mask.frames))


class _ResNet(nn.Module):
    def __init__(self, inputs: int, outputs: int, embedding: int, groups: int) -> None:
        super().__init__()
        self.mlp = nn.Sequential(nn.Mish(), nn.Linear(embedding, outputs))
        self.block1 = _ConvBlock(inputs, outputs, groups)
        self.block2 = _ConvBlock(outputs, outputs, groups)
        self.res_conv = TimeConv(inputs, outputs, 1)

    def forward(self, x_BTC: Tensor, time: Tensor, mask: _Mask) -> Tensor:
        hidden = self.block2(self.block1(x_BTC, mask) + time, mask)
        return hidden + self.res_conv(x_BTC)  # type: ignore[no-any-return]


class _Attention(nn.Module):
    def __init__(self, dim: int, heads: int, head_dim: int) -> None:
        super().__init__()
        inner = heads * head_dim
        self.heads = heads
        self.to_q = nn.Linear(dim, inner, bias=False)
        self.to_k = nn.Linear(dim, inner, bias=False)
        self.to_v = nn.Linear(dim, inner, bias=False)
        self.to_out = nn.ModuleList([nn.Linear(inner, dim)])

    def forward(self, x_BTC: Tensor, mask: _Mask) -> Tensor:
        q, k, v = (
            split(project(x_BTC), groups=self.heads).transpose(1, 2) for project in (self.to_q, self.to_k, self.to_v)
        )
        out_BHTD = F.scaled_dot_product_attention(q, k, v, attn_mask=mask.keys)
        return self.to_out[0](out_BHTD.transpose(1, 2).flatten(2))  # type: ignore[no-any-return]


class _FeedForward(nn.Module):
    """The released name of the second layer counts a dropout."""

    def __init__(self, dim: int, inner: int) -> None:
        super().__init__()
        self.net = nn.ModuleDict({"0": nn.ModuleDict({"proj": GeluLinear(dim, inner)}), "2": nn.Linear(inner, dim)})

    def forward(self, x: Tensor) -> Tensor:
        inner = self.net["0"]["proj"](x)  # type: ignore[index]
        return self.net["2"](inner)  # type: ignore[no-any-return]


class _Transformer(nn.Module):
    """x + attention(norm(x)), then x + feed_forward(norm(x))."""

    def __init__(self, dim: int, config: UNetConfig) -> None:
        super().__init__()
        self.norm1 = nn.LayerNorm(dim)
        self.attn1 = _Attention(dim, config.heads, config.head_dim)
        self.norm3 = nn.LayerNorm(dim)
        self.ff = _FeedForward(dim, config.ffn_factor * dim)

    def forward(self, x_BTC: Tensor, mask: _Mask) -> Tensor:
        x_BTC = x_BTC + self.attn1(self.norm1(x_BTC), mask)
        return x_BTC + self.ff(self.norm3(x_BTC))  # type: ignore[no-any-return]


class _Down(nn.Module):
    """T frames to ceil(T / 2)."""

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.conv = TimeConv(dim, dim, 3, stride=2, padding=1)

    def forward(self, x_BTC: Tensor) -> Tensor:
        return self.conv(x_BTC)  # type: ignore[no-any-return]


class _Up(nn.Module):
    """T frames to 2 T."""

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.conv = nn.ConvTranspose1d(dim, dim, 4, stride=2, padding=1)

    def forward(self, x_BTC: Tensor) -> Tensor:
        return self.conv(x_BTC.transpose(1, 2)).transpose(1, 2)  # type: ignore[no-any-return]


class _Stage(nn.ModuleList):
    """A ResNet block, transformer blocks and, but in the middle, a change of the time scale; named by number."""

    def __init__(
        self, inputs: int, outputs: int, embedding: int, config: UNetConfig, rescale: nn.Module | None = None
    ) -> None:
        resnet = _ResNet(inputs, outputs, embedding, config.groups)
        transformers = nn.ModuleList(_Transformer(outputs, config) for _ in range(config.blocks))
        super().__init__([resnet, transformers] + ([rescale] if rescale else []))

    def time(self, embedded_NE: Tensor) -> Tensor:
        return cast(_ResNet, self[0]).mlp(embedded_NE)  # type: ignore[no-any-return]

    def forward(self, x_BTC: Tensor, time: Tensor, mask: _Mask) -> Tensor:
        x_BTC = self[0](x_BTC, time, mask)
        for transformer in cast(nn.ModuleList, self[1]):
            x_BTC = transformer(x_BTC, mask)
        return x_BTC

    def rescale(self, x_BTC: Tensor) -> Tensor:
        return self[2](x_BTC)  # type: ignore[no-any-return]


def _same(dim: int) -> nn.Module:
    return TimeConv(dim, dim, 3, padding=1)


class UNet(nn.Module):
    """Velocity [B, T, M] of frames [B, T, I]."""

    def __init__(self, mels: int, config: UNetConfig) -> None:
        super().__init__()
        self.config = config
        self.inputs, embedding = 4 * mels, config.time_factor * config.channels[0]
        self.time_mlp = nn.ModuleDict(
            {"linear_1": nn.Linear(self.inputs, embedding), "linear_2": nn.Linear(embedding, embedding)}
        )
        widths = list(config.channels)
        downs, ups = ([kind] * (len(widths) - 1) + [_same] for kind in (_Down, _Up))
        self.down_blocks = nn.ModuleList(
            _Stage(before, after, embedding, config, down(after))
            for before, after, down in zip([self.inputs, *widths[:-1]], widths, downs, strict=True)
        )
        self.mid_blocks = nn.ModuleList(
            _Stage(widths[-1], widths[-1], embedding, config) for _ in range(config.mid_blocks)
        )
        self.up_blocks = nn.ModuleList(
            _Stage(2 * before, after, embedding, config, up(after))
            for before, after, up in zip(widths[::-1], [*widths[-2::-1], widths[0]], ups, strict=True)
        )
        self.final_block = _ConvBlock(widths[0], widths[0], config.groups)
        self.final_proj = TimeConv(widths[0], mels, 1)

    def times(self, t_N: Tensor, dtype: torch.dtype) -> list[Time]:
        """Each of N times of the flow, for a whole batch."""
        said = self._said(t_N, dtype)
        return [[vector_NC[n] for vector_NC in said] for n in range(len(t_N))]

    def time_of_each(self, t_B: Tensor, dtype: torch.dtype) -> Time:
        """Times of the flow that differ within a batch."""
        return [vector_BC[:, None] for vector_BC in self._said(t_B, dtype)]

    def _said(self, t_N: Tensor, dtype: torch.dtype) -> Time:
        half = self.inputs // 2
        rate = torch.exp(torch.arange(half, device=t_N.device, dtype=torch.float64) * (-math.log(1e4) / (half - 1)))
        angle = 1000 * t_N.double()[:, None] * rate
        waves = torch.cat([angle.sin(), angle.cos()], dim=-1).to(dtype)
        time_NE = self.time_mlp["linear_2"](F.silu(self.time_mlp["linear_1"](waves)))
        return [stage.time(time_NE) for stage in (*self._down, *self._mid, *self._up)]

    def forward(self, x_BTI: Tensor, time: Time, lengths_B: Tensor | None = None) -> Tensor:
        """`lengths_B` where sequences differ in length."""
        said = iter(time)
        whole = mask = _Mask.of(lengths_B, x_BTI.shape[1], x_BTI.dtype)
        x_BTC = mask(x_BTI)
        skips: list[tuple[Tensor, _Mask]] = []
        for stage in self._down:
            x_BTC = stage(x_BTC, next(said), mask)
            skips.append((x_BTC, mask))
            x_BTC = stage.rescale(mask(x_BTC))
            mask = mask.halved()
        mask = skips[-1][1]  # the last level does not halve
        for stage in self._mid:
            x_BTC = stage(x_BTC, next(said), mask)
        for stage in self._up:
            skip_BTC, mask = skips.pop()
            x_BTC = mask(torch.cat([x_BTC[:, : skip_BTC.shape[1]], skip_BTC], dim=-1))
            x_BTC = stage.rescale(mask(stage(x_BTC, next(said), mask)))
        return whole(self.final_proj(self.final_block(x_BTC, whole)))

    @property
    def _down(self) -> list[_Stage]:
        return cast(list[_Stage], list(self.down_blocks))

    @property
    def _mid(self) -> list[_Stage]:
        return cast(list[_Stage], list(self.mid_blocks))

    @property
    def _up(self) -> list[_Stage]:
        return cast(list[_Stage], list(self.up_blocks))
