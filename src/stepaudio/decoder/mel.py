"""The two mel spectrograms that the speech decoders speak: 22.05 kHz at 86.13 frames a second, 24 kHz at 50.

Magnitude spectra of Hann windows, mirrored and not centred (T samples give T // hop frames), through Slaney's mel
filters up to 8 kHz, natural logarithm. The definition is HiFi-GAN's (Kong et al. 2020), as the released models use it.

Shapes: B batch, M mel bands, F frames, T samples.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache

import torch
import torch.nn.functional as F
from torch import Tensor

from stepaudio.audio.features import mel_filters
from stepaudio.errors import AudioError


@dataclass(frozen=True, slots=True)
class MelSpec:
    """Samples [B, T] at `rate` to log-mel frames [B, M, T // hop]."""

    rate: int
    n_fft: int
    hop: int
    bands: int = 80
    high_hz: float = 8000.0

    def __call__(self, samples_BT: Tensor) -> Tensor:
        """Raises AudioError for fewer samples than can be mirrored, (n_fft - hop) / 2 + 1."""
        pad = (self.n_fft - self.hop) // 2
        if samples_BT.shape[-1] <= pad:
            raise AudioError(f"{samples_BT.shape[-1]} samples are too few for a mel spectrogram; {pad + 1} are needed")
        mirrored_BT = F.pad(samples_BT.unsqueeze(1), (pad, pad), mode="reflect").squeeze(1)
        window, filters = _tables(self, samples_BT.device)
        spectrum_BKF = torch.stft(mirrored_BT, self.n_fft, self.hop, window=window, center=False, return_complex=True)
        magnitude_BKF = (spectrum_BKF.real**2 + spectrum_BKF.imag**2 + 1e-9).sqrt()
        return (filters @ magnitude_BKF).clamp(min=1e-5).log()

    def frames(self, samples: int) -> int:
        return samples // self.hop


MEL_22K = MelSpec(rate=22_050, n_fft=1024, hop=256)
MEL_24K = MelSpec(rate=24_000, n_fft=1920, hop=480)


@cache
def _tables(spec: MelSpec, device: torch.device) -> tuple[Tensor, Tensor]:
    filters = torch.from_numpy(mel_filters(spec.bands, spec.n_fft, spec.rate, spec.high_hz))
    return torch.hann_window(spec.n_fft, device=device), filters.to(device)
