"""Small discriminators of spectrograms, one per resolution, and the losses of the game they play with a vocoder.

A few 2-D convolutions on the complex short-time spectrum judge patches of it; hinge loss and feature matching. Sources:
arXiv 2106.07889 (several resolutions), arXiv 2306.00814 (the game around a Vocos).

Shapes: B batch, T samples, F frames, K bins, C channels.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

Judged = list[tuple[Tensor, list[Tensor]]]
"""Per resolution the scores of patches, and what each layer before made of the sound."""


class SpectrumDiscriminator(nn.Module):
    """Samples [B, T] to scores of patches of its spectrum, and the features behind them."""

    window: Tensor

    def __init__(self, n_fft: int, channels: int = 16) -> None:
        super().__init__()
        self.n_fft = n_fft
        self.register_buffer("window", torch.hann_window(n_fft), persistent=False)
        strides = [(1, 2), (2, 2), (1, 2), (1, 1)]
        inputs = [2] + [channels] * (len(strides) - 1)
        self.convs = nn.ModuleList(
            nn.utils.parametrizations.weight_norm(nn.Conv2d(i, channels, (3, 7), stride, padding=(1, 3)))
            for i, stride in zip(inputs, strides, strict=True)
        )
        self.score = nn.utils.parametrizations.weight_norm(nn.Conv2d(channels, 1, 3, padding=1))

    def forward(self, x_BT: Tensor) -> tuple[Tensor, list[Tensor]]:
        with torch.autocast(x_BT.device.type, enabled=False):
            spectrum_BKF = torch.stft(
                x_BT.float(), self.n_fft, self.n_fft // 4, window=self.window, return_complex=True
            )
            # Quiet harmonics count as well: the magnitude is compressed, the phase kept.
            spectrum_BKF = spectrum_BKF * (spectrum_BKF.abs() + 1e-4).pow(-0.5)
        x_BCFK = torch.view_as_real(spectrum_BKF).permute(0, 3, 2, 1)
        features = []
        for conv in self.convs:
            x_BCFK = F.leaky_relu(conv(x_BCFK), 0.1)
            features.append(x_BCFK)
        return self.score(x_BCFK), features


class Discriminators(nn.ModuleList):
    """One `SpectrumDiscriminator` per transform length."""

    def __init__(self, lengths: Sequence[int] = (512, 1024, 2048)) -> None:
        super().__init__(SpectrumDiscriminator(n_fft) for n_fft in lengths)

    def forward(self, x_BT: Tensor) -> Judged:
        return [discriminator(x_BT) for discriminator in self]


def hinge_loss(real: Judged, fake: Judged) -> Tensor:
    """What discriminators lower: scores of real patches go above 1, of others below -1; the mean over resolutions."""
    losses = [F.relu(1 - r.float()).mean() + F.relu(1 + f.float()).mean() for (r, _), (f, _) in _pairs(real, fake)]
    return torch.stack(losses).mean()


def adversarial_loss(fake: Judged) -> Tensor:
    """What the vocoder lowers: its patches are taken for real ones."""
    return torch.stack([-score.float().mean() for score, _ in fake]).mean()


def feature_loss(real: Judged, fake: Judged) -> Tensor:
    """The mean distance between what discriminators see in the real sound and in the vocoder's."""
    distances = [
        F.l1_loss(f.float(), r.detach().float())
        for (_, features), (_, others) in _pairs(real, fake)
        for r, f in zip(features, others, strict=True)
    ]
    return torch.stack(distances).mean()


def _pairs(real: Judged, fake: Judged) -> list[tuple[tuple[Tensor, list[Tensor]], tuple[Tensor, list[Tensor]]]]:
    return list(zip(real, fake, strict=True))
