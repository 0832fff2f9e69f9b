"""Attention with sqrt-ALiBi, one score at a time in float64."""

from __future__ import annotations

import math

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.float64]


def attention(q_THD: Array, k_SGD: Array, v_SGD: Array, slopes_H: Array) -> Array:
    """The last T of S positions attend causally; query head h reads group floor(h * G / H)."""
    t, heads, d = q_THD.shape
    s, groups, _ = k_SGD.shape
    out = np.zeros((t, heads, d))
    for i in range(t):
        here = s - t + i
        for h in range(heads):
            g = h * groups // heads
            scores = [
                float(q_THD[i, h] @ k_SGD[j, g]) / math.sqrt(d) - float(slopes_H[h]) * math.sqrt(here - j)
                for j in range(here + 1)
            ]
            weights = [math.exp(score - max(scores)) for score in scores]
            for j, weight in enumerate(weights):
                out[i, h] += weight / math.fsum(weights) * v_SGD[j, g]
    return out
