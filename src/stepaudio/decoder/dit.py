"""The estimator of the 24 kHz generation: a diffusion transformer with causal convolutions and no position encoding.

A block is attention, convolution and MLP, each x + gate * f(norm(x) * (1 + scale) + shift); shift, scale and gate come
from the time in the flow (adaLN-zero, arXiv 2212.09748). Attention sees everything, or by chunks the prompt, the latest
`window` frames and its own chunk.

Parameter names are the tensor names of the released checkpoints.

Shapes: B batch, T frames, I inputs (4 M: noisy mel, encoded tokens, speaker, prompt mel), C width, H heads, D head
width.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from stepaudio.decoder.layers import GeluLinear, Memory, TimeConv, chunk_mask, split, valid


@dataclass(frozen=True)
class DiTConfig:
    """Sizes; the defaults are the released ones."""

    dim: int = 512
    depth: int = 16
    heads: int = 8
    head_dim: int = 64
    ffn: int = 2048
    frequencies: int = 256
    window: int = 96
    """Frames before a chunk that it sees, besides the prompt: the latest 1.9 s."""


Time = list[tuple[Tensor, ...]]
"""What a time says to each block and at last to the final layer: vectors [C] for a whole batch, or [B, 1, C]. For a
block, shift, 1 + scale and gate of attention, of MLP, of convolution; for the final layer, shift and 1 + scale."""


@dataclass(frozen=True)
class BlockState:
    """What one block keeps of earlier chunks, for one step of the solver."""

    memory: Memory = field(default_factory=Memory)
    convs: tuple[Tensor, Tensor] | None = None


class _TimeEmbedder(nn.Module):
    """Times in 0..1 as cosines and sines of 1000 t, then an MLP."""

    def __init__(self, config: DiTConfig) -> None:
        super().__init__()
        self.pairs = config.frequencies // 2
        self.mlp = nn.Sequential(
            nn.Linear(config.frequencies, config.dim), nn.SiLU(), nn.Linear(config.dim, config.dim)
        )

    def forward(self, t_N: Tensor, dtype: torch.dtype) -> Tensor:
        rate = torch.exp(
            torch.arange(self.pairs, device=t_N.device, dtype=torch.float64) * (-math.log(1e4) / self.pairs)
        )
        angle = 1000 * t_N.double()[:, None] * rate
        return self.mlp(torch.cat([angle.cos(), angle.sin()], dim=-1).to(dtype))  # type: ignore[no-any-return]


class _Modulation(nn.Sequential):
    """SiLU and a linear layer to `parts` vectors."""

    def __init__(self, dim: int, parts: int) -> None:
        super().__init__(nn.SiLU(), nn.Linear(dim, parts * dim))
        self.parts = parts

    def vectors(self, time_NC: Tensor) -> tuple[Tensor, ...]:
        vectors = list(self(time_NC).chunk(self.parts, dim=-1))
        vectors[1::3] = [1 + scale for scale in vectors[1::3]]
        return tuple(vectors)


class _Attention(nn.Module):
    def __init__(self, config: DiTConfig) -> None:
        super().__init__()
        inner = config.heads * config.head_dim
        self.heads = config.heads
        self.to_q = nn.Linear(config.dim, inner)
        self.to_k = nn.Linear(config.dim, inner)
        self.to_v = nn.Linear(config.dim, inner)
        self.q_norm = nn.LayerNorm(config.head_dim)
        self.k_norm = nn.LayerNorm(config.head_dim)
        self.proj = nn.Linear(inner, config.dim)

    def forward(self, x_BTC: Tensor, mask: Tensor | None, memory: Memory) -> tuple[Tensor, Tensor]:
        q, k, v = (split(project(x_BTC), groups=self.heads) for project in (self.to_q, self.to_k, self.to_v))
        q_BHTD = self.q_norm(q).transpose(1, 2)
        kv_2BHTD = torch.stack([self.k_norm(k), v]).transpose(2, 3)
        k_BHSD, v_BHSD = memory.extend(kv_2BHTD)
        out_BHTD = F.scaled_dot_product_attention(q_BHTD, k_BHSD, v_BHSD, attn_mask=mask)
        return self.proj(out_BHTD.transpose(1, 2).flatten(2)), kv_2BHTD


class _MLP(nn.Module):
    def __init__(self, config: DiTConfig) -> None:
        super().__init__()
        self.fc1 = GeluLinear(config.dim, config.ffn, "tanh")
        self.fc2 = nn.Linear(config.ffn, config.dim)

    def forward(self, x: Tensor) -> Tensor:
        return self.fc2(self.fc1(x))  # type: ignore[no-any-return]


class _Conv(nn.Module):
    """Two causal convolutions with a norm between. The released names count the transpositions that it needs not."""

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.block = nn.ModuleDict({"1": TimeConv(dim, dim, 3), "3": nn.LayerNorm(dim), "6": TimeConv(dim, dim, 3)})

    def forward(self, x_BTC: Tensor, before: tuple[Tensor, Tensor] | None) -> tuple[Tensor, tuple[Tensor, Tensor]]:
        if before is None:
            before = (x_BTC.new_zeros(x_BTC.shape[0], 2, x_BTC.shape[2]),) * 2
        first = torch.cat([before[0], x_BTC], dim=1)
        second = torch.cat([before[1], F.mish(self.block["3"](self.block["1"](first)))], dim=1)
        return self.block["6"](second), (first[:, -2:].clone(), second[:, -2:].clone())


def _modulated(x_BTC: Tensor, shift: Tensor, scale: Tensor) -> Tensor:
    """norm(x) * scale + shift."""
    if shift.ndim == 1:
        return F.layer_norm(x_BTC, shift.shape, scale, shift, eps=1e-6)
    return torch.addcmul(shift, F.layer_norm(x_BTC, x_BTC.shape[-1:], eps=1e-6), scale)


class _Block(nn.Module):
    def __init__(self, config: DiTConfig) -> None:
        super().__init__()
        self.attn = _Attention(config)
        self.mlp = _MLP(config)
        self.conv = _Conv(config.dim)
        self.adaLN_modulation = _Modulation(config.dim, 9)

    def forward(
        self, x_BTC: Tensor, time: tuple[Tensor, ...], mask: Tensor | None, state: BlockState
    ) -> tuple[Tensor, Tensor, tuple[Tensor, Tensor]]:
        """New x, its keys and values, and what the convolutions need next."""
        attn_shift, attn_scale, attn_gate, mlp_shift, mlp_scale, mlp_gate, conv_shift, conv_scale, conv_gate = time
        attended, kv_2BHTD = self.attn(_modulated(x_BTC, attn_shift, attn_scale), mask, state.memory)
        x_BTC = torch.addcmul(x_BTC, attn_gate, attended)
        mixed, convs = self.conv(_modulated(x_BTC, conv_shift, conv_scale), state.convs)
        x_BTC = torch.addcmul(x_BTC, conv_gate, mixed)
        return torch.addcmul(x_BTC, mlp_gate, self.mlp(_modulated(x_BTC, mlp_shift, mlp_scale))), kv_2BHTD, convs


class _Final(nn.Module):
    def __init__(self, dim: int, outputs: int) -> None:
        super().__init__()
        self.adaLN_modulation = _Modulation(dim, 2)
        self.linear = nn.Linear(dim, outputs)

    def forward(self, x_BTC: Tensor, time: tuple[Tensor, ...]) -> Tensor:
        shift, scale = time
        return self.linear(_modulated(x_BTC, shift, scale))  # type: ignore[no-any-return]


class DiT(nn.Module):
    """Velocity [B, T, M] of frames [B, T, I]."""

    def __init__(self, mels: int, config: DiTConfig) -> None:
        super().__init__()
        self.config = config
        self.t_embedder = _TimeEmbedder(config)
        self.in_proj = nn.Linear(4 * mels, config.dim)
        self.blocks = nn.ModuleList(_Block(config) for _ in range(config.depth))
        self.final_layer = _Final(config.dim, mels)

    def times(self, t_N: Tensor, dtype: torch.dtype) -> list[Time]:
        """Each of N times of the flow, for a whole batch."""
        said = self._said(t_N, dtype)
        return [[tuple(vector[n] for vector in vectors) for vectors in said] for n in range(len(t_N))]

    def time_of_each(self, t_B: Tensor, dtype: torch.dtype) -> Time:
        """Times of the flow that differ within a batch."""
        return [tuple(vector[:, None] for vector in vectors) for vectors in self._said(t_B, dtype)]

    def _said(self, t_N: Tensor, dtype: torch.dtype) -> Time:
        time_NC = self.t_embedder(t_N, dtype)
        return [layer.adaLN_modulation.vectors(time_NC) for layer in (*self.blocks, self.final_layer)]

    def forward(self, x_BTI: Tensor, time: Time, lengths_B: Tensor | None = None, ends: Tensor | None = None) -> Tensor:
        """In one piece. `lengths_B` where sequences differ in length; with `ends` (frames at which chunks stop), what
        chunks of these frames give."""
        mask = self._mask(x_BTI.shape[1], lengths_B, ends)
        x_BTC = self.in_proj(x_BTI)
        for block, said in zip(self.blocks, time, strict=False):
            x_BTC, _, _ = block(x_BTC, said, mask, BlockState())
        return self.final_layer(x_BTC, time[-1])  # type: ignore[no-any-return]

    def chunk(
        self, x_BTI: Tensor, time: Time, states: list[BlockState], *, is_prompt: bool = False
    ) -> tuple[Tensor, list[BlockState]]:
        """The next frames of a stream, at one step of the solver. A prompt can only come first: everything sees it."""
        x_BTC = self.in_proj(x_BTI)
        after = []
        for block, said, state in zip(self.blocks, time, states or [BlockState()] * len(self.blocks), strict=False):
            x_BTC, kv_2BHTD, convs = block(x_BTC, said, None, state)
            if is_prompt:
                memory = state.memory.after_prompt(kv_2BHTD)
            else:
                memory = state.memory.after(kv_2BHTD, self.config.window)
            after.append(BlockState(memory, convs))
        return self.final_layer(x_BTC, time[-1]), after

    def _mask(self, steps: int, lengths_B: Tensor | None, ends: Tensor | None) -> Tensor | None:
        """Who attends to whom, [B or 1, 1, T, T]; None: all to all."""
        mask = None if lengths_B is None else valid(lengths_B, steps)[:, None, None]
        if ends is None:
            return mask
        in_chunks = chunk_mask(ends, steps, window=self.config.window)[None, None]
        itself = torch.eye(steps, dtype=torch.bool, device=ends.device)
        return in_chunks if mask is None else mask & in_chunks | itself
