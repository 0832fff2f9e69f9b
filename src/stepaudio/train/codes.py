"""How a codebook is used: the figures that every tokenizer training logs."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray


def usage(counts: NDArray[np.int64]) -> float:
    """Part of the codes that occur at all, from how often each does [K]."""
    return float((counts > 0).mean())


def perplexity(counts: NDArray[np.int64]) -> float:
    """Number of equally likely codes that would be as hard to guess, from counts [K]; 0 when nothing was
    counted."""
    total = counts.sum()
    if total == 0:
        return 0.0
    p = counts[counts > 0] / total
    return float(np.exp(-(p * np.log(p)).sum()))
