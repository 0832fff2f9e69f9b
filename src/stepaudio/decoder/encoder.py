"""The token encoders of both decoder generations: conformer layers without convolution (ESPnet's relative positions).

- `TokenConformer` (22.05 kHz): embedded tokens to vectors, each seeing all.
- `LengthRegulator` (22.05 kHz): those vectors, stretched to mel frames.
- `UpsampleConformer` (24 kHz): rows at 25 Hz to mel frames, in one piece or in chunks. Each row looks three rows ahead,
  by convolution alone; attention sees no further than its chunk, so a chunk needs no more than those three rows.

Parameter names are the tensor names of the released checkpoints. Sources: arXiv 1901.02860 (relative positions),
arXiv 2407.05407 and 2412.10117 (the encoders).

Shapes: B batch, T steps in time, C width, H heads, D head width, S keys, M mel channels, R rows.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field, replace
from typing import cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from stepaudio.decoder.layers import Memory, TimeConv, chunk_mask, masked_group_norm, split, valid


@dataclass(frozen=True)
class EncoderConfig:
    """Sizes; the defaults are the released ones. `regulator` counts the convolutions of the length regulator, at 22.05
    kHz; what stands after it is of the upsampling encoder, at 24 kHz."""

    dim: int = 512
    heads: int = 8
    ffn: int = 2048
    blocks: int = 6
    key_bias: bool = True
    regulator: int = 4
    up_blocks: int = 4
    upsample: int = 2
    lookahead: int = 3
    window: int = 250
    """Rows before a chunk that its attention sees, besides the prompt."""


# ---------------------------------------------------------------- attention with relative positions


@dataclass(frozen=True)
class Distances:
    """How far queries are from keys: `table` [U, C] encodes the distances that occur, `index` [T, S] which is where."""

    table: Tensor
    index: Tensor

    @classmethod
    def between(cls, queries_T: Tensor, keys_S: Tensor, like: Tensor) -> Distances:
        """Of positions (integers) to positions; the table has the last axis, dtype and device of `like`."""
        occurring, index = torch.unique(queries_T[:, None] - keys_S[None, :], return_inverse=True)
        return cls._encode(occurring, index, like)

    @classmethod
    def within(cls, steps: int, like: Tensor) -> Distances:
        """Of each of `steps` positions to each other."""
        occurring = torch.arange(1 - steps, steps, device=like.device)
        index = occurring[steps - 1 :, None] - occurring[None, steps - 1 :] + steps - 1
        return cls._encode(occurring, index, like)

    @classmethod
    def _encode(cls, occurring_U: Tensor, index_TS: Tensor, like: Tensor) -> Distances:
        width = like.shape[-1]
        rate = torch.exp(torch.arange(0, width, 2, device=like.device, dtype=torch.float64) * -(math.log(1e4) / width))
        angle = occurring_U[:, None] * rate
        table = torch.stack([angle.sin(), angle.cos()], dim=-1).flatten(1)
        return cls(table.to(like.dtype), index_TS)


class RelativeAttention(nn.Module):
    """score(i, j) = ((q_i + u)·k_j + (q_i + v)·W_pos p(i - j)) / sqrt(D), p the sines and cosines of a distance."""

    def __init__(self, config: EncoderConfig) -> None:
        super().__init__()
        dim, self.heads = config.dim, config.heads
        self.linear_q = nn.Linear(dim, dim)
        self.linear_k = nn.Linear(dim, dim, bias=config.key_bias)
        self.linear_v = nn.Linear(dim, dim)
        self.linear_out = nn.Linear(dim, dim)
        self.linear_pos = nn.Linear(dim, dim, bias=False)
        self.pos_bias_u = nn.Parameter(torch.zeros(self.heads, dim // self.heads))
        self.pos_bias_v = nn.Parameter(torch.zeros(self.heads, dim // self.heads))

    def forward(
        self, x_BTC: Tensor, distances: Distances, mask_BTS: Tensor | None, memory: Memory
    ) -> tuple[Tensor, Tensor]:
        """Attended [B, T, C], and the new keys and values [2, B, H, T, D]; those of `memory` come first."""
        q_BTHD = split(self.linear_q(x_BTC), groups=self.heads)
        kv_2BHTD = split(torch.stack([self.linear_k(x_BTC), self.linear_v(x_BTC)]), groups=self.heads)
        kv_2BHTD = kv_2BHTD.transpose(2, 3)
        k_BHSD, v_BHSD = memory.extend(kv_2BHTD)
        p_HDU = split(self.linear_pos(distances.table), groups=self.heads).permute(1, 2, 0)
        by_distance_BHTU = (q_BTHD + self.pos_bias_v).transpose(1, 2) @ p_HDU
        index_BHTS = distances.index.expand(*by_distance_BHTU.shape[:2], -1, -1)
        bias_BHTS = by_distance_BHTU.gather(-1, index_BHTS) / math.sqrt(q_BTHD.shape[-1])
        if mask_BTS is not None:
            bias_BHTS = bias_BHTS.masked_fill(~mask_BTS[:, None], -torch.inf)
        q_BHTD = (q_BTHD + self.pos_bias_u).transpose(1, 2)
        out_BHTD = F.scaled_dot_product_attention(q_BHTD, k_BHSD, v_BHSD, attn_mask=bias_BHTS)
        return self.linear_out(out_BHTD.transpose(1, 2).flatten(2)), kv_2BHTD


class _FeedForward(nn.Module):
    def __init__(self, config: EncoderConfig) -> None:
        super().__init__()
        self.w_1 = nn.Linear(config.dim, config.ffn)
        self.w_2 = nn.Linear(config.ffn, config.dim)

    def forward(self, x: Tensor) -> Tensor:
        return self.w_2(F.silu(self.w_1(x)))  # type: ignore[no-any-return]


class ConformerLayer(nn.Module):
    """x + attention(norm(x)), then x + feed_forward(norm(x))."""

    def __init__(self, config: EncoderConfig) -> None:
        super().__init__()
        self.self_attn = RelativeAttention(config)
        self.feed_forward = _FeedForward(config)
        self.norm_ff = nn.LayerNorm(config.dim, eps=1e-12)
        self.norm_mha = nn.LayerNorm(config.dim, eps=1e-12)

    def forward(
        self, x_BTC: Tensor, distances: Distances, mask_BTS: Tensor | None, memory: Memory
    ) -> tuple[Tensor, Tensor]:
        attended, kv_2BHTD = self.self_attn(self.norm_mha(x_BTC), distances, mask_BTS, memory)
        x_BTC = x_BTC + attended
        return x_BTC + self.feed_forward(self.norm_ff(x_BTC)), kv_2BHTD


class _Embed(nn.Module):
    """Linear and norm, scaled by sqrt(C)."""

    def __init__(self, inputs: int, dim: int) -> None:
        super().__init__()
        self.out = nn.Sequential(nn.Linear(inputs, dim), nn.LayerNorm(dim))
        self.scale = math.sqrt(dim)

    def forward(self, x: Tensor) -> Tensor:
        return self.out(x) * self.scale  # type: ignore[no-any-return]


def _run(
    layers: nn.ModuleList, x_BTC: Tensor, distances: Distances, mask_BTS: Tensor | None, memories: list[Memory]
) -> tuple[Tensor, list[Tensor]]:
    kept = []
    for layer, memory in zip(layers, memories, strict=True):
        x_BTC, kv_2BHTD = layer(x_BTC, distances, mask_BTS, memory)
        kept.append(kv_2BHTD)
    return x_BTC, kept


def _whole(layers: nn.ModuleList, x_BTC: Tensor, mask_BTT: Tensor) -> Tensor:
    distances = Distances.within(x_BTC.shape[1], like=x_BTC)
    return _run(layers, x_BTC, distances, mask_BTT, [Memory()] * len(layers))[0]


# ---------------------------------------------------------------- 22.05 kHz


class TokenConformer(nn.Module):
    """Embedded tokens [B, T, inputs] to vectors [B, T, C]."""

    def __init__(self, inputs: int, config: EncoderConfig) -> None:
        super().__init__()
        self.embed = _Embed(inputs, config.dim)
        self.encoders = nn.ModuleList(ConformerLayer(config) for _ in range(config.blocks))
        self.after_norm = nn.LayerNorm(config.dim)

    def forward(self, x_BTI: Tensor, lengths_B: Tensor) -> Tensor:
        steps = x_BTI.shape[1]
        mask_BTT = valid(lengths_B, steps)[:, None].expand(-1, steps, -1)
        return self.after_norm(_whole(self.encoders, self.embed(x_BTI), mask_BTT))  # type: ignore[no-any-return]


class LengthRegulator(nn.Module):
    """Vectors at one rate to mel frames at another: linear interpolation, then convolutions and a projection."""

    def __init__(self, channels: int, layers: int) -> None:
        super().__init__()
        stages: list[nn.Module] = []
        for _ in range(layers):
            stages += [TimeConv(channels, channels, 3, padding=1), nn.GroupNorm(1, channels), nn.Mish()]
        self.model = nn.ModuleList([*stages, TimeConv(channels, channels, 1)])

    def forward(self, x_BFM: Tensor, lengths_B: Tensor) -> Tensor:
        """Refine interpolated frames [B, F, M], of which the first `lengths_B` count."""
        mask_BF1 = valid(lengths_B, x_BFM.shape[1])[..., None].to(x_BFM.dtype)
        *stages, last = self.model
        for conv, norm, activation in zip(stages[::3], stages[1::3], stages[2::3], strict=True):
            x_BFM = activation(masked_group_norm(conv(x_BFM * mask_BF1), cast(nn.GroupNorm, norm), mask_BF1))
        return last(x_BFM) * mask_BF1  # type: ignore[no-any-return]


def stretch(x_TM: Tensor, frames: int) -> Tensor:
    """[T, M] to [frames, M] by linear interpolation between the centres of steps."""
    if x_TM.shape[0] == 0 or frames == 0:
        return x_TM.new_zeros(frames, x_TM.shape[1])
    return F.interpolate(x_TM.T[None].float(), size=frames, mode="linear")[0].T.to(x_TM.dtype)


# ---------------------------------------------------------------- 24 kHz


class _LookAhead(nn.Module):
    """Each row mixed with `ahead` rows after it and two before it."""

    def __init__(self, dim: int, ahead: int) -> None:
        super().__init__()
        self.conv1 = TimeConv(dim, dim, ahead + 1)
        self.conv2 = TimeConv(dim, dim, 3)

    def forward(self, x_BTC: Tensor, rows: int, before_B2C: Tensor | None) -> tuple[Tensor, Tensor]:
        """The first `rows` of x, mixed, and what the next call needs as `before_B2C`; x has the rows ahead as well."""
        ahead_BTC = F.leaky_relu(self.conv1(x_BTC))
        if before_B2C is None:
            before_B2C = ahead_BTC.new_zeros(ahead_BTC.shape[0], 2, ahead_BTC.shape[2])
        hidden_BTC = torch.cat([before_B2C, ahead_BTC], dim=1)
        return x_BTC[:, :rows] + self.conv2(hidden_BTC), hidden_BTC[:, -2:]


class _Upsample(nn.Module):
    def __init__(self, dim: int, factor: int) -> None:
        super().__init__()
        self.factor = factor
        self.conv = TimeConv(dim, dim, 2 * factor + 1)

    def forward(self, x_BTC: Tensor, before_BLC: Tensor | None) -> tuple[Tensor, Tensor]:
        left = 2 * self.factor
        repeated = x_BTC.repeat_interleave(self.factor, dim=1)
        if before_BLC is None:
            before_BLC = repeated.new_zeros(repeated.shape[0], left, repeated.shape[2])
        repeated = torch.cat([before_BLC, repeated], dim=1)
        return self.conv(repeated), repeated[:, -left:]


@dataclass(frozen=True)
class EncoderState:
    """What a stream keeps between chunks; its size does not grow. `prompt` and `position` count rows."""

    prompt: int = 0
    position: int = 0
    look_ahead: Tensor | None = None
    upsample: Tensor | None = None
    memories: list[Memory] = field(default_factory=list)


class UpsampleConformer(nn.Module):
    """Embedded rows [B, R, inputs] to vectors [B, R * upsample, C]."""

    def __init__(self, inputs: int, config: EncoderConfig) -> None:
        super().__init__()
        self.config = config
        self.embed = _Embed(inputs, config.dim)
        self.pre_lookahead_layer = _LookAhead(config.dim, config.lookahead)
        self.encoders = nn.ModuleList(ConformerLayer(config) for _ in range(config.blocks))
        self.up_layer = _Upsample(config.dim, config.upsample)
        self.up_embed = _Embed(config.dim, config.dim)
        self.up_encoders = nn.ModuleList(ConformerLayer(config) for _ in range(config.up_blocks))
        self.after_norm = nn.LayerNorm(config.dim)

    def forward(self, x_BRI: Tensor, lengths_B: Tensor, ends: Tensor | None = None) -> Tensor:
        """In one piece; with `ends` (rows at which chunks stop) what chunks of these rows give."""
        steps, up = x_BRI.shape[1], self.config.upsample
        x_BRC = self.embed(x_BRI) * valid(lengths_B, steps)[..., None]
        x_BRC, _ = self.pre_lookahead_layer(F.pad(x_BRC, (0, 0, 0, self.config.lookahead)), steps, None)
        x_BRC = _whole(self.encoders, x_BRC, self._mask(lengths_B, steps, ends, 1))
        x_BFC, _ = self.up_layer(x_BRC, None)
        x_BFC = _whole(self.up_encoders, self.up_embed(x_BFC), self._mask(lengths_B * up, steps * up, ends, up))
        return self.after_norm(x_BFC)  # type: ignore[no-any-return]

    def _mask(self, lengths_B: Tensor, steps: int, ends: Tensor | None, up: int) -> Tensor:
        mask_BTT = valid(lengths_B, steps)[:, None].expand(-1, steps, -1)
        if ends is None:
            return mask_BTT
        # Padding sees itself, lest some of it see nothing at all and become NaN.
        itself_TT = torch.eye(steps, dtype=torch.bool, device=lengths_B.device)
        return mask_BTT & chunk_mask(ends * up, steps, window=self.config.window * up) | itself_TT

    def prompt(self, x_BRI: Tensor) -> tuple[Tensor, EncoderState]:
        """The rows of a prompt, which ends as an utterance does, and the state that streams after it start from."""
        rows = x_BRI.shape[1]
        out_BFC, kept, state = self._advance(x_BRI, rows, EncoderState())
        memories = [memory.after_prompt(kv) for memory, kv in zip(state.memories, kept, strict=True)]
        return out_BFC, replace(state, prompt=rows, memories=memories)

    def chunk(self, x_BRI: Tensor, rows: int, state: EncoderState) -> tuple[Tensor, EncoderState]:
        """The next `rows` of a stream; x has up to `lookahead` rows more, zeros stand for those that never come."""
        out_BFC, kept, state = self._advance(x_BRI, rows, state)
        window, up = self.config.window, self.config.upsample
        windows = [window] * len(self.encoders) + [window * up] * len(self.up_encoders)
        memories = [m.after(kv, size) for m, kv, size in zip(state.memories, kept, windows, strict=True)]
        return out_BFC, replace(state, memories=memories)

    def _advance(self, x_BRI: Tensor, rows: int, state: EncoderState) -> tuple[Tensor, list[Tensor], EncoderState]:
        """`rows` encoded, their keys and values by layer, and the state after them but for its memories."""
        up = self.config.upsample
        memories = state.memories or [Memory()] * (len(self.encoders) + len(self.up_encoders))
        below, above = memories[: len(self.encoders)], memories[len(self.encoders) :]
        x_BRC = F.pad(self.embed(x_BRI), (0, 0, 0, rows + self.config.lookahead - x_BRI.shape[1]))
        x_BRC, look_ahead = self.pre_lookahead_layer(x_BRC, rows, state.look_ahead)
        x_BRC, kept = _run(self.encoders, x_BRC, self._distances(state, rows, 1, x_BRC), None, below)
        x_BFC, upsample = self.up_layer(x_BRC, state.upsample)
        x_BFC = self.up_embed(x_BFC)
        x_BFC, kept_above = _run(self.up_encoders, x_BFC, self._distances(state, rows, up, x_BFC), None, above)
        after = EncoderState(state.prompt, state.position + rows, look_ahead, upsample, memories)
        return self.after_norm(x_BFC), kept + kept_above, after

    def _distances(self, state: EncoderState, rows: int, up: int, like: Tensor) -> Distances:
        """From a chunk's positions to what is remembered and to each other."""
        start, end = state.position, state.position + rows
        recent = max(state.prompt, start - self.config.window)
        keys = [torch.arange(a * up, b * up, device=like.device) for a, b in ((0, state.prompt), (recent, end))]
        return Distances.between(torch.arange(start * up, end * up, device=like.device), torch.cat(keys), like)
