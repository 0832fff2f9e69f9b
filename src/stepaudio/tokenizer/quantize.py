"""Vectors to codes: nearest codeword, the same with a codebook that learns, and finite scalar quantisation.

Shapes: N vectors, D width, K codes. Whatever the model's precision, codes are decided in float32.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn


class Codebook(nn.Module):
    """Index of the nearest codeword by Euclidean distance, of the unit vector if `normalise`."""

    vectors: Tensor
    half_norms: Tensor

    def __init__(self, vectors_KD: Tensor, *, normalise: bool = False) -> None:
        super().__init__()
        self.normalise = normalise
        self.register_buffer("vectors", vectors_KD.float())
        self.register_buffer("half_norms", torch.empty(len(vectors_KD)), persistent=False)
        self.register_load_state_dict_post_hook(_refresh)  # type: ignore[no-untyped-call]
        self.refresh()

    @property
    def codes(self) -> int:
        return len(self.vectors)

    def encode(self, x_ND: Tensor) -> Tensor:
        """Vectors [..., D] to codes [...]."""
        x_ND = x_ND.float()
        if self.normalise:
            x_ND = F.normalize(x_ND, dim=-1)
        # Half of |x - c|^2, negated, without |x|^2, which is the same for every codeword.
        return (x_ND @ self.vectors.T - self.half_norms).argmax(dim=-1)

    def decode(self, codes: Tensor) -> Tensor:
        """Codes [...] to codewords [..., D]."""
        return F.embedding(codes, self.vectors)

    def refresh(self) -> None:
        """Follow a change of `vectors`."""
        self.half_norms = 0.5 * self.vectors.square().sum(dim=1)


def _refresh(codebook: Codebook, _: object) -> None:
    codebook.refresh()


class EmaCodebook(Codebook):
    """A codebook that follows the mean of the vectors it codes and moves unused codewords among them.

    Training step: the output is the codeword, its gradient goes straight to the input, and `commitment`
    pulls the input to the codeword. A codeword whose running count falls below `restart_below` restarts at a
    vector of the batch drawn at random. Sources: arXiv 1711.00937 appendix A.1; restarts as in arXiv
    2005.00341.
    """

    count: Tensor
    total: Tensor

    def __init__(
        self, codes: int, dim: int, *, decay: float = 0.99, restart_below: float = 0.1, epsilon: float = 1e-5
    ) -> None:
        super().__init__(torch.randn(codes, dim) / dim**0.5)
        self.decay, self.restart_below, self.epsilon = decay, restart_below, epsilon
        # Counts of zero: the first batch restarts the codewords among its own vectors.
        self.register_buffer("count", torch.zeros(codes))
        self.register_buffer("total", torch.zeros(codes, dim))

    def forward(self, x_ND: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Vectors [N, D] to straight-through codewords [N, D], codes [N] and the commitment loss []."""
        x_ND = x_ND.float()
        codes_N = self.encode(x_ND.detach())
        if self.training:
            self._follow(x_ND.detach(), codes_N)
        words_ND = self.decode(codes_N)
        return x_ND + (words_ND - x_ND).detach(), codes_N, F.mse_loss(x_ND, words_ND)

    @torch.no_grad()
    def _follow(self, x_ND: Tensor, codes_N: Tensor) -> None:
        counts_K = torch.bincount(codes_N, minlength=self.codes).float()
        sums_KD = torch.zeros_like(self.vectors).index_add_(0, codes_N, x_ND)
        self.count.lerp_(counts_K, 1 - self.decay)
        self.total.lerp_(sums_KD, 1 - self.decay)
        dead = self.count < self.restart_below
        if dead.any():
            drawn = x_ND[torch.randint(len(x_ND), (int(dead.sum()),), device=x_ND.device)]
            self.count[dead] = 1.0
            self.total[dead] = drawn
        self.vectors.copy_(self.total / self.count.clamp(min=self.epsilon)[:, None])
        self.refresh()


class FiniteScalarQuantizer(nn.Module):
    """Project to a few dimensions and round each to one of `levels[i]` values: no codebook to collapse.

    Source: arXiv 2309.15505. A code is the mixed-radix number of its rounded dimensions, the first the
    fastest.
    """

    basis: Tensor

    def __init__(self, levels: Sequence[int], dim: int) -> None:
        super().__init__()
        self.levels = tuple(levels)
        self.project_in = nn.Linear(dim, len(self.levels))
        self.project_out = nn.Linear(len(self.levels), dim)
        basis = torch.cumprod(torch.tensor([1, *self.levels[:-1]]), dim=0)
        self.register_buffer("basis", basis, persistent=False)

    @property
    def codes(self) -> int:
        return int(torch.tensor(self.levels).prod())

    def encode(self, x_ND: Tensor) -> Tensor:
        """Vectors [..., D] to codes [...]."""
        return self._index(self._round(x_ND)[0])

    def decode(self, codes: Tensor) -> Tensor:
        """Codes [...] to vectors [..., D]."""
        levels = self.basis.new_tensor(self.levels)
        digits = codes[..., None] // self.basis % levels - levels // 2
        y: Tensor = self.project_out(self._unit(digits.to(self.project_out.weight.dtype)))
        return y

    def forward(self, x_ND: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Vectors [N, D] to quantised vectors [N, D], codes [N] and how unevenly these are used (`_unevenness`) []."""
        rounded, squashed = self._round(x_ND)
        return self.project_out(self._unit(rounded)), self._index(rounded.detach()), _unevenness(squashed)

    def _round(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """The dimensions of vectors [..., D], rounded with the gradient going straight through, and before it as
        parts of their range in (-1, 1)."""
        with torch.autocast(x.device.type, enabled=False):
            z = F.linear(x.float(), self.project_in.weight.float(), self.project_in.bias.float())
        levels = z.new_tensor(self.levels)
        reach = (levels - 1) * (1 + 1e-3) / 2
        # An even number of levels is not symmetric about zero: shift by half a step.
        offset = torch.where(levels % 2 == 0, 0.5, 0.0)
        squashed = torch.tanh(z + torch.atanh(offset / reach))
        bounded = squashed * reach - offset
        return bounded + (bounded.round() - bounded).detach(), squashed

    def _unit(self, rounded: Tensor) -> Tensor:
        """Rounded dimensions to about [-1, 1]."""
        return rounded / rounded.new_tensor([level // 2 for level in self.levels])

    def _index(self, rounded: Tensor) -> Tensor:
        digits = rounded.round().long() + self.basis.new_tensor([level // 2 for level in self.levels])
        return (digits * self.basis).sum(dim=-1)


Quantizer = Codebook | FiniteScalarQuantizer


def _unevenness(u_NL: Tensor) -> Tensor:
    """How far dimensions in [-1, 1] are from independent uniform ones: squared distance of each to evenly spread
    values (2-Wasserstein, by sorting) and squared correlations. A recogniser alone would be content with few codes."""
    even_N = torch.linspace(-1, 1, len(u_NL), device=u_NL.device)
    spread = (u_NL.sort(dim=0).values - even_N[:, None]).square().mean()
    centred = u_NL - u_NL.mean(dim=0)
    correlation = centred.T @ centred / max(1, len(u_NL)) * 3  # the variance of a uniform dimension is 1 / 3
    return spread + (correlation - torch.diag(torch.diag(correlation))).square().mean()
