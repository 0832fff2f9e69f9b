"""Following a flow from noise to data: the solver that both decoder generations share.

Sources: flow matching, arXiv 2210.02747; classifier-free guidance, arXiv 2207.12598.

Shapes: B batch, T mel frames, M mel channels, K conditions, I = M + K inputs of an estimator.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np
import torch
from torch import Tensor

from stepaudio.errors import InputError


def cosine_grid(steps: int) -> Tensor:
    """Times 1 - cos(pi k / 2 steps), k = 0..steps: small steps first. Raises InputError below one step."""
    if steps < 1:
        raise InputError(f"the flow needs at least one step, not {steps}", param="steps")
    return 1 - torch.cos(torch.linspace(0, math.pi / 2, steps + 1, dtype=torch.float64))


def euler(velocity: Callable[[Tensor, int], Tensor], x: Tensor, times: Tensor) -> Tensor:
    """Follow dx/dt = `velocity(x, k)` from times[0] to times[-1], where k counts the steps."""
    for k, step in enumerate(times.diff().tolist()):
        x = x + step * velocity(x, k)
    return x


class Noise:
    """Standard normal values [M] for every frame position, without end, of a seed."""

    BLOCK = 1000

    def __init__(self, seed: int, mels: int) -> None:
        self._seed = seed % (1 << 64)
        self._mels = mels
        self._block: tuple[int, Tensor] | None = None

    def frames(self, start: int, stop: int) -> Tensor:
        """Noise of positions start..stop - 1, [T, M], float32 on the CPU."""
        parts = [torch.zeros(0, self._mels)]
        while start < stop:
            number, begin = divmod(start, self.BLOCK)
            parts.append(self._load(number)[begin : begin + stop - start])
            start += len(parts[-1])
        return torch.cat(parts)

    def _load(self, number: int) -> Tensor:
        if self._block is None or self._block[0] != number:
            # Not torch's generator: it reads no more than 32 bits of a seed.
            random = np.random.default_rng((self._seed, number))
            self._block = number, torch.from_numpy(random.standard_normal((self.BLOCK, self._mels), dtype=np.float32))
        return self._block[1]


def guided(velocity: Callable[[Tensor, int], Tensor], fixed_BTK: Tensor, guidance: float) -> Callable[..., Tensor]:
    """Classifier-free guidance: (1 + w) v(conditions) - w v(none), both from one batch of twice the size.

    `velocity(inputs_BTI, k)` is the estimator; the result takes x [B, T, M] and k.
    """
    if guidance:
        fixed_BTK = torch.cat([fixed_BTK, torch.zeros_like(fixed_BTK)])

    def run(x_BTM: Tensor, k: int) -> Tensor:
        x_BTM = x_BTM.to(fixed_BTK.dtype)
        if not guidance:
            return velocity(torch.cat([x_BTM, fixed_BTK], dim=-1), k).float()
        both = velocity(torch.cat([torch.cat([x_BTM, x_BTM]), fixed_BTK], dim=-1), k).float()
        conditional, unconditional = both.chunk(2)
        return torch.lerp(unconditional, conditional, 1 + guidance)

    return run
