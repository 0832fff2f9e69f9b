"""The two flow estimators in a straightforward eager form: what the benchmark compares with, and an oracle for tests.

Written after the architecture alone: one PyTorch operation for each step of the formula, channels first for
convolutions and last for the rest, attention as two products and a softmax, guidance as a batch of two, everything
computed again in each step of the solver. Weights are a state dict with the released tensor names.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

Weights = Mapping[str, Tensor]
Estimator = Callable[[Tensor, Tensor, Tensor, Tensor, Tensor], Tensor]
"""(x, mu, t, speaker, cond) -> velocity; x, mu, cond and velocity [B, M, T], t [B], speaker [B, M]."""


def solve(estimator: Estimator, x: Tensor, mu: Tensor, speaker: Tensor, cond: Tensor, *, steps: int) -> Tensor:
    """Euler on the cosine grid with guidance 0.7, from noise x [1, M, T]."""
    times = 1 - torch.cos(torch.linspace(0, 1, steps + 1) * 0.5 * torch.pi)
    for k in range(steps):
        both = estimator(
            torch.cat([x, x]),
            torch.cat([mu, torch.zeros_like(mu)]),
            times[k].repeat(2).to(x),
            torch.cat([speaker, torch.zeros_like(speaker)]),
            torch.cat([cond, torch.zeros_like(cond)]),
        )
        x = x + (times[k + 1] - times[k]).to(x) * (1.7 * both[:1] - 0.7 * both[1:])
    return x


def _linear(w: Weights, name: str, x: Tensor) -> Tensor:
    return F.linear(x, w[f"{name}.weight"], w.get(f"{name}.bias"))


def _conv(w: Weights, name: str, x: Tensor, *, stride: int = 1, padding: int = 0) -> Tensor:
    return F.conv1d(x, w[f"{name}.weight"], w[f"{name}.bias"], stride=stride, padding=padding)


def _norm(w: Weights, name: str, x: Tensor) -> Tensor:
    return F.layer_norm(x, x.shape[-1:], w[f"{name}.weight"], w[f"{name}.bias"])


def _attention(q: Tensor, k: Tensor, v: Tensor, heads: int) -> Tensor:
    q, k, v = (x.reshape(*x.shape[:2], heads, -1).transpose(1, 2) for x in (q, k, v))
    scores = q @ k.transpose(-1, -2) / math.sqrt(q.shape[-1])
    return (scores.softmax(-1) @ v).transpose(1, 2).flatten(2)


def _inputs(x: Tensor, mu: Tensor, speaker: Tensor, cond: Tensor) -> Tensor:
    return torch.cat([x, mu, speaker[:, :, None].expand(-1, -1, x.shape[2]), cond], dim=1)


@dataclass(frozen=True)
class EagerDiT:
    weights: Weights
    depth: int
    heads: int

    def __call__(self, x: Tensor, mu: Tensor, t: Tensor, speaker: Tensor, cond: Tensor) -> Tensor:
        w = self.weights
        h = _linear(w, "in_proj", _inputs(x, mu, speaker, cond).transpose(1, 2))
        half = w["t_embedder.mlp.0.weight"].shape[1] // 2
        angle = 1000 * t[:, None] * torch.exp(-math.log(1e4) * torch.arange(half).to(t) / half)
        c = _linear(w, "t_embedder.mlp.0", torch.cat([angle.cos(), angle.sin()], dim=-1))
        c = _linear(w, "t_embedder.mlp.2", F.silu(c))
        for block in range(self.depth):
            h = self._block(f"blocks.{block}", h, c)
        shift, scale = _linear(w, "final_layer.adaLN_modulation.1", F.silu(c))[:, None].chunk(2, dim=-1)
        h = F.layer_norm(h, h.shape[-1:], eps=1e-6) * (1 + scale) + shift
        return _linear(w, "final_layer.linear", h).transpose(1, 2)

    def _block(self, name: str, h: Tensor, c: Tensor) -> Tensor:
        w = self.weights
        said = _linear(w, f"{name}.adaLN_modulation.1", F.silu(c))[:, None].chunk(9, dim=-1)
        shift, scale, gate = said[:3]
        a = F.layer_norm(h, h.shape[-1:], eps=1e-6) * (1 + scale) + shift
        q, k, v = (_linear(w, f"{name}.attn.to_{part}", a) for part in "qkv")
        q = _norm(w, f"{name}.attn.q_norm", q.reshape(*q.shape[:2], self.heads, -1)).flatten(2)
        k = _norm(w, f"{name}.attn.k_norm", k.reshape(*k.shape[:2], self.heads, -1)).flatten(2)
        h = h + gate * _linear(w, f"{name}.attn.proj", _attention(q, k, v, self.heads))
        shift, scale, gate = said[6:]
        a = (F.layer_norm(h, h.shape[-1:], eps=1e-6) * (1 + scale) + shift).transpose(1, 2)
        a = _conv(w, f"{name}.conv.block.1", F.pad(a, (2, 0))).transpose(1, 2)
        a = F.mish(_norm(w, f"{name}.conv.block.3", a)).transpose(1, 2)
        h = h + gate * _conv(w, f"{name}.conv.block.6", F.pad(a, (2, 0))).transpose(1, 2)
        shift, scale, gate = said[3:6]
        a = F.layer_norm(h, h.shape[-1:], eps=1e-6) * (1 + scale) + shift
        a = F.gelu(_linear(w, f"{name}.mlp.fc1", a), approximate="tanh")
        return h + gate * _linear(w, f"{name}.mlp.fc2", a)


@dataclass(frozen=True)
class EagerUNet:
    weights: Weights
    levels: int
    blocks: int
    mid_blocks: int
    heads: int
    groups: int = 8

    def __call__(self, x: Tensor, mu: Tensor, t: Tensor, speaker: Tensor, cond: Tensor) -> Tensor:
        w = self.weights
        h = _inputs(x, mu, speaker, cond)
        half = h.shape[1] // 2
        angle = 1000 * t[:, None] * torch.exp(torch.arange(half).to(t) * -(math.log(1e4) / (half - 1)))
        c = F.silu(_linear(w, "time_mlp.linear_1", torch.cat([angle.sin(), angle.cos()], dim=-1)))
        c = _linear(w, "time_mlp.linear_2", c)
        skips = []
        for level in range(self.levels):
            h = self._stage(f"down_blocks.{level}", h, c)
            skips.append(h)
            if level < self.levels - 1:
                h = _conv(w, f"down_blocks.{level}.2.conv", h, stride=2, padding=1)
            else:
                h = _conv(w, f"down_blocks.{level}.2", h, padding=1)
        for block in range(self.mid_blocks):
            h = self._stage(f"mid_blocks.{block}", h, c)
        for level in range(self.levels):
            skip = skips.pop()
            name = f"up_blocks.{level}"
            h = self._stage(name, torch.cat([h[:, :, : skip.shape[2]], skip], dim=1), c)
            if level < self.levels - 1:
                h = F.conv_transpose1d(h, w[f"{name}.2.conv.weight"], w[f"{name}.2.conv.bias"], stride=2, padding=1)
            else:
                h = _conv(w, f"{name}.2", h, padding=1)
        return _conv(w, "final_proj", self._conv_block("final_block.block", h))

    def _conv_block(self, name: str, h: Tensor) -> Tensor:
        w = self.weights
        h = _conv(w, f"{name}.0", h, padding=1)
        return F.mish(F.group_norm(h, self.groups, w[f"{name}.1.weight"], w[f"{name}.1.bias"]))

    def _stage(self, name: str, h: Tensor, c: Tensor) -> Tensor:
        w = self.weights
        inner = self._conv_block(f"{name}.0.block1.block", h)
        inner = inner + _linear(w, f"{name}.0.mlp.1", F.mish(c))[:, :, None]
        inner = self._conv_block(f"{name}.0.block2.block", inner)
        h = (inner + _conv(w, f"{name}.0.res_conv", h)).transpose(1, 2)
        for block in range(self.blocks):
            part = f"{name}.1.{block}"
            a = _norm(w, f"{part}.norm1", h)
            q, k, v = (_linear(w, f"{part}.attn1.to_{which}", a) for which in "qkv")
            h = h + _linear(w, f"{part}.attn1.to_out.0", _attention(q, k, v, self.heads))
            a = F.gelu(_linear(w, f"{part}.ff.net.0.proj", _norm(w, f"{part}.norm3", h)))
            h = h + _linear(w, f"{part}.ff.net.2", a)
        return h.transpose(1, 2)
