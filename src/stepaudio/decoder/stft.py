"""The short-time Fourier transform and its inverse, on pieces of a signal.

Both equal `torch.stft` and `torch.istft` with a periodic Hann window, whatever the pieces are.

Shapes: B batch, K = n_fft / 2 + 1 bins, F frames, T samples.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from stepaudio.decoder.convolution import Stream


class Stft(nn.Module):
    """Samples [B, T] to a complex spectrum [B, K, F] with F = T / hop + 1: frames are centred on every `hop`-th sample
    and the signal is mirrored at both ends. T must be more than n_fft / 2 in all."""

    window: Tensor

    def __init__(self, n_fft: int, hop: int) -> None:
        super().__init__()
        self.n_fft, self.hop = n_fft, hop
        self.register_buffer("window", torch.hann_window(n_fft), persistent=False)

    def forward(self, x_BT: Tensor, stream: Stream) -> Tensor:
        half = self.n_fft // 2
        began, kept_BT = stream.take(self) or (False, x_BT[:, :0])
        x_BT = torch.cat([kept_BT, x_BT], dim=1)
        if not began and x_BT.shape[1] > half:
            began, x_BT = True, torch.cat([x_BT[:, 1 : half + 1].flip(1), x_BT], dim=1)
        if stream.last and began:
            x_BT = torch.cat([x_BT, x_BT[:, -half - 1 : -1].flip(1)], dim=1)
        frames = max(0, (x_BT.shape[1] - self.n_fft) // self.hop + 1) if began else 0
        stream.keep(self, (began, x_BT[:, frames * self.hop :]))
        if frames == 0:
            return torch.zeros(len(x_BT), half + 1, 0, dtype=torch.complex64, device=x_BT.device)
        frames_BFN = x_BT.unfold(1, self.n_fft, self.hop) * self.window
        spectrum_BKF: Tensor = torch.fft.rfft(frames_BFN).transpose(1, 2)
        return spectrum_BKF


class InverseStft(nn.Module):
    """A complex spectrum [B, K, F] to samples [B, T]: windowed frames added up, divided by the sum of the squared
    windows, `trim` samples cut from both ends.

    With `trim` = n_fft / 2, the default, it undoes `Stft` (T = hop (F - 1)); with (n_fft - hop) / 2 every frame
    gives hop samples (T = hop F). `hop` must divide `n_fft`. Samples come `n_fft - hop - trim` behind their frame.
    """

    window: Tensor

    def __init__(self, n_fft: int, hop: int, *, trim: int | None = None) -> None:
        super().__init__()
        if n_fft % hop:
            raise ValueError(f"the hop {hop} does not divide the transform of {n_fft} samples")
        self.n_fft, self.hop = n_fft, hop
        self.trim = n_fft // 2 if trim is None else trim
        self.register_buffer("window", torch.hann_window(n_fft), persistent=False)

    def forward(self, spectrum_BKF: Tensor, stream: Stream) -> Tensor:
        batch, _, frames = spectrum_BKF.shape
        left, kept = stream.take(self) or (self.trim, None)  # left: samples still to be cut from the beginning
        if frames:
            frames_BFN = torch.fft.irfft(spectrum_BKF.transpose(1, 2), n=self.n_fft) * self.window
            # One more row collects the squared windows: at both ends fewer of them overlap.
            squares_FN = (self.window**2).expand(1, frames, -1)
            y_BT = self._overlap(torch.cat([frames_BFN, squares_FN.to(frames_BFN.dtype)]))
            if kept is not None:
                overlap = kept.shape[1]
                y_BT = torch.cat([y_BT[:, :overlap] + kept, y_BT[:, overlap:]], dim=1)
        elif kept is not None:
            y_BT = kept
        else:
            return torch.zeros(batch, 0, device=spectrum_BKF.device)
        done = y_BT.shape[1] - self.trim if stream.last else frames * self.hop
        cut = min(left, max(done, 0))
        stream.keep(self, (left - cut, y_BT[:, frames * self.hop :]))
        return y_BT[:-1, cut:done] / y_BT[-1:, cut:done]

    def _overlap(self, frames_BFN: Tensor) -> Tensor:
        """Frames [B, F, n_fft] added up at a distance of `hop`: [B, (F - 1) hop + n_fft]."""
        batch, frames, _ = frames_BFN.shape
        parts = frames_BFN.view(batch, frames, self.n_fft // self.hop, self.hop)
        y = frames_BFN.new_zeros(batch, frames + parts.shape[2] - 1, self.hop)
        for place in range(parts.shape[2]):
            y[:, place : place + frames] += parts[:, :, place]
        return y.flatten(1)
