"""Attention with sqrt-ALiBi: score = q·k / sqrt(D) - slope * sqrt(distance), causal.

The bias depends on the distance only, but no library kernel knows the square root. Four forms share one
meaning:

- `attend`: blocks of queries through PyTorch's scaled dot product attention, so that never more than a block
  of the bias exists. Differentiable, any device.
- `attend_cached`: the next token of many sequences against their key-value cache; the bias is one row per
  head.
- `attend_packed`: many documents in one row, none of which sees another.
- `attend_flex`: FlexAttention, one fused kernel on a GPU that computes the bias as it goes.

Shapes: B batch, T queries, S keys, H query heads in G groups of R, D head width.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import cache
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

QUERY_BLOCK = 256


def attend(q_BTHD: Tensor, k_BSGD: Tensor, v_BSGD: Tensor, slopes_H: Tensor) -> Tensor:
    """Causal attention of the last T of S positions; returns [B, T, H, D].

    The largest bias held at a time is [H, QUERY_BLOCK, S].
    """
    if q_BTHD.is_cuda:
        return attend_flex(q_BTHD, k_BSGD, v_BSGD, slopes_H)
    b, t, _, d = q_BTHD.shape
    s, groups = k_BSGD.shape[1:3]
    # The R heads of a group become extra queries of it: keys and values are used as they lie, never repeated.
    q_BGRTD = q_BTHD.reshape(b, t, groups, -1, d).permute(0, 2, 3, 1, 4)
    k_BGSD, v_BGSD = k_BSGD.transpose(1, 2), v_BSGD.transpose(1, 2)
    slopes_GR11 = slopes_H.view(groups, -1, 1, 1)
    positions_S = torch.arange(s, device=q_BTHD.device)
    blocks = []
    for start in range(0, t, QUERY_BLOCK):
        stop = min(start + QUERY_BLOCK, t)
        visible = s - t + stop
        distance_TS = positions_S[s - t + start : visible, None] - positions_S[None, :visible]
        bias_GRTS = _bias(distance_TS, slopes_GR11).to(q_BTHD.dtype)
        block_BGXD = F.scaled_dot_product_attention(
            q_BGRTD[:, :, :, start:stop].flatten(2, 3),
            k_BGSD[:, :, :visible],
            v_BGSD[:, :, :visible],
            attn_mask=bias_GRTS.flatten(1, 2),
        )
        blocks.append(block_BGXD.reshape(b, groups, -1, stop - start, d))
    return torch.cat(blocks, dim=3).permute(0, 3, 1, 2, 4).flatten(2, 3)


def attend_cached(q_BHD: Tensor, k_BGSD: Tensor, v_BGSD: Tensor, positions_B: Tensor, slopes_H: Tensor) -> Tensor:
    """One query per sequence against its cache; returns [B, H, D].

    Sequence b sees keys 0..positions_B[b], so sequences of different lengths share one call. The bias is [B,
    H, S].
    """
    b, groups, s, d = k_BGSD.shape
    q_BGRD = q_BHD.reshape(b, groups, -1, d)
    distance_BS = positions_B[:, None] - torch.arange(s, device=q_BHD.device)
    bias_BGRS = _bias(distance_BS[:, None, None, :], slopes_H.view(groups, -1, 1)).to(q_BHD.dtype)
    out_BGRD = F.scaled_dot_product_attention(q_BGRD, k_BGSD, v_BGSD, attn_mask=bias_BGRS)
    return out_BGRD.flatten(1, 2)


def attend_packed(q_1THD: Tensor, k_1TGD: Tensor, v_1TGD: Tensor, slopes_H: Tensor, lengths: Sequence[int]) -> Tensor:
    """`attend` within each of the documents that lie one after the other in a row; returns [1, T, H, D].

    Everything else in a model works on single positions, so a packed row computes what its documents compute alone.
    """
    if q_1THD.is_cuda:
        return attend_flex(q_1THD, k_1TGD, v_1TGD, slopes_H, lengths)
    split = (torch.split(x, list(lengths), dim=1) for x in (q_1THD, k_1TGD, v_1TGD))
    return torch.cat([attend(q, k, v, slopes_H) for q, k, v in zip(*split, strict=True)], dim=1)


def attend_flex(
    q_BTHD: Tensor, k_BSGD: Tensor, v_BSGD: Tensor, slopes_H: Tensor, lengths: Sequence[int] | None = None
) -> Tensor:
    """`attend`, or with `lengths` `attend_packed`, as FlexAttention: no bias in memory at all when compiled, which it
    is on a GPU."""
    from torch.nn.attention.flex_attention import create_block_mask, flex_attention

    t, s = q_BTHD.shape[1], k_BSGD.shape[1]
    offset = s - t

    def score(value: Tensor, b: Tensor, h: Tensor, query: Tensor, key: Tensor) -> Tensor:
        # Masked pairs are scored too; clamping keeps the root of their negative distance from becoming NaN.
        return value - slopes_H[h] * (query + offset - key).clamp(min=0).float().sqrt()

    def causal(b: Tensor, h: Tensor, query: Tensor, key: Tensor) -> Tensor:
        return query + offset >= key

    documents_T = torch.repeat_interleave(torch.tensor(lengths or [t], device=q_BTHD.device))

    def within(b: Tensor, h: Tensor, query: Tensor, key: Tensor) -> Tensor:
        return causal(b, h, query, key) & (documents_T[query] == documents_T[key])

    run = _compiled_flex() if q_BTHD.is_cuda else flex_attention
    mask = create_block_mask(within if lengths else causal, None, None, t, s, device=str(q_BTHD.device))
    q_BHTD, k_BGSD, v_BGSD = (x.transpose(1, 2) for x in (q_BTHD, k_BSGD, v_BSGD))
    out_BHTD: Tensor = run(q_BHTD, k_BGSD, v_BGSD, score_mod=score, block_mask=mask, enable_gqa=True)
    return out_BHTD.transpose(1, 2)


def _bias(distance: Tensor, slopes: Tensor) -> Tensor:
    bias = -slopes * distance.clamp(min=0).float().sqrt()
    return bias.masked_fill(distance < 0, -torch.inf)


@cache
def _compiled_flex() -> Any:
    from torch.nn.attention.flex_attention import flex_attention

    return torch.compile(flex_attention, dynamic=True)
