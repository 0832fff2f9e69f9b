"""The SANM encoder in chunks: self-attention with an FSMN memory, streaming with a bounded past.

Every `chunk` new frames are computed in a window that also holds the `left` frames before them. In each
block the window attends to itself and to the oldest `chunk` rows of the `look_back` windows before it; the
FSMN memory, a depthwise convolution over the values, stays inside the window. Only the new frames of a
window are output.

Nothing that a block needs from earlier windows depends on that block's own output for them, so all windows
of a stretch of audio are computed together, block by block: one call of `forward` takes any number of
sessions and chunks. One chunk at a time (live) and many at once (files, training) are the same arithmetic.

Tensor names are those of FunASR's SANMEncoderChunkOpt, so its checkpoints load by name.
Source: arXiv 2006.01712 (SCAMA), arXiv 2006.01713 (SAN-M) and the released Paraformer configuration.

Shapes: B sessions, C chunks, W = left + chunk rows of a window, T frames, D width, I input width, H heads,
N blocks, K keys = look_back * chunk + W.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn


@dataclass(frozen=True)
class SanmConfig:
    """Sizes of the encoder; the defaults are the released Paraformer's and its chunking [0, 4, 5]."""

    input_dim: int = 560
    dim: int = 512
    heads: int = 4
    ffn_dim: int = 2048
    blocks: int = 50
    kernel: int = 11
    chunk: int = 4
    """New frames per window."""
    left: int = 5
    """Frames before them that the window recomputes."""
    look_back: int = 4
    """Windows before that attention can reach."""
    dropout: float = 0.0


@dataclass
class SanmState:
    """What a stream remembers between calls; its size is fixed.

    position: frames seen so far, [B]. left_BLI: the last `left` position-encoded frames. keys_values: rows
    kept of the last `look_back` windows in each block, [N, B, look_back, chunk, 2D]. filled: how many of
    them are real, [B].
    """

    position: Tensor
    left_BLI: Tensor
    keys_values: Tensor
    filled: Tensor

    @staticmethod
    def stack(states: Sequence[SanmState]) -> SanmState:
        """Several sessions as one batch."""
        if len(states) == 1:
            return states[0]
        return SanmState(
            torch.cat([s.position for s in states]),
            torch.cat([s.left_BLI for s in states]),
            torch.cat([s.keys_values for s in states], dim=1),
            torch.cat([s.filled for s in states]),
        )

    def unstack(self) -> list[SanmState]:
        """The inverse of `stack`. Memory is not shared: one session must not keep the others alive."""
        count = len(self.position)
        if count == 1:
            return [self]
        return [
            SanmState(
                self.position[b : b + 1].clone(),
                self.left_BLI[b : b + 1].clone(),
                self.keys_values[:, b : b + 1].clone(),
                self.filled[b : b + 1].clone(),
            )
            for b in range(count)
        ]


class SanmEncoder(nn.Module):
    """Frames [B, T, I] to hidden vectors [B, T, D], causal but for the chunk a frame is in."""

    def __init__(self, config: SanmConfig) -> None:
        super().__init__()
        self.config = config
        self.encoders0 = nn.ModuleList([_Block(config, config.input_dim)])
        self.encoders = nn.ModuleList([_Block(config, config.dim) for _ in range(config.blocks - 1)])
        self.after_norm = nn.LayerNorm(config.dim, eps=1e-12)

    def initial_state(self, batch: int = 1, start: int | Tensor = 0) -> SanmState:
        """State before the first frame. `start` shifts the positions: training draws it, so that long
        streams, whose positions run on, are nothing new to the model."""
        c = self.config
        weight = self.after_norm.weight
        return SanmState(
            position=torch.zeros(batch, dtype=torch.long, device=weight.device) + start,
            left_BLI=weight.new_zeros(batch, c.left, c.input_dim),
            keys_values=weight.new_zeros(c.blocks, batch, c.look_back, c.chunk, 2 * c.dim),
            filled=torch.zeros(batch, dtype=torch.long, device=weight.device),
        )

    def forward(self, x_BTI: Tensor, lengths_B: Tensor | None, state: SanmState) -> tuple[Tensor, SanmState]:
        """Continue every session by T frames, of which the first `lengths_B` are real (None: all).

        Returns hidden vectors [B, T, D], undefined past the length, and the state after them. The state can
        be continued only when T and all lengths are whole chunks; a shorter chunk is the end of its session.
        """
        c = self.config
        frames = x_BTI.shape[1]
        chunks = -(-frames // c.chunk)
        x_BTI = x_BTI * math.sqrt(c.dim) + sinusoids(state.position, frames, c.input_dim).to(x_BTI.dtype)
        x_BTI = F.pad(x_BTI, (0, 0, 0, chunks * c.chunk - frames))
        padded = torch.cat([state.left_BLI, x_BTI], dim=1)
        x = padded.unfold(1, c.left + c.chunk, c.chunk).transpose(2, 3)  # [B, C, W, I]

        if lengths_B is None and frames % c.chunk:
            lengths_B = torch.full_like(state.position, frames)
        valid_BCW = None if lengths_B is None else self._valid(lengths_B, chunks)
        mask_BCK = self._reachable(state.filled, chunks, valid_BCW)
        kept = []
        for index, block in enumerate([*self.encoders0, *self.encoders]):
            x, keys_values = block(x, state.keys_values[index], valid_BCW, mask_BCK)
            kept.append(keys_values)
        y_BTD = self.after_norm(x[:, :, c.left :].flatten(1, 2))[:, :frames]
        after = SanmState(
            position=state.position + frames,
            left_BLI=padded[:, chunks * c.chunk :],
            keys_values=torch.stack(kept),
            filled=(state.filled + chunks).clamp(max=c.look_back),
        )
        return y_BTD, after

    def _valid(self, lengths_B: Tensor, chunks: int) -> Tensor:
        """Which rows of each window are real frames, or the left context of one: [B, C, W]."""
        c = self.config
        row = torch.arange(c.left + c.chunk, device=lengths_B.device) - c.left
        frame_CW = torch.arange(chunks, device=lengths_B.device)[:, None] * c.chunk + row
        return frame_CW < lengths_B[:, None, None]

    def _reachable(self, filled_B: Tensor, chunks: int, valid_BCW: Tensor | None) -> Tensor | None:
        """Which keys each window may attend to, [B, C, K]; None when it is all of them."""
        c = self.config
        if valid_BCW is None and bool((filled_B == c.look_back).all()):
            return None
        window = torch.arange(chunks, device=filled_B.device)[:, None]
        age_CJ = window + torch.arange(c.look_back, device=filled_B.device)
        past_BCJ = age_CJ >= (c.look_back - filled_B)[:, None, None]
        past = past_BCJ.repeat_interleave(c.chunk, dim=2)
        if valid_BCW is None:
            own = past.new_ones(*past.shape[:2], c.left + c.chunk)
        else:
            # A window past the end of its session has no real row; it attends to itself to stay finite.
            own = valid_BCW | ~valid_BCW.any(dim=2, keepdim=True)
        return torch.cat([past, own], dim=2)


class _Attention(nn.Module):
    def __init__(self, config: SanmConfig, input_dim: int) -> None:
        super().__init__()
        self.config = config
        self.linear_q_k_v = nn.Linear(input_dim, 3 * config.dim)
        self.linear_out = nn.Linear(config.dim, config.dim)
        self.fsmn_block = nn.Conv1d(
            config.dim, config.dim, config.kernel, padding=config.kernel // 2, groups=config.dim, bias=False
        )

    def forward(
        self, x_BCWI: Tensor, past: Tensor, valid_BCW: Tensor | None, mask_BCK: Tensor | None
    ) -> tuple[Tensor, Tensor]:
        c = self.config
        b, chunks, rows, _ = x_BCWI.shape
        q, keys_values = self.linear_q_k_v(x_BCWI).split([c.dim, 2 * c.dim], dim=-1)
        history = torch.cat([past, keys_values[:, :, : c.chunk]], dim=1)  # [B, look_back + C, chunk, 2D]
        reach = history.unfold(1, c.look_back, 1)[:, :chunks].permute(0, 1, 4, 2, 3).flatten(2, 3)
        k, v = torch.cat([reach, keys_values], dim=2).flatten(0, 1).chunk(2, dim=-1)

        def heads(x: Tensor) -> Tensor:
            return x.view(*x.shape[:-1], c.heads, c.dim // c.heads).transpose(1, 2)

        mask = None if mask_BCK is None else mask_BCK.flatten(0, 1)[:, None, None]
        q = q.flatten(0, 1).to(k.dtype)
        # Autocast would do this in bfloat16, whose backward pass is four times slower on windows this small.
        with torch.autocast(q.device.type, enabled=False):
            attended = F.scaled_dot_product_attention(heads(q), heads(k), heads(v), attn_mask=mask)
        attended = attended.transpose(1, 2).reshape(b, chunks, rows, c.dim)

        own_values = keys_values[..., c.dim :]
        if valid_BCW is not None:
            own_values = own_values * valid_BCW[..., None]
        memory = self._memory(own_values.flatten(0, 1)).view_as(own_values) + own_values
        return self.linear_out(attended) + memory, history[:, -c.look_back :]

    def _memory(self, v_NWD: Tensor) -> Tensor:
        """`fsmn_block` over the rows of each window. A sum of shifted rows is several times faster than the library's
        depthwise convolution on windows this short, in both directions."""
        weight_KD = self.fsmn_block.weight[:, 0].T.to(v_NWD.dtype)
        rows = v_NWD.shape[1]
        padded = F.pad(v_NWD, (0, 0, len(weight_KD) // 2, len(weight_KD) // 2))
        total = padded[:, :rows] * weight_KD[0]
        for shift, weight_D in enumerate(weight_KD[1:], 1):
            total = torch.addcmul(total, padded[:, shift : shift + rows], weight_D)
        return total


class _FeedForward(nn.Module):
    def __init__(self, config: SanmConfig) -> None:
        super().__init__()
        self.w_1 = nn.Linear(config.dim, config.ffn_dim)
        self.w_2 = nn.Linear(config.ffn_dim, config.dim)

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.w_2(F.relu(self.w_1(x)))
        return y


class _Block(nn.Module):
    def __init__(self, config: SanmConfig, input_dim: int) -> None:
        super().__init__()
        self.residual = input_dim == config.dim
        self.self_attn = _Attention(config, input_dim)
        self.feed_forward = _FeedForward(config)
        self.norm1 = nn.LayerNorm(input_dim, eps=1e-12)
        self.norm2 = nn.LayerNorm(config.dim, eps=1e-12)
        self.dropout = nn.Dropout(config.dropout)

    def forward(self, x: Tensor, past: Tensor, valid: Tensor | None, mask: Tensor | None) -> tuple[Tensor, Tensor]:
        attended, kept = self.self_attn(self.norm1(x), past, valid, mask)
        attended = self.dropout(attended)
        x = x + attended if self.residual else attended
        return x + self.dropout(self.feed_forward(self.norm2(x))), kept


def sinusoids(position_B: Tensor, frames: int, dim: int) -> Tensor:
    """Position encodings [B, frames, dim], sines then cosines; a stream's first frame has position 1."""
    index = torch.arange(1, frames + 1, device=position_B.device) + position_B[:, None]
    steps = torch.arange(dim // 2, dtype=torch.float32, device=position_B.device)
    inverse_timescale = torch.exp(steps * (-math.log(10_000.0) / (dim / 2 - 1)))
    angle = index[..., None].float() * inverse_timescale
    return torch.cat([angle.sin(), angle.cos()], dim=-1)
